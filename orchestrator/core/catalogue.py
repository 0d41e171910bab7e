"""The model catalogue: which devices exist, how much memory they have, which classes offer them."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from orchestrator.core.fleet import HardwareClass

CATALOGUE_VERSION = "2026-11-1"
"""Written into every receipt, so that a later change of the table cannot change what was billed."""

GIB = 1024**3

CPU_MODEL = "CPU"
"""The model of a machine that offers its processor as one device."""


@dataclass(frozen=True, slots=True)
class Model:
    """One device model; ``memory_gb`` is what its vendor prints."""

    name: str
    memory_gb: int
    classes: frozenset[HardwareClass]


_GAMING = frozenset({HardwareClass.CONSUMER, HardwareClass.MINER})
_CENTRE = frozenset({HardwareClass.DATACENTER})
_APPLE = frozenset({HardwareClass.APPLE})

MODELS: dict[str, Model] = {
    model.name: model
    for model in (
        *(
            Model(name, memory_gb, _GAMING)
            for name, memory_gb in (
                ("GTX1660", 6),
                ("RTX2060", 6),
                ("RTX2080TI", 11),
                ("RTX3060", 12),
                ("RTX3070", 8),
                ("RTX3080", 10),
                ("RTX3080TI", 12),
                ("RTX3090", 24),
                ("RTX4060", 8),
                ("RTX4070", 12),
                ("RTX4080", 16),
                ("RTX4090", 24),
                ("RTX5070", 12),
                ("RTX5080", 16),
                ("RTX5090", 32),
                ("RX7900XTX", 24),
            )
        ),
        *(
            Model(name, memory_gb, _CENTRE)
            for name, memory_gb in (
                ("T4", 16),
                ("V100", 32),
                ("A10", 24),
                ("L4", 24),
                ("L40S", 48),
                ("A100-40", 40),
                ("A100-80", 80),
                ("H100", 80),
                ("H200", 141),
                ("B200", 192),
                ("MI300X", 192),
            )
        ),
        *(
            Model(name, memory_gb, _APPLE)
            for name, memory_gb in (("M1MAX", 64), ("M2ULTRA", 192), ("M4MAX", 128))
        ),
        Model(CPU_MODEL, 0, frozenset({HardwareClass.CPU})),
    )
}


def find_model(text: str) -> Model | None:
    """The catalogue's model for a name as people and drivers write it, such as ``GeForce RTX 4090``."""
    squeezed = re.sub(r"NVIDIA|GEFORCE|TESLA|AMD|RADEON|APPLE|\(R\)|\s|_", "", text.upper())
    by_squeezed = {re.sub(r"[\s_]", "", name): model for name, model in MODELS.items()}
    return by_squeezed.get(squeezed)


def nearest(text: str, known: list[str]) -> str:
    """The known word closest to ``text``: a hint, so it always answers."""
    folded = {word.lower(): word for word in known}
    close = difflib.get_close_matches(text.lower(), list(folded), n=1, cutoff=0.0)
    return folded[close[0]] if close else known[0]
