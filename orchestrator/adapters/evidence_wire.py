"""Evidence as protobuf: the agent sends it, the control plane shows it."""

from __future__ import annotations

from orchestrator.api.v1 import common_pb2
from orchestrator.core.supply.evidence import DeviceEvidence, DeviceVendor, MachineEvidence, NodeLabels

VENDOR_NUMBERS = {
    DeviceVendor.NVIDIA: common_pb2.DEVICE_VENDOR_NVIDIA,
    DeviceVendor.AMD: common_pb2.DEVICE_VENDOR_AMD,
    DeviceVendor.APPLE: common_pb2.DEVICE_VENDOR_APPLE,
    DeviceVendor.CPU: common_pb2.DEVICE_VENDOR_CPU,
}


def device_evidence_to(evidence: DeviceEvidence) -> common_pb2.DeviceEvidence:
    """What a machine shows of one device."""
    return common_pb2.DeviceEvidence(
        vendor=VENDOR_NUMBERS[evidence.vendor],
        model=evidence.model,
        memory_bytes=evidence.memory_bytes,
        uuid=evidence.uuid,
        pci_bus_id=evidence.pci_bus_id,
        pcie_generation=evidence.pcie_generation,
        pcie_generation_max=evidence.pcie_generation_max,
        pcie_width=evidence.pcie_width,
        pcie_width_max=evidence.pcie_width_max,
        nvlink_links=evidence.nvlink_links,
        nvlink_peers=evidence.nvlink_peers,
        compute_capability=evidence.compute_capability,
        driver_version=evidence.driver_version,
        mig_enabled=evidence.mig_enabled,
        mig_profiles=evidence.mig_profiles,
        power_limit_mw=evidence.power_limit_mw,
        ecc_enabled=evidence.ecc_enabled,
        sightings=[
            common_pb2.Sighting(source=one.source, uuid=one.uuid, model=one.model, pci_bus_id=one.pci_bus_id)
            for one in evidence.sightings
        ],
    )


def machine_evidence_to(evidence: MachineEvidence) -> common_pb2.MachineEvidence:
    """What a machine shows of itself."""
    return common_pb2.MachineEvidence(
        system_vendor=evidence.system_vendor,
        system_product=evidence.system_product,
        board_vendor=evidence.board_vendor,
        board_product=evidence.board_product,
        processor=evidence.processor,
        gpus=evidence.gpus,
        gpus_lost=evidence.gpus_lost,
        wsl=evidence.wsl,
        virtualisation=evidence.virtualisation,
        labels=None if evidence.labels is None else _labels_to(evidence.labels),
    )


def _labels_to(labels: NodeLabels) -> common_pb2.NodeLabels:
    return common_pb2.NodeLabels(
        node=labels.node,
        region=labels.region,
        zone=labels.zone,
        instance_type=labels.instance_type,
        gpu_product=labels.gpu_product,
        gpu_count=labels.gpu_count,
    )
