"""Macs from recorded output of their own tools, up to a cluster that such a machine carries alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from orchestrator.adapters.devices.apple import SYSCTL, Runner, read_apple
from orchestrator.agent.inventory import Capabilities, DeviceIds, Machine, Offer, build_inventory, unlisted
from orchestrator.control.inventory_wire import inventory_from
from orchestrator.core.clusters import ClusterPhase, MemberRole
from orchestrator.core.jobs import Requirements
from orchestrator.core.supply.catalogue import GIB
from orchestrator.core.supply.evidence import DeviceVendor, EvidenceClass
from orchestrator.core.supply.fleet import HardwareClass
from orchestrator.core.supply.hardware import worker_evidence_class
from tests.adapters.devices.machines import recorded
from tests.core.worlds import World

BARE = Capabilities("none", "none")
MAC = Machine(24, 192 * GIB, "darwin", "arm64", "3.11.9", "2.60.0")


def recording(name: str) -> Runner:
    """A runner that prints what such a Mac printed."""

    def run(command: Sequence[str]) -> str:
        return recorded(f"{name}.sysctl.txt" if tuple(command) == SYSCTL else f"{name}.profiler.json")

    return run


@pytest.fixture
def ids(tmp_path: Path) -> DeviceIds:
    return DeviceIds(tmp_path, lambda prefix: f"{prefix}_1")


def test_apple_chip_is_one_gpu_with_the_machines_memory() -> None:
    reading = read_apple(recording("mac_studio_m2_ultra"))
    (gpu,) = reading.gpus
    assert (gpu.vendor, gpu.model, gpu.memory_bytes) == (DeviceVendor.APPLE, "Apple M2 Ultra", 192 * GIB)
    assert (gpu.uuid, gpu.driver_version) == ("MAC-5C7E2B1A-0D44-5A6F-9E3B-7F2A10C4D8E6", "metal3")
    assert (reading.machine.system_vendor, reading.machine.system_product) == ("Apple", "Mac14,14")
    assert (reading.processor.model, reading.processor.memory_bytes) == ("Apple M2 Ultra", 192 * GIB)


def test_apple_serial_number_is_not_sent(ids: DeviceIds) -> None:
    wire = build_inventory(Offer(), MAC, read_apple(recording("mac_studio_m2_ultra")), ids, BARE)
    assert "X0X0X0X0X0" in recorded("mac_studio_m2_ultra.profiler.json")
    assert b"X0X0X0X0X0" not in wire.SerializeToString()


@pytest.mark.parametrize(("memory_gb", "offered_gb"), [(192, 144), (64, 48), (16, 10)])
def test_apple_offers_what_its_gpu_may_hold(ids: DeviceIds, memory_gb: int, offered_gb: int) -> None:
    run = recording("mac_studio_m2_ultra")

    def smaller(command: Sequence[str]) -> str:
        return run(command).replace(str(192 * GIB), str(memory_gb * GIB))

    (device,) = build_inventory(Offer(), MAC, read_apple(smaller), ids, BARE).devices
    assert device.memory_bytes // GIB == offered_gb
    assert device.evidence.memory_bytes == memory_gb * GIB


def test_apple_machine_forms_a_cluster_with_its_own_head(ids: DeviceIds) -> None:
    wire = build_inventory(
        Offer(isolation="none"), MAC, read_apple(recording("mac_studio_m2_ultra")), ids, BARE
    )
    inventory = inventory_from(wire)
    assert inventory.hardware_class is HardwareClass.APPLE
    assert "M2ULTRA" in inventory.class_reason
    assert worker_evidence_class(inventory.devices) is EvidenceClass.T0
    world = World()
    worker_id = world.join(inventory)
    world.head_host()
    job_id = world.ready(Requirements(hardware_class=HardwareClass.APPLE))
    (member,) = world.members(job_id)
    assert (member.worker_id, member.role) == (worker_id, MemberRole.SOLO)
    assert member.device_ids == (inventory.devices[0].device_id,)
    assert world.cluster(job_id).phase is ClusterPhase.READY


def test_apple_mac_of_intels_offers_its_processor(ids: DeviceIds) -> None:
    reading = read_apple(recording("imac_intel"))
    assert reading.gpus == ()
    inventory = inventory_from(build_inventory(Offer(), MAC, reading, ids, BARE))
    assert inventory.hardware_class is HardwareClass.CPU
    assert "i7-10700K" in inventory.class_reason
    assert unlisted(Offer(), reading) == []


@pytest.mark.parametrize("said", ["", "{", "[]", '{"SPDisplaysDataType": 7}', "\x00"])
def test_apple_tools_that_say_nothing_leave_the_processor(ids: DeviceIds, said: str) -> None:
    reading = read_apple(lambda command: said)
    assert reading.gpus == ()
    assert (
        inventory_from(build_inventory(Offer(), MAC, reading, ids, BARE)).hardware_class is HardwareClass.CPU
    )
