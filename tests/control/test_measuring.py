"""What is measured of a control plane: gauges as its state is, counters as its commits were, pages as workers come."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.adapters import clock
from orchestrator.adapters.metrics.registry import Metrics
from orchestrator.adapters.metrics.worker_pages import page_text
from orchestrator.adapters.store import Transaction
from orchestrator.control.loop import Waiting
from orchestrator.control.measuring import measuring as module
from orchestrator.control.measuring.counting import gauges
from orchestrator.control.measuring.measuring import Measuring, Sources
from orchestrator.control.measuring.places import LINGER_MS, WORKERS_PER_PAGE, Places
from orchestrator.control.measuring.uptime import NEW_MS, Uptime, Uptimes
from orchestrator.control.measuring.watching import Watcher
from orchestrator.control.paths import Paths
from orchestrator.control.sessions import Sessions
from orchestrator.core import messages as m
from orchestrator.core.ids import AttemptId, JobId, TenantId, WorkerId
from orchestrator.core.jobs import GaveWay, Requirements
from orchestrator.core.queries.overview import longest_waiting
from orchestrator.core.scheduling.placement import WaitReason
from orchestrator.core.supply.fleet import NEBULA, HardwareClass, Liveness, TokenRole
from tests.control.house import House, Puppet, house, inventory
from tests.control.looping import HandClock, rigged
from tests.control.measured_events import NEEDS_AN_EVENT
from tests.core.worlds import World

RTT_US = 3_000
CERTIFICATE_S = 86_400


class Lossy:
    """Ways on which every fourth probe is lost."""

    probes_ordered = 12

    def loss_ratio(self, _workers: frozenset[WorkerId]) -> float | None:
        return 0.25


class Books:
    """A ledger that knows of one receipt less than it should, and does not add up."""

    async def totals(self) -> tuple[int, int]:
        return -1, 7


class Unreadable:
    async def totals(self) -> tuple[int, int]:
        raise OSError("the disk is full")


@dataclass
class Relay:
    connections: int = 4
    connections_max: int = 16
    bytes_in: int = 100
    bytes_out: int = 200
    dropped_datagrams: int = 5


@dataclass
class Measured:
    """A control plane, and all that can be measured beside its state."""

    house: House
    relay: Relay

    def value(self, name: str, **labels: str) -> float | None:
        return self.house.metrics.registry.get_sample_value(f"orchestrator_{name}", labels)

    async def look(self, books: object = None) -> None:
        plane = self.house.plane
        sources = Sources(
            plane.sessions,
            plane.telemetry.newest,
            cast("Paths", Lossy()),
            lambda: {"authority": self.house.parts.clock.now().wall_ms + CERTIFICATE_S * 1_000},
            cast("Books", Books() if books is None else books),
        )
        await plane.measuring.network(plane.loop, sources)

    async def rows(self) -> str:
        return page_text(await self.house.plane.worker_rows(0)).decode()


@pytest.fixture
async def measured(tmp_path: Path) -> AsyncIterator[Measured]:
    async with house(tmp_path) as built:
        relay = Relay()
        built.plane.measuring.bridge = relay
        yield Measured(built, relay)


async def in_the_overlay(built: House, name: str) -> WorkerId:
    secret = await built.token(TokenRole.SUPPLIER, "anna")
    worker_id = WorkerId(clock.new_id("wrk"))
    digest, key = hashlib.sha256(secret.encode()).hexdigest(), clock.random_bytes(32).hex()
    offer = replace(inventory(1, worker_id), overlay=NEBULA)
    await built.plane.loop.submit(m.JoinWorker(worker_id, digest, name, key, offer))
    await built.plane.loop.submit(m.ConnectWorker(worker_id, None))
    return worker_id


async def happen(measured: Measured) -> None:
    """Everything that NEEDS_AN_EVENT."""
    built = measured.house
    loop, meter = built.plane.loop, built.metrics
    meter.show("build_info", {("0.1",): 1.0})
    meter.request("GET", "/api/jobs", 200, 0.01)
    meter.refused("Join", "exhausted")
    one, other = [await in_the_overlay(built, name) for name in ("one", "other")]
    loop.measured(one, [(other, RTT_US)])
    loop.measured(other, [(one, RTT_US)])
    mine, theirs = [
        await loop.read(lambda state, worker_id=worker_id: state.workers[worker_id].inventory)  # type: ignore[misc]
        for worker_id in (one, other)
    ]
    await loop.submit(m.HoldDevice(one, mine.devices[0].device_id, "xid: XID 79: it fell off the PCIe bus"))
    await loop.submit(m.HoldDevice(other, theirs.devices[0].device_id, "an operator's word"))
    await loop.submit(m.ConnectWorker(other, replace(theirs, memory_bytes=2 * theirs.memory_bytes)))
    built.plane.measuring.stale()
    gave_way = m.JobPreempted(JobId("job_1"), GaveWay(AttemptId("att_1"), 0, "for another"))
    committed(meter, gave_way)


def committed(meter: Metrics, *events: m.Event) -> None:
    """As if a store had made these durable."""
    Watcher(meter, lambda _key, _worker, _at_ms: None).committed(Transaction(0, 0, events, ()))


async def test_measuring_what_needs_an_event_is_fed_by_it(measured: Measured) -> None:
    before = set(measured.house.metrics.fed)
    assert not before & {f"orchestrator_{name}" for name in NEEDS_AN_EVENT}
    await happen(measured)
    await measured.look()
    fed = {name.removeprefix("orchestrator_").removesuffix("_total") for name in measured.house.metrics.fed}
    assert set(NEEDS_AN_EVENT) - fed == set()
    assert measured.value("device_faults_total", kind="xid") == 1
    assert (
        sum(measured.value("device_faults_total", kind=kind) or 0 for kind in ("lost", "ecc", "thermal")) == 0
    )
    assert measured.value("hardware_changes_total") == 1
    assert measured.value("preemptions_total") == 1
    assert measured.value("plans_stale_total") == 1
    remaining_s = measured.value("certificate_remaining_seconds", certificate="authority")
    assert remaining_s == pytest.approx(CERTIFICATE_S, abs=60)
    assert measured.value("receipts_unaccounted") == 1
    assert measured.value("ledger_imbalance_microcredits") == 7


def test_measuring_plan_lag_is_that_of_what_no_plan_has_seen() -> None:
    moving = HandClock()
    shown = Metrics()
    measuring = Measuring(shown, moving)

    def lag_s() -> float | None:
        measuring.show_lags(Waiting(3, moving.monotonic_ms - 250))
        return shown.registry.get_sample_value("orchestrator_plan_lag_seconds")

    measuring.batch(1, 0, 0.0, 0.0, 0.0)
    moving.monotonic_ms += 1_000
    assert lag_s() == 0
    measuring.batch(1, 1, 0.0, 0.0, 0.0)
    moving.monotonic_ms += 1_000
    measuring.batch(1, 1, 0.0, 0.0, 0.0)
    moving.monotonic_ms += 500
    assert lag_s() == 1.5
    measuring.looked()
    assert lag_s() == 0
    assert shown.registry.get_sample_value("orchestrator_loop_inbox_commands") == 3
    assert shown.registry.get_sample_value("orchestrator_loop_lag_seconds") == 0.25


async def test_measuring_disk_that_hangs_is_said_and_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async with rigged() as rig:
        shown = Metrics()
        measuring = Measuring(shown, rig.clock)
        sources = Sources(cast("Sessions", SimpleNamespace(connected=frozenset())), {}, None, dict, None)
        await measuring.begin(rig.loop)
        await measuring.network(rig.loop, sources)
        assert shown.registry.get_sample_value("orchestrator_loop_lag_seconds") == 0
        rig.store.hold()
        writing = asyncio.create_task(rig.loop.submit(m.CreateTenant(TenantId("ten_1"), "one")))
        await rig.store.busy.wait()
        rig.clock.monotonic_ms += 9_000
        # Not before: what answers has as long as it needs.
        monkeypatch.setattr(module, "PATIENCE_S", 0.01)
        await measuring.network(rig.loop, sources)
        assert shown.registry.get_sample_value("orchestrator_loop_lag_seconds") == 9
        assert shown.registry.get_sample_value("orchestrator_jobs", {"status": "RUNNING"}) == 0
        rig.store.let_go()
        await writing


async def test_measuring_group_is_shown_with_its_ways(measured: Measured) -> None:
    await happen(measured)
    await measured.look()
    assert measured.value("groups") == 1
    (number,) = await measured.house.plane.loop.read(
        lambda state: [str(one.number) for one in state.groups if len(one.members) > 1]
    )
    assert measured.value("group_workers", group=number, hardware_class="consumer", model="RTX4090") == 2
    for stat in ("median", "longest"):
        assert measured.value("group_rtt_seconds", group=number, stat=stat) == pytest.approx(RTT_US / 1e6)
    assert measured.value("path_probes_total") == Lossy.probes_ordered
    assert measured.value("group_loss_ratio", group=number) == 0.25
    assert f'group="{number}"' in await measured.rows()


async def test_measuring_bridge_is_shown_as_it_counts_itself(measured: Measured) -> None:
    await measured.look()
    measured.relay.bytes_in = 150
    await measured.look()
    assert measured.value("relay_bytes_total", direction="in") == 150
    assert measured.value("relay_bytes_total", direction="out") == 200
    assert measured.value("relay_dropped_datagrams_total") == 5
    assert measured.value("relay_connections") == 4
    assert measured.value("relay_capacity_ratio") == 0.25


async def test_measuring_books_that_cannot_be_read_say_nothing(measured: Measured) -> None:
    await measured.look(Unreadable())
    assert "orchestrator_ledger_imbalance_microcredits" not in measured.house.metrics.fed
    assert measured.value("jobs", status="RUNNING") == 0


async def test_measuring_workers_page_has_who_is_there_and_who_left_for_a_while(measured: Measured) -> None:
    built = measured.house
    puppet, gone = await Puppet.join(built, devices=2), await Puppet.join(built)
    await built.plane.loop.submit(m.LeaveWorker(gone.worker_id))
    families = {one.name: one for one in text_string_to_metric_families(await measured.rows())}
    info = families["orchestrator_worker_info"].samples
    assert [sample.labels["worker"] for sample in info] == [puppet.worker_id]
    expected = families["orchestrator_worker_expected_seconds"].samples
    assert [sample.labels["worker"] for sample in expected] == [puppet.worker_id, gone.worker_id]
    assert {sample.labels["hardware_class"] for sample in expected} == {"consumer"}
    assert all(sample.labels["supplier"].startswith("sup_") for sample in expected)


async def test_measuring_gpus_by_what_can_be_done_with_them(measured: Measured) -> None:
    built = measured.house
    await Puppet.join(built, devices=2)
    held = await Puppet.join(built)
    device = (await built.plane.loop.read(lambda state: state.workers[held.worker_id])).inventory.devices[0]
    await built.plane.loop.submit(m.HoldDevice(held.worker_id, device.device_id, "an operator's word"))
    await measured.look()
    shown = {
        state: measured.value("gpus", hardware_class="consumer", model="RTX4090", state=state)
        for state in ("free", "leased", "reserved", "held", "unreachable")
    }
    assert shown == {"free": 2, "leased": 0, "reserved": 0, "held": 1, "unreachable": 0}
    assert measured.value("workers", liveness="live", hardware_class="consumer") == 2
    assert measured.value("workers", liveness="lost", hardware_class="consumer") == 0
    assert measured.value("workers_connected", hardware_class="consumer") == 0


# ---------------------------------------------------------------- gauges of a small world


def test_gauges_reserved_gpus_are_free_ones_and_no_more_than_there_are() -> None:
    world = World()
    worker_id = world.worker(count=2)
    kept = gauges(world.state, (), world.at_ms, {}, ((worker_id, "RTX4090", 1),))["gpus"]
    assert kept["consumer", "RTX4090", "free"] == kept["consumer", "RTX4090", "reserved"] == 1
    stale = gauges(
        world.state, (), world.at_ms, {}, ((worker_id, "RTX4090", 9), (WorkerId("gone"), "H100", 1))
    )["gpus"]
    assert stale["consumer", "RTX4090", "free"] == 0
    assert stale["consumer", "RTX4090", "reserved"] == 2


def test_gauges_queue_by_what_the_newest_plan_found_and_the_rest_behind() -> None:
    world = World()
    world.worker()
    running, waiting, impossible = world.submit(), world.submit(), world.submit(Requirements(gpus=9))
    world.plan()
    assert world.job(running).attempt_id is not None
    world.forward(5_000)
    made = world.plan()
    reasons = {one.job_id: one.waits_for for one in made.deferrals}
    assert reasons == {waiting: WaitReason.BUSY, impossible: WaitReason.NO_MACHINES}
    found = gauges(world.state, (), world.at_ms, {"busy": 1}, ())
    assert found["queue_jobs"]["busy",] == 1
    assert found["queue_jobs"]["behind",] == 1
    assert sum(found["queue_jobs"].values()) == 2
    assert found["queue_gpus"][()] == 10
    assert found["queue_oldest_seconds"][()] == 5


def test_gauges_queue_never_shows_more_than_wait() -> None:
    found = gauges(World().state, (), 0, {"busy": 5}, ())
    assert set(found["queue_jobs"].values()) == {0}
    assert found["queue_oldest_seconds"][()] == 0


def test_oldest_queued_is_found_behind_younger_ones_of_higher_priority() -> None:
    world = World()
    assert longest_waiting(world.state) is None
    old_ms = world.at_ms
    world.submit()
    world.forward(1_000)
    for priority in (5, 9):
        world.submit(priority=priority)
        world.forward(1_000)
    oldest = longest_waiting(world.state)
    assert oldest is not None
    assert oldest[0] == old_ms


# ---------------------------------------------------------------- uptime and places


def test_uptime_counts_to_the_millisecond_whatever_happens_between() -> None:
    world, uptimes = World(), Uptimes()
    worker = world.who(world.worker())
    for at_ms, liveness in (
        (0, Liveness.LIVE),
        (40_000, Liveness.SUSPECT),
        (41_001, Liveness.LIVE),
        (50_000, Liveness.LOST),
        (60_000, Liveness.LEFT),
        (70_000, Liveness.LIVE),
    ):
        uptimes.put(replace(worker, liveness=liveness), at_ms)
    (supplier, kind) = worker.supplier_id, "consumer"
    assert uptimes.of(worker.worker_id, 70_000) == Uptime(supplier, kind, 60_000, 40_000 + 8_999)
    assert uptimes.of(worker.worker_id, 70_007) == Uptime(supplier, kind, 60_007, 40_000 + 8_999 + 7)
    uptimes.stop(worker.worker_id, 70_010)
    assert uptimes.of(worker.worker_id, 99_999) == Uptime(supplier, kind, 60_010, 49_009)
    uptimes.forget(worker.worker_id)
    assert uptimes.of(worker.worker_id, 99_999) is None


def test_uptime_of_a_newcomer_is_first_shown_at_zero_and_nothing_of_it_is_lost() -> None:
    world = World()
    worker = world.who(world.worker())
    new, known = Uptimes(), Uptimes()
    new.put(worker, 1_000)
    known.put(worker, 1_000, known=True)
    shown = [new.of(worker.worker_id, at_ms) for at_ms in (1_000, NEW_MS + 999, NEW_MS + 1_000)]
    assert [one.expected_ms for one in shown if one is not None] == [0, 0, NEW_MS]
    assert known.of(worker.worker_id, 2_000) == Uptime(worker.supplier_id, "consumer", 1_000, 1_000)


def test_uptime_as_another_class_begins_a_series_of_its_own() -> None:
    world, uptimes = World(), Uptimes()
    worker = world.who(world.worker())
    uptimes.put(worker, 0)
    other = replace(worker, inventory=replace(worker.inventory, hardware_class=HardwareClass.DATACENTER))
    uptimes.put(other, 50_000)
    assert uptimes.of(worker.worker_id, 50_000 + NEW_MS) == Uptime(
        worker.supplier_id, "datacenter", NEW_MS, NEW_MS
    )


def test_uptime_that_ends_with_another_class_stops_with_it() -> None:
    world, uptimes = World(), Uptimes()
    worker = world.who(world.worker())
    uptimes.put(worker, 0)
    other = replace(worker.inventory, hardware_class=HardwareClass.DATACENTER)
    uptimes.put(replace(worker, inventory=other, liveness=Liveness.LEFT), 50_000)
    kind = worker.inventory.hardware_class.value
    assert uptimes.of(worker.worker_id, 500_000) == Uptime(worker.supplier_id, kind, 50_000, 50_000)


def test_places_worker_keeps_its_page_and_a_free_place_is_used_again() -> None:
    places = Places()
    names = [WorkerId(f"w{number}") for number in range(WORKERS_PER_PAGE + 2)]
    for name in names:
        places.take(name)
    assert places.page_count == 2
    assert places.page(1) == names[WORKERS_PER_PAGE:]
    places.leave(names[3], 1_000)
    places.leave(names[4], 2_000)
    places.take(names[4])
    assert places.sweep(1_000 + LINGER_MS - 1) == []
    assert names[3] in places.page(0)
    assert places.sweep(1_000 + LINGER_MS) == [names[3]]
    assert names[3] not in places.page(0)
    newcomer, next_one = WorkerId("newcomer"), WorkerId("next")
    places.take(newcomer)
    places.take(next_one)
    assert places.page(0)[3] == newcomer
    assert places.page(1) == [*names[WORKERS_PER_PAGE:], next_one]
    assert places.page(9) == []


def test_places_of_nobody_are_one_empty_page() -> None:
    assert (Places().page_count, Places().page(0)) == (1, [])
