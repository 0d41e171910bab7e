"""Holds: every reason why a worker, or one of its devices, gets nothing new. One list, shown wherever the worker is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from orchestrator.core.ids import DeviceId


class HoldKind(StrEnum):
    """Who or what holds a worker back. At most one hold of a kind at a time."""

    OWNER = "owner"
    """Cordoned by its owner."""
    OPERATOR = "operator"
    """Cordoned by an operator."""
    RECLAIMED = "reclaimed"
    """Its owner took it back; he offers it again when he likes."""
    BUSY = "busy"
    """Offered while idle only, and its owner is using it."""
    SCHEDULE = "schedule"
    """Outside the hours its owner offers."""
    PROBATION = "probation"
    """Joined without anybody's word for it, and has not shown enough yet."""
    QUARANTINED = "quarantined"
    """Evidence against it, such as a device that another worker has."""
    CLONED = "cloned"
    """Its keys were used in two places; neither is let in."""
    REVOKED = "revoked"
    """An operator threw it out."""
    FLAPPING = "flapping"
    """Came and went too often lately."""
    OUTDATED = "outdated"
    """Its agent is older than the supported window, and the time to upgrade is over."""


PHRASES = {
    HoldKind.OWNER: "cordoned by its owner",
    HoldKind.OPERATOR: "cordoned by an operator",
    HoldKind.RECLAIMED: "taken back by its owner",
    HoldKind.BUSY: "in use by its owner",
    HoldKind.SCHEDULE: "outside its owner's hours",
    HoldKind.PROBATION: "on probation",
    HoldKind.QUARANTINED: "in quarantine",
    HoldKind.CLONED: "shut out as a copy",
    HoldKind.REVOKED: "shut out by an operator",
    HoldKind.FLAPPING: "backing off after coming and going",
    HoldKind.OUTDATED: "with an outdated agent",
}
"""What a tenant is told of workers so held."""

SHUT_OUT = frozenset({HoldKind.CLONED, HoldKind.REVOKED})
"""Holds whose bearer gets no session at all."""

MISTRUSTED = frozenset({HoldKind.QUARANTINED, *SHUT_OUT})
"""Holds that also take away what runs: nothing there can be believed or paid."""

OWNERS = frozenset({HoldKind.OWNER, HoldKind.RECLAIMED, HoldKind.BUSY})
"""Holds that the owner may lift."""


DEVICE_HOLDS_MAX = 64
"""Of each worker: as many as a machine has devices."""

DEVICE_HOLDS_GONE_MAX = 16
"""Of those the newest whose device is not there any more: a card that was taken out must not come back clean, and
nobody takes out more of them than two large machines hold."""


@dataclass(frozen=True, slots=True)
class Hold:
    """One reason, in words for the owner. ``until_ms`` None: it ends by somebody's decision, not by time."""

    kind: HoldKind
    reason: str
    since_ms: int
    until_ms: int | None = None
    automatic: bool = False
    """Placed by a rule, which lifts it when its reason is gone."""


@dataclass(frozen=True, slots=True)
class DeviceHold:
    """A device that is cordoned, with the evidence against it."""

    device_id: DeviceId
    reason: str
    since_ms: int
