"""``handle(state, command, now)``: from a command to events and everything that follows from them.

``decide`` reads and answers, ``apply`` changes, ``consequences`` names what an event makes necessary; ``handle`` runs
them to a fixed point. A refusal happens before anything is applied, so a refused command changes nothing.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING, assert_never

from orchestrator.core import messages as m
from orchestrator.core.apply import apply
from orchestrator.core.clusters import WANTED, head_of
from orchestrator.core.decisions import (
    alerts,
    clusters,
    devices,
    fleet,
    holds,
    jobs,
    leaving,
    limits,
    liveness,
    metering,
    newcomers,
    operators,
    plans,
    reliability,
    reservations,
    spares,
)
from orchestrator.core.errors import RefusalCode, RefusedError, UndecidedError
from orchestrator.core.ids import AttemptId, ClusterId, JobId, LeaseId, MemberId, ReceiptId, WorkerId
from orchestrator.core.jobs import AttemptPhase, Job
from orchestrator.core.supply.fleet import Liveness

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from orchestrator.core.ids import Now
    from orchestrator.core.state import State

REQUEST_LIFE_MS = 24 * 3_600_000
"""Clients repeat a request within minutes; a day covers a laptop that slept."""

CONSEQUENCES_MAX = 100_000
"""No command leads to more events; reaching it means that rules feed each other, which must not be committed."""


def handle(state: State, command: m.Command, now: Now) -> m.Decision:
    """Decide, apply, and follow up until nothing follows.

    Raises RefusedError, or UndecidedError for a fault of ours, with the state unchanged; whatever else it raises has left
    the state in between.
    """
    at_ms = state.time_ms(now)
    applied: list[m.Event] = []
    if isinstance(command, m.ObserveWorker):
        _observe(state, command, at_ms, applied)
        return m.Decision(tuple(applied), len(applied))
    if isinstance(command, m.Tick):
        for due in (
            liveness.tick_liveness(state, now, at_ms),
            holds.tick_holds(state, at_ms),
            newcomers.tick_newcomers(state, at_ms),
            fleet.tick_outdated(state, at_ms),
            leaving.tick_notices(state, at_ms),
            spares.tick_spares(state, at_ms),
            limits.tick_limits(state, at_ms),
            reservations.tick_reservations(state, at_ms),
            clusters.tick_clusters(state, at_ms),
            metering.tick_leases(state, at_ms),
            _forget_requests(state, at_ms),
        ):
            for event in list(due):
                if not _overtaken(state, event):
                    _settle(state, (event,), at_ms, applied)
        return m.Decision(tuple(applied), len(applied))
    try:
        decision = _decide(state, command, now, at_ms)
    except RefusedError:
        raise
    except Exception as error:
        raise UndecidedError from error
    _settle(state, decision.events, at_ms, applied)
    return m.Decision(tuple(applied), decision.result)


def _settle(state: State, events: Iterable[m.Event], at_ms: int, applied: list[m.Event]) -> None:
    """Apply events in order; what follows from one comes before the next."""
    waiting = deque(events)
    while waiting:
        event = waiting.popleft()
        if _overtaken(state, event):
            continue
        apply(state, event, at_ms)
        applied.append(event)
        if len(applied) > CONSEQUENCES_MAX:
            raise AssertionError(f"consequences do not end: {type(event).__name__}")
        waiting.extendleft(reversed(list(consequences(state, event, at_ms))))


def _overtaken(state: State, event: m.Event) -> bool:
    """Whether an event that was yielded beside others has become untrue through what followed from them."""
    match event:
        case m.HoldPlaced():
            return state.workers[event.worker_id].hold(event.hold.kind) == event.hold
        case m.HoldLifted():
            return state.workers[event.worker_id].hold(event.kind) is None
        case m.LivenessChanged():
            liveness = state.workers[event.worker_id].liveness
            silent = event.liveness in (Liveness.SUSPECT, Liveness.LOST)
            return liveness is event.liveness or (liveness is Liveness.LEFT and silent)
        case m.MemberFailed() | m.MemberStopping():
            return state.members[event.member_id].phase in ("stopping", "released")
        case m.MemberNoticed():
            return state.members[event.member_id].phase not in WANTED
        case m.MemberReleased():
            return state.members[event.member_id].phase == "released"
        case m.ClusterClosing():
            return state.clusters[event.cluster_id].phase in ("closing", "closed")
        case m.ClusterClosed():
            return state.clusters[event.cluster_id].phase == "closed"
        case m.ClusterReady():
            return state.clusters[event.cluster_id].phase != "joining"
        case m.ClusterAdvanced():
            return state.clusters[event.cluster_id].phase in (event.phase, "ready", "closing", "closed")
        case m.AttemptTimedOut() | m.AttemptEnded():
            return state.attempts[event.attempt_id].phase is AttemptPhase.ENDED
        case m.LogCompleted():
            return state.attempts[event.attempt_id].log_complete
        case m.JobEnded():
            return state.jobs[event.job_id].status.terminal
        case m.LeaseEnded():
            return state.leases[event.lease_id].ended_ms is not None
        case m.LeaseSettled():
            return state.leases[event.lease_id].settled
        case m.ReceiptSealed():
            return event.receipt.receipt_id in state.receipts
        case _:
            return False


def _observe(state: State, command: m.ObserveWorker, at_ms: int, applied: list[m.Event]) -> None:
    """Members first, then the cluster as its head sees it, then the attempts: each on what the former led to."""
    fleet.find_worker(state, command.worker_id)
    _settle(state, list(clusters.observe_worker(state, command)), at_ms, applied)
    for report in command.members:
        member = state.members.get(report.member_id)
        if member is None or member.worker_id != command.worker_id:
            continue
        if report.generation > state.clusters[member.cluster_id].generation:
            continue  # nobody but this control plane hands out generations
        # Only the agent beside the head speaks for attempts; another supplier's member has no say in them.
        for attempt in report.attempts if head_of([member]) is not None else ():
            _settle(state, list(jobs.observe_attempt(state, attempt, member.cluster_id)), at_ms, applied)
        _settle(state, list(clusters.observe_cluster(state, report, at_ms)), at_ms, applied)


def _decide(state: State, command: m.Command, now: Now, at_ms: int) -> m.Decision:
    match command:
        case m.StartControl():
            liveness.start_heartbeats(state, now)
            control = state.control
            network_id = control.network_id or command.network_id
            started = m.ControlStarted(network_id, control.term + 1, now.monotonic_ms, now.boot_id)
            return m.Decision((started,), control.term + 1)
        case m.PassTerm():
            return fleet.pass_term(state, command)
        case m.CreateTenant():
            return _once(
                state, command, command.request_id, lambda: operators.create_tenant(state, command, at_ms)
            )
        case m.SetTenant():
            return operators.set_tenant(state, command)
        case m.CreateToken():
            made = partial(operators.create_token, state, command, at_ms)
            return _once(state, command, command.request_id, made)
        case m.KeepAdminToken():
            return operators.keep_admin_token(state, command, at_ms)
        case m.RevokeToken():
            return operators.revoke_token(state, command)
        case (
            m.JoinWorker()
            | m.RecoverWorker()
            | m.RecordCertificate()
            | m.ConnectWorker()
            | m.SetTerms()
            | m.PlaceHold()
            | m.LiftHold()
            | m.ReclaimWorker()
            | m.HoldDevice()
            | m.ReleaseDevice()
            | m.OverrideClass()
            | m.SetLeasePolicy()
            | m.SettleAlert()
            | m.DrainWorker()
            | m.LeaveWorker()
        ):
            return _decide_worker(state, command, now, at_ms)
        case m.CreateReservation() | m.CancelReservation():
            return _decide_reservation(state, command, at_ms)
        case m.SubmitJob():
            return jobs.submit_job(state, command, at_ms)
        case m.StopJob():
            return jobs.stop_job(state, command)
        case m.DeleteJob():
            return jobs.delete_job(state, command)
        case m.CompleteLog():
            return jobs.complete_log(state, command)
        case m.AcceptStatement():
            return metering.accept_statement(state, command, at_ms)
        case m.RecordSignature():
            known = state.receipts.get(command.receipt_id)
            if known is None or known.envelope:
                return m.Decision()
            signed = m.ReceiptSigned(command.receipt_id, command.envelope, command.payload_sha256)
            return m.Decision((signed,))
        case m.RecordPosting():
            known = state.receipts.get(command.receipt_id)
            if known is None or known.transfer_id:
                return m.Decision()
            return m.Decision((m.ReceiptPosted(command.receipt_id, command.transfer_id),))
        case m.ApplyPlan():
            return plans.apply_plan(state, command, at_ms)
        case m.ObserveWorker() | m.Tick():
            raise AssertionError("handled above")
        case _:
            assert_never(command)


def _decide_reservation(state: State, command: m.ReservationCommand, at_ms: int) -> m.Decision:
    match command:
        case m.CreateReservation():
            made = partial(reservations.create_reservation, state, command, at_ms)
            return _once(state, command, command.request_id, made)
        case m.CancelReservation():
            return reservations.cancel_reservation(state, command)
        case _:
            assert_never(command)


def _decide_worker(state: State, command: m.WorkerCommand, now: Now, at_ms: int) -> m.Decision:
    match command:
        case m.JoinWorker():
            return fleet.join_worker(state, command, at_ms)
        case m.RecoverWorker():
            return fleet.recover_worker(state, command, at_ms)
        case m.RecordCertificate():
            return fleet.record_certificate(state, command)
        case m.ConnectWorker():
            return fleet.connect_worker(state, command, now, at_ms)
        case m.SetTerms():
            return fleet.set_terms(state, command)
        case m.PlaceHold():
            return holds.place_hold(state, command, at_ms)
        case m.LiftHold():
            return holds.lift_hold(state, command)
        case m.ReclaimWorker():
            return leaving.reclaim_worker(state, command, at_ms)
        case m.HoldDevice():
            return holds.hold_device(state, command, at_ms)
        case m.ReleaseDevice():
            return holds.release_device(state, command)
        case m.OverrideClass():
            return holds.override_class(state, command)
        case m.SetLeasePolicy():
            return liveness.set_lease_policy(state, command)
        case m.SettleAlert():
            return alerts.settle_alert(state, command)
        case m.DrainWorker():
            return fleet.drain_worker(state, command)
        case m.LeaveWorker():
            return fleet.leave_worker(state, command, at_ms)
        case _:
            assert_never(command)


def _once(
    state: State,
    command: m.CreateTenant | m.CreateToken | m.CreateReservation,
    request_id: str,
    make: Callable[[], m.Decision],
) -> m.Decision:
    """Answer a repeated request as before; refuse its id for another one."""
    if not request_id:
        return make()
    key = f"{type(command).__name__}/{request_id}"
    content = request_content(command)
    known = state.requests.get(key)
    if known is not None:
        if known.request_sha256 == content:
            return m.Decision((), known.result_id)
        raise RefusedError(RefusalCode.CONFLICT, "this request_id was used for another request", "request_id")
    decision = make()
    return m.Decision(
        (*decision.events, m.RequestRecorded(key, content, str(decision.result))), decision.result
    )


def request_content(command: m.CreateTenant | m.CreateToken | m.CreateReservation) -> str:
    """What must be equal for a repetition: the caller's words, not the ids minted for them."""
    match command:
        case m.CreateTenant():
            return command.name
        case m.CreateToken():
            return f"{command.role}/{command.subject}/{command.ttl_ms}/{command.head_host}"
        case m.CreateReservation():
            return f"{command.tenant_id}/{command.name}/{command.request_sha256}"


def _forget_requests(state: State, at_ms: int) -> Iterator[m.Event]:
    for record in state.requests.values():
        if at_ms - record.at_ms <= REQUEST_LIFE_MS:
            continue
        yield m.RequestForgotten(record.key)


def consequences(state: State, event: m.Event, at_ms: int) -> Iterator[m.Event]:
    """What an applied event makes necessary."""
    yield from alerts.after(state, event, at_ms)
    yield from reliability.after(state, event, at_ms)
    yield from devices.settle_claims(state, at_ms)
    yield from _after_worker_change(state, event, at_ms)
    match event:
        case m.MemberNoticed():
            yield from leaving.after_noticed(state, event.member_id)
        case m.MemberPrepared() | m.MemberUp() | m.MemberReplaced():
            cluster_id = (
                event.cluster_id if isinstance(event, m.MemberReplaced) else _cluster_of(state, event)
            )
            yield from clusters.after_member_change(state, cluster_id)
        case m.MemberFailed():
            yield from clusters.after_member_failed(state, event)
        case m.MemberReleased():
            yield from clusters.after_released(state, _cluster_of(state, event))
        case m.ClusterClosing():
            yield from clusters.after_closing(state, event.cluster_id)
        case m.ClusterClosed():
            yield from clusters.complete_logs(state, event.cluster_id)
        case m.JobStopRequested():
            yield from jobs.after_stop_requested(state, event.job_id)
            yield from spares.after_job_over(state, event.job_id)
        case m.JobEnded():
            yield from spares.after_job_over(state, event.job_id)
        case m.AttemptPlaced():
            yield from spares.after_placed(state, event.attempt)
        case m.AttemptStarted():
            yield from metering.after_attempt_started(state, event.attempt_id, at_ms)
        case m.AttemptEnded():
            yield from metering.after_attempt_ended(state, event.attempt_id, at_ms)
            yield from jobs.after_attempt_ended(state, event, at_ms)
            yield from leaving.after_attempt_ended(state, event.attempt_id)
            yield from clusters.after_log(state, state.attempts[event.attempt_id].cluster_id)
        case m.LogCompleted():
            yield from clusters.after_log(state, state.attempts[event.attempt_id].cluster_id)
        case m.StatementAccepted():
            yield from metering.after_lease_change(state, event.statement.lease_id, at_ms)
        case m.LeaseEnded():
            yield from metering.after_lease_change(state, event.lease_id, at_ms)
        case m.LeaseSettled():
            yield from metering.after_settled(state, event.lease_id, at_ms)
        case _:
            pass


def _after_worker_change(state: State, event: m.Event, at_ms: int) -> Iterator[m.Event]:
    """What a change of a worker itself makes necessary."""
    match event:
        case m.LivenessChanged():
            if event.liveness is Liveness.LOST:
                yield from metering.end_leases_of_lost(state, event)
                yield from clusters.after_worker_gone(state, event.worker_id, "the worker was lost")
            elif event.liveness is Liveness.LEFT:
                yield from clusters.after_worker_gone(state, event.worker_id, "the worker left")
            elif event.liveness is Liveness.SUSPECT:
                yield from liveness.after_suspect(state, event, at_ms)
            else:
                yield from liveness.after_return(state, event.worker_id)
        case m.WorkerDrained():
            yield from clusters.after_worker_gone(state, event.worker_id, "the supplier took the worker back")
        case m.InventoryChanged():
            yield from newcomers.after_inventory_changed(state, event.worker_id)
            yield from clusters.after_inventory_changed(state, event.worker_id)
        case m.HoldPlaced():
            yield from holds.after_hold_placed(state, event, at_ms)
        case m.DeviceHeld():
            yield from holds.after_device_held(state, event)
        case _:
            pass


def _cluster_of(state: State, event: m.MemberPrepared | m.MemberUp | m.MemberReleased) -> ClusterId:
    return state.members[event.member_id].cluster_id


# ---------------------------------------------------------------- effects and needs


def pending_effects(state: State) -> list[m.Effect]:
    """Every effect that has no recorded outcome: what a process does first after its start, and again periodically."""
    workers = (worker_id for worker_id, members in state.members_on.items() if members)
    return [
        *(m.SyncWorker(worker_id) for worker_id in workers),
        *(m.ShutOut(worker_id) for worker_id in state.watched.shut_out),
        *alerts.alert_effects(state, state.alerting),
        *receipt_effects(state),
    ]


def receipt_effects(state: State) -> list[m.Effect]:
    """Receipts to sign, in order within each lease because each names its predecessor's hash; and those to post."""
    effects: list[m.Effect] = []
    leases: set[str] = set()
    for receipt_id in state.unsigned:
        lease_id = state.receipts[receipt_id].lease_id
        if lease_id in leases:
            continue
        leases.add(lease_id)
        first = next(one for one in state.receipts_of[lease_id] if not state.receipts[one].envelope)
        effects.append(m.SignReceipt(ReceiptId(first)))
    effects.extend(m.PostReceipt(ReceiptId(receipt_id)) for receipt_id in state.unposted)
    return effects


def effects_of(state: State, touched: Iterable[tuple[str, str]]) -> list[m.Effect]:
    """The effects that a batch of changes made due."""
    workers: dict[WorkerId, None] = {}
    effects: list[m.Effect] = []
    receipts = False
    for table, key in touched:
        if table == "workers":
            effects.extend(worker_effects(state, WorkerId(key)))
        elif table == "members":
            member = state.members[MemberId(key)]
            workers[member.worker_id] = None
            if member.notice is not None:
                _add_workers_of(state, member.cluster_id, workers)
        elif table == "clusters":
            _add_workers_of(state, ClusterId(key), workers)
        elif table == "attempts":
            _add_workers_of(state, state.attempts[AttemptId(key)].cluster_id, workers)
        elif table == "leases":
            workers[state.leases[LeaseId(key)].worker_id] = None
        elif table == "jobs":
            job: Job | None = state.jobs.get(JobId(key))
            if job is not None and job.attempt_id is not None and job.stop_requested:
                _add_workers_of(state, state.attempts[job.attempt_id].cluster_id, workers)
        elif table == "receipts":
            receipts = True
    effects.extend(m.SyncWorker(worker_id) for worker_id in workers)
    return effects + receipt_effects(state) if receipts else effects


def _add_workers_of(state: State, cluster_id: ClusterId, workers: dict[WorkerId, None]) -> None:
    members = state.cluster_members(state.clusters[cluster_id])
    workers.update((member.worker_id, None) for member in members)


def worker_effects(state: State, worker_id: WorkerId) -> list[m.Effect]:
    """What a change of a worker itself made due."""
    shut_out: list[m.Effect] = [m.ShutOut(worker_id)] if worker_id in state.watched.shut_out else []
    return shut_out + alerts.alert_effects(state, (worker_id,))
