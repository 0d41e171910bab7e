"""AMD's GPUs from sysfs, and from AMD's own library where it is installed: a second word beside the kernel's."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from orchestrator.adapters.devices.procfs import ROOT
from orchestrator.adapters.devices.reading import GpuReading, number, read_number, read_text, tidy
from orchestrator.core.supply.evidence import DeviceEvidence, DeviceVendor, Sighting, Source, bus_id

CARDS = "sys/class/drm"
MODULE_VERSION = "sys/module/amdgpu/version"
VENDOR_ID = 0x1002

BRIDGES_MAX = 8
"""Bridges walked from a card towards the processor; a card has two of its own, a board adds one or two."""

NAMES: dict[tuple[int, int | None], str] = {
    (0x740F, None): "AMD Instinct MI210",
    (0x74A1, None): "AMD Instinct MI300X",
    (0x73BF, 0xC0): "AMD Radeon RX 6900 XT",
    (0x73AF, 0xC0): "AMD Radeon RX 6900 XT",
    (0x73BF, 0xC1): "AMD Radeon RX 6800 XT",
    (0x744C, 0xC8): "AMD Radeon RX 7900 XTX",
    (0x744C, 0xCC): "AMD Radeon RX 7900 XT",
    (0x747E, 0xC8): "AMD Radeon RX 7800 XT",
    (0x7550, 0xC0): "AMD Radeon RX 9070 XT",
}
"""By PCI device and revision, which tells cards of one chip apart; the kernel knows no names."""

GENERATIONS = {2: 1, 5: 2, 8: 3, 16: 4, 32: 5, 64: 6}
"""PCIe generation by its whole gigatransfers a second (2.5 counts as 2)."""

UNIQUE_ID = re.compile(r"(?:0x)?([0-9a-f]{1,16})")

LANES_MAX = 32
"""The widest link that PCIe knows; larger numbers stand for a link that does not tell."""

Library = Callable[[], Mapping[str, Sighting]]


def read_amd(root: Path = ROOT, library: Library | None = None) -> GpuReading:
    """The GPUs that the kernel lists under ``root``, each beside what AMD's library says at the same bus."""
    told = (read_library if library is None else library)()
    driver = tidy(read_text(root / MODULE_VERSION)) or tidy(_kernel(root))
    gpus = []
    for device in _cards(root):
        own = _sighting(device)
        second = told.get(own.pci_bus_id)
        gpus.append(_evidence(device, own, second, driver))
    return GpuReading(tuple(gpus))


def _kernel(root: Path) -> str:
    """The driver is part of the kernel where it has no version of its own."""
    release = read_text(root / "proc/sys/kernel/osrelease")
    return f"linux {release}" if release else ""


def _cards(root: Path) -> Iterator[Path]:
    """The real folder of each card of AMD's that has memory of its own to offer, in order of their numbers."""
    cards = [card for card in (root / CARDS).glob("card*") if card.name[4:].isdigit()]
    for card in sorted(cards, key=lambda one: int(one.name[4:])):
        device = (card / "device").resolve()
        if read_number(device / "vendor") == VENDOR_ID and read_number(device / "mem_info_vram_total"):
            yield device


def _sighting(device: Path) -> Sighting:
    chip, revision = read_number(device / "device"), read_number(device / "revision")
    name = NAMES.get((chip or 0, revision)) or NAMES.get((chip or 0, None))
    if name is None:
        name = f"AMD {chip or 0:04x} revision {revision or 0:02x}"
    unique = read_text(device / "unique_id").lower()
    return Sighting(Source.SYSFS, uuid=_uuid(unique), model=name, pci_bus_id=bus_id(_slot(device)))


def _slot(device: Path) -> str:
    for line in read_text(device / "uevent").splitlines():
        key, _, value = line.partition("=")
        if key == "PCI_SLOT_NAME":
            return value
    return device.name


def _uuid(unique: str) -> str:
    """The name by which AMD's runtime selects a card; empty for a card without a number of its own."""
    digits = UNIQUE_ID.fullmatch(unique)
    return f"GPU-{digits[1]:0>16}" if digits is not None else ""


def _evidence(device: Path, own: Sighting, second: Sighting | None, driver: str) -> DeviceEvidence:
    limit_uw = next((read_number(path) for path in sorted(device.glob("hwmon/hwmon*/power1_cap"))), None)
    generation = read_text(device / "current_link_speed")
    generation_max = read_text(device / "max_link_speed")
    return DeviceEvidence(
        vendor=DeviceVendor.AMD,
        model=own.model,
        memory_bytes=read_number(device / "mem_info_vram_total") or 0,
        uuid=own.uuid,
        pci_bus_id=own.pci_bus_id,
        pcie_generation=GENERATIONS.get(number(generation) or 0),
        pcie_generation_max=GENERATIONS.get(number(generation_max) or 0),
        pcie_width=_width(device, "current_link_width"),
        pcie_width_max=_width(device, "max_link_width"),
        driver_version=driver,
        power_limit_mw=None if limit_uw is None else limit_uw // 1_000,
        sightings=(own,) if second is None else (own, second),
    )


def _width(device: Path, name: str) -> int | None:
    """Lanes of the narrowest link from the card to the processor.

    Newer cards sit behind bridges of their own, with sixteen lanes between bridge and chip whatever the slot has.
    """
    widths = []
    for _ in range(BRIDGES_MAX):
        lanes = read_number(device / name)
        if lanes is None:
            break
        if 0 < lanes <= LANES_MAX:
            widths.append(lanes)
        device = device.parent
    return min(widths, default=None)


def read_library() -> dict[str, Sighting]:
    """What ``amdsmi`` tells, by bus; nothing where it is not installed or finds no driver."""
    try:
        # It comes with AMD's driver, not with this package; its loading fails in several ways where that is missing.
        amdsmi = import_module("amdsmi")
    except (ImportError, OSError, KeyError):
        return {}
    try:
        amdsmi.amdsmi_init()
    except amdsmi.AmdSmiException:
        return {}
    try:
        sightings = (_library_sighting(amdsmi, handle) for handle in amdsmi.amdsmi_get_processor_handles())
        return {one.pci_bus_id: one for one in sightings if one is not None}
    except amdsmi.AmdSmiException:
        return {}
    finally:
        amdsmi.amdsmi_shut_down()


def _library_sighting(amdsmi: ModuleType, handle: Any) -> Sighting | None:
    ask = partial(_ask, amdsmi)
    bus = ask(amdsmi.amdsmi_get_gpu_device_bdf, handle)
    about = ask(amdsmi.amdsmi_get_gpu_asic_info, handle) or {}
    if not bus:
        return None
    return Sighting(
        Source.AMDSMI,
        uuid=_uuid(str(about.get("asic_serial", "")).lower()),
        model=tidy(str(about.get("market_name", ""))),
        pci_bus_id=bus_id(str(bus)),
    )


def _ask(amdsmi: ModuleType, question: Callable[[Any], Any], handle: Any) -> Any:
    try:
        return question(handle)
    except amdsmi.AmdSmiException:
        return None
