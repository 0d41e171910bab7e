"""Instants and lengths of time in words."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

MINUTE_MS = 60_000

LAST_MINUTE = 4_223_371_679
"""Of the year 9999: what lies behind it no calendar can say, and it is said of nothing that anybody is given."""

_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


def utc_words(at_ms: int) -> str:
    """To the minute, and never earlier than it is: a promise is kept by what it says."""
    minutes = -(-at_ms // MINUTE_MS)
    return (_BEGINNING + timedelta(minutes=max(0, min(minutes, LAST_MINUTE)))).strftime("%Y-%m-%d %H:%M UTC")


def window_words(from_ms: int, until_ms: int) -> str:
    """A window of time, the end's day left out where it is that of the begin."""
    begin, end = utc_words(from_ms).removesuffix(" UTC"), utc_words(until_ms)
    day = len("2026-12-01 ")
    return f"from {begin} to {end[day:] if begin[:day] == end[:day] else end}"


UNITS_MS = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000))


def limit_words(limit_ms: int) -> str:
    """A time limit as ``orch.time_limit`` is written: in the largest unit of which it is whole."""
    unit, unit_ms = next((one for one in UNITS_MS if limit_ms % one[1] == 0), ("ms", 1))
    return f"{limit_ms // unit_ms}{unit}"
