"""When machines that are held come free at the latest, by the time limits of the jobs that hold them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.core.clusters import FORMING, ClusterPhase, MemberRole
from orchestrator.core.ids import JobId
from orchestrator.core.scheduling.draft import FORMING_ALLOWANCE_MS
from orchestrator.core.scheduling.nominations import unclaimed
from orchestrator.core.watched import NEVER_MS

if TYPE_CHECKING:
    from orchestrator.core.clusters import Member
    from orchestrator.core.ids import ClusterId, WorkerId
    from orchestrator.core.jobs import Requirements
    from orchestrator.core.scheduling.draft import Draft
    from orchestrator.core.scheduling.offers import Numbers
    from orchestrator.core.scheduling.placement import PlacementView

ENDING_ALLOWANCE_MS = 60_000
"""From a driver's time limit until its machines are free: it is stopped within seconds, its cluster gives way to whoever
waits for it, and a log may take the rest."""


@dataclass(frozen=True, slots=True, order=True)
class Release:
    """The latest instant at which something comes free; NEVER_MS: nobody knows. ``job_id`` is whose end that is."""

    at_ms: int
    job_id: JobId | None = None

    @property
    def known(self) -> bool:
        """Whether it comes at all."""
        return self.at_ms < NEVER_MS


def release_of(view: PlacementView, cluster_id: ClusterId, now_ms: int) -> Release:
    """Of a cluster's machines, for others than its reservation. Where it is late they are free at any moment."""
    release = _release_of(view, cluster_id, now_ms)
    booked = view.bookings.of(view.clusters[cluster_id].reservation_id)
    return release if booked is None else Release(max(release.at_ms, booked.until_ms), release.job_id)


def _release_of(view: PlacementView, cluster_id: ClusterId, now_ms: int) -> Release:
    cluster = view.clusters[cluster_id]
    attempt_id = view.attempt_in.get(cluster_id)
    if attempt_id is not None:
        attempt = view.attempts[attempt_id]
        limit_ms = view.jobs[attempt.job_id].request.time_limit_ms
        if not limit_ms:
            return Release(NEVER_MS, attempt.job_id)
        if attempt.started_at_ms is None:
            over_ms = (
                max(attempt.placed_at_ms + FORMING_ALLOWANCE_MS, now_ms + ENDING_ALLOWANCE_MS) + limit_ms
            )
        else:
            over_ms = attempt.started_at_ms + limit_ms + ENDING_ALLOWANCE_MS
        return Release(max(over_ms, now_ms + 1), attempt.job_id)
    if cluster.spare_for is not None and cluster.phase is not ClusterPhase.CLOSING:
        return Release(NEVER_MS, cluster.spare_for)
    policy = view.policies.clusters
    over_ms = cluster.phase_since_ms + policy.log_deadline_ms + ENDING_ALLOWANCE_MS
    if cluster.phase is not ClusterPhase.CLOSING:
        idle_ms = policy.clean_deadline_ms + policy.idle_teardown_ms
        over_ms += idle_ms + (FORMING_ALLOWANCE_MS if cluster.phase in FORMING else 0)
    return Release(max(over_ms, now_ms + 1))


def release_of_row(draft: Draft, row: int) -> Release:
    """Of all devices of a row: the last of them."""
    view, last = draft.view, Release(draft.now_ms)
    worker_id = view.offers.worker_of(row)
    for member_id in view.members_on.get(worker_id, ()):
        member = view.members[member_id]
        if member.role is not MemberRole.HEAD and _holds(draft, worker_id, row, member):
            release = release_of(view, member.cluster_id, draft.now_ms)
            last = release if release.at_ms > last.at_ms else last
    return last


def enough_by(draft: Draft, wanted: Requirements, rows: Numbers) -> Release:
    """The first instant at which these rows, one of each worker, hold a whole request, if nobody new comes.

    ``now_ms`` where they do already. Devices that this plan gave away do not come back, but for those that it lent.
    """
    view, count = draft.view, wanted.device_count
    brought: dict[WorkerId, _Brought] = {}
    ends: list[tuple[int, str, WorkerId, int]] = []
    for row in rows.tolist():
        worker_id = view.offers.worker_of(row)
        # What a reservation waits for comes free for that.
        booked = int(draft.booked[row]) if draft.awaited[row] else 0
        brought[worker_id] = _Brought(int(draft.free[row]) - booked, int(draft.slots[row]), wanted)
        for member_id in view.members_on.get(worker_id, ()):
            member = view.members[member_id]
            if member.role is MemberRole.HEAD:
                continue
            left = len(unclaimed(draft, member))
            if not left:
                # What gives way does so for somebody.
                continue
            release = release_of(view, member.cluster_id, draft.now_ms)
            devices = left if _holds(draft, worker_id, row, member) else 0
            ends.append((release.at_ms, release.job_id or "", worker_id, devices))
        for other in view.offers.rows_of(worker_id) if draft.borrowed else ():
            for at_ms, devices in draft.borrowed.get(other, ()):
                ends.append((at_ms, "", worker_id, devices if other == row else 0))
    total = sum(one.devices for one in brought.values())
    if total >= count:
        return Release(draft.now_ms)
    for at_ms, job_id, worker_id, devices in sorted(ends):
        one = brought[worker_id]
        total -= one.devices
        one.come_free(devices)
        total += one.devices
        if total >= count:
            return Release(at_ms, JobId(job_id) if job_id else None)
    return Release(NEVER_MS)


def _holds(draft: Draft, worker_id: WorkerId, row: int, member: Member) -> bool:
    """Whether a member's devices are of a row, and serve."""
    view = draft.view
    if not view.offers.mixed and not view.workers[worker_id].device_holds:
        return True
    return draft.row_of(worker_id, member.device_ids) == row


class _Brought:
    """What one worker could bring to a request."""

    def __init__(self, free: int, slots: int, wanted: Requirements) -> None:
        self._free = free
        self._slots = slots
        self._each = wanted.gpus_per_worker
        self._most = wanted.gpus_per_worker or wanted.device_count

    def come_free(self, devices: int) -> None:
        """A member is gone."""
        self._free += devices
        self._slots += 1

    @property
    def devices(self) -> int:
        """All that each worker shall bring or nothing, where that is said."""
        if self._slots <= 0 or self._free < self._each:
            return 0
        return min(self._free, self._most)
