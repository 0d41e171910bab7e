"""Leases, statements and receipts: how time becomes what is owed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.core import messages as m
from orchestrator.core.errors import not_found
from orchestrator.core.ids import Fence, lease_id_of, receipt_id_of
from orchestrator.core.metering import (
    EPOCH_MS,
    HEARTBEATS_MAX,
    STATEMENT_MS_MIN,
    Interval,
    Lease,
    Receipt,
    Statement,
    billed_offset,
    covering,
    sealable,
)
from orchestrator.core.supply.hardware import worker_evidence_class

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.core.ids import AttemptId, LeaseId, WorkerId
    from orchestrator.core.state import State


def after_attempt_started(state: State, attempt_id: AttemptId, at_ms: int) -> Iterator[m.Event]:
    """Every member that brings devices begins a lease."""
    attempt = state.attempts[attempt_id]
    cluster = state.clusters[attempt.cluster_id]
    for member in state.cluster_members(cluster):
        if not member.device_ids:
            continue
        worker = state.workers[member.worker_id]
        known = {device.device_id: device for device in worker.inventory.devices}
        devices = [known[device_id] for device_id in member.device_ids]
        lease = Lease(
            lease_id=lease_id_of(attempt_id, member.ordinal),
            attempt_id=attempt_id,
            job_id=attempt.job_id,
            tenant_id=attempt.tenant_id,
            cluster_id=cluster.cluster_id,
            member_id=member.member_id,
            worker_id=member.worker_id,
            supplier_id=member.supplier_id,
            device_ids=member.device_ids,
            device_models=tuple(device.model for device in devices),
            simulated=any(device.simulated for device in devices),
            hardware_class=cluster.hardware_class,
            fence=Fence(state.control.term, member.generation),
            started_ms=at_ms,
            ended_ms=None,
            next_sequence=0,
            stated_offset_ms=0,
            billed_offset_ms=0,
            final_stated=False,
            sealed_offset_ms=0,
            next_receipt=0,
            settled=False,
            disputed_ms=0,
            evidence_class=worker_evidence_class(devices).value.upper(),
            microcredits_per_hour=member.microcredits_per_hour,
        )
        yield m.LeaseStarted(lease)


def after_attempt_ended(state: State, attempt_id: AttemptId, at_ms: int) -> Iterator[m.Event]:
    """The record closes now, or at the last sign of life of a worker that is lost."""
    for lease_id in state.leases_of.get(attempt_id, ()):
        lease = state.leases[lease_id]
        if lease.ended_ms is None:
            yield m.LeaseEnded(lease_id, at_ms)


def end_leases_of_lost(state: State, event: m.LivenessChanged) -> Iterator[m.Event]:
    """A lost worker is paid at most until it was last heard."""
    for member_id in state.members_on.get(event.worker_id, ()):
        for lease_id in list(state.leases_on.get(member_id, ())):
            lease = state.leases[lease_id]
            ended_ms = max(event.heard_ms, lease.started_ms + lease.billed_offset_ms)
            yield m.LeaseEnded(lease_id, ended_ms)


def end_leases_of_mistrusted(state: State, worker_id: WorkerId, at_ms: int) -> Iterator[m.Event]:
    """Nothing there can be believed any more, so nothing more is billed.

    What was billed before stays; the rest of the record, up to now where a lease runs, is disputed: listed, not paid.
    Whatever is stated of a lease that is settled bills nothing, so it does not matter what the worker says later.
    """
    for lease_id in list(state.unsettled_on.get(worker_id, ())):
        lease = state.leases[lease_id]
        recorded_ms = lease.recorded_ms
        if recorded_ms is None:
            recorded_ms = at_ms - lease.started_ms
            yield m.LeaseEnded(lease_id, at_ms)
        yield m.LeaseSettled(lease_id, max(0, recorded_ms - lease.billed_offset_ms))


def accept_statement(state: State, command: m.AcceptStatement, at_ms: int) -> m.Decision:
    """Take a worker's word; the result is the sequence up to which the worker may forget.

    A repeated statement is acknowledged again, one that leaves a gap is not, one that contradicts is kept as evidence.
    """
    lease = state.leases.get(command.lease_id)
    if lease is None or lease.worker_id != command.worker_id:
        raise not_found("lease", command.lease_id)
    if command.sequence < lease.next_sequence:
        return m.Decision((), lease.next_sequence - 1)
    if command.sequence > lease.next_sequence:
        return m.Decision((), lease.next_sequence - 1)
    fault = _contradiction(state, lease, command)
    if fault:
        disputed = m.StatementDisputed(lease.lease_id, command.sequence, fault, command.envelope)
        return m.Decision((disputed,), command.sequence)
    statement = Statement(
        lease_id=lease.lease_id,
        sequence=command.sequence,
        start_offset_ms=command.start_offset_ms,
        end_offset_ms=command.end_offset_ms,
        final=command.final,
        heartbeats_acknowledged=command.heartbeats_acknowledged,
        payload_sha256=command.payload_sha256,
        envelope=command.envelope,
        accepted_ms=at_ms,
    )
    billed_ms = billed_offset(lease, command.end_offset_ms, at_ms)
    return m.Decision((m.StatementAccepted(statement, billed_ms),), command.sequence)


def _contradiction(state: State, lease: Lease, command: m.AcceptStatement) -> str:
    """Why a statement cannot be taken as it is; empty where it can."""
    length_ms = command.end_offset_ms - command.start_offset_ms
    if command.subject != (state.control.network_id, lease.member_id, lease.job_id, lease.attempt_id):
        return "speaks of something else than its lease"
    if lease.settled or lease.final_stated:
        return "stated after the final statement, or after the lease was settled without one"
    if tuple(command.device_ids) != lease.device_ids:
        return "names other devices than the lease"
    if command.start_offset_ms != lease.stated_offset_ms or command.end_offset_ms < command.start_offset_ms:
        return f"does not continue at {lease.stated_offset_ms} ms"
    if not 0 <= command.heartbeats_acknowledged <= HEARTBEATS_MAX:
        return f"claims {command.heartbeats_acknowledged} heartbeats"
    if not command.final and length_ms < STATEMENT_MS_MIN:
        return f"covers less than {STATEMENT_MS_MIN} ms"
    if len(state.statements_of.get(lease.lease_id, ())) != lease.next_sequence and length_ms != 0:
        # A receipt names statements that follow on one another: after a dispute only the end can be stated.
        return "claims time after a disputed statement"
    return ""


def after_lease_change(state: State, lease_id: LeaseId, at_ms: int) -> Iterator[m.Event]:
    """Settle a lease whose record and statements are both complete; seal what is final."""
    lease = state.leases[lease_id]
    if not lease.settled and lease.ended_ms is not None and lease.final_stated:
        yield m.LeaseSettled(lease_id, _unstated_ms(lease))
    else:
        yield from _seal(state, lease, at_ms)


def after_settled(state: State, lease_id: LeaseId, at_ms: int) -> Iterator[m.Event]:
    """The rest of a settled lease is sealed."""
    yield from _seal(state, state.leases[lease_id], at_ms)


def _unstated_ms(lease: Lease) -> int:
    return max(0, (lease.recorded_ms or 0) - lease.billed_offset_ms)


def _seal(state: State, lease: Lease, at_ms: int) -> Iterator[m.Event]:
    sequence = lease.next_receipt
    for interval in sealable(lease):
        yield m.ReceiptSealed(_receipt(state, lease, interval, sequence, at_ms))
        sequence += 1


def _receipt(state: State, lease: Lease, interval: Interval, sequence: int, at_ms: int) -> Receipt:
    statements = covering(
        (state.statements[key] for key in state.statements_of.get(lease.lease_id, ())), interval
    )
    length_ms = interval.end_ms - interval.start_ms
    start_ms = lease.started_ms + interval.start_ms
    expected = length_ms // state.policies.fleet.heartbeat_interval_ms
    return Receipt(
        receipt_id=receipt_id_of(state.control.network_id, lease.lease_id, start_ms // EPOCH_MS, sequence),
        lease_id=lease.lease_id,
        epoch=start_ms // EPOCH_MS,
        sequence=sequence,
        start_ms=start_ms,
        end_ms=lease.started_ms + interval.end_ms,
        billed_ms=length_ms * len(lease.device_ids),
        statement_sequences=tuple(statement.sequence for statement in statements),
        heartbeats_expected=expected,
        heartbeats_received=min(expected, sum(statement.heartbeats_acknowledged for statement in statements)),
        issued_at_ms=at_ms,
        envelope=b"",
        payload_sha256="",
        transfer_id="",
    )


def tick_leases(state: State, at_ms: int) -> Iterator[m.Event]:
    """Seal at the edge of the hour; settle without the worker's last word once its grace is over."""
    grace_ms = state.policies.metering.statement_grace_ms
    for lease_id in list(state.unsettled_leases):
        lease = state.leases[lease_id]
        if lease.ended_ms is not None and at_ms - lease.ended_ms > grace_ms:
            yield m.LeaseSettled(lease_id, _unstated_ms(lease))
        elif lease.sealed_offset_ms < lease.billed_offset_ms:
            yield from _seal(state, lease, at_ms)
