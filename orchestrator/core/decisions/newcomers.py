"""Strangers: how they join, what they must show before they are paid, and when they are forgotten."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from orchestrator.core import messages as m
from orchestrator.core.errors import RefusalCode, RefusedError
from orchestrator.core.supply.fleet import Supplier
from orchestrator.core.supply.hardware import worker_evidence_class
from orchestrator.core.supply.holds import Hold, HoldKind
from orchestrator.core.supply.newcomers import shows_enough

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.core.ids import WorkerId
    from orchestrator.core.state import State
    from orchestrator.core.supply.fleet import FleetPolicy, Worker


def join_stranger(state: State, command: m.JoinWorker, worker: Worker, at_ms: int) -> m.Decision:
    """Anybody may come where the operator says so; paid work comes after probation."""
    policy = state.policies.fleet
    if not policy.open_enrolment:
        reason = "this network takes workers by join token only; ask its operator for one"
        raise RefusedError(RefusalCode.FORBIDDEN, reason, "join_token")
    if len(state.on_probation) >= policy.probation_max:
        reason = f"{policy.probation_max} newcomers are on probation already; try again in an hour"
        raise RefusedError(RefusalCode.EXHAUSTED, reason, "join_token")
    supplier = Supplier(command.supplier_id, f"open {command.supplier_id[-12:]}", at_ms, vouched=False)
    worker = replace(worker, holds=(Hold(HoldKind.PROBATION, _terms_of(worker, policy), at_ms),))
    return m.Decision((m.StrangerJoined(worker, supplier),), worker.worker_id)


def _terms_of(worker: Worker, policy: FleetPolicy) -> str:
    """What probation asks for, and what of it the machine cannot show as it is."""
    reason = f"on probation: paid work comes after {policy.probation_ms // 60_000} minutes without a break"
    if shows_enough(worker, policy):
        return reason
    needed, devices = policy.probation_evidence.upper(), worker.inventory.devices
    if not devices:
        lacking = "it offers no device"
    elif any(device.simulated for device in devices):
        lacking = "a device is simulated"
    else:
        lacking = f"its weakest device shows {worker_evidence_class(devices).upper()}"
    return f"{reason}, and evidence {needed} of every device, but {lacking}; or by the operator's word"


def after_inventory_changed(state: State, worker_id: WorkerId) -> Iterator[m.Event]:
    """Another machine shows more, or less."""
    worker = state.workers[worker_id]
    known = worker.hold(HoldKind.PROBATION)
    if known is None or worker.supplier_id not in state.suppliers_unvouched:
        return
    reason = _terms_of(worker, state.policies.fleet)
    if reason != known.reason:
        yield m.HoldPlaced(worker_id, Hold(HoldKind.PROBATION, reason, known.since_ms))


def tick_newcomers(state: State, at_ms: int) -> Iterator[m.Event]:
    """Probation ends for those who have shown enough; those who never came, or stay away, are forgotten."""
    for worker_id in state.newcomers.proven.due(at_ms):
        yield m.HoldLifted(worker_id, HoldKind.PROBATION)
    for worker_id in state.newcomers.forgotten.due(at_ms):
        # Members and leases are kept for ever, so their worker is.
        if worker_id in state.members_on or worker_id in state.unsettled_on:
            continue
        supplier_id = state.workers[worker_id].supplier_id
        alone = len(state.workers_of[supplier_id]) == 1 and supplier_id not in state.token_subjects
        yield m.WorkerForgotten(worker_id, supplier_id if alone else None)
