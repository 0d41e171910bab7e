"""What is READY delivers what was asked, on any lines and ways, with a liar among them; and nobody pays for less."""

from __future__ import annotations

import random
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.clusters import ClusterPhase
from orchestrator.core.delivery import BITS_PER_MBIT
from orchestrator.core.ids import WorkerId
from orchestrator.core.nearness.bandwidth import ACCUSERS_MIN, KNOWN_MS_MAX, PEERS, BandwidthMap
from tests.core.test_delivered_bandwidth import Lines, wanted

ROUNDS = 14
"""More than a cluster may lose members before it is given up."""

STEP_MS = 20_000


def fleet_of(seed: int, count: int) -> Lines:
    """Lines and ways of any quality; at most one boasts of what it receives."""
    dice = random.Random(seed)
    lines = Lines.of(*(dice.choice([5, 40, 90, 100, 300]) for _ in range(count)))
    for pair in combinations(lines.workers, 2):
        if dice.random() < 0.15:
            lines.ways[frozenset(pair)] = dice.choice([3, 60])
        lines.rtt_ms[frozenset(pair)] = dice.choice([2, 8, 15, 25, 60])
    if dice.random() < 0.3:
        lines.boasting = {dice.choice(lines.workers): 10_000}
    if dice.random() < 0.2:
        lines.mute = {dice.choice(lines.workers)}
    return lines


@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(2, 7),
    gpus=st.integers(2, 4),
    mbps=st.sampled_from([0, 20, 100]),
    bound_ms=st.sampled_from([0, 10, 20]),
)
@settings(max_examples=120)
def test_ready_implies_that_every_pair_is_within_what_was_asked(
    seed: int, count: int, gpus: int, mbps: int, bound_ms: int
) -> None:
    lines = fleet_of(seed, count)
    world = lines.world
    for one, other in combinations(lines.workers, 2):
        # Before a cluster is there all seem near: the overlay shows how far they are.
        world.state.latency.observe(one, other, 1_000, world.at_ms)
    job_id = world.submit(wanted(gpus, mbps, max_rtt_ms=bound_ms))
    for _ in range(ROUNDS):
        world.plan()
        lines.report()
        for cluster in world.state.clusters.values():
            if cluster.phase is not ClusterPhase.READY:
                continue
            bearing = [one.worker_id for one in world.state.cluster_members(cluster) if one.device_ids]
            for one, other in combinations(bearing, 2):
                assert not mbps or lines.carried(one, other) >= mbps
                assert not bound_ms or lines.rtt_ms[frozenset((one, other))] <= bound_ms
        if world.job(job_id).attempt_id is not None and world.cluster(job_id).phase is ClusterPhase.READY:
            return
        world.live_on(STEP_MS)
    assert (world.state.leases, world.state.receipts) == ({}, {})


NAMES = [WorkerId(f"w{number}") for number in range(9)]
FIGURE = st.tuples(st.integers(0, 8), st.integers(0, 8), st.integers(1, 6), st.integers(0, 12)).filter(
    lambda one: one[0] != one[1]
)


@given(st.lists(FIGURE, max_size=40), st.integers(1, 6), st.sets(st.integers(0, 8), max_size=2))
@settings(max_examples=200)
def test_known_slow_agrees_with_one_worker_at_a_time(
    figures: list[tuple[int, int, int, int]], least: int, gone: set[int]
) -> None:
    assert len(NAMES) <= PEERS, "all pairs are remembered"
    known, pairs = BandwidthMap(), dict[frozenset[int], tuple[int, int]]()
    for one, other, mbps, hour in sorted(figures, key=lambda figure: figure[3]):
        known.observe(NAMES[one], NAMES[other], mbps * BITS_PER_MBIT, hour * 3_600_000)
        pairs[frozenset((one, other))] = (mbps, hour)
    for one in gone:
        known.forget(NAMES[one])
    now_ms = 12 * 3_600_000
    fresh = {
        ends: mbps
        for ends, (mbps, hour) in pairs.items()
        if not ends & gone and hour * 3_600_000 >= now_ms - KNOWN_MS_MAX
    }
    able = {one for ends, mbps in fresh.items() if mbps >= least for one in ends}
    slow = {
        one
        for one in range(9)
        if one not in able
        and sum(one in ends and bool((ends - {one}) & able) for ends in fresh) >= ACCUSERS_MIN
    }
    found = known.slower_than(least * BITS_PER_MBIT, now_ms)
    assert set(found) == {NAMES[one] for one in slow}
    for one, other in combinations(range(9), 2):
        carried = fresh.get(frozenset((one, other)))
        expected = None if carried is None else carried * BITS_PER_MBIT
        assert known.between(NAMES[one], NAMES[other], now_ms) == expected
