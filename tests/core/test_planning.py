"""The plan: whom it chooses, what it reserves, when it is stale, and why a job waits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.core import messages as m
from orchestrator.core.errors import RefusalCode, RefusedError
from orchestrator.core.ids import JobId, WorkerId
from orchestrator.core.jobs import Requirements
from orchestrator.core.queries.queue import Queue
from orchestrator.core.scheduling.placement import Budget, Placement
from orchestrator.core.scheduling.plan import plan
from orchestrator.core.supply.evidence import EvidenceClass
from orchestrator.core.supply.fleet import HardwareClass, Isolation
from tests.core.fleets import device
from tests.core.worlds import World, inventory

DATACENTER = HardwareClass.DATACENTER


def placed(world: World, requirements: Requirements) -> Placement:
    world.submit(requirements)
    (placement,) = world.plan().placements
    return placement


def waits(world: World, requirements: Requirements) -> str:
    """The reason a job is given."""
    job_id = world.submit(requirements)
    made = world.plan()
    assert job_id in {deferral.job_id for deferral in made.deferrals}
    return world.job(job_id).message


def who(placement: Placement) -> set[WorkerId]:
    return {share.worker_id for share in placement.shares}


def test_plan_spends_the_smallest_device_that_serves() -> None:
    world = World()
    world.worker("H100", hardware_class=DATACENTER)
    world.worker("RTX4090")
    small = world.worker("RTX3060")
    assert who(placed(world, Requirements())) == {small}


def test_plan_prefers_one_machine_to_several_and_leaves_the_larger_whole() -> None:
    world = World()
    for _ in range(2):
        world.worker()
    world.head_host()
    world.worker(count=4)
    exact = world.worker(count=2)
    placement = placed(world, Requirements(gpus=2))
    assert (who(placement), placement.head_host) == ({exact}, None)


def test_plan_takes_the_fewest_machines_for_a_gang() -> None:
    world = World()
    world.head_host()
    for _ in range(3):
        world.worker(count=1)
    large = [world.worker(count=2) for _ in range(2)]
    assert who(placed(world, Requirements(gpus=4))) == set(large)


def test_plan_explains_each_choice() -> None:
    world = World()
    for _ in range(2):
        world.worker()
    world.head_host()
    placement = placed(world, Requirements(gpus=2, gpu_model="RTX4090"))
    asked, *members, head = placement.explanation
    assert asked == "asked for 2 × RTX4090 together"
    assert len(members) == 2
    assert all("1 × RTX4090 (simulated), live" in line for line in members)
    assert "free head slot" in head


def test_plan_reserves_a_head_slot_for_each_gang() -> None:
    world = World()
    for _ in range(4):
        world.worker()
    head = world.head_host(1)
    jobs = [world.submit(Requirements(gpus=2)) for _ in range(2)]
    made = world.plan()
    assert [one.job_id for one in made.placements] == jobs[:1]
    assert head not in world.state.head_hosts
    assert "no head slot" in world.job(jobs[1]).message
    assert world.plan().placements == ()


def test_plan_one_machine_needs_no_head_slot() -> None:
    world = World()
    world.worker(count=2)
    assert placed(world, Requirements(gpus=2)).head_host is None


def test_plan_head_host_with_most_free_slots_is_chosen() -> None:
    world = World()
    for _ in range(2):
        world.worker()
    world.head_host(1)
    roomy = world.head_host(3)
    assert placed(world, Requirements(gpus=2)).head_host == roomy


@pytest.mark.parametrize("gang", [True, False])
def test_plan_respects_member_slots(gang: bool) -> None:
    world = World()
    world.worker(count=2, slots=1)
    if gang:
        assert len(placed(world, Requirements(gpus=2)).shares[0].device_ids) == 2
        return
    world.submit()
    world.submit()
    assert len(world.plan().placements) == 1


def test_plan_made_on_an_older_state_is_refused_as_stale() -> None:
    world = World()
    world.worker()
    world.submit()
    made = plan(world.state, Queue(world.state, world.at_ms), world.at_ms, Budget())
    world.apply(made)
    world.submit()
    stale = replace(
        made,
        placements=tuple(
            replace(one, job_id=next(iter(world.state.queues.values()))[0][2]) for one in made.placements
        ),
    )
    before = world.state.rows()
    with pytest.raises(RefusedError) as refusal:
        world.apply(stale)
    assert refusal.value.code is RefusalCode.STALE
    assert world.state.rows() == before


def test_plan_passes_over_a_job_that_left_the_queue() -> None:
    world = World()
    world.worker()
    job_id = world.submit()
    made = plan(world.state, Queue(world.state, world.at_ms), world.at_ms, Budget())
    world.do(m.StopJob(job_id))
    assert world.apply(made).events == ()


def test_plan_does_no_more_than_its_budget_and_goes_on_in_the_next() -> None:
    world = World()
    world.worker(count=4)
    for _ in range(3):
        world.submit()
    budget = Budget(placements_max=2)
    assert [len(world.plan(budget).placements) for _ in range(2)] == [2, 1]


def test_plan_explains_only_so_many_different_requests_at_once() -> None:
    world = World()
    for gpus in (1, 2, 3):
        world.submit(Requirements(gpus=gpus))
    made = world.plan(Budget(explained_max=2))
    assert len(made.deferrals) == 2


def test_plan_reason_is_shown_and_never_stored() -> None:
    world = World()
    job_id = world.submit()
    before = world.state.rows()
    made = plan(world.state, Queue(world.state, world.at_ms), world.at_ms, Budget())
    assert world.apply(made).events == ()
    assert world.job(job_id).message == made.deferrals[0].reason
    assert world.state.rows() == before


def test_plan_explains_by_what_the_plan_itself_has_left() -> None:
    world = World()
    world.worker()
    first, second = world.submit(), world.submit()
    world.plan()
    assert world.job(first).attempt_id is not None
    assert "0 of 1 fitting devices free" in world.job(second).message


def test_reason_empty_network() -> None:
    assert waits(World(), Requirements()) == "waiting for 1 × GPU: 0 of 0 fitting devices free, 1 needed"


def _class(world: World) -> Requirements:
    world.worker()
    return Requirements(hardware_class=DATACENTER)


def _isolation(world: World) -> Requirements:
    world.worker()
    return Requirements(isolation=Isolation.BOX)


def _head_only(world: World) -> Requirements:
    world.head_host()
    return Requirements()


def _cpu(world: World) -> Requirements:
    world.worker()
    return Requirements(gpus=0)


def _no_gpu(world: World) -> Requirements:
    world.worker("CPU")
    return Requirements()


def _model(world: World) -> Requirements:
    world.worker()
    return Requirements(gpu_model="RTX5090")


def _memory(world: World) -> Requirements:
    world.worker("RTX3060")
    return Requirements(min_gpu_memory_gb=16)


def _suspect(world: World) -> Requirements:
    silent = world.worker()
    world.live_on(30_000, silent=frozenset({silent}))
    return Requirements()


def _lost(world: World) -> Requirements:
    silent = world.worker()
    world.live_on(120_000, silent=frozenset({silent}))
    return Requirements()


def _draining(world: World) -> Requirements:
    world.do(m.DrainWorker(world.worker()))
    return Requirements()


def _left(world: World) -> Requirements:
    world.do(m.LeaveWorker(world.worker()))
    return Requirements()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_class, "1 not of hardware class datacenter"),
        (_isolation, "1 isolation weaker than box"),
        (_head_only, "1 offers no device"),
        (_cpu, "1 not of hardware class cpu"),
        (_no_gpu, "1 no GPU"),
        (_model, "1 not a RTX5090"),
        (_memory, "1 less than 16 GB of GPU memory"),
        (_suspect, "1 suspect"),
        (_lost, "1 lost"),
        (_draining, "1 draining"),
        (_left, "1 left the network"),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_reason_names_what_removed_each_worker(make: object, words: str) -> None:
    world = World()
    assert callable(make)
    assert f"workers left out: {words}" in waits(world, make(world))


def test_reason_all_busy() -> None:
    world = World()
    world.worker()
    world.running()
    assert "0 of 1 fitting devices free, 1 needed" in waits(world, Requirements())


def test_reason_gang_scattered_over_zones() -> None:
    world = World()
    world.head_host()
    world.worker(zone="home")
    world.worker(zone="attic")
    said = waits(world, Requirements(gpus=2))
    assert "2 of 2 fitting devices free, 2 needed" in said
    assert "at most 1 of them in one class, runtime and network" in said


@pytest.mark.parametrize(
    ("hardware_class", "ray_version"), [(HardwareClass.MINER, "2.60.0"), (HardwareClass.CONSUMER, "2.59.0")]
)
def test_reason_gang_never_mixes_class_or_runtime(hardware_class: HardwareClass, ray_version: str) -> None:
    world = World()
    world.head_host()
    world.head_host(ray_version="2.59.0")
    world.worker()
    world.worker(hardware_class=hardware_class, ray_version=ray_version)
    assert "at most 1 of them" in waits(world, Requirements(gpus=2))


def test_reason_machine_of_two_models_is_not_counted_as_one_share() -> None:
    world = World()
    offer = inventory("RTX4090", 2, name="a")
    more = inventory("RTX3090", 2, name="b").devices
    world.join(replace(offer, devices=(*offer.devices, *more), slots=4))
    said = waits(world, Requirements(gpus=4))
    assert "4 of 4 fitting devices free, 4 needed; at most 2 of them" in said


def test_reason_no_head_slot() -> None:
    world = World()
    for _ in range(2):
        world.worker()
    world.head_host(zone="elsewhere")
    assert "no head slot or member slot is free" in waits(world, Requirements(gpus=2))


def test_reason_no_member_slot() -> None:
    world = World()
    world.worker(count=2, slots=1)
    world.submit()
    world.plan()
    assert "no head slot or member slot is free" in waits(world, Requirements())


def test_reason_avoided_worker() -> None:
    world = World()
    world.worker()
    job_id: JobId = world.ready()
    world.fail(world.members(job_id)[0])
    world.reports()
    world.forward(5_000)
    world.plan()
    assert "1 failed this job before it started" in world.job(job_id).message


def test_reason_describes_the_whole_request() -> None:
    wanted = Requirements(4, "H100", DATACENTER, 80, Isolation.CONTAINER)
    said = waits(World(), wanted)
    assert "4 × H100 of class datacenter with at least 80 GB with isolation container together" in said


def test_member_keeps_what_its_devices_showed_when_it_was_placed() -> None:
    world = World()
    weak, strong = device("weak"), device("strong", proven=True)
    world.join(replace(inventory(name="a"), devices=(weak,)))
    job_id = world.ready(Requirements())
    assert [one.evidence for one in world.members(job_id)] == [EvidenceClass.T0]
    world.join(replace(inventory(name="b"), devices=(strong,)))
    proven = world.ready(Requirements(min_evidence=EvidenceClass.T2))
    (member,) = world.members(proven)
    assert (member.device_ids, member.evidence) == ((strong.device_id,), EvidenceClass.T2)
