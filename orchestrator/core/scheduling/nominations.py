"""Devices that are kept for queued jobs for which others give way: free to their job, and to nobody else in a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.core.scheduling.filters import describe
from orchestrator.core.scheduling.placement import Nominated

if TYPE_CHECKING:
    from collections.abc import Iterable

    from orchestrator.core.clusters import Member
    from orchestrator.core.ids import DeviceId, JobId, WorkerId
    from orchestrator.core.scheduling.draft import Draft
    from orchestrator.core.scheduling.placement import JobNeed

    Devices = Iterable[tuple[WorkerId, tuple[DeviceId, ...]]]


def keep_nominated(draft: Draft) -> None:
    """All whose time is not over."""
    for job_id, nomination in draft.view.watched.nominated.items():
        if nomination.until_ms > draft.now_ms:
            nominate(draft, job_id, nomination.devices, nomination.head_host)


def nominate(draft: Draft, job_id: JobId, devices: Devices, head_host: WorkerId | None) -> None:
    """Keep what is free of these, a slot on each machine, and a head slot; the rest is nobody else's either."""
    offers = draft.view.offers
    kept = draft.nominated[job_id] = Nominated(tuple(devices), head_host, [], [])
    for worker_id, device_ids in kept.devices:
        draft.nominated_devices.update((worker_id, device_id) for device_id in device_ids)
        row = draft.row_of(worker_id, device_ids)
        if row is None:
            continue
        taken = draft.taken.setdefault(worker_id, set())
        free = frozenset(draft.view.free_devices[worker_id].keys() & set(device_ids)) - taken
        kept.free.append((row, worker_id, free))
        taken |= free
        draft.free[row] -= len(free)
        if draft.slots[row] > 0:
            kept.slots.extend(offers.rows_of(worker_id))
    draft.slots[kept.slots] -= 1
    if head_host is not None:
        draft.heads[head_host] += 1


def redeem(draft: Draft, job_id: JobId) -> bool:
    """Give a job what is kept for it, to choose from; False where nothing is."""
    kept = draft.nominated.pop(job_id, None)
    if kept is None:
        return False
    for worker_id, device_ids in kept.devices:
        draft.nominated_devices.difference_update((worker_id, device_id) for device_id in device_ids)
    for row, worker_id, free in kept.free:
        draft.free[row] += len(free)
        draft.taken[worker_id] -= free
    draft.slots[kept.slots] += 1
    if kept.head_host is not None:
        draft.heads[kept.head_host] -= 1
    return True


def renewed(draft: Draft, need: JobNeed) -> str:
    """Keep it again for a job that could not start yet; why it waits, in words."""
    nomination = draft.view.watched.nominated[need.job_id]
    nominate(draft, need.job_id, nomination.devices, nomination.head_host)
    free = sum(len(one) for _, _, one in draft.nominated[need.job_id].free)
    count = need.requirements.device_count
    return (
        f"waiting for {describe(need.requirements)}: {free} of {count} devices are kept for it,"
        " and what holds the rest gives way"
    )


def unclaimed(draft: Draft, member: Member) -> list[DeviceId]:
    """Devices of a member that anybody may have once it is gone."""
    return [one for one in member.device_ids if (member.worker_id, one) not in draft.nominated_devices]
