"""When newcomers are due: for paid work, because they have shown enough, or for being forgotten."""

from __future__ import annotations

import bisect
from typing import TYPE_CHECKING

from orchestrator.core.supply.evidence import EVIDENCE_RANK
from orchestrator.core.supply.fleet import Liveness
from orchestrator.core.supply.hardware import worker_evidence_class
from orchestrator.core.supply.holds import HoldKind

if TYPE_CHECKING:
    from orchestrator.core.ids import WorkerId
    from orchestrator.core.supply.fleet import FleetPolicy, Worker


class DueTimes:
    """Workers in the order of the times at which something is due for them."""

    def __init__(self) -> None:
        self._due_ms: dict[WorkerId, int] = {}
        self._order: list[tuple[int, WorkerId]] = []

    def put(self, worker_id: WorkerId, due_ms: int | None) -> None:
        """Replace a worker's time; None: nothing is due for it."""
        known_ms = self._due_ms.pop(worker_id, None)
        if known_ms is not None:
            del self._order[bisect.bisect_left(self._order, (known_ms, worker_id))]
        if due_ms is not None:
            self._due_ms[worker_id] = due_ms
            bisect.insort(self._order, (due_ms, worker_id))

    def due(self, at_ms: int) -> list[WorkerId]:
        """Whose time has come."""
        end = bisect.bisect_left(self._order, at_ms + 1, key=lambda one: one[0])
        return [worker_id for _, worker_id in self._order[:end]]

    def all(self) -> list[tuple[int, WorkerId]]:
        """Every time with its worker: what two states are compared by."""
        return list(self._order)


class Newcomers:
    """Indexes of ``State``, kept true by its ``put``."""

    def __init__(self) -> None:
        self.proven = DueTimes()
        """When probation ends, of those that nothing else speaks against."""
        self.forgotten = DueTimes()
        """When strangers are forgotten that are not there."""

    def put(self, worker: Worker, policy: FleetPolicy, *, stranger: bool) -> None:
        """A worker was added or changed; a stranger is one whose supplier nobody vouches for."""
        on_probation = worker.hold(HoldKind.PROBATION) is not None
        live = worker.liveness is Liveness.LIVE
        spotless = on_probation and len(worker.holds) == 1 and not worker.device_holds
        proven_ms = None
        if spotless and live and shows_enough(worker, policy):
            proven_ms = worker.liveness_since_ms + policy.probation_ms
        self.proven.put(worker.worker_id, proven_ms)
        forgotten_ms = None
        if stranger and not worker.enrolled:
            forgotten_ms = worker.joined_at_ms + policy.unconnected_max_ms
        elif stranger and on_probation and not live:
            forgotten_ms = worker.liveness_since_ms + policy.newcomer_silence_max_ms
        self.forgotten.put(worker.worker_id, forgotten_ms)

    def remove(self, worker_id: WorkerId) -> None:
        """A worker is forgotten."""
        self.proven.put(worker_id, None)
        self.forgotten.put(worker_id, None)


def shows_enough(worker: Worker, policy: FleetPolicy) -> bool:
    """Whether the evidence of its weakest device is worth what probation asks for; a simulated device's is nothing."""
    shown = worker_evidence_class(worker.inventory.devices)
    return EVIDENCE_RANK[shown] >= EVIDENCE_RANK[policy.probation_evidence]
