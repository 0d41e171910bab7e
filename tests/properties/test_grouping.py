"""What holds of groups after anything that workers, their links and liars can do."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.ids import WorkerId
from orchestrator.core.nearness.latency import RTT_MAX_US
from orchestrator.core.supply.fleet import Liveness, Worker
from tests.core.towns import HOUR_MS, Towns, boxed, by_town, check, named, towns

TOWNS = ("rome", "oslo", "lima")
WORKERS_MAX = 12

NAMES = [f"{TOWNS[number % 3]}-{number}" for number in range(WORKERS_MAX)]
SEEDS = st.integers(0, 2**32 - 1)
RTTS_US = st.sampled_from([1, 500, 3_000, 7_999, 8_000, 8_001, 9_999, 10_000, 10_001, 60_000, RTT_MAX_US])


def as_a(dice: random.Random, name: str) -> Worker:
    """A machine of either of two models; there, gone or without an overlay."""
    worker = boxed(name, dice.choice(["RTX4090", "RTX4090", "RTX3060"]))
    match dice.randrange(10):
        case 0:
            return replace(worker, liveness=dice.choice([Liveness.LOST, Liveness.SUSPECT, Liveness.LEFT]))
        case 1:
            return replace(worker, inventory=replace(worker.inventory, overlay="none"))
        case _:
            return worker


def anything(world: Towns, dice: random.Random, rtt_us: int) -> None:
    """One step of a story that nobody would tell."""
    name = WorkerId(dice.choice(NAMES))
    match dice.randrange(8):
        case 0:
            world.state.put(as_a(dice, name))
        case 1 if name in world.state.workers:
            world.state.remove_worker(name)
        case 2:
            world.now_ms += dice.choice([1, HOUR_MS, 7 * HOUR_MS])
        case 3:
            world.groups.review(world.now_ms, dice.randrange(5))
        case _:
            peers = [WorkerId(one) for one in dice.sample(NAMES, 3) if one != name]
            world.say(name, *peers, rtt_us=rtt_us if dice.random() < 0.7 else 0)


@given(SEEDS, st.lists(RTTS_US, max_size=60))
@settings(max_examples=150)
def test_members_are_alike_and_within_reach_of_their_leader_after_anything(
    seed: int, rtts_us: list[int]
) -> None:
    dice = random.Random(seed)
    world = towns([], by_town())
    for rtt_us in rtts_us:
        anything(world, dice, rtt_us)
        check(world.groups, world.state)


@given(SEEDS, st.integers(0, 40), RTTS_US)
@settings(max_examples=150)
def test_changed_link_moves_its_ends_and_only_leaders_take_anybody_along(
    seed: int, steps: int, rtt_us: int
) -> None:
    dice = random.Random(seed)
    world = towns([boxed(name) for name in NAMES], by_town(near_us=dice.choice([500, 3_000, 7_000])))
    for _ in range(steps):
        anything(world, dice, dice.choice([1, 3_000, 9_000, 60_000]))
    one, other = named(*dice.sample(NAMES, 2))
    if not {one, other} <= world.state.workers.keys():
        return
    before = {name: world.groups.of(name) for name in world.state.workers}
    followers = {
        name
        for end in (one, other)
        if (group := before[end]) is not None and group.leader == end
        for name in group.members
    }
    were = {name: set() if group is None else set(group.members) for name, group in before.items()}
    world.say(one, other, rtt_us=rtt_us)
    for name, group in before.items():
        if name not in followers | {one, other}:
            assert world.groups.of(name) is group
            gone = were[name] - world.who(name)
            assert gone <= followers | {one, other}


@given(SEEDS)
@settings(max_examples=60)
def test_towns_become_the_groups_whatever_the_order_once_all_have_spoken(seed: int) -> None:
    dice = random.Random(seed)
    fleet = [boxed(name) for name in NAMES]
    dice.shuffle(fleet)
    world = towns(fleet, by_town())
    words = [(one, other) for one in NAMES for other in NAMES if one != other]
    dice.shuffle(words)
    for one, other in words:
        world.say(WorkerId(one), WorkerId(other))
        if dice.random() < 0.1:
            world.review()
    for _ in range(WORKERS_MAX):
        world.review()
    assert world.parts() == {
        frozenset(WorkerId(name) for name in NAMES if name.startswith(town)) for town in TOWNS
    }
    settled = world.parts()
    world.review()
    assert world.parts() == settled


@given(SEEDS, st.integers(5, 80))
@settings(max_examples=150)
def test_one_liar_brings_no_two_honest_workers_of_different_towns_together(seed: int, steps: int) -> None:
    dice = random.Random(seed)
    world = towns([boxed(name) for name in NAMES], by_town(near_us=dice.choice([500, 3_000, 7_000])))
    liar = WorkerId(dice.choice(NAMES))
    for _ in range(steps):
        who = liar if dice.random() < 0.3 else WorkerId(dice.choice(NAMES))
        peers = [WorkerId(one) for one in dice.sample(NAMES, dice.randint(1, 6)) if one != who]
        world.say(who, *peers, rtt_us=dice.choice([1, 2_000, RTT_MAX_US]) if who == liar else 0)
        if dice.random() < 0.1:
            gone = dice.choice(NAMES)
            if gone in world.state.workers:
                world.state.remove_worker(WorkerId(gone))
            world.state.put(boxed(gone))
        for group in world.groups:
            assert len({one.partition("-")[0] for one in group.members if one != liar}) <= 1


@given(SEEDS, st.integers(0, 60))
@settings(max_examples=60)
def test_same_story_told_twice_ends_in_the_same_groups(seed: int, steps: int) -> None:
    ends = []
    for _ in range(2):
        dice = random.Random(seed)
        world = towns([boxed(name) for name in NAMES], by_town())
        for _ in range(steps):
            anything(world, dice, dice.choice([1, 3_000, 9_000, 60_000]))
        ends.append([(group.number, group.leader, tuple(group.members)) for group in world.groups])
    assert ends[0] == ends[1]
