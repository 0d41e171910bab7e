"""The flat picture of distances."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from orchestrator.core.nearness.layout import positions_ms


def distances_us(points_ms: list[tuple[float, float]]) -> NDArray[np.int32]:
    places = np.array(points_ms)
    gap = places[:, None, :] - places[None, :, :]
    told: NDArray[np.int32] = np.rint(np.sqrt((gap**2).sum(axis=2)) * 1_000).astype(np.int32)
    return told


@given(st.lists(st.tuples(st.integers(-90, 90), st.integers(-90, 90)), min_size=2, max_size=12, unique=True))
def test_positions_of_points_on_a_plane_keep_their_distances(points: list[tuple[int, int]]) -> None:
    told = distances_us([(float(x), float(y)) for x, y in points])
    drawn = distances_us([(x, y) for x, y in positions_ms(told).tolist()])
    assert np.abs(drawn - told).max() <= 100


def test_positions_of_unknown_pairs_follow_the_shortest_way_by_others() -> None:
    told = np.array([[0, 10_000, -1], [10_000, 0, 20_000], [-1, 20_000, 0]], dtype=np.int32)
    places = positions_ms(told)
    assert np.linalg.norm(places[0] - places[2]) == pytest.approx(30, abs=0.1)


def test_positions_of_parts_that_nothing_joins_are_apart() -> None:
    told = np.full((4, 4), -1, dtype=np.int32)
    np.fill_diagonal(told, 0)
    told[0, 1] = told[1, 0] = told[2, 3] = told[3, 2] = 4_000
    places = positions_ms(told)
    assert np.isfinite(places).all()
    assert np.linalg.norm(places[0] - places[2]) > np.linalg.norm(places[0] - places[1])


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_positions_of_few_or_all_at_one_place_are_numbers(count: int) -> None:
    places = positions_ms(np.zeros((count, count), dtype=np.int32))
    assert places.shape == (count, 2)
    assert np.isfinite(places).all()
