"""Reservations: machines that are kept for a tenant in a window of time, agreed on before.

A reservation is of machines as a job asks for them. From some time before its window until its end a plan keeps so many
devices for it; jobs that name it use them. It ends with its window, when it is cancelled, or some time after its
begin where nobody came: a fleet must not stand idle for nothing. A job that still runs then goes on as any other.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from orchestrator.core.ids import ReservationId, TenantId
from orchestrator.core.instants import window_words
from orchestrator.core.jobs import Requirements

if TYPE_CHECKING:
    from orchestrator.core.clusters import Cluster
    from orchestrator.core.ids import ClusterId, JobId
    from orchestrator.core.jobs import Job

    Place = tuple[int, int, JobId]


class ReservationPhase(StrEnum):
    """BOOKED until it has ended, and then how it did."""

    BOOKED = "booked"
    OVER = "over"
    UNUSED = "unused"
    """No job ever used it."""
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Reservation:
    """Machines for ``tenant_id`` in [from_ms, until_ms). ``request_sha256`` makes a repeated request recognisable."""

    reservation_id: ReservationId
    tenant_id: TenantId
    name: str
    requirements: Requirements
    from_ms: int
    until_ms: int
    created_at_ms: int
    request_sha256: str
    used: bool = False
    """Whether a job of it ever had machines."""
    phase: ReservationPhase = ReservationPhase.BOOKED
    ended_at_ms: int | None = None

    @property
    def booked(self) -> bool:
        """Whether machines are kept for it, now or later."""
        return self.phase is ReservationPhase.BOOKED

    def begun(self, at_ms: int) -> bool:
        """Whether its jobs may start."""
        return self.from_ms <= at_ms

    @property
    def window(self) -> str:
        """When it is, in words."""
        return window_words(self.from_ms, self.until_ms)


@dataclass(frozen=True, slots=True)
class ReservationPolicy:
    """Bounds on what may be promised ahead. Milliseconds."""

    lead_ms: int = 3_600_000
    """So long before its begin machines are kept for a reservation, and lent to jobs that end before. Most jobs that
    state no limit end within an hour; a longer lead would have machines idle for more than a tenth of a night."""
    claim_grace_ms: int = 900_000
    """A reservation that nobody used so long after its begin ends: who is late has a quarter of an hour."""
    length_ms_min: int = 600_000
    """A cluster takes minutes to form: less is no use to anybody."""
    length_ms_max: int = 7 * 86_400_000
    """Suppliers come and go: who is there in a week is a guess, and a longer promise would be none."""
    ahead_ms_max: int = 90 * 86_400_000
    """A quarter of a year: for who plans for longer than that, the fleet will be another one."""
    late_ms: int = 60_000
    """A window may have begun so long ago: clocks differ, and requests take their time."""
    of_tenant_max: int = 16
    """At a time: two weeks of nights, and two more."""
    in_all_max: int = 64
    """Each request is weighed against all others of its time, and each plan keeps machines for those that are near."""
    shown_ms: int = 30 * 86_400_000
    """Ended ones are shown for a month, and then forgotten."""
    ended_of_tenant_max: int = 256
    """And no more of a tenant than these, the newest: as many as it can have in a month that begin and end in order."""


class Bookings:
    """Indexes of ``State`` over its reservations, kept true by its ``put``; nothing of it is stored."""

    def __init__(self, policy: ReservationPolicy) -> None:
        self.policy = policy
        self.booked: dict[ReservationId, Reservation] = {}
        """Those that have not ended."""
        self.queues: dict[ReservationId, list[Place]] = {}
        """Queued jobs of these, in order; they wait in no tenant's queue."""
        self.clusters: dict[ReservationId, dict[ClusterId, None]] = {}
        """Clusters formed for one and not CLOSED."""
        self._named: dict[tuple[TenantId, str], ReservationId] = {}
        self._of_tenant: dict[TenantId, dict[ReservationId, None]] = {}
        self._order: list[tuple[int, int, ReservationId]] = []
        """Of those that have not ended (from_ms, created_at_ms, reservation_id), in order."""
        self._due: list[tuple[int, ReservationId]] = []
        self._due_ms: dict[ReservationId, int] = {}

    # ------------------------------------------------------------ writing

    def put(self, one: Reservation, queues: dict[TenantId, list[Place]]) -> None:
        """A reservation is new or has changed. Once it has ended its jobs wait as any others, in ``queues``."""
        self.forget(one)
        due_ms = self._due_of(one)
        self._due_ms[one.reservation_id] = due_ms
        bisect.insort(self._due, (due_ms, one.reservation_id))
        if not one.booked:
            waiting = self.queues.pop(one.reservation_id, None)
            if waiting:
                queues[one.tenant_id] = sorted([*queues.get(one.tenant_id, ()), *waiting])
            return
        self.booked[one.reservation_id] = one
        self._named[one.tenant_id, one.name] = one.reservation_id
        self._of_tenant.setdefault(one.tenant_id, {})[one.reservation_id] = None
        bisect.insort(self._order, _place_of(one))

    def forget(self, one: Reservation) -> None:
        """As if it had never been put; jobs that wait for it do so still."""
        due_ms = self._due_ms.pop(one.reservation_id, None)
        if due_ms is not None:
            del self._due[bisect.bisect_left(self._due, (due_ms, one.reservation_id))]
        known = self.booked.pop(one.reservation_id, None)
        if known is not None:
            del self._named[known.tenant_id, known.name]
            del self._of_tenant[known.tenant_id][known.reservation_id]
            del self._order[bisect.bisect_left(self._order, _place_of(known))]

    def put_cluster(self, cluster: Cluster, *, closed: bool) -> None:
        """A cluster was added or changed."""
        if cluster.reservation_id is None:
            return
        standing = self.clusters.setdefault(cluster.reservation_id, {})
        standing[cluster.cluster_id] = None
        if closed:
            del standing[cluster.cluster_id]
        if not standing:
            del self.clusters[cluster.reservation_id]

    def _due_of(self, one: Reservation) -> int:
        """When time may end it or have it forgotten."""
        if one.ended_at_ms is not None:
            return one.ended_at_ms + self.policy.shown_ms
        return one.until_ms if one.used else min(one.until_ms, one.from_ms + self.policy.claim_grace_ms)

    # ------------------------------------------------------------ reading

    def due(self, at_ms: int) -> list[ReservationId]:
        """Those that time may have ended, or that nobody needs to see any more."""
        end = bisect.bisect_left(self._due, (at_ms + 1, ReservationId("")))
        return [reservation_id for _, reservation_id in self._due[:end]]

    def named(self, tenant_id: TenantId, name: str) -> Reservation | None:
        """A tenant's, by name or id, if it has not ended."""
        found = self.booked.get(self._named.get((tenant_id, name), ReservationId(name)))
        return found if found is not None and found.tenant_id == tenant_id else None

    def of_tenant(self, tenant_id: TenantId) -> list[Reservation]:
        """A tenant's that have not ended."""
        return [self.booked[one] for one in self._of_tenant.get(tenant_id, ())]

    def near(self, at_ms: int) -> list[Reservation]:
        """Those that machines are kept for at a time, in the order in which they come."""
        end = bisect.bisect_left(self._order, (at_ms + self.policy.lead_ms + 1, 0, ReservationId("")))
        found = (self.booked[one] for _, _, one in self._order[:end])
        return [one for one in found if at_ms < one.until_ms]

    def of(self, reservation_id: ReservationId | None) -> Reservation | None:
        """The reservation that a job or a cluster is of; None where that has ended: it counts as any other then."""
        return None if reservation_id is None else self.booked.get(reservation_id)

    def queues_of(
        self, job: Job, queues: dict[TenantId, list[Place]]
    ) -> tuple[dict[Any, list[Place]], TenantId | ReservationId]:
        """The queues of which a job is in one, and the name of that: its reservation's, or its tenant's."""
        one = self.of(job.request.reservation_id)
        return (queues, job.tenant_id) if one is None else (self.queues, one.reservation_id)

    def waiting_words(self, job: Job, *, queued: bool) -> str | None:
        """Why a queued job waits that is of a reservation; None for any other."""
        one = self.of(job.request.reservation_id) if queued else None
        return None if one is None else f"waiting for its reservation {one.name!r}, {one.window}"


def _place_of(one: Reservation) -> tuple[int, int, ReservationId]:
    return one.from_ms, one.created_at_ms, one.reservation_id
