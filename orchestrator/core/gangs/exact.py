"""The cheapest gang of a few candidates, proven: branch and bound over bit masks.

Which members, is a clique among those near enough to each other; how many devices of each, is a knapsack with a fixed
charge. The relaxation spreads each fixed charge over the devices of its candidate and forgets who is near whom, so it
never costs more than the truth; branching goes where it contradicts the truth.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    _Price = tuple[float, int, int]
    """By which to sort, and of which it is made: each device, and having the candidate at all."""

LARGEST_NODES = 5_000
"""Of the search for the largest set: the hardest of 300 random graphs of 24 candidates took two fifths of it."""


@dataclass(frozen=True, slots=True)
class Pool:
    """Some candidates, cheapest first, and who is near whom: bit ``j`` of ``near[i]``, never bit ``i`` itself.

    ``free``, ``unit`` (cost of each device) and ``fixed`` (cost of having the candidate at all) are integers, ``free``
    at least 1, ``fixed`` at least 0. Devices beyond those wanted are cut off by the caller.
    """

    free: list[int]
    unit: list[int]
    fixed: list[int]
    near: list[int]
    planes: list[int] = field(init=False)
    """Bit ``i`` of plane ``b`` is bit ``b`` of ``free[i]``, so that masks are added up by counting bits."""

    def __post_init__(self) -> None:
        """Devices, by binary digit."""
        width = max(self.free, default=0).bit_length()
        object.__setattr__(
            self,
            "planes",
            [sum(1 << i for i, free in enumerate(self.free) if free >> b & 1) for b in range(width)],
        )

    def everybody(self) -> int:
        """The mask of all."""
        return (1 << len(self.free)) - 1

    def devices(self, mask: int) -> int:
        """Free devices of those in ``mask``."""
        return sum((mask & plane).bit_count() << b for b, plane in enumerate(self.planes))

    def together(self, mask: int) -> bool:
        """Whether all in ``mask`` are near each other."""
        return all(mask & ~(1 << i) & ~self.near[i] == 0 for i in bits(mask))


@dataclass(frozen=True, slots=True)
class Filled:
    """A choice: devices taken by position in the pool, each at least 1; what it costs, and with distance in."""

    takes: dict[int, int]
    cost: int
    score: int


@dataclass(frozen=True, slots=True)
class Answer:
    """The best found, if any; ``proven`` where nothing better exists, or nothing at all."""

    best: Filled | None
    proven: bool
    nodes: int


@dataclass(frozen=True, slots=True)
class _Relaxed:
    """The relaxation at one node."""

    cost: int
    undecided: int
    """Mask of the undecided that it takes devices of."""
    partial: int
    """The one of these that it takes not all devices of, -1 if none."""


def bits(mask: int) -> Iterator[int]:
    """Positions of the bits that are set, lowest first."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def filled(pool: Pool, mask: int, count: int) -> tuple[dict[int, int], int] | None:
    """``count`` devices of those in ``mask``, the cheapest first; whoever gives none is left out."""
    takes: dict[int, int] = {}
    cost, need = 0, count
    for i in sorted(bits(mask), key=lambda i: (pool.unit[i], i)):
        take = min(pool.free[i], need)
        if not take:
            break
        takes[i] = take
        cost += take * pool.unit[i] + pool.fixed[i]
        need -= take
    return None if need else (takes, cost)


def cheapest(
    pool: Pool, count: int, penalty: Callable[[Sequence[int]], int], *, monotone: bool, nodes_max: int
) -> Answer:
    """The cheapest ``count`` devices of candidates near each other, ``penalty`` (of members) included.

    ``monotone``: a further member never lowers the penalty, as for a diameter. Where it may, as for a path, costs are
    still proven, and among sets of one cost the penalty is only what was met.
    """
    best: Filled | None = None
    prices = _prices(pool, count)
    stack = [(0, pool.everybody())]
    nodes = 0
    while stack and nodes < nodes_max:
        nodes += 1
        included, alive = stack.pop()
        relaxed = _relaxation(pool, count, included, alive, prices)
        if relaxed is None:
            continue
        floor = relaxed.cost + (penalty([*bits(included)]) if monotone else 0)
        if best is not None and floor >= best.score:
            continue
        clashing = _clashing(pool, relaxed.undecided)
        if clashing < 0:
            best, score = _better(pool, count, included | relaxed.undecided, penalty, best)
            if score <= floor or not relaxed.undecided:
                continue
            branch = relaxed.partial
            if branch < 0:
                branch = _farthest(relaxed.undecided, included, penalty)
        elif _coloured(pool, alive) + pool.devices(included) < count:
            continue
        else:
            branch = clashing
        stack.extend(
            ((included, alive & ~(1 << branch)), (included | 1 << branch, alive & pool.near[branch]))
        )
    return Answer(best, not stack, nodes)


def largest(pool: Pool) -> int:
    """The mask of candidates near each other that have the most devices together (as far as LARGEST_NODES go)."""
    best, most = 0, -1
    stack = [(0, pool.everybody())]
    nodes = 0
    while stack and nodes < LARGEST_NODES:
        nodes += 1
        included, alive = stack.pop()
        have = pool.devices(included)
        if have > most:
            best, most = included, have
        if not alive or have + _coloured(pool, alive) <= most:
            continue
        branch = max(bits(alive), key=lambda i: (pool.free[i] + pool.devices(alive & pool.near[i]), -i))
        stack.extend(
            ((included, alive & ~(1 << branch)), (included | 1 << branch, alive & pool.near[branch]))
        )
    return best


def enough(pool: Pool, count: int, nodes_max: int) -> int:
    """The mask of some near each other that have ``count`` devices; 0 where there are none, or none was found in time."""
    stack = [(0, pool.everybody())]
    nodes = 0
    while stack and nodes < nodes_max:
        nodes += 1
        included, alive = stack.pop()
        have = pool.devices(included)
        if have >= count:
            return included
        if have + _coloured(pool, alive) < count:
            continue
        branch = max(bits(alive), key=lambda i: (pool.free[i] + pool.devices(alive & pool.near[i]), -i))
        stack.extend(
            ((included, alive & ~(1 << branch)), (included | 1 << branch, alive & pool.near[branch]))
        )
    return 0


def _prices(pool: Pool, count: int) -> tuple[list[_Price], list[_Price]]:
    """What a device of each candidate costs: once it is a member, and before, with its fixed charge spread."""
    rows = list(zip(pool.free, pool.unit, pool.fixed, strict=True))
    return (
        [(float(unit), unit, 0) for _, unit, _ in rows],
        [(unit + fixed / min(free, count), unit, fixed) for free, unit, fixed in rows],
    )


def _relaxation(
    pool: Pool,
    count: int,
    included: int,
    alive: int,
    prices: tuple[list[_Price], list[_Price]],
) -> _Relaxed | None:
    """The least that ``included`` and some of ``alive`` can cost; None where they have too few devices."""
    if pool.devices(included | alive) < count:
        return None
    ordered = sorted([(prices[0][i], i) for i in bits(included)] + [(prices[1][i], i) for i in bits(alive)])
    cost = sum(pool.fixed[i] for i in bits(included))
    need, undecided, partial = count, 0, -1
    for (_, unit, fixed), i in ordered:
        free = min(pool.free[i], count)
        take = min(free, need)
        # Rounded up: true costs are whole, so the bound stays one.
        cost += take * unit + -(-take * fixed // free)
        if alive >> i & 1:
            undecided |= 1 << i
            if take < free and fixed:
                partial = i
        need -= take
        if not need:
            break
    return _Relaxed(cost, undecided, partial)


def _clashing(pool: Pool, mask: int) -> int:
    """The one in ``mask`` with the most others there that it is not near to; -1 where all are near."""
    worst, most = -1, 0
    for i in bits(mask):
        far = (mask & ~(1 << i) & ~pool.near[i]).bit_count()
        if far > most:
            worst, most = i, far
    return worst


def _coloured(pool: Pool, alive: int) -> int:
    """No clique in ``alive`` has more devices: of candidates of whom no two are near it has one at most."""
    total = 0
    while alive:
        rest, most = alive, 0
        while rest:
            i = (rest & -rest).bit_length() - 1
            most = max(most, pool.free[i])
            alive ^= 1 << i
            rest &= ~(1 << i) & ~pool.near[i]
        total += most
    return total


def _better(
    pool: Pool, count: int, mask: int, penalty: Callable[[Sequence[int]], int], best: Filled | None
) -> tuple[Filled | None, int]:
    """The better of ``best`` and what ``mask`` comes to, and the score of the latter."""
    found = filled(pool, mask, count)
    if found is None:
        raise ValueError(f"mask: {pool.devices(mask)} devices cannot fill {count}")
    takes, cost = found
    score = cost + penalty([*takes])
    if best is None or score < best.score:
        best = Filled(takes, cost, score)
    return best, score


def _farthest(undecided: int, included: int, penalty: Callable[[Sequence[int]], int]) -> int:
    """Of ``undecided`` the one that stands farthest from the rest: deciding it moves the bound most."""
    members = [*bits(undecided | included)]
    return max(bits(undecided), key=lambda i: (max(penalty([i, j]) for j in members), -i))
