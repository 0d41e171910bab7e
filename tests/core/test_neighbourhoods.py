"""Bounded gangs out of fleets that span the world: what is near is found, however many are cheaper elsewhere."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pytest

from orchestrator.core.ids import JobId, TenantId, WorkerId
from orchestrator.core.jobs import Pattern, Requirements
from orchestrator.core.nearness.grouping import GroupPolicy, Groups
from orchestrator.core.nearness.latency import LatencyMap
from orchestrator.core.scheduling.assembling import CANDIDATES_MAX, near_enough
from orchestrator.core.scheduling.draft import Draft
from orchestrator.core.scheduling.placement import Budget, JobNeed, Placement
from orchestrator.core.scheduling.plan import plan
from orchestrator.core.supply.fleet import NEBULA, Isolation, Worker
from orchestrator.core.supply.terms import Ask, Terms
from tests.core.fleets import CREDIT, machine
from tests.core.towns import Towns, boxed, by_town, named, towns
from tests.core.worlds import Listed

SITES = 320
EACH = 10
"""Workers of a site: 3,200 in all, of whom the cheapest 256 are hardly one of each site."""

LANDMARKS = 2
ROUNDS = 12


def asks(credits_: float) -> Terms:
    return Terms(asks=(Ask("RTX4090", round(credits_ * CREDIT)),))


def a_world(sites: int = SITES, each: int = EACH, near_us: int = 2_000) -> Towns:
    """Machines of all prices in all places, and a head host."""
    dice = random.Random(5)
    fleet: list[Worker] = [
        boxed(f"s{site}-{number}", terms=asks(dice.uniform(0.1, 1)))
        for number in range(each)
        for site in range(sites)
    ]
    head = machine("head", head_slots=4, isolation=Isolation.BOX, overlay=NEBULA)
    return towns([*fleet, head], by_town(near_us=near_us))


def probed(world: Towns, near: int = 4) -> None:
    """Each has measured the same landmarks and some of its own site."""
    dice = random.Random(7)
    names = [one for one in world.state.workers if one != "head"]
    sites: dict[str, list[WorkerId]] = {}
    for one in names:
        sites.setdefault(one.partition("-")[0], []).append(one)
    for _ in range(2):
        for one in names:
            here = [other for other in sites[one.partition("-")[0]] if other != one]
            marks = [other for other in names[:LANDMARKS] if other != one]
            world.say(one, *dice.sample(here, min(near, len(here))), *marks)


def wanted(gpus: int, bound_ms: int = 10, **more: object) -> Requirements:
    values: dict[str, object] = {
        "gpus": gpus,
        "isolation": Isolation.BOX,
        "max_rtt_ms": bound_ms,
        "pattern": Pattern.ALL_REDUCE,
        **more,
    }
    return replace(Requirements(), **values)  # type: ignore[arg-type]  # names checked by the dataclass


@dataclass
class Sought:
    """What became of one request after some plans, each followed by the measurements that it asked for."""

    placement: Placement | None
    plans: int

    @property
    def workers(self) -> list[WorkerId]:
        assert self.placement is not None
        return [share.worker_id for share in self.placement.shares]


def sought(world: Towns, asked: Requirements) -> Sought:
    need = JobNeed(JobId("job"), TenantId("ten"), asked)
    for number in range(ROUNDS):
        made = plan(world.state, Listed([need]), world.now_ms, Budget())
        if made.placements:
            return Sought(made.placements[0], number + 1)
        for one, other in made.pairs:
            world.say(one, other)
            world.say(other, one)
    return Sought(None, ROUNDS)


def forget_groups(world: Towns) -> None:
    """Everybody is alone, whatever was measured: what is left are the cheapest."""
    fresh = Groups(LatencyMap(), GroupPolicy(), 1)
    for one in world.state.workers.values():
        fresh.put(one, world.state.offers.number_of(one.worker_id))
    world.state.groups = fresh


@pytest.fixture(scope="module")
def earth() -> Callable[[], Towns]:
    """One world for all that only look at it, and measure a little more of it."""
    world = a_world()
    probed(world)
    return lambda: world


def test_gang_in_a_world_of_three_thousand_is_found_by_groups_and_not_among_the_cheapest(
    earth: Callable[[], Towns],
) -> None:
    world = earth()
    assert len(world.state.workers) > 3_000
    found = sought(world, wanted(8))
    assert found.placement is not None
    assert found.plans <= 4
    for one, other in combinations(found.workers, 2):
        known = world.state.latency.measured_us(one, other, world.now_ms, 3_600_000)
        assert known is not None
        assert known <= 10_000
    kept = world.state.groups
    forget_groups(world)
    try:
        assert sought(world, wanted(8)).placement is None
    finally:
        world.state.groups = kept


def test_gang_comes_of_the_cheapest_group_that_has_enough(earth: Callable[[], Towns]) -> None:
    world = earth()

    def cost(workers: list[WorkerId]) -> int:
        return sum(world.state.workers[one].terms.asks[0].microcredits_per_gpu_hour for one in workers)

    def cheapest(site: int) -> int:
        prices = sorted(cost([WorkerId(f"s{site}-{number}")]) for number in range(EACH))
        return sum(prices[:8])

    found = sought(world, wanted(8))
    assert cost(found.workers) <= min(cheapest(site) for site in range(SITES)) * 1.02


def test_gang_larger_than_any_group_takes_groups_whose_leaders_are_near() -> None:
    world = a_world(sites=40)
    near = {"s3", "s4", "s5"}

    def rtt_us(one: WorkerId, other: WorkerId) -> int:
        here, there = one.partition("-")[0], other.partition("-")[0]
        return 2_000 if here == there else 14_000 if {here, there} <= near else 90_000

    world.rtt_us = rtt_us
    probed(world)
    for site in near:
        world.say(
            WorkerId(f"{site}-0"), *(WorkerId(f"{other}-{k}") for other in near - {site} for k in range(9))
        )
    found = sought(world, wanted(24, 20))
    assert {one.partition("-")[0] for one in found.workers} == near


def test_gang_within_less_than_groups_are_is_looked_for_around_their_leaders() -> None:
    world = a_world(sites=80, near_us=4_500)
    near = set(named(*(f"s7-{number}" for number in range(5))))

    def rtt_us(one: WorkerId, other: WorkerId) -> int:
        same = one.partition("-")[0] == other.partition("-")[0]
        return 1_000 if {one, other} <= near else 4_500 if same else 90_000

    world.rtt_us = rtt_us
    world.meet(sorted(near))
    probed(world)
    found = sought(world, wanted(4, 2))
    assert set(found.workers) <= near


def test_groups_of_which_none_has_enough_leave_the_cheapest_to_choose_from() -> None:
    world = a_world(sites=CANDIDATES_MAX + 20, each=1)
    cheapest = min(
        (one for one in world.state.workers if one != "head"),
        key=lambda one: world.state.workers[one].terms.asks[0].microcredits_per_gpu_hour,
    )
    partner = next(one for one in world.state.workers if one not in {"head", cheapest})
    world.rtt_us = lambda one, other: 3_000 if {one, other} == {cheapest, partner} else 70_000
    made = plan(world.state, Listed([JobNeed(JobId("j"), TenantId("t"), wanted(2))]), world.now_ms, Budget())
    assert any(cheapest in pair for pair in made.pairs)


def test_gang_of_so_many_on_each_machine_counts_only_these() -> None:
    fleet = [
        boxed(f"s{site}-{number}", gpus=2 if site == 3 else 1) for site in range(30) for number in range(EACH)
    ]
    head = machine("head", head_slots=4, isolation=Isolation.BOX, overlay=NEBULA)
    world = towns([*fleet, head], by_town())
    probed(world)
    found = sought(world, wanted(8, gpus_per_worker=2))
    assert {one.partition("-")[0] for one in found.workers} == {"s3"}
    assert found.placement is not None
    assert [len(share.device_ids) for share in found.placement.shares] == [2, 2, 2, 2]


def test_replacement_is_looked_for_beside_those_that_stay(earth: Callable[[], Towns]) -> None:
    world = earth()
    others = named("s5-0", "s5-1")
    for one in named(*(f"s5-{number}" for number in range(2, EACH))):
        world.say(one, *others)
    draft = Draft(world.state, world.now_ms)
    theirs = [row for one in others for row in world.state.offers.rows_of(one)]
    rows = np.setdiff1d(np.flatnonzero(draft.free > 0), theirs)

    def found() -> set[WorkerId]:
        near = near_enough(draft, wanted(8), rows, others)
        return {world.state.offers.worker_of(row) for row in near.tolist()}

    assert found() >= set(named(*(f"s5-{number}" for number in range(2, EACH))))
    kept = world.state.groups
    forget_groups(world)
    try:
        assert len(found()) < EACH - 2
    finally:
        world.state.groups = kept
