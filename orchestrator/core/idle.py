"""When an owner needs his GPU himself, for machines that are offered while idle only."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

BUSY_RATIO = 0.15
"""A desktop, a browser and a film together stay below it; a game or a training of the owner's do not."""

BUSY_SAMPLES_MIN = 3
"""In a row: opening a window makes a peak of a second. At one in five seconds this is a quarter of a minute."""

IDLE_RATIO = 0.05
"""Well below the other bound, so that a use between the two changes nothing in either direction."""

IDLE_MS_MIN = 180_000
"""A pause between two rounds of a game is shorter; whoever has gone away stays away longer."""


class Change(StrEnum):
    """What a sample adds to what is known."""

    NONE = "none"
    RISEN = "risen"
    FALLEN = "fallen"


@dataclass(frozen=True, slots=True)
class UseHistory:
    """What the rule must remember from sample to sample."""

    busy_samples: int = 0
    """In a row, up to now."""
    idle_since_ms: int | None = None
    """None: the last sample was not idle."""


def judge(history: UseHistory, owner_ratio: float, at_ms: int, *, busy: bool) -> tuple[UseHistory, Change]:
    """The history after a sample of the owner's use (0 to 1), and whether the machine changes hands by it.

    ``busy`` is what holds now. ``at_ms`` is on a clock that is not set back.
    """
    if owner_ratio >= BUSY_RATIO:
        after = UseHistory(busy_samples=history.busy_samples + 1)
    elif owner_ratio < IDLE_RATIO:
        since_ms = at_ms if history.idle_since_ms is None else history.idle_since_ms
        after = UseHistory(idle_since_ms=since_ms)
    else:
        after = UseHistory()
    if not busy and after.busy_samples >= BUSY_SAMPLES_MIN:
        return after, Change.RISEN
    if busy and after.idle_since_ms is not None and at_ms - after.idle_since_ms >= IDLE_MS_MIN:
        return after, Change.FALLEN
    return after, Change.NONE
