"""The processor and the machine around the devices, as the kernel's files show them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import psutil

from orchestrator.adapters.devices.procfs import ROOT
from orchestrator.adapters.devices.reading import read_text, tidy
from orchestrator.adapters.host import read_host
from orchestrator.core.supply.evidence import DeviceEvidence, DeviceVendor, MachineEvidence

DMI = "sys/class/dmi/id"
CPUINFO = "proc/cpuinfo"

HYPERVISORS = (
    ("kvm", "kvm"),
    ("qemu", "kvm"),
    ("vmware", "vmware"),
    ("virtualbox", "virtualbox"),
    ("innotek", "virtualbox"),
    ("xen", "xen"),
    ("amazon ec2", "amazon"),
    ("google compute engine", "google"),
    ("virtual machine", "hyper-v"),
    ("openstack", "openstack"),
    ("parallels", "parallels"),
    ("firecracker", "firecracker"),
)
"""Words in what the firmware calls the machine, and the hypervisor behind them; the first that is found counts."""


def read_processor(name: str, memory_bytes: int | None = None) -> DeviceEvidence:
    """The processor as a device: every machine has one, whatever else it offers."""
    total_bytes = psutil.virtual_memory().total if memory_bytes is None else memory_bytes
    return DeviceEvidence(vendor=DeviceVendor.CPU, model=name, memory_bytes=total_bytes)


def processor_name(root: Path = ROOT) -> str:
    """As the kernel names it; empty where it does not, as on most ARM boards."""
    return _cpuinfo(root).get("model name", "")


def read_machine(
    gpus: int, lost: int, root: Path = ROOT, environ: Mapping[str, str] = os.environ
) -> MachineEvidence:
    """The machine: what its firmware says, and whether there is another system underneath."""
    names = {
        key: tidy(read_text(root / DMI / file))
        for key, file in (
            ("system_vendor", "sys_vendor"),
            ("system_product", "product_name"),
            ("board_vendor", "board_vendor"),
            ("board_product", "board_name"),
        )
    }
    wsl = read_host(environ, root).wsl is not None
    return MachineEvidence(
        processor=processor_name(root),
        gpus=gpus,
        gpus_lost=lost,
        wsl=wsl,
        virtualisation="hyper-v" if wsl else _virtualisation(names.values(), root),
        labels=None,
        **names,
    )


def _virtualisation(names: object, root: Path) -> str:
    words = str(names).lower()
    found = next((name for mark, name in HYPERVISORS if mark in words), "")
    if not found and "hypervisor" in _cpuinfo(root).get("flags", "").split():
        return "unknown hypervisor"
    return found


def _cpuinfo(root: Path) -> dict[str, str]:
    """The first processor's lines; the others repeat them."""
    first, _, _ = read_text(root / CPUINFO).partition("\n\n")
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
