"""Groups: who comes together, who stays, who inherits, and what a liar can do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.core.ids import WorkerId
from orchestrator.core.nearness import grouping
from orchestrator.core.nearness.grouping import Kind, kind_of
from orchestrator.core.supply.fleet import HardwareClass, Isolation, Liveness, Worker
from tests.core.fleets import device, machine
from tests.core.towns import (
    HOUR_MS,
    Towns,
    apart,
    boxed,
    by_town,
    check,
    named,
    other_class,
    other_system,
    towns,
)

A, B, C, D, E = named("a", "b", "c", "d", "e")


def alphabet(distances_ms: dict[tuple[str, str], float], names: str = "abcde") -> Towns:
    """Machines with a letter for a name, far from each other unless said."""
    return towns([boxed(name) for name in names], apart(distances_ms))


def test_workers_near_and_alike_come_together_and_the_far_one_stays_alone() -> None:
    world = alphabet({("a", "b"): 3, ("a", "c"): 4, ("b", "c"): 5}, "abcd")
    world.meet(named("a", "b", "c", "d"))
    assert world.parts() == {frozenset({A, B, C}), frozenset({D})}
    check(world.groups, world.state)


def test_workers_of_which_nothing_is_known_are_alone() -> None:
    world = alphabet({})
    assert world.parts() == {frozenset({one}) for one in (A, B, C, D, E)}


@pytest.mark.parametrize(
    "other",
    [
        boxed("b", "RTX3060"),
        other_system(boxed("b")),
        other_class(boxed("b")),
        machine("b", device("b-0"), zone="attic"),
    ],
)
def test_workers_near_but_unlike_stay_apart(other: Worker) -> None:
    world = towns([boxed("a"), other], apart({("a", "b"): 1}))
    world.meet(named("a", "b"))
    assert world.parts() == {frozenset({A}), frozenset({B})}


def test_kind_of_several_models_is_the_commonest_and_without_devices_or_reach_there_is_none() -> None:
    several = boxed("a")
    devices = (device("1", "RTX3060"), device("2", "RTX4090"), device("3", "RTX4090"))
    kind = kind_of(replace(several, inventory=replace(several.inventory, devices=devices)))
    assert kind == Kind(
        HardwareClass.CONSUMER, "RTX4090", "linux", "provisioned, linux x86_64", several.inventory.reach
    )
    assert kind_of(boxed("a", gpus=0)) is None
    assert kind_of(machine("a", device("1"), isolation=Isolation.BOX)) is None
    assert kind_of(replace(several, liveness=Liveness.LOST)) is None
    assert kind_of(replace(several, liveness=Liveness.SUSPECT)) is not None


def test_newcomer_takes_the_nearest_leader() -> None:
    world = alphabet({("a", "b"): 12, ("a", "c"): 6, ("b", "c"): 5}, "abc")
    world.say(A, B)
    world.say(C, A, B)
    assert world.parts() == {frozenset({A}), frozenset({B, C})}


def test_distance_between_joining_and_staying_moves_nobody() -> None:
    world = alphabet({("a", "b"): 7}, "ab")
    world.meet(named("a", "b"))
    joined = world.parts()
    assert joined == {frozenset({A, B})}
    world.rtt_us = apart({("a", "b"): 9})
    world.meet(named("a", "b"))
    assert world.parts() == joined
    world.rtt_us = apart({("a", "b"): 10.1})
    world.meet(named("a", "b"))
    assert world.parts() == {frozenset({A}), frozenset({B})}
    world.rtt_us = apart({("a", "b"): 9})
    world.meet(named("a", "b"))
    assert world.parts() == {frozenset({A}), frozenset({B})}


def test_nearer_leader_is_no_reason_to_move() -> None:
    world = alphabet({("a", "b"): 6, ("a", "c"): 15, ("b", "c"): 1}, "abc")
    world.meet(named("a", "b"))
    before = world.who(B)
    world.meet(named("a", "b", "c"))
    assert before <= world.who(B)


def test_longer_link_moves_its_end_alone() -> None:
    near = {(one, other): 2.0 for one in "abcde" for other in "abcde" if one < other}
    world = alphabet(near)
    world.meet(named(*"abcde"))
    (group,) = world.groups
    follower = next(one for one in group.members if one != group.leader)
    stayed = set(group.members) - {follower}
    world.say(follower, group.leader, rtt_us=60_000)
    assert world.who(group.leader) == stayed
    assert follower not in stayed


def test_leader_that_goes_is_followed_by_its_nearest_and_nobody_else_moves() -> None:
    world = alphabet({("a", "b"): 1, ("a", "c"): 4, ("a", "d"): 5}, "abcd")
    world.say(B, A)
    world.say(A, B)
    world.say(C, A)
    world.say(D, A)
    for one in (B, C, D):
        world.say(A, one)
    (group,) = world.groups
    number, leader = group.number, group.leader
    world.state.remove_worker(leader)
    assert [one.number for one in world.groups] == [number]
    assert world.who(C) == {A, B, C, D} - {leader}
    check(world.groups, world.state)


def test_leader_that_goes_leaves_those_out_of_its_heirs_reach_to_lead_themselves() -> None:
    world = alphabet({("a", "b"): 6, ("a", "c"): 7}, "abc")
    world.say(B, A)
    world.say(C, A)
    world.say(A, B, C)
    assert world.parts() == {frozenset({A, B, C})}
    world.state.remove_worker(A)
    # By way of the one that left they are 13 ms apart, and nobody knows better.
    assert world.parts() == {frozenset({B}), frozenset({C})}
    check(world.groups, world.state)


def test_worker_that_becomes_another_leaves_and_one_that_comes_back_is_found_again() -> None:
    world = alphabet({("a", "b"): 1}, "ab")
    world.meet(named("a", "b"))
    world.state.put(replace(boxed("b"), liveness=Liveness.LOST))
    assert world.who(B) == set()
    assert world.who(A) == {A}
    world.state.put(boxed("b"))
    assert world.who(B) == {B}
    world.review()
    assert world.who(B) == {A, B}
    check(world.groups, world.state)


def test_worker_nobody_speaks_of_any_more_is_alone_again() -> None:
    world = alphabet({("a", "b"): 1}, "ab")
    world.meet(named("a", "b"))
    world.now_ms += 5 * HOUR_MS
    world.review()
    assert world.who(A) == {A, B}
    world.now_ms += 8 * HOUR_MS
    world.review()
    assert world.parts() == {frozenset({A}), frozenset({B})}


def test_two_groups_of_one_town_become_one_with_everybody_in_it() -> None:
    names = [f"x-{number}" for number in range(6)]
    world = towns([boxed(name) for name in names], by_town())
    first, second = named(*names[:3]), named(*names[3:])
    world.meet(first)
    world.meet(second)
    assert world.parts() == {frozenset(first), frozenset(second)}
    world.meet([*first, *second])
    world.review()
    assert world.parts() == {frozenset([*first, *second])}
    check(world.groups, world.state)


def test_smaller_group_goes_to_the_larger_whoever_speaks_first() -> None:
    names = [f"x-{number}" for number in range(5)]
    world = towns([boxed(name) for name in names], by_town())
    two, three = named(*names[:2]), named(*names[2:])
    world.meet(two)
    world.meet(three)
    numbers = {name: world.groups.of(name) for name in three}
    (small, large) = (world.groups.of(two[0]), world.groups.of(three[0]))
    assert small is not None
    assert large is not None
    world.say(small.leader, large.leader)
    world.say(large.leader, small.leader)
    assert all(world.groups.of(name) is numbers[name] for name in three)
    assert world.who(two[0]) == {*two, *three}


def test_leader_with_a_follower_that_could_not_come_along_stays_where_it_is() -> None:
    far = {("a", one): 5.0 for one in "cde"}
    world = alphabet({("a", "b"): 7, ("c", "d"): 1, ("c", "e"): 1, ("d", "e"): 1, **far})
    world.say(B, A)
    world.meet(named("c", "d", "e"))
    apart_still = {frozenset({A, B}), frozenset({C, D, E})}
    assert world.parts() == apart_still
    world.meet(named("a", "c", "d", "e"))
    assert world.parts() == apart_still
    check(world.groups, world.state)


def test_group_that_is_full_takes_nobody_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouping, "MEMBERS_MAX", 4)
    names = [f"x-{number}" for number in range(7)]
    world = towns([boxed(name) for name in names], by_town())
    world.meet(named(*names))
    world.review()
    assert sorted(len(group.members) for group in world.groups) == [3, 4]


# ---------------------------------------------------------------- who is believed


def test_word_of_one_that_nobody_bears_out_brings_in_the_speaker_alone() -> None:
    world = alphabet({}, "abc")
    world.say(A, B, C, rtt_us=1)
    # It may lead itself into one of theirs; of the two honest ones neither has moved.
    assert B not in world.who(C)
    world.say(B, A)
    world.say(C, A)
    world.review()
    assert world.parts() == {frozenset({A}), frozenset({B}), frozenset({C})}


def test_liar_near_everybody_brings_no_two_towns_together() -> None:
    names = [f"{town}-{number}" for town in ("rome", "oslo") for number in range(6)]
    world = towns([boxed(name) for name in [*names, "liar-0"]], by_town())
    liar = WorkerId("liar-0")
    world.say(liar, *named(*names), rtt_us=1)
    world.meet(named(*names[:6]))
    world.say(liar, *named(*names), rtt_us=1)
    world.meet(named(*names[6:]))
    for _ in range(3):
        world.say(liar, *named(*names), rtt_us=1)
        world.review()
    check(world.groups, world.state)
    for group in world.groups:
        assert len({one.partition("-")[0] for one in group.members} - {"liar"}) <= 1
    for name in named(*names):
        world.say(name, liar)
    world.review()
    assert world.parts() == {frozenset(named(*names[:6])), frozenset(named(*names[6:])), frozenset({liar})}


def rome_with_a_liar_from_oslo(*, borne_out: bool) -> tuple[Towns, list[WorkerId], int]:
    """Four in Rome who say so of each other, or only each for itself, and a liar that says the same. Their leader has
    left; who is left of them, and the number of their group.
    """
    names = [f"rome-{number}" for number in range(4)]
    world = towns([boxed(name) for name in [*names, "oslo-liar", "oslo-honest"]], by_town())
    rome, liar = named(*names), WorkerId("oslo-liar")
    if borne_out:
        world.meet(rome)
    else:
        for one in rome[1:]:
            world.say(one, rome[0])
    world.say(liar, *rome, rtt_us=1)
    group = world.groups.of(rome[0])
    assert group is not None
    assert set(group.members) == {*rome, liar}
    world.state.remove_worker(group.leader)
    return world, [one for one in rome if one in world.state.workers], group.number


@pytest.mark.parametrize("borne_out", [True, False])
def test_liar_that_inherits_brings_nobody_from_elsewhere(borne_out: bool) -> None:
    world, rome, _ = rome_with_a_liar_from_oslo(borne_out=borne_out)
    liar, honest = named("oslo-liar", "oslo-honest")
    world.say(honest, liar)
    world.say(liar, honest)
    assert not world.who(honest) & set(rome)
    check(world.groups, world.state)


def test_leader_that_goes_is_not_followed_by_one_that_nobody_bears_out() -> None:
    world, rome, number = rome_with_a_liar_from_oslo(borne_out=True)
    assert set(rome) <= world.who(rome[0])
    group = world.groups.of(rome[0])
    assert group is not None
    assert (group.leader in rome, group.number) == (True, number)


def test_peer_that_claims_to_be_far_drives_nobody_but_the_two_apart() -> None:
    names = [f"x-{number}" for number in range(5)]
    world = towns([boxed(name) for name in names], by_town())
    world.meet(named(*names))
    (group,) = world.groups
    liar = next(one for one in group.members if one != group.leader)
    world.say(liar, *(one for one in named(*names) if one != liar), rtt_us=10_000_000)
    world.review()
    assert world.parts() == {frozenset(set(named(*names)) - {liar}), frozenset({liar})}


@pytest.mark.parametrize("rtt_us", [0, -5, 10**9])
def test_impossible_round_trip_changes_no_group(rtt_us: int) -> None:
    world = alphabet({("a", "b"): 1}, "ab")
    world.meet(named("a", "b"))
    before = world.parts()
    with pytest.raises(ValueError, match="rtt_us"):
        world.state.latency.observe(A, B, rtt_us, world.now_ms)
    world.groups.measured(A, (B,), world.now_ms)
    assert world.parts() == before


def test_stranger_in_a_report_is_passed_over() -> None:
    world = alphabet({}, "a")
    world.say(A, WorkerId("nobody-knows"))
    world.groups.remove(WorkerId("nobody-knows"))
    assert world.parts() == {frozenset({A})}
