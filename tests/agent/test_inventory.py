"""The inventory: what a machine offers, and what it must not claim."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from orchestrator.adapters.devices import Reading
from orchestrator.agent.inventory import (
    DEVICES_FILE,
    Capabilities,
    DeviceIds,
    InventoryError,
    Machine,
    Offer,
    build_inventory,
    read_machine,
    unlisted,
)
from orchestrator.api.v1 import common_pb2
from orchestrator.core.supply.catalogue import GIB
from orchestrator.core.supply.evidence import DeviceEvidence, DeviceVendor, MachineEvidence, Sighting, Source
from orchestrator.core.supply.health import lost_fault

MACHINE = Machine(8, 32 * GIB, "linux", "x86_64", "3.11.9", "2.60.0")
BARE = Capabilities("none", "none")
PROCESSOR = DeviceEvidence(vendor=DeviceVendor.CPU, model="AMD EPYC", memory_bytes=32 * GIB)


def gpu(uuid: str, model: str, memory_bytes: int) -> DeviceEvidence:
    return DeviceEvidence(
        vendor=DeviceVendor.NVIDIA,
        model=model,
        memory_bytes=memory_bytes,
        uuid=uuid,
        sightings=(Sighting(Source.NVML, uuid, model, "0000:01:00.0"),),
    )


H100 = gpu("GPU-1", "NVIDIA H100 80GB HBM3", 79 * GIB)
RTX4090 = gpu("GPU-2", "NVIDIA GeForce RTX 4090", 24 * GIB - 1)
ODD = gpu("GPU-3", "NVIDIA GeForce GT 710", GIB)


def seen(*gpus: DeviceEvidence) -> Reading:
    return Reading(gpus, PROCESSOR, MachineEvidence(processor="AMD EPYC", gpus=len(gpus)))


class Maker:
    """Ids in order, so that a test sees which are new."""

    def __init__(self) -> None:
        self._numbers = count()

    def __call__(self, prefix: str) -> str:
        return f"{prefix}_{next(self._numbers)}"


@pytest.fixture
def ids(tmp_path: Path) -> DeviceIds:
    return DeviceIds(tmp_path, Maker())


def device_ids(inventory: common_pb2.Inventory) -> list[str]:
    return [device.device_id for device in inventory.devices]


def test_inventory_simulated_devices_are_marked_with_the_catalogues_memory(ids: DeviceIds) -> None:
    offer = Offer(simulate=("RTX4090x2",), slots=2, zone="lab")
    inventory = build_inventory(offer, MACHINE, None, ids, BARE)
    assert [(one.model, one.simulated, one.memory_bytes) for one in inventory.devices] == [
        ("RTX4090", True, 24 * GIB)
    ] * 2
    assert not any(one.HasField("evidence") for one in inventory.devices)
    assert (inventory.slots, inventory.cpus, inventory.zone) == (2, 8, "lab")


def test_inventory_tells_how_tenants_code_is_kept_apart(ids: DeviceIds) -> None:
    able = Capabilities("box", "none", ("serves one-machine clusters only: no tun",))
    inventory = build_inventory(Offer(head_slots=1), MACHINE, seen(), ids, able)
    assert (inventory.isolation, inventory.overlay, inventory.unisolated) == ("box", "none", False)
    assert list(inventory.remarks) == ["serves one-machine clusters only: no tun"]


@pytest.mark.parametrize(("asked", "consents"), [("auto", False), ("none", True)])
def test_inventory_owner_consents_by_asking_for_no_isolation_only(
    ids: DeviceIds, asked: str, consents: bool
) -> None:
    inventory = build_inventory(Offer(isolation=asked), MACHINE, seen(), ids, BARE)
    assert (inventory.isolation, inventory.unisolated) == ("none", consents)


def test_inventory_simulated_devices_keep_their_ids_over_restarts(tmp_path: Path) -> None:
    maker = Maker()

    def of(*simulate: str) -> list[str]:
        ids = DeviceIds(tmp_path, maker)
        return device_ids(build_inventory(Offer(simulate=simulate), MACHINE, None, ids, BARE))

    first = of("RTX4090x2", "RTX3090x1")
    assert len(set(first)) == 3
    assert of("RTX4090x2", "RTX3090x1") == first
    assert of("RTX4090x1") == first[:1]
    assert of("RTX4090x3")[:2] == first[:2]
    assert all(one.startswith("sim_") for one in first)


def test_inventory_damaged_device_file_is_named(tmp_path: Path, ids: DeviceIds) -> None:
    (tmp_path / DEVICES_FILE).write_text("{")
    with pytest.raises(InventoryError, match=DEVICES_FILE):
        build_inventory(Offer(simulate=("L4x1",)), MACHINE, None, ids, BARE)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("RTX4091x1", "RTX4090x1"),
        ("RTX4090", "MODELxN"),
        ("RTX4090x0", "MODELxN"),
        ("x1", "MODELxN"),
        ("CPUx1", "unknown"),
        ("RTX4090x65", "at most 64"),
    ],
)
def test_inventory_simulated_text_that_means_nothing_is_refused(ids: DeviceIds, text: str, said: str) -> None:
    with pytest.raises(InventoryError, match=said):
        build_inventory(Offer(simulate=(text,)), MACHINE, None, ids, BARE)


def test_inventory_says_no_class_for_that_is_derived_elsewhere(ids: DeviceIds) -> None:
    for reading in (seen(H100), seen(RTX4090), seen()):
        inventory = build_inventory(Offer(), MACHINE, reading, ids, BARE)
        assert inventory.hardware_class == common_pb2.HARDWARE_CLASS_UNSPECIFIED


@pytest.mark.parametrize("offer", [Offer(gpus=False, cpus=3), Offer(cpus=3)])
def test_inventory_machine_without_gpus_offers_its_processor(ids: DeviceIds, offer: Offer) -> None:
    inventory = build_inventory(offer, MACHINE, seen(ODD), ids, BARE)
    (device,) = inventory.devices
    assert (device.kind, device.model, device.simulated) == (common_pb2.DEVICE_KIND_CPU, "CPU", False)
    assert (device.evidence.model, inventory.evidence.processor) == ("AMD EPYC", "AMD EPYC")
    assert inventory.cpus == 3


def test_inventory_without_gpus_leaves_those_that_are_there(ids: DeviceIds) -> None:
    inventory = build_inventory(Offer(gpus=False), MACHINE, seen(RTX4090), ids, BARE)
    assert [device.model for device in inventory.devices] == ["CPU"]


def test_inventory_head_host_has_no_devices(ids: DeviceIds) -> None:
    inventory = build_inventory(Offer(slots=0, head_slots=4), MACHINE, seen(RTX4090), ids, BARE)
    assert (list(inventory.devices), inventory.slots, inventory.head_slots) == ([], 0, 4)


def test_inventory_real_gpus_are_listed_by_their_own_ids_with_evidence(
    ids: DeviceIds, tmp_path: Path
) -> None:
    inventory = build_inventory(Offer(), MACHINE, seen(H100, ODD), ids, BARE)
    (device,) = inventory.devices
    assert (device.device_id, device.model, device.simulated) == ("GPU-1", "H100", False)
    assert device.memory_bytes == H100.memory_bytes
    assert (device.evidence.model, device.evidence.uuid) == (H100.model, "GPU-1")
    assert [one.source for one in device.evidence.sightings] == ["nvml"]
    assert inventory.evidence.gpus == 2
    assert not (tmp_path / DEVICES_FILE).exists(), "no id is made for devices that have their own"


def test_inventory_variant_with_more_memory_is_offered_as_its_model(ids: DeviceIds) -> None:
    large = gpu("GPU-1", "NVIDIA GeForce RTX 3080", 12 * GIB)
    (device,) = build_inventory(Offer(), MACHINE, seen(large), ids, BARE).devices
    assert (device.memory_bytes, device.evidence.memory_bytes) == (10 * GIB, 12 * GIB)


def test_inventory_more_gpus_than_any_machine_holds_is_refused(ids: DeviceIds) -> None:
    many = [replace(RTX4090, uuid=f"GPU-{number}") for number in range(65)]
    with pytest.raises(InventoryError, match="65 GPUs on one machine; at most 64"):
        build_inventory(Offer(), MACHINE, seen(*many), ids, BARE)


def test_unlisted_gpus_are_named_with_the_reason() -> None:
    assert unlisted(Offer(), seen(RTX4090, ODD)) == [
        "NVIDIA GeForce GT 710 is not offered: the model catalogue does not list it"
    ]
    (remark,) = unlisted(Offer(), seen(replace(H100, mig_enabled=True)))
    assert "MIG is on" in remark
    assert unlisted(Offer(gpus=False), seen(RTX4090)) == [
        "NVIDIA GeForce RTX 4090 is not offered: only the processor is"
    ]
    assert unlisted(Offer(simulate=("L4x1",)), seen(RTX4090)) == []
    assert unlisted(Offer(slots=0, head_slots=1), seen(ODD)) == []


def test_unlisted_tells_of_gpus_that_do_not_answer() -> None:
    fault = lost_fault("0000:02:00.0")
    assert unlisted(Offer(), replace(seen(RTX4090), faults=(fault,))) == [fault.text]


def test_read_machine_tells_of_this_one() -> None:
    machine = read_machine()
    assert machine.cpus >= 1
    assert machine.memory_bytes > 0
    assert machine.python_version.startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    assert machine.ray_version
