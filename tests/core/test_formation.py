"""Clusters forming: the order of PREPARE, head, JOIN and READY, what may fail on the way, and how they end."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.core import messages as m
from orchestrator.core.clusters import ClusterPhase, ClusterPolicy, MemberPhase, MemberRole, NodeSeen
from orchestrator.core.decide import effects_of, pending_effects
from orchestrator.core.ids import JobId, WorkerId
from orchestrator.core.jobs import JobStatus, Requirements
from orchestrator.core.policies import Policies
from orchestrator.core.queries.desired import desired_members
from orchestrator.core.queries.queue import Queue
from orchestrator.core.scheduling.placement import VacancyNeed
from orchestrator.core.supply.fleet import HardwareClass
from tests.core.worlds import World, inventory

PAIR = Requirements(gpus=2)
POLICY = ClusterPolicy()


def pair(spares: int = 0) -> tuple[World, JobId, list[WorkerId], WorkerId]:
    """A gang of two one-GPU machines and a head host, planned and not begun."""
    world = World()
    workers = [world.worker() for _ in range(2 + spares)]
    head = world.head_host()
    job_id = world.submit(PAIR)
    world.plan()
    return world, job_id, workers, head


def told(world: World, worker_id: WorkerId) -> list[tuple[bool, bool]]:
    """(run, head known) of each desired member."""
    return [(one.run, one.head is not None) for one in desired_members(world.state, worker_id)]


def test_formation_one_machine_carries_its_own_head() -> None:
    world = World()
    world.worker(count=2)
    job_id = world.submit(PAIR)
    world.plan()
    (member,) = world.members(job_id)
    assert (member.role, member.gpus, len(member.device_ids)) == (MemberRole.SOLO, 2, 2)
    world.reports()
    assert world.cluster(job_id).phase is ClusterPhase.READY


def test_formation_several_machines_goes_prepare_head_join_ready() -> None:
    world, job_id, (one, two), head = pair()
    assert [member.role for member in world.members(job_id)] == ["head", "member", "member"]
    assert [told(world, worker_id) for worker_id in (head, one)] == [[(False, False)], [(False, False)]]
    world.report(head)
    world.report(one)
    assert world.cluster(job_id).phase is ClusterPhase.PREPARING
    world.report(two)
    assert world.cluster(job_id).phase is ClusterPhase.STARTING_HEAD
    assert told(world, head) == [(True, False)]
    assert told(world, one) == [(False, False)], "no member joins before there is a head"
    world.report(head)
    assert world.cluster(job_id).phase is ClusterPhase.JOINING
    assert told(world, one) == [(True, True)]
    world.report(one)
    world.report(two)
    assert world.cluster(job_id).phase is ClusterPhase.JOINING, "the head has not said yet whom it sees"
    world.report(head)
    cluster = world.cluster(job_id)
    assert cluster.phase is ClusterPhase.READY
    assert [node.member_id for node in cluster.certificate] == list(cluster.member_ids)


def test_formation_head_that_lists_all_before_the_last_one_says_so_is_ready_by_the_last_word() -> None:
    world, job_id, (one, two), head = pair()
    for worker_id in (head, one, two, head, one):
        world.report(worker_id)
    (report,) = world.honest(head)
    everybody = tuple(NodeSeen(one.member_id, float(one.gpus), 8.0) for one in world.members(job_id))
    world.report(head, (replace(report, nodes=everybody),))
    assert world.cluster(job_id).phase is ClusterPhase.JOINING
    world.report(two)
    assert world.cluster(job_id).phase is ClusterPhase.READY, "the head has nothing new to say"


@pytest.mark.parametrize("gpus", [[], [0.0, 0.5], [0.0, 1.0]])
def test_formation_head_that_lists_less_than_every_gpu_is_not_ready(gpus: list[float]) -> None:
    world, job_id, _, head = pair()
    world.reports(without=frozenset({head}))
    for _ in range(2):
        world.report(head)
    world.reports(without=frozenset({head}))
    (report,) = world.honest(head)
    seen = tuple(replace(node, gpus=count) for node, count in zip(report.nodes, gpus, strict=False))
    world.report(head, (replace(report, nodes=seen),))
    assert world.cluster(job_id).phase is ClusterPhase.JOINING
    world.report(head)
    assert world.cluster(job_id).phase is ClusterPhase.READY


def test_formation_attempt_is_told_to_the_head_only_when_ready() -> None:
    world, job_id, (one, _), head = pair()
    world.report(head)
    assert [one.attempts for one in desired_members(world.state, head)] == [()]
    world.reports()
    (attempt,) = desired_members(world.state, head)[0].attempts
    assert attempt.attempt.attempt_id == world.attempt(job_id).attempt_id
    assert [node.gpus for node in attempt.gang] == [0.0, 1.0, 1.0]
    assert desired_members(world.state, one)[0].attempts == ()


def test_formation_member_that_fails_is_replaced_under_a_higher_generation() -> None:
    world, job_id, (_, two, spare), _ = pair(spares=1)
    world.reports(without=frozenset({two}))
    failed = next(member for member in world.members(job_id) if member.worker_id == two)
    world.fail(failed)
    assert world.cluster(job_id).vacancies[0].failed_worker_id == two
    world.plan()
    cluster = world.cluster(job_id)
    assert (cluster.generation, cluster.vacancies) == (2, ())
    newcomer = world.members(job_id)[-1]
    assert (newcomer.worker_id, newcomer.generation, newcomer.ordinal) == (spare, 2, 3)
    assert {one.fence.generation for one in desired_members(world.state, spare)} == {2}
    world.reports()
    assert world.cluster(job_id).phase is ClusterPhase.READY
    assert world.state.members[failed.member_id].phase is MemberPhase.RELEASED
    assert world.attempt(job_id).number == 1, "the attempt went on with another member"


def test_formation_vacancy_keeps_the_cluster_from_advancing() -> None:
    world, job_id, (_, two), _ = pair()
    world.reports(without=frozenset({two}))
    world.fail(next(member for member in world.members(job_id) if member.worker_id == two))
    world.reports()
    assert world.cluster(job_id).phase is ClusterPhase.PREPARING
    world.plan()
    assert world.cluster(job_id).vacancies, "the worker that failed is not asked again, and no other is there"


def test_formation_vacancy_is_filled_only_by_what_the_job_asked_for() -> None:
    world = World()
    asked = Requirements(gpus=2, gpu_model="H100")
    first = [world.worker("H100", hardware_class=HardwareClass.DATACENTER) for _ in range(2)]
    world.head_host()
    job_id = world.submit(asked)
    world.plan()
    world.worker("T4", hardware_class=HardwareClass.DATACENTER)
    for worker_id in first:
        world.fail(next(member for member in world.members(job_id) if member.worker_id == worker_id))
    world.plan()
    assert len(world.cluster(job_id).vacancies) == 2
    fitting = world.worker("H100", hardware_class=HardwareClass.DATACENTER)
    world.plan()
    assert world.members(job_id)[-1].worker_id == fitting


def test_formation_vacancy_is_filled_only_in_the_zone_of_its_head() -> None:
    world, job_id, (_, two), _ = pair()
    world.worker(zone="far away")
    world.fail(next(member for member in world.members(job_id) if member.worker_id == two))
    world.plan()
    assert world.cluster(job_id).vacancies


def test_formation_vacancy_of_a_stopped_job_asks_for_nobody() -> None:
    world, job_id, (_, two, _), _ = pair(spares=1)
    cluster = world.cluster(job_id)
    world.fail(next(member for member in world.members(job_id) if member.worker_id == two))
    world.do(m.StopJob(job_id))
    assert world.job(job_id).status is JobStatus.STOPPED
    assert not [need for need in Queue(world.state, world.at_ms) if isinstance(need, VacancyNeed)]
    world.tick(POLICY.prepare_deadline_ms + 1)
    world.reports()
    assert world.state.clusters[cluster.cluster_id].phase is ClusterPhase.CLOSED


def test_formation_too_many_replacements_gives_the_cluster_up() -> None:
    world = World(Policies(clusters=ClusterPolicy(replacements_max=2)))
    for _ in range(5):
        world.worker()
    world.head_host()
    job_id = world.submit(PAIR)
    world.plan()
    for _ in range(3):
        world.fail(world.members(job_id)[-1])
        if world.job(job_id).attempt_id is not None:
            world.plan()
    assert world.job(job_id).attempt_id is None
    assert "too many members failed" in world.job(job_id).message


def test_formation_head_that_fails_closes_the_cluster_and_requeues_the_job() -> None:
    world, job_id, (one, two), _ = pair()
    cluster_id = world.cluster(job_id).cluster_id
    world.fail(world.members(job_id)[0], "no port free")
    assert world.state.clusters[cluster_id].phase is ClusterPhase.CLOSING
    assert "no port free" in world.job(job_id).message
    world.reports()
    assert world.state.clusters[cluster_id].phase is ClusterPhase.CLOSED
    assert world.state.free_devices[one]
    assert world.state.free_devices[two]


def test_formation_next_try_asks_another_head_host_than_the_one_that_failed() -> None:
    world = World()
    for _ in range(2):
        world.worker()
    large, small = world.head_host(8), world.head_host(1)
    job_id = world.submit(PAIR)
    world.plan()
    assert world.members(job_id)[0].worker_id == large
    world.fail(world.members(job_id)[0])
    world.reports()
    world.forward(5_000)
    world.plan()
    assert world.members(job_id)[0].worker_id == small


@pytest.mark.parametrize(
    ("phase", "deadline_ms"),
    [
        (ClusterPhase.PREPARING, POLICY.prepare_deadline_ms),
        (ClusterPhase.STARTING_HEAD, POLICY.head_deadline_ms),
        (ClusterPhase.JOINING, POLICY.join_deadline_ms),
    ],
)
def test_formation_phase_past_its_deadline_closes_the_cluster(phase: ClusterPhase, deadline_ms: int) -> None:
    world, job_id, (one, two), head = pair()
    cluster_id = world.cluster(job_id).cluster_id
    if phase is not ClusterPhase.PREPARING:
        for worker_id in (one, two, head):
            world.report(worker_id)
    if phase is ClusterPhase.JOINING:
        world.report(head)
    assert world.cluster(job_id).phase is phase
    world.live_on(deadline_ms)
    assert world.state.clusters[cluster_id].phase is phase
    world.live_on(1)
    assert world.state.clusters[cluster_id].phase is ClusterPhase.CLOSING
    assert f"still {phase}" in world.job(job_id).message


def test_formation_member_whose_device_vanished_from_the_inventory_is_replaced() -> None:
    world, job_id, (_, two, spare), _ = pair(spares=1)
    world.do(m.ConnectWorker(two, replace(inventory(), devices=())))
    assert world.cluster(job_id).vacancies[0].failed_worker_id == two
    world.plan()
    world.reports()
    assert world.cluster(job_id).phase is ClusterPhase.READY
    assert world.members(job_id)[-1].worker_id == spare


def test_running_member_whose_device_vanished_from_the_inventory_loses_its_job() -> None:
    world = World()
    worker_id = world.worker()
    job_id = world.running()
    world.do(m.ConnectWorker(worker_id, replace(inventory("RTX3090"), zone="home")))
    assert world.job(job_id).status is JobStatus.PENDING
    assert "no longer has device" in world.job(job_id).message


def test_running_member_keeps_its_job_when_devices_are_added() -> None:
    world = World()
    worker_id = world.worker()
    job_id = world.running()
    offer = world.who(worker_id).inventory
    more = inventory("RTX3090", 1, name="second").devices
    world.do(m.ConnectWorker(worker_id, replace(offer, devices=(*more, *offer.devices), slots=2)))
    assert world.job(job_id).status is JobStatus.RUNNING
    assert list(world.state.free_devices[worker_id]) == [more[0].device_id]


def test_ready_member_that_fails_closes_the_cluster() -> None:
    world, job_id, _, _ = pair()
    world.reports()
    cluster_id = world.cluster(job_id).cluster_id
    world.fail(world.members(job_id)[1])
    assert world.state.clusters[cluster_id].phase is ClusterPhase.CLOSING
    assert world.job(job_id).attempt_id is None


def test_closed_cluster_leaves_nothing_held() -> None:
    world, job_id, (one, two), head = pair()
    world.reports()
    world.fail(world.members(job_id)[1])
    world.reports()
    assert world.state.open_clusters == {}
    assert [len(world.state.free_devices[worker_id]) for worker_id in (one, two)] == [1, 1]
    assert world.state.head_hosts[head] == 2
    assert [desired_members(world.state, worker_id) for worker_id in (one, two, head)] == [(), (), ()]


def test_formation_two_members_on_one_machine_take_different_slots() -> None:
    world = World()
    worker_id = world.worker(count=2)
    first, second = world.submit(), world.submit()
    world.plan()
    assert {member.slot for job in (first, second) for member in world.members(job)} == {0, 1}
    assert {member.worker_id for job in (first, second) for member in world.members(job)} == {worker_id}


def test_effects_of_a_plan_tell_exactly_its_workers() -> None:
    world = World()
    idle = world.worker("RTX3060")
    workers = [world.worker("RTX4090") for _ in range(2)]
    head = world.head_host()
    world.submit(replace(PAIR, gpu_model="RTX4090"))
    world.state.take_touched()
    world.plan()
    effects = effects_of(world.state, world.state.take_touched())
    assert set(effects) == {m.SyncWorker(worker_id) for worker_id in (*workers, head)}
    assert m.SyncWorker(idle) not in pending_effects(world.state)
    assert set(effects) == set(pending_effects(world.state))
