"""Reservations: agreeing on them, ending them, and jobs that name one."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

from orchestrator.core import messages as m
from orchestrator.core.decisions.operators import HINTED_MAX, check_name
from orchestrator.core.errors import NAME_CHARACTERS_MAX, RefusalCode, RefusedError, invalid, not_found
from orchestrator.core.ids import ReservationId
from orchestrator.core.instants import limit_words, utc_words
from orchestrator.core.scheduling.filters import describe
from orchestrator.core.scheduling.promising import shortfall
from orchestrator.core.supply.catalogue import MODELS, nearest
from orchestrator.core.supply.evidence import EVIDENCE_RANK
from orchestrator.core.supply.fleet import ISOLATION_RANK
from orchestrator.core.tenancy.quotas import QuotaRequest, never
from orchestrator.core.tenancy.reservations import (
    Reservation,
    ReservationPhase,
    ReservationPolicy,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.core.ids import TenantId
    from orchestrator.core.jobs import JobRequest, Requirements
    from orchestrator.core.state import State


def create_reservation(state: State, command: m.CreateReservation, at_ms: int) -> m.Decision:
    """Promise machines. The same name with the same content is the same reservation; other content is refused.

    Raises RefusedError where there is too little to promise, beside all that is promised already.
    """
    check_name("name", command.name)
    known = state.bookings.named(command.tenant_id, command.name)
    if known is not None:
        if known.request_sha256 == command.request_sha256:
            return m.Decision((), known.reservation_id)
        message = f"the name {command.name!r} is that of another of your reservations ({known.window}); choose a new one"
        raise RefusedError(RefusalCode.ALREADY_EXISTS, message, "name")
    made = Reservation(
        reservation_id=command.reservation_id,
        tenant_id=command.tenant_id,
        name=command.name,
        requirements=command.requirements,
        from_ms=command.from_ms,
        until_ms=command.until_ms,
        created_at_ms=at_ms,
        request_sha256=command.request_sha256,
    )
    _check_window(state.policies.reservations, made, at_ms)
    _check_tenant(state, made)
    if len(state.bookings.booked) >= state.policies.reservations.in_all_max:
        message = f"this network has {len(state.bookings.booked)} reservations, as many as it takes; try again later"
        raise RefusedError(RefusalCode.EXHAUSTED, message)
    missing = shortfall(state, made, at_ms)
    if missing is not None:
        raise RefusedError(RefusalCode.CONFLICT, f"{describe(made.requirements)} {made.window}: {missing}")
    return m.Decision((m.ReservationCreated(made), *_forgotten(state, made.tenant_id)), made.reservation_id)


def _forgotten(state: State, tenant_id: TenantId) -> Iterator[m.Event]:
    """The oldest of a tenant's that have ended, where more are kept than anybody looks at."""
    own = (one for one in state.reservations.values() if one.tenant_id == tenant_id and not one.booked)
    ended = sorted(own, key=lambda one: (one.created_at_ms, one.reservation_id))
    for one in ended[: max(0, len(ended) - state.policies.reservations.ended_of_tenant_max)]:
        yield m.ReservationForgotten(one.reservation_id)


def _check_window(policy: ReservationPolicy, made: Reservation, at_ms: int) -> None:
    if made.from_ms < at_ms - policy.late_ms:
        message = (
            f"from {utc_words(made.from_ms)} lies in the past: it is {utc_words(at_ms)} here;"
            " a reservation begins now or later"
        )
        raise invalid("from", message)
    if made.from_ms > at_ms + policy.ahead_ms_max:
        latest = utc_words(at_ms + policy.ahead_ms_max)
        message = (
            f"from {utc_words(made.from_ms)} is more than {limit_words(policy.ahead_ms_max)} ahead:"
            f" nobody knows who will be here then; {latest} is the latest"
        )
        raise invalid("from", message)
    length_ms = made.until_ms - made.from_ms
    if not policy.length_ms_min <= length_ms <= policy.length_ms_max:
        shortest, longest = limit_words(policy.length_ms_min), limit_words(policy.length_ms_max)
        message = (
            f"{limit_words(length_ms)} is no length for a reservation: it is from {shortest} to {longest}"
        )
        raise invalid("until", message)


def _check_tenant(state: State, made: Reservation) -> None:
    """What a tenant may have of it, by number and by its quota."""
    own, policy = state.bookings.of_tenant(made.tenant_id), state.policies.reservations
    if len(own) >= policy.of_tenant_max:
        message = f"you have {len(own)} reservations, as many as one tenant may have; cancel one, or wait for its end"
        raise RefusedError(RefusalCode.CONFLICT, message)
    quota = state.tenants[made.tenant_id].quota
    gpus = made.requirements.gpus
    refused = never(quota, QuotaRequest(gpus, gpus * (made.until_ms - made.from_ms)))
    if refused is None and quota.gpus is not None:
        together = [one for one in own if one.from_ms < made.until_ms and made.from_ms < one.until_ms]
        others = sum(one.requirements.gpus for one in together)
        if others + gpus > quota.gpus:
            refused = (
                f"the quota of {quota.gpus} GPUs at once leaves {max(0, quota.gpus - others)}, as your other"
                f" reservations of that time have {others}, and {gpus} are asked for"
            )
    if refused is not None:
        raise RefusedError(RefusalCode.CONFLICT, refused)


def cancel_reservation(state: State, command: m.CancelReservation) -> m.Decision:
    """End it; one that has ended already stays as it is. The answer is how it has ended."""
    known = state.reservations.get(command.reservation_id)
    if known is None:
        raise not_found("reservation", command.reservation_id)
    if not known.booked:
        return m.Decision((), known.phase)
    ended = m.ReservationEnded(known.reservation_id, ReservationPhase.CANCELLED)
    return m.Decision((ended,), ended.phase)


def tick_reservations(state: State, at_ms: int) -> Iterator[m.Event]:
    """End those whose window is over or for which nobody came, and forget what ended long ago.

    Whose jobs wait for its machines has come, even if none of them has any yet.
    """
    for reservation_id in state.bookings.due(at_ms):
        one = state.reservations[reservation_id]
        if not one.booked:
            yield m.ReservationForgotten(reservation_id)
        elif at_ms >= one.until_ms:
            yield m.ReservationEnded(reservation_id, ReservationPhase.OVER)
        elif reservation_id not in state.bookings.queues:
            yield m.ReservationEnded(reservation_id, ReservationPhase.UNUSED)


# ------------------------------------------------------------ jobs


def reserved(state: State, command: m.SubmitJob) -> JobRequest:
    """The request with the reservation that it names; refused where there is none, or it does not hold the job."""
    if not command.reservation:
        return command.request
    one = find_booked(state, command.tenant_id, command.reservation, "orch.reservation")
    fault = contradiction(command.request.requirements, one.requirements)
    if fault is not None:
        key, words = fault
        raise invalid(key, f"{words} in reservation {one.name!r} of {describe(one.requirements)}")
    return replace(command.request, reservation_id=one.reservation_id)


def find_booked(state: State, tenant_id: TenantId, name: str, field: str = "reservation") -> Reservation:
    """A tenant's reservation by name or id, if it has not ended; the refusal names the nearest of its own."""
    found = state.bookings.named(tenant_id, name)
    if found is not None:
        return found
    shown = name[:NAME_CHARACTERS_MAX]
    ended = state.reservations.get(ReservationId(name))
    if ended is not None and ended.tenant_id == tenant_id and ended.ended_at_ms is not None:
        message = f"reservation {shown!r} has ended ({ended.phase}) at {utc_words(ended.ended_at_ms)}"
        raise RefusedError(RefusalCode.NOT_FOUND, message, field)
    names = [one.name for one in islice(state.bookings.of_tenant(tenant_id), HINTED_MAX)]
    if not names:
        message = f"no reservation named {shown!r}: you have none; `orch reserve create` makes one"
    else:
        message = f"no reservation named {shown!r}: did you mean {nearest(shown, names)!r}?"
    raise RefusedError(RefusalCode.NOT_FOUND, message, field)


def contradiction(wanted: Requirements, kept: Requirements) -> tuple[str, str] | None:
    """What a job asks for that its reservation's machines need not have: the key, and what is wrong with it."""
    return next((fault for fault in _faults(wanted, kept)), None)


def _faults(wanted: Requirements, kept: Requirements) -> Iterator[tuple[str, str]]:
    if (wanted.gpus == 0) != (kept.gpus == 0):
        yield "orch.gpus", "GPUs and CPU work do not go together"
    if wanted.gpus > kept.gpus:
        yield "orch.gpus", f"orch.gpus={wanted.gpus} is more than there is"
    each = wanted.gpus if wanted.one_machine else wanted.gpus_per_worker
    if each > 1 and each > kept.gpus_per_worker:
        key = "entrypoint_num_gpus" if wanted.one_machine else "orch.gpus_per_worker"
        yield key, f"{each} GPUs on one machine are not promised: orch.gpus_per_worker is not that large"
    for key, asked, promised in _like(wanted, kept):
        if asked and asked != promised:
            yield (
                key,
                f"{key}={asked} is not promised: {f'it is {promised}' if promised else 'nothing of it is'}",
            )
    model = None if kept.gpu_model is None else MODELS[kept.gpu_model]
    known_gb = max(kept.min_gpu_memory_gb, 0 if model is None else model.memory_gb)
    least = (
        ("orch.min_gpu_memory_gb", wanted.min_gpu_memory_gb, known_gb),
        ("orch.min_compute_capability", wanted.min_compute_capability, kept.min_compute_capability),
        ("orch.min_reliability", wanted.min_reliability_bp, kept.min_reliability_bp),
        ("orch.min_bandwidth_mbps", wanted.min_bandwidth_mbps, kept.min_bandwidth_mbps),
        ("orch.evidence", EVIDENCE_RANK[wanted.min_evidence], EVIDENCE_RANK[kept.min_evidence]),
        ("orch.isolation", ISOLATION_RANK[wanted.isolation], ISOLATION_RANK[kept.isolation]),
        ("orch.tier", int(wanted.committed), int(kept.committed)),
        ("orch.runtime", bool(wanted.runtime), bool(kept.runtime) or ISOLATION_RANK[kept.isolation] > 0),
    )
    for key, asked_least, promised_least in least:
        if asked_least > promised_least:
            yield key, f"{key} asks for more than is promised"
    for key, asked_most, promised_most in (
        ("orch.max_price", wanted.max_price, kept.max_price),
        ("orch.max_rtt_ms", wanted.max_rtt_ms, kept.max_rtt_ms),
    ):
        if asked_most and not 0 < promised_most <= asked_most:
            yield key, f"{key} asks for less than is promised"


def _like(wanted: Requirements, kept: Requirements) -> Iterator[tuple[str, str, str]]:
    """What has to be the same, where the job says anything of it."""
    yield "orch.gpu_model", wanted.gpu_model or "", kept.gpu_model or ""
    if wanted.gpus:
        yield "orch.hardware_class", wanted.hardware_class or "", kept.hardware_class or ""
    yield "orch.region", wanted.region, kept.region
