"""Spare clusters: asked for with the notice, kept for one job, taken by its next attempt, gone when not needed."""

from __future__ import annotations

import pytest

from orchestrator.core import messages as m
from orchestrator.core.clusters import Cluster, ClusterPhase, ClusterPolicy
from orchestrator.core.decisions.spares import SPARE_PAUSE_MS
from orchestrator.core.errors import RefusalCode, RefusedError
from orchestrator.core.ids import JobId, WorkerId
from orchestrator.core.jobs import JobStatus, Outcome, Requirements
from orchestrator.core.queries.queue import Queue
from orchestrator.core.scheduling.placement import Budget, JobNeed, Plan, Reuse, SpareNeed, VacancyNeed
from orchestrator.core.scheduling.plan import plan
from orchestrator.core.supply.fleet import FleetPolicy, HardwareClass, LeasePolicy
from orchestrator.core.supply.holds import HoldKind
from orchestrator.core.supply.terms import Terms
from tests.core.worlds import Driver, World

NOTICE_MS = 30_000


def reclaim(world: World, worker_id: WorkerId) -> None:
    world.do(m.ReclaimWorker(worker_id, HoldKind.RECLAIMED, "wanted back"))


def under_notice(world: World) -> tuple[JobId, WorkerId]:
    """A job that runs on a machine which goes, and another machine that is free."""
    worker_id = world.worker()
    job_id = world.running()
    other = world.worker()
    reclaim(world, worker_id)
    return job_id, other


def spare_of(world: World, job_id: JobId) -> Cluster:
    return world.state.clusters[world.state.spares[job_id]]


def on_spare(world: World, job_id: JobId) -> set[WorkerId]:
    return {member.worker_id for member in world.state.cluster_members(spare_of(world, job_id))}


def test_spare_is_formed_for_a_running_job_under_notice() -> None:
    world = World()
    job_id, other = under_notice(world)
    made = world.plan()
    assert [one.spare for one in made.placements] == [True]
    assert made.deferrals == ()
    assert on_spare(world, job_id) == {other}
    assert world.job(job_id).status is JobStatus.RUNNING
    assert world.plan().empty, "one spare is enough"
    world.reports()
    assert world.state.is_idle(spare_of(world, job_id).cluster_id)


def test_spare_that_is_ready_takes_the_job_on_without_a_pause() -> None:
    world = World()
    job_id, other = under_notice(world)
    world.plan()
    world.reports()
    spare_id = spare_of(world, job_id).cluster_id
    world.live_on(NOTICE_MS)
    made = world.plan()
    assert [reuse.cluster_id for reuse in made.reuses] == [spare_id]
    assert world.cluster(job_id).cluster_id == spare_id
    assert (world.cluster(job_id).spare_for, world.state.spares) == (None, {})
    world.start(job_id)
    assert world.leases(job_id)[-1].worker_id == other
    world.finish(job_id)
    assert (world.job(job_id).status, world.job(job_id).preemptions) == (JobStatus.SUCCEEDED, 1)


def go_early(world: World, job_id: JobId, *, without: frozenset[WorkerId] = frozenset()) -> None:
    """The driver writes its checkpoint and ends before the deadline."""
    world.drivers[world.attempt(job_id).attempt_id] = Driver(False, Outcome.FAILED, 1)
    world.reports(without=without)
    assert world.job(job_id).attempt_id is None


def test_spare_that_still_forms_takes_the_job_at_once_and_forms_on() -> None:
    world = World()
    job_id, other = under_notice(world)
    world.plan()
    go_early(world, job_id, without=frozenset({other}))
    assert spare_of(world, job_id).phase is ClusterPhase.PREPARING
    world.plan()
    assert world.cluster(job_id).phase is ClusterPhase.PREPARING
    assert world.state.spares == {}
    world.reports()
    world.start(job_id)
    assert world.job(job_id).status is JobStatus.RUNNING
    assert world.members(job_id)[0].worker_id == other


def test_spare_that_is_ready_but_not_clean_yet_is_waited_for() -> None:
    world = World()
    job_id, _ = under_notice(world)
    world.worker()
    world.plan()
    world.dirty.add(spare_of(world, job_id).cluster_id)
    world.reports()
    go_early(world, job_id)
    assert world.plan().empty
    assert world.job(job_id).message == "its spare cluster is about to be ready"
    world.dirty.clear()
    world.reports()
    assert len(world.plan().reuses) == 1


def test_spare_that_never_gets_clean_is_given_up_for_another_cluster() -> None:
    world = World()
    job_id, _ = under_notice(world)
    other = world.worker()
    world.plan()
    spare = spare_of(world, job_id)
    world.dirty.add(spare.cluster_id)
    world.reports()
    go_early(world, job_id)
    world.live_on(ClusterPolicy().clean_deadline_ms + 5_000)
    assert world.state.clusters[spare.cluster_id].phase is ClusterPhase.CLOSING
    world.plan()
    assert world.members(job_id)[0].worker_id == other


def test_spare_with_a_held_machine_is_replaced_and_closed() -> None:
    world = World()
    job_id, other = under_notice(world)
    third = world.worker("H100", hardware_class=HardwareClass.DATACENTER)
    world.plan()
    world.reports()
    spare = spare_of(world, job_id)
    world.do(m.PlaceHold(other, HoldKind.OPERATOR, "under repair"))
    go_early(world, job_id)
    world.plan()
    assert world.members(job_id)[0].worker_id == third
    assert world.state.clusters[spare.cluster_id].phase is ClusterPhase.CLOSING
    assert world.state.spares == {}


def test_spare_is_nobody_elses_however_long_they_wait() -> None:
    world = World()
    job_id, _ = under_notice(world)
    world.plan()
    world.reports()
    spare = spare_of(world, job_id)
    queued = world.submit(priority=5)
    made = world.plan()
    assert (made.reuses, world.job(queued).attempt_id) == ((), None)
    stolen = Plan(world.state.capacity_version - 1, reuses=(Reuse(queued, spare.cluster_id, ()),))
    with pytest.raises(RefusedError) as refusal:
        world.apply(stolen)
    assert refusal.value.code is RefusalCode.STALE


def test_spare_outlives_every_idle_time_while_its_job_runs_under_notice() -> None:
    world = World()
    worker_id = world.worker()
    world.do(m.SetTerms(worker_id, Terms(notice_ms=1_800_000)))
    job_id = world.running()
    world.worker()
    reclaim(world, worker_id)
    world.plan()
    world.reports()
    spare = spare_of(world, job_id)
    world.live_on(1_700_000, step_ms=10_000)
    assert world.state.is_idle(spare.cluster_id)


def test_spare_that_its_job_cannot_take_ends_with_the_idle_time() -> None:
    world = World()
    job_id, _ = under_notice(world)
    world.plan()
    world.reports()
    spare = spare_of(world, job_id)
    world.live_on(NOTICE_MS + ClusterPolicy().idle_teardown_ms + 5_000)
    assert world.state.clusters[spare.cluster_id].phase is ClusterPhase.CLOSING
    assert world.job(job_id).status is JobStatus.PENDING


@pytest.mark.parametrize("outcome", [Outcome.SUCCEEDED, Outcome.STOPPED])
def test_spare_goes_with_the_end_of_its_job(outcome: Outcome) -> None:
    world = World()
    job_id, other = under_notice(world)
    world.plan()
    world.reports()
    world.finish(job_id, outcome)
    assert world.state.spares == {}
    assert world.state.members_on[other] == {}


def test_spare_goes_when_the_tenant_stops_the_job() -> None:
    world = World()
    job_id, _ = under_notice(world)
    world.plan()
    spare = spare_of(world, job_id)
    world.do(m.StopJob(job_id))
    assert world.state.clusters[spare.cluster_id].phase is ClusterPhase.CLOSING
    assert world.plan().empty


def test_spare_that_lost_a_member_while_forming_gets_another() -> None:
    world = World()
    members = [world.worker() for _ in range(2)]
    world.head_host()
    job_id = world.running(Requirements(gpus=2))
    fresh = [world.worker() for _ in range(3)]
    reclaim(world, members[0])
    world.plan()
    failed = next(
        one for one in world.state.cluster_members(spare_of(world, job_id)) if one.worker_id in fresh
    )
    world.fail(failed)
    (need,) = Queue(world.state, world.at_ms)
    assert isinstance(need, VacancyNeed)
    assert need.requirements == Requirements(gpus=2)
    world.plan()
    world.reports()
    assert world.state.is_idle(spare_of(world, job_id).cluster_id)
    assert failed.worker_id not in on_spare(world, job_id)


def test_spare_that_fails_is_tried_again_after_a_pause_and_elsewhere() -> None:
    world = World()
    job_id, other = under_notice(world)
    world.plan()
    spare = spare_of(world, job_id)
    world.fail(world.state.cluster_members(spare)[0])
    world.reports()
    third = world.worker()
    assert world.plan().empty
    world.live_on(SPARE_PAUSE_MS)
    world.plan()
    assert on_spare(world, job_id) == {third}
    assert other not in on_spare(world, job_id)


def test_spare_is_not_formed_where_a_warm_cluster_would_do() -> None:
    world = World()
    worker_id = world.worker()
    first = world.running()
    world.worker()
    world.finish(world.running())
    reclaim(world, worker_id)
    assert world.plan().empty
    world.worker()
    world.submit()
    world.plan()
    assert list(world.state.spares) == [], "the warm cluster was taken in this very plan"
    world.plan()
    assert list(world.state.spares) == [first]


def test_spare_stands_in_the_queue_where_its_job_would() -> None:
    world = World()
    job_id, other = under_notice(world)
    urgent = world.submit(priority=1)
    world.submit()
    kinds = [(type(need), need.job_id) for need in Queue(world.state, world.at_ms) if hasattr(need, "job_id")]
    assert kinds[:2] == [(JobNeed, urgent), (SpareNeed, job_id)]
    assert [kind for kind, _ in kinds[2:]] == [JobNeed]
    world.plan()
    assert world.members(urgent)[0].worker_id == other


def test_spare_planned_for_a_job_that_has_ended_meanwhile_is_passed_over() -> None:
    world = World()
    job_id, _ = under_notice(world)
    made = plan(world.state, Queue(world.state, world.at_ms), world.at_ms, Budget())
    assert [one.spare for one in made.placements] == [True]
    world.end(job_id)
    world.apply(made)
    assert world.state.spares == {}


def test_spare_avoids_every_machine_that_goes() -> None:
    world = World()
    both = [world.worker(count=2) for _ in range(2)]
    world.head_host(4)
    job_id = world.running(Requirements(gpus=3))
    for worker_id in both:
        reclaim(world, worker_id)
        world.do(m.LiftHold(worker_id, HoldKind.RECLAIMED))
    (need,) = (one for one in Queue(world.state, world.at_ms) if isinstance(one, SpareNeed))
    assert (need.job_id, set(need.avoid)) == (job_id, set(both))


def test_spare_is_formed_for_a_suspect_machine_that_is_not_waited_for_and_closed_when_it_returns() -> None:
    world = World()
    worker_id = world.worker()
    world.do(m.SetLeasePolicy(worker_id, LeasePolicy(lost_after_ms=600_000, replace=True)))
    job_id = world.running()
    world.worker()
    world.live_on(FleetPolicy().suspect_after_ms + 5_000, silent=frozenset({worker_id}))
    world.plan()
    world.reports(without=frozenset({worker_id}))
    spare = spare_of(world, job_id)
    assert world.state.is_idle(spare.cluster_id)
    world.live_on(5_000)
    assert world.state.clusters[spare.cluster_id].phase is ClusterPhase.CLOSING
    assert world.job(job_id).status is JobStatus.RUNNING


def test_spare_takes_on_the_job_of_a_machine_that_is_lost() -> None:
    world = World()
    worker_id = world.worker()
    policy = LeasePolicy(lost_after_ms=FleetPolicy().lost_after_ms, replace=True)
    world.do(m.SetLeasePolicy(worker_id, policy))
    job_id = world.running()
    others = [world.worker() for _ in range(3)]
    silent = frozenset({worker_id})
    world.live_on(FleetPolicy().suspect_after_ms + 5_000, silent=silent)
    world.plan()
    world.reports(without=silent)
    world.live_on(FleetPolicy().lost_after_ms, silent=silent)
    assert (world.job(job_id).attempt_id, world.job(job_id).preemptions) == (None, 0)
    assert world.job(job_id).not_before_ms <= world.at_ms
    assert len(world.plan().reuses) == 1
    assert world.members(job_id)[0].worker_id in others


def test_spare_planned_for_a_suspect_machine_that_is_back_meanwhile_is_passed_over() -> None:
    world = World()
    worker_id = world.worker()
    world.do(m.SetLeasePolicy(worker_id, LeasePolicy(lost_after_ms=600_000, replace=True)))
    world.running()
    world.worker()
    world.live_on(FleetPolicy().suspect_after_ms + 5_000, silent=frozenset({worker_id}))
    made = plan(world.state, Queue(world.state, world.at_ms), world.at_ms, Budget())
    assert [one.spare for one in made.placements] == [True]
    world.do(m.ConnectWorker(worker_id, None))
    world.apply(made)
    assert world.state.spares == {}
