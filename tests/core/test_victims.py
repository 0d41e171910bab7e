"""Victims: the least of those who may give way, of the same tenant and of others, and shares that say who may."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from random import Random

import pytest

from orchestrator.core.ids import ClusterId, JobId
from orchestrator.core.jobs import JobPolicy, Requirements
from orchestrator.core.market.worth import worth_milli
from orchestrator.core.queries.queue import capacity_of
from orchestrator.core.queries.shares import Shares
from orchestrator.core.scheduling.placement import Claim, Victim
from orchestrator.core.scheduling.preempting import Candidate, cheapest_cover
from tests.core.preemptions import (
    POLICIES,
    POLICY,
    begin,
    busy,
    settle,
    submit,
    urgent,
    victims_of,
)
from tests.core.worlds import World

# ------------------------------------------------------------ the least of them


def machines(*sizes: int) -> World:
    """Machines of so many devices, which nobody uses yet."""
    world = World(POLICIES)
    world.head_host(4)
    for size in sizes:
        world.worker(count=size)
    return world


def test_who_has_run_for_least_gives_way() -> None:
    world = World(POLICIES)
    for _ in range(3):
        world.worker()
    jobs = []
    for _ in range(3):
        jobs.append(begin(world))
        world.live_on(50_000)
    world.live_on(POLICY.run_ms_min)
    urgent(world)
    assert victims_of(world.plan()) == {jobs[2]}


def test_one_with_two_devices_may_lose_less_than_two_with_one() -> None:
    world = machines(2, 2)
    for _ in range(2):
        begin(world)
    world.live_on(200_000)
    young = begin(world, Requirements(gpus=2))
    world.live_on(POLICY.run_ms_min)
    urgent(world, Requirements(gpus=2, one_machine=True))
    assert victims_of(world.plan()) == {young}


def test_large_one_is_spared_where_a_small_one_does() -> None:
    world = machines(4)
    begin(world, Requirements(gpus=3))
    small = begin(world)
    world.live_on(POLICY.run_ms_min)
    urgent(world)
    assert victims_of(world.plan()) == {small}


def test_gang_over_machines_gets_exactly_those_it_needs() -> None:
    world, lows = busy(4)
    world.worker()
    high = urgent(world, Requirements(gpus=3))
    made = world.plan()
    assert len(victims_of(made)) == 2
    assert victims_of(made) <= set(lows)
    world.live_on(POLICY.notice_ms)
    settle(world)
    world.plan()
    assert len(world.members(high)) == 4


def test_gang_of_so_many_on_each_machine_gets_whole_machines() -> None:
    world = machines(2, 2, 2)
    for _ in range(5):
        begin(world)
        world.live_on(10_000)
    world.live_on(POLICY.run_ms_min)
    high = urgent(world, Requirements(gpus=4, gpus_per_worker=2))
    made = world.plan()
    assert len(victims_of(made)) == 3
    world.live_on(POLICY.notice_ms)
    settle(world)
    world.plan()
    assert sorted(len(member.device_ids) for member in world.members(high)) == [0, 2, 2]


def test_gang_that_lacks_a_head_slot_has_a_gang_give_way() -> None:
    world = World(POLICIES)
    world.head_host(1)
    for _ in range(4):
        world.worker()
    gang = begin(world, Requirements(gpus=2))
    for _ in range(2):
        begin(world)
    world.live_on(POLICY.run_ms_min)
    high = urgent(world, Requirements(gpus=2))
    assert victims_of(world.plan()) == {gang}
    world.live_on(POLICY.notice_ms)
    settle(world)
    world.plan()
    assert world.job(high).attempt_id is not None


def test_idle_clusters_are_closed_before_anybody_is_asked() -> None:
    """One idle cluster and one victim do together what neither does alone."""
    world, lows = busy(3)
    world.finish(lows[0])
    high = urgent(world, Requirements(gpus=2))
    made = world.plan()
    assert len(victims_of(made)) == 1
    assert len(made.closings) == 1
    world.live_on(POLICY.notice_ms)
    settle(world)
    world.plan()
    assert world.job(high).attempt_id is not None


# ------------------------------------------------------------ other tenants


def shared(machines: int, held: int) -> tuple[World, list[JobId]]:
    """Acme holds everything but what birch holds."""
    world = World(POLICIES)
    world.tenant("birch")
    for _ in range(machines):
        world.worker()
    for _ in range(held):
        begin(world, tenant="birch")
    lows = [begin(world) for _ in range(machines - held)]
    world.live_on(POLICY.run_ms_min)
    return world, lows


def test_tenant_beyond_its_share_gives_way_to_one_that_waited_too_long() -> None:
    world, lows = shared(2, 0)
    other = submit(world, tenant="birch", interruptible=False)
    world.live_on(POLICY.wait_for_share_ms - 1_000)
    assert world.plan().preemptions == ()
    world.live_on(1_000)
    made = world.plan()
    (victim,) = victims_of(made)
    assert victim in lows
    (member,) = world.members(victim)
    assert member.notice is not None
    assert member.notice.reason == "gives way to work that waited longer than its share allows"
    assert "birch" not in member.notice.reason + world.job(victim).message
    world.live_on(POLICY.notice_ms)
    settle(world)
    world.plan()
    assert world.job(other).attempt_id is not None


def test_entitled_job_does_not_wait_longer_than_for_its_own_tenants() -> None:
    world, _ = shared(2, 0)
    other = submit(world, tenant="birch", interruptible=False)
    world.state.put(replace(world.state.jobs[other], overtaken=JobPolicy().overtaken_max))
    world.live_on(POLICY.wait_ms)
    assert len(world.plan().preemptions) == 1


def test_tenant_that_holds_its_share_has_nobody_give_way() -> None:
    world, _ = shared(2, 1)
    submit(world, tenant="birch", interruptible=False)
    world.live_on(2 * POLICY.wait_for_share_ms)
    assert world.plan().preemptions == ()


def test_tenant_gets_no_more_than_its_share_by_others_giving_way() -> None:
    """Three machines for two: a second one would put birch where acme is now, and so for ever to and fro."""
    world, _ = shared(3, 1)
    submit(world, tenant="birch", interruptible=False)
    world.live_on(2 * POLICY.wait_for_share_ms)
    assert world.plan().preemptions == ()


def test_tenants_work_that_gives_way_already_is_not_counted_twice() -> None:
    """Birch lacks two of four machines, and has many jobs that wait: two give way, and no third."""
    world, _ = shared(4, 0)
    for _ in range(4):
        submit(world, tenant="birch", interruptible=False)
    world.live_on(POLICY.wait_for_share_ms)
    orders = 0
    for _ in range(8):
        orders += len(world.plan().preemptions)
        world.live_on(1_000)
    assert orders == 2


def test_priority_says_nothing_between_tenants() -> None:
    world, _ = shared(2, 0)
    urgent(world, tenant="birch")
    assert world.plan().preemptions == ()


def test_work_of_a_tenant_that_is_not_beyond_its_share_is_left_alone() -> None:
    world = World(POLICIES)
    names = ("acme", "birch", "cedar")
    for name in names:
        world.tenant(name)
    for _ in range(4):
        world.worker()
    small = begin(world, tenant="birch")
    large = [begin(world) for _ in range(3)]
    world.live_on(POLICY.run_ms_min)
    submit(world, tenant="cedar", interruptible=False)
    world.live_on(POLICY.wait_for_share_ms)
    victims = victims_of(world.plan())
    assert len(victims) == 1
    assert victims <= set(large)
    assert small not in victims


# ------------------------------------------------------------ the parts


@pytest.mark.parametrize("seed", range(30))
def test_cheapest_cover_is_the_cheapest_of_all_sets(seed: int) -> None:
    dice = Random(seed)
    world, lows = busy()
    cluster = world.cluster(lows[0])
    brings = []
    for number in range(dice.randint(1, 7)):
        named = replace(cluster, cluster_id=ClusterId(f"cl_{number}"))
        victim = Victim(world.attempt(lows[0]).attempt_id, "") if dice.random() < 0.8 else None
        lost_ms = dice.choice([0, 1, 2, 3, 10]) if victim else 0
        brings.append((Candidate(named, victim, lost_ms, {0: 1}), dice.randint(0, 4)))
    missing = dice.randint(1, 10)
    enough = [
        tuple(sum(costs) for costs in zip(*(one.cost for one, _ in chosen), strict=True))
        for size in range(1, len(brings) + 1)
        for chosen in combinations(brings, size)
        if sum(number for _, number in chosen) >= missing
    ]
    found = cheapest_cover(brings, missing)
    if found is None:
        assert enough == []
    else:
        assert tuple(sum(costs) for costs in zip(*(one.cost for one in found), strict=True)) == min(enough)


def test_shares_count_what_gives_way_as_gone_and_what_is_promised_as_held() -> None:
    """Four machines, all acme's; two of them are birch's by right."""
    world, _ = shared(4, 0)
    for _ in range(2):
        submit(world, tenant="birch", interruptible=False)
    before = Shares(world.state, capacity_of(world.state), world.at_ms)
    assert before.claim(world.tenant("birch")) == Claim(frozenset({world.tenant("acme")}), None)
    assert before.claim(world.tenant("acme")) is None
    world.live_on(POLICY.wait_for_share_ms)
    assert len(world.plan().preemptions) == 1
    one_order = Shares(world.state, capacity_of(world.state), world.at_ms)
    claim = one_order.claim(world.tenant("birch"))
    assert claim is not None
    assert claim.allowance is not None, "it is as good as holding one"
    assert claim.allowance.gpu_milli == worth_milli("RTX4090")
    world.plan()
    both_ordered = Shares(world.state, capacity_of(world.state), world.at_ms)
    assert both_ordered.claim(world.tenant("birch")) is None
    assert both_ordered.over_share == frozenset(), "what is under notice is acme's no more"
