"""What a worker's leases came to, and why each of them ended."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core import messages as m
from orchestrator.core.ids import WorkerId
from orchestrator.core.jobs import JobStatus, Outcome, Requirements
from orchestrator.core.supply.fleet import FleetPolicy
from orchestrator.core.supply.holds import HoldKind
from orchestrator.core.supply.reliability import (
    FULL_LEASE_MS,
    THOUSAND,
    LeaseEnd,
    Reliability,
    after_lease,
    decayed,
    explain,
    score_bp,
)
from orchestrator.core.supply.terms import Terms, Tier
from tests.core.worlds import World

POLICY = FleetPolicy()
WEEK_MS = POLICY.reliability_half_life_ms


# ---------------------------------------------------------------- arithmetic


@given(value=st.integers(0, 2**62), age_ms=st.integers(0, 40 * WEEK_MS), half_ms=st.integers(1, WEEK_MS))
def test_decay_is_a_power_of_one_half_within_a_ten_thousandth(value: int, age_ms: int, half_ms: int) -> None:
    got = decayed(value, age_ms, half_ms)
    exact = Fraction(value) * Fraction(0.5 ** min(900.0, age_ms / half_ms))
    assert exact * Fraction(9_999, 10_000) - 1 <= got <= exact * Fraction(10_001, 10_000) + 1


@given(value=st.integers(0, 2**50), first=st.integers(0, WEEK_MS), second=st.integers(0, WEEK_MS))
def test_decay_in_two_steps_is_the_decay_of_both(value: int, first: int, second: int) -> None:
    twice = decayed(decayed(value, first, WEEK_MS), second, WEEK_MS)
    once = decayed(value, first + second, WEEK_MS)
    assert abs(twice - once) <= once // 10_000 + 2


@given(value=st.integers(0, 2**50), age_ms=st.integers(0, 4 * WEEK_MS), more_ms=st.integers(0, WEEK_MS))
def test_decay_never_grows_with_age(value: int, age_ms: int, more_ms: int) -> None:
    assert decayed(value, age_ms + more_ms, WEEK_MS) <= decayed(value, age_ms, WEEK_MS) <= value


def test_decay_of_time_that_runs_backwards_is_none() -> None:
    assert decayed(1_000, -5_000, WEEK_MS) == 1_000


def test_score_of_a_newcomer_is_in_the_middle_and_one_lease_does_not_decide() -> None:
    assert score_bp(Reliability(), 0, WEEK_MS) == 5_000
    kept = after_lease(Reliability(), LeaseEnd.KEPT, FULL_LEASE_MS, 1, 0, WEEK_MS)
    broken = after_lease(Reliability(), LeaseEnd.BROKEN, 0, 1, 0, WEEK_MS)
    assert (score_bp(kept, 0, WEEK_MS), score_bp(broken, 0, WEEK_MS)) == (6_000, 4_000)


@given(
    ends=st.lists(
        st.tuples(st.sampled_from(LeaseEnd), st.integers(0, 10**9), st.integers(0, WEEK_MS)), max_size=30
    )
)
def test_score_stays_in_bounds_and_each_end_moves_it_its_way(ends: list[tuple[LeaseEnd, int, int]]) -> None:
    known, at_ms = Reliability(), 0
    for end, held_ms, pause_ms in ends:
        at_ms += pause_ms
        before = score_bp(known, at_ms, WEEK_MS)
        known = after_lease(known, end, held_ms, 1, at_ms, WEEK_MS)
        after = score_bp(known, at_ms, WEEK_MS)
        assert 0 <= after <= 10_000
        match end:
            case LeaseEnd.KEPT:
                assert after >= before
            case LeaseEnd.EXCUSED:
                assert after == before
            case LeaseEnd.BROKEN | LeaseEnd.SHORT_NOTICE:
                assert after <= before


def test_score_returns_to_the_middle_when_nothing_happens_for_long() -> None:
    known = Reliability(broken=50 * THOUSAND)
    scores = [score_bp(known, weeks * WEEK_MS, WEEK_MS) for weeks in range(12)]
    assert scores == sorted(scores)
    assert scores[0] < 500
    assert 4_900 < scores[-1] <= 5_000


def test_lease_of_a_second_counts_by_its_part() -> None:
    farmed = Reliability()
    for _ in range(100):
        farmed = after_lease(farmed, LeaseEnd.KEPT, 1_000, 1, 0, WEEK_MS)
    assert farmed.completed == 100
    assert score_bp(farmed, 0, WEEK_MS) < 5_200


def test_explanation_says_what_the_score_is_made_of() -> None:
    unknown = explain(Reliability(), 0, WEEK_MS)
    assert unknown == (
        "Reliability 50.0 %: nothing is known of its leases lately, so it stands in the middle.",
    )
    first, *rest = explain(Reliability(90_000_000, 500, 6_000, 0), 0, WEEK_MS)
    assert first == "Reliability 76.2 %: 6.0 leases kept over 25.0 device hours, 0.5 broken."
    assert rest[0] == "A lease counts half after 7.0 days, one under 10 minutes by its part."


# ---------------------------------------------------------------- why a lease ended


LONG_MS = 2 * FULL_LEASE_MS


def held(tier: Tier = Tier.INTERRUPTIBLE, notice_ms: int = 30_000) -> tuple[World, WorkerId]:
    """A worker that has held a lease for a while."""
    world = World()
    worker_id = world.worker()
    world.do(m.SetTerms(worker_id, Terms(tier=tier, notice_ms=notice_ms)))
    world.running()
    world.live_on(LONG_MS, step_ms=20_000)
    return world, worker_id


def counts(world: World, worker_id: WorkerId) -> tuple[int, int]:
    """(completed, broken) of a worker."""
    known = world.who(worker_id).reliability
    return known.completed, known.broken


@pytest.mark.parametrize("outcome", [Outcome.SUCCEEDED, Outcome.FAILED, Outcome.STOPPED])
def test_lease_whose_job_ended_by_itself_is_kept(outcome: Outcome) -> None:
    world, worker_id = held()
    world.finish(next(iter(world.state.jobs)), outcome)
    assert counts(world, worker_id) == (THOUSAND, 0)
    assert world.who(worker_id).reliability.kept_ms == LONG_MS


def test_lease_of_a_lost_worker_is_broken() -> None:
    world, worker_id = held()
    world.live_on(POLICY.lost_after_ms + 10_000, silent=frozenset({worker_id}))
    assert counts(world, worker_id) == (0, THOUSAND)


def test_lease_lost_with_its_whole_zone_says_nothing() -> None:
    world, worker_id = held()
    others = [world.worker() for _ in range(3)]
    world.live_on(POLICY.zone_window_ms + 100_000, silent=frozenset({worker_id, *others}))
    assert world.state.jobs[next(iter(world.state.jobs))].status is JobStatus.PENDING
    assert counts(world, worker_id) == (0, 0)


def test_lease_whose_node_failed_is_broken_and_that_of_the_rest_of_the_gang_kept() -> None:
    world = World()
    first, second = world.worker(), world.worker()
    world.head_host()
    job_id = world.running(Requirements(gpus=2))
    world.live_on(LONG_MS, step_ms=20_000)
    member = next(one for one in world.members(job_id) if one.worker_id == first)
    world.fail(member)
    assert counts(world, first) == (0, THOUSAND)
    assert counts(world, second) == (THOUSAND, 0)


def test_lease_on_a_device_that_is_cordoned_is_broken() -> None:
    world, worker_id = held()
    device = world.who(worker_id).inventory.devices[0]
    world.do(m.HoldDevice(worker_id, device.device_id, "XID 79"))
    assert world.job(next(iter(world.state.jobs))).status is JobStatus.PENDING
    assert counts(world, worker_id) == (0, THOUSAND)


@pytest.mark.parametrize(
    ("tier", "notice_ms", "broken"),
    [
        (Tier.INTERRUPTIBLE, None, 0),
        (Tier.INTERRUPTIBLE, 1_000, 0),
        (Tier.COMMITTED, None, 0),
        (Tier.COMMITTED, 300_000, 0),
        (Tier.COMMITTED, 299_999, THOUSAND // 2),
    ],
)
def test_lease_reclaimed_counts_half_only_where_committed_notice_was_cut_short(
    tier: Tier, notice_ms: int | None, broken: int
) -> None:
    world, worker_id = held(tier, 300_000)
    world.do(m.ReclaimWorker(worker_id, HoldKind.RECLAIMED, "wanted back", notice_ms))
    world.live_on(310_000)
    assert world.job(next(iter(world.state.jobs))).status is JobStatus.PENDING
    assert counts(world, worker_id) == (0, broken)


def test_lease_whose_job_ends_within_its_notice_is_kept() -> None:
    world, worker_id = held()
    world.do(m.ReclaimWorker(worker_id, HoldKind.RECLAIMED, "wanted back", 100_000))
    world.finish(next(iter(world.state.jobs)))
    assert counts(world, worker_id) == (THOUSAND, 0)


@pytest.mark.parametrize(
    ("tier", "dismiss", "broken"),
    [
        (Tier.INTERRUPTIBLE, False, 0),
        (Tier.COMMITTED, False, THOUSAND // 2),
        (Tier.COMMITTED, True, 0),
    ],
)
def test_lease_of_a_drained_worker_counts_against_a_committed_owner_only(
    tier: Tier, dismiss: bool, broken: int
) -> None:
    world, worker_id = held(tier, 300_000)
    world.do(m.DrainWorker(worker_id, dismiss))
    assert counts(world, worker_id) == (0, broken)


def test_lease_record_is_the_same_after_a_replay_of_its_events() -> None:
    world, worker_id = held()
    world.do(m.DrainWorker(worker_id))
    kept = world.who(worker_id).reliability
    world.state.put(world.who(worker_id))
    assert world.who(worker_id).reliability == kept
