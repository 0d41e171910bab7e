"""Conservative backfill: machines that are kept for a job are lent until the instant that it was promised."""

from __future__ import annotations

import pytest

from orchestrator.core import messages as m
from orchestrator.core.apply import apply
from orchestrator.core.clusters import ClusterPolicy
from orchestrator.core.ids import JobId
from orchestrator.core.jobs import JobPolicy, Promise, Requirements
from orchestrator.core.policies import Policies
from orchestrator.core.queries.estimating import Estimate
from orchestrator.core.queries.explain import Wait, explain
from orchestrator.core.scheduling.draft import FORMING_ALLOWANCE_MS
from orchestrator.core.scheduling.ends import ENDING_ALLOWANCE_MS
from orchestrator.core.scheduling.placement import Plan
from orchestrator.core.supply.fleet import NEBULA, Isolation
from orchestrator.core.tenancy.fairness import FairnessPolicy
from tests.core.fleets import let_go
from tests.core.worlds import World

HOUR_MS = 3_600_000
POLICIES = Policies(
    jobs=JobPolicy(overtaken_max=1), fairness=FairnessPolicy(memory_bp=0), clusters=ClusterPolicy()
)
WHOLE = Requirements(gpus=2, one_machine=True)


def begin(world: World, job_id: JobId) -> None:
    """Its driver runs."""
    apply(world.state, m.AttemptStarted(world.attempt(job_id).attempt_id), world.at_ms)


def runs(world: World, job_id: JobId) -> bool:
    return world.state.jobs[job_id].attempt_id is not None


def held(world: World, limit_ms: int, tenant: str = "acme") -> JobId:
    """A small job that runs under this limit."""
    job_id = world.submit(tenant=tenant, time_limit_ms=limit_ms)
    world.plan()
    assert runs(world, job_id)
    begin(world, job_id)
    return job_id


def promised(world: World) -> Promise:
    """The one promise after another plan."""
    world.plan()
    (promise,) = world.state.promises.values()
    return promise


def overtake(world: World, job_id: JobId) -> None:
    """Make a job entitled."""
    apply(world.state, m.JobOvertaken(job_id, 1), world.at_ms)


def waiting(world: World, job_id: JobId) -> Wait:
    found = explain(world.state, world.state.jobs[job_id], world.at_ms).wait
    assert found is not None
    return found


def estimate_of(world: World, job_id: JobId) -> Estimate:
    found = waiting(world, job_id)
    return Estimate(found.estimated_start_ms, found.estimate)


class Waiting:
    """A machine of two devices, one of them held for an hour, and an entitled job that wants both."""

    def __init__(self, limit_ms: int = HOUR_MS, *, plans: bool = True) -> None:
        """Without ``plans`` nothing is kept for it yet."""
        self.world = World(POLICIES)
        self.world.worker(count=2)
        self.busy = held(self.world, limit_ms)
        self.gang = self.world.submit(WHOLE)
        overtake(self.world, self.gang)
        self.made = self.world.plan() if plans else Plan(0)
        self.by_ms = self.world.at_ms + limit_ms + ENDING_ALLOWANCE_MS

    def small(self, limit_ms: int) -> JobId:
        """A later job, and the plan after it."""
        job_id = self.world.submit(time_limit_ms=limit_ms, tenant="later")
        self.world.plan()
        return job_id


def test_backfill_promises_when_the_machines_are_enough() -> None:
    case = Waiting()
    (promise,) = case.world.state.promises.values()
    assert case.made.promises == ((case.gang, promise),)
    assert promise.starts_by_ms == case.by_ms
    # Nobody is told before it is stored.
    assert "at the latest" not in case.world.job(case.gang).message
    case.world.plan()
    assert case.world.job(case.gang).message.endswith(", at 2026-09-21 15:15 UTC at the latest")


@pytest.mark.parametrize(
    ("limit_ms", "lent"),
    [
        (0, False),
        (HOUR_MS, False),
        (HOUR_MS + ENDING_ALLOWANCE_MS - FORMING_ALLOWANCE_MS, True),
        (HOUR_MS + ENDING_ALLOWANCE_MS - FORMING_ALLOWANCE_MS + 1, False),
        (60_000, True),
    ],
)
def test_backfill_lends_to_those_only_who_are_sure_to_have_ended(limit_ms: int, *, lent: bool) -> None:
    case = Waiting()
    assert runs(case.world, case.small(limit_ms)) is lent


def test_backfill_lent_machines_leave_the_promise_as_it_is() -> None:
    case = Waiting()
    case.small(60_000)
    (promise,) = case.world.state.promises.values()
    assert promise.starts_by_ms == case.by_ms


def test_backfill_without_a_limit_promises_and_lends_nothing() -> None:
    case = Waiting(limit_ms=0)
    assert case.world.state.promises == {}
    assert "at the latest" not in case.world.job(case.gang).message
    assert not runs(case.world, case.small(60_000))


def test_backfill_promises_nothing_that_is_more_than_a_day_away() -> None:
    case = Waiting(limit_ms=25 * HOUR_MS)
    assert case.world.state.promises == {}
    assert not runs(case.world, case.small(60_000))


def test_backfill_does_not_count_as_overtaking() -> None:
    case = Waiting()
    patient = case.world.submit(tenant="later")
    case.world.plan()
    lent = case.world.submit(time_limit_ms=60_000, tenant="later")
    made = case.world.plan()
    assert runs(case.world, lent)
    assert not runs(case.world, patient)
    assert made.overtaken == ()


def test_backfill_entitled_job_starts_as_soon_as_its_machines_are_free() -> None:
    case = Waiting()
    lent = case.small(60_000)
    let_go(case.world, case.busy)
    case.world.plan()
    assert not runs(case.world, case.gang)
    let_go(case.world, lent)
    case.world.plan()
    assert runs(case.world, case.gang)
    assert case.world.state.promises == {}


def test_backfill_holds_to_its_machines_while_others_have_more_free() -> None:
    world = World(POLICIES)
    for _ in range(2):
        world.worker(count=2)
    # The first two fill the first machine, the others the second.
    _, soon, _, later = (held(world, hours * HOUR_MS) for hours in (1, 1, 2, 2))
    let_go(world, soon)
    gang = world.submit(WHOLE)
    overtake(world, gang)
    before = promised(world)
    lent = world.submit(time_limit_ms=60_000, tenant="later")
    world.plan()
    assert world.members(lent)[0].worker_id == before.devices[0][0]
    let_go(world, later)
    assert promised(world) == before


def test_backfill_takes_the_machines_that_are_sure_to_be_free_before_those_with_more_free() -> None:
    world = World(POLICIES)
    world.worker(count=2)
    bounded = held(world, HOUR_MS)
    sure = world.members(bounded)[0].worker_id
    world.worker("RTX3060", count=3)
    unlimited = [world.submit(Requirements(gpu_model="RTX3060", gpus=1)) for _ in range(2)]
    world.plan()
    assert all(runs(world, one) for one in unlimited)
    gang = world.submit(WHOLE)
    overtake(world, gang)
    promise = promised(world)
    assert [worker_id for worker_id, _ in promise.devices] == [sure]


def test_backfill_gang_of_several_machines_is_promised_machines_and_a_head() -> None:
    world = World(POLICIES)
    host = world.head_host(1)
    for _ in range(2):
        world.worker()
    held(world, HOUR_MS)
    gang = world.submit(Requirements(gpus=2))
    overtake(world, gang)
    promise = promised(world)
    assert (promise.head_host, len(promise.devices)) == (host, 2)
    # Machines that are free for another gang are of no use to it: the one head slot is kept.
    for _ in range(2):
        world.worker("RTX3060")
    other = world.submit(Requirements(gpus=2, gpu_model="RTX3060"), tenant="later")
    world.plan()
    assert not runs(world, other)


def test_backfill_promise_is_void_when_a_machine_of_it_goes() -> None:
    case = Waiting()
    ((worker_id, _),) = case.world.state.promises[case.gang].devices
    case.world.do(m.DrainWorker(worker_id))
    assert case.world.plan().promises == ((case.gang, None),)
    assert case.world.state.promises == {}
    assert case.world.state.jobs[case.gang].promise is None


def test_backfill_idle_clusters_count_as_coming_free() -> None:
    world = World(POLICIES)
    world.worker(count=2)
    job_id = world.running()
    world.finish(job_id)
    busy = held(world, HOUR_MS, tenant="later")
    assert world.state.idle_clusters
    gang = world.submit(WHOLE)
    overtake(world, gang)
    promise = promised(world)
    started_ms = world.attempt(busy).started_at_ms
    assert started_ms is not None
    assert promise.starts_by_ms == started_ms + HOUR_MS + ENDING_ALLOWANCE_MS


def test_backfill_forming_job_counts_with_the_time_that_forming_may_take() -> None:
    world = World(POLICIES)
    world.worker(count=2)
    world.submit(time_limit_ms=HOUR_MS)
    world.plan()
    gang = world.submit(WHOLE)
    overtake(world, gang)
    promise = promised(world)
    assert promise.starts_by_ms == world.at_ms + FORMING_ALLOWANCE_MS + HOUR_MS


# ------------------------------------------------------------ what is told


def test_estimate_of_a_promise_names_the_instant_and_the_own_job_it_waits_for() -> None:
    case = Waiting()
    name = case.world.job(case.busy).submission_id
    assert estimate_of(case.world, case.gang) == Estimate(
        case.by_ms,
        f"at 2026-09-21 15:15 UTC at the latest, when job {name} has reached its time limit;"
        " sooner if others end early",
    )


def test_estimate_does_not_name_another_tenants_job() -> None:
    world = World(POLICIES)
    world.worker()
    held(world, HOUR_MS, tenant="other")
    job_id = world.submit()
    world.plan()
    found = estimate_of(world, job_id)
    assert found.start_ms == world.at_ms + HOUR_MS + ENDING_ALLOWANCE_MS
    assert found.words.startswith(
        "about 2026-09-21 15:15 UTC, when another tenant's job has reached its time"
    )


def test_estimate_without_limits_counts_the_jobs_that_state_none() -> None:
    world = World(POLICIES)
    for limit_ms in (0, 0, HOUR_MS):
        world.worker(count=2, slots=2)
        world.submit(Requirements(gpus=2, one_machine=True), time_limit_ms=limit_ms)
        world.plan()
    job_id = world.submit(Requirements(gpus=3))
    world.head_host()
    world.plan()
    assert estimate_of(world, job_id) == Estimate(
        None,
        "when it starts is not known: 2 of the 3 jobs on machines that fit state no orch.time_limit",
    )


def test_estimate_behind_others_says_who_comes_before() -> None:
    world = World(POLICIES)
    world.worker()
    held(world, HOUR_MS)
    world.submit()
    job_id = world.submit()
    world.plan()
    found = estimate_of(world, job_id)
    assert found.start_ms is None
    assert "1 of its tenant's jobs comes before it; machines for it are free at 2026" in found.words


def test_estimate_of_what_nothing_serves_or_a_quota_holds_back_says_that() -> None:
    world = World(POLICIES)
    world.worker()
    large = world.submit(Requirements(gpus=9))
    assert estimate_of(world, large).words == (
        "when it starts is not known: no machines here hold all that it asks for"
    )
    world.do(m.SetTenant("acme", gpus=m.QuotaLimit(1)))
    assert "its tenant's quota holds it back" in estimate_of(world, large).words


def test_estimate_of_a_gang_with_a_bound_says_that_it_is_measured_first() -> None:
    world = World(POLICIES)
    world.head_host(overlay=NEBULA, isolation=Isolation.BOX)
    for _ in range(2):
        world.worker(overlay=NEBULA, isolation=Isolation.BOX)
    busy = held(world, HOUR_MS)
    assert runs(world, busy)
    job_id = world.submit(Requirements(gpus=2, max_rtt_ms=20))
    assert "measured when they are free" in estimate_of(world, job_id).words
