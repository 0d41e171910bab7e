"""What an hour of one device is worth beside an hour of another, where no price tells.

Thousandths of an RTX 4090, set by hand from the throughput of dense 16-bit matrix products, memory and its bandwidth,
and what such devices are let for. Two things are decided with it: how much of the fleet a tenant holds, and a price for
a model of which too few clouds publish one. Nobody is billed by it once a model has prices.
"""

from __future__ import annotations

from orchestrator.core.supply.catalogue import MODELS

UNIT = 1_000
"""What the RTX 4090 is worth."""

_CONSUMERS = (
    ("GTX1080TI", 150),
    ("GTX1660", 90),
    ("RTX2060", 130),
    ("RTX2070", 170),
    ("RTX2080", 200),
    ("RTX2080TI", 280),
    ("RTX3060", 220),
    ("RTX3060TI", 250),
    ("RTX3070", 280),
    ("RTX3070TI", 300),
    ("RTX3080", 380),
    ("RTX3080TI", 430),
    ("RTX3090", 600),
    ("RTX3090TI", 680),
    ("RTX4060", 240),
    ("RTX4060TI-8", 280),
    ("RTX4060TI-16", 330),
    ("RTX4070", 400),
    ("RTX4070SUPER", 450),
    ("RTX4070TI", 500),
    ("RTX4070TISUPER", 580),
    ("RTX4080", 680),
    ("RTX4080SUPER", 700),
    ("RTX4090", UNIT),
    ("RTX5060", 300),
    ("RTX5060TI-8", 330),
    ("RTX5060TI-16", 400),
    ("RTX5070", 480),
    ("RTX5070TI", 650),
    ("RTX5080", 750),
    ("RTX5090", 1_400),
    ("RX6800XT", 250),
    ("RX6900XT", 280),
    ("RX7800XT", 300),
    ("RX7900XT", 400),
    ("RX7900XTX", 500),
    ("RX9070XT", 450),
)

_CENTRES = (
    ("T4", 350),
    ("P100", 300),
    ("V100", 700),
    ("A10", 850),
    ("A30", 950),
    ("A40", 900),
    ("L4", 800),
    ("L40", 1_400),
    ("L40S", 1_700),
    ("A100-40", 2_100),
    ("A100-80", 2_700),
    ("H100", 4_500),
    ("GH200", 4_800),
    ("H200", 5_600),
    ("B200", 9_000),
    ("MI210", 1_600),
    ("MI300X", 4_000),
)

_APPLES = (
    ("M1", 100),
    ("M1PRO", 150),
    ("M1MAX", 250),
    ("M1ULTRA", 450),
    ("M2", 120),
    ("M2PRO", 180),
    ("M2MAX", 300),
    ("M2ULTRA", 550),
    ("M3", 130),
    ("M3PRO", 190),
    ("M3MAX", 340),
    ("M4", 150),
    ("M4PRO", 230),
    ("M4MAX", 400),
)

_PROCESSORS = (("CPU", 50),)
"""A whole machine without a GPU."""

WORTH_MILLI: dict[str, int] = dict((*_CONSUMERS, *_CENTRES, *_APPLES, *_PROCESSORS))

SMALLEST_WORTH_MILLI = min(WORTH_MILLI[name] for name in MODELS)
"""Of a device that the catalogue no longer lists: what is unknown must not count as much."""


def worth_milli(model: str) -> int:
    """The worth of one device of a model."""
    return WORTH_MILLI.get(model, SMALLEST_WORTH_MILLI)
