"""Which workers and devices could ever serve a request, and why a job waits: every reason is a phrase for its tenant."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from orchestrator.core.catalogue import GIB
from orchestrator.core.fleet import OVERLAY, Device, DeviceKind, HardwareClass, Inventory, Liveness, Worker
from orchestrator.core.holds import HoldKind
from orchestrator.core.jobs import Requirements

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from orchestrator.core.ids import DeviceId, WorkerId
    from orchestrator.core.placement import JobNeed, PlacementView


OPEN_MS_MIN = 600_000
"""A cluster takes minutes to form and to pay for itself: a window that ends sooner is left alone."""

CORDONED = "with each fitting device cordoned"

HOLD_PHRASES = {
    HoldKind.OWNER: "cordoned by its owner",
    HoldKind.OPERATOR: "cordoned by an operator",
    HoldKind.RECLAIMED: "taken back by its owner",
    HoldKind.BUSY: "in use by its owner",
    HoldKind.SCHEDULE: "outside its owner's hours",
    HoldKind.PROBATION: "on probation",
    HoldKind.QUARANTINED: "in quarantine",
    HoldKind.CLONED: "shut out as a copy",
    HoldKind.REVOKED: "shut out by an operator",
    HoldKind.FLAPPING: "backing off after coming and going",
    HoldKind.OUTDATED: "with an outdated agent",
}


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


def isolation_rejection(inventory: Inventory, wanted: Requirements) -> str | None:
    """Why nothing of this request may be on such a machine, a head neither; None where it may."""
    if not inventory.isolation.at_least(wanted.isolation):
        return f"isolation weaker than {wanted.isolation}"
    if not inventory.boxed and not inventory.unisolated:
        return "without isolation, to which the owner did not consent"
    return None


def can_join(inventory: Inventory, *, overlay_offered: bool) -> bool:
    """Whether a worker can be a member of a cluster of several machines in this network."""
    return overlay_offered if inventory.reach == OVERLAY else bool(inventory.reach)


def device_rejection(device: Device, wanted: Requirements) -> str | None:
    """The first reason why this device does not serve; None where it does."""
    kind = DeviceKind.CPU if wanted.gpus == 0 else DeviceKind.GPU
    if device.kind is not kind:
        return "no GPU" if kind is DeviceKind.GPU else "not a CPU worker"
    if wanted.gpu_model is not None and device.model != wanted.gpu_model:
        return f"not a {wanted.gpu_model}"
    if device.memory_bytes < wanted.min_gpu_memory_gb * GIB:
        return f"less than {wanted.min_gpu_memory_gb} GB of GPU memory"
    return None


def hours_rejection(worker: Worker, now_ms: int) -> str | None:
    """Whether the worker's hours end too soon for anything new, as a phrase; twice its notice at least is left."""
    open_ms = worker.terms.open_for_ms(now_ms)
    if open_ms is None or open_ms >= max(OPEN_MS_MIN, 2 * worker.terms.notice_ms):
        return None
    return HOLD_PHRASES[HoldKind.SCHEDULE] if open_ms == 0 else "closing soon by its owner's schedule"


def _state_rejection(worker: Worker) -> str | None:
    if worker.liveness is Liveness.LEFT:
        return "left the network"
    if worker.liveness is not Liveness.LIVE:
        return worker.liveness.value
    if worker.draining:
        return "draining"
    return HOLD_PHRASES[worker.holds[0].kind] if worker.holds else None


def describe(wanted: Requirements) -> str:
    """The request in words."""
    if wanted.gpus == 0:
        return "CPU work on one cpu worker"
    parts = [f"{wanted.gpus} × {wanted.gpu_model or 'GPU'}"]
    if wanted.hardware_class is not None:
        parts.append(f"of class {wanted.hardware_class}")
    if wanted.min_gpu_memory_gb:
        parts.append(f"with at least {wanted.min_gpu_memory_gb} GB")
    if wanted.isolation != "none":
        parts.append(f"with isolation {wanted.isolation}")
    if wanted.image:
        parts.append(f"in image {wanted.image}")
    if wanted.gpus > 1:
        parts.append("on one machine" if wanted.one_machine else "together")
    return " ".join(parts)


def explain(
    view: PlacementView, need: JobNeed, free_on: Callable[[WorkerId], Iterable[DeviceId]], now_ms: int
) -> str:
    """Why a job waits: how many workers each filter removed, and what is missing among the rest.

    ``free_on`` says what a worker has left, after what the plan under way has given to others.
    """
    wanted = need.requirements
    removed: Counter[str] = Counter()
    fitting = free = alone = 0
    grounds: Counter[tuple[str, str, str]] = Counter()
    for worker in view.workers.values():
        reason = _rejection(worker, need, now_ms)
        if reason is not None:
            removed[reason] += 1
            continue
        inventory = worker.inventory
        cordoned = {hold.device_id for hold in worker.device_holds}
        serving = [
            device
            for device in inventory.devices
            if device.device_id not in cordoned and device_rejection(device, wanted) is None
        ]
        fitting += len(serving)
        left = set(free_on(worker.worker_id))
        models = Counter(device.model for device in serving if device.device_id in left)
        free += models.total()
        # A share is of one model: of a machine with two, the larger part can be used together with others.
        ground = (inventory.hardware_class.value, inventory.runtime, inventory.reach)
        of_one_model = max(models.values(), default=0)
        if can_join(inventory, overlay_offered=view.overlay_offered):
            grounds[ground] += of_one_model
        else:
            alone = max(alone, of_one_model)
    parts = [
        f"waiting for {describe(wanted)}: {free} of {fitting} fitting devices free, {wanted.device_count} needed"
    ]
    largest = max([alone, *grounds.values()])
    if free >= wanted.device_count > largest:
        parts.append(f"at most {largest} of them in one class, runtime and network, of one model a machine")
    elif largest >= wanted.device_count:
        parts.append("no head slot or member slot is free for them")
    if removed:
        listed = ", ".join(
            f"{count} {reason}" for reason, count in sorted(removed.items(), key=lambda kv: -kv[1])
        )
        parts.append(f"workers left out: {listed}")
    return "; ".join(parts)


def _rejection(worker: Worker, need: JobNeed, now_ms: int) -> str | None:
    wanted = need.requirements
    reason = _state_rejection(worker) or worker_rejection(worker, wanted) or hours_rejection(worker, now_ms)
    if reason is None and worker.worker_id in need.avoid:
        reason = "failed this job before it started"
    if reason is None:
        cordoned = {hold.device_id for hold in worker.device_holds}
        reasons = [
            device_rejection(device, wanted) or (CORDONED if device.device_id in cordoned else None)
            for device in worker.inventory.devices
        ]
        if all(reasons):
            reason = CORDONED if CORDONED in reasons else reasons[0]
    return reason
