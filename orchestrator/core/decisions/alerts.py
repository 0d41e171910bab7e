"""Alerts: what becomes a message to an owner, and when it is done with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.core import messages as m
from orchestrator.core.alerts import Alert, AlertKind
from orchestrator.core.decisions.fleet import find_worker, recoveries_left
from orchestrator.core.supply.fleet import Liveness
from orchestrator.core.supply.holds import HoldKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from orchestrator.core.ids import WorkerId
    from orchestrator.core.state import State
    from orchestrator.core.supply.fleet import Worker

ALERTED = {
    HoldKind.OPERATOR: AlertKind.CORDONED,
    HoldKind.QUARANTINED: AlertKind.CORDONED,
    HoldKind.CLONED: AlertKind.CORDONED,
    HoldKind.REVOKED: AlertKind.CORDONED,
    HoldKind.FLAPPING: AlertKind.CORDONED,
    HoldKind.OUTDATED: AlertKind.OUTDATED,
}
"""Holds that an owner is told of: those that are neither his own doing nor what he was told at joining."""


def settle_alert(state: State, command: m.SettleAlert) -> m.Decision:
    """Delivered, or given up; repeating it changes nothing."""
    worker = find_worker(state, command.worker_id)
    open_ones = {alert.number for alert in worker.alerts if not alert.settled}
    if command.number not in open_ones:
        return m.Decision((), worker.worker_id)
    return m.Decision((m.AlertSettled(worker.worker_id, command.number),), worker.worker_id)


def after(state: State, event: m.Event, at_ms: int) -> Iterator[m.Event]:
    """What an applied event gives its worker's owner to hear.

    At most one alert an event, yielded before anything else that follows, so that no two get one number.
    """
    match event:
        case m.LivenessChanged():
            yield from _after_liveness(state, event, at_ms)
        case m.HoldPlaced():
            kind = ALERTED.get(event.hold.kind)
            # The same hold in other words, or for longer, is no news.
            if kind is not None and event.hold.since_ms == at_ms:
                worker = state.workers[event.worker_id]
                yield raise_alert(worker, kind, f"{worker.name} gets nothing new: {event.hold.reason}", at_ms)
        case m.DeviceHeld():
            worker = state.workers[event.worker_id]
            text = f"device {event.hold.device_id} of {worker.name} gets nothing new: {event.hold.reason}"
            yield raise_alert(worker, AlertKind.CORDONED, text, at_ms)
        case m.WorkerRecovered():
            worker = state.workers[event.worker_id]
            left = recoveries_left(worker, state.policies.fleet, at_ms)
            text = (
                f"{worker.name}'s certificate had run out; it got another one, and may {left} more times soon"
            )
            yield raise_alert(worker, AlertKind.CERTIFICATE, text, at_ms)
        case _:
            pass


def _after_liveness(state: State, event: m.LivenessChanged, at_ms: int) -> Iterator[m.Event]:
    worker = state.workers[event.worker_id]
    if event.liveness is Liveness.LOST:
        silent_s = (at_ms - event.heard_ms) // 1_000
        text = (
            f"{worker.name} was not heard for {silent_s} s: what ran there has ended, and goes on elsewhere"
        )
        if event.excused:
            text += "; its whole zone fell silent at once, which is held against nobody"
        yield raise_alert(worker, AlertKind.OFFLINE, text, at_ms)
    elif event.liveness is Liveness.LIVE and _told_offline(worker):
        yield raise_alert(worker, AlertKind.RETURNED, f"{worker.name} is back", at_ms)


def _told_offline(worker: Worker) -> bool:
    """Whether the last word to the owner on whether it is there was that it is not."""
    words = [one.kind for one in worker.alerts if one.kind in (AlertKind.OFFLINE, AlertKind.RETURNED)]
    return bool(words) and words[-1] is AlertKind.OFFLINE


def raise_alert(worker: Worker, kind: AlertKind, text: str, at_ms: int) -> m.AlertRaised:
    """The worker's next alert; one that has nowhere to go is settled as it is raised."""
    number = worker.alert_count + 1
    return m.AlertRaised(
        worker.worker_id, Alert(number, kind, text, at_ms, settled=not worker.terms.webhook_url)
    )


def alert_effects(state: State, workers: Iterable[WorkerId]) -> list[m.Effect]:
    """Alerts of these workers that are still to be delivered, in order."""
    return [
        m.DeliverAlert(worker_id, alert.number)
        for worker_id in workers
        if worker_id in state.alerting
        for alert in state.workers[worker_id].alerts
        if not alert.settled
    ]
