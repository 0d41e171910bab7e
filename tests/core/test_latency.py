"""What workers say of their round trips: what is kept, what counts, what follows, and who is asked next."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.ids import WorkerId
from orchestrator.core.nearness.latency import (
    CANDIDATES_MAX,
    DOUBTED_DISPUTES_MIN,
    PROBES_PER_HOUR,
    PROBES_PER_ORDER_MAX,
    RTT_MAX_US,
    SLOTS,
    LatencyMap,
)
from orchestrator.core.nearness.probing import LANDMARK_PROBES, LANDMARKS, landmarks_of

HOUR_MS = 3_600_000
ORDER_MS = 600_000
AGE_MS = 6 * HOUR_MS
START_MS = 1_700_000_000_000
A, B, C, D = (WorkerId(name) for name in ("wrk-a", "wrk-b", "wrk-c", "wrk-d"))

Rtt = Callable[[int, int], int]


def fleet(count: int) -> list[WorkerId]:
    return [WorkerId(f"wrk-{k:04}") for k in range(count)]


def plane(count: int, seed: int = 7) -> Rtt:
    """Machines in towns on a plane: some 5 ms within a town, some 10 to 150 ms between two."""
    chance = np.random.default_rng(seed)
    towns = chance.uniform(0, 100_000, (6, 2))
    places = towns[np.arange(count) % 6] + chance.normal(0, 1_000, (count, 2))
    last_mile = chance.uniform(500, 2_000, count)
    return lambda a, b: int(np.linalg.norm(places[a] - places[b]) + last_mile[a] + last_mile[b])


def said(*words: tuple[WorkerId, WorkerId, int], at_ms: int = START_MS) -> LatencyMap:
    latency = LatencyMap()
    for worker_id, peer_id, rtt_us in words:
        latency.observe(worker_id, peer_id, rtt_us, at_ms)
    return latency


def probe(
    latency: LatencyMap,
    names: Sequence[WorkerId],
    rtt_us: Rtt,
    orders: int,
    liars: frozenset[int] = frozenset(),
) -> int:
    """Every worker carries out ``orders`` orders; liars say one microsecond to everybody, asked or not."""
    index = {name: k for k, name in enumerate(names)}
    now_ms = START_MS
    for order in range(orders):
        for k, name in enumerate(names):
            now_ms = START_MS + order * ORDER_MS + k
            targets = latency.probe_targets(name, names, PROBES_PER_ORDER_MAX, order, now_ms, AGE_MS)
            latency.spend(name, len(targets), now_ms)
            for peer in names if k in liars else targets:
                if peer != name:
                    latency.observe(name, peer, 1 if k in liars else rtt_us(k, index[peer]), now_ms)
        for _ in range(20):
            latency.update(now_ms, AGE_MS, len(names))
    return now_ms


@pytest.mark.parametrize(
    "rtt_us", [0, -1, -(10**9), 10**9, RTT_MAX_US + 1, math.nan, math.inf, 5.0, True, "7", None]
)
def test_observe_impossible_rtt_is_refused_by_name(rtt_us: object) -> None:
    latency = LatencyMap()
    with pytest.raises(ValueError, match="rtt_us"):
        latency.observe(A, B, cast("int", rtt_us), START_MS)
    assert len(latency) == 0


@pytest.mark.parametrize(
    ("worker", "peer", "at_ms", "field"),
    [("", "b", 1, "worker_id"), ("a", "", 1, "peer_id"), ("a", "a", 1, "peer_id"), ("a", "b", -1, "at_ms")],
)
def test_observe_impossible_names_and_times_are_refused_by_name(
    worker: str, peer: str, at_ms: int, field: str
) -> None:
    with pytest.raises(ValueError, match=field):
        LatencyMap().observe(WorkerId(worker), WorkerId(peer), 1_000, at_ms)


def test_observe_time_decades_off_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="at_ms"):
        said((A, B, 1_000)).observe(A, C, 1_000, 10**18)


@pytest.mark.parametrize("rtt_us", [1, RTT_MAX_US])
def test_measured_extremes_that_can_be_are_kept(rtt_us: int) -> None:
    assert said((A, B, rtt_us)).measured_us(A, B, START_MS, AGE_MS) == rtt_us


def test_measured_two_ends_the_larger_word_counts_both_ways() -> None:
    latency = said((A, B, 4_000), (B, A, 6_000))
    assert latency.measured_us(A, B, START_MS, AGE_MS) == latency.measured_us(B, A, START_MS, AGE_MS) == 6_000


def test_measured_word_too_old_counts_no_more() -> None:
    latency = said((A, B, 9_000))
    later_ms = START_MS + HOUR_MS
    latency.observe(B, A, 4_000, later_ms)
    assert latency.measured_us(A, B, later_ms, HOUR_MS) == 9_000
    assert latency.measured_us(A, B, later_ms + 1_000, HOUR_MS) == 4_000
    assert latency.measured_us(A, B, later_ms + HOUR_MS + 1_000, HOUR_MS) is None


def test_observe_older_word_than_held_changes_nothing() -> None:
    latency = said((A, B, 4_000))
    latency.observe(A, B, 9_000, START_MS - 60_000)
    assert latency.measured_us(A, B, START_MS, AGE_MS) == 4_000


def test_measured_strangers_and_oneself_are_unknown() -> None:
    latency = said((A, B, 4_000))
    assert latency.measured_us(A, C, START_MS, AGE_MS) is None
    assert latency.measured_us(C, D, START_MS, AGE_MS) is None
    assert latency.measured_us(A, A, START_MS, AGE_MS) is None


def test_disputes_asymmetric_link_within_the_factor_is_nobodys_fault() -> None:
    latency = said((A, B, 20_000), (B, A, 44_000))
    assert len(latency.disputed_by(A)) == len(latency.disputed_by(B)) == 0


@pytest.mark.parametrize("liar_first", [True, False])
def test_disputes_who_claimed_less_is_recorded_whoever_spoke_first(*, liar_first: bool) -> None:
    words = [(A, B, 1), (B, A, 40_000)]
    latency = said(*(words if liar_first else reversed(words)))
    assert latency.disputed_by(A) == (B,)
    assert len(latency.disputed_by(B)) == 0
    assert latency.measured_us(A, B, START_MS, AGE_MS) == 40_000


def test_disputes_same_claim_again_is_counted_once() -> None:
    latency = said((A, B, 1), (B, A, 40_000), (A, B, 1), (A, B, 1))
    assert len(latency.disputed_by(A)) == 1


def test_disputes_claim_set_right_is_dropped() -> None:
    latency = said((A, B, 1), (B, A, 40_000), (A, B, 39_000))
    assert len(latency.disputed_by(A)) == 0


def test_disputes_words_hours_apart_are_not_compared() -> None:
    latency = said((A, B, 1_000))
    latency.observe(B, A, 40_000, START_MS + 2 * HOUR_MS)
    assert len(latency.disputed_by(A)) == 0


def test_doubted_often_disputed_counts_alone_for_nothing() -> None:
    names = fleet(DOUBTED_DISPUTES_MIN)
    latency = said(*((A, name, 1) for name in names), (A, D, 1), (D, C, 5_000))
    assert latency.measured_us(A, D, START_MS, AGE_MS) == 1
    for name in names:
        assert not latency.doubted(A)
        latency.observe(name, A, 50_000, START_MS)
    assert latency.doubted(A)
    assert latency.measured_us(A, D, START_MS, AGE_MS) is None
    assert latency.measured_us(A, names[0], START_MS, AGE_MS) == 50_000
    assert latency.predicted_us(A, C, START_MS, AGE_MS) is None


def test_doubted_few_against_many_who_bear_it_out_is_not() -> None:
    latency = LatencyMap()
    for k, name in enumerate(fleet(20)):
        latency.observe(A, name, 30_000, START_MS)
        latency.observe(name, A, 90_000 if k < 8 else 31_000, START_MS)
    assert len(latency.disputed_by(A)) == 8
    assert not latency.doubted(A)


def test_predicted_by_a_shared_third_is_the_least_sum_and_needs_no_coordinates() -> None:
    latency = said((A, C, 3_000), (B, C, 4_000), (A, D, 1_000), (D, B, 9_000))
    assert latency.predicted_us(A, B, START_MS, AGE_MS) == 7_000
    assert latency.measured_us(A, B, START_MS, AGE_MS) is None


def test_predicted_nothing_shared_and_nothing_settled_is_unknown() -> None:
    latency = said((A, C, 3_000), (B, D, 4_000))
    assert latency.predicted_us(A, B, START_MS, AGE_MS) is None
    assert latency.predicted_us(A, A, START_MS, AGE_MS) is None


def test_predicted_own_measurement_is_not_looked_at() -> None:
    latency = said((A, B, 50_000), (A, C, 3_000), (B, C, 4_000))
    assert latency.predicted_us(A, B, START_MS, AGE_MS) == 7_000


def test_matrix_unknown_pairs_and_workers_are_minus_one() -> None:
    latency = said((A, B, 5_000), (B, C, 6_000))
    told = latency.matrix([A, B, C, D], START_MS, AGE_MS)
    assert told.measured_us.tolist() == [
        [0, 5_000, -1, -1],
        [5_000, 0, 6_000, -1],
        [-1, 6_000, 0, -1],
        [-1, -1, -1, 0],
    ]
    assert told.predicted_us[0, 2] == told.best_us[0, 2] == 11_000
    assert told.best_us[0, 1] == 5_000
    assert (told.best_us[3, :3] == -1).all()


def test_matrix_of_nobody_is_empty_and_a_name_twice_is_refused() -> None:
    assert LatencyMap().matrix([], START_MS, AGE_MS).best_us.shape == (0, 0)
    with pytest.raises(ValueError, match="workers"):
        LatencyMap().matrix([A, A], START_MS, AGE_MS)


NAMES = fleet(8)
WORDS = st.lists(
    st.tuples(st.integers(0, 7), st.integers(0, 7), st.integers(1, 200_000), st.integers(0, 4)).filter(
        lambda word: word[0] != word[1]
    ),
    max_size=60,
)


@settings(max_examples=60, deadline=None)
@given(WORDS, st.permutations(NAMES))
def test_matrix_any_words_agree_with_each_pair_asked_alone(
    words: list[tuple[int, int, int, int]], order: list[WorkerId]
) -> None:
    latency = LatencyMap()
    for teller, peer, rtt_us, hour in words:
        latency.observe(NAMES[teller], NAMES[peer], rtt_us, START_MS + hour * HOUR_MS)
    now_ms = START_MS + 4 * HOUR_MS
    told = latency.matrix(order, now_ms, 2 * HOUR_MS)
    assert (told.measured_us == told.measured_us.T).all()
    assert (told.predicted_us == told.predicted_us.T).all()
    for i, a in enumerate(order):
        for j, b in enumerate(order):
            if i != j:
                measured, predicted = int(told.measured_us[i, j]), int(told.predicted_us[i, j])
                assert latency.measured_us(a, b, now_ms, 2 * HOUR_MS) == (None if measured < 0 else measured)
                assert latency.predicted_us(a, b, now_ms, 2 * HOUR_MS) == (
                    None if predicted < 0 else predicted
                )


def test_forget_worker_leaves_no_word_of_it_and_none_about_it() -> None:
    latency = said((A, B, 1), (B, A, 40_000), (C, A, 5_000), (B, C, 6_000))
    latency.forget(A, D)
    latency.forget(A)
    assert len(latency) == 2
    assert len(latency.disputed_by(A)) == 0
    assert latency.measured_us(B, A, START_MS, AGE_MS) is None
    latency.observe(D, C, 7_000, START_MS)
    assert latency.measured_us(D, B, START_MS, AGE_MS) is None
    assert latency.predicted_us(D, B, START_MS, AGE_MS) == 13_000
    assert latency.measured_us(B, C, START_MS, AGE_MS) == 6_000


def test_forget_who_contradicted_lifts_the_doubt() -> None:
    latency = LatencyMap()
    names = fleet(DOUBTED_DISPUTES_MIN)
    for name in names:
        latency.observe(A, name, 1, START_MS)
        latency.observe(name, A, 50_000, START_MS)
    assert latency.doubted(A)
    latency.forget(names[0])
    assert not latency.doubted(A)


def test_observe_more_peers_than_slots_keeps_the_newest() -> None:
    latency = LatencyMap()
    names = fleet(2 * SLOTS)
    for k, name in enumerate(names):
        latency.observe(A, name, 1_000 + k, START_MS + k * 1_000)
    now_ms = START_MS + 2 * SLOTS * 1_000
    assert latency.measured_us(A, names[-1], now_ms, AGE_MS) == 1_000 + 2 * SLOTS - 1
    assert {word.peer_id for word in latency.words(A, now_ms, AGE_MS)} == set(names[-SLOTS:])


def test_observe_flood_of_others_words_drives_out_none_of_its_own() -> None:
    latency = LatencyMap()
    own = fleet(SLOTS)
    for name in own:
        latency.observe(A, name, 30_000, START_MS)
    for k in range(2 * SLOTS):
        latency.observe(WorkerId(f"wrk-flood-{k}"), A, 1, START_MS + 1_000)
    told = latency.matrix([A, *own], START_MS, AGE_MS)
    assert (told.measured_us[0, 1:] == 30_000).all()
    # Nor is what was said lost: its teller keeps it.
    assert latency.measured_us(A, WorkerId("wrk-flood-100"), START_MS + 1_000, AGE_MS) == 1


def test_update_settled_coordinates_predict_pairs_that_share_nobody() -> None:
    count = 120
    names, rtt_us = fleet(count), plane(count)
    latency = LatencyMap()
    chance = np.random.default_rng(3)
    for k, name in enumerate(names):
        for peer in chance.permutation(count)[:10].tolist():
            if peer != k:
                latency.observe(name, names[peer], rtt_us(k, peer), START_MS)
    before = latency.matrix(names, START_MS, AGE_MS).predicted_us
    for _ in range(150):
        latency.update(START_MS, AGE_MS, count)
    after = latency.matrix(names, START_MS, AGE_MS).predicted_us
    filled = np.argwhere((before < 0) & (after >= 0))
    errors = [abs(int(after[i, j]) - rtt_us(i, j)) / rtt_us(i, j) for i, j in filled.tolist()]
    assert len(errors) > 100
    assert np.median(errors) < 0.25


def test_update_steps_bound_what_one_call_does() -> None:
    latency = said((A, C, 3_000), (B, D, 4_000))
    latency.update(START_MS, AGE_MS, 0)
    for _ in range(200):
        latency.update(START_MS, AGE_MS, 1)
    assert latency.predicted_us(A, B, START_MS, AGE_MS) is not None


def test_liars_claiming_nearness_to_all_are_found_and_ruin_nothing() -> None:
    count = 90
    names, rtt_us = fleet(count), plane(count)
    liars = frozenset(range(0, count, 10))
    latency = LatencyMap()
    now_ms = probe(latency, names, rtt_us, orders=6, liars=liars)
    assert all(latency.doubted(names[k]) == (k in liars) for k in range(count))
    honest = [k for k in range(count) if k not in liars]
    told = latency.matrix([names[k] for k in honest], now_ms, AGE_MS)
    truth = np.array([[rtt_us(a, b) if a != b else 0 for b in honest] for a in honest])
    above = np.triu_indices(len(honest), 1)
    near, best = truth[above] <= 20_000, told.best_us[above]
    assert (told.measured_us[told.measured_us >= 0] == truth[told.measured_us >= 0]).all()
    assert (best >= 0).all()
    assert (near == (best <= 20_000)).mean() > 0.95
    # Of a liar only what others measured is left.
    for k in liars:
        for other in honest:
            assert latency.measured_us(names[k], names[other], now_ms, AGE_MS) in {None, rtt_us(k, other)}


def test_probe_targets_newcomer_gets_landmarks_and_strangers() -> None:
    names = fleet(200)
    first = [set(LatencyMap().probe_targets(name, names, 8, 1, START_MS, AGE_MS)) for name in names]
    assert all(len(targets) == PROBES_PER_ORDER_MAX for targets in first)
    assert all(name not in targets for name, targets in zip(names, first, strict=True))
    landmarks = landmarks_of(names)
    assert len(landmarks) == LANDMARKS
    for name, targets in zip(names, first, strict=True):
        # A landmark itself takes one of the other workers in its own place.
        assert len(targets & set(landmarks)) >= LANDMARK_PROBES - (name in landmarks)
    assert max(sum(name in targets for targets in first) for name in names if name not in landmarks) < 20
    assert landmarks_of([*reversed(names), WorkerId("wrk-new")])[0] in {landmarks[0], "wrk-new"}


def test_probe_targets_near_pairs_are_found_by_few_probes() -> None:
    count = 120
    names, rtt_us = fleet(count), plane(count)
    latency = LatencyMap()
    now_ms = probe(latency, names, rtt_us, orders=5)
    measured = latency.matrix(names, now_ms, AGE_MS).measured_us
    near = [(a, b) for a in range(count) for b in range(a) if rtt_us(a, b) <= 8_000]
    assert len(near) > 500
    found = float(np.mean([measured[a, b] >= 0 for a, b in near]))
    assert found > 0.9
    assert found > 1.5 * float((measured >= 0).mean())


def test_probe_targets_known_pairs_are_asked_again_only_when_half_as_old_as_allowed() -> None:
    latency = said((A, B, 1_000), (A, C, 1_000), (B, A, 1_000), (C, A, 1_000))
    soon_ms, later_ms = START_MS + AGE_MS // 2, START_MS + AGE_MS // 2 + 2_000
    assert latency.probe_targets(A, [A, B, C], 8, 1, soon_ms, AGE_MS) == ()
    assert set(latency.probe_targets(A, [A, B, C], 8, 1, later_ms, AGE_MS)) == {B, C}


def test_probe_targets_claim_of_the_other_end_alone_is_checked_in_time() -> None:
    names = fleet(30)
    latency = LatencyMap()
    for name in names[:10]:
        latency.observe(A, name, 40_000, START_MS)
    latency.observe(B, A, 1, START_MS)
    drawn = [latency.probe_targets(A, [*names, B], 8, seed, START_MS, AGE_MS) for seed in range(20)]
    assert any(B in targets for targets in drawn)


def test_probe_targets_same_seed_gives_the_same_whatever_the_order_of_candidates() -> None:
    names, rtt_us = fleet(60), plane(60)
    one, two = LatencyMap(), LatencyMap()
    now_ms = probe(one, names, rtt_us, orders=3)
    assert probe(two, names, rtt_us, orders=3) == now_ms
    later_ms = now_ms + HOUR_MS
    targets = one.probe_targets(A, names, 8, 5, later_ms, AGE_MS)
    assert targets == two.probe_targets(A, names[::-1], 8, 5, later_ms, AGE_MS)
    assert targets != one.probe_targets(A, names, 8, 6, later_ms, AGE_MS)
    assert (one.matrix(names, now_ms, AGE_MS).best_us == two.matrix(names, now_ms, AGE_MS).best_us).all()


def test_probe_targets_nobody_to_ask_or_nothing_wanted_is_empty() -> None:
    latency = LatencyMap()
    assert latency.probe_targets(A, [A], 8, 1, START_MS, AGE_MS) == ()
    assert latency.probe_targets(A, [], 8, 1, START_MS, AGE_MS) == ()
    assert latency.probe_targets(A, [B], 0, 1, START_MS, AGE_MS) == ()
    assert latency.probe_targets(A, [B], -1, 1, START_MS, AGE_MS) == ()


def test_probe_targets_more_candidates_than_looked_at_still_serves() -> None:
    names = fleet(CANDIDATES_MAX + 500)
    targets = LatencyMap().probe_targets(A, names, 8, 1, START_MS, AGE_MS)
    assert len(set(targets)) == PROBES_PER_ORDER_MAX


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 900_000), st.integers(0, 12)), min_size=1, max_size=60))
def test_spend_any_rhythm_of_orders_stays_within_the_hour(asks: list[tuple[int, int]]) -> None:
    latency, names = LatencyMap(), fleet(40)
    spent: list[tuple[int, int]] = []
    now_ms = START_MS
    for pause_ms, wanted in asks:
        now_ms += pause_ms
        targets = latency.probe_targets(A, names, wanted, 1, now_ms, AGE_MS)
        assert len(targets) == min(wanted, latency.probes_left(A, now_ms))
        latency.spend(A, len(targets), now_ms)
        spent.append((now_ms, len(targets)))
    for at_ms, _ in spent:
        assert sum(count for when_ms, count in spent if at_ms <= when_ms < at_ms + HOUR_MS) <= PROBES_PER_HOUR


def test_spend_more_than_is_left_is_refused_and_an_hours_rest_earns_an_order() -> None:
    latency = LatencyMap()
    latency.spend(A, PROBES_PER_ORDER_MAX, START_MS)
    assert latency.probes_left(A, START_MS) == 0
    for count in (1, -1):
        with pytest.raises(ValueError, match="count"):
            latency.spend(A, count, START_MS)
    assert latency.probes_left(A, START_MS + HOUR_MS) == PROBES_PER_ORDER_MAX
