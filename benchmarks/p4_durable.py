"""P4 `durable`: how many submissions a second one control plane takes for good; `durable-bundles`: how many machines of
gangs it places for good.

64 callers, each with one submission under way, against a state of 10,000 workers: the real loop, planner and store
on a SQLite file; agents are silent (they heartbeat, and report nothing), effects go nowhere. Inside the clock: from
the first submission's entry into the inbox to the last acknowledgement, with all planning that goes on meanwhile.
Outside: HTTP, authentication, loading the state. In `durable-bundles` each submission wants a gang of eight machines of
one zone and a head beside them, and the clock runs until the commit by which the last gang has its machines.

The peer writes what was just recorded (the same rows and events, as bytes, grouped into the same transactions) into
a copy of the same database through Python's own sqlite3 with the same pragmas, and decides nothing.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import resource
import shutil
import sqlite3
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import fleet, peer_sqlite
from benchmarks.report import Case, FigureError, Target, compared, note
from benchmarks.stats import median, paired_ratio_interval, percentile
from orchestrator.adapters import clock
from orchestrator.adapters.garbage import spare_loaded_state
from orchestrator.adapters.store import SqlStore, Transaction
from orchestrator.control.loop import Loop
from orchestrator.control.planner import Planner, tick_forever
from orchestrator.core import messages as m
from orchestrator.core.ids import JobId
from orchestrator.core.jobs import JobRequest, Requirements
from orchestrator.core.policies import Policies
from orchestrator.core.scheduling.placement import Budget

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.control.measuring.measuring import Measuring
    from orchestrator.core.ids import TenantId, WorkerId

REPETITIONS = 5
ADDED_MS = 5.0
"""What a disk that really flushes takes for a commit; those of virtual machines often do not flush."""

PLACED_S = 60.0
"""Once all are acknowledged, many times what placing them takes."""

LOOK_S = 0.005

HEARTBEATS_PER_S = 20
"""Slices of the fleet's heartbeats: every worker is heard once in five seconds."""

GANG = 8
"""Machines of one GPU each; the head goes to a ninth."""

RATE_TARGET = Target(1_000.0, ">=", "value")
BUNDLES_TARGET = Target(4_000.0, ">=", "value")
RATIO_TARGET = Target(0.5, ">=", "ratio")
P99_TARGET = Target(50.0, "<=", "value")


ONE_GPU = Requirements()
"""What a plain `ray job submit` comes to."""


@dataclass(frozen=True, slots=True)
class Size:
    """How large a run is."""

    workers: int = 10_000
    submitters: int = 64
    submissions: int = 5_000
    """Some seconds of work, and fewer than there are free GPUs: every job is placed."""
    gangs: int = 1_500
    """As many again; with their heads, fewer than there are head slots."""


@dataclass(frozen=True, slots=True)
class Load:
    """What the callers send in one run."""

    commands: Sequence[m.SubmitJob]
    bundles: int = 0
    """Machines that each has to be given before the run is over; 0: it is over with the last acknowledgement."""


@dataclass(slots=True)
class Run:
    """What one repetition came to. Rates in submissions or machines per second, times in ms."""

    rate: float = 0.0
    latencies_ms: list[float] = field(default_factory=list, repr=False)
    cpu_s: float = 0.0
    written: list[Transaction] = field(default_factory=list, repr=False)


class RecordingStore(SqlStore):
    """The real store, which also remembers what it wrote; ``added_s`` makes each commit take that much longer."""

    def __init__(self, url: str, added_s: float) -> None:
        super().__init__(url)
        self.added_s = added_s
        self.written: list[Transaction] = []
        self.placed = 0
        """Jobs that have their machines for good, and since when all of these do."""
        self.placed_s = 0.0

    def write(self, transaction: Transaction) -> None:
        super().write(transaction)
        if self.added_s:
            time.sleep(self.added_s)
        self.written.append(transaction)
        placed = sum(isinstance(event, m.AttemptPlaced) for event in transaction.events)
        if placed:
            self.placed += placed
            self.placed_s = time.perf_counter()


def measure(size: Size = Size(), repetitions: int = REPETITIONS) -> list[Case]:
    """All cases, with the disk as it is and with ADDED_MS to each commit."""
    with tempfile.TemporaryDirectory(prefix="orch-bench-") as name:
        folder = Path(name)
        note(f"P4: a state of {size.workers:,} workers")
        _build(folder, size, fleet.ZONES)
        cases = []
        for suffix, added_ms in (("", 0.0), (f"-{ADDED_MS:g}ms", ADDED_MS)):
            single = Load(submissions_of(size.submissions))
            ours, peer = _alternate(folder, size, single, repetitions, added_ms / 1000, suffix)
            cases.extend(_cases(ours, peer, size, suffix))
        note(f"P4: the same {size.workers:,} workers in one zone, for gangs of {GANG}")
        _build(folder, size, 1)
        gangs = Load(submissions_of(size.gangs, Requirements(gpus=GANG, gpus_per_worker=1)), GANG)
        ours, peer = _alternate(folder, size, gangs, repetitions, 0.0, "-bundles")
        return [*cases, *_cases_of_bundles(ours, peer, size)]


def _build(folder: Path, size: Size, zones: int) -> None:
    for path in folder.glob("fleet.db*"):
        path.unlink()
    fleet.build(folder / "fleet.db", size.workers, zones=zones)
    checkpoint(folder / "fleet.db")


def _alternate(
    folder: Path, size: Size, load: Load, repetitions: int, added_s: float, suffix: str
) -> tuple[list[Run], list[Run]]:
    ours: list[Run] = []
    peer: list[Run] = []
    for number in range(repetitions):
        mine = run_ours(fresh_copy(folder), size, load, added_s)
        groups = peer_sqlite.groups_of(fresh_copy(folder), mine.written)
        other = _peer(fresh_copy(folder), groups, len(load.commands) * max(1, load.bundles), added_s)
        note(
            f"P4 durable{suffix} {number + 1}/{repetitions}: {mine.rate:,.0f}/s, peer {other.rate:,.0f}/s,"
            f" p99 {percentile(mine.latencies_ms, 0.99):.1f} ms, {len(groups)} transactions"
        )
        mine.written = []
        ours.append(mine)
        peer.append(other)
    return ours, peer


def _cases_of_bundles(ours: Sequence[Run], peer: Sequence[Run], size: Size) -> list[Case]:
    rates, peer_rates = [one.rate for one in ours], [one.rate for one in peer]
    cpus, peer_cpus = ([one.cpu_s / (size.gangs * GANG) * 1000 for one in side] for side in (ours, peer))
    interval = paired_ratio_interval(rates, peer_rates)
    remark = f"{median(rates) / GANG:,.0f} gangs of {GANG} machines a second, each with a head besides"
    return [
        compared("P4", "durable-bundles", "1/s", rates, peer_rates, BUNDLES_TARGET, interval, remark),
        compared("P4", "durable-bundles-cpu", "CPU s per 1,000", cpus, peer_cpus),
    ]


def _cases(ours: Sequence[Run], peer: Sequence[Run], size: Size, suffix: str) -> list[Case]:
    rates, peer_rates = [one.rate for one in ours], [one.rate for one in peer]
    p99s, peer_p99s = ([percentile(one.latencies_ms, 0.99) for one in side] for side in (ours, peer))
    p50_ms = median([median(one.latencies_ms) for one in ours])
    cpus, peer_cpus = ([one.cpu_s / size.submissions * 1000 for one in side] for side in (ours, peer))
    interval = paired_ratio_interval(rates, peer_rates)
    per_s = "1/s"
    return [
        compared("P4", f"durable{suffix}", per_s, rates, peer_rates, RATE_TARGET),
        compared("P4", f"durable{suffix}-ratio", per_s, rates, peer_rates, RATIO_TARGET, interval),
        compared(
            "P4",
            f"durable{suffix}-p99",
            "ms",
            p99s,
            peer_p99s,
            P99_TARGET,
            remark=f"our median acknowledgement took {p50_ms:.1f} ms; the peer's is one transaction",
        ),
        compared(
            "P4",
            f"durable{suffix}-cpu",
            "CPU s per 1,000",
            cpus,
            peer_cpus,
            remark="ours includes the submitters, which share the process",
        ),
    ]


# ---------------------------------------------------------------- ours


def run_ours(
    database: Path, size: Size, load: Load, added_s: float, measuring: Measuring | None = None
) -> Run:
    """One repetition on a database of its own; with ``measuring`` everything is counted, else nothing is."""
    store = RecordingStore(f"sqlite:///{database}", added_s)
    # What an earlier repetition had spared from collection is long gone; each starts as a fresh process does.
    gc.unfreeze()
    gc.collect()
    try:
        return asyncio.run(_drive(store, size, load, measuring))
    finally:
        store.close()


async def _drive(store: RecordingStore, size: Size, load: Load, measuring: Measuring | None) -> Run:
    state = store.load(Policies())
    spare_loaded_state()
    watched = store if measuring is None else measuring.watched(store)
    loop = Loop(state, watched, clock.SystemClock(), lambda _effects: None, measuring)
    planner = Planner(loop, clock.new_id, Budget(), measuring)
    tasks = [asyncio.create_task(loop.run())]
    await loop.submit(m.StartControl("net_bench"))
    if measuring is not None:
        await measuring.begin(loop)
    workers = await loop.read(lambda state: list(state.workers))
    tasks += [asyncio.create_task(work) for work in (planner.run(), tick_forever(loop), beat(loop, workers))]
    store.written.clear()
    run, commands = Run(), load.commands
    cpu_s, began_s = _cpu_s(), time.perf_counter()
    await asyncio.gather(
        *(_submitter(loop, commands[first :: size.submitters], run) for first in range(size.submitters))
    )
    ended_s = time.perf_counter()
    if load.bundles:
        ended_s = await _placed(store, len(commands), ended_s + PLACED_S)
    run.rate = len(commands) * max(1, load.bundles) / (ended_s - began_s)
    run.cpu_s = _cpu_s() - cpu_s
    run.written = list(store.written)
    for task in reversed(tasks):
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    return run


async def _submitter(loop: Loop, commands: Sequence[m.SubmitJob], run: Run) -> None:
    """One caller: the next submission when the last is acknowledged."""
    for command in commands:
        began_s = time.perf_counter()
        await loop.submit(command)
        run.latencies_ms.append((time.perf_counter() - began_s) * 1000)


async def _placed(store: RecordingStore, count: int, deadline_s: float) -> float:
    """Wait until so many jobs have their machines for good; since when they do."""
    while store.placed < count:
        if time.perf_counter() > deadline_s:
            raise FigureError(f"only {store.placed} of {count} gangs had their machines after {PLACED_S:g} s")
        await asyncio.sleep(LOOK_S)
    return store.placed_s


async def beat(loop: Loop, workers: list[WorkerId]) -> None:
    """The heartbeats of a fleet whose agents are silent otherwise."""
    slices = HEARTBEATS_PER_S * 5
    number = 0
    while True:
        for worker_id in workers[number % slices :: slices]:
            loop.heard(worker_id)
        number += 1
        await asyncio.sleep(1 / HEARTBEATS_PER_S)


def submissions_of(count: int, wanted: Requirements = ONE_GPU) -> list[m.SubmitJob]:
    """As of `ray job submit`; without a key of ours it wants one GPU of any class."""
    tenants = fleet.tenant_ids()
    return [_submission(number, tenants[number % len(tenants)], wanted) for number in range(count)]


def _submission(number: int, tenant_id: TenantId, wanted: Requirements) -> m.SubmitJob:
    request = JobRequest(
        entrypoint="python train.py --epochs 10",
        runtime_env_json=json.dumps({"env_vars": {"RUN": str(number)}}),
        metadata=(("job_submission_id", f"raysubmit_{number:016x}"), ("name", f"run-{number}")),
        packages=(),
        requirements=wanted,
    )
    digest = hashlib.sha256(str(number).encode()).hexdigest()
    return m.SubmitJob(JobId(clock.new_id("job")), tenant_id, f"raysubmit_{number:016x}", request, digest)


# ---------------------------------------------------------------- the peer


def _peer(database: Path, groups: Sequence[peer_sqlite.Group], submissions: int, added_s: float) -> Run:
    gc.collect()
    with peer_sqlite.opened(database) as connection:
        cpu_s, began_s = _cpu_s(), time.perf_counter()
        latencies_ms = [peer_sqlite.write(connection, group, added_s) * 1000 for group in groups]
        elapsed_s, used_s = time.perf_counter() - began_s, _cpu_s() - cpu_s
    return Run(submissions / elapsed_s, latencies_ms, used_s)


# ---------------------------------------------------------------- files and clocks


def fresh_copy(folder: Path) -> Path:
    """A copy of the fleet's database, and nothing left of the last one."""
    copy = folder / "run.db"
    for path in folder.glob("run.db*"):
        path.unlink()
    shutil.copyfile(folder / "fleet.db", copy)
    return copy


def checkpoint(database: Path) -> None:
    """Bring everything into the one file, so that copying it copies all."""
    connection = sqlite3.connect(database)
    connection.execute("PRAGMA walcheckpoint(TRUNCATE)")
    connection.close()


def _cpu_s() -> float:
    """Processor time of this process, all threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
