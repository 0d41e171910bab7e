"""``apply(state, event, at_ms)``: what each event changes. It decides nothing and cannot refuse."""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from orchestrator.core import messages as m
from orchestrator.core.clusters import ClusterPhase, Member, MemberPhase, OverlayIdentity
from orchestrator.core.entities import Control, RequestRecord
from orchestrator.core.ids import TenantId
from orchestrator.core.jobs import AttemptPhase, JobStatus, Outcome
from orchestrator.core.preemption import having_given_way
from orchestrator.core.queries.supplier_standing import bounded, standing_after
from orchestrator.core.state import State
from orchestrator.core.supply.catalogue import CPU_MODEL
from orchestrator.core.supply.claims import claiming
from orchestrator.core.supply.fleet import Liveness
from orchestrator.core.supply.holds import HoldKind
from orchestrator.core.tenancy.fairness import NOTHING, Amounts, changed, moment, total
from orchestrator.core.tenancy.quotas import after_spending, after_use


def apply(state: State, event: m.Event, at_ms: int) -> None:
    """Change the state in place; ``at_ms`` is the control time at which the event was decided."""
    state.version += 1
    state.latest_ms = at_ms
    if isinstance(event, m.StandingEvent):
        worker = standing_after(state.workers[event.worker_id], event)
        if isinstance(event, m.HoldLifted) and event.kind is HoldKind.REVOKED:
            worker = claiming(worker, state.version, anew=True)
        state.put(worker)
        return
    if isinstance(event, m.WorkerEvent):
        _apply_worker(state, event, at_ms)
        return
    if isinstance(event, m.RegistryEvent):
        _apply_registry(state, event)
        return
    if isinstance(event, m.ClusterEvent):
        _apply_cluster(state, event, at_ms)
        return
    if isinstance(event, m.JobEvent):
        _apply_job(state, event, at_ms)
        return
    match event:
        case m.ControlStarted():
            overlay_host = state.control.overlay_host
            state.put(
                Control(event.network_id, event.term, at_ms, event.monotonic_ms, event.boot_id, overlay_host)
            )
        case m.TermPassed():
            state.put(replace(state.control, term=event.term))
        case m.RequestRecorded():
            state.put(RequestRecord(event.key, event.request_sha256, event.result_id, at_ms))
        case m.RequestForgotten():
            state.remove_request(event.key)
        case (
            m.MemberProvisioning()
            | m.MemberPrepared()
            | m.MemberUp()
            | m.MemberFailed()
            | m.MemberReplaced()
            | m.MemberStopping()
            | m.MemberNoticed()
            | m.MemberReleased()
        ):
            _apply_member(state, event, at_ms)
        case (
            m.AttemptPlaced() | m.AttemptStarted() | m.AttemptTimedOut() | m.AttemptEnded() | m.LogCompleted()
        ):
            _apply_attempt(state, event, at_ms)
        case (
            m.LeaseStarted()
            | m.LeaseEnded()
            | m.LeaseSettled()
            | m.StatementAccepted()
            | m.StatementDisputed()
        ):
            _apply_lease(state, event)
        case m.ReceiptSealed() | m.ReceiptSigned() | m.ReceiptPosted():
            _apply_receipt(state, event)
        case m.ReservationCreated() | m.ReservationEnded() | m.ReservationForgotten():
            _apply_reservation(state, event, at_ms)
        case _:
            assert_never(event)


def _apply_registry(state: State, event: m.RegistryEvent) -> None:
    match event:
        case m.TenantCreated():
            state.put(event.tenant)
        case m.TenantChanged():
            tenant = state.tenants[event.tenant_id]
            state.put(replace(tenant, weight=event.weight, quota=event.quota))
        case m.SupplierCreated():
            state.put(event.supplier)
        case m.TokenCreated():
            state.put(event.token)
        case m.TokenRevoked():
            state.put(replace(state.tokens[event.token_id], revoked=True))


def _apply_worker(state: State, event: m.WorkerEvent, at_ms: int) -> None:
    match event:
        case m.WorkerJoined():
            state.put(claiming(event.worker, state.version))
            state.put(replace(state.tokens[event.token_id], used=True))
        case m.StrangerJoined():
            state.put(event.supplier)
            state.put(claiming(event.worker, state.version))
        case m.WorkerForgotten():
            state.remove_worker(event.worker_id)
            if event.supplier_id is not None:
                state.remove_supplier(event.supplier_id)
        case m.InventoryChanged():
            changed = replace(state.workers[event.worker_id], inventory=event.inventory)
            state.put(bounded(claiming(changed, state.version)))
        case m.LivenessChanged():
            worker = state.workers[event.worker_id]
            if worker.liveness is Liveness.LEFT:
                # Whoever had its devices meanwhile has them.
                worker = claiming(replace(worker, draining=False, dismissed=False), state.version, anew=True)
            enrolled = worker.enrolled or event.liveness is Liveness.LIVE
            state.put(replace(worker, liveness=event.liveness, liveness_since_ms=at_ms, enrolled=enrolled))
        case m.WorkerDrained():
            worker = state.workers[event.worker_id]
            state.put(replace(worker, draining=True, dismissed=event.dismissed))
        case m.DismissalTold():
            state.put(replace(state.workers[event.worker_id], dismissed=False))
        case m.WorkerRecovered():
            worker = state.workers[event.worker_id]
            state.put(replace(worker, recoveries=event.recoveries, recovered_at_ms=at_ms))
        case m.CertificateIssued():
            worker = state.workers[event.worker_id]
            state.put(replace(worker, certificate_generation=event.generation))
        case m.SessionOpened():
            worker = state.workers[event.worker_id]
            since_ms = worker.outdated_since_ms if worker.outdated_since_ms is not None else at_ms
            state.put(
                replace(
                    worker,
                    sessions=event.number,
                    enrolled=True,
                    agent_version=event.agent_version,
                    outdated_since_ms=since_ms if event.outdated else None,
                    overlay_host=event.overlay_host or worker.overlay_host,
                )
            )
            if event.overlay_host:
                state.put(replace(state.control, overlay_host=event.overlay_host))


def _apply_cluster(state: State, event: m.ClusterEvent, at_ms: int) -> None:
    if isinstance(event, m.ClusterPlanned):
        for member in event.members:
            _put_new(state, member)
        state.put(event.cluster)
        booked = state.bookings.of(event.cluster.reservation_id)
        if booked is not None and not booked.used:
            state.put(replace(booked, used=True))
        _use(state, event.cluster.tenant_id, at_ms, gained=total([member.held for member in event.members]))
        return
    cluster = state.clusters[event.cluster_id]
    match event:
        case m.ClusterAdvanced():
            state.put(replace(cluster, phase=ClusterPhase(event.phase), phase_since_ms=at_ms))
        case m.ClusterReady():
            state.put(
                replace(
                    cluster,
                    phase=ClusterPhase.READY,
                    phase_since_ms=at_ms,
                    ready_at_ms=at_ms,
                    certificate=event.certificate,
                    paths=event.paths,
                    bus=event.bus,
                )
            )
        case m.ClusterBusMeasured():
            state.put(replace(cluster, bus=event.bus))
        case m.SpareReleased():
            state.put(replace(cluster, spare_for=None))
        case m.ClusterIdled():
            state.put(replace(cluster, idle_since_ms=at_ms))
        case m.ClusterClosing():
            state.put(
                replace(
                    cluster,
                    phase=ClusterPhase.CLOSING,
                    phase_since_ms=at_ms,
                    reason=event.reason,
                    idle_since_ms=None,
                    vacancies=(),
                )
            )
        case m.ClusterClosed():
            state.put(replace(cluster, phase=ClusterPhase.CLOSED, phase_since_ms=at_ms))


def _use(
    state: State, tenant_id: TenantId, at_ms: int, gained: Amounts = NOTHING, lost: Amounts = NOTHING
) -> None:
    """A tenant holds more or less from now on."""
    if gained == lost:
        return
    tenant = state.tenants[tenant_id]
    now = moment(at_ms, state.policies.fairness.half_life_ms)
    state.put(replace(tenant, usage=changed(tenant.usage, now, gained, lost)))


def _put_new(state: State, member: Member) -> None:
    """A member that was not there before; its number in the address plan is given out."""
    state.put(member)
    if member.overlay_host:
        state.put(replace(state.control, overlay_host=member.overlay_host))


def _overlay_identity(member: Member) -> tuple[OverlayIdentity, ...]:
    """What a member may have had a certificate for; nothing where it never showed a key."""
    identity = member.overlay_identity
    return () if identity is None else (identity,)


def _apply_member(
    state: State,
    event: m.MemberProvisioning
    | m.MemberPrepared
    | m.MemberUp
    | m.MemberFailed
    | m.MemberReplaced
    | m.MemberStopping
    | m.MemberNoticed
    | m.MemberReleased,
    at_ms: int,
) -> None:
    if isinstance(event, m.MemberReplaced):
        cluster = state.clusters[event.cluster_id]
        _put_new(state, event.member)
        _use(state, cluster.tenant_id, at_ms, gained=event.member.held)
        state.put(
            replace(
                cluster,
                generation=event.member.generation,
                # Whoever comes later has as long as those before it; there are only so many.
                phase_since_ms=at_ms,
                member_ids=(*cluster.member_ids, event.member.member_id),
                next_ordinal=event.member.ordinal + 1,
                vacancies=cluster.vacancies[1:],
            )
        )
        return
    member = state.members[event.member_id]
    match event:
        case m.MemberProvisioning():
            state.put(replace(member, provisioning=True))
        case m.MemberPrepared():
            state.put(replace(member, phase=MemberPhase.PREPARED, address=event.address, provisioning=False))
        case m.MemberUp():
            state.put(replace(member, phase=MemberPhase.UP, address=event.address))
        case m.MemberFailed():
            state.put(
                replace(
                    member, phase=MemberPhase.STOPPING, stopping_version=state.version, reason=event.reason
                )
            )
            if event.vacancy is not None:
                cluster = state.clusters[member.cluster_id]
                remaining = tuple(
                    member_id for member_id in cluster.member_ids if member_id != member.member_id
                )
                state.put(
                    replace(
                        cluster,
                        member_ids=remaining,
                        vacancies=(*cluster.vacancies, event.vacancy),
                        expelled=cluster.expelled + _overlay_identity(member),
                    )
                )
        case m.MemberStopping():
            state.put(replace(member, phase=MemberPhase.STOPPING, stopping_version=state.version))
        case m.MemberNoticed():
            state.put(replace(member, notice=event.notice))
        case m.MemberReleased():
            state.put(replace(member, phase=MemberPhase.RELEASED))
            tenant_id = state.clusters[member.cluster_id].tenant_id
            _use(state, tenant_id, at_ms, lost=member.held)


def _apply_job(state: State, event: m.JobEvent, at_ms: int) -> None:
    if isinstance(event, m.JobSubmitted):
        state.put(event.job)
        return
    if isinstance(event, m.JobDeleted):
        state.remove_job(event.job_id)
        return
    job = state.jobs[event.job_id]
    match event:
        case m.JobStopRequested():
            state.put(replace(job, stop_requested=True))
        case m.JobOvertaken():
            state.put(replace(job, overtaken=job.overtaken + event.times))
        case m.JobPreempted():
            message = f"{job.message.removesuffix('.')}, and gives way {event.gave_way.to}."
            state.put(replace(job, message=message, gave_way=having_given_way(job, event.gave_way)))
        case m.JobNominated():
            state.put(replace(job, nomination=event.nomination))
        case m.JobPromised():
            state.put(replace(job, promise=event.promise))
        case m.JobRequeued():
            state.put(
                replace(
                    job,
                    status=JobStatus.PENDING,
                    message=event.message,
                    attempt_id=None,
                    not_before_ms=event.not_before_ms,
                    avoid=event.avoid,
                    formation_failures=event.formation_failures,
                    preemptions=job.preemptions + event.preempted,
                )
            )
        case m.JobEnded():
            state.put(
                replace(
                    job,
                    status=event.status,
                    message=event.message,
                    ended_at_ms=at_ms,
                    driver_exit_code=event.driver_exit_code,
                    promise=None,
                )
            )


def _apply_attempt(
    state: State,
    event: m.AttemptPlaced | m.AttemptStarted | m.AttemptTimedOut | m.AttemptEnded | m.LogCompleted,
    at_ms: int,
) -> None:
    if isinstance(event, m.AttemptPlaced):
        attempt = event.attempt
        job = state.jobs[attempt.job_id]
        state.put(attempt)
        state.put(
            replace(
                job,
                attempts=attempt.number,
                attempt_id=attempt.attempt_id,
                message=attempt.message,
                nomination=None,
                promise=None,
            )
        )
        state.put(replace(state.clusters[attempt.cluster_id], idle_since_ms=None))
        return
    attempt = state.attempts[event.attempt_id]
    match event:
        case m.AttemptStarted():
            job = state.jobs[attempt.job_id]
            state.put(replace(attempt, phase=AttemptPhase.RUNNING, started_at_ms=at_ms))
            started_ms = at_ms if job.started_at_ms is None else job.started_at_ms
            state.put(
                replace(
                    job,
                    status=JobStatus.RUNNING,
                    started_at_ms=started_ms,
                    starts=job.starts + 1,
                    message="Job is currently running.",
                )
            )
        case m.AttemptTimedOut():
            state.put(replace(attempt, timed_out_ms=at_ms, message=event.reason))
            state.put(replace(state.jobs[attempt.job_id], message=f"Stopping: it {event.reason}."))
        case m.AttemptEnded():
            # A log that the failed ground took with it will not come: waiting for it would hold the slot.
            lost_log = event.outcome is Outcome.GROUND
            state.put(
                replace(
                    attempt,
                    phase=AttemptPhase.ENDED,
                    outcome=event.outcome,
                    message=event.message,
                    ended_at_ms=at_ms,
                    log_complete=attempt.log_complete or lost_log,
                )
            )
            # The warmth of a cluster is counted from its last job.
            state.put(replace(state.clusters[attempt.cluster_id], phase_since_ms=at_ms))
        case m.LogCompleted():
            state.put(replace(attempt, log_bytes=event.log_bytes, log_complete=True))


def _apply_lease(
    state: State,
    event: m.LeaseStarted | m.LeaseEnded | m.LeaseSettled | m.StatementAccepted | m.StatementDisputed,
) -> None:
    match event:
        case m.LeaseStarted():
            state.put(event.lease)
        case m.LeaseEnded():
            lease = state.leases[event.lease_id]
            length_ms = event.ended_ms - lease.started_ms
            tenant = state.tenants[lease.tenant_id]
            gpus = sum(model != CPU_MODEL for model in lease.device_models)
            month = after_use(tenant.month, gpus, lease.started_ms, event.ended_ms)
            state.put(replace(tenant, month=month))
            state.put(
                replace(
                    lease, ended_ms=event.ended_ms, billed_offset_ms=min(lease.billed_offset_ms, length_ms)
                )
            )
        case m.LeaseSettled():
            lease = state.leases[event.lease_id]
            state.put(replace(lease, settled=True, disputed_ms=event.disputed_ms))
        case m.StatementAccepted():
            statement = event.statement
            lease = state.leases[statement.lease_id]
            state.put(statement)
            state.put(
                replace(
                    lease,
                    next_sequence=statement.sequence + 1,
                    stated_offset_ms=statement.end_offset_ms,
                    billed_offset_ms=event.billed_offset_ms,
                    final_stated=statement.final,
                )
            )
        case m.StatementDisputed():
            lease = state.leases[event.lease_id]
            state.put(replace(lease, next_sequence=event.sequence + 1))


def _apply_receipt(state: State, event: m.ReceiptSealed | m.ReceiptSigned | m.ReceiptPosted) -> None:
    match event:
        case m.ReceiptSealed():
            receipt = event.receipt
            lease = state.leases[receipt.lease_id]
            tenant = state.tenants[lease.tenant_id]
            sealed_ms = receipt.end_ms - lease.started_ms
            price = lease.price_until(sealed_ms) - lease.price_until(lease.sealed_offset_ms)
            month = after_spending(tenant.month, price, receipt.start_ms)
            state.put(replace(tenant, month=month))
            state.put(receipt)
            state.put(
                replace(
                    lease,
                    sealed_offset_ms=sealed_ms,
                    next_receipt=lease.next_receipt + 1,
                )
            )
        case m.ReceiptSigned():
            receipt = state.receipts[event.receipt_id]
            state.put(replace(receipt, envelope=event.envelope, payload_sha256=event.payload_sha256))
        case m.ReceiptPosted():
            state.put(replace(state.receipts[event.receipt_id], transfer_id=event.transfer_id))


def _apply_reservation(state: State, event: m.ReservationEvent, at_ms: int) -> None:
    match event:
        case m.ReservationCreated():
            state.put(event.reservation)
        case m.ReservationEnded():
            known = state.reservations[event.reservation_id]
            state.put(replace(known, phase=event.phase, ended_at_ms=at_ms))
        case m.ReservationForgotten():
            state.remove_reservation(event.reservation_id)
