"""Devices as evidence: what NVML, procfs, sysfs, AMD's library and Apple's tools say, side by side."""

from __future__ import annotations

import platform
from pathlib import Path

from orchestrator.adapters.devices.amd import read_amd
from orchestrator.adapters.devices.apple import read_apple
from orchestrator.adapters.devices.nvml import XidWatch, read_nvidia, read_telemetry
from orchestrator.adapters.devices.processor import processor_name, read_machine, read_processor
from orchestrator.adapters.devices.procfs import ROOT
from orchestrator.adapters.devices.reading import Reading

__all__ = ["Reading", "XidWatch", "read_evidence", "read_telemetry"]


def read_evidence(root: Path = ROOT, system: str | None = None) -> Reading:
    """Look at this machine's devices. Never fails: what cannot be read is not evidence."""
    if (platform.system() if system is None else system) == "Darwin":
        return read_apple()
    nvidia, amd = read_nvidia(root), read_amd(root)
    gpus = (*nvidia.gpus, *amd.gpus)
    lost = len(nvidia.lost) + len(amd.lost)
    return Reading(
        gpus=gpus,
        processor=read_processor(processor_name(root)),
        machine=read_machine(len(gpus) + lost, lost, root),
        faults=(*nvidia.faults, *amd.faults),
    )
