"""The supplier's terms: what an hour costs, where and when the machine works, and how its owner takes it back.

The owner may change them at any time. A member keeps the terms it was placed under, so that a change moves nobody.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

WEEK_MINUTES = 7 * 24 * 60
MINUTE_MS = 60_000
WEEK_MS = WEEK_MINUTES * MINUTE_MS

MONDAY_MS = 4 * 24 * 60 * MINUTE_MS
"""1970-01-01 was a Thursday: this much later the first Monday began."""

REGION = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
"""Of a region's name, which owners and tenants write alike."""

NEVER_MS = 2**62
"""When hours end that never end."""


class Tier(StrEnum):
    """What a placement may rely on."""

    INTERRUPTIBLE = "interruptible"
    """The owner may take the machine back at the notice he states."""
    COMMITTED = "committed"
    """The owner gives a long notice, whatever he wants it back for."""


@dataclass(frozen=True, slots=True)
class Ask:
    """The price of one model. A model without an ask is priced by the market (``auto``)."""

    model: str
    microcredits_per_gpu_hour: int


@dataclass(frozen=True, slots=True)
class WeekWindow:
    """Minutes of the UTC week from Monday 00:00, the end exclusive; it wraps where the end is not after the start."""

    start_minute: int
    end_minute: int

    def left(self, minute: int) -> int:
        """Minutes from ``minute`` to the window's end; 0 where it is not open then."""
        length = (self.end_minute - self.start_minute) % WEEK_MINUTES or WEEK_MINUTES
        into = (minute - self.start_minute) % WEEK_MINUTES
        return length - into if into < length else 0


@dataclass(frozen=True, slots=True)
class Terms:
    """Everything an owner sets. An empty schedule is always open; no ``lease_max_ms`` is no limit."""

    asks: tuple[Ask, ...] = ()
    regions: tuple[str, ...] = ()
    lease_max_ms: int | None = None
    schedule: tuple[WeekWindow, ...] = ()
    idle_only: bool = False
    """The agent takes the machine back when the owner's own GPU use rises."""
    tier: Tier = Tier.INTERRUPTIBLE
    notice_ms: int = 30_000
    """From the word that a member goes to its end: the job's time to write a checkpoint."""
    webhook_url: str = ""
    """Where the owner is told of trouble; empty: only where he looks himself."""

    def open_for_ms(self, at_ms: int) -> int | None:
        """How long the machine still works by its schedule: 0 where it does not now, None where it never ends."""
        if not self.schedule:
            return None
        into_ms = (at_ms - MONDAY_MS) % WEEK_MS
        minute = into_ms // MINUTE_MS
        left = 0
        # Windows may touch or overlap: what counts is where the chain of them ends.
        while left < WEEK_MINUTES:
            further = max(window.left((minute + left) % WEEK_MINUTES) for window in self.schedule)
            if further == 0:
                break
            left += further
        if left >= WEEK_MINUTES:
            return None
        return max(0, left * MINUTE_MS - into_ms % MINUTE_MS)

    def hours(self, at_ms: int) -> tuple[int, int]:
        """``(closes_ms, true_until_ms)``: when the hours of now end, 0 outside them, and until when that is so."""
        open_ms = self.open_for_ms(at_ms)
        if open_ms is None:
            return NEVER_MS, NEVER_MS
        if open_ms > 0:
            return at_ms + open_ms, at_ms + open_ms
        into_ms = (at_ms - MONDAY_MS) % WEEK_MS
        minute = into_ms // MINUTE_MS
        wait = min((window.start_minute - minute) % WEEK_MINUTES for window in self.schedule)
        return 0, at_ms + wait * MINUTE_MS - into_ms % MINUTE_MS
