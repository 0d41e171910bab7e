"""What is listed and drawn of groups where there are too many, and where one is gone."""

from __future__ import annotations

import pytest

from orchestrator.core.ids import WorkerId
from orchestrator.core.queries import groups as queries
from orchestrator.core.queries.groups import drawn, group_standing, overview
from tests.core.towns import HOUR_MS, Towns, boxed, by_town, named, towns


def three_towns() -> Towns:
    """Of four, three and two, and one alone of which a distance is known, and one of which none is."""
    sizes = {"rome": 4, "oslo": 3, "lima": 2, "moon": 1, "mars": 1}
    names = [f"{town}-{number}" for town, size in sizes.items() for number in range(size)]
    world = towns([boxed(name) for name in names], by_town())
    for town, size in sizes.items():
        world.meet(named(*(f"{town}-{number}" for number in range(size))))
    world.say(WorkerId("moon-0"), WorkerId("rome-0"))
    return world


def towns_of(world: Towns) -> list[str]:
    chosen, distances_us = drawn(world.state, world.now_ms)
    assert distances_us.shape == (len(chosen), len(chosen))
    return [one.name.partition("-")[0] for one in chosen]


def test_overview_lists_the_largest_first_and_only_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    world = three_towns()
    found = overview(world.state, everything=False)
    members = [len(group.members) for number in found.numbers if (group := world.groups.get(number))]
    assert (members, found.groups, found.alone, found.workers, found.known) == ([4, 3, 2], 3, 2, 11, 10)
    assert len(overview(world.state, everything=True).numbers) == 5
    monkeypatch.setattr(queries, "LISTED_MAX", 2)
    fewer = overview(world.state, everything=True)
    assert (fewer.numbers, fewer.groups) == (found.numbers[:2], 3)


def test_group_standing_of_a_group_that_is_gone_is_none() -> None:
    world = three_towns()
    number = overview(world.state, everything=False).numbers[-1]
    for name in named("lima-0", "lima-1"):
        world.state.remove_worker(name)
    assert group_standing(world.state, number, world.now_ms) is None


def test_group_standing_counts_pairs_whose_words_are_too_old_as_not_measured() -> None:
    world = three_towns()
    number = overview(world.state, everything=False).numbers[0]
    fresh = group_standing(world.state, number, world.now_ms)
    assert fresh is not None
    assert (fresh.pairs_measured, fresh.measured_us, fresh.predicted_us) == (6, 2_000, None)
    old = group_standing(world.state, number, world.now_ms + 7 * HOUR_MS)
    assert old is not None
    assert (old.pairs, old.pairs_measured, old.measured_us) == (6, 0, None)


def test_drawn_leaves_out_whoever_nothing_is_known_of() -> None:
    world = three_towns()
    assert towns_of(world) == ["rome"] * 4 + ["oslo"] * 3 + ["lima"] * 2 + ["moon"]


@pytest.mark.parametrize(
    ("most", "shown"),
    [(8, ["rome"] * 4 + ["oslo"] * 3 + ["moon"]), (6, ["rome"] * 4 + ["lima"] * 2), (3, ["rome"] * 3)],
)
def test_drawn_takes_whole_groups_as_far_as_there_is_room(
    monkeypatch: pytest.MonkeyPatch, most: int, shown: list[str]
) -> None:
    monkeypatch.setattr(queries, "DRAWN_MAX", most)
    assert towns_of(three_towns()) == shown
