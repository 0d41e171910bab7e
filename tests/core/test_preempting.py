"""Preemption: who gives way to whom, with what notice, how often, and that what they free goes to nobody else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.core import messages as m
from orchestrator.core.clusters import ClusterPhase
from orchestrator.core.entities import TABLES
from orchestrator.core.ids import ClusterId, JobId
from orchestrator.core.jobs import JobPolicy, JobStatus, Outcome, Requirements
from orchestrator.core.metering import Lease
from orchestrator.core.policies import Policies
from orchestrator.core.queries.explain import explain
from orchestrator.core.queries.queue import Queue
from orchestrator.core.scheduling.placement import Budget, JobNeed
from orchestrator.core.scheduling.plan import plan
from orchestrator.core.scheduling.preempting import SOUGHT_MAX
from orchestrator.core.state import State
from orchestrator.core.supply.terms import Terms, Tier
from tests.core.preemptions import (
    POLICIES,
    POLICY,
    begin,
    busy,
    run,
    settle,
    submit,
    urgent,
    victims_of,
)
from tests.core.worlds import Driver, Listed, World

# ------------------------------------------------------------ the same tenant


def test_higher_priority_has_an_interruptible_job_give_way_and_runs_where_it_ran() -> None:
    world, (low,) = busy()
    high = urgent(world)
    made = world.plan()
    assert victims_of(made) == {low}
    (member,) = world.members(low)
    assert member.notice is not None
    assert member.notice.deadline_ms == world.at_ms + POLICY.notice_ms
    assert member.notice.reason == "gives way to a job of higher priority of the same tenant"
    assert world.job(low).status is JobStatus.RUNNING
    assert "gives way to a job of higher priority" in world.job(low).message
    assert world.job(high).message.startswith(
        "waiting for 1 × GPU: an interruptible job gives way to it within 60 s"
    )
    world.live_on(POLICY.notice_ms)
    settle(world)
    world.plan()
    assert world.job(high).attempt_id is not None
    assert world.members(high)[0].worker_id == member.worker_id
    assert world.state.jobs[high].nomination is None


def test_job_that_gave_way_is_queued_again_says_why_and_does_not_lose_a_try() -> None:
    world, (low,) = busy()
    high = urgent(world)
    world.plan()
    world.live_on(POLICY.notice_ms)
    settle(world)
    run(world, high)
    job = world.job(low)
    assert (job.status, job.attempt_id, job.starts, job.preemptions) == (JobStatus.PENDING, None, 1, 1)
    assert job.message.startswith(
        "queued again: it gave way to a job of higher priority of the same tenant; waiting for 1 × GPU"
    )
    found = explain(world.state, world.state.jobs[low], world.at_ms)
    assert found.message == job.message
    assert found.wait is not None
    world.finish(high)
    world.plan()
    world.reports()
    world.start(low)
    world.finish(low)
    assert world.job(low).status is JobStatus.SUCCEEDED


def test_job_that_leaves_before_its_deadline_makes_room_at_once() -> None:
    world, (low,) = busy()
    high = urgent(world)
    world.plan()
    world.drivers[world.attempt(low).attempt_id] = Driver(False, Outcome.FAILED, 75)
    settle(world)
    assert world.job(low).status is JobStatus.PENDING
    assert (
        world.state.jobs[low].message
        == "queued again: it gave way to a job of higher priority of the same tenant"
    )
    world.plan()
    assert world.job(high).attempt_id is not None


def test_job_that_succeeds_under_notice_has_succeeded() -> None:
    world, (low,) = busy()
    urgent(world)
    world.plan()
    world.finish(low)
    assert world.job(low).status is JobStatus.SUCCEEDED


@pytest.mark.parametrize("priority", [5, 6])
def test_equal_or_higher_priority_does_not_give_way(priority: int) -> None:
    world = World(POLICIES)
    world.worker()
    begin(world, priority=priority)
    world.live_on(POLICY.run_ms_min)
    urgent(world)
    assert world.plan().preemptions == ()


def test_job_that_is_not_interruptible_does_not_give_way() -> None:
    world = World(POLICIES)
    world.worker()
    run(world, submit(world, interruptible=False))
    world.live_on(POLICY.run_ms_min)
    urgent(world)
    assert world.plan().preemptions == ()


def test_waiting_job_is_patient_before_others_give_way() -> None:
    world, _ = busy()
    submit(world, priority=5)
    world.live_on(POLICY.wait_ms - 1_000)
    assert world.plan().preemptions == ()
    world.live_on(1_000)
    assert len(world.plan().preemptions) == 1


def test_job_that_began_a_moment_ago_may_run_for_a_while() -> None:
    world = World(POLICIES)
    world.worker()
    low = begin(world)
    urgent(world)
    assert world.plan().preemptions == ()
    world.live_on(POLICY.run_ms_min - POLICY.wait_ms)
    assert victims_of(world.plan()) == {low}


def test_try_that_has_not_begun_gives_way_at_once_and_loses_nothing() -> None:
    world = World(POLICIES)
    worker_id = world.worker()
    low = submit(world)
    world.plan()
    high = urgent(world)
    made = world.plan()
    assert victims_of(made) == {low}
    job = world.state.jobs[low]
    assert (job.attempt_id, job.preemptions, job.formation_failures, job.avoid) == (None, 0, 0, ())
    assert job.not_before_ms == world.at_ms
    settle(world)
    world.plan()
    assert world.members(high)[0].worker_id == worker_id
    assert world.state.jobs[low].attempt_id is None


# ------------------------------------------------------------ nobody snatches it


def test_freed_devices_are_kept_for_the_job_whatever_others_wait() -> None:
    """Strangers wait in great number, their turn comes first, and the machine comes free device by device."""
    world = World(POLICIES)
    world.worker(count=2)
    lows = [begin(world) for _ in range(2)]
    world.live_on(POLICY.run_ms_min)
    high = urgent(world, Requirements(gpus=2))
    assert victims_of(world.plan()) == set(lows)
    for _ in range(4):
        submit(world, tenant="birch", priority=9)
    world.drivers[world.attempt(lows[0]).attempt_id] = Driver(False, Outcome.FAILED, 75)
    settle(world)
    made = world.plan()
    assert (made.placements, made.reuses) == ((), ())
    assert "1 of 2 devices are kept for it" in world.job(high).message
    world.live_on(POLICY.notice_ms)
    settle(world)
    world.plan()
    assert world.job(high).attempt_id is not None
    assert all(
        world.state.jobs[one].attempt_id is None for one in world.state.jobs if one not in (high, *lows)
    )


def test_devices_that_were_free_are_kept_too() -> None:
    """One was free, one is freed: a small job would fit on the first meanwhile."""
    world = World(POLICIES)
    world.worker(count=2)
    low = begin(world)
    world.live_on(POLICY.run_ms_min)
    high = urgent(world, Requirements(gpus=2))
    assert victims_of(world.plan()) == {low}
    small = submit(world, tenant="birch")
    world.plan()
    assert world.state.jobs[small].attempt_id is None
    world.live_on(POLICY.notice_ms)
    settle(world)
    world.plan()
    assert len(world.members(high)[0].device_ids) == 2


def test_promise_survives_a_reload() -> None:
    world = World(POLICIES)
    world.worker(count=2)
    begin(world)
    world.live_on(POLICY.run_ms_min)
    high = urgent(world, Requirements(gpus=2))
    world.plan()
    loaded = State(POLICIES)
    for table in TABLES:
        for entity in world.state.rows()[table].values():
            loaded.put(entity)
    assert loaded.watched.nominated == world.state.watched.nominated != {}
    assert loaded.watched.interruptible == world.state.watched.interruptible
    needs = [need for need in Queue(loaded, world.at_ms) if isinstance(need, JobNeed)]
    assert needs[0].job_id == high
    stranger = JobNeed(JobId("other"), world.tenant("birch"), Requirements())
    assert plan(loaded, Listed([stranger]), world.at_ms, Budget()).placements == ()


def test_promise_ends_with_the_job_and_with_its_time() -> None:
    world, (low,) = busy()
    high = urgent(world)
    world.plan()
    nomination = world.state.jobs[high].nomination
    assert nomination is not None
    assert nomination.until_ms == world.at_ms + POLICY.notice_ms + POLICY.release_ms
    world.do(m.StopJob(high))
    assert world.state.watched.nominated == {}
    # The notice stays: its job may be leaving already.
    assert all(member.notice is not None for member in world.members(low))
    world.live_on(POLICY.notice_ms)
    settle(world)
    world.plan()
    assert world.state.jobs[low].attempt_id is not None, "what it gave way from is its own again"


def test_promise_that_cannot_be_kept_is_given_up_after_its_time() -> None:
    """The machine falls silent under notice; what comes back later is anybody's."""
    world, (low,) = busy()
    worker_id = world.members(low)[0].worker_id
    high = urgent(world)
    world.plan()
    world.live_on(POLICY.notice_ms + POLICY.release_ms + 5_000, silent=frozenset({worker_id}))
    world.do(m.ConnectWorker(worker_id, None))
    settle(world)
    assert world.who(worker_id).placeable
    world.do(m.StopJob(low))
    other = submit(world, tenant="birch", priority=9)
    assert world.state.watched.nominated.keys() == {high}
    need = JobNeed(other, world.tenant("birch"), Requirements())
    assert plan(world.state, Listed([need]), world.at_ms, Budget()).placements != ()


def test_spare_is_not_formed_for_a_job_that_gives_way() -> None:
    world = World(POLICIES)
    world.worker()
    low = begin(world)
    world.live_on(POLICY.run_ms_min)
    high = urgent(world, Requirements(gpu_model="RTX4090"))
    assert victims_of(world.plan()) == {low}
    world.worker("RTX3060")
    made = world.plan()
    assert made.placements == ()
    assert world.state.spares == {}
    assert world.state.jobs[high].nomination is not None


# ------------------------------------------------------------ no thrashing


def test_plan_made_again_or_applied_again_orders_nothing_more() -> None:
    world, _ = busy(2)
    urgent(world)
    made = world.plan()
    assert len(made.preemptions) == 1
    before, version = world.state.rows(), world.state.version
    world.do(m.ApplyPlan(made, ()))
    assert (world.state.rows(), world.state.version) == (before, version)
    for _ in range(3):
        world.live_on(1_000)
        assert world.plan().preemptions == ()


def test_order_is_dropped_where_a_victim_has_ended_since() -> None:
    world, lows = busy(2)
    high = urgent(world)
    made = plan(world.state, Queue(world.state, world.at_ms), world.at_ms, Budget())
    (victim,) = victims_of(made)
    world.finish(victim)
    world.do(m.ApplyPlan(made, ()))
    assert not world.state.noticed
    assert world.state.jobs[high].nomination is None
    assert all(not world.state.jobs[one].gave_way for one in lows)


def test_order_is_dropped_where_a_machine_that_it_counts_on_has_gone() -> None:
    world = World(POLICIES)
    world.head_host()
    world.worker()
    begin(world)
    world.live_on(POLICY.run_ms_min)
    free = world.worker()
    urgent(world, Requirements(gpus=2))
    made = plan(world.state, Queue(world.state, world.at_ms), world.at_ms, Budget())
    assert len(made.preemptions) == 1
    world.do(m.DrainWorker(free))
    world.do(m.ApplyPlan(made, ()))
    assert not world.state.noticed


def test_job_that_gave_way_is_protected_in_its_next_try() -> None:
    world, (low,) = busy()
    high = urgent(world)
    world.plan()
    world.live_on(POLICY.notice_ms)
    settle(world)
    run(world, high)
    world.finish(high)
    run(world, low)
    urgent(world)
    world.live_on(POLICY.protected_ms - POLICY.wait_ms - 5_000)
    assert world.plan().preemptions == ()
    world.live_on(10_000)
    assert victims_of(world.plan()) == {low}


def test_job_gives_way_only_so_often_in_an_hour() -> None:
    world = World(Policies(preemption=replace(POLICY, protected_ms=0)))
    world.worker()
    low = begin(world)
    times: list[int] = []
    for _ in range(90):
        world.live_on(POLICY.run_ms_min)
        waits = any(job.request.priority and not job.status.terminal for job in world.state.jobs.values())
        if world.state.jobs[low].status is JobStatus.RUNNING and not waits:
            submit(world, priority=5, interruptible=False)
        times += [world.at_ms] if low in victims_of(world.plan()) else []
        assert len(world.state.jobs[low].gave_way) <= POLICY.per_hour_max
        settle(world)
        for attempt_id in list(world.state.attempt_in.values()):
            world.drivers.setdefault(attempt_id, Driver())
        world.reports()
        for job in list(world.state.jobs.values()):
            if job.request.priority and job.status is JobStatus.RUNNING:
                world.finish(job.job_id)
    assert len(times) > 3
    for first, third in zip(times, times[POLICY.per_hour_max :], strict=False):
        assert third - first >= 3_600_000


def test_job_is_never_failed_by_giving_way() -> None:
    """Where the next one would count against its tries, it does not give way any more."""
    world, (low,) = busy(policies=Policies(preemption=POLICY, jobs=JobPolicy(preemptions_max=1)))
    world.state.put(replace(world.state.jobs[low], preemptions=1))
    urgent(world)
    assert world.plan().preemptions == ()


def test_only_so_many_are_under_notice_at_once() -> None:
    world, _ = busy(3, policies=Policies(preemption=replace(POLICY, in_flight_max=2)))
    gang = urgent(world, Requirements(gpus=3))
    assert world.plan().preemptions == ()
    world.do(m.StopJob(gang))
    for _ in range(3):
        submit(world, priority=5)
    world.live_on(POLICY.wait_ms)
    assert len(world.plan().preemptions) == 2
    assert world.plan().preemptions == ()


def test_nobody_gives_way_where_it_would_not_suffice() -> None:
    world, _ = busy(2)
    urgent(world, Requirements(gpus=3))
    assert world.plan().preemptions == ()


def test_idle_cluster_is_taken_before_anybody_is_asked() -> None:
    world, lows = busy(2)
    world.finish(lows[0])
    submit(world, tenant="birch")
    urgent(world, Requirements(gpus=1, max_price=10**9))
    made = world.plan()
    assert made.preemptions == ()


def test_what_comes_free_anyway_is_waited_for() -> None:
    """The job is stopped for which another one gives way; the next of its kind waits for what that one frees."""
    world, _ = busy(2)
    high = urgent(world)
    assert len(world.plan().preemptions) == 1
    world.do(m.StopJob(high))
    urgent(world)
    assert world.plan().preemptions == ()


def test_jobs_that_fit_nowhere_do_not_keep_a_later_one_from_having_others_give_way() -> None:
    world, _ = busy(2)
    for number in range(2 * SOUGHT_MAX):
        submit(world, Requirements(gpus=3 + number % 2), priority=7)
        submit(world, Requirements(gpus=2, one_machine=True), priority=7)
    high = submit(world, priority=5)
    world.live_on(POLICY.wait_ms)
    assert [one.job_id for one in world.plan().preemptions] == [high]


# ------------------------------------------------------------ money and blame


def test_time_under_notice_is_paid_to_the_end_and_nothing_twice() -> None:
    world, (low,) = busy()
    high = urgent(world)
    (lease,) = world.leases(low)
    world.plan()
    world.live_on(POLICY.notice_ms)
    settle(world)
    run(world, high)
    (first,), (second,) = world.leases(low), world.leases(high)
    assert first.lease_id == lease.lease_id
    assert first.ended_ms is not None
    assert first.ended_ms - first.started_ms == POLICY.run_ms_min + POLICY.wait_ms + POLICY.notice_ms
    assert second.started_ms >= first.ended_ms
    assert billed(world, first) == first.ended_ms - first.started_ms


def billed(world: World, lease: Lease) -> int:
    """What the receipts come to once the worker has stated all it held."""
    assert lease.ended_ms is not None
    world.state_time(lease, lease.ended_ms - lease.started_ms, final=True)
    receipts = world.receipts(lease.lease_id)
    return sum(one.end_ms - one.start_ms for one in receipts)


def test_worker_is_not_blamed_for_a_notice_that_was_not_its_owners() -> None:
    world = World(POLICIES)
    worker_id = world.worker()
    world.do(m.SetTerms(worker_id, Terms(tier=Tier.COMMITTED, notice_ms=3_600_000)))
    begin(world)
    world.live_on(POLICY.run_ms_min)
    before = world.who(worker_id).reliability
    urgent(world)
    world.plan()
    assert world.who(worker_id).reliability == before
    world.live_on(POLICY.notice_ms)
    settle(world)
    after = world.who(worker_id).reliability
    assert after.broken == before.broken or after.broken < before.broken
    assert after.completed > 0, "it held the lease to the end"


def test_closed_cluster_says_that_its_job_gave_way() -> None:
    world, (low,) = busy()
    cluster_id = world.cluster(low).cluster_id
    urgent(world)
    world.plan()
    world.drivers[world.attempt(low).attempt_id] = Driver(False, Outcome.FAILED, 75)
    world.reports()
    cluster = world.state.clusters[ClusterId(cluster_id)]
    assert cluster.phase in (ClusterPhase.CLOSING, ClusterPhase.CLOSED)
    assert cluster.reason == "its job gives way to a job of higher priority of the same tenant"
