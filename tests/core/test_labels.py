"""A node's labels raise nothing and lower nothing; where they contradict what was seen, that is said."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.core.supply.catalogue import GIB
from orchestrator.core.supply.evidence import (
    DeviceEvidence,
    DeviceVendor,
    EvidenceClass,
    MachineEvidence,
    NodeLabels,
)
from orchestrator.core.supply.fleet import HardwareClass, Inventory
from orchestrator.core.supply.hardware import derive_class, hardware_changes, worker_evidence_class
from orchestrator.core.supply.labels import contradictions, inventory_contradictions
from tests.core.test_evidence import shown, simulated
from tests.core.worlds import inventory


def gpu(model: str, memory_gb: int) -> DeviceEvidence:
    return DeviceEvidence(vendor=DeviceVendor.NVIDIA, model=model, memory_bytes=memory_gb * GIB)


H100, A100, T4 = (
    gpu("NVIDIA H100 80GB HBM3", 80),
    gpu("NVIDIA A100-SXM4-40GB", 40),
    gpu("Tesla T4", 15),
)
UNLISTED = gpu("NVIDIA RTX 6000 Ada Generation", 48)


@pytest.mark.parametrize(
    ("product", "seen"),
    [
        ("NVIDIA-H100-80GB-HBM3", H100),
        ("NVIDIA-H100-80GB-HBM3-SHARED", H100),
        ("NVIDIA-A100-SXM4-40GB", A100),
        ("NVIDIA-A100-SXM4-40GB-MIG-1g.5gb", A100),
        ("nvidia-a100-40gb", A100),
        ("Tesla-T4", T4),
        ("nvidia-tesla-t4", T4),
        ("t4", T4),
        ("a10g", gpu("NVIDIA A10G", 24)),
        ("NVIDIA-RTX-6000-Ada-Generation", UNLISTED),
        ("AMD_Instinct_MI300X", gpu("AMD Instinct MI300X", 192)),
        ("", H100),
    ],
)
def test_labels_that_mean_what_was_seen_contradict_nothing(product: str, seen: DeviceEvidence) -> None:
    assert contradictions(NodeLabels(gpu_product=product), [seen], MachineEvidence(gpus=1)) == ()


@pytest.mark.parametrize(
    ("product", "seen"),
    [
        ("NVIDIA-H100-80GB-HBM3", T4),
        ("NVIDIA-A100-SXM4-80GB", A100),
        ("nvidia-a100-80gb", A100),
        ("NVIDIA-GeForce-RTX-4090-Laptop-GPU", gpu("NVIDIA GeForce RTX 4090", 24)),
        ("best-gpu-there-is", H100),
    ],
)
def test_labels_of_another_gpu_are_named_beside_the_drivers_word(product: str, seen: DeviceEvidence) -> None:
    (said,) = contradictions(NodeLabels(gpu_product=product), [seen], MachineEvidence(gpus=1))
    assert product in said
    assert f"{seen.model}; the driver's word counts" in said


def test_labels_of_gpus_where_none_is_seen_ask_what_the_pod_was_given() -> None:
    (said,) = contradictions(
        NodeLabels(gpu_product="Tesla-T4", gpu_count=1), [], MachineEvidence(processor="x")
    )
    assert "no GPU is seen" in said


def test_labels_of_fewer_gpus_than_seen_contradict_and_of_more_do_not() -> None:
    (said,) = contradictions(NodeLabels(gpu_count=1), [T4, T4], MachineEvidence(gpus=2))
    assert "says 1 GPUs, 2 were seen" in said
    assert contradictions(NodeLabels(gpu_count=8), [T4, T4], MachineEvidence(gpus=2)) == ()


def test_labels_of_a_node_with_several_kinds_name_one_of_them() -> None:
    assert contradictions(NodeLabels(gpu_product="Tesla-T4"), [H100, T4], MachineEvidence(gpus=2)) == ()


def labelled(holding: Inventory, labels: NodeLabels | None) -> Inventory:
    return replace(holding, evidence=MachineEvidence(gpus=len(holding.devices), labels=labels))


GAMER = replace(inventory(), devices=(shown("RTX4090"),))
GRAND = NodeLabels(node="n", gpu_product="NVIDIA-H100-80GB-HBM3", gpu_count=8, instance_type="p5.48xlarge")


@pytest.mark.parametrize("labels", [None, NodeLabels(node="n"), GRAND])
def test_labels_change_neither_class_nor_what_evidence_is_worth(labels: NodeLabels | None) -> None:
    claimed = labelled(GAMER, labels)
    hardware_class, reason = derive_class(claimed.devices, claimed.evidence)
    assert hardware_class is HardwareClass.CONSUMER
    assert "H100" not in reason
    assert worker_evidence_class(claimed.devices) is EvidenceClass.T2


def test_labels_that_change_are_another_inventory_and_no_other_hardware() -> None:
    before, after = labelled(GAMER, None), labelled(GAMER, GRAND)
    assert before != after
    assert hardware_changes(before, after) == ()


def test_inventory_contradictions_are_of_gpus_that_showed_themselves() -> None:
    (said,) = inventory_contradictions(labelled(GAMER, GRAND))
    assert "H100" in said
    assert inventory_contradictions(labelled(GAMER, None)) == ()
    assert inventory_contradictions(replace(GAMER, evidence=None)) == ()


def test_inventory_contradictions_say_nothing_of_simulated_gpus_or_of_those_not_offered() -> None:
    assert inventory_contradictions(labelled(replace(GAMER, devices=(simulated("RTX4090"),)), GRAND)) == ()
    processor = DeviceEvidence(vendor=DeviceVendor.CPU, model="x", memory_bytes=1)
    kept = labelled(replace(GAMER, devices=(replace(shown(), evidence=processor),)), GRAND)
    assert inventory_contradictions(kept) == ()
