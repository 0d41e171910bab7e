"""Which candidates form a gang: the cheapest devices, no two of whose workers are farther apart than the bound.

Coordinates propose, measurements decide. With a bound the answer is a ``Gang`` every pair of which was measured and is
within it, or ``Unverified``: the best proposal and the pairs to probe before anything is asked again, or ``NoGang``.
Few candidates are searched exactly (``exact``); of many, only balls around seeds (``seeded``).

Distances are integer microseconds, money integer microcredits an hour.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, assert_never

import numpy as np

from orchestrator.core.gangs import seeded
from orchestrator.core.gangs.candidates import BASIS_POINTS, US_PER_MS, Field, Trust, diameter_us, path_of
from orchestrator.core.gangs.exact import Filled, Pool, bits, cheapest, largest
from orchestrator.core.jobs import Pattern

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from orchestrator.core.gangs.candidates import Candidates, Floats, Rtt, Wish

Pair = tuple[int, int]
"""Two candidates, by number."""

EXACT_CANDIDATES = 24
"""Up to here every gang is looked at, or shown to be no better: milliseconds, and masks of one machine word."""

EXACT_NODES = 4_000
"""Of that search: the hardest of 300 random graphs took 191, of 200 fleets of real distances 31. Past it the best
found counts."""

PAIRS_PER_PROPOSAL = 64
"""Pairs to probe before the next look: the doubtful come first, so a bad proposal falls early and cheaply."""

BOLD_PARTS = 4
"""One part in so many of the probes allowed is for bold proposals: half of these are lost, and the rest must do."""


@dataclass(frozen=True, slots=True)
class Gang:
    """Members by number of candidate and the devices taken of each; of a pipeline in the order of its stages.

    ``cost`` is of devices and machines, ``penalty`` of the distances between them, both in microcredits an hour.
    """

    members: tuple[int, ...]
    devices: tuple[int, ...]
    cost: int
    penalty: int
    diameter_us: int
    """The largest RTT of any pair, measured or else as predicted; 0 of a single machine."""

    @property
    def score(self) -> int:
        """What the choice was made by."""
        return self.cost + self.penalty


@dataclass(frozen=True, slots=True)
class Unverified:
    """A proposal: nothing may start on it before ``pairs`` were probed and it was chosen again."""

    gang: Gang
    pairs: tuple[Pair, ...]
    """Numbers of candidates, the most doubtful first, PAIRS_PER_PROPOSAL at most."""


@dataclass(frozen=True, slots=True)
class NoGang:
    """Nothing fits. ``devices`` is the most that was found within the bound."""

    wanted: int
    devices: int
    bound_us: int | None
    would_do_us: int | None = None
    """A bound, in whole milliseconds, under which a gang was found; None where not asked, or not found."""
    would_do_measured: bool = True
    """Whether all pairs of that gang were measured; some are predicted otherwise."""

    @property
    def says(self) -> str:
        """In words: ``12 of 16 GPUs within 20 ms; 40 ms would do``."""
        found = f"{self.devices} of {self.wanted} GPUs"
        if self.bound_us is None:
            return found
        within = f"{found} within {self.bound_us / US_PER_MS:g} ms"
        if self.would_do_us is None:
            return within
        sure = "" if self.would_do_measured else ", by what is predicted"
        return f"{within}; {self.would_do_us // US_PER_MS} ms would do{sure}"


Outcome = Gang | Unverified | NoGang


@dataclass(frozen=True, slots=True)
class Trial:
    """How proposing and probing ended. ``Unverified`` here: the probes allowed were used up."""

    outcome: Outcome
    probes: int
    rounds: int


def choose(candidates: Candidates, wish: Wish, rtt: Rtt, *, bold: bool = False) -> Outcome:
    """The gang for a wish, the pairs to probe for it, or that there is none.

    ``bold`` proposes what is a little beyond the bound by prediction as readily as what is within: predictions miss
    many a near pair, so for more probes there are cheaper gangs.
    """
    most = 0
    for bound_us, trust in _attempts(candidates, wish, bold=bold):
        field = Field(candidates, replace(wish, bound_us=bound_us), rtt, trust)
        found = search(field)
        if isinstance(found, Filled):
            return _outcome(field, found)
        if trust is Trust.PREDICTED:
            most = max(most, found)
    return NoGang(wish.count, most, wish.bound_us)


def verified(
    propose: Callable[[bool], Outcome], probe: Callable[[Sequence[Pair]], None], probes_max: int
) -> Trial:
    """Propose, probe, propose again until a gang stands, none is left, or ``probes_max`` are used up.

    ``propose`` is told whether to be bold, which it is while probes are plenty.
    ``probe`` measures pairs so that the next ``propose`` knows them; one that answers nothing is UNREACHED_US.
    """
    probes = rounds = 0
    while True:
        rounds += 1
        outcome = propose(probes < probes_max // BOLD_PARTS)
        match outcome:
            case Gang() | NoGang():
                return Trial(outcome, probes, rounds)
            case Unverified():
                pairs = outcome.pairs[: probes_max - probes]
                if not pairs:
                    return Trial(outcome, probes, rounds)
                probe(pairs)
                probes += len(pairs)
            case _:
                assert_never(outcome)


def _attempts(candidates: Candidates, wish: Wish, *, bold: bool) -> Iterator[tuple[int | None, Trust]]:
    """Bounds and whom to trust, in the order in which a gang is looked for."""
    bounded = wish.bound_us is not None and int(np.maximum(candidates.free, 0).sum()) >= wish.count
    if wish.bound_us is not None and wish.headroom_bp:
        kept_us = wish.bound_us * (BASIS_POINTS - wish.headroom_bp) // BASIS_POINTS
        yield from (
            (kept_us, trust) for trust in ((Trust.HOPED, Trust.PREDICTED) if bold else (Trust.PREDICTED,))
        )
    if bounded and bold:
        yield wish.bound_us, Trust.HOPED
    yield wish.bound_us, Trust.PREDICTED
    if bounded and not bold:
        yield wish.bound_us, Trust.HOPED


def search(field: Field) -> Filled | int:
    """The best choice by position of the field, or the most devices found within the bound."""
    wish = field.wish
    if len(field) <= EXACT_CANDIDATES:
        return _exact(field)
    if int(field.free.sum()) < wish.count and wish.bound_us is None:
        return int(field.free.sum())
    best = seeded.anywhere(field) if wish.bound_us is None else None
    rungs = _rungs(field)
    if not rungs:
        return best or 0
    some = seeded.seeds(field, rungs[0])
    for rung in rungs:
        balls = seeded.BALLS if rung == wish.bound_us else seeded.LADDER_BALLS
        found = seeded.cheapest_near(field, some, rung, balls)
        if found is not None and (best is None or found.score < best.score):
            best = found
        if best is None:
            break
    if best is not None:
        return best
    positions = seeded.fullest(field, some, rungs[0])
    devices = int(field.free[positions].sum())
    return devices if devices < wish.count else seeded.trimmed(field, positions)


def _rungs(field: Field) -> list[int]:
    """Bounds to search under: the one that is asked, then tighter ones where nearness is worth something."""
    wish = field.wish
    asked = [] if wish.bound_us is None else [wish.bound_us]
    if not wish.weighs_distance:
        return asked
    return asked + [rung for rung in seeded.LADDER_US if not asked or rung < asked[0]]


def _exact(field: Field) -> Filled | int:
    wish, block_us = field.wish, field.square_us(range(len(field)))
    near = block_us <= (np.inf if wish.bound_us is None else wish.bound_us)
    if wish.bound_us is None:
        near = np.ones_like(near)
    columns = (field.free.tolist(), field.unit.tolist(), field.fixed.tolist())
    masks = [
        sum(1 << j for j, is_near in enumerate(row) if is_near and j != i)
        for i, row in enumerate(near.tolist())
    ]
    pool = Pool(*columns, masks)
    known: dict[tuple[int, ...], int] = {}

    def penalty(members: Sequence[int]) -> int:
        if not wish.weighs_distance:
            return 0
        key = tuple(members)
        if key not in known:
            some = np.asarray(key, dtype=np.int64)
            known[key] = wish.penalty(block_us[some[:, None], some])
        return known[key]

    answer = cheapest(
        pool, wish.count, penalty, monotone=wish.pattern is not Pattern.PIPELINE, nodes_max=EXACT_NODES
    )
    if answer.best is not None:
        return answer.best
    positions = [*bits(largest(pool))]
    devices = int(field.free[positions].sum())
    return devices if answer.proven or devices < wish.count else seeded.trimmed(field, positions)


def _outcome(field: Field, found: Filled) -> Gang | Unverified:
    """What was found, by number of candidate; verified, or with the pairs that have yet to be."""
    positions = sorted(found.takes)
    block_us = field.square_us(positions)
    if field.wish.pattern is Pattern.PIPELINE:
        positions = [positions[i] for i in path_of(block_us)]
        block_us = field.square_us(positions)
    gang = Gang(
        tuple(int(field.ids[i]) for i in positions),
        tuple(found.takes[i] for i in positions),
        found.cost,
        found.score - found.cost,
        diameter_us(block_us),
    )
    pairs = () if field.wish.bound_us is None else _unmeasured(field, gang, block_us)
    return Unverified(gang, pairs) if pairs else gang


def _unmeasured(field: Field, gang: Gang, block_us: Floats) -> tuple[Pair, ...]:
    """Pairs of a gang that nobody measured, those that are predicted to be farthest apart first."""
    ids = np.asarray(gang.members, dtype=np.int64)
    rows, columns = np.nonzero(np.triu(field.rtt.measured_us(ids, ids) < 0, 1))
    order = np.argsort(-block_us[rows, columns], kind="stable")[:PAIRS_PER_PROPOSAL]
    return tuple((int(ids[rows[k]]), int(ids[columns[k]])) for k in order)
