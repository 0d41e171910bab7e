"""Run by the tests in a process of its own: the binding loads a library once and for all. Prints what it read."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec

from orchestrator.adapters.devices import Reading, XidWatch, read_evidence, read_telemetry
from orchestrator.core.supply.health import DeviceTelemetry


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at a machine brings; the error codes of two looks one after the other."""

    reading: Reading
    telemetry: tuple[DeviceTelemetry, ...]
    xids: tuple[tuple[str, int], ...]
    xids_later: tuple[tuple[str, int], ...]


def look(root: Path) -> Look:
    watch = XidWatch()
    try:
        reading, telemetry = read_evidence(root, "Linux"), read_telemetry(root)
        return Look(reading, telemetry, watch.poll(), watch.poll())
    finally:
        watch.close()


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(look(Path(sys.argv[1]))))
