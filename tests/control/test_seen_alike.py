"""`orch status`, `orch top` and the metrics of one state: whatever has the same meaning has the same number."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import pytest

from orchestrator.api.v1 import operator_pb2, overview_pb2
from orchestrator.control.inventory_wire import CLASSES
from orchestrator.control.measuring.counting import gauges
from orchestrator.control.services.operator_overview import Asked, status_message, top_message
from orchestrator.control.services.surroundings import Addresses
from orchestrator.core import messages as m
from orchestrator.core.clusters import ClusterPhase
from orchestrator.core.ids import ClusterId, JobId, ReceiptId, WorkerId
from orchestrator.core.jobs import JobStatus, Outcome, Requirements
from orchestrator.core.queries.health import Vitals
from orchestrator.core.queries.overview import overview
from orchestrator.core.queries.top import Sort, candidates, ranked
from orchestrator.core.supply.fleet import HardwareClass, Liveness
from orchestrator.core.supply.holds import HoldKind
from orchestrator.core.tallies import GpuState, LeaseState, lease_state
from tests.core.booking import MINUTE_MS, reserve, submit_to
from tests.core.worlds import World

if TYPE_CHECKING:
    from orchestrator.control.measuring.counting import Series
    from orchestrator.core.queries.gpus import Reserved

ROWS = 100
NOWHERE = Addresses(version="1", gateway_url="", metrics_url="", receipt_public_key=b"")
SERVED = Requirements(gpus=1, gpu_model="H100")


@dataclass
class Seen:
    """One instant of a world, as everybody is shown it."""

    world: World
    connected: frozenset[WorkerId]
    reserved: Reserved
    waiting: dict[str, int]

    @cached_property
    def status(self) -> operator_pb2.GetStatusResponse:
        state, at_ms = self.world.state, self.world.at_ms
        seen = overview(state, self.connected, self.reserved, at_ms)
        return status_message(state, NOWHERE, seen, Vitals(), at_ms)

    @cached_property
    def top(self) -> overview_pb2.GetTopResponse:
        state, now = self.world.state, self.world.now()
        found = candidates(state, self.connected, None, "", self.world.at_ms, now.monotonic_ms)
        asked = Asked(ROWS, Sort.NAME, None, "")
        chosen = ranked(found, {}, Sort.NAME, ROWS)
        top = top_message(state, asked, chosen, {}, self.connected, self.reserved, now)
        top.workers_total = len(found)
        return top

    @cached_property
    def metrics(self) -> dict[str, Series]:
        return gauges(self.world.state, self.connected, self.world.at_ms, self.waiting, self.reserved)

    def value(self, metric: str, *labels: str) -> float:
        return self.metrics[metric][labels]

    def total(self, metric: str, *labels: str) -> float:
        """Of all series that have these labels among theirs."""
        return sum(value for key, value in self.metrics[metric].items() if set(labels) <= set(key))


def sealed(world: World, job_id: JobId) -> ReceiptId:
    """A job that ran a minute and ended: its receipt."""
    (lease,) = world.leases(job_id)
    world.forward(60_000)
    world.finish(job_id)
    world.state_time(lease, 60_000, final=True)
    (receipt,) = world.receipts(lease.lease_id)
    return receipt.receipt_id


def served_jobs(world: World) -> None:
    """Jobs that ended in every way, receipts on all of their way, leases of every state."""
    first = sealed(world, world.running(SERVED))
    world.do(m.RecordSignature(first, b"envelope", "0" * 64))
    world.do(m.RecordPosting(first, "transfer"))
    unsigned = sealed(world, world.running(SERVED))
    world.forward(5_000)
    unposted = sealed(world, world.running(SERVED))
    # The younger one is signed first: the outbox is as old as the other.
    world.do(m.RecordSignature(unposted, b"envelope", "0" * 64))
    assert world.state.receipts[unsigned].issued_at_ms < world.state.receipts[unposted].issued_at_ms
    world.finish(world.running(SERVED), Outcome.FAILED)
    stopped = world.submit(SERVED)
    world.do(m.StopJob(stopped))
    world.running(SERVED)


def clusters_of_every_phase(world: World) -> None:
    """As copies of one that was closed: only how far they are differs."""
    like = next(iter(world.state.clusters.values()))
    for number, phase in enumerate(ClusterPhase):
        copied = ClusterId(f"copy_{number}")
        world.state.put(replace(like, cluster_id=copied, phase=phase, member_ids=(), idle_since_ms=None))


def everything() -> Seen:
    """A network with each kind of worker, GPU, job, cluster, lease and receipt."""
    world = World()
    world.worker("H100", 2, hardware_class=HardwareClass.DATACENTER, supplier="centre")
    served_jobs(world)
    held, cordoned = world.worker(count=2), world.worker(count=2)
    suspect, lost, gone = (world.worker(supplier=name) for name in ("a", "b", "c"))
    world.head_host()
    world.do(m.PlaceHold(held, HoldKind.OPERATOR, "repair"))
    world.do(m.HoldDevice(cordoned, world.who(cordoned).inventory.devices[0].device_id, "ECC"))
    world.live_on(90_000, silent=frozenset((lost,)))
    world.do(m.LeaveWorker(gone))
    booked = reserve(world, Requirements(gpus=1, gpu_model="RTX4090"), in_ms=30 * MINUTE_MS)
    submit_to(world, booked, Requirements(gpus=1, gpu_model="RTX4090"))
    world.submit(Requirements(gpus=9), tenant="labs")
    world.forward(1_000)
    world.submit(Requirements(gpus=1, gpu_model="B200"))
    world.live_on(30_000, silent=frozenset((suspect, lost)))
    made = world.plan()
    clusters_of_every_phase(world)
    waiting = Counter(one.waits_for.value for one in made.deferrals)
    # Sessions of one that has left, and of a stranger, may linger for a moment.
    connected = frozenset((*world.state.workers, WorkerId("stranger"))) - {suspect, lost}
    return Seen(world, connected, made.reserved, waiting)


@pytest.fixture(scope="module")
def seen() -> Seen:
    return everything()


def test_state_that_is_compared_has_every_kind(seen: Seen) -> None:
    state = seen.world.state
    assert {one.liveness for one in state.workers.values()} == set(Liveness)
    assert {one.state for one in seen.status.gpus} == {one.value for one in GpuState}
    assert {one.phase for one in state.clusters.values()} == set(ClusterPhase)
    assert {one.status for one in state.jobs.values()} == set(JobStatus)
    assert {lease_state(lease) for lease in state.leases.values()} == set(LeaseState)
    assert state.unsigned
    assert state.unposted
    assert seen.reserved


def test_workers_are_the_same_number_everywhere(seen: Seen) -> None:
    status, top = seen.status, seen.top
    for one in status.workers:
        of_class = CLASSES[one.hardware_class]
        assert one.workers == seen.value("workers", one.liveness, of_class.value)
    for liveness in Liveness:
        assert status.workers_by_liveness[liveness] == seen.total("workers", liveness.value)
    shown = Counter(one.liveness for one in top.workers)
    assert shown == {one: status.workers_by_liveness[one] for one in ("live", "suspect", "lost")}
    assert top.workers_total == seen.total("workers") - seen.total("workers", "left")
    connected = sum(one.connected for one in top.workers)
    assert status.workers_connected == seen.total("workers_connected") == connected
    assert status.workers_by_hold == {
        kind: number for (kind,), number in seen.metrics["worker_holds"].items() if number
    }
    assert len(status.zones_held) == seen.value("zones_held")


def test_gpus_are_the_same_number_everywhere(seen: Seen) -> None:
    status, top = seen.status, seen.top
    shown = {
        (CLASSES[one.hardware_class].value, one.model, one.state): float(one.gpus) for one in status.gpus
    }
    assert shown == {key: number for key, number in seen.metrics["gpus"].items() if number}
    of_workers: Counter[str] = Counter()
    for one in top.workers:
        of_workers.update(one.gpus_by_state)
        assert sum(one.gpus_by_state.values()) == one.gpus
    assert of_workers == {state.value: seen.total("gpus", state.value) for state in GpuState}
    assert sum(one.gpus_held for one in top.workers) == seen.total("gpus", "held")


def test_free_gpus_of_the_judgement_are_those_of_the_alert(seen: Seen) -> None:
    world = seen.world
    judged = overview(world.state, seen.connected, seen.reserved, world.at_ms).waiting
    assert judged.free_gpus == seen.total("gpus", "free")
    assert judged.gpus == seen.value("queue_gpus")


def test_jobs_and_clusters_are_the_same_number_everywhere(seen: Seen) -> None:
    status, top = seen.status, seen.top
    assert status.jobs_by_status == {one.value: seen.value("jobs", one.value) for one in JobStatus}
    phases = {one.value: seen.value("clusters", one.value) for one in ClusterPhase}
    assert status.clusters_by_phase == phases
    assert top.clusters_total == sum(phases.values()) - phases["closed"]


def test_queue_is_the_same_number_everywhere(seen: Seen) -> None:
    status, top = seen.status, seen.top
    for_reservations = seen.value("queue_jobs", "reservation")
    assert status.queue.jobs == seen.total("queue_jobs") - for_reservations == top.queue_total
    assert status.queue.jobs_for_reservations == for_reservations == 1
    assert status.queue.gpus == seen.value("queue_gpus")
    assert status.queue.oldest_ms / 1_000 == seen.value("queue_oldest_seconds")
    assert status.queue.oldest_ms == max(one.wait_ms for one in top.queue)
    assert status.queue.oldest_ms > 0


def test_queue_before_any_plan_is_the_same_number_everywhere(seen: Seen) -> None:
    fresh = replace(seen, waiting={})
    assert fresh.value("queue_jobs", "reservation") == fresh.status.queue.jobs_for_reservations
    assert fresh.value("queue_jobs", "behind") == fresh.status.queue.jobs


def test_leases_and_receipts_are_the_same_number_everywhere(seen: Seen) -> None:
    status = seen.status
    assert status.leases_open == seen.value("leases", "open")
    assert status.receipts_unposted == seen.value("receipts_unposted")
    assert status.outbox_oldest_ms / 1_000 == seen.value("outbox_oldest_seconds")


def test_reserved_gpus_that_were_leased_since_the_plan_are_leased() -> None:
    world = World()
    kept, other = world.worker(count=2), world.worker()
    reserved = ((kept, "RTX4090", 2), (WorkerId("gone"), "RTX4090", 4))
    world.running(Requirements(gpus=2))
    assert not world.state.free_devices[kept]
    seen = Seen(world, frozenset((kept, other)), reserved, {})
    assert {one.state: one.gpus for one in seen.status.gpus} == {"leased": 2, "free": 1}
    assert [dict(one.gpus_by_state) for one in seen.top.workers] == [{"leased": 2}, {"free": 1}]


def test_formation_that_lost_its_job_and_then_its_ground_is_no_failure() -> None:
    world = World()
    world.worker()
    job_id = world.submit()
    world.plan()
    (member,) = world.members(job_id)
    world.do(m.StopJob(job_id))
    world.fail(member, "the disk is full")
    world.reports()
    assert world.state.clusters[member.cluster_id].ready_at_ms is None
    assert overview(world.state, (), (), world.at_ms).formations.failed == 0
