"""One device, one machine: who is quarantined for bringing another's, who gives way, and when that is over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.core import messages as m
from orchestrator.core.errors import RefusalCode, RefusedError
from orchestrator.core.supply.fleet import Liveness
from orchestrator.core.supply.holds import Hold, HoldKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.core.state import State
    from orchestrator.core.supply.claims import Rival
    from orchestrator.core.supply.fleet import Worker


def settle_claims(state: State, at_ms: int) -> Iterator[m.Event]:
    """What follows from a change of claims, one worker at a time: each event has the next one looked at.

    A worker with another's device is quarantined until no other owner remains. Where that owner is silent for good or
    shut out as a copy, and the two have one supplier whom somebody vouches for, it is the machine's earlier self: it
    has left.
    """
    worker_id = next(iter(state.claims.unsettled), None)
    if worker_id is None:
        return
    worker = state.workers[worker_id]
    rival = state.claims.rival(worker, state)
    if rival is None:
        yield m.HoldLifted(worker_id, HoldKind.QUARANTINED)
    elif state.claims.gives_way(state.workers[rival.owner_id], worker, state):
        yield m.LivenessChanged(rival.owner_id, Liveness.LEFT, at_ms)
    else:
        yield m.HoldPlaced(worker_id, _quarantine(state, worker, rival, at_ms))


def retold(state: State, worker: Worker) -> Iterator[m.Event]:
    """At a new session the reason names today's owner, who may be another one than at first."""
    known, rival = worker.hold(HoldKind.QUARANTINED), state.claims.rival(worker, state)
    if known is None or not known.automatic or rival is None:
        return
    hold = _quarantine(state, worker, rival, known.since_ms)
    if hold != known:
        yield m.HoldPlaced(worker.worker_id, hold)


def check_liftable(state: State, worker: Worker) -> None:
    """Refuse to end a quarantine whose reason still stands: two would be paid for one device."""
    rival = state.claims.rival(worker, state)
    if rival is not None:
        reason = (
            f"device {rival.device_id} is still worker {rival.owner_id}'s: end that one first with `orch worker leave"
            f" {rival.owner_id}` or `orch worker revoke {rival.owner_id}`, and the quarantine ends by itself"
        )
        raise RefusedError(RefusalCode.CONFLICT, reason, "worker")


def _quarantine(state: State, worker: Worker, rival: Rival, since_ms: int) -> Hold:
    owner = state.workers[rival.owner_id]
    own = owner.supplier_id == worker.supplier_id and owner.supplier_id not in state.suppliers_unvouched
    way = (
        f"if it is in this machine now, stop {owner.name}: once that is lost, or the operator has said `orch worker"
        f" leave {owner.worker_id}`"
        if own
        else f"if it is in this machine, ask the operator: once he has said `orch worker leave {owner.worker_id}`"
        f" or `orch worker revoke {owner.worker_id}`"
    )
    reason = (
        f"device {rival.device_id} is worker {owner.worker_id}'s, which brought it first; {way}, this hold ends by"
        " itself"
    )
    return Hold(HoldKind.QUARANTINED, reason, since_ms, automatic=True)
