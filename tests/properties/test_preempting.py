"""Preemption over any floor: enough and not one too many, least lost, never the wrong ones, and never to and fro."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core import messages as m
from orchestrator.core.apply import apply
from orchestrator.core.entities import TABLES
from orchestrator.core.ids import JobId, TenantId
from orchestrator.core.jobs import JobStatus, Outcome, Requirements
from orchestrator.core.policies import Policies
from orchestrator.core.preemption import HOUR_MS, PreemptionPolicy
from orchestrator.core.queries.queue import Queue
from orchestrator.core.scheduling.placement import Budget, JobNeed, Plan
from orchestrator.core.scheduling.plan import plan
from orchestrator.core.state import State
from orchestrator.core.tenancy.fairness import FairnessPolicy
from orchestrator.sim.checks import check_nominations
from tests.core.preemptions import settle, submit, victims_of
from tests.core.worlds import Driver, Listed, World
from tests.properties.stories import check_held, check_jobs

POLICY = PreemptionPolicy(
    notice_ms=30_000,
    wait_ms=20_000,
    wait_for_share_ms=120_000,
    run_ms_min=60_000,
    protected_ms=240_000,
    per_hour_max=3,
    release_ms=30_000,
)
POLICIES = Policies(preemption=POLICY, fairness=FairnessPolicy(memory_bp=0))


def begin_all(world: World) -> None:
    """Every driver that can begin does."""
    for attempt_id in list(world.state.attempt_in.values()):
        world.drivers.setdefault(attempt_id, Driver())
    world.reports()


# ------------------------------------------------------------ one order


@dataclass(frozen=True)
class Low:
    """A job that runs when the high one comes."""

    gpus: int
    priority: int
    interruptible: bool
    ran_s: int


LOWS = st.lists(
    st.builds(
        Low,
        gpus=st.integers(1, 3),
        priority=st.sampled_from([0, 0, 1, 5]),
        interruptible=st.sampled_from([True, True, True, False]),
        ran_s=st.sampled_from([0, 20, 20, 90, 300]),
    ),
    min_size=1,
    max_size=6,
)
WANTED = st.sampled_from(
    [
        Requirements(),
        Requirements(gpus=2),
        Requirements(gpus=2, one_machine=True),
        Requirements(gpus=3),
        Requirements(gpus=4),
        Requirements(gpus=4, gpus_per_worker=2),
        Requirements(gpus=2, gpus_per_worker=1),
    ]
)


def floor(sizes: list[int], heads: int, lows: list[Low]) -> World:
    """Jobs come one after another, so that each has run for a time of its own."""
    world = World(POLICIES)
    if heads:
        world.head_host(heads)
    for size in sizes:
        world.worker(count=size)
    for low in lows:
        wanted = Requirements(gpus=low.gpus)
        job_id = submit(world, wanted, priority=low.priority, interruptible=low.interruptible)
        world.plan()
        begin_all(world)
        if world.state.jobs[job_id].attempt_id is None:
            world.do(m.StopJob(job_id))
        world.live_on(1_000 * low.ran_s)
    return world


def without(world: World, gone: set[JobId]) -> State:
    """The same with nothing left of some jobs, which were not there to be preempted again."""
    state = State(Policies(preemption=replace(POLICY, in_flight_max=0)))
    for table in TABLES:
        for entity in world.state.rows()[table].values():
            state.put(entity)
    for worker in state.workers.values():
        state.heartbeats.heard(worker.worker_id, world.monotonic_ms)
    for job_id in gone:
        attempt = state.attempts[state.jobs[job_id].attempt_id or state.attempts.popitem()[0]]
        members = state.clusters[attempt.cluster_id].member_ids
        events: list[m.Event] = [
            m.AttemptEnded(attempt.attempt_id, Outcome.STOPPED, "gone", 0),
            m.JobEnded(job_id, JobStatus.STOPPED, "gone", 0),
            m.LogCompleted(attempt.attempt_id, 0),
            m.ClusterClosing(attempt.cluster_id, "gone"),
            *(m.MemberReleased(member_id) for member_id in members),
            m.ClusterClosed(attempt.cluster_id),
        ]
        for event in events:
            apply(state, event, world.at_ms)
    return state


def fits_without(world: World, need: JobNeed, gone: set[JobId]) -> bool:
    made = plan(without(world, gone), Listed([need]), world.at_ms, Budget())
    return bool(made.placements)


def lost(world: World, jobs: set[JobId]) -> int:
    """Device-time since their starts."""
    total = 0
    for job_id in jobs:
        attempt = world.attempt(job_id)
        devices = world.state.jobs[job_id].request.requirements.device_count
        total += (world.at_ms - (attempt.started_at_ms or world.at_ms)) * devices
    return total


@given(
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    heads=st.integers(0, 2),
    lows=LOWS,
    wanted=WANTED,
)
@settings(max_examples=120)
def test_preempting_is_of_those_who_may_enough_not_one_too_many_and_loses_least(
    sizes: list[int], heads: int, lows: list[Low], wanted: Requirements
) -> None:
    world = floor(sizes, heads, lows)
    high = submit(world, wanted, priority=3, interruptible=False)
    world.live_on(POLICY.wait_ms)
    state, at_ms = world.state, world.at_ms
    made = plan(state, Queue(state, at_ms), at_ms, Budget())
    victims = victims_of(made)
    eligible = set()
    for job in state.jobs.values():
        attempt = state.attempts.get(job.attempt_id) if job.attempt_id else None
        if attempt is None or not job.request.interruptible or job.request.priority >= 3:
            continue
        if attempt.started_at_ms is None or at_ms - attempt.started_at_ms >= POLICY.run_ms_min:
            eligible.add(job.job_id)
    assert victims <= eligible
    need = JobNeed(high, world.tenant(), wanted)
    if victims:
        assert [one.job_id for one in made.preemptions] == [high]
        assert fits_without(world, need, victims), "those who give way are not enough"
        for one in victims:
            assert not fits_without(world, need, victims - {one}), f"{one} gives way for nothing"
    enough = [
        set(gone)
        for size in range(len(eligible) + 1)
        for gone in combinations(sorted(eligible), size)
        if fits_without(world, need, set(gone))
    ]
    placed = high in {one.job_id for one in made.placements}
    assert bool(victims) == bool(enough and set() not in enough)
    assert placed == (set() in enough)
    if victims:
        least = min((lost(world, gone), len(gone)) for gone in enough)
        assert (lost(world, victims), len(victims)) == least


# ------------------------------------------------------------ a crowd over time

KINDS = ("submit", "submit", "end", "wait", "wait", "long", "stop", "fail")
STEPS = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 10**6)), min_size=10, max_size=60)


def step(world: World, kind: str, number: int) -> None:
    """One thing that happens, of which there are many."""
    running = [job for job in world.state.jobs.values() if job.status is JobStatus.RUNNING]
    match kind:
        case "submit":
            wanted = (Requirements(), Requirements(), Requirements(gpus=2))[number % 3]
            tenant = ("acme", "birch")[number // 3 % 2]
            submit(world, wanted, tenant=tenant, priority=number // 6 % 3, interruptible=number // 18 % 4 > 0)
        case "end" | "fail" if running:
            ended = Driver(False, Outcome.SUCCEEDED if kind == "end" else Outcome.FAILED, 0)
            job = running[number % len(running)]
            world.drivers[job.attempt_id or world.attempt(job.job_id).attempt_id] = ended
        case "stop":
            open_jobs = [job.job_id for job in world.state.jobs.values() if not job.status.terminal]
            if open_jobs:
                world.do(m.StopJob(open_jobs[number % len(open_jobs)]))
        case "wait":
            world.live_on(1_000 * (1 + number % 40))
        case _:
            world.live_on(1_000 * (1 + number % 400))


@given(sizes=st.lists(st.integers(1, 2), min_size=1, max_size=4), steps=STEPS)
@settings(max_examples=80)
def test_preempting_any_crowd_keeps_promises_bounds_its_pace_and_orders_once(
    sizes: list[int], steps: list[tuple[str, int]]
) -> None:
    world = World(POLICIES)
    world.head_host(2)
    for size in sizes:
        world.worker(count=size)
    gave_way: dict[JobId, list[int]] = {}
    for kind, number in steps:
        step(world, kind, number)
        settle(world)
        made = world.plan()
        check(world)
        for job_id in victims_of(made):
            if (
                world.state.jobs[job_id].gave_way
                and world.state.jobs[job_id].gave_way[-1].at_ms == world.at_ms
            ):
                gave_way.setdefault(job_id, []).append(world.at_ms)
        before, version = world.state.rows(), world.state.version
        if not (made.placements or made.fillings or made.reuses or made.overtaken):
            world.do(m.ApplyPlan(made, ()))
            assert (world.state.rows(), world.state.version) == (before, version)
        again = plan(world.state, Queue(world.state, world.at_ms), world.at_ms, Budget())
        assert not (victims_of(again) & victims_of(made))
        begin_all(world)
        check(world)
    for job_id, times in gave_way.items():
        assert world.state.jobs[job_id].request.interruptible
        for first, beyond in zip(times, times[POLICY.per_hour_max :], strict=False):
            assert beyond - first >= HOUR_MS


def check(world: World) -> None:
    check_held(world.state)
    check_jobs(world.state)
    check_nominations(world.state)


# ------------------------------------------------------------ nobody waits too long

ROUND_MS = 10_000


def round_of(world: World) -> Plan:
    """Ten seconds in which nobody's job ends by itself."""
    world.live_on(ROUND_MS)
    settle(world)
    made = world.plan()
    begin_all(world)
    return made


@given(
    machines=st.integers(1, 4),
    lows=st.integers(1, 8),
    highs=st.lists(st.sampled_from([1, 2, 5]), min_size=1, max_size=4),
)
@settings(max_examples=30)
def test_lower_priority_of_the_tenant_does_not_run_while_a_higher_waits_longer_than_it_has_to(
    machines: int, lows: int, highs: list[int]
) -> None:
    """No job ends here: whoever starts has somebody give way."""
    world = World(POLICIES)
    for _ in range(machines):
        world.worker()
    for _ in range(lows):
        submit(world, Requirements())
    world.plan()
    begin_all(world)
    world.live_on(POLICY.run_ms_min)
    for priority in highs:
        submit(world, Requirements(), priority=priority)
    patience_ms = POLICY.wait_ms + POLICY.notice_ms + 3 * ROUND_MS
    came_ms = world.at_ms
    for _ in range(60):
        round_of(world)
        state, at_ms = world.state, world.at_ms
        jobs = [job for job in state.jobs.values() if not job.status.terminal]
        waiting = [
            job
            for job in jobs
            if job.attempt_id is None and at_ms - max(job.submitted_at_ms, job.not_before_ms) > patience_ms
        ]
        for low in (job for job in jobs if job.status is JobStatus.RUNNING):
            started_ms = state.attempts[low.attempt_id].started_at_ms or 0  # type: ignore[index]
            bound_ms = POLICY.protected_ms if low.gave_way else POLICY.run_ms_min
            if at_ms - started_ms > bound_ms + patience_ms and len(low.gave_way) < POLICY.per_hour_max:
                higher = [job for job in waiting if job.request.priority > low.request.priority]
                assert not higher, f"{low.job_id} runs while {higher[0].job_id} waits"
        if at_ms - came_ms > patience_ms:
            top = sorted((job.request.priority for job in jobs), reverse=True)[:machines]
            runs = [job.request.priority for job in jobs if job.status is JobStatus.RUNNING]
            assert sorted(runs, reverse=True) == top


@given(
    machines=st.integers(2, 6),
    weights=st.lists(st.sampled_from([50, 100, 100, 200]), min_size=2, max_size=3),
    hog=st.integers(0, 2),
)
@settings(max_examples=20)
def test_tenant_beyond_its_share_starves_nobody_even_if_none_of_its_jobs_ever_ends(
    machines: int, weights: list[int], hog: int
) -> None:
    world = World(POLICIES)
    names = ("acme", "birch", "cedar")[: len(weights)]
    for name, weight in zip(names, weights, strict=True):
        tenant_id = world.tenant(name)
        world.state.put(replace(world.state.tenants[tenant_id], weight=weight))
    for _ in range(machines):
        world.worker()
    first = names[hog % len(names)]
    for _ in range(machines):
        submit(world, Requirements(), tenant=first)
    world.plan()
    begin_all(world)
    world.live_on(POLICY.run_ms_min)
    for name in names:
        for _ in range(machines):
            submit(world, Requirements(), tenant=name)
    ever: set[TenantId] = set()
    orders = 0
    for number in range(120):
        made = round_of(world)
        orders += len(made.preemptions) if number > 60 else 0
        ever.update(one.tenant_id for one in world.state.jobs.values() if one.status is JobStatus.RUNNING)
    holds = {name: running_of(world, world.tenant(name)) for name in names}
    fair = {name: machines * weight // sum(weights) for name, weight in zip(names, weights, strict=True)}
    assert ever == {world.tenant(name) for name in names}, "somebody never ran"
    assert all(holds[name] >= fair[name] for name in names) or orders, f"{holds} where {fair} would be fair"
    if all(fair.values()):
        assert orders == 0, "where everybody has his share, nobody gives way"


def running_of(world: World, tenant_id: TenantId) -> int:
    running = (job for job in world.state.jobs.values() if job.status is JobStatus.RUNNING)
    return sum(job.tenant_id == tenant_id for job in running)
