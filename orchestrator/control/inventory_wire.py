"""Inventories between protobuf and core. What an agent claims of its class is not read: the class is derived here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.adapters.evidence_wire import VENDOR_NUMBERS, device_evidence_to, machine_evidence_to
from orchestrator.api.v1 import common_pb2
from orchestrator.core.errors import invalid
from orchestrator.core.ids import DeviceId
from orchestrator.core.supply.evidence import (
    MIG_PROFILES_MAX,
    SIGHTINGS_MAX,
    DeviceEvidence,
    EvidenceClass,
    MachineEvidence,
    NodeLabels,
    Sighting,
    Source,
    check_evidence_text,
)
from orchestrator.core.supply.fleet import (
    REMARK_CHARACTERS_MAX,
    REMARKS_MAX,
    Device,
    DeviceKind,
    HardwareClass,
    Inventory,
    Isolation,
)
from orchestrator.core.supply.hardware import (
    check_device_count,
    derive_class,
    evidence_class,
    worker_evidence_class,
)
from orchestrator.core.supply.labels import inventory_contradictions

if TYPE_CHECKING:
    from collections.abc import Iterable

WORD_MAX = 200
"""Longest word kept from an agent: versions, zones, addresses."""

INVENTORY_BYTES_MAX = 256 * 1024
"""64 devices with all they can honestly show take about 60 KB."""

CLASSES = {
    common_pb2.HARDWARE_CLASS_CONSUMER: HardwareClass.CONSUMER,
    common_pb2.HARDWARE_CLASS_MINER: HardwareClass.MINER,
    common_pb2.HARDWARE_CLASS_DATACENTER: HardwareClass.DATACENTER,
    common_pb2.HARDWARE_CLASS_APPLE: HardwareClass.APPLE,
    common_pb2.HARDWARE_CLASS_CPU: HardwareClass.CPU,
}
CLASS_NUMBERS = {value: number for number, value in CLASSES.items()}

KINDS = {common_pb2.DEVICE_KIND_GPU: DeviceKind.GPU, common_pb2.DEVICE_KIND_CPU: DeviceKind.CPU}
KIND_NUMBERS = {value: number for number, value in KINDS.items()}

VENDORS = {number: vendor for vendor, number in VENDOR_NUMBERS.items()}

EVIDENCE_NUMBERS = {
    EvidenceClass.T0: common_pb2.EVIDENCE_CLASS_T0,
    EvidenceClass.T1: common_pb2.EVIDENCE_CLASS_T1,
    EvidenceClass.T2: common_pb2.EVIDENCE_CLASS_T2,
}


def inventory_from(wire: common_pb2.Inventory) -> Inventory:
    """What the agent shows, and the class that follows from it. Raises RefusedError naming the field.

    Sizes are looked at first: an inventory that no machine can have costs no more than its arrival.
    """
    check_device_count(len(wire.devices))
    size_bytes = wire.ByteSize()
    if size_bytes > INVENTORY_BYTES_MAX:
        raise invalid("inventory", f"{size_bytes} bytes; no machine's takes more than {INVENTORY_BYTES_MAX}")
    try:
        isolation = Isolation(wire.isolation)
    except ValueError:
        raise invalid("inventory.isolation", f"unknown isolation {wire.isolation[:40]!r}") from None
    words = {
        "operating_system": wire.operating_system,
        "architecture": wire.architecture,
        "python_version": wire.python_version,
        "ray_version": wire.ray_version,
        "overlay": wire.overlay,
        "zone": wire.zone,
    }
    for name, word in words.items():
        if len(word) > WORD_MAX:
            raise invalid(f"inventory.{name}", f"longer than {WORD_MAX} characters")
    remarks = _remarks_from(wire)
    devices = tuple(_device_from(device) for device in wire.devices)
    machine = _machine_evidence_from(wire.evidence) if wire.HasField("evidence") else None
    hardware_class, reason = derive_class(devices, machine)
    return Inventory(
        hardware_class=hardware_class,
        devices=devices,
        cpus=wire.cpus,
        memory_bytes=wire.memory_bytes,
        slots=wire.slots,
        head_slots=wire.head_slots,
        isolation=isolation,
        evidence=machine,
        class_reason=reason,
        unisolated=wire.unisolated,
        remarks=remarks,
        **words,
    )


def _remarks_from(wire: common_pb2.Inventory) -> tuple[str, ...]:
    field = "inventory.remarks"
    if len(wire.remarks) > REMARKS_MAX:
        raise invalid(field, f"{len(wire.remarks)} remarks; at most {REMARKS_MAX}")
    for remark in wire.remarks:
        if len(remark) > REMARK_CHARACTERS_MAX:
            raise invalid(field, f"one is longer than {REMARK_CHARACTERS_MAX} characters")
        if not remark.isprintable():
            raise invalid(field, "one holds characters that cannot be printed")
    return tuple(wire.remarks)


def _device_from(wire: common_pb2.Device) -> Device:
    kind = KINDS.get(wire.kind)
    if kind is None:
        raise invalid("inventory.devices.kind", f"device {wire.device_id[:80]!r} has no kind")
    return Device(
        DeviceId(wire.device_id),
        kind,
        wire.model,
        wire.memory_bytes,
        wire.simulated,
        _device_evidence_from(wire.evidence) if wire.HasField("evidence") else None,
    )


def _device_evidence_from(wire: common_pb2.DeviceEvidence) -> DeviceEvidence:
    field = "inventory.devices.evidence"
    vendor = VENDORS.get(wire.vendor)
    if vendor is None:
        raise invalid(f"{field}.vendor", "say who made the device: nvidia, amd, apple or cpu")
    if len(wire.sightings) > SIGHTINGS_MAX:
        raise invalid(f"{field}.sightings", f"{len(wire.sightings)} of one device; at most {SIGHTINGS_MAX}")
    if len(wire.mig_profiles) > MIG_PROFILES_MAX:
        reason = f"{len(wire.mig_profiles)} of one device; at most {MIG_PROFILES_MAX}"
        raise invalid(f"{field}.mig_profiles", reason)
    texts = {
        "model": wire.model,
        "uuid": wire.uuid,
        "pci_bus_id": wire.pci_bus_id,
        "compute_capability": wire.compute_capability,
        "driver_version": wire.driver_version,
    }
    _check_texts(field, texts.items())
    _check_texts(field, (("mig_profiles", profile) for profile in wire.mig_profiles))
    return DeviceEvidence(
        vendor=vendor,
        memory_bytes=wire.memory_bytes,
        pcie_generation=wire.pcie_generation if wire.HasField("pcie_generation") else None,
        pcie_generation_max=wire.pcie_generation_max if wire.HasField("pcie_generation_max") else None,
        pcie_width=wire.pcie_width if wire.HasField("pcie_width") else None,
        pcie_width_max=wire.pcie_width_max if wire.HasField("pcie_width_max") else None,
        nvlink_links=wire.nvlink_links if wire.HasField("nvlink_links") else None,
        nvlink_peers=wire.nvlink_peers if wire.HasField("nvlink_peers") else None,
        mig_enabled=wire.mig_enabled if wire.HasField("mig_enabled") else None,
        mig_profiles=tuple(wire.mig_profiles),
        power_limit_mw=wire.power_limit_mw if wire.HasField("power_limit_mw") else None,
        ecc_enabled=wire.ecc_enabled if wire.HasField("ecc_enabled") else None,
        sightings=tuple(_sighting_from(one) for one in wire.sightings),
        **texts,
    )


def _sighting_from(wire: common_pb2.Sighting) -> Sighting:
    field = "inventory.devices.evidence.sightings"
    try:
        source = Source(wire.source)
    except ValueError:
        known = ", ".join(Source)
        raise invalid(f"{field}.source", f"{wire.source[:40]!r} is none of {known}") from None
    texts = {"uuid": wire.uuid, "model": wire.model, "pci_bus_id": wire.pci_bus_id}
    _check_texts(field, texts.items())
    return Sighting(source, **texts)


def _machine_evidence_from(wire: common_pb2.MachineEvidence) -> MachineEvidence:
    texts = {
        "system_vendor": wire.system_vendor,
        "system_product": wire.system_product,
        "board_vendor": wire.board_vendor,
        "board_product": wire.board_product,
        "processor": wire.processor,
        "virtualisation": wire.virtualisation,
    }
    _check_texts("inventory.evidence", texts.items())
    labels = _labels_from(wire.labels) if wire.HasField("labels") else None
    return MachineEvidence(gpus=wire.gpus, gpus_lost=wire.gpus_lost, wsl=wire.wsl, labels=labels, **texts)


def _labels_from(wire: common_pb2.NodeLabels) -> NodeLabels:
    texts = {
        "node": wire.node,
        "region": wire.region,
        "zone": wire.zone,
        "instance_type": wire.instance_type,
        "gpu_product": wire.gpu_product,
    }
    _check_texts("inventory.evidence.labels", texts.items())
    return NodeLabels(gpu_count=wire.gpu_count if wire.HasField("gpu_count") else None, **texts)


def _check_texts(field: str, texts: Iterable[tuple[str, str]]) -> None:
    for name, text in texts:
        fault = check_evidence_text(name, text)
        if fault is not None:
            raise invalid(f"{field}.{name}", fault)


def inventory_to(inventory: Inventory) -> common_pb2.Inventory:
    """What people are shown: the inverse of ``inventory_from``, and what the evidence is worth."""
    return common_pb2.Inventory(
        hardware_class=CLASS_NUMBERS[inventory.hardware_class],
        devices=[_device_to(device) for device in inventory.devices],
        cpus=inventory.cpus,
        memory_bytes=inventory.memory_bytes,
        slots=inventory.slots,
        head_slots=inventory.head_slots,
        operating_system=inventory.operating_system,
        architecture=inventory.architecture,
        python_version=inventory.python_version,
        ray_version=inventory.ray_version,
        isolation=inventory.isolation,
        overlay=inventory.overlay,
        zone=inventory.zone,
        evidence=machine_evidence_to(inventory.evidence) if inventory.evidence is not None else None,
        class_reason=inventory.class_reason,
        evidence_class=EVIDENCE_NUMBERS[worker_evidence_class(inventory.devices)],
        unisolated=inventory.unisolated,
        remarks=inventory.remarks,
        label_contradictions=inventory_contradictions(inventory),
    )


def _device_to(device: Device) -> common_pb2.Device:
    return common_pb2.Device(
        device_id=device.device_id,
        kind=KIND_NUMBERS[device.kind],
        model=device.model,
        memory_bytes=device.memory_bytes,
        simulated=device.simulated,
        evidence=device_evidence_to(device.evidence) if device.evidence is not None else None,
        evidence_class=EVIDENCE_NUMBERS[evidence_class(device)],
    )
