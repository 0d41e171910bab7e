"""A cheap gang of many candidates, by bounded work: balls around seeds, in each a greedy choice, then swaps.

Whoever is in a gang has all of it within the bound, so every gang lies in the ball around each of its members. Seeds
are taken cheapest first, always among those not yet near another seed. What a ball costs when only its middle is asked
bounds from below what a gang in it can cost: that is the order in which balls are searched, and where to stop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.core.gangs.exact import Filled, Pool, bits, filled

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from orchestrator.core.gangs.candidates import Field, Floats, Numbers

BATCH = 16
"""Seeds fetched at a time: what they cover keeps the next from standing beside them."""

BATCHES = 6
"""Seeds stop here: a hundred rows of 2,000 candidates are half of the 5 ms that a decision may take."""

BALLS = 8
"""Balls searched for one bound, the cheapest by their floors first: each costs a fifth of a millisecond."""

RADII = (1.0, 0.7, 0.5)
"""Of a ball, in bounds, until a gang is found: the nearer to its middle, the likelier are two near each other."""

LADDER_BALLS = 3
"""The same for each tighter bound that is only tried because nearness is worth something."""

LADDER_US = (160_000, 80_000, 40_000, 20_000, 10_000, 5_000, 2_000)
"""Bounds tried where distance costs: halves from across a continent down to one town."""

POOL_MIN, POOL_MAX = 64, 512
"""Candidates of a ball that are looked at pair by pair, between these: the matrix grows with the square."""

POOL_DEVICES = 3
"""Pools hold this many times the devices wanted where the ball has them: room to avoid those that are not near."""

CORE_ROUNDS = 3
"""Of leaving out whoever has too few devices near; later rounds find little."""

WIDE_BALLS = 4
"""Balls searched for as many devices as possible, once the cheap way found too few."""

SWAPPED = 3
"""Of the gangs met, the cheapest, that swaps are tried on: each trial costs as much as finding another gang."""

SWAP_ROUNDS = 3
"""Of trying to replace each member once."""


@dataclass(frozen=True, slots=True)
class Seeds:
    """Positions of the seeds and their distances to everybody, shape (seeds, candidates)."""

    positions: Numbers
    rows_us: Floats


def seeds(field: Field, bound_us: float) -> Seeds:
    """Seeds such that most candidates are within half the bound of one, the cheapest first."""
    open_ = np.ones(len(field), dtype=np.bool_)
    everybody = np.arange(len(field))
    positions: list[Numbers] = []
    rows: list[Floats] = []
    for _ in range(BATCHES):
        batch = np.flatnonzero(open_)[:BATCH]
        if not batch.size:
            break
        rows_us = field.block_us(batch, everybody)
        open_[batch] = False
        open_ &= ~(rows_us <= bound_us / 2).any(axis=0)
        positions.append(batch)
        rows.append(rows_us)
    return Seeds(np.concatenate(positions), np.vstack(rows))


def anywhere(field: Field) -> Filled | None:
    """The cheapest found where distance is no bound."""
    ball = _ball(field, _cheap(field, np.arange(len(field))), np.inf)
    mask = _greedy(ball.pool, field.wish.count, -1)
    return None if mask is None else _placed(field, ball, mask, swap=True)


def alone(field: Field) -> Filled | None:
    """The cheapest single worker that has everything."""
    count = field.wish.count
    whole = np.flatnonzero(field.free >= count)
    if not whole.size:
        return None
    costs = field.unit[whole] * count + field.fixed[whole]
    least = int(costs.argmin())
    return Filled({int(whole[least]): count}, int(costs[least]), int(costs[least]))


def cheapest_near(field: Field, some: Seeds, bound_us: float, balls: int) -> Filled | None:
    """The cheapest found in the ``balls`` most promising balls, of one worker alone or of several."""
    within = some.rows_us <= bound_us
    floors = _floors(field, within)
    best = alone(field)
    tried: list[tuple[int, _Ball, int]] = []
    seen: set[bytes] = set()
    for number in np.argsort(floors, kind="stable")[:balls].tolist():
        if floors[number] == np.inf or (best is not None and best.score <= floors[number]):
            break
        for radius_us in (bound_us * share for share in RADII):
            members = _cheap(field, np.flatnonzero(some.rows_us[number] <= radius_us))
            if members.tobytes() in seen:
                break
            seen.add(members.tobytes())
            ball = _ball(field, members, bound_us)
            for mask in _greedy_twice(ball, field.wish.count, int(some.positions[number])):
                found = _placed(field, ball, mask, swap=False)
                tried.append((found.score, ball, mask))
                best = found if best is None or found.score < best.score else best
            if tried and tried[-1][1] is ball:
                break
    for _, ball, mask in sorted(tried, key=lambda one: one[0])[:SWAPPED]:
        found = _placed(field, ball, mask, swap=True)
        best = found if best is None or found.score < best.score else best
    return best


def fullest(field: Field, some: Seeds, bound_us: float) -> list[int]:
    """Positions of candidates near each other that together have the most devices found."""
    half, whole = ((some.rows_us <= radius) @ field.free for radius in (bound_us / 2, bound_us))
    best, most = [int(field.free.argmax())], int(field.free.max())
    for number in np.argsort(-(half + whole), kind="stable")[:WIDE_BALLS].tolist():
        if whole[number] <= most:
            continue
        members = np.flatnonzero(some.rows_us[number] <= bound_us)
        members = np.sort(members[np.argsort(some.rows_us[number][members], kind="stable")[: POOL_MIN * 2]])
        chosen = _widest(field, members, bound_us)
        devices = int(field.free[chosen].sum())
        if devices > most:
            best, most = chosen, devices
    return best


@dataclass(frozen=True, slots=True, eq=False)
class _Ball:
    """A pool, and where in the field each of its candidates is."""

    pool: Pool
    positions: Numbers


def _floors(field: Field, within: NDArray[np.bool_]) -> Floats:
    """For each ball the least that its cheapest devices cost, infinite where it has too few."""
    have = within * field.free.astype(np.float32)
    sums = have.cumsum(axis=1)
    floors: Floats = np.clip(field.wish.count - sums + have, 0, have) @ field.price
    floors[sums[:, -1] < field.wish.count] = np.inf
    return floors


def _cheap(field: Field, members: Numbers) -> Numbers:
    """The cheapest of some positions: enough to choose from, few enough to compare all pairs."""
    enough = int(np.searchsorted(field.free[members].cumsum(), POOL_DEVICES * field.wish.count)) + 1
    return members[: min(max(enough, POOL_MIN), POOL_MAX)]


def _ball(field: Field, positions: Numbers, bound_us: float) -> _Ball:
    """Who is near whom of some, without those who have too few devices near for any gang."""
    if bound_us == np.inf:
        near = np.ones((len(positions), len(positions)), dtype=np.bool_)
    else:
        near = field.square_us(positions) <= bound_us
    np.fill_diagonal(near, val=False)
    for _ in range(CORE_ROUNDS):
        free = field.free[positions]
        keep = np.flatnonzero(near.astype(np.float32) @ free.astype(np.float32) + free >= field.wish.count)
        if len(keep) == len(positions):
            break
        positions, near = positions[keep], near[keep[:, None], keep]
    packed = np.packbits(near, axis=1, bitorder="little")
    masks = [int.from_bytes(row.tobytes(), "little") for row in packed]
    columns = (field.free[positions], field.unit[positions], field.fixed[positions])
    free_, unit, fixed = (column.tolist() for column in columns)
    return _Ball(Pool(free_, unit, fixed, masks), positions)


def _greedy_twice(ball: _Ball, count: int, seed: int) -> list[int]:
    """Greedy choices, from the cheapest and from the seed; empty where both ran out of devices."""
    starts = (-1, *np.flatnonzero(ball.positions == seed).tolist())
    found = (_greedy(ball.pool, count, start) for start in starts)
    return [mask for mask in found if mask is not None]


def _greedy(pool: Pool, count: int, start: int) -> int | None:
    """The cheapest first, ``start`` before all (-1: nobody), as long as enough devices stay near all of them."""
    mask, alive, need = 0, pool.everybody(), count
    while alive:
        i = start if start >= 0 else (alive & -alive).bit_length() - 1
        start = -1
        alive ^= 1 << i
        if pool.free[i] >= need:
            return mask | 1 << _finishing(pool, alive | 1 << i, need)
        left = alive & pool.near[i]
        if pool.devices(left) >= need - pool.free[i]:
            mask, alive, need = mask | 1 << i, left, need - pool.free[i]
    return None


def _finishing(pool: Pool, alive: int, need: int) -> int:
    """Who gives the last devices at least cost."""
    able = (i for i in bits(alive) if pool.free[i] >= need)
    return min(able, key=lambda i: (pool.unit[i] * need + pool.fixed[i], i))


def _swapped(pool: Pool, takes: dict[int, int], count: int) -> dict[int, int]:
    """Each member replaced by whoever gives the same for less and is near all others."""
    for _ in range(SWAP_ROUNDS):
        changed = False
        for i in sorted(takes, reverse=True):
            others = pool.everybody() & ~(1 << i)
            for j in takes:
                if j != i:
                    others &= pool.near[j]
            new = _instead(pool, others, i, takes[i])
            if new != i:
                takes[new] = takes.pop(i)
                changed = True
        again = filled(pool, sum(1 << i for i in takes), count)
        if not changed or again is None:
            break
        takes = again[0]
    return takes


def _instead(pool: Pool, others: int, i: int, take: int) -> int:
    """Who of ``others`` gives ``take`` devices for less than ``i`` does; ``i`` if nobody."""
    best, least = i, pool.unit[i] * take + pool.fixed[i]
    for j in bits(others):
        if (pool.unit[j] * pool.free[j] + pool.fixed[j]) * take >= least * pool.free[j]:
            break  # Nor does anybody after j, who all cost more a device even when asked for all of theirs.
        cost = pool.unit[j] * take + pool.fixed[j]
        if pool.free[j] >= take and cost < least:
            best, least = j, cost
    return best


def _placed(field: Field, ball: _Ball, mask: int, *, swap: bool) -> Filled:
    """A choice in a ball, made better by swaps or not, as positions of the field and with what its distances cost."""
    first = filled(ball.pool, mask, field.wish.count)
    if first is None:
        raise ValueError("mask: has too few devices")
    takes = _swapped(ball.pool, first[0], field.wish.count) if swap else first[0]
    return placed(field, {int(ball.positions[i]): take for i, take in takes.items()})


def placed(field: Field, takes: dict[int, int]) -> Filled:
    """Devices taken by position of the field, with what they cost."""
    cost = sum(take * int(field.unit[i]) + int(field.fixed[i]) for i, take in takes.items())
    penalty = field.wish.penalty(field.square_us([*takes])) if field.wish.weighs_distance else 0
    return Filled(takes, cost, cost + penalty)


def trimmed(field: Field, positions: list[int]) -> Filled:
    """What of some near each other is cheapest."""
    free, unit, fixed = (column[positions].tolist() for column in (field.free, field.unit, field.fixed))
    pool = Pool(free, unit, fixed, [0] * len(positions))
    found = filled(pool, pool.everybody(), field.wish.count)
    if found is None:
        raise ValueError(f"positions: fewer than {field.wish.count} devices")
    return placed(field, {positions[i]: take for i, take in found[0].items()})


def _widest(field: Field, members: Numbers, bound_us: float) -> list[int]:
    """Those who leave the most devices near, one after the other."""
    near = (field.square_us(members) <= bound_us).astype(np.float32)
    np.fill_diagonal(near, 0.0)
    free = field.free[members].astype(np.float32)
    alive = np.ones(len(members), dtype=np.float32)
    chosen: list[int] = []
    while alive.any():
        gain = (near @ (free * alive) + free) * alive
        best = int(gain.argmax())
        chosen.append(int(members[best]))
        alive *= near[best]
    return chosen
