"""METRICS: what it costs to be watched, on a network of 10,000 workers that are all connected and measure their devices.

`scrape-…`: the network's page and all pages of workers, asked for one after the other over HTTP as Prometheus does, by
a thread whose own processor time is taken off. `overhead-…`: P4's submissions with everything counted, and with nothing,
in turn. `storm-…`: how long a submission takes, at a steady rate, while another process asks for all pages, the lists of
targets and some agents as fast as it is answered on sixteen connections, and while nobody asks.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast
from unittest import mock

from benchmarks import fleet, p4_durable
from benchmarks.metrics_client import Scraped, scrape
from benchmarks.report import Case, Target, compared, note
from benchmarks.stats import median, paired_ratio_interval, percentile
from orchestrator.adapters import clock
from orchestrator.adapters.garbage import spare_loaded_state
from orchestrator.adapters.metrics.exposition import packed
from orchestrator.adapters.metrics.registry import Metrics
from orchestrator.adapters.metrics.server import FRESH_S, MetricsServer
from orchestrator.adapters.metrics.token import TokenFile, own_token_file
from orchestrator.adapters.metrics.worker_pages import page_text
from orchestrator.adapters.store import SqlStore
from orchestrator.api.v1 import telemetry_pb2, worker_pb2
from orchestrator.control.connected import Session as ConnectedSession
from orchestrator.control.discovery import Discovery
from orchestrator.control.loop import Loop
from orchestrator.control.measuring.measuring import Measuring, Sources
from orchestrator.control.measuring.watching import Watcher
from orchestrator.control.planner import Planner, tick_forever
from orchestrator.control.scrapes import Scrapes
from orchestrator.control.services.workers import Sample
from orchestrator.core import messages as m
from orchestrator.core.policies import Policies
from orchestrator.core.scheduling.placement import Budget
from orchestrator.core.tallies import Tallies

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from orchestrator.control.sessions import Sessions
    from orchestrator.core.ids import WorkerId
    from orchestrator.core.state import State

SCRAPE_EVERY_S = 15.0
"""What the chart asks Prometheus to do."""

SCRAPE_TARGET = Target(500.0, "<=", "value")
CORE_TARGET = Target(5.0, "<=", "value")
OVERHEAD_TARGET = Target(3.0, "<=", "value")
RATIO_TARGET = Target(1.03, "<=", "ratio")

P99_TARGET = p4_durable.P99_TARGET
"""What a submission may take without a storm."""

CALIBRATIONS = 20_000
"""Of the clocks: tens of milliseconds."""

COUNTING = {
    Measuring: ("batch", "looked", "planned", "applied"),
    Watcher: ("committed",),
    Tallies: (
        "put_worker",
        "put_member",
        "put_cluster",
        "put_job",
        "put_lease",
        "put_receipt",
    ),
}
"""All that runs for the sake of metrics while submissions are taken."""

AGENT_LINES = 100
"""Of one answer: what an agent and its process show."""

TOWN = 100
"""Workers of a neighbourhood, which measure each other."""

PEERS = 4
RTT_US = 8_000
CERTIFICATE_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Size:
    """How large a run is."""

    workers: int = 10_000
    scrapes: int = 10
    pairs: int = 7
    """Of P4 with and without."""
    submissions: int = 5_000
    storms: int = 3
    storm_submissions: int = 2_000
    per_s: float = 200.0
    """A steady rate that leaves half of a core to the storm."""


class Connected:
    """Sessions of everybody."""

    def __init__(self, workers: Sequence[WorkerId], not_after_ms: int) -> None:
        self.connected = frozenset(workers)
        self._not_after_ms = not_after_ms

    def is_connected(self, worker_id: WorkerId) -> bool:
        """All are."""
        return worker_id in self.connected

    def certificate_not_after_ms(self, _worker_id: WorkerId) -> int | None:
        """The same of all."""
        return self._not_after_ms


@dataclass(frozen=True, slots=True)
class Pages:
    """As `orch serve` shows them."""

    metrics: Metrics
    measuring: Measuring
    loop: Loop
    sources: Sources

    async def network(self) -> bytes:
        """The network's."""
        await self.measuring.network(self.loop, self.sources)
        return self.metrics.text()

    def page_count(self) -> int:
        """Of workers."""
        return self.measuring.page_count

    async def workers(self, page: int) -> bytes:
        """One of these."""
        rows = await self.measuring.workers(page, self.loop, self.sources)
        return await asyncio.to_thread(page_text, rows)


@dataclass(frozen=True, slots=True)
class Network:
    """A control plane's loop and its metrics' door."""

    loop: Loop
    address: str
    token: TokenFile
    pages: Pages

    agents: Sequence[WorkerId]
    """Who answers scrapes."""

    @property
    def paths(self) -> list[str]:
        """All pages of workers."""
        return [f"/metrics/workers?page={number}" for number in range(self.pages.page_count())]

    @property
    def storm_paths(self) -> list[str]:
        """Some of everything: of each kind as much, so that none of them hides another."""
        count = len(self.paths)
        others = ("/metrics", "/sd/workers", "/sd/agents", "/sd/ray")
        agents = [f"/scrape/agents/{worker_id}" for worker_id in self.agents]
        every = (self.paths, [others[one % len(others)] for one in range(count)], agents[:count])
        return [path for same in zip(*every, strict=True) for path in same]


def measure(size: Size = Size()) -> list[Case]:
    """All cases."""
    with tempfile.TemporaryDirectory(prefix="orch-bench-") as name:
        folder = Path(name)
        note(f"METRICS: a state of {size.workers:,} workers")
        fleet.build(folder / "fleet.db", size.workers)
        p4_durable.checkpoint(folder / "fleet.db")
        return [*asyncio.run(_scraped(folder, size)), *_overhead(folder, size), *_stormed(folder, size)]


# ---------------------------------------------------------------- a network


@asynccontextmanager
async def _network(folder: Path) -> AsyncIterator[Network]:
    store = SqlStore(f"sqlite:///{p4_durable.fresh_copy(folder)}")
    metrics, system = Metrics(), clock.SystemClock()
    measuring = Measuring(metrics, system)
    loop = Loop(store.load(Policies()), measuring.watched(store), system, lambda _effects: None, measuring)
    spare_loaded_state()
    tasks = [asyncio.create_task(loop.run())]
    await loop.submit(m.StartControl("net_bench"))
    await measuring.begin(loop)
    workers = await loop.read(lambda state: list(state.workers))
    samples = await loop.read(_samples)
    _acquaint(loop, workers)
    planner = Planner(loop, clock.new_id, Budget(), measuring)
    tasks += [
        asyncio.create_task(work)
        for work in (planner.run(), tick_forever(loop), p4_durable.beat(loop, workers))
    ]
    sessions = cast("Sessions", Connected(workers, system.now().wall_ms + CERTIFICATE_MS))
    sources = Sources(sessions, samples, None, dict, None)
    server, token = await _serve(folder)
    pages = Pages(metrics, measuring, loop, sources)
    scrapes = Scrapes(metrics)
    agents = workers[: pages.page_count()]
    tasks += [asyncio.create_task(_answer(scrapes, worker_id)) for worker_id in agents]
    port = await server.start("127.0.0.1", 0)
    await server.open(pages, str, Discovery(loop, sessions, scrapes, pages.page_count).routes())
    try:
        yield Network(loop, f"127.0.0.1:{port}", token, pages, agents)
    finally:
        await server.close()
        for task in reversed(tasks):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        store.close()


async def _serve(folder: Path) -> tuple[MetricsServer, TokenFile]:
    token = await asyncio.to_thread(own_token_file, folder)
    return MetricsServer(token), token


async def _answer(scrapes: Scrapes, worker_id: WorkerId) -> None:
    """An agent that is asked over its session and answers at once."""
    data = packed(b"orchestrator_agent_sessions_total 3\n" * AGENT_LINES)

    async def pieces(number: int) -> AsyncIterator[telemetry_pb2.AnswerScrapeRequest]:
        yield telemetry_pb2.AnswerScrapeRequest(number=number, data=data, final=True)

    async def told(message: worker_pb2.SessionResponse) -> None:
        await scrapes.take(worker_id, pieces(message.scrape_order.number))

    await scrapes.attend(ConnectedSession(worker_id, "", "", 0, 0), told)


def _samples(state: State) -> Mapping[WorkerId, Sample]:
    """The newest measurement of everybody."""
    return {
        worker.worker_id: Sample(
            0.25,
            16 * 1024**3,
            tuple(
                telemetry_pb2.DeviceSample(
                    device_id=device.device_id,
                    utilization_ratio=0.875,
                    memory_used_bytes=20 * 1024**3,
                    power_watts=320.5,
                    temperature_celsius=71.0,
                    ecc_uncorrected=0,
                )
                for device in worker.inventory.devices
            ),
        )
        for worker in state.workers.values()
    }


def _acquaint(loop: Loop, workers: Sequence[WorkerId]) -> None:
    """Everybody measures a few of its town, so that there are groups to be shown."""
    for first in range(0, len(workers), TOWN):
        town = workers[first : first + TOWN]
        for number, one in enumerate(town):
            peers = {town[(number + step) % len(town)] for step in range(1, PEERS + 1)} - {one}
            loop.measured(one, [(peer, RTT_US) for peer in peers])


# ---------------------------------------------------------------- scrapes


async def _scraped(folder: Path, size: Size) -> list[Case]:
    network_runs: list[Scraped] = []
    worker_runs: list[Scraped] = []
    cpu_s: list[float] = []
    async with _network(folder) as network:
        token = network.token.path.read_text().strip()
        for number in range(size.scrapes + 1):
            await asyncio.sleep(FRESH_S + 0.1)
            before_s = time.process_time()
            one = await asyncio.to_thread(scrape, network.address, token, ["/metrics"])
            rest = await asyncio.to_thread(scrape, network.address, token, network.paths)
            used_s = time.process_time() - before_s - one.own_cpu_s - rest.own_cpu_s
            if number:
                # The first also looks at all groups, which is done twice a minute.
                network_runs.append(one)
                worker_runs.append(rest)
                cpu_s.append(used_s)
            note(f"METRICS scrape {number}: {(one.seconds + rest.seconds) * 1000:.0f} ms, {used_s:.3f} CPU s")
    both_ms = [(a.seconds + b.seconds) * 1000 for a, b in zip(network_runs, worker_runs, strict=True)]
    series = worker_runs[-1].series
    remark = (
        f"{series:,} series of {size.workers:,} workers on {len(network.paths)} pages,"
        f" {worker_runs[-1].size_bytes / 1e6:.1f} MB; {network_runs[-1].series:,} series of the network,"
        f" {network_runs[-1].size_bytes / 1e3:.0f} kB"
    )
    core_percent = [one / SCRAPE_EVERY_S * 100 for one in cpu_s]
    return [
        _case("scrape", both_ms, "ms", SCRAPE_TARGET, remark),
        _case("scrape-network", [one.seconds * 1000 for one in network_runs], "ms"),
        _case("scrape-core", core_percent, "%", CORE_TARGET, "of one core, at one scrape each 15 s"),
        _case("series", [float(one.series) for one in worker_runs], "series"),
    ]


def _case(
    name: str, values: Sequence[float], unit: str, target: Target | None = None, remark: str = ""
) -> Case:
    return Case(
        "METRICS",
        name,
        median(values),
        unit,
        len(values),
        min(values),
        max(values),
        target=target,
        remark=remark,
    )


# ---------------------------------------------------------------- overhead


def _overhead(folder: Path, size: Size) -> list[Case]:
    p4 = p4_durable.Size(size.workers, submissions=size.submissions)
    measured: list[p4_durable.Run] = []
    plain: list[p4_durable.Run] = []
    for number in range(size.pairs):
        # Whoever runs second has the warmer machine: in turn.
        for watched in (True, False) if number % 2 else (False, True):
            measuring = Measuring(Metrics(), clock.SystemClock()) if watched else None
            load = p4_durable.Load(p4_durable.submissions_of(size.submissions))
            run = p4_durable.run_ours(p4_durable.fresh_copy(folder), p4, load, 0.0, measuring)
            run.written = []
            (measured if watched else plain).append(run)
        note(
            f"METRICS overhead {number + 1}/{size.pairs}: {measured[-1].rate:,.0f}/s counted, {plain[-1].rate:,.0f}/s"
            f" not; {measured[-1].cpu_s:.3f} and {plain[-1].cpu_s:.3f} CPU s"
        )
    shares = [_share(folder, p4) for _ in range(size.pairs)]
    rates, plain_rates = [one.rate for one in measured], [one.rate for one in plain]
    cpus, plain_cpus = ([one.cpu_s / size.submissions * 1000 for one in side] for side in (measured, plain))
    return [
        _case(
            "overhead-share",
            shares,
            "%",
            OVERHEAD_TARGET,
            "of the processor time of P4, what all counting takes, the state's tallies with it",
        ),
        compared(
            "METRICS",
            "overhead-cpu",
            "CPU s per 1,000",
            cpus,
            plain_cpus,
            RATIO_TARGET,
            paired_ratio_interval(cpus, plain_cpus),
            "processor time of a submission with everything observed, and with no observer at all",
        ),
        compared(
            "METRICS",
            "overhead-rate",
            "1/s",
            rates,
            plain_rates,
            interval=paired_ratio_interval(rates, plain_rates),
        ),
    ]


def _nothing(_one: object, _other: object, *, queued: bool) -> None:
    """Of the shape of what counts."""


def _share(folder: Path, p4: p4_durable.Size) -> float:
    """Percent of the processor time of one run that counting took, by clocks around all that counts, less the clocks'."""
    spent_ns = calls = 0

    def timed(counting: Callable[..., None]) -> Callable[..., None]:
        def run(*arguments: object, **named: object) -> None:
            nonlocal spent_ns, calls
            calls += 1
            began_ns = time.thread_time_ns()
            counting(*arguments, **named)
            spent_ns += time.thread_time_ns() - began_ns

        return run

    nothing = timed(_nothing)
    for _ in range(CALIBRATIONS):
        nothing(None, None, queued=True)
    began_ns = time.thread_time_ns()
    for _ in range(CALIBRATIONS):
        _nothing(None, None, queued=True)
    # A call costs something without clocks around it, too.
    clock_ns = (spent_ns - (time.thread_time_ns() - began_ns)) / CALIBRATIONS

    class FromNow(Measuring):
        """Begins when the state is loaded, which counts as well."""

        async def begin(self, loop: Loop) -> None:
            nonlocal spent_ns, calls
            await super().begin(loop)
            spent_ns = calls = 0

    with contextlib.ExitStack() as patched:
        for owner, names in COUNTING.items():
            for name in names:
                patched.enter_context(mock.patch.object(owner, name, timed(getattr(owner, name))))
        measuring = FromNow(Metrics(), clock.SystemClock())
        load = p4_durable.Load(p4_durable.submissions_of(p4.submissions))
        run = p4_durable.run_ours(p4_durable.fresh_copy(folder), p4, load, 0.0, measuring)
    clocks_ns = calls * clock_ns
    # Of the whole only what lies between two readings is known to be the clocks'; the rest of them is left in it.
    return (spent_ns - clocks_ns) / (run.cpu_s * 1e9 - clocks_ns) * 100


# ---------------------------------------------------------------- a storm


def _stormed(folder: Path, size: Size) -> list[Case]:
    calm: list[float] = []
    stormy: list[float] = []
    answers: list[int] = []
    for number in range(size.storms):
        calm.append(asyncio.run(_waited(folder, size, None)))
        stormy.append(asyncio.run(_waited(folder, size, answers)))
        note(f"METRICS storm {number + 1}/{size.storms}: p99 {stormy[-1]:.1f} ms, calm {calm[-1]:.1f} ms")
    seconds = size.storm_submissions / size.per_s
    remark = (
        f"p99 of submissions at {size.per_s:g}/s; the storm had {median([float(one) for one in answers]) / seconds:,.0f}"
        " answers a second, from the same two cores"
    )
    return [
        compared(
            "METRICS",
            "storm-p99",
            "ms",
            stormy,
            calm,
            P99_TARGET,
            paired_ratio_interval(stormy, calm),
            remark,
        )
    ]


async def _waited(folder: Path, size: Size, answers: list[int] | None) -> float:
    """p99 of an acknowledgement in ms; with ``answers`` in a storm."""
    async with _network(folder) as network:
        storm = None
        if answers is not None:
            storm = await asyncio.create_subprocess_exec(
                *(
                    sys.executable,
                    "-m",
                    "benchmarks.metrics_client",
                    network.address,
                    str(network.token.path),
                ),
                *network.storm_paths,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
            await asyncio.sleep(1.0)
        waits_ms = await _submit_steadily(network.loop, size)
        if storm is not None and answers is not None:
            # Without bytes the pipe would stay open.
            said, _ = await storm.communicate(b"")
            answers.append(int(said))
    return percentile(waits_ms, 0.99)


async def _submit_steadily(loop: Loop, size: Size) -> list[float]:
    waits_ms: list[float] = []

    async def submit(command: m.SubmitJob) -> None:
        began_s = time.perf_counter()
        await loop.submit(command)
        waits_ms.append((time.perf_counter() - began_s) * 1000)

    began_s = time.perf_counter()
    tasks: list[asyncio.Task[None]] = []
    for number, command in enumerate(p4_durable.submissions_of(size.storm_submissions)):
        await asyncio.sleep(max(0.0, began_s + number / size.per_s - time.perf_counter()))
        tasks.append(asyncio.create_task(submit(command)))
    await asyncio.gather(*tasks)
    return waits_ms
