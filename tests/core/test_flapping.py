"""Workers that come and go: each silence of their own counts for a while, and too many of them cost new work."""

from __future__ import annotations

import pytest

from orchestrator.core import messages as m
from orchestrator.core.ids import WorkerId
from orchestrator.core.supply.fleet import FleetPolicy, Liveness
from orchestrator.core.supply.holds import Hold, HoldKind
from orchestrator.core.supply.reliability import Flaps, flapped
from tests.core.worlds import World

POLICY = FleetPolicy()


def flap(world: World, worker_id: WorkerId) -> None:
    """Silent until suspect, then back."""
    world.live_on(POLICY.suspect_after_ms + 5_000, silent=frozenset({worker_id}))
    assert world.who(worker_id).liveness is Liveness.SUSPECT
    world.do(m.ConnectWorker(worker_id, None))
    assert world.who(worker_id).liveness is Liveness.LIVE


def flapping(world: World, worker_id: WorkerId) -> Hold | None:
    return world.who(worker_id).hold(HoldKind.FLAPPING)


def test_worker_few_silences_are_taken_for_bad_luck() -> None:
    world = World()
    worker_id = world.worker()
    for _ in range(POLICY.flaps_max):
        flap(world, worker_id)
    assert 2_000 < world.who(worker_id).flaps.count <= POLICY.flaps_max * 1_000
    assert flapping(world, worker_id) is None
    assert world.who(worker_id).placeable


def test_worker_that_flaps_gets_nothing_new_for_a_while_and_is_told_why() -> None:
    world = World()
    worker_id = world.worker()
    for _ in range(POLICY.flaps_max + 1):
        flap(world, worker_id)
    hold = flapping(world, worker_id)
    assert hold is not None
    assert hold.until_ms == hold.since_ms + POLICY.flap_hold_ms
    assert hold.reason == (
        "fell silent 3.8 times lately, where 3 are taken for bad luck; it gets new work again after 60 s"
    )
    assert not world.who(worker_id).placeable
    world.live_on(POLICY.flap_hold_ms + 5_000)
    assert flapping(world, worker_id) is None
    assert world.who(worker_id).placeable


def test_worker_that_goes_on_flapping_backs_off_longer_each_time_up_to_a_bound() -> None:
    world = World()
    worker_id = world.worker()
    pauses = []
    for _ in range(20):
        flap(world, worker_id)
        placed_ms = world.who(worker_id).flaps.at_ms
        hold = flapping(world, worker_id)
        if hold is not None and hold.until_ms is not None:
            pauses.append(hold.until_ms - placed_ms)
    assert pauses == sorted(pauses)
    assert pauses[0] == POLICY.flap_hold_ms
    assert len(set(pauses)) >= 4
    assert max(pauses) == POLICY.flap_hold_max_ms


def test_worker_that_has_flapped_is_forgiven_with_time() -> None:
    world = World()
    worker_id = world.worker()
    for _ in range(POLICY.flaps_max):
        flap(world, worker_id)
    world.live_on(4 * POLICY.flaps_half_life_ms, step_ms=20_000)
    flap(world, worker_id)
    assert flapping(world, worker_id) is None


@pytest.mark.parametrize("missed", [1, 2, 4])
def test_heartbeats_missed_now_and_then_never_count(missed: int) -> None:
    world = World()
    worker_id = world.worker()
    for _ in range(20):
        world.live_on(missed * POLICY.heartbeat_interval_ms, silent=frozenset({worker_id}))
        world.live_on(POLICY.heartbeat_interval_ms)
    assert world.who(worker_id).flaps == Flaps()
    assert world.who(worker_id).liveness is Liveness.LIVE


def test_worker_joined_and_never_heard_has_not_flapped() -> None:
    world = World()
    world.live_on(POLICY.lost_after_ms)
    world.do(world.joining(world.who(world.worker()).inventory))
    assert all(worker.flaps == Flaps() for worker in world.state.workers.values())


def test_silence_of_a_whole_zone_is_no_flap() -> None:
    world = World()
    workers = [world.worker(zone="hall") for _ in range(4)]
    for _ in range(POLICY.flaps_max + 2):
        world.live_on(POLICY.suspect_after_ms + 5_000, silent=frozenset(workers))
        assert {world.who(one).liveness for one in workers} == {Liveness.SUSPECT}
        for worker_id in workers:
            world.do(m.ConnectWorker(worker_id, None))
    assert all(world.who(one).flaps == Flaps() for one in workers)


def test_flaps_halve_in_a_half_life() -> None:
    assert flapped(Flaps(4_000, 0), 600_000, 600_000) == Flaps(3_000, 600_000)
