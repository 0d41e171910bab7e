"""The plan over any fleet and any queue: whole gangs on one ground, nothing twice, and no false reason to wait."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.errors import RefusalCode, RefusedError
from orchestrator.core.ids import JobId, WorkerId
from orchestrator.core.jobs import Outcome, Requirements
from orchestrator.core.queries.queue import Queue
from orchestrator.core.scheduling.placement import Budget, JobNeed, Plan
from orchestrator.core.scheduling.plan import plan
from orchestrator.core.state import State
from orchestrator.core.supply.fleet import NEBULA, HardwareClass, Inventory, Isolation
from tests.core.rejections import device_rejection, worker_rejection
from tests.core.worlds import Listed, World

GROUNDS = (
    ("RTX4090", HardwareClass.CONSUMER),
    ("RTX3060", HardwareClass.CONSUMER),
    ("RTX4090", HardwareClass.MINER),
    ("H100", HardwareClass.DATACENTER),
    ("CPU", HardwareClass.CPU),
)


@dataclass(frozen=True)
class Site:
    """Where and how a machine stands."""

    zone: str = "home"
    isolation: Isolation = Isolation.NONE
    overlay: str = "none"
    unisolated: bool = True


HOME = Site()
SITES = (
    HOME,
    Site(zone="attic"),
    Site(unisolated=False),
    Site(isolation=Isolation.BOX),
    Site(isolation=Isolation.BOX, overlay=NEBULA),
    Site(zone="attic", isolation=Isolation.BOX, overlay=NEBULA),
)
WANTED = st.builds(
    Requirements,
    gpus=st.integers(1, 5),
    gpu_model=st.sampled_from([None, None, "RTX4090", "RTX3060"]),
    hardware_class=st.sampled_from([None, None, HardwareClass.CONSUMER]),
    min_gpu_memory_gb=st.sampled_from([0, 0, 16]),
    isolation=st.sampled_from([Isolation.NONE, Isolation.NONE, Isolation.BOX]),
) | st.just(Requirements(gpus=0))
MACHINES = st.lists(
    st.tuples(
        st.sampled_from(GROUNDS),
        st.integers(1, 3),
        st.integers(1, 3),
        st.sampled_from([HOME, *SITES]),
    ),
    max_size=8,
)
HEADS = st.lists(st.tuples(st.integers(1, 2), st.sampled_from(SITES)), max_size=3)
QUEUE = st.lists(WANTED, min_size=1, max_size=8)


def world_of(
    machines: list[tuple[tuple[str, HardwareClass], int, int, Site]],
    heads: list[tuple[int, Site]],
    before: list[Requirements],
    now: list[Requirements],
) -> World:
    """Some jobs run already, some have ended and left warm clusters, and some wait."""
    world = World()
    for (model, hardware_class), count, slots, site in machines:
        world.worker(
            model,
            count,
            hardware_class=hardware_class,
            slots=slots,
            zone=site.zone,
            isolation=site.isolation,
            overlay=site.overlay,
            unisolated=site.unisolated,
        )
    for slots, site in heads:
        world.head_host(
            slots,
            zone=site.zone,
            isolation=site.isolation,
            overlay=site.overlay,
            unisolated=site.unisolated,
        )
    earlier = [world.submit(wanted) for wanted in before]
    world.plan()
    world.reports()
    for index, job_id in enumerate(earlier):
        if world.job(job_id).attempt_id is not None:
            world.start(job_id)
            if index % 2:
                world.finish(job_id, Outcome.SUCCEEDED)
    for wanted in now:
        world.submit(wanted, tenant="beta" if wanted.gpus == 3 else "acme")
    return world


def make(state: State, world: World) -> Plan:
    return plan(state, Queue(state, world.at_ms), world.at_ms, Budget())


def check_fits(world: World, made: Plan) -> None:
    """Each placement alone is right, and all of them together fit into what is free."""
    state = world.state
    devices: Counter[tuple[WorkerId, str]] = Counter()
    members: Counter[WorkerId] = Counter()
    heads: Counter[WorkerId] = Counter()
    for placement in made.placements:
        wanted = state.jobs[placement.job_id].request.requirements
        assert sum(len(share.device_ids) for share in placement.shares) == wanted.device_count
        workers = [state.workers[share.worker_id] for share in placement.shares]
        assert len({worker.worker_id for worker in workers}) == len(workers)
        assert len({worker.inventory.hardware_class for worker in workers}) == 1
        assert len({(worker.inventory.runtime, worker.inventory.reach) for worker in workers}) == 1
        assert len(workers) == 1 or workers[0].inventory.reach
        assert (placement.head_host is None) == (len(workers) == 1)
        for worker, share in zip(workers, placement.shares, strict=True):
            assert worker.placeable
            assert worker_rejection(worker, wanted) is None
            assert admits(worker.inventory, wanted)
            chosen = [one for one in worker.inventory.devices if one.device_id in share.device_ids]
            assert all(device_rejection(device, wanted) is None for device in chosen)
            members[worker.worker_id] += 1
            devices.update((worker.worker_id, device_id) for device_id in share.device_ids)
        if placement.head_host is not None:
            heads[placement.head_host] += 1
            host = state.workers[placement.head_host].inventory
            assert host.reach == workers[0].inventory.reach
            assert admits(host, wanted)
    assert all(count == 1 for count in devices.values()), "a device is given twice"
    assert all(device_id in state.free_devices[worker_id] for worker_id, device_id in devices)
    for worker_id, count in members.items():
        on = [state.members[member_id] for member_id in state.members_on.get(worker_id, ())]
        busy = sum(bool(member.device_ids) for member in on)
        assert busy + count <= state.workers[worker_id].inventory.slots
    assert all(count <= state.head_hosts[worker_id] for worker_id, count in heads.items())
    assert len({reuse.cluster_id for reuse in made.reuses}) == len(made.reuses)
    for reuse in made.reuses:
        cluster, job = state.clusters[reuse.cluster_id], state.jobs[reuse.job_id]
        assert cluster.tenant_id == job.tenant_id
        warm = state.cluster_members(cluster)
        assert all(one.isolation.at_least(job.request.requirements.isolation) for one in warm)


def admits(offer: Inventory, wanted: Requirements) -> bool:
    """Whether this job's code may run there: in a box, or with the consent of both."""
    if offer.isolation is Isolation.NONE:
        return offer.unisolated and wanted.isolation is Isolation.NONE
    return offer.isolation.at_least(wanted.isolation)


def could_run(state: State, wanted: Requirements) -> bool:
    """Said another way than the plan does it: is there a machine, or a ground with a head slot, that holds it?"""
    together: Counter[tuple[str, str, str]] = Counter()
    for worker in state.workers.values():
        on = [state.members[member_id] for member_id in state.members_on.get(worker.worker_id, ())]
        busy = sum(bool(member.device_ids) for member in on)
        if not worker.placeable or worker_rejection(worker, wanted) or busy >= worker.inventory.slots:
            continue
        models = Counter(
            device.model
            for device in worker.inventory.devices
            if device.device_id in state.free_devices[worker.worker_id]
            and device_rejection(device, wanted) is None
        )
        best = max(models.values(), default=0)
        if best >= wanted.device_count:
            return True
        inventory = worker.inventory
        if inventory.isolation is Isolation.NONE or inventory.overlay == NEBULA:
            together[inventory.hardware_class, inventory.runtime, inventory.reach] += best
    for (_, runtime, reach), count in together.items():
        hosts = [state.workers[worker_id].inventory for worker_id in state.head_hosts]
        hosts = [one for one in hosts if admits(one, wanted)]
        if count >= wanted.device_count and any(
            (one.runtime, one.reach) == (runtime, reach) for one in hosts
        ):
            return True
    return False


@given(MACHINES, HEADS, QUEUE, QUEUE)
@settings(max_examples=150)
def test_plan_any_fleet_and_queue(
    machines: list[tuple[tuple[str, HardwareClass], int, int, Site]],
    heads: list[tuple[int, Site]],
    before: list[Requirements],
    now: list[Requirements],
) -> None:
    world = world_of(machines, heads, before, now)
    made = make(world.state, world)
    assert made == make(world.state, world), "the same view has two plans"
    check_fits(world, made)
    served = {one.job_id for one in made.placements} | {one.job_id for one in made.reuses}
    assert served.isdisjoint(one.job_id for one in made.deferrals)
    world.apply(made)
    if made.placements or made.reuses:
        with pytest.raises(RefusedError) as refusal:
            world.apply(made)
        assert refusal.value.code is RefusalCode.STALE
    else:
        assert world.apply(made).events == ()
    deferred = {one.job_id: one.reason for one in made.deferrals}
    again = make(world.state, world)
    assert (again.placements, again.reuses) == ((), ()), "the first plan left out what fits"
    for job_id in deferred:
        check_waits(world, job_id)


def check_waits(world: World, job_id: JobId) -> None:
    """Alone, with nothing else to place, the job still does not fit."""
    job = world.job(job_id)
    wanted = job.request.requirements
    alone = plan(world.state, Listed([JobNeed(job_id, job.tenant_id, wanted)]), world.at_ms, Budget())
    assert [one.job_id for one in alone.deferrals] == [job_id]
    assert not could_run(world.state, wanted)
