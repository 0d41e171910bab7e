"""What an agent may say of its machine: kept as it is, or refused by field; its class is never its own to say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.adapters.codec import decode_as, encode
from orchestrator.api.v1 import common_pb2
from orchestrator.control.inventory_wire import INVENTORY_BYTES_MAX, inventory_from, inventory_to
from orchestrator.core.errors import RefusedError
from orchestrator.core.ids import DeviceId
from orchestrator.core.supply.catalogue import GIB
from orchestrator.core.supply.evidence import (
    DeviceEvidence,
    DeviceVendor,
    EvidenceClass,
    MachineEvidence,
    NodeLabels,
    Sighting,
    Source,
)
from orchestrator.core.supply.fleet import Device, DeviceKind, HardwareClass, Inventory, Isolation
from orchestrator.core.supply.hardware import evidence_class

NAME = "NVIDIA GeForce RTX 3070"


def gpu(number: int) -> Device:
    uuid, bus = f"GPU-{number}", f"0000:{number:02x}:00.0"
    evidence = DeviceEvidence(
        vendor=DeviceVendor.NVIDIA,
        model=NAME,
        memory_bytes=8 * GIB,
        uuid=uuid,
        pci_bus_id=bus,
        pcie_generation=1,
        pcie_generation_max=2,
        pcie_width=1,
        pcie_width_max=1,
        nvlink_links=0,
        nvlink_peers=0,
        compute_capability="8.6",
        driver_version="550.54.14",
        mig_enabled=False,
        mig_profiles=("1g.10gb",),
        power_limit_mw=130_000,
        ecc_enabled=True,
        sightings=(Sighting(Source.NVML, uuid, NAME, bus), Sighting(Source.PROCFS, uuid, NAME, bus)),
    )
    return Device(DeviceId(uuid), DeviceKind.GPU, "RTX3070", 8 * GIB, simulated=False, evidence=evidence)


RIG = Inventory(
    hardware_class=HardwareClass.MINER,
    devices=tuple(gpu(number) for number in range(6)),
    cpus=4,
    memory_bytes=16 * GIB,
    slots=6,
    head_slots=0,
    operating_system="linux",
    architecture="x86_64",
    python_version="3.11.9",
    ray_version="2.60.0",
    isolation=Isolation.NONE,
    overlay="none",
    zone="cellar",
    evidence=MachineEvidence(
        system_vendor="ASUS",
        system_product="B250 MINING EXPERT",
        board_vendor="ASUSTeK",
        board_product="B250",
        processor="Intel Celeron",
        gpus=6,
        gpus_lost=1,
        wsl=True,
        virtualisation="hyper-v",
        labels=NodeLabels(
            node="rack3-u12",
            region="eu-west-1",
            zone="eu-west-1b",
            instance_type="p5.48xlarge",
            gpu_product="NVIDIA-H100-80GB-HBM3",
            gpu_count=8,
        ),
    ),
    unisolated=True,
    class_reason="6 × RTX3070: 6 of 6 hang on PCIe x1, as on a mining rig's risers",
)


def refused(wire: common_pb2.Inventory) -> RefusedError:
    with pytest.raises(RefusedError) as raised:
        inventory_from(wire)
    return raised.value


def test_inventory_goes_over_the_wire_and_into_the_store_whole() -> None:
    again = inventory_from(inventory_to(RIG))
    assert again == RIG
    # The link's generation of the moment is not compared, and kept all the same.
    assert [one.evidence.pcie_generation for one in again.devices if one.evidence is not None] == [1] * 6
    assert decode_as(encode(RIG), Inventory) == RIG


def test_inventory_of_boxes_goes_over_the_wire_with_its_remarks() -> None:
    remarks = ("serves one-machine clusters only: no /dev/net/tun", "x" * 500)
    boxed = replace(RIG, isolation=Isolation.BOX, overlay="nebula", unisolated=False, remarks=remarks)
    assert inventory_from(inventory_to(boxed)) == boxed
    assert decode_as(encode(boxed), Inventory) == boxed


def test_inventory_consent_is_the_owners_to_give() -> None:
    assert not inventory_from(common_pb2.Inventory(isolation="none")).unisolated


def test_inventory_nothing_said_stays_unsaid() -> None:
    bare = DeviceEvidence(vendor=DeviceVendor.AMD, model="AMD Radeon RX 7900 XTX", memory_bytes=24 * GIB)
    device = replace(RIG.devices[0], evidence=bare)
    again = inventory_from(inventory_to(replace(RIG, devices=(device,), evidence=None)))
    assert again.devices[0].evidence == bare
    assert again.evidence is None


def test_inventory_stored_before_there_was_evidence_is_still_read() -> None:
    old = b"""{"hardware_class":"consumer","devices":[{"device_id":"GPU-1","kind":"gpu","model":"RTX3070",
    "memory_bytes":1,"simulated":false}],"cpus":1,"memory_bytes":1,"slots":1,"head_slots":0,"operating_system":"linux",
    "architecture":"x86_64","python_version":"3.11.9","ray_version":"2.60.0","isolation":"none","overlay":"none",
    "zone":""}"""
    inventory = decode_as(old, Inventory)
    assert (inventory.evidence, inventory.class_reason, inventory.devices[0].evidence) == (None, "", None)


def test_inventory_labels_that_contradict_are_shown_and_what_an_agent_says_of_it_is_not_read() -> None:
    wire = inventory_to(RIG)
    (said,) = wire.label_contradictions
    assert "NVIDIA-H100-80GB-HBM3" in said
    assert wire.hardware_class == common_pb2.HARDWARE_CLASS_MINER
    wire.label_contradictions[:] = ["nothing wrong here"]
    assert inventory_to(inventory_from(wire)).label_contradictions == [said]


def test_inventory_of_an_agent_without_labels_has_none() -> None:
    wire = inventory_to(RIG)
    wire.evidence.ClearField("labels")
    found = inventory_from(wire).evidence
    assert found is not None
    assert found.labels is None


@pytest.mark.parametrize("name", ["node", "region", "zone", "instance_type", "gpu_product"])
@pytest.mark.parametrize("text", ["x" * 201, "a\nb"])
def test_inventory_label_that_cannot_be_kept_is_refused_by_its_name(name: str, text: str) -> None:
    wire = inventory_to(RIG)
    setattr(wire.evidence.labels, name, text)
    assert f"inventory.evidence.labels.{name}" == refused(wire).field


@pytest.mark.parametrize(
    "claimed", [common_pb2.HARDWARE_CLASS_DATACENTER, common_pb2.HARDWARE_CLASS_UNSPECIFIED, 77]
)
def test_inventory_class_that_an_agent_claims_is_not_read(
    claimed: common_pb2.HardwareClass.ValueType,
) -> None:
    wire = inventory_to(RIG)
    wire.hardware_class = claimed
    wire.class_reason = "because I say so"
    assert inventory_from(wire) == RIG


def test_inventory_evidence_class_that_an_agent_claims_is_not_read() -> None:
    wire = inventory_to(RIG)
    assert wire.evidence_class == wire.devices[0].evidence_class == common_pb2.EVIDENCE_CLASS_T2
    del wire.devices[0].evidence.sightings[1]
    device = inventory_from(wire).devices[0]
    assert evidence_class(device) is EvidenceClass.T0
    shown = inventory_to(inventory_from(wire))
    assert shown.devices[0].evidence_class == shown.evidence_class == common_pb2.EVIDENCE_CLASS_T0
    assert shown.devices[1].evidence_class == common_pb2.EVIDENCE_CLASS_T2


LONG = "x" * 201


def _changed(**changes: object) -> common_pb2.Inventory:
    """The rig, its first device's evidence changed."""
    wire = inventory_to(RIG)
    for name, value in changes.items():
        setattr(wire.devices[0].evidence, name, value)
    return wire


def _machine(**changes: object) -> common_pb2.Inventory:
    wire = inventory_to(RIG)
    for name, value in changes.items():
        setattr(wire.evidence, name, value)
    return wire


def _sighting(count: int = 1, **fields: str) -> common_pb2.Inventory:
    wire = inventory_to(RIG)
    for _ in range(count):
        wire.devices[0].evidence.sightings.add(**fields)
    return wire


def _remarks(*remarks: str) -> common_pb2.Inventory:
    wire = inventory_to(RIG)
    wire.remarks.extend(remarks)
    return wire


def _profiles(*profiles: str) -> common_pb2.Inventory:
    wire = inventory_to(RIG)
    wire.devices[0].evidence.mig_profiles.extend(profiles)
    return wire


DEVICE = "inventory.devices.evidence"
BAD = {
    "vendor": (_changed(vendor=0), f"{DEVICE}.vendor", "nvidia"),
    "future vendor": (_changed(vendor=99), f"{DEVICE}.vendor", "nvidia"),
    "long name": (_changed(model=LONG), f"{DEVICE}.model", "200 characters"),
    "long uuid": (_changed(uuid=LONG), f"{DEVICE}.uuid", "200 characters"),
    "escape sequence": (_changed(driver_version="\x1b[2J"), f"{DEVICE}.driver_version", "printed"),
    "long profile": (_profiles(LONG), f"{DEVICE}.mig_profiles", "200 characters"),
    "many profiles": (_profiles(*["1g.10gb"] * 20), f"{DEVICE}.mig_profiles", "at most 16"),
    "many sightings": (_sighting(9, source="nvml"), f"{DEVICE}.sightings", "at most 8"),
    "unknown source": (_sighting(source="rumour"), f"{DEVICE}.sightings.source", "nvml, procfs"),
    "long sighting": (_sighting(source="nvml", model=LONG), f"{DEVICE}.sightings.model", "200 characters"),
    "long board": (_machine(board_product=LONG), "inventory.evidence.board_product", "200 characters"),
    "long remark": (_remarks("x" * 501), "inventory.remarks", "500 characters"),
    "many remarks": (_remarks(*["no box"] * 5), "inventory.remarks", "at most 4"),
    "remark that steers a terminal": (_remarks("\x1b[2J"), "inventory.remarks", "printed"),
    "two lines": (_machine(processor="a\nb"), "inventory.evidence.processor", "printed"),
}


@pytest.mark.parametrize("case", BAD)
def test_inventory_with_bad_evidence_is_refused_by_field(case: str) -> None:
    wire, field, words = BAD[case]
    refusal = refused(wire)
    assert refusal.field == field
    assert words in refusal.message
    assert len(refusal.message) < 200


def test_inventory_of_a_thousand_gpus_is_refused_unread() -> None:
    wire = inventory_to(RIG)
    wire.devices.extend(common_pb2.Device() for _ in range(994))
    refusal = refused(wire)
    assert (refusal.field, refusal.message) == (
        "inventory.devices",
        "1000 devices on one machine; at most 64",
    )


@pytest.mark.parametrize("where", ["zone", "model", "system_vendor", "source"])
def test_inventory_of_ten_megabytes_is_refused_by_its_size(where: str) -> None:
    wire = inventory_to(RIG)
    text = "x" * 10_000_000
    match where:
        case "zone":
            wire.zone = text
        case "model":
            wire.devices[0].model = text
        case "system_vendor":
            wire.evidence.system_vendor = text
        case _:
            wire.devices[0].evidence.sightings.add(source=text)
    refusal = refused(wire)
    assert refusal.field == "inventory"
    assert str(INVENTORY_BYTES_MAX) in refusal.message
    assert len(refusal.message) < 200


def test_inventory_of_the_largest_honest_machine_is_far_below_the_bound() -> None:
    devices = tuple(gpu(number) for number in range(64))
    wire = inventory_to(replace(RIG, devices=devices))
    assert wire.ByteSize() < INVENTORY_BYTES_MAX // 4
    assert len(inventory_from(wire).devices) == 64
