"""The model catalogue: which devices exist, how much memory they have, which classes offer them."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from orchestrator.core.supply.fleet import HardwareClass

CATALOGUE_VERSION = "2026-11-2"
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

FORM_FACTOR = re.compile(r"[0-9]+GB|HBM[0-9]E?|PCIE|SXM[0-9]?|NVL|OAM")
"""Words of a driver's name that tell how a GPU is built in; any other word makes it another GPU."""

VENDOR_WORDS = frozenset({"NVIDIA", "GEFORCE", "TESLA", "AMD", "RADEON", "INSTINCT", "APPLE"})

_CONSUMERS = (
    ("GTX1080TI", 11),
    ("GTX1660", 6),
    ("RTX2060", 6),
    ("RTX2070", 8),
    ("RTX2080", 8),
    ("RTX2080TI", 11),
    ("RTX3060", 12),
    ("RTX3060TI", 8),
    ("RTX3070", 8),
    ("RTX3070TI", 8),
    ("RTX3080", 10),
    ("RTX3080TI", 12),
    ("RTX3090", 24),
    ("RTX3090TI", 24),
    ("RTX4060", 8),
    ("RTX4060TI-8", 8),
    ("RTX4060TI-16", 16),
    ("RTX4070", 12),
    ("RTX4070SUPER", 12),
    ("RTX4070TI", 12),
    ("RTX4070TISUPER", 16),
    ("RTX4080", 16),
    ("RTX4080SUPER", 16),
    ("RTX4090", 24),
    ("RTX5060", 8),
    ("RTX5060TI-8", 8),
    ("RTX5060TI-16", 16),
    ("RTX5070", 12),
    ("RTX5070TI", 16),
    ("RTX5080", 16),
    ("RTX5090", 32),
    ("RX6800XT", 16),
    ("RX6900XT", 16),
    ("RX7800XT", 16),
    ("RX7900XT", 20),
    ("RX7900XTX", 24),
    ("RX9070XT", 16),
)

_CENTRES = (
    ("T4", 16),
    ("P100", 16),
    ("V100", 32),
    ("A10", 24),
    ("A30", 24),
    ("A40", 48),
    ("L4", 24),
    ("L40", 48),
    ("L40S", 48),
    ("A100-40", 40),
    ("A100-80", 80),
    ("H100", 80),
    ("GH200", 96),
    ("H200", 141),
    ("B200", 192),
    ("MI210", 64),
    ("MI300X", 192),
)

_APPLES = (
    ("M1", 16),
    ("M1PRO", 32),
    ("M1MAX", 64),
    ("M1ULTRA", 128),
    ("M2", 24),
    ("M2PRO", 32),
    ("M2MAX", 96),
    ("M2ULTRA", 192),
    ("M3", 24),
    ("M3PRO", 36),
    ("M3MAX", 128),
    ("M4", 32),
    ("M4PRO", 64),
    ("M4MAX", 128),
)
"""The memory of the largest Mac with such a chip."""

MODELS: dict[str, Model] = {
    model.name: model
    for model in (
        *(Model(name, memory_gb, _GAMING) for name, memory_gb in _CONSUMERS),
        *(Model(name, memory_gb, _CENTRE) for name, memory_gb in _CENTRES),
        *(Model(name, memory_gb, _APPLE) for name, memory_gb in _APPLES),
        Model(CPU_MODEL, 0, frozenset({HardwareClass.CPU})),
    )
}


def find_model(text: str) -> Model | None:
    """The catalogue's model for a name as people and drivers write it, such as ``GeForce RTX 4090``."""
    squeezed = re.sub(r"NVIDIA|GEFORCE|TESLA|AMD|RADEON|APPLE|\(R\)|\s|_", "", text.upper())
    by_squeezed = {re.sub(r"[\s_]", "", name): model for name, model in MODELS.items()}
    return by_squeezed.get(squeezed)


def model_of(name: str, memory_bytes: int) -> Model | None:
    """The catalogue's model for a driver's name; None for a device that it does not list.

    A name may go on with how the GPU is built in (``H100 80GB HBM3``) and with nothing else: a laptop's RTX
    4090 is not the RTX 4090. Where one name has several sizes (``A100``) the memory decides.
    """
    words = [word for word in re.split(r"[\s-]+", name.upper()) if word and word not in VENDOR_WORDS]
    for length in range(len(words), 0, -1):
        if not all(FORM_FACTOR.fullmatch(word) for word in words[length:]):
            return None
        joined = "".join(words[:length])
        model = find_model(joined)
        if model is not None:
            return model
        sizes = [one for one in MODELS.values() if one.name.rpartition("-")[0] == joined]
        if sizes:
            return min(sizes, key=lambda one: abs(one.memory_gb * GIB - memory_bytes))
    return None


def nearest(text: str, known: list[str]) -> str:
    """The known word closest to ``text``: a hint, so it always answers."""
    folded = {word.lower(): word for word in known}
    close = difflib.get_close_matches(text.lower(), list(folded), n=1, cutoff=0.0)
    return folded[close[0]] if close else known[0]
