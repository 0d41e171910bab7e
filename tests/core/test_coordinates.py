"""Detours are the least that any shared third allows; springs settle, and no single word moves a worker far."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.nearness.coordinates import (
    MOVE_MAX_MS,
    STEP,
    UNKNOWN_US,
    Coordinates,
    shortest_detours,
)

ROWS = st.lists(
    st.dictionaries(st.integers(0, 9), st.integers(1, 10_000_000), min_size=0, max_size=6),
    min_size=1,
    max_size=7,
)


def settled(rtt_us: list[list[int]], rounds: int) -> Coordinates:
    """Everybody has measured everybody; 0 stands for no spring."""
    count = len(rtt_us)
    coordinates = Coordinates()
    coordinates.grow(count)
    for row in range(count):
        coordinates.place(row, f"wrk-{row}")
    rows = np.arange(count)
    peers = np.tile(np.arange(count, dtype=np.int32), (count, 1))
    springs = np.array(rtt_us, dtype=np.int32)
    for _ in range(rounds):
        coordinates.relax(rows, peers, np.where(springs > 0, springs, UNKNOWN_US).astype(np.int32))
    return coordinates


@settings(max_examples=100, deadline=None)
@given(ROWS)
def test_detours_any_table_are_the_least_sum_over_shared_peers(table: list[dict[int, int]]) -> None:
    peers = np.full((len(table), 6), -1, dtype=np.int32)
    rtt_us = np.full((len(table), 6), UNKNOWN_US, dtype=np.int32)
    for row, words in enumerate(table):
        for slot, (peer, word_us) in enumerate(words.items()):
            peers[row, slot], rtt_us[row, slot] = peer, word_us
    least = shortest_detours(peers, rtt_us)
    for a, one in enumerate(table):
        for b, two in enumerate(table):
            if a != b:
                sums = [one[via] + two[via] for via in one.keys() & two.keys()]
                assert int(least[a, b]) == min(sums, default=UNKNOWN_US)


def test_between_not_yet_settled_is_unknown() -> None:
    fresh = settled([[0, 9_000], [9_000, 0]], rounds=0)
    assert (fresh.between_us(np.arange(2), np.arange(2)) == UNKNOWN_US).all()


def test_relax_consistent_distances_are_met() -> None:
    rtt_us = [[0, 30_000, 50_000], [30_000, 0, 40_000], [50_000, 40_000, 0]]
    told = settled(rtt_us, rounds=200).between_us(np.arange(3), np.arange(3))
    above = np.triu_indices(3, 1)
    assert np.allclose(told[above], np.array(rtt_us)[above], rtol=0.05)


def test_relax_no_springs_moves_nobody() -> None:
    coordinates = settled([[0, 30_000], [30_000, 0]], rounds=100)
    before = coordinates.between_us(np.arange(2), np.arange(2))
    coordinates.relax(
        np.arange(2), np.zeros((2, 1), dtype=np.int32), np.full((2, 1), UNKNOWN_US, dtype=np.int32)
    )
    assert (coordinates.between_us(np.arange(2), np.arange(2)) == before).all()


def test_relax_impossible_word_moves_a_worker_no_farther_than_a_step() -> None:
    coordinates = settled([[0, 30_000], [30_000, 0]], rounds=100)
    before_us = int(coordinates.between_us(np.array([0]), np.array([1]))[0, 0])
    word = np.array([[10_000_000]], dtype=np.int32)
    coordinates.relax(np.array([0]), np.array([[1]], dtype=np.int32), word)
    # Its error rises at once, so that the pair is unknown or hardly farther than it was.
    after_us = int(coordinates.between_us(np.array([0]), np.array([1]))[0, 0])
    assert after_us == UNKNOWN_US or after_us - before_us <= STEP * MOVE_MAX_MS * 1_000 + 1
