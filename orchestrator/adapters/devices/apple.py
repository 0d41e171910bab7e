"""A Mac with Apple silicon: one chip, whose GPU shares the memory with the processor."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from orchestrator.adapters.devices.processor import read_processor
from orchestrator.adapters.devices.reading import Reading, number, tidy
from orchestrator.core.supply.evidence import DeviceEvidence, DeviceVendor, MachineEvidence, Sighting, Source

PROFILER = ("system_profiler", "SPDisplaysDataType", "SPHardwareDataType", "-json")
SYSCTL = (
    "sysctl",
    "hw.memsize",
    "hw.model",
    "hw.optional.arm64",
    "machdep.cpu.brand_string",
    "kern.hv_vmm_present",
)

COMMAND_S = 30.0
"""The profiler takes one or two seconds; a machine that swaps takes longer."""

Runner = Callable[[Sequence[str]], str]
"""Runs a command and gives what it printed; empty where it failed."""


def run_command(command: Sequence[str]) -> str:
    """The real runner."""
    try:
        ended = subprocess.run(command, capture_output=True, timeout=COMMAND_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    # Unknown names make `sysctl` end with an error after it has told the known ones.
    return ended.stdout.decode(errors="replace")


def read_apple(run: Runner = run_command) -> Reading:
    """The chip of this Mac as a GPU and as a processor; a Mac of Intel's offers its processor only.

    The GPU's memory is all of the machine's: that is the fact. How much of it is offered is for the agent to say.
    """
    facts = _sysctl(run(SYSCTL))
    hardware, displays = _profile(run(PROFILER))
    memory_bytes = number(facts.get("hw.memsize", "")) or 0
    brand = facts.get("machdep.cpu.brand_string", "") or _text(hardware, "chip_type")
    gpus = tuple(
        _evidence(hardware, display, brand, memory_bytes)
        for display in displays
        if facts.get("hw.optional.arm64") == "1" and _text(display, "sppci_model").startswith("Apple")
    )
    virtual = facts.get("kern.hv_vmm_present") == "1"
    machine = MachineEvidence(
        system_vendor="Apple",
        system_product=facts.get("hw.model", "") or _text(hardware, "machine_model"),
        processor=brand,
        gpus=len(displays),
        virtualisation="apple" if virtual else "",
    )
    # One chip has one GPU, however many screens hang on it.
    return Reading(gpus[:1], read_processor(brand, memory_bytes or None), machine)


def _evidence(
    hardware: Mapping[str, Any], display: Mapping[str, Any], brand: str, memory_bytes: int
) -> DeviceEvidence:
    model = _text(display, "sppci_model")
    uuid = _text(hardware, "platform_UUID")
    return DeviceEvidence(
        vendor=DeviceVendor.APPLE,
        model=model,
        memory_bytes=memory_bytes,
        uuid=f"MAC-{uuid}" if uuid else "",
        driver_version=_text(display, "spdisplays_mtlgpufamilysupport").removeprefix("spdisplays_"),
        sightings=(
            Sighting(Source.SYSTEM_PROFILER, uuid=f"MAC-{uuid}" if uuid else "", model=model),
            # One chip is processor and GPU, so the processor's brand tells the GPU's model too.
            Sighting(Source.SYSCTL, model=brand),
        ),
    )


def _sysctl(text: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in text.splitlines())
    return {key.strip(): tidy(value) for key, _, value in pairs}


def _profile(text: str) -> tuple[Mapping[str, Any], list[Mapping[str, Any]]]:
    """The machine, and its display adapters; empty where the profiler said nothing that can be read."""
    try:
        report = msgspec.json.decode(text, type=dict[str, list[dict[str, Any]]])
    except msgspec.DecodeError:
        return {}, []
    hardware = report.get("SPHardwareDataType") or [{}]
    return hardware[0], list(report.get("SPDisplaysDataType", []))


def _text(facts: Mapping[str, Any], key: str) -> str:
    value = facts.get(key, "")
    return tidy(value) if isinstance(value, str) else ""
