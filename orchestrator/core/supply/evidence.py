"""What a machine shows of its hardware, as its drivers put it: the ground on which classes are derived.

Evidence is what each source said, side by side. Whether the sources agree is decided where it is judged and never by
whoever sends it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum

EVIDENCE_CHARACTERS_MAX = 200
"""Of one text. Drivers' names have at most 96 and UUIDs 80; what is longer was not written by a driver."""

SIGHTINGS_MAX = 8
"""Sources that tell of one device; there are four today."""

MIG_PROFILES_MAX = 16
"""Instances of one GPU. Today's are cut into seven at most."""


class DeviceVendor(StrEnum):
    """Who made a device, as far as it matters to how it is read; every processor counts as ``cpu``."""

    NVIDIA = "nvidia"
    AMD = "amd"
    APPLE = "apple"
    CPU = "cpu"


class Source(StrEnum):
    """Where a fact was read."""

    NVML = "nvml"
    PROCFS = "procfs"
    SYSFS = "sysfs"
    AMDSMI = "amdsmi"
    SYSTEM_PROFILER = "system_profiler"
    SYSCTL = "sysctl"


class EvidenceClass(StrEnum):
    """How much a device's word is worth, weakest first."""

    T0 = "t0"
    """Told by the machine, or simulated."""
    T1 = "t1"
    """Challenged: it computed what only such a device computes in that time."""
    T2 = "t2"
    """Two sources of the machine that do not share their code say the same."""


EVIDENCE_RANK = {tier: rank for rank, tier in enumerate(EvidenceClass)}

INDEPENDENT = (
    frozenset({Source.NVML, Source.PROCFS}),
    frozenset({Source.SYSFS, Source.AMDSMI}),
)
"""Sources of which one does not repeat the other: a library of the user's side, and the kernel's own files."""

CAPABILITY_MINORS = 100
"""Of a compute capability MAJOR.MINOR there is one number, MAJOR · 100 + MINOR."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """One device as one source shows it; empty where that source does not say."""

    source: Source
    uuid: str = ""
    model: str = ""
    pci_bus_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceEvidence:
    """One device. None and the empty text mean that nothing was said, which is never a reproach."""

    vendor: DeviceVendor
    model: str
    """The driver's own name, such as ``NVIDIA GeForce RTX 4090``."""
    memory_bytes: int
    """All it has; a Mac's GPU shares it with its processor."""
    uuid: str = ""
    pci_bus_id: str = ""
    """Domain, bus, device and function: ``0000:01:00.0``."""
    pcie_generation: int | None = field(default=None, compare=False)
    """Now. Not compared: an idle GPU lowers it, which changes no hardware."""
    pcie_generation_max: int | None = None
    pcie_width: int | None = None
    pcie_width_max: int | None = None
    """What the device and its slot could do together."""
    nvlink_links: int | None = None
    """Active links."""
    nvlink_peers: int | None = None
    """Different devices at their other ends: GPUs, or the switches between them."""
    compute_capability: str = ""
    driver_version: str = ""
    mig_enabled: bool | None = None
    mig_profiles: tuple[str, ...] = ()
    power_limit_mw: int | None = None
    ecc_enabled: bool | None = None
    sightings: tuple[Sighting, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLabels:
    """What a Kubernetes cluster has written on the machine's node; empty or None where it is not labelled.

    Whoever runs the cluster writes there what he likes, so it is kept and shown, and neither the hardware class nor what
    evidence is worth ever follows from it.
    """

    node: str = ""
    region: str = ""
    zone: str = ""
    instance_type: str = ""
    gpu_product: str = ""
    """In the words of whatever labelled it: ``NVIDIA-H100-80GB-HBM3``, ``nvidia-tesla-t4``."""
    gpu_count: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineEvidence:
    """The machine around the devices."""

    system_vendor: str = ""
    system_product: str = ""
    board_vendor: str = ""
    board_product: str = ""
    processor: str = ""
    gpus: int = 0
    """All that were seen, offered or not; lost ones included."""
    gpus_lost: int = 0
    """Those that fell off their bus."""
    wsl: bool = False
    virtualisation: str = ""
    """The hypervisor underneath, as far as it shows: ``kvm``, ``vmware`` …; empty on bare metal."""
    labels: NodeLabels | None = None
    """None outside Kubernetes, or where the agent may not read its node."""


def bus_id(text: str) -> str:
    """A PCI bus id in one spelling: sources write the domain with four digits or eight, letters large or small."""
    match = re.fullmatch(
        r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([0-9a-f]{2})(?:\.([0-7]))?", text.strip().lower()
    )
    if match is None:
        return text.strip().lower()
    domain, bus, device, function = match.groups()
    return f"{int(domain or '0', 16):04x}:{bus}:{device}.{function or '0'}"


def width_of(evidence: DeviceEvidence) -> int | None:
    """PCIe lanes that really carry the device: those of now, or fewer where the slot has fewer."""
    known = [width for width in (evidence.pcie_width, evidence.pcie_width_max) if width]
    return min(known) if known else None


def check_evidence_text(field_name: str, text: str) -> str | None:
    """What is wrong with a text that a machine sent; None where it may be kept and shown."""
    if len(text) > EVIDENCE_CHARACTERS_MAX:
        return f"{field_name} is longer than {EVIDENCE_CHARACTERS_MAX} characters"
    if not text.isprintable():
        return f"{field_name} holds characters that cannot be printed"
    return None


def capability_number(text: str) -> int:
    """``8.9`` as 809; 0 for what is no compute capability, or not known."""
    major, _, minor = text.partition(".")
    if not (major.isascii() and major.isdigit() and minor.isascii() and minor.isdigit()):
        return 0
    return min(int(major[:4]), 1_000) * CAPABILITY_MINORS + min(int(minor[:2]), CAPABILITY_MINORS - 1)
