"""Which NVIDIA GPU has which device file: the driver's minor number of each card, by its place on the bus."""

from __future__ import annotations

import contextlib
from pathlib import Path

from orchestrator.core.supply.evidence import bus_id

GPUS_DIR = Path("/proc/driver/nvidia/gpus")


def read_minors(folder: Path = GPUS_DIR) -> dict[str, str]:
    """PCI bus id → minor number as the driver tells it, in order; empty without a driver."""
    minors: dict[str, str] = {}
    for path in sorted(folder.glob("*/information")):
        with contextlib.suppress(OSError):
            for line in path.read_text(errors="replace").splitlines():
                name, _, value = line.partition(":")
                if name.strip() == "Device Minor" and value.strip().isdigit():
                    minors[bus_id(path.parent.name)] = value.strip()
    return minors
