"""The network in numbers: each counted once, and in the right place."""

from __future__ import annotations

import pytest

from orchestrator.core import messages as m
from orchestrator.core.clusters import ClusterPhase
from orchestrator.core.jobs import JobStatus, Requirements
from orchestrator.core.queries.overview import (
    CORDONED_WINDOW_MS,
    FORMATION_WINDOW_MS,
    LATELY_MS,
    LOST_WINDOW_MS,
    Devices,
    Overview,
    overview,
)
from orchestrator.core.supply.catalogue import CPU_MODEL
from orchestrator.core.supply.fleet import HardwareClass, Isolation, Liveness
from orchestrator.core.supply.holds import HoldKind
from tests.core.booking import HOUR_MS, reserve, submit_to
from tests.core.worlds import World

CONSUMER, DATACENTER = HardwareClass.CONSUMER, HardwareClass.DATACENTER


def seen(world: World) -> Overview:
    return overview(world.state, frozenset(world.state.workers), (), world.at_ms)


def test_overview_of_an_empty_network_is_all_zero() -> None:
    found = seen(World())
    assert found.fleet.workers == {}
    assert found.fleet.devices == Devices()
    assert (found.waiting.jobs, found.waiting.oldest_ms, found.waiting.oldest_job) == (0, 0, None)
    assert (found.outbox.receipts, found.outbox.oldest_ms) == (0, 0)


def test_devices_are_held_by_members_and_cordons_and_a_held_worker_takes_nothing_new() -> None:
    world = World()
    world.worker(count=2)
    world.running(Requirements(gpus=1))
    held = world.worker(count=4)
    world.do(m.PlaceHold(held, HoldKind.OPERATOR, "repair"))
    cordoned = world.worker("H100", 8, hardware_class=DATACENTER)
    device = world.who(cordoned).inventory.devices[0].device_id
    world.do(m.HoldDevice(cordoned, device, "ECC"))
    found = seen(world)
    assert found.fleet.devices == Devices(14, 2, 14), "a hold of the whole worker takes no device"
    assert (found.fleet.placeable, found.fleet.holds) == (2, {HoldKind.OPERATOR: 1})
    assert found.waiting.free_gpus == 1 + 7
    name = world.who(cordoned).name
    at_ms = world.at_ms
    assert overview(world.state, (), (), at_ms + CORDONED_WINDOW_MS).fleet.cordoned_lately == (name,)
    assert overview(world.state, (), (), at_ms + CORDONED_WINDOW_MS + 1).fleet.cordoned_lately == ()


def test_devices_of_lost_workers_and_those_that_left_are_not_here() -> None:
    world = World()
    silent, gone = world.worker(supplier="a"), world.worker(supplier="b")
    for number in range(4):
        world.worker(supplier=f"s{number}")
    world.do(m.LeaveWorker(gone))
    world.live_on(30_000, silent=frozenset((silent,)))
    assert world.who(silent).liveness is Liveness.SUSPECT
    assert seen(world).fleet.devices.present == 5
    assert seen(world).waiting.free_gpus == 4
    world.live_on(60_000, silent=frozenset((silent,)))
    assert world.who(silent).liveness is Liveness.LOST
    fleet = seen(world).fleet
    assert fleet.devices == Devices(4, 0, 4)
    assert {one: fleet.count(one) for one in Liveness} == {
        Liveness.LIVE: 4,
        Liveness.SUSPECT: 0,
        Liveness.LOST: 1,
        Liveness.LEFT: 1,
    }


def test_workers_are_counted_by_standing_and_class() -> None:
    world = World()
    world.worker(CPU_MODEL)
    world.head_host()
    world.worker()
    fleet = seen(world).fleet
    assert fleet.devices.present == 2, "a head host has none"
    assert fleet.workers == {(Liveness.LIVE, HardwareClass.CPU): 2, (Liveness.LIVE, CONSUMER): 1}


def test_lost_worker_is_news_for_a_day() -> None:
    world = World()
    silent = world.worker()
    for number in range(4):
        world.worker(supplier=f"s{number}")
    world.live_on(120_000, silent=frozenset((silent,)))
    lost_at_ms = world.who(silent).liveness_since_ms
    name = world.who(silent).name

    def fleet(at_ms: int) -> tuple[tuple[str, ...], int, int]:
        found = overview(world.state, (), (), at_ms).fleet
        return found.lost_lately, found.lost_before, found.lost_at_once

    assert fleet(lost_at_ms + LOST_WINDOW_MS) == ((name,), 0, 1)
    assert fleet(lost_at_ms + LOST_WINDOW_MS + 1) == ((name,), 0, 0)
    assert fleet(lost_at_ms + LATELY_MS) == ((name,), 0, 0)
    assert fleet(lost_at_ms + LATELY_MS + 1) == ((), 1, 0)


def test_isolation_and_overlay_are_the_weakest_of_live_workers() -> None:
    world = World()
    world.worker(isolation=Isolation.CONTAINER, overlay="nebula")
    assert (seen(world).fleet.isolation, seen(world).fleet.overlay) == (Isolation.CONTAINER, "nebula")
    world.worker(isolation=Isolation.BOX)
    assert (seen(world).fleet.isolation, seen(world).fleet.overlay) == (Isolation.BOX, "none")


def test_waiting_oldest_job_is_named_with_what_the_plan_found() -> None:
    world = World()
    first = world.submit(Requirements(gpus=3), tenant="acme")
    world.forward(60_000)
    world.submit(Requirements(gpus=2), tenant="labs")
    world.plan()
    waiting = seen(world).waiting
    assert (waiting.jobs, waiting.gpus, waiting.oldest_job, waiting.oldest_ms) == (2, 5, first, 60_000)
    assert waiting.oldest_reason == world.job(first).message
    assert seen(world).jobs[JobStatus.PENDING] == 2


def test_waiting_longest_is_found_among_all_priorities_and_tenants() -> None:
    world = World()
    submitted = []
    for tenant, priority in (("acme", 0), ("acme", 5), ("labs", -3), ("labs", 0), ("acme", 9), ("labs", -3)):
        submitted.append(world.submit(Requirements(gpus=9), tenant=tenant, priority=priority))
        world.forward(1_000)
    for job_id in submitted:
        assert seen(world).waiting.oldest_job == job_id
        world.do(m.StopJob(job_id))
    assert seen(world).waiting.oldest_job is None


def test_waiting_knows_whether_anything_was_placed_lately() -> None:
    world = World()
    world.worker()
    assert not seen(world).waiting.placed_lately
    world.running()
    assert seen(world).waiting.placed_lately
    assert not overview(world.state, (), (), world.at_ms + FORMATION_WINDOW_MS + 1).waiting.placed_lately


def test_waiting_leaves_out_jobs_of_a_reservation_to_come() -> None:
    world = World()
    world.worker(count=2)
    job_id = submit_to(world, reserve(world, in_ms=HOUR_MS))
    found = seen(world).waiting
    assert (found.jobs, found.gpus, found.for_reservations, found.oldest_job) == (0, 0, 1, None)
    assert world.job(job_id).status is JobStatus.PENDING


def test_clusters_and_leases_are_counted_by_where_they_are() -> None:
    world = World()
    world.worker()
    job_id = world.running()
    found = seen(world)
    assert (found.clusters[ClusterPhase.READY], found.clusters_idle, found.leases_open) == (1, 0, 1)
    world.finish(job_id)
    found = seen(world)
    assert (found.clusters[ClusterPhase.READY], found.clusters_idle) == (1, 1)
    world.live_on(world.policies.clusters.idle_teardown_ms + 10_000)
    world.reports()
    found = seen(world)
    assert (found.clusters[ClusterPhase.READY], found.clusters[ClusterPhase.CLOSED]) == (0, 1)


def test_formations_count_those_that_ended_within_the_window() -> None:
    world = World()
    world.worker()
    world.ready()
    ready_at_ms = world.at_ms
    for at_ms, ready in ((ready_at_ms + FORMATION_WINDOW_MS, 1), (ready_at_ms + FORMATION_WINDOW_MS + 1, 0)):
        assert overview(world.state, (), (), at_ms).formations.ready == ready


def test_formations_that_failed_say_why_and_are_forgotten_in_time() -> None:
    world = World()
    world.worker()
    job_id = world.submit()
    world.plan()
    world.fail(world.members(job_id)[0], "the disk is full")
    world.reports()
    found = seen(world).formations
    assert (found.ready, found.failed) == (0, 1)
    assert "the disk is full" in found.last_reason
    assert overview(world.state, (), (), world.at_ms + FORMATION_WINDOW_MS + 1).formations.failed == 0


def test_formation_whose_job_was_stopped_goes_on_and_is_no_failure() -> None:
    world = World()
    world.worker()
    job_id = world.submit()
    world.plan()
    world.do(m.StopJob(job_id))
    world.reports()
    assert (seen(world).formations.ready, seen(world).formations.failed) == (1, 0)


@pytest.mark.parametrize("signed", [False, True])
def test_outbox_holds_what_is_sealed_until_it_is_posted(signed: bool) -> None:
    world = World()
    world.worker()
    job_id = world.running()
    (lease,) = world.leases(job_id)
    world.forward(60_000)
    world.finish(job_id)
    world.state_time(lease, 60_000, final=True)
    sealed_at_ms = world.at_ms
    (receipt,) = world.receipts(lease.lease_id)
    if signed:
        world.do(m.RecordSignature(receipt.receipt_id, b"envelope", "0" * 64))
    world.forward(5_000)
    assert seen(world).outbox.receipts == 1
    assert seen(world).outbox.oldest_ms == world.at_ms - sealed_at_ms
    if not signed:
        world.do(m.RecordSignature(receipt.receipt_id, b"envelope", "0" * 64))
    world.do(m.RecordPosting(receipt.receipt_id, "transfer"))
    assert seen(world).outbox.receipts == 0
    assert seen(world).receipts == 1
