"""If most of a zone vanishes at once, suspect ourselves: no mass eviction, no penalty. And no false alarm by chance."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from orchestrator.core import messages as m
from orchestrator.core.ids import WorkerId
from orchestrator.core.policies import Policies
from orchestrator.core.supply.fleet import FleetPolicy, Liveness
from orchestrator.core.supply.holds import Hold, HoldKind
from orchestrator.core.supply.liveness import ZONE_RETURN_MS
from tests.core.worlds import World

POLICY = FleetPolicy()
WINDOW_MS = 300_000
ZONE_POLICY = Policies(fleet=FleetPolicy(zone_window_ms=WINDOW_MS))

BEAT_MS = POLICY.heartbeat_interval_ms

TOGETHER_MS = POLICY.lost_after_ms - POLICY.suspect_after_ms
"""Silences that begin within this are all noticed before the first of them could be lost."""


def beat(world: World, worker_id: WorkerId) -> None:
    """A heartbeat, as the loop takes it."""
    world.state.heartbeats.heard(worker_id, world.monotonic_ms)
    if world.who(worker_id).liveness is not Liveness.LIVE:
        world.do(m.ConnectWorker(worker_id, None))


def go_on(world: World, ms: int, silent_from_ms: dict[WorkerId, int]) -> list[m.Event]:
    """Let time pass with beats of all whose silence has not begun; times are from now."""
    events: list[m.Event] = []
    for passed_ms in range(0, ms, 1_000):
        for number, worker_id in enumerate(world.state.workers):
            beats_now = (passed_ms // 1_000 + number) % (BEAT_MS // 1_000) == 0
            if beats_now and passed_ms < silent_from_ms.get(worker_id, ms):
                beat(world, worker_id)
        events.extend(world.tick(1_000).events)
    return events


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(3, 14),
    starts=st.lists(st.integers(0, TOGETHER_MS - 2 * BEAT_MS), min_size=14, max_size=14),
    share=st.floats(0.55, 1.0),
    seed=st.integers(0, 2**16),
    suppliers=st.integers(2, 5),
)
def test_zone_mostly_silent_loses_nobody_within_the_window_and_nobody_is_blamed(
    size: int, starts: list[int], share: float, seed: int, suppliers: int
) -> None:
    world = World(ZONE_POLICY)
    workers = [world.worker(zone="hall", supplier=f"s{number % suppliers}") for number in range(size)]
    world.worker(zone="elsewhere")
    silent = Random(seed).sample(
        workers, next(n for n in range(1, size + 1) if n >= share * size or n == size)
    )
    assume(len({world.who(one).supplier_id for one in silent}) > 1)
    silent_from_ms = dict(zip(silent, starts, strict=False))
    first_ms = min(silent_from_ms.values())
    events = go_on(world, first_ms + WINDOW_MS - BEAT_MS, silent_from_ms)
    lost = [one for one in events if isinstance(one, m.LivenessChanged) and one.liveness is Liveness.LOST]
    assert not lost
    assert world.state.zones_held == {"hall"}
    assert {world.who(one).liveness for one in silent} == {Liveness.SUSPECT}
    assert not any(isinstance(one, m.ReliabilityChanged | m.HoldPlaced | m.AlertRaised) for one in events)


@settings(max_examples=25, deadline=None)
@given(size=st.integers(3, 10), silent=st.integers(3, 10), seed=st.integers(0, 2**16), own=st.booleans())
def test_zone_whose_silent_ones_are_of_one_supplier_spares_nobody(
    size: int, silent: int, seed: int, own: bool
) -> None:
    """A zone is the supplier's own word: he may invent one, or stand in one of others."""
    world = World(ZONE_POLICY)
    his = [world.worker(zone="made up", supplier="he") for _ in range(max(size, silent))]
    others = [world.worker(zone="elsewhere" if own else "made up", supplier=f"s{n}") for n in range(2)]
    dark = Random(seed).sample(his, silent)
    events = go_on(world, POLICY.lost_after_ms + 30_000, dict.fromkeys(dark, 0))
    assert {world.who(one).liveness for one in dark} == {Liveness.LOST}
    lost = [one for one in events if isinstance(one, m.LivenessChanged) and one.liveness is Liveness.LOST]
    assert not any(one.excused for one in lost)
    assert len([one for one in events if isinstance(one, m.Flapped)]) == silent
    assert {world.who(one).liveness for one in others} == {Liveness.LIVE}


def test_zone_with_strangers_on_probation_is_still_that_of_one_supplier() -> None:
    world = World(ZONE_POLICY)
    his = [world.worker(zone="made up", supplier="he") for _ in range(3)]
    for number in range(3):
        stranger = world.worker(zone="made up", supplier=f"mask {number}")
        world.do(m.PlaceHold(stranger, HoldKind.PROBATION, "new"))
        his.append(stranger)
    world.worker(zone="elsewhere", supplier="another")
    go_on(world, POLICY.lost_after_ms + 30_000, dict.fromkeys(his, 0))
    assert {world.who(one).liveness for one in his} == {Liveness.LOST}


def test_zone_of_those_who_name_none_is_held_when_most_of_them_fall_silent() -> None:
    world = World(ZONE_POLICY)
    workers = [world.worker(zone="", supplier=f"s{number}") for number in range(6)]
    go_on(world, POLICY.lost_after_ms + 30_000, dict.fromkeys(workers[:5], 0))
    assert world.state.zones_held == {""}
    assert {world.who(one).liveness for one in workers[:5]} == {Liveness.SUSPECT}


def test_network_of_one_supplier_is_held_all_the_same() -> None:
    """Nobody else could have been asked, and it is likelier that we are deaf."""
    world = World(ZONE_POLICY)
    workers = [world.worker(zone="hall") for _ in range(4)]
    go_on(world, POLICY.lost_after_ms + 30_000, dict.fromkeys(workers, 0))
    assert {world.who(one).liveness for one in workers} == {Liveness.SUSPECT}


def test_zone_dark_for_longer_than_the_window_is_lost_without_a_penalty() -> None:
    world = World(ZONE_POLICY)
    workers = [world.worker(zone="hall") for _ in range(4)]
    world.running()
    events = go_on(world, WINDOW_MS + 10_000, dict.fromkeys(workers, 0))
    lost = [one for one in events if isinstance(one, m.LivenessChanged) and one.liveness is Liveness.LOST]
    assert {one.worker_id for one in lost} == set(workers)
    assert all(one.excused for one in lost)
    assert not any(isinstance(one, m.Flapped | m.ReliabilityChanged) for one in events)
    assert go_on(world, ZONE_RETURN_MS + 5_000, dict.fromkeys(workers, 0)) == []
    assert world.state.zones_held == frozenset()


def test_zone_that_fades_one_by_one_is_not_held() -> None:
    world = World(ZONE_POLICY)
    workers = [world.worker(zone="hall") for _ in range(10)]
    starts = {worker_id: number * 80_000 for number, worker_id in enumerate(workers[:6])}
    go_on(world, 6 * 80_000, starts)
    assert {world.who(one).liveness for one in workers[:5]} == {Liveness.LOST}


def test_zone_that_comes_back_waits_for_its_last_worker_before_it_is_lost() -> None:
    world = World(ZONE_POLICY)
    workers = [world.worker(zone="hall") for _ in range(5)]
    last = workers[-1]
    go_on(world, 120_000, dict.fromkeys(workers, 0))
    go_on(world, ZONE_RETURN_MS - 5_000, {last: 0})
    assert world.who(last).liveness is Liveness.SUSPECT
    go_on(world, 15_000, {last: 0})
    assert world.who(last).liveness is Liveness.LOST
    assert {world.who(one).liveness for one in workers[:-1]} == {Liveness.LIVE}


def test_zone_full_of_strangers_who_beat_is_still_held_for_the_others() -> None:
    world = World(ZONE_POLICY)
    workers = [world.worker(zone="hall") for _ in range(4)]
    for _ in range(20):
        stranger = world.worker(zone="hall")
        world.state.put(world.who(stranger))
        world.do(m.PlaceHold(stranger, HoldKind.PROBATION, "new"))
    go_on(world, POLICY.lost_after_ms + 20_000, dict.fromkeys(workers, 0))
    assert {world.who(one).liveness for one in workers} == {Liveness.SUSPECT}


def test_zone_held_is_a_measurement_and_changes_no_row() -> None:
    world = World(ZONE_POLICY)
    workers = [world.worker(zone="hall") for _ in range(4)]
    go_on(world, 100_000, dict.fromkeys(workers, 0))
    rows = world.state.rows()
    world.state.zones_held = frozenset()
    assert world.state.rows() == rows


# ---------------------------------------------------------------- chance


LOSS = 0.02
WORKERS = 100
DAY_MS = 24 * 3_600_000


def test_day_at_two_percent_loss_suspects_nobody() -> None:
    """100 workers, 17,280 beats each in 24 virtual hours; a beat, or the answer to it, is lost with 2 % each."""
    world = World()
    workers = [world.worker(zone=f"z{number}") for number in range(WORKERS)]
    random = Random(20)
    beats = lost = 0
    for step in range(DAY_MS // 1_000):
        for worker_id in workers[step % 5 :: 5]:
            beats += 1
            if random.random() < LOSS:
                lost += 1
            else:
                world.state.heartbeats.heard(worker_id, world.monotonic_ms)
        world.forward(1_000)
        silences = world.state.heartbeats.silences(world.monotonic_ms, POLICY)
        assert not silences.suspect, f"suspected by chance at second {step}"
    assert beats == WORKERS * DAY_MS // BEAT_MS
    assert 0.019 < lost / beats < 0.021


@pytest.mark.parametrize("phase_ms", [0, 999, 2_500, 4_999])
def test_dead_worker_is_seen_within_thirty_seconds_of_its_last_sign_of_life(phase_ms: int) -> None:
    world = World()
    dead, _ = world.worker(zone="a"), world.worker(zone="b")
    world.forward(phase_ms)
    beat(world, dead)
    died_ms = world.monotonic_ms
    while world.who(dead).liveness is Liveness.LIVE:
        world.tick(1_000)
    assert world.monotonic_ms - died_ms <= 30_000


def test_heartbeat_table_knows_the_standing_of_a_hold_lifted() -> None:
    world = World(ZONE_POLICY)
    workers = [world.worker(zone="hall") for _ in range(4)]
    for worker_id in workers:
        hold = Hold(HoldKind.PROBATION, "new", world.at_ms)
        world.do(m.PlaceHold(worker_id, hold.kind, hold.reason))
    go_on(world, POLICY.lost_after_ms + 10_000, dict.fromkeys(workers, 0))
    assert world.state.zones_held == {"hall"}, "where there is nobody else to ask, strangers are asked"
