"""Gangs by distance: what is measured decides, what is not is measured first, and the delivered cluster is held to it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.clusters import ClusterPhase
from orchestrator.core.ids import JobId, WorkerId
from orchestrator.core.jobs import Pattern, Requirements
from orchestrator.core.policies import Policies
from orchestrator.core.queries.queue import Queue
from orchestrator.core.scheduling.placement import Budget, Plan
from orchestrator.core.scheduling.plan import plan
from orchestrator.core.supply.fleet import NEBULA, Isolation
from tests.core.test_isolation import RUNTIMES
from tests.core.worlds import World, path_seen

ROUNDS = 40
"""Plans until a small fleet is measured: each names some pairs."""

Distance = Callable[[WorkerId, WorkerId], int]


def fleet(count: int, gpus: int = 1) -> tuple[World, list[WorkerId]]:
    """A head host and ``count`` workers in boxes with an overlay, which know nothing of each other."""
    world = World(Policies(jobs=RUNTIMES))
    world.head_host(isolation=Isolation.BOX, overlay=NEBULA)
    return world, [
        world.worker("RTX4090", gpus, isolation=Isolation.BOX, overlay=NEBULA) for _ in range(count)
    ]


def wanted(gpus: int, bound_ms: int = 20, **more: object) -> Requirements:
    values: dict[str, object] = {"gpus": gpus, "isolation": Isolation.BOX, "max_rtt_ms": bound_ms, **more}
    return replace(Requirements(), **values)  # type: ignore[arg-type]  # names checked by the dataclass


def tell(world: World, distances: Mapping[tuple[WorkerId, WorkerId], int]) -> None:
    """Both ends measured, in milliseconds."""
    for (one, other), rtt_ms in distances.items():
        world.state.latency.observe(one, other, rtt_ms * 1_000, world.at_ms)
        world.state.latency.observe(other, one, rtt_ms * 1_000, world.at_ms)


def made(world: World) -> Plan:
    """What is planned now, not applied."""
    return plan(world.state, Queue(world.state, world.at_ms), world.at_ms, Budget())


def settle(world: World, job_id: JobId, distance: Distance) -> int:
    """Plan and measure what the plans ask for until the job is placed or nothing more is asked; the pairs measured."""
    measured = 0
    for _ in range(ROUNDS):
        proposed = world.plan()
        if world.job(job_id).attempt_id is not None or not proposed.pairs:
            return measured
        measured += len(proposed.pairs)
        tell(world, {pair: distance(*pair) for pair in proposed.pairs})
    raise AssertionError("the plans never come to an end")


def who(world: World, job_id: JobId) -> set[WorkerId]:
    return {member.worker_id for member in world.members(job_id) if member.device_ids}


def test_gang_of_which_nothing_is_known_is_measured_first_and_then_placed() -> None:
    world, workers = fleet(2)
    job_id = world.submit(wanted(2))
    first = world.plan()
    assert (first.placements, {frozenset(pair) for pair in first.pairs}) == ((), {frozenset(workers)})
    assert "being measured" in world.job(job_id).message
    tell(world, {(workers[0], workers[1]): 12})
    assert len(world.plan().placements) == 1
    assert who(world, job_id) == set(workers)


def test_gang_takes_the_near_ones_however_many_are_cheaper_elsewhere() -> None:
    world, workers = fleet(5)
    near = set(workers[2:4])

    def distance(one: WorkerId, other: WorkerId) -> int:
        return 5 if {one, other} == near else 90

    job_id = world.submit(wanted(2))
    settle(world, job_id, distance)
    assert who(world, job_id) == near


def test_gang_that_is_nowhere_near_enough_waits_and_says_how_many_are() -> None:
    world, workers = fleet(4)
    job_id = world.submit(wanted(3))
    tell(
        world,
        {
            (one, other): 10 if {one, other} == set(workers[:2]) else 40
            for one, other in combinations(workers, 2)
        },
    )
    assert made(world).pairs == ()
    world.plan()
    assert "2 of 3 GPUs within 20 ms" in world.job(job_id).message


def test_gang_without_a_bound_prefers_the_near_ones_and_does_not_wait_for_measurements() -> None:
    world, workers = fleet(4)
    job_id = world.submit(wanted(2, 0))
    tell(
        world,
        {
            (one, other): 8 if {one, other} == set(workers[2:]) else 150
            for one, other in combinations(workers, 2)
        },
    )
    world.plan()
    assert who(world, job_id) == set(workers[2:])
    strangers, others = fleet(2)
    other_id = strangers.submit(wanted(2, 0))
    strangers.plan()
    assert who(strangers, other_id) == set(others)


def test_gang_of_independent_members_does_not_care_for_distance() -> None:
    world, workers = fleet(3)
    tell(world, dict.fromkeys(combinations(workers[:2], 2), 200))
    job_id = world.submit(wanted(2, 0, pattern=Pattern.INDEPENDENT))
    world.plan()
    assert who(world, job_id) == set(workers[:2])


def test_gang_with_so_many_on_each_machine_takes_exactly_these() -> None:
    world, workers = fleet(3, gpus=3)
    tell(world, dict.fromkeys(combinations(workers, 2), 4))
    job_id = world.submit(wanted(6, gpus_per_worker=2))
    world.plan()
    assert [len(one.device_ids) for one in world.members(job_id) if one.device_ids] == [2, 2, 2]


def test_one_machine_needs_no_measurement() -> None:
    world, (only,) = fleet(1, gpus=2)
    job_id = world.submit(wanted(2))
    world.plan()
    assert who(world, job_id) == {only}


def test_worker_that_feigns_to_be_near_is_outvoted() -> None:
    world, (liar, honest) = fleet(2)
    job_id = world.submit(wanted(2))
    world.state.latency.observe(liar, honest, 1, world.at_ms)
    world.state.latency.observe(honest, liar, 80_000, world.at_ms)
    world.plan()
    assert world.job(job_id).attempt_id is None
    assert "1 of 2 GPUs within 20 ms" in world.job(job_id).message


def test_measurement_of_yesterday_counts_no_more() -> None:
    world, workers = fleet(2)
    tell(world, {(workers[0], workers[1]): 5})
    world.live_on(7 * 3_600_000)
    world.submit(wanted(2))
    assert made(world).pairs


def test_member_that_turns_out_too_far_is_replaced_before_ready() -> None:
    world, workers = fleet(3)
    tell(world, dict.fromkeys(combinations(workers, 2), 5))
    job_id = world.submit(wanted(2))
    world.plan()
    _head, first, second = world.members(job_id)
    far = replace(path_seen(second, first), rtt_median_us=35_000)
    for _ in range(6):
        for worker_id in list(world.state.workers):
            told = [
                replace(
                    one, paths=tuple(far if path.to_id == first.member_id else path for path in one.paths)
                )
                if one.member_id == second.member_id
                else one
                for one in world.honest(worker_id)
            ]
            world.report(worker_id, tuple(told))
    failed = world.state.members[second.member_id]
    assert "35 ms from another member, 20 ms were asked for" in failed.reason
    assert world.cluster(job_id).phase is not ClusterPhase.READY
    world.plan()
    world.reports()
    # The fixture's honest members are 21 ms apart, which is too far, too: nobody is passed off as near.
    assert world.cluster(job_id).phase is not ClusterPhase.READY


@given(st.integers(2, 7), st.integers(2, 5), st.sampled_from([5, 20, 60]), st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_diameter_of_whatever_is_placed_holds_on_measured_round_trips(
    count: int, gpus: int, bound_ms: int, seed: int
) -> None:
    world, _ = fleet(count)

    def distance(one: WorkerId, other: WorkerId) -> int:
        low, high = sorted((one, other))
        return 1 + zlib.crc32(f"{low} {high} {seed}".encode()) % 80

    job_id = world.submit(wanted(gpus, bound_ms))
    settle(world, job_id, distance)
    if world.job(job_id).attempt_id is not None:
        chosen = who(world, job_id)
        assert len(chosen) == gpus
        for one, other in combinations(chosen, 2):
            known = world.state.latency.measured_us(one, other, world.at_ms, 3_600_000)
            assert known is not None
            assert known <= bound_ms * 1_000
    elif count >= gpus:
        # Nobody else says so: all cliques were possible, and none is there.
        assert not any(
            all(distance(*pair) <= bound_ms for pair in combinations(some, 2))
            for some in combinations([w for w in world.state.workers if world.state.free_devices[w]], gpus)
        )
