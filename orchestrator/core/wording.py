"""How lengths of time, counts and names read, wherever the network speaks of itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

S_MS = 1_000
MINUTE_MS = 60 * S_MS
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS

NAMED_MAX = 3
"""Names in one line; the others are counted."""

_UNITS = (
    (2 * DAY_MS, DAY_MS, "d"),
    (2 * HOUR_MS, HOUR_MS, "h"),
    (2 * MINUTE_MS, MINUTE_MS, "min"),
    (S_MS, S_MS, "s"),
)
"""From when on, the unit, and its name: below two of a unit the next smaller one says more."""


def span(time_ms: int) -> str:
    """A length of time as people say it: ``450 ms``, ``90 s``, ``5 min``, ``30 h``, ``9 d``; rounded down."""
    for least_ms, unit_ms, name in _UNITS:
        if time_ms >= least_ms:
            return f"{time_ms // unit_ms} {name}"
    return f"{time_ms} ms"


def named(names: Sequence[str]) -> str:
    """``a, b, c and 3 more``."""
    more = len(names) - NAMED_MAX
    return ", ".join(names[:NAMED_MAX]) + (f" and {more} more" if more > 0 else "")


def counted(number: int, noun: str) -> str:
    """``1 worker``, ``2 workers``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
