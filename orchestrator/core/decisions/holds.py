"""Holds on workers and their devices: placing, lifting, what they take away, and those that time places and lifts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.core import messages as m
from orchestrator.core.clusters import WANTED
from orchestrator.core.decisions.clusters import after_worker_gone, fail_member
from orchestrator.core.decisions.devices import check_liftable
from orchestrator.core.decisions.fleet import find_worker
from orchestrator.core.decisions.leaving import close_idle
from orchestrator.core.decisions.metering import end_leases_of_mistrusted
from orchestrator.core.errors import not_found
from orchestrator.core.supply.fleet import Liveness
from orchestrator.core.supply.holds import MISTRUSTED, DeviceHold, Hold, HoldKind
from orchestrator.core.supply.terms import MINUTE_MS, MONDAY_MS, WEEK_MINUTES, WEEK_MS, Terms
from orchestrator.core.watched import NEVER_MS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.core.state import State
    from orchestrator.core.supply.fleet import Worker

WANTED_BACK = frozenset({HoldKind.RECLAIMED, HoldKind.BUSY})
"""Holds by which an owner wants his devices, not only nothing new on them."""

CLOSED_NOW = "outside the hours that its owner offers"


def place_hold(state: State, command: m.PlaceHold, at_ms: int) -> m.Decision:
    """Give a worker nothing new; the same words again change nothing."""
    worker = find_worker(state, command.worker_id)
    known = worker.hold(command.kind)
    if known is not None and known.reason == command.reason:
        return m.Decision((), worker.worker_id)
    hold = Hold(command.kind, command.reason, at_ms if known is None else known.since_ms)
    return m.Decision((m.HoldPlaced(worker.worker_id, hold),), worker.worker_id)


def lift_hold(state: State, command: m.LiftHold) -> m.Decision:
    """End a hold; without one nothing changes. Notices that were given with it stay: their jobs may be leaving."""
    worker = find_worker(state, command.worker_id)
    if worker.hold(command.kind) is None:
        return m.Decision((), worker.worker_id)
    if command.kind is HoldKind.QUARANTINED:
        check_liftable(state, worker)
    return m.Decision((m.HoldLifted(worker.worker_id, command.kind),), worker.worker_id)


def hold_device(state: State, command: m.HoldDevice, at_ms: int) -> m.Decision:
    """Cordon a device with the evidence against it."""
    worker = find_worker(state, command.worker_id)
    if all(device.device_id != command.device_id for device in worker.inventory.devices):
        raise not_found("device", command.device_id)
    if any(hold.device_id == command.device_id for hold in worker.device_holds):
        return m.Decision((), worker.worker_id)
    hold = DeviceHold(command.device_id, command.reason, at_ms)
    return m.Decision((m.DeviceHeld(worker.worker_id, hold),), worker.worker_id)


def release_device(state: State, command: m.ReleaseDevice) -> m.Decision:
    """Let a cordoned device be used again."""
    worker = find_worker(state, command.worker_id)
    if all(hold.device_id != command.device_id for hold in worker.device_holds):
        return m.Decision((), worker.worker_id)
    return m.Decision((m.DeviceReleased(worker.worker_id, command.device_id),), worker.worker_id)


def override_class(state: State, command: m.OverrideClass) -> m.Decision:
    """An operator's word on the class; members that run keep the class they were placed under."""
    worker = find_worker(state, command.worker_id)
    if worker.class_override == command.override:
        return m.Decision((), worker.worker_id)
    return m.Decision((m.ClassOverridden(worker.worker_id, command.override),), worker.worker_id)


# ---------------------------------------------------------------- consequences


def after_hold_placed(state: State, event: m.HoldPlaced, at_ms: int) -> Iterator[m.Event]:
    """Mistrust takes what runs and ends what is owed; an owner who wants his devices gets the idle ones at once.

    Every other hold leaves what is there: a warm cluster of the worker gets no job and ends with its idle time.
    """
    if event.hold.kind in MISTRUSTED:
        yield from after_worker_gone(state, event.worker_id, event.hold.reason)
        yield from end_leases_of_mistrusted(state, event.worker_id, at_ms)
    elif event.hold.kind in WANTED_BACK:
        yield from close_idle(state, event.worker_id, event.hold.reason)


def after_device_held(state: State, event: m.DeviceHeld) -> Iterator[m.Event]:
    """Work on a failing device is moved at once, with the evidence as its reason."""
    for member_id in list(state.members_on.get(event.worker_id, ())):
        member = state.members[member_id]
        if member.phase in WANTED and event.hold.device_id in member.device_ids:
            reason = f"device {event.hold.device_id} is cordoned: {event.hold.reason}"
            yield fail_member(state, member, reason)


# ---------------------------------------------------------------- time


def tick_holds(state: State, at_ms: int) -> Iterator[m.Event]:
    """Place and lift what time does: ends of holds, owners' hours."""
    for worker_id, due_ms in state.watched.workers_due_ms.items():
        if due_ms <= at_ms:
            yield from _tick_worker(state, state.workers[worker_id], at_ms)


def _tick_worker(state: State, worker: Worker, at_ms: int) -> Iterator[m.Event]:
    next_ms = NEVER_MS
    for hold in worker.holds:
        if hold.until_ms is not None and at_ms >= hold.until_ms:
            yield m.HoldLifted(worker.worker_id, hold.kind)
        elif hold.until_ms is not None:
            next_ms = min(next_ms, hold.until_ms)
    if worker.liveness is not Liveness.LEFT:
        open_ms = worker.terms.open_for_ms(at_ms)
        held = worker.hold(HoldKind.SCHEDULE) is not None
        if open_ms == 0:
            next_ms = min(next_ms, at_ms + opens_in_ms(worker.terms, at_ms))
            if not held:
                yield m.HoldPlaced(worker.worker_id, Hold(HoldKind.SCHEDULE, CLOSED_NOW, at_ms))
        else:
            next_ms = next_ms if open_ms is None else min(next_ms, at_ms + open_ms)
            if held:
                yield m.HoldLifted(worker.worker_id, HoldKind.SCHEDULE)
    state.watched.workers_due_ms[worker.worker_id] = next_ms


def opens_in_ms(terms: Terms, at_ms: int) -> int:
    """How long until the next of the owner's windows begins; for a moment outside all of them."""
    into_ms = (at_ms - MONDAY_MS) % WEEK_MS
    minute = into_ms // MINUTE_MS
    ahead = min((window.start_minute - minute) % WEEK_MINUTES for window in terms.schedule)
    return ahead * MINUTE_MS - into_ms % MINUTE_MS
