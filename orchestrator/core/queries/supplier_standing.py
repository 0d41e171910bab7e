"""What events about one worker's standing leave of it: terms, holds, reliability, alerts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, assert_never

from orchestrator.core import messages as m
from orchestrator.core.alerts import kept_alerts
from orchestrator.core.supply.holds import DEVICE_HOLDS_GONE_MAX, DEVICE_HOLDS_MAX, HoldKind

if TYPE_CHECKING:
    from orchestrator.core.supply.fleet import Worker


def standing_after(worker: Worker, event: m.StandingEvent) -> Worker:
    """The worker as the event leaves it."""
    match event:
        case m.TermsChanged():
            return replace(worker, terms=event.terms)
        case m.HoldPlaced():
            others = tuple(hold for hold in worker.holds if hold.kind is not event.hold.kind)
            return replace(worker, holds=(*others, event.hold))
        case m.HoldLifted():
            # Which of the two is the copy nobody knows: whichever comes next begins the count anew.
            sessions = 0 if event.kind is HoldKind.CLONED else worker.sessions
            holds = tuple(hold for hold in worker.holds if hold.kind is not event.kind)
            return replace(worker, holds=holds, sessions=sessions)
        case m.DeviceHeld():
            kept = tuple(one for one in worker.device_holds if one.device_id != event.hold.device_id)
            return bounded(replace(worker, device_holds=(*kept, event.hold)))
        case m.DeviceReleased():
            kept = tuple(one for one in worker.device_holds if one.device_id != event.device_id)
            return replace(worker, device_holds=kept)
        case m.ClassOverridden():
            return _reclassified(worker, event)
        case m.LeasePolicyChanged():
            return replace(worker, lease_policy=event.policy)
        case m.ReliabilityChanged():
            return replace(worker, reliability=event.reliability)
        case m.Flapped():
            return replace(worker, flaps=event.flaps)
        case m.AlertRaised():
            alerts = kept_alerts((*worker.alerts, event.alert))
            return replace(worker, alerts=alerts, alert_count=event.alert.number)
        case m.AlertSettled():
            alerts = tuple(
                replace(alert, settled=True) if alert.number == event.number else alert
                for alert in worker.alerts
            )
            return replace(worker, alerts=kept_alerts(alerts))
        case _:
            assert_never(event)


def bounded(worker: Worker) -> Worker:
    """The worker without its oldest cordons of devices that are not there any more."""
    there = {device.device_id for device in worker.inventory.devices}
    gone = [hold for hold in worker.device_holds if hold.device_id not in there]
    room = min(DEVICE_HOLDS_GONE_MAX, DEVICE_HOLDS_MAX - (len(worker.device_holds) - len(gone)))
    if len(gone) <= room:
        return worker
    dropped = {hold.device_id for hold in gone[: len(gone) - max(0, room)]}
    kept = tuple(hold for hold in worker.device_holds if hold.device_id not in dropped)
    return replace(worker, device_holds=kept)


def _reclassified(worker: Worker, event: m.ClassOverridden) -> Worker:
    """Without an override the next inventory brings the class that the rule derives."""
    if event.override is None:
        return replace(worker, class_override=None)
    inventory = replace(worker.inventory, hardware_class=event.override.hardware_class)
    return replace(worker, class_override=event.override, inventory=inventory)
