"""A faulty virtual hour of work, measured: uptime as a real Prometheus tells it is that of the record of leases, and
every metric of the catalogue is fed by something that happens.
"""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from shutil import which

import pytest
from structlog.testing import capture_logs

from deploy.local.prometheus import Prometheus, backfill
from orchestrator.adapters import codec
from orchestrator.adapters.metrics.catalogue import NETWORK
from orchestrator.adapters.metrics.registry import Metrics, short_name
from orchestrator.adapters.metrics.worker_pages import WorkerRow, page_text
from orchestrator.control.measuring.measuring import Measuring, Sources
from orchestrator.core import messages as m
from orchestrator.core.supply.fleet import Liveness
from orchestrator.sim.control import ControlProcess
from orchestrator.sim.virtual import run_virtual, virtual_ms
from orchestrator.sim.workload import TENANTS
from orchestrator.sim.world import SimWorker, World
from tests.control.measured_events import NEEDS_AN_EVENT, OF_SCRAPES

pytestmark = [pytest.mark.simulation, pytest.mark.timeout(180)]

HOUR_S = 3_600
SCRAPE_S = 15
BEGIN_UNIX_S = 1_700_000_000
"""Of the hour as Prometheus is told of it: any instant that is long over, of which nothing is dropped as too old."""

DIFFERENCE_MAX = 0.001
"""Of the ratio, and of the seconds of all workers: a tenth of a percent."""

FLEET = 14
LATE_JOINERS = 4
LEAVERS = 5
"""Of the fleet: the rest never leave, so that theirs is the whole hour."""

SERIES = re.compile(r"^(orchestrator_worker_(?:expected|up)_seconds_total)(\{.*\}) (\S+)$")


@dataclass
class Hour:
    """What was scraped, and what the log of events says of the same hour."""

    begun_ms: int = 0
    samples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Lines of each metric, with their instants."""
    record: dict[str, tuple[int, int]] = field(default_factory=dict)
    """By worker: milliseconds expected and up within the hour."""
    metrics: Metrics = field(default_factory=Metrics)
    transitions: dict[str, int] = field(default_factory=lambda: defaultdict(int))


async def faulty_hour() -> Hour:
    """Workers fall silent, are lost, come back, leave, come back from that, and join."""
    world, hour = World(7), Hour()
    world.outside.measure = lambda clock: Measuring(hour.metrics, clock)
    world.outside.inspect = lambda _state: None
    await world.start_control()
    for tenant_id in TENANTS:
        await world.submit(m.CreateTenant(tenant_id, f"acme of {tenant_id}", tenant_id))
    await world.add_worker("cpu", "", 0, 2)
    for number in range(FLEET):
        await world.add_worker("datacenter" if number % 3 == 0 else "consumer", "RTX4090", 1, 0)
    await asyncio.sleep(60)
    control = world.control
    assert control is not None
    hour.begun_ms = await control.loop.read(lambda state: state.time_ms(control.loop.now()))
    breaking = asyncio.create_task(_break(world))
    working = asyncio.create_task(world.tenants())
    begun_ms = virtual_ms()
    for number in range(HOUR_S // SCRAPE_S + 1):
        await asyncio.sleep((begun_ms + number * SCRAPE_S * 1_000 - virtual_ms()) / 1_000)
        _note(hour, await _scraped(world), number * SCRAPE_S)
    breaking.cancel()
    await asyncio.gather(breaking, working, return_exceptions=True)
    assert control.measuring is not None
    await control.measuring.network(control.loop, _sources(control))
    assert not world.outside.failures
    _read_record(hour, world.outside.store.log)
    return hour


async def _break(world: World) -> None:
    random = Random(11)
    while True:
        await asyncio.sleep(5 + random.random() * 25)
        worker, kind = random.choice(world.workers), random.random()
        if kind < 0.5:
            world.processes.spawn("world", _silence(worker, random.choice((20, 35, 60, 200, 500))))
        elif kind < 0.8:
            leaving = random.choice(world.workers[1 : 1 + LEAVERS])
            world.processes.spawn("world", _away(world, leaving, random.random() * 400))
        elif world.joined < FLEET + LATE_JOINERS:
            await world.add_worker("consumer", "RTX4090", 1, 0)


async def _silence(worker: SimWorker, duration_s: float) -> None:
    worker.link.blocked = True
    await asyncio.sleep(duration_s)
    worker.link.blocked = False


async def _away(world: World, worker: SimWorker, duration_s: float) -> None:
    """Its owner takes the machine back, and offers it again later."""
    if worker.agent is None:
        return
    worker.agent.drain()
    await asyncio.sleep(duration_s)
    await world.crash_agent(worker)
    world.start_agent(worker)


async def _scraped(world: World) -> list[WorkerRow]:
    control = world.control
    assert control is not None
    assert control.measuring is not None
    assert control.measuring.page_count == 1
    return await control.measuring.workers(0, control.loop, _sources(control))


def _sources(control: ControlProcess) -> Sources:
    return Sources(control.parts.sessions, {}, None, dict, None)


def _note(hour: Hour, rows: list[WorkerRow], at_s: int) -> None:
    for line in page_text(rows).decode().splitlines():
        found = SERIES.match(line)
        if found is not None:
            hour.samples[found[1]].append(f"{found[1]}{found[2]} {found[3]} {BEGIN_UNIX_S + at_s}")


def _read_record(hour: Hour, log: list[tuple[int, int, str, bytes]]) -> None:
    """From the committed events alone, by other arithmetic than the counters': interval by interval."""
    end_ms = hour.begun_ms + HOUR_S * 1_000
    standing: dict[str, list[tuple[int, Liveness]]] = defaultdict(list)
    for _, at_ms, name, body in log:
        if name not in ("WorkerJoined", "StrangerJoined", "LivenessChanged"):
            continue
        event = codec.decode_event(name, codec.event_version(name), body)
        if isinstance(event, m.LivenessChanged):
            standing[event.worker_id].append((at_ms, event.liveness))
            hour.transitions[event.liveness] += hour.begun_ms <= at_ms < end_ms
        elif isinstance(event, m.WorkerJoined | m.StrangerJoined):
            standing[event.worker.worker_id].append((at_ms, event.worker.liveness))
            hour.transitions["joined"] += hour.begun_ms <= at_ms < end_ms
    for worker_id, states in standing.items():
        ends = [at_ms for at_ms, _ in states[1:]] + [end_ms]
        expected = up = 0
        for (from_ms, liveness), until_ms in zip(states, ends, strict=True):
            length_ms = max(0, min(until_ms, end_ms) - max(from_ms, hour.begun_ms))
            expected += length_ms * (liveness is not Liveness.LEFT)
            up += length_ms * (liveness is Liveness.LIVE)
        if expected:
            hour.record[worker_id] = expected, up


# ---------------------------------------------------------------- a real Prometheus


def _exposition(hour: Hour) -> str:
    """As promtool reads it: each family once, and its end."""
    parts = []
    for name, lines in hour.samples.items():
        parts += [f"# TYPE {name.removesuffix('_total')} counter", *lines]
    return "\n".join([*parts, "# EOF", ""])


def asked(prometheus: Prometheus, query: str, label: str) -> dict[str, float]:
    """The answer at the hour's end, by one label."""
    found = prometheus.at(query, BEGIN_UNIX_S + HOUR_S)
    return {one["metric"].get(label, ""): float(one["value"][1]) for one in found}


RATIO = (
    "sum by ({0}) (increase(orchestrator_worker_up_seconds_total[1h]))"
    " / sum by ({0}) (increase(orchestrator_worker_expected_seconds_total[1h]))"
)


@pytest.fixture(scope="module")
def hour() -> Hour:
    # Before the fixture that quiets each test.
    with capture_logs():
        return run_virtual(faulty_hour())


def test_every_metric_is_fed_by_an_hour_of_work_or_has_an_event_of_its_own(hour: Hour) -> None:
    declared = {short_name(metric) for metric in NETWORK}
    others = {*NEEDS_AN_EVENT, *OF_SCRAPES}
    assert declared >= others
    fed = {name.removeprefix("orchestrator_").removesuffix("_total") for name in hour.metrics.fed}
    assert sorted(declared - fed - others) == []
    # What is fed now needs no test of its own any more.
    assert sorted(fed & others) == []
    assert all(sample.value >= 0 for family in hour.metrics.registry.collect() for sample in family.samples)


def test_uptime_in_prometheus_is_that_of_the_lease_record_over_a_faulty_hour(
    hour: Hour, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    # An hour in which nothing happened would prove nothing.
    assert min(hour.transitions[name] for name in ("suspect", "lost", "live", "left", "joined")) >= 2
    if which("promtool") is None or which("prometheus") is None:
        pytest.skip("prometheus: `make system` installs it")
    backfill(tmp_path, [_exposition(hour)])
    with Prometheus(tmp_path, {}) as prometheus:
        by_worker = asked(prometheus, RATIO.format("worker"), "worker")
        whole = asked(prometheus, RATIO.format(""), "")[""]
        expected_s = sum(
            asked(prometheus, "increase(orchestrator_worker_expected_seconds_total[1h])", "worker").values()
        )
        up_s = sum(asked(prometheus, "increase(orchestrator_worker_up_seconds_total[1h])", "worker").values())
    true_expected_s, true_up_s = (sum(pair[k] for pair in hour.record.values()) / 1_000 for k in (0, 1))
    present = {
        one: up / expected for one, (expected, up) in hour.record.items() if expected == HOUR_S * 1_000
    }
    assert len(present) >= 3
    differences = {
        "of all, ratio": abs(whole - true_up_s / true_expected_s),
        "of all, expected seconds": abs(expected_s - true_expected_s) / true_expected_s,
        "of all, up seconds": abs(up_s - true_up_s) / true_up_s,
        "of each worker, ratio": max(
            abs(by_worker[one] - up / expected) for one, (expected, up) in hour.record.items()
        ),
        "of each worker there for all of it, ratio": max(
            abs(by_worker[one] - ratio) for one, ratio in present.items()
        ),
    }
    for name, difference in differences.items():
        record_property(name, difference)
    assert set(by_worker) == set(hour.record)
    assert max(differences.values()) <= DIFFERENCE_MAX, differences
