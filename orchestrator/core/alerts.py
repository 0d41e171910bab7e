"""Alerts: what an owner is told about his worker without asking."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

ALERTS_KEPT = 10
"""Of each worker: what an owner looks back on, of those that are settled; older ones are in the event log."""

UNSETTLED_MAX = 64
"""Alerts that wait for delivery: weeks of trouble for one worker. Past this the oldest is given up for the newest."""


class AlertKind(StrEnum):
    """What the matter is."""

    OFFLINE = "offline"
    CORDONED = "cordoned"
    """The worker, or a device of it, gets nothing new."""
    CERTIFICATE = "certificate"
    OUTDATED = "outdated"
    RETURNED = "returned"
    """An earlier alert is over."""


@dataclass(frozen=True, slots=True)
class Alert:
    """One message. ``number`` counts a worker's alerts, so that a webhook can tell a repetition."""

    number: int
    kind: AlertKind
    text: str
    at_ms: int
    settled: bool = False
    """Delivered, given up, or with nowhere to go."""


def kept_alerts(alerts: tuple[Alert, ...]) -> tuple[Alert, ...]:
    """What is kept of a worker's alerts, in order: the newest settled ones, and all that wait for delivery."""
    settled = [one.number for one in alerts if one.settled][-ALERTS_KEPT:]
    waiting = [one.number for one in alerts if not one.settled][-UNSETTLED_MAX:]
    numbers = {*settled, *waiting}
    return tuple(one for one in alerts if one.number in numbers)
