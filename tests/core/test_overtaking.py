"""Overtaking: a gang that needs much is passed by small jobs so often and no oftener, then machines fill up for it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from orchestrator.core.clusters import ClusterPolicy
from orchestrator.core.entities import TABLES
from orchestrator.core.ids import JobId
from orchestrator.core.jobs import JobPolicy, Requirements
from orchestrator.core.policies import Policies
from orchestrator.core.queries.queue import Queue
from orchestrator.core.scheduling.overtaking import KEPT_MAX
from orchestrator.core.scheduling.placement import Budget, Deferral, JobNeed, Plan, WaitReason
from orchestrator.core.scheduling.plan import plan
from orchestrator.core.state import State
from orchestrator.core.supply.fleet import HardwareClass
from orchestrator.core.tenancy.fairness import FairnessPolicy
from tests.core.fleets import let_go, placed_jobs, running_of
from tests.core.worlds import Listed, World

BOUND = 5
STEPS_MAX = 200
POLICIES = Policies(
    jobs=JobPolicy(overtaken_max=BOUND),
    fairness=FairnessPolicy(memory_bp=0),
    clusters=ClusterPolicy(idle_teardown_ms=1_000),
)


@dataclass
class Hall:
    """A fleet under a stream of small jobs that never ends, one of which ends in each step."""

    machines: int
    gpus_each: int = 1
    heads: int = 4
    tenants: tuple[str, ...] = ("small", "large")
    """In the order in which they came: between equals their ids decide."""
    world: World = field(default_factory=lambda: World(POLICIES))

    def __post_init__(self) -> None:
        for name in self.tenants:
            self.world.tenant(name)
        for _ in range(self.heads):
            self.world.head_host(1)
        for _ in range(self.machines):
            self.world.worker(count=self.gpus_each)
        self.fill()
        self.world.plan()

    @property
    def size(self) -> int:
        return self.machines * self.gpus_each

    def fill(self) -> None:
        """As many small jobs wait as there are devices."""
        waiting = len(self.world.state.queues.get(self.world.tenant("small"), ()))
        for _ in range(self.size - waiting):
            self.world.submit(tenant="small")

    def step(self) -> Plan:
        """The oldest job ends, another one comes, and a plan is made."""
        oldest = placed_jobs(self.world)[:1]
        for job_id in oldest:
            let_go(self.world, job_id)
        self.fill()
        self.world.forward(1_000)
        return self.world.plan()

    def overtaken(self, job_id: JobId) -> int:
        return self.world.state.jobs[job_id].overtaken

    def runs(self, job_id: JobId) -> bool:
        return self.world.state.jobs[job_id].attempt_id is not None

    def until(self, *job_ids: JobId) -> int:
        """Steps until all of these have run."""
        started: set[JobId] = set()
        for steps in range(STEPS_MAX):
            started.update(job_id for job_id in job_ids if self.runs(job_id))
            if started >= set(job_ids):
                return steps
            self.step()
        pytest.fail(f"after {STEPS_MAX} steps {set(job_ids) - started} still wait")


# ------------------------------------------------------------ one plan


def listed(world: World, *job_ids: JobId, entitled: bool = False) -> Plan:
    """A plan over these jobs in this order, of which the first may be entitled."""
    state = world.state
    needs = [
        JobNeed(
            job_id,
            state.jobs[job_id].tenant_id,
            state.jobs[job_id].request.requirements,
            entitled=entitled and job_id == job_ids[0],
        )
        for job_id in job_ids
    ]
    return plan(state, Listed(list(needs)), world.at_ms, Budget())


def test_overtaken_counts_each_placement_that_would_have_served() -> None:
    world = World(POLICIES)
    world.worker(count=2)
    world.worker("RTX3060")
    gang, first, second, other = (
        world.submit(wanted)
        for wanted in (
            Requirements(gpus=3, gpu_model="RTX4090"),
            Requirements(gpu_model="RTX4090"),
            Requirements(gpu_model="RTX4090"),
            Requirements(gpu_model="RTX3060"),
        )
    )
    made = listed(world, gang, first, second, other)
    assert len(made.placements) == 3
    assert made.overtaken == ((gang, 2),)
    assert listed(world, first, gang, second).overtaken == ((gang, 1),)
    assert listed(world, first, second, gang).overtaken == ()


def test_overtaken_is_written_to_the_job_and_survives_a_reload() -> None:
    hall = Hall(3)
    gang = hall.world.submit(Requirements(gpus=3), tenant="large")
    hall.step()
    counted = hall.overtaken(gang)
    assert counted == 1
    loaded = State(POLICIES)
    for table in TABLES:
        for entity in hall.world.state.rows()[table].values():
            loaded.put(entity)
    needs = {need.job_id: need for need in Queue(loaded, hall.world.at_ms) if isinstance(need, JobNeed)}
    assert loaded.jobs[gang].overtaken == counted
    assert not needs[gang].entitled


def test_entitled_job_keeps_what_is_free_from_later_ones() -> None:
    world = World(POLICIES)
    world.head_host()
    for _ in range(2):
        world.worker()
    busy, gang, small = world.submit(), world.submit(Requirements(gpus=2)), world.submit()
    world.apply(listed(world, busy))
    assert [one.job_id for one in listed(world, gang, small).placements] == [small]
    made = listed(world, gang, small, entitled=True)
    assert made.placements == ()
    assert made.overtaken == ()
    assert made.deferrals[0] == Deferral(
        gang,
        "waiting for 2 × GPU together: overtaken often enough; 1 of 2 devices are kept for it on 2 machines"
        " until the rest of them is free",
        WaitReason.KEPT,
        kept=True,
    )


def test_entitled_job_keeps_no_more_machines_than_it_needs() -> None:
    world = World(POLICIES)
    world.head_host()
    for _ in range(4):
        world.worker()
    busy = [world.submit() for _ in range(3)]
    world.apply(listed(world, *busy))
    world.worker("H100", hardware_class=HardwareClass.DATACENTER)
    gang = world.submit(Requirements(gpus=2, gpu_model="RTX4090"))
    small, dear = (
        world.submit(Requirements(gpu_model="RTX4090")),
        world.submit(Requirements(gpu_model="H100")),
    )
    made = listed(world, gang, small, dear, entitled=True)
    assert [one.job_id for one in made.placements] == [dear]
    let_go(world, busy[0])
    let_go(world, busy[1])
    # Three are free: two are its own, and one is left.
    assert [one.job_id for one in listed(world, gang, small, entitled=True).placements] == [gang, small]


def test_entitled_job_that_fits_nowhere_keeps_nothing() -> None:
    world = World(POLICIES)
    world.head_host()
    world.worker()
    gang, small = world.submit(Requirements(gpus=9)), world.submit()
    made = listed(world, gang, small, entitled=True)
    assert [one.job_id for one in made.placements] == [small]
    assert made.deferrals[0].reason.startswith("waiting for 9 × GPU together: 1 of 1 fitting devices free")


@pytest.mark.parametrize(
    ("wanted", "left"),
    [
        (Requirements(gpus=4), 0),
        (Requirements(gpus=4, gpus_per_worker=2), 0),
        (Requirements(gpus=2, one_machine=True), 1),
        (Requirements(gpus=2, gpus_per_worker=1), 0),
    ],
)
def test_entitled_job_keeps_machines_that_can_hold_it(wanted: Requirements, left: int) -> None:
    """Two machines of two devices; on each one device is free."""
    world = World(POLICIES)
    world.head_host(4)
    for _ in range(2):
        world.worker(count=2)
    busy = [world.submit() for _ in range(4)]
    world.apply(listed(world, *busy))
    of_worker: dict[str, JobId] = {}
    for job_id in busy:
        of_worker.setdefault(world.members(job_id)[0].worker_id, job_id)
    for job_id in of_worker.values():
        let_go(world, job_id)
    gang, *small = (world.submit(one) for one in (wanted, Requirements(), Requirements()))
    made = listed(world, gang, *small, entitled=True)
    if wanted.gpus_per_worker == 1:
        assert [one.job_id for one in made.placements] == [gang]
    else:
        assert len(made.placements) == left


def test_entitled_jobs_beyond_the_limit_keep_nothing() -> None:
    world = World(POLICIES)
    for _ in range(KEPT_MAX + 2):
        world.worker(count=2)
    busy = [world.submit() for _ in range(2 * KEPT_MAX + 4)]
    world.apply(listed(world, *busy))
    for job_id in busy:
        if world.members(job_id)[0].device_ids[0].endswith("-0"):
            let_go(world, job_id)
    pairs = [world.submit(Requirements(gpus=2, one_machine=True)) for _ in range(KEPT_MAX + 2)]
    small = [world.submit() for _ in range(KEPT_MAX + 2)]
    tenant_id = world.tenant()
    needs = [JobNeed(one, tenant_id, Requirements(gpus=2, one_machine=True), entitled=True) for one in pairs]
    needs += [JobNeed(one, tenant_id, Requirements()) for one in small]
    made = plan(world.state, Listed(list(needs)), world.at_ms, Budget())
    assert len(made.placements) == 2


# ------------------------------------------------------------ a day in the hall


@pytest.mark.parametrize("tenants", [("small", "large"), ("large", "small")])
@pytest.mark.parametrize("gpus_each", [1, 2])
def test_gang_of_the_whole_fleet_is_overtaken_so_often_and_then_runs(
    gpus_each: int, tenants: tuple[str, ...]
) -> None:
    hall = Hall(4, gpus_each, tenants=tenants)
    gang = hall.world.submit(Requirements(gpus=hall.size), tenant="large")
    steps = hall.until(gang)
    assert hall.overtaken(gang) == BOUND
    assert steps <= BOUND + hall.size + 1


def test_gang_keeps_its_machines_only_until_it_runs() -> None:
    hall = Hall(4)
    gang = hall.world.submit(Requirements(gpus=4), tenant="large")
    hall.until(gang)
    assert running_of(hall.world, "small") == 0
    let_go(hall.world, gang)
    hall.step()
    assert running_of(hall.world, "small") == 4


def test_gangs_both_entitled_run_one_after_the_other() -> None:
    hall = Hall(4)
    gangs = [hall.world.submit(Requirements(gpus=4), tenant=name) for name in ("large", "vast")]
    hall.until(*gangs)
    assert all(hall.overtaken(gang) <= BOUND + 1 for gang in gangs)


def test_gangs_that_fit_beside_each_other_do_not_wait_for_each_other() -> None:
    hall = Hall(6)
    gangs = [hall.world.submit(Requirements(gpus=3), tenant=name) for name in ("large", "vast")]
    assert hall.until(*gangs) <= 2 * (BOUND + hall.size)


def test_gangs_of_one_tenant_come_in_their_order() -> None:
    hall = Hall(4)
    first = hall.world.submit(Requirements(gpus=4), tenant="large")
    hall.world.forward(1_000)
    second = hall.world.submit(Requirements(gpus=4), tenant="large")
    hall.until(first)
    assert not hall.runs(second)
    hall.until(second)


def test_gangs_of_one_tenant_do_not_follow_each_other_past_everybody() -> None:
    """Only the first of them was overtaken, as the others stood behind it; and after a day it is others' turn."""
    hall = Hall(4, world=World(replace(POLICIES, fairness=FairnessPolicy())))
    first, *_ = [hall.world.submit(Requirements(gpus=4), tenant="large") for _ in range(3)]
    hall.until(first)
    hall.world.forward(24 * 3_600_000)
    let_go(hall.world, first)
    hall.step()
    assert running_of(hall.world, "small") > 0


def test_gang_of_a_tenant_beyond_its_share_waits_its_turn() -> None:
    """What others are owed goes before the bound: only among equals can anybody be overtaken."""
    world = World(replace(POLICIES, jobs=JobPolicy(overtaken_max=1)))
    world.head_host()
    for _ in range(4):
        world.worker()
    for _ in range(3):
        world.submit(tenant="large")
    world.plan()
    gang = world.submit(Requirements(gpus=2), tenant="large")
    for _ in range(3):
        world.submit(tenant="small")
    world.plan()
    assert running_of(world, "small") == 1
    assert world.state.jobs[gang].attempt_id is None


def test_gang_is_not_overtaken_for_ever_by_jobs_on_warm_clusters() -> None:
    """A tenant whose jobs follow each other on warm clusters gives no device back between them."""
    world = World(POLICIES)
    world.head_host()
    for _ in range(2):
        world.worker()
    for _ in range(4):
        world.submit(tenant="small")
    world.plan()
    world.reports()
    gang = world.submit(Requirements(gpus=2), tenant="large")
    for step in range(10 * BOUND):
        if world.state.jobs[gang].attempt_id is not None:
            assert step > 0
            return
        job_id = next((one for one in placed_jobs(world) if one != gang), None)
        if job_id is not None:
            world.start(job_id)
            world.finish(job_id)
        world.submit(tenant="small")
        world.live_on(500)
        world.plan()
        world.reports()
    pytest.fail(
        f"overtaken {world.state.jobs[gang].overtaken} times by count, and by warm clusters without end"
    )
