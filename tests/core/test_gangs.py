from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
import pytest

from orchestrator.core.gangs.candidates import UNREACHED_US, Candidates, Matrices, Wish, path_of
from orchestrator.core.gangs.choosing import (
    PAIRS_PER_PROPOSAL,
    Gang,
    NoGang,
    Outcome,
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
LARGE = 2_000


def candidates(free: Sequence[int], unit: Sequence[int], fixed: Sequence[int] | None = None) -> Candidates:
    columns = (free, unit, fixed or [0] * len(free))
    return Candidates(*(np.asarray(column, dtype=np.int64) for column in columns))


def measured(ms: Sequence[Sequence[float]]) -> Matrices:
    us = (np.asarray(ms, dtype=np.float64) * MS).astype(np.int64)
    return Matrices(us, np.full(us.shape, np.nan))


def line(*at_ms: float) -> Matrices:
    """Machines along a line: the distance of two is the difference."""
    at = np.asarray(at_ms)
    return measured(np.abs(at[:, None] - at).tolist())


def plane(seed: int, size: int) -> tuple[Candidates, Matrices]:
    """Machines on a plane with a way to the exchange each, all measured."""
    generator = np.random.default_rng(seed)
    x, y = generator.uniform(0, 200, (2, size))
    last_ms = generator.exponential(3, size)
    ms = np.hypot(x[:, None] - x, y[:, None] - y) + last_ms[:, None] + last_ms
    return (
        candidates(
            generator.integers(1, 9, size).tolist(),
            generator.integers(100_000, 900_000, size).tolist(),
            generator.integers(0, 400_000, size).tolist(),
        ),
        measured(ms.tolist()),
    )


def gang(outcome: Outcome) -> Gang:
    assert isinstance(outcome, Gang)
    return outcome


def test_gang_of_two_sites_takes_the_cheaper_within_the_bound() -> None:
    found = gang(choose(candidates([4, 4, 4, 4], [9, 9, 1, 1]), Wish(8, 5 * MS), line(0, 1, 100, 102)))
    assert (set(found.members), found.cost, found.diameter_us) == ({2, 3}, 8, 2 * MS)


def test_gang_cheap_but_far_machine_is_left_out() -> None:
    found = gang(choose(candidates([4, 4, 4], [1, 5, 5]), Wish(8, 5 * MS), line(90, 0, 1)))
    assert set(found.members) == {1, 2}


def test_gang_fixed_cost_prefers_one_machine_over_two_cheaper_ones() -> None:
    found = gang(choose(candidates([2, 2, 4], [5, 5, 6], [10, 10, 10]), Wish(4, 5 * MS), line(0, 1, 2)))
    assert (found.members, found.devices, found.cost) == ((2,), (4,), 34)


def test_gang_single_machine_has_no_diameter_and_needs_no_measurement() -> None:
    unknown = Matrices(np.full((2, 2), -1), np.full((2, 2), np.nan))
    found = gang(choose(candidates([8, 4], [5, 1]), Wish(8, 0), unknown))
    assert (found.members, found.diameter_us) == ((0,), 0)


def test_gang_pair_exactly_at_the_bound_is_within() -> None:
    assert isinstance(choose(candidates([1, 1], [1, 1]), Wish(2, 5 * MS), line(0, 5)), Gang)
    assert isinstance(choose(candidates([1, 1], [1, 1]), Wish(2, 5 * MS - 1), line(0, 5)), NoGang)


def test_gang_unmeasured_pairs_are_proposed_and_not_given() -> None:
    rtt = Matrices(np.full((2, 2), -1), np.array([[0.0, 3e3], [3e3, 0.0]]))
    outcome = choose(candidates([1, 1], [1, 1]), Wish(2, 5 * MS), rtt)
    assert isinstance(outcome, Unverified)
    assert outcome.pairs == ((0, 1),)


def test_gang_measurement_beyond_the_bound_overrules_a_prediction_within() -> None:
    rtt = Matrices(line(0, 9).measured, np.array([[0.0, 1e3], [1e3, 0.0]]))
    assert isinstance(choose(candidates([1, 1], [1, 1]), Wish(2, 5 * MS), rtt), NoGang)


def test_gang_nothing_known_is_proposed_rather_than_refused() -> None:
    unknown = Matrices(np.full((3, 3), -1), np.full((3, 3), np.nan))
    assert isinstance(choose(candidates([1, 1, 1], [1, 1, 1]), Wish(3, 5 * MS), unknown), Unverified)


def test_gang_predicted_far_beyond_the_bound_is_not_proposed() -> None:
    rtt = Matrices(np.full((2, 2), -1), np.array([[0.0, 9e4], [9e4, 0.0]]))
    assert isinstance(choose(candidates([1, 1], [1, 1]), Wish(2, 5 * MS), rtt), NoGang)


def test_gang_large_proposal_bounds_the_pairs_and_puts_the_doubtful_first() -> None:
    size = 20
    predicted = np.abs(np.subtract.outer(np.arange(size), np.arange(size))) * 1e3
    outcome = choose(
        candidates([1] * size, [1] * size),
        Wish(size, 50 * MS),
        Matrices(np.full((size, size), -1), predicted),
    )
    assert isinstance(outcome, Unverified)
    assert len(outcome.pairs) == PAIRS_PER_PROPOSAL
    distances = [predicted[pair] for pair in outcome.pairs]
    assert distances == sorted(distances, reverse=True)


@pytest.mark.parametrize("pattern", list(Pattern))
def test_gang_without_bound_weighs_distance_by_pattern(pattern: Pattern) -> None:
    fleet = candidates([1, 1, 1], [10, 10, 9])
    found = gang(choose(fleet, Wish(2, None, pattern, microcredits_per_ms=1), line(0, 1, 50)))
    assert found.cost == (19 if pattern is Pattern.INDEPENDENT else 20)


def test_gang_pipeline_members_stand_in_the_order_of_their_stages() -> None:
    found = gang(
        choose(candidates([1] * 4, [1] * 4), Wish(4, 50 * MS, Pattern.PIPELINE), line(0, 20, 10, 30))
    )
    assert found.members in {(0, 2, 1, 3), (3, 1, 2, 0)}


def test_gang_headroom_is_kept_where_possible_and_given_up_where_not() -> None:
    wish = Wish(2, 10 * MS, headroom_bp=1_000)
    kept = gang(choose(candidates([1, 1, 1], [1, 1, 2]), wish, line(0, 9.5, -5)))
    assert set(kept.members) == {0, 2}
    given_up = gang(choose(candidates([1, 1], [1, 1]), wish, line(0, 9.5)))
    assert set(given_up.members) == {0, 1}


def test_no_gang_says_how_many_there_are_and_what_would_do() -> None:
    fleet, wish, rtt = candidates([6, 6, 4], [1, 1, 1]), Wish(16, 20 * MS), line(0, 15, 39.2)
    none = choose(fleet, wish, rtt)
    assert isinstance(none, NoGang)
    assert widened(none, fleet, wish, rtt).says == "12 of 16 GPUs within 20 ms; 40 ms would do"


def test_no_gang_with_too_few_devices_at_all_has_no_bound_that_would_do() -> None:
    fleet, wish, rtt = candidates([6, 6], [1, 1]), Wish(16, 20 * MS), line(0, 15)
    none = choose(fleet, wish, rtt)
    assert isinstance(none, NoGang)
    assert widened(none, fleet, wish, rtt).says == "12 of 16 GPUs within 20 ms"


def test_no_gang_of_nobody_has_no_devices() -> None:
    assert choose(candidates([], []), Wish(1, MS), measured(np.zeros((0, 0)).tolist() or [[]])) == NoGang(
        1, 0, MS
    )


@pytest.mark.parametrize(
    ("numbers", "field"),
    [
        ((0, 0, 0, 0), "count"),
        ((1, -1, 0, 0), "bound_us"),
        ((1, 0, -1, 0), "microcredits_per_ms"),
        ((1, 0, 0, 10_000), "headroom_bp"),
    ],
)
def test_wish_that_means_nothing_is_refused_by_field(numbers: tuple[int, int, int, int], field: str) -> None:
    count, bound_us, weight, headroom_bp = numbers
    with pytest.raises(ValueError, match=field):
        Wish(count, bound_us, Pattern.ALL_REDUCE, weight, headroom_bp)


def test_candidates_with_a_negative_fixed_cost_are_refused() -> None:
    with pytest.raises(ValueError, match="fixed_cost"):
        candidates([1], [1], [-1])


def test_path_of_points_on_a_line_is_the_line() -> None:
    at = np.array([5.0, 1.0, 3.0, 2.0, 4.0, 0.0])
    path = at[path_of(np.abs(at[:, None] - at))].tolist()
    assert path in (sorted(path), sorted(path, reverse=True))


def test_verified_swaps_whoever_is_measured_too_far() -> None:
    truth = line(0, 1, 80, 2).measured
    known = Matrices(np.full((4, 4), -1), np.full((4, 4), 1e3))
    fleet = candidates([1] * 4, [2, 2, 1, 3])

    def probe(pairs: Sequence[tuple[int, int]]) -> None:
        for i, j in pairs:
            known.measured[i, j] = known.measured[j, i] = truth[i, j]

    trial = verified(lambda bold: choose(fleet, Wish(3, 5 * MS), known, bold=bold), probe, 100)
    assert set(gang(trial.outcome).members) == {0, 1, 3}
    assert trial.probes <= 6


def test_verified_where_nobody_answers_ends_with_none() -> None:
    known = Matrices(np.full((4, 4), -1), np.full((4, 4), 1e3))

    def probe(pairs: Sequence[tuple[int, int]]) -> None:
        for i, j in pairs:
            known.measured[i, j] = known.measured[j, i] = UNREACHED_US

    trial = verified(
        lambda bold: choose(candidates([1] * 4, [1] * 4), Wish(2, 5 * MS), known, bold=bold), probe, 100
    )
    assert (trial.outcome, trial.probes) == (NoGang(2, 1, 5 * MS), 6)


def test_verified_stops_when_its_probes_are_used_up() -> None:
    known = Matrices(np.full((4, 4), -1), np.full((4, 4), 1e3))
    asked: list[tuple[int, int]] = []
    trial = verified(
        lambda bold: choose(candidates([1] * 4, [1] * 4), Wish(4, 5 * MS), known, bold=bold), asked.extend, 9
    )
    assert isinstance(trial.outcome, Unverified)
    assert trial.probes == len(asked) == 9


@pytest.mark.parametrize("bound_ms", [20, 60])
def test_gang_of_many_candidates_holds_the_bound_and_the_count(bound_ms: int) -> None:
    fleet, rtt = plane(1, LARGE)
    found = gang(choose(fleet, Wish(40, bound_ms * MS), rtt))
    members = np.asarray(found.members)
    assert sum(found.devices) == 40
    assert (np.asarray(found.devices) <= fleet.free[members]).all()
    apart_us = rtt.measured[members[:, None], members][~np.eye(len(members), dtype=bool)]
    assert apart_us.max() == found.diameter_us <= bound_ms * MS


def test_gang_of_many_candidates_is_the_same_each_time() -> None:
    fleet, rtt = plane(2, 300)
    assert choose(fleet, Wish(24, 30 * MS), rtt) == choose(fleet, Wish(24, 30 * MS), rtt)


def test_gang_of_many_candidates_costs_no_more_than_the_best_of_a_site_in_them() -> None:
    """Forty cheap machines stand together among thousands: they are found."""
    fleet, rtt = plane(3, LARGE)
    site = np.argsort(rtt.measured[17])[:12]
    fleet.unit_cost[site] = 50_000
    fleet.fixed_cost[site] = 0
    fleet.free[site] = 4
    found = gang(choose(fleet, Wish(40, 25 * MS), rtt))
    assert found.cost == 40 * 50_000


def test_choice_among_many_is_quick() -> None:
    """The target is 5 ms, which the benchmark reports; here only that it is no other order of magnitude."""
    fleet, rtt = plane(4, LARGE)
    wish = Wish(40, 60 * MS)
    best_s = float("inf")
    for _ in range(5):
        began_s = perf_counter()
        choose(fleet, wish, rtt)
        best_s = min(best_s, perf_counter() - began_s)
    assert best_s < 0.05
