"""GPUs by what can be done with them now: one count for metrics, `orch status`, `orch top` and the judgement."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from orchestrator.core.tallies import GpuState, gpus_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from orchestrator.core.ids import WorkerId
    from orchestrator.core.state import State
    from orchestrator.core.tallies import Gpus

    Reserved = Sequence[tuple[WorkerId, str, int]]
    """(worker, model, devices) that the newest plan keeps for reservations."""
    Kept = Mapping[tuple[WorkerId, str], int]
    """The same by (worker, model), of what is still free."""


def _each(state: State, worker_id: WorkerId) -> Iterator[Gpus]:
    """Each GPU of a worker; none of one that left or is forgotten."""
    worker = state.workers.get(worker_id)
    if worker is not None:
        members = (state.members[member_id] for member_id in state.members_on.get(worker_id, ()))
        yield from gpus_of(worker, {device_id for member in members for device_id in member.device_ids})


def kept(state: State, reserved: Reserved) -> Counter[tuple[WorkerId, str]]:
    """What is still kept: what became of GPUs since that plan counts more than what it meant to do with them."""
    meant: Counter[tuple[WorkerId, str]] = Counter()
    for worker_id, model, count in reserved:
        meant[worker_id, model] += count
    for (worker_id, model), count in meant.items():
        free = sum(one == model and standing is GpuState.FREE for _, one, standing in _each(state, worker_id))
        meant[worker_id, model] = min(count, free)
    return meant


def gpus(state: State, reserved: Reserved) -> Counter[Gpus]:
    """By class, model and state, of workers that have not left."""
    found = Counter({key: count for key, count in state.tallies.gpus.items() if count})
    for (worker_id, model), count in kept(state, reserved).items():
        if count:
            kind = state.workers[worker_id].inventory.hardware_class
            found[kind, model, GpuState.FREE] -= count
            found[kind, model, GpuState.RESERVED] += count
    return found


def gpus_on(state: State, worker_id: WorkerId, reserved: Kept) -> Counter[GpuState]:
    """Of one worker by state; ``reserved`` as ``kept`` has it."""
    found: Counter[GpuState] = Counter()
    free: Counter[str] = Counter()
    for _, model, standing in _each(state, worker_id):
        found[standing] += 1
        free[model] += standing is GpuState.FREE
    for model in free:
        count = reserved.get((worker_id, model), 0)
        found[GpuState.FREE] -= count
        found[GpuState.RESERVED] += count
    return found


def free_gpus(found: Mapping[Gpus, int]) -> int:
    """What nobody and nothing keeps."""
    return sum(count for (_, _, standing), count in found.items() if standing is GpuState.FREE)
