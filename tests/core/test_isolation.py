"""Isolation, overlay and runtime: who may be given whose code, who can be in one cluster, and which numbers they have."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.core import messages as m
from orchestrator.core.clusters import ClusterPhase, ClusterPolicy, Member, OverlayIdentity
from orchestrator.core.errors import RefusalCode, RefusedError
from orchestrator.core.ids import JobId, WorkerId
from orchestrator.core.jobs import JobPolicy, Requirements
from orchestrator.core.policies import Policies
from orchestrator.core.requests import parse_conditions
from orchestrator.core.supply.fleet import NEBULA, Isolation
from tests.core.test_planning import placed, waits, who
from tests.core.worlds import World

BOX = Isolation.BOX
CONTAINER = Isolation.CONTAINER
BOXED = Requirements(isolation=BOX)
GANG = Requirements(gpus=2, isolation=BOX)
IMAGE = f"docker.io/team/image@sha256:{'ab' * 32}"
OTHER_IMAGE = f"docker.io/team/image@sha256:{'cd' * 32}"
IMAGED = Requirements(isolation=CONTAINER, image=IMAGE)
POLICY = ClusterPolicy()

RUNTIMES = JobPolicy(runtimes=(("plain", "aa" * 32), ("torch", "bb" * 32)))
TORCH = "bb" * 32


def boxed(overlay: str = NEBULA, **changes: object) -> World:
    """Two boxed workers of one GPU each, and a boxed head host."""
    policies = Policies(jobs=RUNTIMES, clusters=replace(POLICY, **changes))  # type: ignore[arg-type]  # a test's own
    world = World(policies)
    for _ in range(2):
        world.worker(isolation=BOX, overlay=overlay)
    world.head_host(isolation=BOX, overlay=overlay)
    return world


def gang(world: World) -> JobId:
    """A job of two machines whose cluster is planned."""
    job_id = world.submit(GANG)
    world.plan()
    assert len(world.members(job_id)) == 3
    return job_id


def numbers(members: list[Member]) -> list[int]:
    return sorted(member.overlay_host for member in members)


# ------------------------------------------------------------ consent


def test_worker_without_isolation_and_without_consent_gets_no_job() -> None:
    world = World()
    world.worker(unisolated=False)
    assert "1 without isolation, to which the owner did not consent" in waits(world, Requirements())


def test_worker_without_isolation_gets_a_job_where_both_sides_consent() -> None:
    world = World()
    willing = world.worker()
    world.worker(unisolated=False)
    wanted = parse_conditions({"orch.isolation": "none"}, 0.0, JobPolicy()).requirements
    assert who(placed(world, wanted)) == {willing}


def test_job_that_says_nothing_waits_beside_a_worker_without_isolation() -> None:
    world = World()
    world.worker()
    wanted = parse_conditions({}, 0.0, JobPolicy()).requirements
    said = waits(world, wanted)
    assert "1 × GPU with isolation box" in said
    assert "1 isolation weaker than box" in said


def test_job_that_consents_may_be_kept_apart_all_the_same() -> None:
    world = World()
    worker = world.worker(isolation=BOX)
    job_id = world.submit(Requirements())
    world.plan()
    (member,) = world.members(job_id)
    assert (member.worker_id, member.isolation) == (worker, BOX)


@pytest.mark.parametrize("tier", [BOX, CONTAINER])
def test_job_that_asks_for_a_container_takes_no_box(tier: Isolation) -> None:
    world = World()
    world.worker(isolation=tier)
    job_id = world.submit(Requirements(isolation=CONTAINER))
    world.plan()
    assert (world.job(job_id).attempt_id is not None) == (tier is CONTAINER)


def test_head_host_without_isolation_and_without_consent_carries_no_head() -> None:
    world = World()
    for _ in range(2):
        world.worker()
    world.head_host(unisolated=False)
    assert "no head slot" in waits(world, Requirements(gpus=2))
    willing = world.head_host()
    assert placed(world, Requirements(gpus=2)).head_host == willing


def test_head_host_is_isolated_as_strongly_as_the_job_asks() -> None:
    world = World()
    for _ in range(2):
        world.worker(isolation=CONTAINER, overlay=NEBULA)
    world.head_host(isolation=BOX, overlay=NEBULA)
    assert "no head slot" in waits(world, Requirements(gpus=2, isolation=CONTAINER))
    strong = world.head_host(isolation=CONTAINER, overlay=NEBULA)
    assert placed(world, Requirements(gpus=2, isolation=CONTAINER)).head_host == strong


# ------------------------------------------------------------ who can be in one cluster


def test_boxes_without_overlay_serve_clusters_of_one_machine_only() -> None:
    world = boxed(overlay="none")
    said = waits(world, GANG)
    assert "2 of 2 fitting devices free, 2 needed" in said
    assert "at most 1 of them in one class, runtime and network" in said
    two = world.worker(count=2, isolation=BOX)
    assert who(placed(world, GANG)) == {two}


def test_boxes_with_overlay_are_gathered_over_zones() -> None:
    world = World()
    far = {world.worker(isolation=BOX, overlay=NEBULA, zone=zone) for zone in ("attic", "cellar")}
    head = world.head_host(isolation=BOX, overlay=NEBULA, zone="hall")
    placement = placed(world, GANG)
    assert (who(placement), placement.head_host) == (far, head)


def test_boxes_with_overlay_need_a_head_host_in_it() -> None:
    world = World()
    for _ in range(2):
        world.worker(isolation=BOX, overlay=NEBULA)
    world.head_host(isolation=BOX)
    world.head_host()
    assert "no head slot" in waits(world, GANG)


def test_boxed_and_bare_workers_are_never_in_one_cluster() -> None:
    world = World()
    world.worker()
    world.worker(isolation=BOX, overlay=NEBULA)
    world.head_host()
    world.head_host(isolation=BOX, overlay=NEBULA)
    assert "at most 1 of them" in waits(world, Requirements(gpus=2))


def test_boxes_bring_their_own_ray_so_the_agents_do_not_have_to_agree() -> None:
    world = World()
    mixed = {world.worker(isolation=BOX, overlay=NEBULA, ray_version=one) for one in ("2.60.0", "2.61.0")}
    world.head_host(isolation=BOX, overlay=NEBULA, ray_version="2.59.0")
    assert who(placed(world, GANG)) == mixed


# ------------------------------------------------------------ runtimes


def test_bare_worker_serves_no_job_that_asks_for_a_runtime() -> None:
    world = World()
    world.worker()
    assert "1 without provisioned runtimes" in waits(world, Requirements(runtime=TORCH))


@pytest.mark.parametrize(("asked", "given"), [("", "aa" * 32), (TORCH, TORCH)])
def test_boxed_cluster_has_the_jobs_runtime_or_the_networks_default(asked: str, given: str) -> None:
    world = World(Policies(jobs=RUNTIMES))
    world.worker(isolation=BOX)
    job_id = world.submit(replace(BOXED, runtime=asked))
    world.plan()
    assert world.cluster(job_id).runtime == given


def test_image_cluster_has_the_image_and_no_runtime() -> None:
    world = World(Policies(jobs=RUNTIMES))
    world.worker(isolation=CONTAINER)
    job_id = world.submit(IMAGED)
    world.plan()
    assert (world.cluster(job_id).image, world.cluster(job_id).runtime) == (IMAGE, "")


def test_image_job_waits_where_there_are_boxes_only() -> None:
    world = World(Policies(jobs=RUNTIMES))
    world.worker(isolation=BOX)
    assert "1 isolation weaker than container" in waits(world, IMAGED)


@pytest.mark.parametrize("other", [replace(BOXED, isolation=CONTAINER), replace(IMAGED, image=OTHER_IMAGE)])
def test_image_cluster_is_reused_for_the_same_image_only(other: Requirements) -> None:
    world = World(Policies(jobs=RUNTIMES))
    for _ in range(2):
        world.worker(isolation=CONTAINER)
    world.finish(world.running(IMAGED))
    world.submit(other)
    assert world.plan().reuses == ()
    world.submit(IMAGED)
    assert len(world.plan().reuses) == 1


def test_bare_cluster_has_no_runtime_of_its_own() -> None:
    world = World(Policies(jobs=RUNTIMES))
    world.worker()
    job_id = world.submit(Requirements())
    world.plan()
    assert world.cluster(job_id).runtime == ""


@pytest.mark.parametrize(
    ("first", "second", "reused"),
    [("", "", True), ("", "aa" * 32, True), (TORCH, TORCH, True), ("", TORCH, False), (TORCH, "", False)],
)
def test_warm_cluster_is_reused_for_its_own_runtime_only(first: str, second: str, reused: bool) -> None:
    world = World(Policies(jobs=RUNTIMES))
    world.worker(isolation=BOX)
    world.finish(world.running(replace(BOXED, runtime=first)))
    job_id = world.submit(replace(BOXED, runtime=second))
    assert [one.job_id for one in world.plan().reuses] == ([job_id] if reused else [])


def test_warm_bare_cluster_is_not_given_to_a_job_that_asks_for_a_box_or_a_runtime() -> None:
    world = World(Policies(jobs=RUNTIMES))
    worker = world.worker()
    bare = world.who(worker).inventory
    world.finish(world.running(Requirements()))
    # Its owner has started the agent again, with boxes from now on; the idle node is still a bare one.
    world.do(m.ConnectWorker(worker, replace(bare, isolation=BOX, unisolated=False)))
    for wanted in (BOXED, Requirements(runtime=TORCH)):
        world.submit(wanted)
        assert world.plan().reuses == ()


# ------------------------------------------------------------ numbers in the overlay


def test_overlay_numbers_are_given_to_every_member_of_several_machines() -> None:
    world = boxed()
    assert numbers(world.members(gang(world))) == [1, 2, 3]
    assert world.state.control.overlay_host == 3


@pytest.mark.parametrize("overlay", ["none", NEBULA])
def test_overlay_numbers_are_not_spent_on_one_machine(overlay: str) -> None:
    world = World()
    world.worker(isolation=BOX, overlay=overlay)
    job_id = world.submit(BOXED)
    world.plan()
    assert numbers(world.members(job_id)) == [0]


def test_overlay_numbers_are_not_given_to_bare_members() -> None:
    world = World()
    for _ in range(2):
        world.worker()
    world.head_host()
    job_id = world.submit(Requirements(gpus=2))
    world.plan()
    assert numbers(world.members(job_id)) == [0, 0, 0]


def test_overlay_numbers_rise_from_cluster_to_cluster() -> None:
    world = boxed(idle_teardown_ms=1_000)
    job_id = gang(world)
    world.reports()
    world.start(job_id)
    world.finish(job_id)
    world.live_on(10_000)
    world.reports()
    assert world.state.overlay_hosts == {}
    assert numbers(world.members(gang(world))) == [4, 5, 6]


def test_overlay_numbers_go_on_after_a_restart_of_the_control_plane() -> None:
    world = boxed()
    gang(world)
    world.do(m.StartControl(world.state.control.network_id))
    assert world.state.control.overlay_host == 3


def test_overlay_numbers_begin_again_past_those_that_are_held() -> None:
    world = boxed(overlay_hosts_max=5, idle_teardown_ms=1_000)
    first = gang(world)
    world.reports()
    world.start(first)
    for _ in range(2):
        world.worker(isolation=BOX, overlay=NEBULA)
    second = world.submit(GANG, tenant="beta")
    with pytest.raises(RefusedError, match="address of the overlay"):
        world.plan()
    world.finish(first)
    world.live_on(10_000)
    assert set(world.state.overlay_hosts) == {1, 2, 3}, (
        "a cluster that closes holds them until its agents let go"
    )
    world.reports()
    world.plan()
    assert numbers(world.members(second)) == [1, 4, 5]


def test_overlay_numbers_that_are_all_taken_are_refused() -> None:
    world = boxed(overlay_hosts_max=2)
    job_id = world.submit(GANG)
    with pytest.raises(RefusedError, match="address of the overlay") as refused:
        world.plan()
    assert world.job(job_id).attempt_id is None
    assert refused.value.code is RefusalCode.EXHAUSTED


def _forming(world: World, job_id: JobId) -> Member:
    """The gang's first member that brings a device, once all have shown their keys."""
    for worker in list(world.state.workers):
        world.report(worker, keyed(world, worker))
    assert world.cluster(job_id).phase is ClusterPhase.STARTING_HEAD
    return next(member for member in world.members(job_id) if member.device_ids)


def keyed(world: World, worker_id: WorkerId) -> tuple[m.ObservedMember, ...]:
    """An honest report of a worker whose members have made their keys."""
    return tuple(
        replace(one, address=replace(one.address, overlay_key=f"key of {one.member_id}"), up=False)
        for one in world.honest(worker_id)
        if one.address is not None
    )


def test_member_that_is_replaced_is_shut_out_of_its_clusters_overlay() -> None:
    world = boxed()
    job_id = gang(world)
    lost = _forming(world, job_id)
    substitute = world.worker(isolation=BOX, overlay=NEBULA)
    world.fail(lost)
    world.plan()
    cluster = world.cluster(job_id)
    assert cluster.expelled == (
        OverlayIdentity(lost.member_id, lost.overlay_host, f"key of {lost.member_id}"),
    )
    (new,) = (member for member in world.members(job_id) if member.worker_id == substitute)
    assert new.overlay_host == 4
    assert lost.overlay_host not in numbers(world.members(job_id))


def test_member_that_never_showed_a_key_leaves_nobody_to_shut_out() -> None:
    world = boxed()
    job_id = gang(world)
    lost = next(member for member in world.members(job_id) if member.device_ids)
    world.fail(lost)
    assert world.cluster(job_id).expelled == ()
    assert len(world.cluster(job_id).vacancies) == 1


# ------------------------------------------------------------ building the runtime


def _provisioning(world: World, job_id: JobId) -> None:
    """Every agent says that it builds the runtime."""
    for member in world.members(job_id):
        shown = tuple(
            replace(one, address=None, up=False, provisioning=True) for one in world.honest(member.worker_id)
        )
        world.report(member.worker_id, shown)


def test_provisioning_member_is_given_longer_to_prepare() -> None:
    world = World()
    world.worker(isolation=BOX)
    job_id = world.submit(BOXED)
    world.plan()
    _provisioning(world, job_id)
    assert [member.provisioning for member in world.members(job_id)] == [True]
    world.live_on(POLICY.provision_deadline_ms)
    assert world.cluster(job_id).phase is ClusterPhase.PREPARING
    world.reports()
    assert [member.provisioning for member in world.members(job_id)] == [False]
    assert world.cluster(job_id).phase is ClusterPhase.READY


def test_provisioning_past_its_own_deadline_closes_the_cluster() -> None:
    world = World()
    world.worker(isolation=BOX)
    job_id = world.submit(BOXED)
    world.plan()
    cluster_id = world.cluster(job_id).cluster_id
    _provisioning(world, job_id)
    world.live_on(POLICY.provision_deadline_ms)
    world.tick(1)
    assert world.state.clusters[cluster_id].phase is ClusterPhase.CLOSING


def test_provisioning_is_noted_once() -> None:
    world = World()
    world.worker(isolation=BOX)
    job_id = world.submit(BOXED)
    world.plan()
    _provisioning(world, job_id)
    before = world.state.version
    _provisioning(world, job_id)
    assert world.state.version == before
