"""Why these machines: price, distances and the runner-up, kept with the attempt as they were when it was placed."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

from hypothesis import given, settings

from orchestrator.core import messages as m
from orchestrator.core.ids import JobId, TenantId, WorkerId
from orchestrator.core.jobs import Chosen, Pattern, Requirements, RunnerUp
from orchestrator.core.queries.explain import chosen_words, explain
from orchestrator.core.scheduling.placement import Budget, JobNeed
from orchestrator.core.scheduling.plan import plan
from orchestrator.core.scheduling.runner_up import EQUAL
from orchestrator.core.supply.fleet import Isolation, Worker
from orchestrator.core.supply.reliability import THOUSAND, Reliability
from orchestrator.core.supply.terms import Ask, Terms
from tests.core.fleets import AT_MS, CREDIT, device, fleets, machine, requests, state_of
from tests.core.test_assembling import fleet, tell, wanted, who
from tests.core.worlds import Listed, World


def made_of(*workers: Worker, wanted: Requirements | None = None) -> Chosen:
    """What is said of the one placement on a fleet that nobody uses."""
    need = JobNeed(JobId("job"), TenantId("ten"), wanted or Requirements())
    (placement,) = plan(state_of(workers), Listed([need]), AT_MS, Budget()).placements
    return placement.chosen


def one(name: str, price: int = CREDIT, count: int = 1, **more: object) -> Worker:
    devices = [device(f"{name}{index}") for index in range(count)]
    found = machine(name, *devices, terms=Terms(asks=(Ask("RTX4090", price),)))
    return replace(found, **more)  # type: ignore[arg-type]  # names checked by the dataclass


def ask(world: World, worker_id: WorkerId, price: int) -> None:
    world.do(m.SetTerms(worker_id, Terms(asks=(Ask("RTX4090", price),))))


# ------------------------------------------------------------ one machine


def test_runner_up_of_one_machine_is_the_next_dearer() -> None:
    found = made_of(one("dear", 3 * CREDIT), one("cheap"), one("next", CREDIT + 120_000))
    assert found == Chosen(
        CREDIT, 0, 0, 0, RunnerUp("next: 1 × RTX4090", CREDIT + 120_000, "dearer by 0.12 credits an hour", 0)
    )


def test_runner_up_that_would_break_up_a_larger_machine_says_so() -> None:
    found = made_of(one("whole", count=4), one("left", count=2)).runner_up
    assert found is not None
    assert (found.machines, found.lost_by) == (
        "whole: 1 × RTX4090",
        "breaks up a machine with 2 more free devices",
    )


def test_runner_up_that_breaks_its_leases_is_less_reliable_though_it_is_cheaper() -> None:
    broken = Reliability(broken=40 * THOUSAND, completed=0, at_ms=AT_MS)
    found = made_of(one("faithless", CREDIT - 10_000, reliability=broken), one("faithful")).runner_up
    assert found is not None
    assert found.machines.startswith("faithless")
    assert found.microcredits_per_hour == CREDIT - 10_000
    assert found.lost_by.startswith("less reliable, which counts 0.")


def test_runner_up_that_is_equal_is_told_as_such_and_one_alone_has_none() -> None:
    found = made_of(one("a"), one("b")).runner_up
    assert found is not None
    assert (found.machines, found.lost_by) == ("b: 1 × RTX4090", EQUAL)
    assert made_of(one("a")).runner_up is None


# ------------------------------------------------------------ several


def test_runner_up_of_a_gang_is_the_exchange_of_one_member_that_costs_least() -> None:
    world = World()
    world.head_host()
    workers = [world.worker() for _ in range(4)]
    for number, worker_id in enumerate(workers):
        ask(world, worker_id, 100_000 * (number + 1))
    job_id = world.submit(Requirements(gpus=2))
    world.plan()
    chosen = world.attempt(job_id).chosen
    names = [world.who(worker_id).name for worker_id in workers]
    assert who(world, job_id) == set(workers[:2])
    assert chosen == Chosen(
        300_000,
        None,
        1,
        0,
        RunnerUp(f"{names[2]} in place of {names[1]}", 400_000, "dearer by 0.1 credits an hour"),
    )


def test_runner_up_of_another_model_is_weighed_beside_exchanges() -> None:
    world = World()
    world.head_host()
    near = [world.worker("RTX4090") for _ in range(2)]
    for _ in range(2):
        world.worker("RTX3060")
    for worker_id in near:
        ask(world, worker_id, 1_000)
    job_id = world.submit(Requirements(gpus=2))
    world.plan()
    assert who(world, job_id) == set(near)
    found = world.attempt(job_id).chosen.runner_up
    assert found is not None
    assert found.machines == "2 × RTX3060 of class consumer on 2 machines"
    assert found.lost_by.startswith("dearer by")
    dearer = found.microcredits_per_hour - world.attempt(job_id).chosen.microcredits_per_hour
    assert dearer == 2 * world.state.market_price("RTX3060") - 2_000


def test_runner_up_that_is_farther_says_by_how_much() -> None:
    world, workers = fleet(3)
    apart = {(0, 1): 5, (0, 2): 25, (1, 2): 12}
    tell(world, {(workers[i], workers[j]): ms for (i, j), ms in apart.items()})
    job_id = world.submit(wanted(2, 0))
    world.plan()
    chosen = world.attempt(job_id).chosen
    assert who(world, job_id) == set(workers[:2])
    assert (chosen.diameter_us, chosen.pairs, chosen.pairs_measured) == (5_000, 1, 1)
    assert chosen.runner_up is not None
    assert chosen.runner_up.lost_by == "7 ms farther"
    assert chosen.runner_up.diameter_us == 12_000
    assert chosen.runner_up.microcredits_per_hour == chosen.microcredits_per_hour


def test_runner_up_beyond_the_bound_is_none() -> None:
    world, workers = fleet(3)
    apart = {(0, 1): 5, (0, 2): 25, (1, 2): 21}
    tell(world, {(workers[i], workers[j]): ms for (i, j), ms in apart.items()})
    job_id = world.submit(wanted(2, 20))
    world.plan()
    assert who(world, job_id) == set(workers[:2])
    assert world.attempt(job_id).chosen.runner_up is None


def test_chosen_of_which_only_some_was_measured_says_how_much() -> None:
    world, workers = fleet(3)
    tell(world, dict.fromkeys(combinations(workers[:2], 2), 9))
    job_id = world.submit(wanted(3, 0, pattern=Pattern.INDEPENDENT))
    world.plan()
    chosen = world.attempt(job_id).chosen
    assert (chosen.diameter_us, chosen.pairs, chosen.pairs_measured) == (None, 3, 1)
    assert list(chosen_words(chosen))[1] == (
        "how far apart they are was not known when they were chosen: 1 of 3 pairs were measured"
    )


# ------------------------------------------------------------ kept


def test_chosen_is_kept_whatever_becomes_of_prices_machines_and_the_job() -> None:
    world = World()
    worker_id = world.worker()
    ask(world, worker_id, 700_000)
    job_id = world.running()
    before = world.attempt(job_id).chosen
    world.finish(job_id)
    ask(world, worker_id, 5)
    world.do(m.ConnectWorker(worker_id, replace(world.who(worker_id).inventory, devices=())))
    world.do(m.DrainWorker(worker_id))
    job = world.state.jobs[job_id]
    told = explain(world.state, job, world.at_ms).placed
    assert told is not None
    assert (told.microcredits_per_hour, told.devices, told.chosen) == (700_000, 1, before)
    assert told.why
    assert world.state.attempts[world.attempt(job_id).attempt_id].chosen == before


def test_chosen_of_a_warm_cluster_is_what_was_delivered() -> None:
    world = World()
    for _ in range(2):
        worker_id = world.worker(isolation=Isolation.BOX, overlay="nebula", zone="")
        ask(world, worker_id, 300_000)
    world.head_host(isolation=Isolation.BOX, overlay="nebula", zone="")
    first = world.running(Requirements(gpus=2, isolation=Isolation.BOX))
    world.finish(first)
    again = world.submit(Requirements(gpus=2, isolation=Isolation.BOX))
    assert world.plan().reuses
    assert world.attempt(again).chosen == Chosen(600_000, 21_000, 1, 1)


@given(fleet=fleets(), wanted=requests())
@settings(max_examples=80)
def test_runner_up_of_any_placement_is_free_and_costs_no_less(
    fleet: list[Worker], wanted: Requirements
) -> None:
    """Without the machine that was chosen the plan takes one that is as dear as the one that came next."""
    state = state_of(fleet)
    need = JobNeed(JobId("job"), TenantId("ten"), wanted)
    placements = plan(state, Listed([need]), AT_MS, Budget()).placements
    if not placements or len(placements[0].shares) > 1:
        return
    (share,), found = placements[0].shares, placements[0].chosen.runner_up
    price = placements[0].chosen.microcredits_per_hour
    others = replace(need, avoid=(share.worker_id,))
    without = plan(state, Listed([others]), AT_MS, Budget()).placements
    alone = bool(without) and len(without[0].shares) == 1
    if found is None:
        assert not alone
    elif alone and not found.machines.startswith(f"{share.worker_id}:"):
        assert without[0].chosen.microcredits_per_hour == found.microcredits_per_hour
        assert found.microcredits_per_hour >= price or not found.lost_by.startswith("dearer")


def test_what_is_left_counts_far_less_than_what_a_device_costs() -> None:
    """So that a runner-up is called dearer before it is said to break up a machine."""
    found = made_of(one("cheap"), one("next", CREDIT + 10_000, count=8)).runner_up
    assert found is not None
    assert found.lost_by == "dearer by 0.01 credits an hour"
