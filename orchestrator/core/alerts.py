"""Alerts: what an owner is told about his worker without asking."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

ALERTS_KEPT = 10
"""Of each worker: what an owner looks back on; older ones are in the event log."""


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
