"""Whose job is next, end to end: tenants take turns by weight, and nobody's queue slows or starves another's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest

from orchestrator.core import messages as m
from orchestrator.core.clusters import ClusterPolicy
from orchestrator.core.ids import JobId, TenantId, WorkerId
from orchestrator.core.jobs import Requirements
from orchestrator.core.market.worth import UNIT
from orchestrator.core.policies import Policies
from orchestrator.core.queries.queue import MISSES_MAX, Queue, capacity_of
from orchestrator.core.scheduling.placement import Budget, JobNeed, Need, Plan, Served, VacancyNeed
from orchestrator.core.scheduling.plan import plan
from orchestrator.core.supply.catalogue import GIB
from orchestrator.core.supply.fleet import HardwareClass
from orchestrator.core.tenancy.fairness import NOTHING, Amounts, FairnessPolicy, mean_held, moment
from orchestrator.core.tenancy.quotas import Quota
from orchestrator.core.tenancy.tenants import MIB, held_by
from tests.core.fleets import device, let_go, placed_jobs, running_of
from tests.core.worlds import World, inventory

NO_MEMORY = Policies(fairness=FairnessPolicy(memory_bp=0))
UNMET = Requirements(gpu_model="H100")
HOUR_MS = 3_600_000


@dataclass
class Watched:
    """A queue, and what became of each need that the plan took out of it."""

    queue: Queue
    seen: list[tuple[Need, Served]] = field(default_factory=list)

    def __iter__(self) -> Iterator[Need]:
        return iter(self.queue)

    def settled(self, need: Need, outcome: Served) -> None:
        self.seen.append((need, outcome))
        self.queue.settled(need, outcome)


def watch(world: World) -> tuple[Plan, Watched]:
    """A plan that is not applied, and the needs that it looked at."""
    watched = Watched(Queue(world.state, world.at_ms))
    return plan(world.state, watched, world.at_ms, Budget()), watched


def fleet(count: int, policies: Policies = NO_MEMORY) -> World:
    """So many machines of one GPU."""
    world = World(policies)
    for _ in range(count):
        world.worker()
    return world


def weigh(world: World, tenant: str, weight: int) -> None:
    tenant_id = world.tenant(tenant)
    world.state.put(replace(world.state.tenants[tenant_id], weight=weight))


def submit_many(world: World, tenant: str, count: int, wanted: Requirements | None = None) -> list[JobId]:
    return [world.submit(wanted, tenant=tenant) for _ in range(count)]


def tenants_of(world: World, made: Plan) -> list[str]:
    """Whose job each placement is, in order."""
    state = world.state
    return [state.tenants[state.jobs[one.job_id].tenant_id].name for one in made.placements]


# ------------------------------------------------------------ turns


def test_turns_of_equal_tenants_alternate() -> None:
    world = fleet(6)
    submit_many(world, "acme", 20)
    submit_many(world, "beta", 20)
    made = world.plan()
    assert Counter(tenants_of(world, made)) == {"acme": 3, "beta": 3}
    assert len(set(tenants_of(world, made)[:2])) == 2
    for _ in range(12):
        let_go(world, placed_jobs(world)[0])
        world.plan()
        assert {running_of(world, "acme"), running_of(world, "beta")} <= {3}


def test_turns_of_twice_the_weight_come_to_twice_the_share() -> None:
    world = fleet(6)
    weigh(world, "acme", 200)
    submit_many(world, "beta", 20)
    submit_many(world, "acme", 20)
    world.plan()
    assert (running_of(world, "acme"), running_of(world, "beta")) == (4, 2)
    for _ in range(12):
        let_go(world, placed_jobs(world)[0])
        world.plan()
        assert (running_of(world, "acme"), running_of(world, "beta")) == (4, 2)


def test_turns_a_latecomer_reaches_its_share_as_jobs_end_and_no_job_is_taken_away() -> None:
    world = fleet(6)
    submit_many(world, "acme", 20)
    world.plan()
    submit_many(world, "beta", 20)
    assert world.plan().placements == ()
    for ended in range(1, 4):
        let_go(world, placed_jobs(world)[0])
        world.plan()
        assert running_of(world, "beta") == ended


@pytest.mark.parametrize(("held", "first"), [(1, "acme"), (3, "beta")])
def test_turns_of_an_overtaken_job_come_first_only_within_its_tenants_share(held: int, first: str) -> None:
    world = fleet(4)
    submit_many(world, "acme", held)
    world.plan()
    gang = world.state.jobs[world.submit(Requirements(gpus=2), tenant="acme")]
    world.state.put(replace(gang, overtaken=world.state.policies.jobs.overtaken_max))
    submit_many(world, "beta", 1)
    _, watched = watch(world)
    needs = [need for need, _ in watched.seen if isinstance(need, JobNeed)]
    assert world.state.tenants[needs[0].tenant_id].name == first
    assert {need.entitled for need in needs if need.tenant_id == gang.tenant_id} == {True}


def test_turns_remember_what_was_used_but_shut_nobody_out() -> None:
    world = fleet(4, Policies())
    submit_many(world, "acme", 4)
    world.plan()
    world.forward(48 * HOUR_MS)
    for job_id in placed_jobs(world):
        let_go(world, job_id)
    submit_many(world, "acme", 8)
    submit_many(world, "beta", 8)
    world.live_on(1_000)
    made = world.plan()
    assert tenants_of(world, made)[0] == "beta"
    assert running_of(world, "acme") >= 1
    assert running_of(world, "beta") > running_of(world, "acme")


def test_turns_go_by_the_dominant_resource() -> None:
    """Whoever takes large machines for one GPU each has used more of the fleet than his GPUs say."""
    world = World(NO_MEMORY)
    big = replace(
        inventory(),
        cpus=64,
        memory_bytes=64 * GIB,
        devices=(replace(device("big"), evidence=None),),
    )
    world.join(big)
    submit_many(world, "acme", 4)
    world.plan()
    held = world.state.tenants[world.tenant()].usage.held
    assert held == held_by(big, ["RTX4090"]) == Amounts(UNIT, 64, 64 * GIB // MIB)
    for _ in range(3):
        world.worker()
    submit_many(world, "beta", 3)
    assert tenants_of(world, world.plan()) == ["beta", "beta", "beta"]


def test_turns_of_a_tenant_without_jobs_keep_nothing_for_it() -> None:
    world = fleet(6)
    world.tenant("beta")
    weigh(world, "beta", 1_000_000)
    submit_many(world, "acme", 20)
    world.plan()
    assert running_of(world, "acme") == 6


def test_turns_of_a_tenant_whose_jobs_fit_nowhere_keep_nothing_for_it() -> None:
    world = fleet(6)
    weigh(world, "beta", 1_000_000)
    submit_many(world, "beta", 5, UNMET)
    submit_many(world, "acme", 20)
    world.plan()
    assert running_of(world, "acme") == 6


def test_priority_orders_the_jobs_of_its_own_tenant_only() -> None:
    world = fleet(4)
    submit_many(world, "beta", 4)
    plain = [world.submit(tenant="acme") for _ in range(4)]
    urgent = [world.submit(tenant="acme", priority=100) for _ in range(2)]
    made = world.plan()
    assert Counter(tenants_of(world, made)) == {"acme": 2, "beta": 2}
    assert {job_id for job_id in urgent + plain if world.state.jobs[job_id].attempt_id} == set(urgent)


def test_age_orders_jobs_of_equal_priority() -> None:
    world = fleet(2)
    first = world.submit()
    world.forward(1_000)
    second = world.submit(priority=1)
    third = world.submit()
    made = world.plan()
    assert [one.job_id for one in made.placements] == [second, first]
    assert world.state.jobs[third].attempt_id is None


# ------------------------------------------------------------ long queues


def test_misses_bound_how_deep_a_plan_looks_into_one_queue() -> None:
    world = fleet(2)
    submit_many(world, "acme", MISSES_MAX - 1, UNMET)
    inside = world.submit()
    submit_many(world, "acme", 1, UNMET)
    outside = world.submit()
    made, watched = watch(world)
    assert [one.job_id for one in made.placements] == [inside]
    assert len(watched.seen) == MISSES_MAX + 1
    assert outside not in {need.job_id for need, _ in watched.seen if isinstance(need, JobNeed)}


def test_misses_of_one_tenant_are_no_other_tenants() -> None:
    world = fleet(2)
    submit_many(world, "acme", 3 * MISSES_MAX, UNMET)
    submit_many(world, "beta", MISSES_MAX - 1, UNMET)
    served = world.submit(tenant="beta")
    made, watched = watch(world)
    assert [one.job_id for one in made.placements] == [served]
    assert len(watched.seen) == 2 * MISSES_MAX


def test_queue_of_a_million_is_looked_at_as_deep_as_one_of_a_thousand() -> None:
    world = fleet(2)
    job_id = world.submit(UNMET)
    place = world.state.jobs[job_id].queue_place
    world.state.queues[world.tenant()] = [place] * 1_000_000
    served = world.submit(tenant="beta")
    made, watched = watch(world)
    assert len(watched.seen) == MISSES_MAX + 1
    assert [one.job_id for one in made.placements] == [served]


def test_budget_bounds_what_one_plan_places_and_the_next_goes_on() -> None:
    world = fleet(5)
    submit_many(world, "acme", 5)
    sizes = [len(world.plan(Budget(placements_max=2)).placements) for _ in range(4)]
    assert sizes == [2, 2, 1, 0]


# ------------------------------------------------------------ vacancies


def lose_a_member(world: World, job_id: JobId, count: int = 1) -> list[WorkerId]:
    """A forming gang loses workers, which are not there any more."""
    lost = [member for member in world.members(job_id) if member.device_ids][:count]
    for member in lost:
        world.fail(member)
        world.do(m.DrainWorker(member.worker_id))
    world.reports()
    return [member.worker_id for member in lost]


def forming_gang(wanted: Requirements | None = None) -> tuple[World, JobId]:
    world = fleet(2)
    world.head_host()
    job_id = world.submit(wanted or Requirements(gpus=2))
    world.plan()
    return world, job_id


def test_vacancies_come_before_everybodys_turn() -> None:
    world, job_id = forming_gang()
    lose_a_member(world, job_id)
    submit_many(world, "beta", 3)
    newcomer = world.worker()
    made, watched = watch(world)
    assert isinstance(watched.seen[0][0], VacancyNeed)
    (filling,) = made.fillings
    assert filling.share.worker_id == newcomer
    assert made.placements == ()


def test_vacancy_is_filled_with_the_class_of_its_cluster() -> None:
    """Even where no member is left to take as a pattern."""
    world, job_id = forming_gang()
    lose_a_member(world, job_id, count=2)
    cluster = world.cluster(job_id)
    assert len(cluster.vacancies) == 2
    world.worker("H100", hardware_class=HardwareClass.DATACENTER)
    assert world.plan().fillings == ()
    same = world.worker()
    (filling,) = world.plan().fillings
    assert filling.share.worker_id == same


# ------------------------------------------------------------ what is held


def test_usage_rises_with_a_placement_and_is_nothing_after_its_release() -> None:
    world = fleet(2, Policies(clusters=ClusterPolicy(idle_teardown_ms=1_000)))
    tenant_id = world.tenant()
    job_id = world.running(Requirements())
    assert world.state.tenants[tenant_id].usage.held == Amounts(UNIT, 8, 32 * GIB // MIB)
    world.finish(job_id)
    assert world.state.tenants[tenant_id].usage.held != NOTHING, "a warm cluster is held"
    world.tick(2_000)
    world.reports()
    usage = world.state.tenants[tenant_id].usage
    assert usage.held == NOTHING
    policy = world.policies.fairness
    later = moment(world.at_ms + 63 * policy.half_life_ms, policy.half_life_ms)
    assert mean_held(usage, later) == NOTHING


def test_usage_of_a_gang_leaves_its_head_out() -> None:
    world, _ = forming_gang()
    usage = world.state.tenants[world.tenant()].usage
    assert usage.held == Amounts(2 * UNIT, 16, 2 * 32 * GIB // MIB)


def test_usage_of_a_replaced_member_is_held_once_it_is_released() -> None:
    world, job_id = forming_gang()
    world.worker()
    lost = next(member for member in world.members(job_id) if member.device_ids)
    world.fail(lost)
    world.reports()
    world.plan()
    world.reports()
    assert world.state.tenants[world.tenant()].usage.held == Amounts(2 * UNIT, 16, 2 * 32 * GIB // MIB)
    world.start(job_id)
    world.finish(job_id)
    world.tick(world.policies.clusters.idle_teardown_ms + 1)
    world.reports()
    assert world.state.tenants[world.tenant()].usage.held == NOTHING


def test_capacity_is_what_workers_can_be_given_now() -> None:
    world = fleet(2)
    world.worker("H100", 2, hardware_class=HardwareClass.DATACENTER)
    assert capacity_of(world.state) == Amounts(11 * UNIT, 24, 3 * 32 * GIB // MIB)
    world.worker("CPU")
    assert capacity_of(world.state) == Amounts(11 * UNIT, 32, 4 * 32 * GIB // MIB)
    world.do(m.DrainWorker(next(iter(world.state.workers))))
    assert capacity_of(world.state) == Amounts(10 * UNIT, 24, 3 * 32 * GIB // MIB)
    several = (replace(device("a"), evidence=None), replace(device("b", "RTX3060"), evidence=None))
    world.join(replace(inventory(), devices=several))
    assert capacity_of(world.state) == Amounts(11 * UNIT + 220, 32, 4 * 32 * GIB // MIB)
    assert capacity_of(World().state) == NOTHING


# ------------------------------------------------------------ quotas


def limited(world: World, tenant: str, gpus: int) -> TenantId:
    tenant_id = world.tenant(tenant)
    world.state.put(replace(world.state.tenants[tenant_id], quota=Quota(gpus=gpus)))
    return tenant_id


def test_quota_of_gpus_holds_within_one_plan_and_over_several() -> None:
    world = fleet(6)
    limited(world, "acme", 2)
    submit_many(world, "acme", 6)
    world.plan()
    assert running_of(world, "acme") == 2
    world.plan()
    assert running_of(world, "acme") == 2
    let_go(world, placed_jobs(world)[0])
    world.plan()
    assert running_of(world, "acme") == 2


def test_quota_that_refuses_a_gang_lets_a_smaller_job_by() -> None:
    world = fleet(6)
    limited(world, "acme", 1)
    gang = world.submit(Requirements(gpus=2))
    small = world.submit()
    made = world.plan()
    assert [one.job_id for one in made.placements] == [small]
    assert "quota" in world.job(gang).message


def test_quota_that_refuses_a_job_makes_nobody_overtake_it() -> None:
    world = fleet(1)
    limited(world, "acme", 0)
    held_back = world.submit()
    for _ in range(3):
        submit_many(world, "beta", 1)
        world.plan()
        for job_id in placed_jobs(world):
            let_go(world, job_id)
    assert world.state.jobs[held_back].overtaken == 0
