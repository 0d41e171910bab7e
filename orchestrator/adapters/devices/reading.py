"""What a look at this machine's devices brings, and how its files are read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from orchestrator.core.supply.evidence import EVIDENCE_CHARACTERS_MAX, DeviceEvidence, MachineEvidence
from orchestrator.core.supply.health import Fault

FILE_CHARACTERS_MAX = 65_536
"""Of one file of procfs or sysfs; the longest read here, cpuinfo, tells what is wanted in its first lines."""


NUMBER = re.compile(r"0x[0-9a-fA-F]{1,16}|(?:0|[1-9][0-9]{0,18})(?![0-9])")


@dataclass(frozen=True, slots=True)
class Reading:
    """The GPUs that answered, the processor, the machine; and what is broken among the rest."""

    gpus: tuple[DeviceEvidence, ...]
    processor: DeviceEvidence
    machine: MachineEvidence
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True, slots=True)
class GpuReading:
    """The GPUs of one vendor; ``lost`` holds the bus ids of those that do not answer."""

    gpus: tuple[DeviceEvidence, ...] = ()
    faults: tuple[Fault, ...] = ()
    lost: tuple[str, ...] = ()


def read_text(path: Path) -> str:
    """The beginning of a file, stripped; empty where it is missing, forbidden or unreadable."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(FILE_CHARACTERS_MAX).strip()
    except OSError:
        return ""


def read_number(path: Path) -> int | None:
    """The number that begins a file, decimal or 0x…; None where there is none."""
    return number(read_text(path))


def number(text: str) -> int | None:
    """The whole number that begins a text, such as ``16`` or ``16.0 GT/s PCIe``; None where there is none."""
    match = NUMBER.match(text)
    return None if match is None else int(match[0], 0)


def tidy(text: str) -> str:
    """A text as evidence may hold it: printable, on one line, not too long."""
    return "".join(one if one.isprintable() else " " for one in text).strip()[:EVIDENCE_CHARACTERS_MAX]
