"""Scheduling over any fleet and any crowd: whole gangs, nothing twice, nobody starved, nobody overtaken without end."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core import messages as m
from orchestrator.core.errors import RefusalCode, RefusedError
from orchestrator.core.ids import ClusterId, JobId, TenantId, WorkerId
from orchestrator.core.jobs import JobPolicy, Requirements
from orchestrator.core.policies import Policies
from orchestrator.core.queries.queue import Queue
from orchestrator.core.scheduling.placement import Budget, JobNeed, Need, Placement, Plan
from orchestrator.core.scheduling.plan import plan
from orchestrator.core.state import State
from orchestrator.core.supply.fleet import NEBULA, Isolation, Supplier, Worker
from orchestrator.core.supply.terms import Ask, Terms
from orchestrator.core.tenancy.fairness import FairnessPolicy
from tests.core.fleets import (
    AT_MS,
    GARAGE,
    device,
    fleets,
    let_go,
    machine,
    placed_jobs,
    requests,
    running_of,
    state_of,
)
from tests.core.test_filters import not_on_the_edge, wanted_by
from tests.core.worlds import Listed, World

CREDIT = 1_000_000


def heads() -> list[Worker]:
    """Head hosts wherever a gang may want one."""
    return [
        machine(
            f"head-{zone}-{isolation}",
            head_slots=2,
            zone=zone,
            isolation=isolation,
            overlay=NEBULA if isolation is not Isolation.NONE else "none",
        )
        for zone in ("home", "attic")
        for isolation in (Isolation.NONE, Isolation.BOX)
    ]


def needs_of(queue: list[Requirements]) -> list[Need]:
    return [JobNeed(JobId(f"job{number}"), TenantId("ten"), wanted) for number, wanted in enumerate(queue)]


# ------------------------------------------------------------ one plan


def check_placement(state: State, placement: Placement, wanted: Requirements) -> None:
    """A gang is whole, of machines that serve it, and its members can reach each other and a head."""
    sizes = [len(share.device_ids) for share in placement.shares]
    assert sum(sizes) == wanted.device_count
    assert not wanted.gpus_per_worker or set(sizes) == {wanted.gpus_per_worker}
    assert not wanted.one_machine or len(sizes) == 1
    workers = [state.workers[share.worker_id] for share in placement.shares]
    assert len({worker.worker_id for worker in workers}) == len(workers)
    for worker, share in zip(workers, placement.shares, strict=True):
        assert set(share.device_ids) <= wanted_by(worker, wanted, ())
        models = [one.model for one in worker.inventory.devices if one.device_id in share.device_ids]
        assert len(set(models)) == 1
    grounds = {
        (worker.inventory.hardware_class, worker.inventory.runtime, worker.inventory.reach)
        for worker in workers
    }
    assert len(grounds) == 1
    assert (placement.head_host is None) == (len(workers) == 1)
    if placement.head_host is not None:
        head = state.workers[placement.head_host].inventory
        assert (head.runtime, head.reach) == (workers[0].inventory.runtime, workers[0].inventory.reach)
        assert head.reach


def check_together(state: State, made: Plan) -> None:
    """All placements of a plan fit into what is free beside each other."""
    shares = [share for placement in made.placements for share in placement.shares]
    devices = Counter((share.worker_id, one) for share in shares for one in share.device_ids)
    assert not devices or max(devices.values()) == 1, "a device is given twice"
    assert all(one in state.free_devices[worker_id] for worker_id, one in devices)
    for worker_id, count in Counter(share.worker_id for share in shares).items():
        assert count <= state.workers[worker_id].inventory.slots
    given_heads = Counter(one.head_host for one in made.placements if one.head_host is not None)
    assert all(count <= state.head_hosts[worker_id] for worker_id, count in given_heads.items())


QUEUES = st.lists(requests(), min_size=1, max_size=6)


@given(fleet=fleets(), queue=QUEUES)
@settings(max_examples=100)
def test_plan_any_fleet_and_wishes_is_whole_and_never_oversubscribes(
    fleet: list[Worker], queue: list[Requirements]
) -> None:
    queue = [not_on_the_edge(wanted, fleet) for wanted in queue]
    # A price is compared with what the market of the state says, which is another test's.
    queue = [replace(wanted, max_price=0) for wanted in queue]
    state = state_of([*fleet, *heads()])
    made = plan(state, Listed(needs_of(queue)), AT_MS, Budget())
    assert made == plan(state, Listed(needs_of(queue)), AT_MS, Budget()), "the same view has two plans"
    check_together(state, made)
    for placement in made.placements:
        check_placement(state, placement, queue[int(placement.job_id.removeprefix("job"))])
    told = {one.job_id for one in made.placements} | {one.job_id for one in made.deferrals}
    assert told == {need.job_id for need in needs_of(queue) if isinstance(need, JobNeed)}
    assert len(told) == len(made.placements) + len(made.deferrals)


@given(fleet=fleets(8), queue=QUEUES)
@settings(max_examples=60)
def test_plan_applied_twice_changes_nothing(fleet: list[Worker], queue: list[Requirements]) -> None:
    world = World()
    world.state.put(Supplier(GARAGE, "garage", 0))
    for worker in [*fleet, *heads()]:
        world.state.put(worker)
    world.forward(AT_MS - world.at_ms)
    for wanted in queue:
        world.submit(wanted)
    made = world.plan()
    before, version = world.state.rows(), world.state.version
    fresh = tuple(ClusterId(world.name("cl")) for _ in made.placements)
    if made.placements:
        with pytest.raises(RefusedError) as refusal:
            world.do(m.ApplyPlan(made, fresh))
        assert refusal.value.code is RefusalCode.STALE
    elif not made.overtaken:
        world.do(m.ApplyPlan(made, fresh))
    assert (world.state.rows(), world.state.version) == (before, version)
    again = plan(world.state, Queue(world.state, world.at_ms), world.at_ms, Budget())
    assert again.empty, "the first plan left out what fits"


# ------------------------------------------------------------ who stands where does not matter

KINDS = st.lists(
    st.tuples(
        st.sampled_from(["RTX4090", "RTX3060"]),
        st.integers(1, 4),
        st.sampled_from(["home", "attic"]),
        st.integers(1, 3),
    ),
    min_size=1,
    max_size=4,
)
PLAIN = st.builds(
    Requirements, gpus=st.integers(1, 6), gpu_model=st.sampled_from([None, None, "RTX4090", "RTX3060"])
)


def alike(kinds: list[tuple[str, int, str, int]]) -> list[Worker]:
    """Of each kind some machines that are equal but for their names; no two kinds cost the same."""
    return [
        machine(
            f"k{kind}n{copy}",
            *(device(f"k{kind}n{copy}d{index}", model) for index in range(devices)),
            zone=zone,
            terms=Terms(asks=(Ask(model, CREDIT // 10 + kind * 1_234_567),)),
        )
        for kind, (model, devices, zone, copies) in enumerate(kinds)
        for copy in range(copies)
    ]


def value_of(fleet: list[Worker], needs: list[Need]) -> tuple[int, int, Counter[int]]:
    """What a plan comes to: jobs placed, microcredits per hour of all of them, and machines of each."""
    state = state_of([*fleet, *heads()])
    made = plan(state, Listed(needs), AT_MS, Budget())
    asks = {worker.worker_id: worker.terms.asks[0].microcredits_per_gpu_hour for worker in fleet}
    shares = [share for placement in made.placements for share in placement.shares]
    cost = sum(asks[share.worker_id] * len(share.device_ids) for share in shares)
    return len(made.placements), cost, Counter(len(one.shares) for one in made.placements)


EACH = st.tuples(st.integers(1, 3), st.integers(1, 4)).map(
    lambda drawn: Requirements(gpus=drawn[0] * drawn[1], gpus_per_worker=drawn[0])
)


@given(kinds=KINDS, queue=st.lists(PLAIN | EACH, min_size=1, max_size=6), slots=st.integers(1, 4))
@settings(max_examples=100)
def test_plan_takes_of_each_machine_what_is_asked_and_no_more_than_it_has_slots_for(
    kinds: list[tuple[str, int, str, int]], queue: list[Requirements], slots: int
) -> None:
    fleet = [
        replace(worker, inventory=replace(worker.inventory, slots=min(slots, worker.inventory.slots)))
        for worker in alike(kinds)
    ]
    state = state_of([*fleet, *heads()])
    made = plan(state, Listed(needs_of(queue)), AT_MS, Budget())
    check_together(state, made)
    for placement in made.placements:
        check_placement(state, placement, queue[int(placement.job_id.removeprefix("job"))])


@given(kinds=KINDS, queue=st.lists(PLAIN, min_size=1, max_size=6), seed=st.integers(0, 2**32))
@settings(max_examples=100)
def test_plan_is_worth_the_same_whatever_order_equal_workers_came_in(
    kinds: list[tuple[str, int, str, int]], queue: list[Requirements], seed: int
) -> None:
    fleet = alike(kinds)
    turned = list(fleet)
    random.Random(seed).shuffle(turned)
    assert value_of(turned, needs_of(queue)) == value_of(fleet, needs_of(queue))


@given(
    kinds=KINDS,
    queue=st.lists(PLAIN, min_size=1, max_size=3),
    copies=st.integers(2, 3),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60)
def test_plan_is_worth_the_same_whatever_names_equal_jobs_and_workers_have(
    kinds: list[tuple[str, int, str, int]], queue: list[Requirements], copies: int, seed: int
) -> None:
    fleet, needs = alike(kinds), needs_of([wanted for wanted in queue for _ in range(copies)])
    dice = random.Random(seed)
    names = [worker.worker_id for worker in fleet]
    jobs = [need.job_id for need in needs if isinstance(need, JobNeed)]
    dice.shuffle(names)
    dice.shuffle(jobs)
    renamed = [
        replace(worker, worker_id=WorkerId(name), name=name, statement_key=name)
        for worker, name in zip(fleet, names, strict=True)
    ]
    others: list[Need] = [
        replace(need, job_id=job_id)
        for need, job_id in zip(needs, jobs, strict=True)
        if isinstance(need, JobNeed)
    ]
    assert value_of(renamed, others) == value_of(fleet, needs)


# ------------------------------------------------------------ a crowd over time

NAMES = ("acme", "beta", "gamma", "delta")


@given(
    machines=st.integers(1, 6),
    weights=st.lists(st.sampled_from([50, 100, 100, 200, 300]), min_size=2, max_size=4),
    hog=st.integers(0, 3),
    ends=st.lists(st.integers(0, 10**6), max_size=25),
)
@settings(max_examples=25)
def test_tenants_beyond_their_share_starve_nobody(
    machines: int, weights: list[int], hog: int, ends: list[int]
) -> None:
    """One of them has the whole fleet when the others come; whoever is given something had least by its weight."""
    world = World(Policies(fairness=FairnessPolicy(memory_bp=0)))
    for _ in range(machines):
        world.worker()
    tenants = dict(zip(NAMES, weights, strict=False))
    first = NAMES[hog % len(weights)]
    for name, weight in tenants.items():
        tenant_id = world.tenant(name)
        world.state.put(replace(world.state.tenants[tenant_id], weight=weight))
    crowd(world, first, machines)
    world.plan()
    assert running_of(world, first) == machines
    hogged = set(placed_jobs(world))
    for name in tenants:
        crowd(world, name, machines)
    for end in [*ends, *range(machines)]:
        running = placed_jobs(world)
        # What the first one had comes to its end in any case.
        left = [job_id for job_id in running if job_id in hogged] or running
        let_go(world, (running if end % 2 else left)[end % len(running if end % 2 else left)])
        for name in tenants:
            crowd(world, name, machines)
        before = {name: running_of(world, name) for name in tenants}
        world.plan()
        after = {name: running_of(world, name) for name in tenants}
        assert sum(after.values()) == machines, "something is free, and somebody waits"
        for name, weight in tenants.items():
            if after[name] > before[name]:
                assert all((after[name] - 1) * tenants[one] <= after[one] * weight for one in tenants)


def crowd(world: World, tenant: str, count: int) -> None:
    """As many jobs of one GPU wait as there are machines."""
    waiting = len(world.state.queues.get(world.tenant(tenant), ()))
    for _ in range(count - waiting):
        world.submit(tenant=tenant)


@given(
    sizes=st.lists(st.integers(1, 2), min_size=2, max_size=4),
    wanted=st.integers(2, 8),
    bound=st.integers(1, 4),
    names=st.sampled_from([("large", "small"), ("small", "large"), ("small", "tiny", "large")]),
    ends=st.lists(st.integers(0, 10**6), max_size=20),
)
@settings(max_examples=40)
def test_overtaking_any_gang_among_small_jobs_is_bounded(
    sizes: list[int], wanted: int, bound: int, names: tuple[str, ...], ends: list[int]
) -> None:
    """Once it was overtaken so often, it waits for nobody but those who ran then."""
    world = World(Policies(jobs=JobPolicy(overtaken_max=bound), fairness=FairnessPolicy(memory_bp=0)))
    for name in names:
        world.tenant(name)
    world.head_host()
    for size in sizes:
        world.worker(count=size)
    others = [name for name in names if name != "large"]
    gang, most = enter(world, others, min(wanted, sum(sizes)), sum(sizes))
    # Who waited when it came may go before it.
    for _ in range(bound + len(others) * sum(sizes)):
        most = max(most, end_one(world, others, sum(sizes), placed_jobs(world)[0]))
        if world.state.jobs[gang].attempt_id is not None:
            return
        if world.state.jobs[gang].overtaken >= bound:
            break
    assert bound <= world.state.jobs[gang].overtaken <= bound + most
    before = placed_jobs(world)
    for end in [*ends, *([0] * len(before))]:
        running = placed_jobs(world)
        old = [job_id for job_id in running if job_id in before]
        chosen = old if end % 2 == 0 else running
        end_one(world, others, sum(sizes), chosen[end % len(chosen)])
        if world.state.jobs[gang].attempt_id is not None:
            return
    pytest.fail(f"all who ran have ended, and the gang still waits: {world.job(gang).message}")


def enter(world: World, others: list[str], wanted: int, total: int) -> tuple[JobId, int]:
    """Small jobs of others have the whole fleet; then a gang comes. Its id, and how many one plan placed."""
    for name in others:
        crowd(world, name, total)
    placed = len(world.plan().placements)
    world.forward(1_000)
    return world.submit(Requirements(gpus=wanted), tenant="large"), placed


def end_one(world: World, others: list[str], total: int, job_id: JobId) -> int:
    """One job ends, others come, and a plan is made: how many it places."""
    let_go(world, job_id)
    world.forward(1_000)
    for name in others:
        crowd(world, name, total)
    return len(world.plan().placements)
