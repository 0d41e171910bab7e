"""What must hold of every gang, and of every refusal, against trying all of it."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.gangs.candidates import UNMEASURED, Candidates, Matrices, Wish
from orchestrator.core.gangs.choosing import (
    EXACT_CANDIDATES,
    Gang,
    NoGang,
    Unverified,
    choose,
    verified,
)
from orchestrator.core.gangs.widening import widened
from orchestrator.core.jobs import Pattern

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Numbers = NDArray[np.int64]

MS = 1_000
SMALL = 7
"""Machines of which every set is tried."""


class Story(NamedTuple):
    candidates: Candidates
    truth: Numbers
    known: Matrices
    wish: Wish


def drawn(seed: int, size: int, wish: Wish, share: float) -> Story:
    """Machines on a plane, links with noise; ``share`` of the pairs measured, the rest predicted with an error."""
    generator = np.random.default_rng(seed)
    x, y = generator.uniform(0, 60, (2, size))
    ms = np.hypot(x[:, None] - x, y[:, None] - y) * np.exp(generator.normal(0, 0.3, (size, size)))
    truth = np.triu(ms * MS, 1).astype(np.int64)
    truth += truth.T
    seen = np.triu(generator.random((size, size)) < share, 1)
    predicted = np.triu(truth * np.exp(generator.normal(0, 0.4, (size, size))), 1)
    predicted[generator.random((size, size)) < 0.1] = np.nan
    predicted = np.triu(predicted, 1)
    candidates = Candidates(
        generator.integers(0, 9, size),
        generator.integers(0, 9, size) * 1_000,
        generator.integers(0, 9, size) * 1_000,
    )
    known = Matrices(np.where(seen | seen.T, truth, UNMEASURED), predicted + predicted.T)
    return Story(candidates, truth, known, wish)


WISHES = st.builds(
    Wish,
    count=st.integers(1, 24),
    bound_us=st.integers(0, 90).map(lambda ms: ms * MS),
    pattern=st.sampled_from(Pattern),
    microcredits_per_ms=st.sampled_from((0, 0, 100)),
    headroom_bp=st.sampled_from((0, 0, 1_000)),
)
SEEDS = st.integers(0, 10**6)
SIZES = st.one_of(st.integers(0, SMALL), st.integers(0, 70))
STORIES = st.builds(drawn, SEEDS, SIZES, WISHES, st.sampled_from((0.0, 0.3, 1.0)))
MEASURED = st.builds(drawn, SEEDS, SIZES, WISHES, st.just(1.0))
SMALL_MEASURED = st.builds(drawn, SEEDS, st.integers(0, SMALL), WISHES, st.just(1.0))


def widest_us(truth: Numbers, members: Sequence[int]) -> int:
    """The largest distance of any two."""
    some = np.asarray(members, dtype=np.int64)
    return int(truth[some[:, None], some].max(initial=0))


def together(story: Story) -> list[tuple[int, ...]]:
    """Every set of machines within the bound."""
    having = np.flatnonzero(story.candidates.free > 0).tolist()
    bound_us = story.wish.bound_us or 0
    return [
        some
        for size in range(len(having) + 1)
        for some in combinations(having, size)
        if widest_us(story.truth, some) <= bound_us
    ]


def least_cost(story: Story, members: Sequence[int]) -> int | None:
    """What exactly these cost, each with a device at least; None where they cannot give as many, or are too many."""
    candidates, left = story.candidates, story.wish.count - len(members)
    cost = int(candidates.fixed_cost[list(members)].sum() + candidates.unit_cost[list(members)].sum())
    for i in sorted(members, key=lambda i: int(candidates.unit_cost[i])):
        more = min(int(candidates.free[i]) - 1, max(left, 0))
        cost += more * int(candidates.unit_cost[i])
        left -= more
    return cost if left == 0 else None


def holds(story: Story, gang: Gang) -> None:
    """Whole, of devices that are free, of different machines, and its cost is right."""
    members, devices = np.asarray(gang.members), np.asarray(gang.devices)
    assert devices.sum() == story.wish.count
    assert len(set(gang.members)) == len(gang.members)
    assert ((devices >= 1) & (devices <= story.candidates.free[members])).all()
    cost = (devices * story.candidates.unit_cost[members] + story.candidates.fixed_cost[members]).sum()
    assert gang.cost == cost


@given(STORIES, st.booleans())
@settings(max_examples=200, deadline=None)
def test_gang_of_any_fleet_is_whole_free_and_within_measured_distance(story: Story, bold: bool) -> None:
    outcome = choose(story.candidates, story.wish, story.known, bold=bold)
    match outcome:
        case Gang():
            holds(story, outcome)
            assert widest_us(story.truth, outcome.members) <= (story.wish.bound_us or 0)
        case Unverified():
            holds(story, outcome.gang)
            assert outcome.pairs
            assert all(story.known.measured[pair] == UNMEASURED for pair in outcome.pairs)
            assert {i for pair in outcome.pairs for i in pair} <= set(outcome.gang.members)
        case NoGang():
            assert 0 <= outcome.devices < story.wish.count


@given(STORIES)
@settings(max_examples=100, deadline=None)
def test_gang_after_probes_holds_in_truth_and_probes_stay_within_what_is_allowed(story: Story) -> None:
    asked: list[tuple[int, int]] = []

    def probe(pairs: Sequence[tuple[int, int]]) -> None:
        for i, j in pairs:
            asked.append((i, j))
            story.known.measured[i, j] = story.known.measured[j, i] = story.truth[i, j]

    trial = verified(lambda bold: choose(story.candidates, story.wish, story.known, bold=bold), probe, 200)
    assert trial.probes == len(asked) <= 200
    assert len({frozenset(pair) for pair in asked}) == len(asked)
    if isinstance(trial.outcome, Gang):
        holds(story, trial.outcome)
        assert widest_us(story.truth, trial.outcome.members) <= (story.wish.bound_us or 0)


@given(SMALL_MEASURED)
@settings(max_examples=200, deadline=None)
def test_gang_of_few_is_refused_only_where_there_is_none_and_says_the_most_there_is(story: Story) -> None:
    outcome = choose(story.candidates, story.wish, story.known)
    most = max(int(story.candidates.free[list(some)].sum()) for some in together(story))
    if most >= story.wish.count:
        assert isinstance(outcome, Gang)
    else:
        assert outcome == NoGang(story.wish.count, most, story.wish.bound_us)


@given(SMALL_MEASURED)
@settings(max_examples=200, deadline=None)
def test_gang_of_few_without_headroom_costs_the_least_there_is(story: Story) -> None:
    wish = Wish(story.wish.count, story.wish.bound_us)
    outcome = choose(story.candidates, wish, story.known)
    costs = [cost for some in together(story) if some and (cost := least_cost(story, some)) is not None]
    assert (outcome.cost if isinstance(outcome, Gang) else None) == min(costs, default=None)


@given(SMALL_MEASURED, st.integers(0, 500))
@settings(max_examples=200, deadline=None)
def test_gang_of_few_weighs_the_diameter_exactly(story: Story, weight: int) -> None:
    wish = Wish(story.wish.count, story.wish.bound_us, Pattern.ALL_REDUCE, weight)
    outcome = choose(story.candidates, wish, story.known)
    scores = [
        cost + -(-weight * widest_us(story.truth, some) // MS)
        for some in together(story)
        if some and (cost := least_cost(story, some)) is not None
    ]
    assert (outcome.score if isinstance(outcome, Gang) else None) == min(scores, default=None)


@given(MEASURED, SEEDS)
@settings(max_examples=100, deadline=None)
def test_gang_value_of_few_does_not_depend_on_their_order(story: Story, seed: int) -> None:
    size = min(len(story.truth), EXACT_CANDIDATES)
    wish = Wish(story.wish.count, story.wish.bound_us)
    order = np.random.default_rng(seed).permutation(size)
    values = []
    for some in (np.arange(size), order):
        part = Candidates(
            story.candidates.free[some], story.candidates.unit_cost[some], story.candidates.fixed_cost[some]
        )
        truth = story.truth[some[:, None], some]
        outcome = choose(part, wish, Matrices(truth, np.full(truth.shape, np.nan)))
        values.append(outcome.cost if isinstance(outcome, Gang) else outcome)
    assert values[0] == values[1]


@given(MEASURED)
@settings(max_examples=60, deadline=None)
def test_gang_value_of_many_does_not_change_where_twins_change_places(story: Story) -> None:
    """Each machine has a twin beside it; the fleet is read forwards, and with each pair of twins exchanged."""
    size = len(story.truth)
    twins = np.repeat(np.arange(size), 2)
    values = []
    for some in (np.arange(2 * size), np.arange(2 * size).reshape(size, 2)[:, ::-1].ravel()):
        picked = twins[some]
        fleet = Candidates(
            story.candidates.free[picked],
            story.candidates.unit_cost[picked],
            story.candidates.fixed_cost[picked],
        )
        truth = story.truth[picked[:, None], picked]
        outcome = choose(fleet, story.wish, Matrices(truth, np.full(truth.shape, np.nan)))
        values.append(outcome.score if isinstance(outcome, Gang) else outcome)
    assert values[0] == values[1]


@given(STORIES)
@settings(max_examples=100, deadline=None)
def test_bound_that_would_do_does(story: Story) -> None:
    outcome = choose(story.candidates, story.wish, story.known)
    if isinstance(outcome, NoGang):
        said = widened(outcome, story.candidates, story.wish, story.known)
        if said.would_do_us is not None:
            assert story.wish.bound_us is not None
            assert said.would_do_us > story.wish.bound_us
            wider = Wish(
                story.wish.count, said.would_do_us, story.wish.pattern, story.wish.microcredits_per_ms
            )
            assert not isinstance(choose(story.candidates, wider, story.known), NoGang)


@given(SMALL_MEASURED)
@settings(max_examples=100, deadline=None)
def test_bound_that_would_do_is_the_least_in_whole_milliseconds_of_few(story: Story) -> None:
    outcome = choose(story.candidates, story.wish, story.known)
    if isinstance(outcome, NoGang):
        said = widened(outcome, story.candidates, story.wish, story.known)
        enough = int(story.candidates.free.sum()) >= story.wish.count
        assert (said.would_do_us is not None) == enough
        if said.would_do_us is not None:
            nearer = Wish(story.wish.count, max(said.would_do_us - MS, story.wish.bound_us or 0))
            assert isinstance(choose(story.candidates, nearer, story.known), NoGang)
