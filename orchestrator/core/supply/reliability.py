"""How far a worker can be relied on: what its leases came to, the older the less it counts.

Everything is in whole units and decays with a half-life, so a bad week is forgotten and a good one has to be repeated.
The arithmetic is exact and in integers, so that every reader of the log comes to the same score on any machine:
a power of one half is made of the square roots of one half, which `isqrt` gives to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import isqrt

BASIS_POINTS = 10_000

THOUSAND = 1_000
"""One lease, or one silence."""

FULL_LEASE_MS = 600_000
"""A kept lease shorter than this counts by its part, or a thousand jobs of a second would outweigh a lost day."""

PRIOR = 2 * THOUSAND
"""Leases that a newcomer is taken to have kept, and as many to have broken: he begins in the middle, and no single
lease makes or ruins him."""

ONE = 1 << 40
"""The unit of a decay factor: a rounding of less than a part in 10^12."""

FRACTION_BITS = 16
"""A half-life is told apart in 65,536 parts: a week in steps of ten seconds."""

HALVINGS_MAX = 62
"""After as many half-lives nothing is left of any sum."""


def _roots_of_half() -> tuple[int, ...]:
    """1/2 to the power of 1/2, 1/4, 1/8 …, in units of ONE."""
    roots = [isqrt(ONE // 2 * ONE)]
    while len(roots) < FRACTION_BITS:
        roots.append(isqrt(roots[-1] * ONE))
    return tuple(roots)


ROOTS_OF_HALF = _roots_of_half()


@dataclass(frozen=True, slots=True)
class Reliability:
    """Decayed sums as of ``at_ms``."""

    kept_ms: int = 0
    """Device time of leases that the worker held to their end."""
    broken: int = 0
    """Thousandths of leases that ended because the worker was lost or failed."""
    completed: int = 0
    """Thousandths of leases that it held to their end."""
    at_ms: int = 0


@dataclass(frozen=True, slots=True)
class Flaps:
    """Thousandths of silences, decayed, as of ``at_ms``."""

    count: int = 0
    at_ms: int = 0


class LeaseEnd(StrEnum):
    """What the end of a lease says of its worker."""

    KEPT = "kept"
    """Held to the end, however the job came out."""
    BROKEN = "broken"
    """The worker was lost, or its node or device failed."""
    SHORT_NOTICE = "short notice"
    """Taken back with less notice than was committed: half as bad."""
    EXCUSED = "excused"
    """Says nothing: taken back in order, or silent with its whole zone."""


def decayed(value: int, age_ms: int, half_life_ms: int) -> int:
    """``value`` after ``age_ms``, rounded down; time that runs backwards does not make it grow."""
    halvings, rest_ms = divmod(max(0, age_ms), half_life_ms)
    if halvings > HALVINGS_MAX:
        return 0
    fraction = (rest_ms << FRACTION_BITS) // half_life_ms
    factor = ONE
    for place, root in enumerate(ROOTS_OF_HALF, start=1):
        if fraction >> (FRACTION_BITS - place) & 1:
            factor = factor * root // ONE
    return (value * factor // ONE) >> halvings


def at_time(reliability: Reliability, at_ms: int, half_life_ms: int) -> Reliability:
    """The sums as they stand at ``at_ms``."""
    age_ms = at_ms - reliability.at_ms
    return Reliability(
        kept_ms=decayed(reliability.kept_ms, age_ms, half_life_ms),
        broken=decayed(reliability.broken, age_ms, half_life_ms),
        completed=decayed(reliability.completed, age_ms, half_life_ms),
        at_ms=at_ms,
    )


def after_lease(
    reliability: Reliability, end: LeaseEnd, held_ms: int, devices: int, at_ms: int, half_life_ms: int
) -> Reliability:
    """With one more lease, of ``devices`` for ``held_ms`` each; the same object where it says nothing."""
    if end is LeaseEnd.EXCUSED or (end is LeaseEnd.KEPT and held_ms <= 0):
        return reliability
    now = at_time(reliability, at_ms, half_life_ms)
    match end:
        case LeaseEnd.KEPT:
            part = min(THOUSAND, max(1, held_ms * THOUSAND // FULL_LEASE_MS))
            kept_ms = now.kept_ms + held_ms * devices
            return Reliability(kept_ms, now.broken, now.completed + part, at_ms)
        case LeaseEnd.BROKEN:
            return Reliability(now.kept_ms, now.broken + THOUSAND, now.completed, at_ms)
        case LeaseEnd.SHORT_NOTICE:
            return Reliability(now.kept_ms, now.broken + THOUSAND // 2, now.completed, at_ms)


def score_bp(reliability: Reliability, at_ms: int, half_life_ms: int) -> int:
    """The part of leases kept, in basis points; 5,000 for a worker of whom nothing is known."""
    now = at_time(reliability, at_ms, half_life_ms)
    return BASIS_POINTS * (PRIOR + now.completed) // (2 * PRIOR + now.completed + now.broken)


def explain(reliability: Reliability, at_ms: int, half_life_ms: int) -> tuple[str, ...]:
    """The score in sentences for its owner."""
    now = at_time(reliability, at_ms, half_life_ms)
    score = score_bp(reliability, at_ms, half_life_ms)
    days = half_life_ms / 86_400_000
    if not now.completed and not now.broken:
        return (
            f"Reliability {score / 100:.1f} %: nothing is known of its leases lately, so it stands in the middle.",
        )
    hours = now.kept_ms / 3_600_000
    kept, broken, prior = now.completed / THOUSAND, now.broken / THOUSAND, PRIOR // THOUSAND
    return (
        f"Reliability {score / 100:.1f} %: {kept:.1f} leases kept over {hours:.1f} device hours, {broken:.1f} broken.",
        f"A lease counts half after {days:.1f} days, one under {FULL_LEASE_MS // 60_000} minutes by its part.",
        f"Everybody begins with {prior} kept and {prior} broken, so that no single lease decides.",
        "What a tenant's code does, a stop, a reclaim in order and an outage of its whole zone do not count.",
    )


def flapped(flaps: Flaps, at_ms: int, half_life_ms: int) -> Flaps:
    """With one more silence."""
    return Flaps(decayed(flaps.count, at_ms - flaps.at_ms, half_life_ms) + THOUSAND, at_ms)
