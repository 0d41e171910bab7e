"""Which bound on round trips would do where the one that is asked for does not: for people, and in bounded time.

Balls around each candidate say between which bounds the answer lies: nobody has enough devices within the least of
their radii, and the narrowest of the balls that do is a gang. Between the two it is halved, exactly among few
candidates, and greedily among many, where a narrower bound may be missed. What is told was found by the search by which
gangs are chosen, so who asks for it gets it as long as the machines stay free.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.core.gangs.candidates import US_PER_MS, Candidates, Field, Trust
from orchestrator.core.gangs.choosing import EXACT_CANDIDATES, search
from orchestrator.core.gangs.exact import Filled, Pool, enough
from orchestrator.core.requests import RTT_MS_MAX

if TYPE_CHECKING:
    from orchestrator.core.gangs.candidates import Floats, Numbers, Rtt, Wish
    from orchestrator.core.gangs.choosing import NoGang

BOUND_MAX_US = RTT_MS_MAX * US_PER_MS
"""The largest that can be asked for."""

LOOKED_AT_MAX = 256
"""Candidates, the cheapest: all pairs of so many are sorted in some milliseconds."""

BALLS = 16
"""Of the narrowest balls the true diameters are looked up."""

NODES = 400
"""Of one exact try: some milliseconds; a bound that takes more to find is passed over."""

GREEDY_TRIES = 3
"""Halvings among many candidates: a try costs two milliseconds, and three leave an eighth of what is open."""

CONFIRMED_MAX = 3
"""Searches by which gangs are chosen, each up to ten milliseconds; each is for a quarter more than the last."""


@dataclass(frozen=True, slots=True, eq=False)
class TooFar:
    """No gang is within a request's bound; what it was looked for among. Candidates count lots of ``lot`` devices."""

    none: NoGang
    candidates: Candidates
    wish: Wish
    rtt: Rtt
    lot: int


def widened(none: NoGang, candidates: Candidates, wish: Wish, rtt: Rtt) -> NoGang:
    """The same with a bound that would do, as far as measured and predicted: the least for a few candidates.

    10 to 40 ms for 256 candidates.
    """
    if wish.bound_us is None or int(np.maximum(candidates.free, 0).sum()) < wish.count:
        return none
    field = Field(candidates, wish, rtt, Trust.PREDICTED)
    positions = np.arange(min(len(field), LOOKED_AT_MAX))
    distance_us = field.square_us(positions)
    distance_us[~(distance_us <= BOUND_MAX_US)] = np.inf
    if int(field.free[positions].sum()) < wish.count:
        return none
    near = _Near(distance_us, field.free[positions], wish.count)
    high_us = near.ball_us()
    if high_us is None:
        return none
    low_us = max(near.radius_us(), wish.bound_us + 1)
    bound_us = near.halved(_whole(low_us), _whole(high_us))
    for _ in range(CONFIRMED_MAX):
        if bound_us > BOUND_MAX_US:
            break
        wider = Field(candidates, replace(wish, bound_us=bound_us, headroom_bp=0), rtt, Trust.PREDICTED)
        found = search(wider)
        if isinstance(found, Filled):
            some = wider.ids[sorted(found.takes)]
            measured = bool((rtt.measured_us(some, some) >= 0)[~np.eye(len(some), dtype=np.bool_)].all())
            return replace(none, would_do_us=bound_us, would_do_measured=measured)
        bound_us = _whole(bound_us * 5 / 4)
    return none


def _whole(bound_us: float) -> int:
    """Rounded up to whole milliseconds, in microseconds."""
    return int(np.ceil(bound_us / US_PER_MS)) * US_PER_MS


class _Near:
    """Distances of all to all (shape (n, n), infinite where nothing is known), and how many devices each has."""

    def __init__(self, distance_us: Floats, free: Numbers, count: int) -> None:
        self.distance_us = distance_us
        self.free = free
        self.count = count
        self._order = np.argsort(distance_us, axis=1, kind="stable")
        """For each, all by their distance."""
        reached = free[self._order].cumsum(axis=1)
        self._sizes = (reached >= count).argmax(axis=1) + 1
        """How many of these have enough devices, and within which distance they are."""
        self._radii = distance_us[np.arange(len(free)), self._order[np.arange(len(free)), self._sizes - 1]]

    def radius_us(self) -> float:
        """Within less nobody has enough devices around it."""
        return float(self._radii.min())

    def ball_us(self) -> int | None:
        """The least diameter of those who are nearest to one of them and have enough devices; None where none has."""
        best = np.inf
        for i in np.argsort(self._radii, kind="stable")[:BALLS].tolist():
            if self._radii[i] >= best:
                break
            members = self._order[i, : self._sizes[i]]
            best = min(best, float(self.distance_us[members[:, None], members].max()))
        return None if best == np.inf else int(np.ceil(best))

    def halved(self, low_us: int, high_us: int) -> int:
        """The least bound between the two that was found to do; ``high_us`` does."""
        whole = np.unique(np.ceil(self.distance_us[np.isfinite(self.distance_us)] / US_PER_MS)).astype(
            np.int64
        )
        bounds = [us for us in (whole * US_PER_MS).tolist() if low_us <= us < high_us] + [high_us]
        exact = len(self.free) <= EXACT_CANDIDATES
        low, high, tries = 0, len(bounds) - 1, 0
        while low < high and (exact or tries < GREEDY_TRIES):
            tries += 1
            middle = (low + high) // 2
            if self._exactly(bounds[middle]) if exact else self._greedily(bounds[middle]):
                high = middle
            else:
                low = middle + 1
        return int(bounds[high])

    def _exactly(self, bound_us: int) -> bool:
        near = self.distance_us <= bound_us
        masks = [
            sum(1 << j for j, is_near in enumerate(row) if is_near and j != i)
            for i, row in enumerate(near.tolist())
        ]
        nobody = [0] * len(self.free)
        return enough(Pool(self.free.tolist(), nobody, nobody, masks), self.count, NODES) != 0

    def _greedily(self, bound_us: int) -> bool:
        """Whoever leaves most devices near first, from all of them on."""
        near = (self.distance_us <= bound_us).astype(np.float32)
        np.fill_diagonal(near, 0.0)
        free = self.free.astype(np.float32)
        alive = np.ones(len(free), dtype=np.float32)
        have = 0.0
        while alive.any() and have < self.count:
            gain = (near @ (free * alive) + free) * alive
            best = int(gain.argmax())
            if have + float(gain[best]) < self.count:
                return False
            have += float(free[best])
            alive *= near[best]
        return have >= self.count
