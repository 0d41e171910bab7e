"""The inventory: what a machine offers, and what it must not claim."""

from __future__ import annotations

import sys
from itertools import count
from pathlib import Path

import pytest

from orchestrator.agent.inventory import (
    DEVICES_FILE,
    DeviceIds,
    Gpu,
    InventoryError,
    Machine,
    Offer,
    build_inventory,
    model_of,
    read_devices,
    read_machine,
    unlisted,
)
from orchestrator.api.v1 import common_pb2
from orchestrator.core.catalogue import GIB

MACHINE = Machine(8, 32 * GIB, "linux", "x86_64", "3.11.9", "2.60.0")
H100 = Gpu("GPU-1", "NVIDIA H100 80GB HBM3", 79 * GIB)
RTX4090 = Gpu("GPU-2", "NVIDIA GeForce RTX 4090", 24 * GIB - 1)


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
    inventory = build_inventory(offer, MACHINE, [], ids)
    assert [(one.model, one.simulated, one.memory_bytes) for one in inventory.devices] == [
        ("RTX4090", True, 24 * GIB)
    ] * 2
    assert inventory.hardware_class == common_pb2.HARDWARE_CLASS_CONSUMER
    assert (inventory.slots, inventory.cpus, inventory.zone) == (2, 8, "lab")
    assert (inventory.isolation, inventory.overlay) == ("none", "none")


def test_inventory_simulated_devices_keep_their_ids_over_restarts(tmp_path: Path) -> None:
    maker = Maker()

    def of(*simulate: str) -> list[str]:
        ids = DeviceIds(tmp_path, maker)
        return device_ids(build_inventory(Offer(simulate=simulate), MACHINE, [], ids))

    first = of("RTX4090x2", "RTX3090x1")
    assert len(set(first)) == 3
    assert of("RTX4090x2", "RTX3090x1") == first
    assert of("RTX4090x1") == first[:1]
    assert of("RTX4090x3")[:2] == first[:2]
    assert all(one.startswith("sim_") for one in first)


def test_inventory_damaged_device_file_is_named(tmp_path: Path, ids: DeviceIds) -> None:
    (tmp_path / DEVICES_FILE).write_text("{")
    with pytest.raises(InventoryError, match=DEVICES_FILE):
        build_inventory(Offer(simulate=("L4x1",)), MACHINE, [], ids)


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
        build_inventory(Offer(simulate=(text,)), MACHINE, [], ids)


def test_inventory_class_that_does_not_offer_the_model_is_refused(ids: DeviceIds) -> None:
    with pytest.raises(InventoryError, match="H100 is offered by class datacenter, not by consumer"):
        build_inventory(Offer(hardware_class="consumer", simulate=("H100x1",)), MACHINE, [], ids)
    with pytest.raises(InventoryError, match="no hardware class"):
        build_inventory(Offer(simulate=("H100x1", "RTX4090x1")), MACHINE, [], ids)
    with pytest.raises(InventoryError, match="did you mean consumer"):
        build_inventory(Offer(hardware_class="konsumer", simulate=("H100x1",)), MACHINE, [], ids)


def test_inventory_miner_is_what_it_says_though_its_models_are_gamers_too(ids: DeviceIds) -> None:
    inventory = build_inventory(Offer(hardware_class="miner", simulate=("RTX3090x1",)), MACHINE, [], ids)
    assert inventory.hardware_class == common_pb2.HARDWARE_CLASS_MINER


@pytest.mark.parametrize("hardware_class", ["cpu", ""])
def test_inventory_machine_without_gpus_offers_its_processor(ids: DeviceIds, hardware_class: str) -> None:
    inventory = build_inventory(Offer(hardware_class=hardware_class, cpus=3), MACHINE, [], ids)
    (device,) = inventory.devices
    assert (device.kind, device.model, device.simulated) == (common_pb2.DEVICE_KIND_CPU, "CPU", False)
    assert (inventory.hardware_class, inventory.cpus) == (common_pb2.HARDWARE_CLASS_CPU, 3)


def test_inventory_head_host_has_no_devices(ids: DeviceIds) -> None:
    inventory = build_inventory(Offer(slots=0, head_slots=4), MACHINE, [RTX4090], ids)
    assert (list(inventory.devices), inventory.slots, inventory.head_slots) == ([], 0, 4)
    assert inventory.hardware_class == common_pb2.HARDWARE_CLASS_CPU


def test_inventory_real_gpus_are_listed_by_their_own_ids(ids: DeviceIds) -> None:
    inventory = build_inventory(Offer(), MACHINE, [H100], ids)
    (device,) = inventory.devices
    assert (device.device_id, device.model, device.simulated) == ("GPU-1", "H100", False)
    assert device.memory_bytes == H100.memory_bytes
    assert inventory.hardware_class == common_pb2.HARDWARE_CLASS_DATACENTER


def test_inventory_class_without_its_gpus_says_what_to_do(ids: DeviceIds) -> None:
    with pytest.raises(InventoryError, match="--simulate"):
        build_inventory(Offer(hardware_class="consumer"), MACHINE, [], ids)


def test_unlisted_gpus_are_named_with_the_reason() -> None:
    odd = Gpu("GPU-3", "NVIDIA GeForce GT 710", GIB)
    assert unlisted(Offer(), [RTX4090, odd]) == [
        "NVIDIA GeForce GT 710 is not offered: the model catalogue does not list it"
    ]
    assert len(unlisted(Offer(hardware_class="cpu"), [RTX4090])) == 1
    assert unlisted(Offer(simulate=("L4x1",)), [RTX4090]) == []


@pytest.mark.parametrize(
    ("name", "memory_gb", "model"),
    [
        ("NVIDIA GeForce RTX 4090", 24, "RTX4090"),
        ("NVIDIA GeForce RTX 3080 Ti", 12, "RTX3080TI"),
        ("NVIDIA H100 80GB HBM3", 80, "H100"),
        ("NVIDIA H100 PCIe", 80, "H100"),
        ("NVIDIA H200", 141, "H200"),
        ("NVIDIA A100-SXM4-40GB", 40, "A100-40"),
        ("NVIDIA A100 80GB PCIe", 80, "A100-80"),
        ("Tesla V100-SXM2-32GB", 32, "V100"),
        ("Tesla T4", 15, "T4"),
        ("NVIDIA L40S", 45, "L40S"),
        ("NVIDIA L40", 45, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 16, None),
        ("NVIDIA GeForce RTX 4090 D", 24, None),
        ("NVIDIA GeForce GTX 1660 SUPER", 6, None),
        ("", 1, None),
    ],
)
def test_model_of_a_drivers_name_is_the_catalogues_or_none(
    name: str, memory_gb: int, model: str | None
) -> None:
    found = model_of(Gpu("GPU-1", name, memory_gb * GIB))
    assert (found.name if found is not None else None) == model


def test_read_machine_tells_of_this_one() -> None:
    machine = read_machine()
    assert machine.cpus >= 1
    assert machine.memory_bytes > 0
    assert machine.python_version.startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    assert machine.ray_version


def test_read_devices_without_nvml_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert read_devices() == []


@pytest.mark.gpu
def test_read_devices_real_gpus_have_an_id_a_name_and_memory(ids: DeviceIds) -> None:
    gpus = read_devices()
    assert gpus
    for gpu in gpus:
        assert gpu.device_id.startswith("GPU-")
        assert gpu.memory_bytes > GIB
    listed = [gpu for gpu in gpus if model_of(gpu) is not None]
    assert listed, [gpu.name for gpu in gpus]
    assert device_ids(build_inventory(Offer(), MACHINE, gpus, ids)) == [gpu.device_id for gpu in listed]
