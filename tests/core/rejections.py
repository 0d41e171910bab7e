"""What filters must come to, said again for one worker and one device at a time."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.core.jobs import Requirements
from orchestrator.core.scheduling.filters import OPEN_MS_MIN
from orchestrator.core.supply.catalogue import GIB
from orchestrator.core.supply.evidence import EVIDENCE_RANK
from orchestrator.core.supply.fleet import Device, DeviceKind, HardwareClass, Inventory, Worker
from orchestrator.core.supply.hardware import evidence_class
from orchestrator.core.supply.reliability import score_bp
from orchestrator.core.supply.terms import Tier


def worker_rejection(worker: Worker, wanted: Requirements) -> str | None:
    """The first reason why no device of this worker serves, as a phrase; None where one may."""
    inventory = worker.inventory
    wanted_class = HardwareClass.CPU if wanted.gpus == 0 else wanted.hardware_class
    if wanted_class is not None and inventory.hardware_class is not wanted_class:
        return f"not of hardware class {wanted_class}"
    isolation_reason = isolation_rejection(inventory, wanted)
    if isolation_reason is not None:
        return isolation_reason
    if not inventory.boxed and wanted.runtime:
        return "without provisioned runtimes"
    if not inventory.devices:
        return "offers no device"
    places = max(1, inventory.slots + inventory.head_slots)
    if max(1, inventory.cpus // places) < wanted.driver_cpus:
        return f"fewer than {wanted.driver_cpus} CPUs for the driver"
    if inventory.memory_bytes < wanted.driver_memory_bytes:
        return f"less than {wanted.driver_memory_bytes} bytes of memory for the driver"
    return None


def owner_rejection(worker: Worker, wanted: Requirements, at_ms: int, half_life_ms: int) -> str | None:
    """The first reason why what its owner offers, or what came of it, does not serve; None where it does."""
    open_ms = worker.terms.open_for_ms(at_ms)
    if open_ms == 0:
        return "outside its owner's hours"
    if open_ms is not None and open_ms < max(OPEN_MS_MIN, 2 * worker.terms.notice_ms):
        return "closing soon by its owner's schedule"
    if wanted.region and wanted.region not in worker.terms.regions:
        return f"not in region {wanted.region}"
    if wanted.committed and worker.terms.tier is not Tier.COMMITTED:
        return "interruptible"
    if score_bp(worker.reliability, at_ms, half_life_ms) < wanted.min_reliability_bp:
        return f"reliability below {wanted.min_reliability_bp / 100:g} %"
    return None


def price_rejection(
    worker: Worker, device: Device, wanted: Requirements, market: Mapping[str, int]
) -> str | None:
    """Whether a device is too dear; None where it is not."""
    asks = {ask.model: ask.microcredits_per_gpu_hour for ask in worker.terms.asks}
    price = asks.get(device.model, market.get(device.model, 0))
    return "dearer" if wanted.max_price and price > wanted.max_price else None


def isolation_rejection(inventory: Inventory, wanted: Requirements) -> str | None:
    """Why nothing of this request may be on such a machine, a head neither; None where it may."""
    if not inventory.isolation.at_least(wanted.isolation):
        return f"isolation weaker than {wanted.isolation}"
    if not inventory.boxed and not inventory.unisolated:
        return "without isolation, to which the owner did not consent"
    return None


def device_rejection(device: Device, wanted: Requirements) -> str | None:
    """The first reason why this device does not serve; None where it does."""
    kind = DeviceKind.CPU if wanted.gpus == 0 else DeviceKind.GPU
    if device.kind is not kind:
        return "no GPU" if kind is DeviceKind.GPU else "not a CPU worker"
    if wanted.gpu_model is not None and device.model != wanted.gpu_model:
        return f"not a {wanted.gpu_model}"
    if device.memory_bytes < wanted.min_gpu_memory_gb * GIB:
        return f"less than {wanted.min_gpu_memory_gb} GB of GPU memory"
    if _capability(device) < divmod(wanted.min_compute_capability, 100):
        return "compute capability not known to be that much"
    if EVIDENCE_RANK[evidence_class(device)] < EVIDENCE_RANK[wanted.min_evidence]:
        return f"evidence weaker than {wanted.min_evidence}"
    return None


def _capability(device: Device) -> tuple[int, int]:
    text = device.evidence.compute_capability if device.evidence is not None else ""
    major, _, minor = text.partition(".")
    return (int(major), int(minor)) if major.isdecimal() and minor.isdecimal() else (0, 0)
