"""P7 `sessions-2k`: what 2,000 connected workers cost one control plane.

`orch serve` in a process of its own, on SQLite, with the default policies; 2,000 agents in this process, each on a
connection of its own with its own worker's certificate, beating every five seconds and measuring every fifteen.
Counted is the server's process: what its memory grew by from serving nobody to serving all, its processor time at rest,
and how often anybody became suspect. The agents' own cost is not counted, but it shares the machine.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.crowd import ControlProcess, Member, gathered, prepare
from benchmarks.report import Case, Target, note
from benchmarks.stats import median

SESSIONS = 2_000
REPETITIONS = 3
SETTLE_S = 10.0
"""Two heartbeats: allocations of connecting have come to rest."""
BARE_KB = 107.0
"""A bare grpc.aio session with mutual TLS on the server, as measured on such a machine before."""

NONE_TARGET = Target(0.0, "<=", "value")


@dataclass(frozen=True, slots=True)
class Plan:
    """How many, and how long they are watched: the last repetition for long, the others to see the spread."""

    sessions: int = SESSIONS
    brief_s: float = 30.0
    long_s: float = field(default_factory=lambda: float(os.environ.get("BENCH_SESSIONS_S", "300")))


@dataclass(frozen=True, slots=True)
class Run:
    """What one repetition came to."""

    connected_s: float
    session_kb: float
    core: float
    watched_s: float
    suspicions: int


def measure(plan: Plan | None = None, repetitions: int = REPETITIONS) -> list[Case]:
    """All cases."""
    chosen = plan or Plan()
    with tempfile.TemporaryDirectory(prefix="orch-bench-") as name:
        folder = Path(name) / "data"
        members = prepare(folder, chosen.sessions)
        runs = asyncio.run(_measure(ControlProcess(folder), members, chosen, repetitions))
    return _cases(runs)


async def _measure(control: ControlProcess, members: list[Member], plan: Plan, repetitions: int) -> list[Run]:
    # All in one event loop: gRPC keeps what it has of the first one.
    watched_s = [plan.brief_s] * (repetitions - 1) + [plan.long_s]
    return [await _run(control, members, each_s) for each_s in watched_s]


async def _run(control: ControlProcess, members: list[Member], watched_s: float) -> Run:
    control.start()
    try:
        await control.serving()
        alone_bytes = control.usage.memory_info().rss
        began_s = time.monotonic()
        async with gathered(members, control) as crowd:
            connected_s = await crowd.all_live(began_s)
            await asyncio.sleep(SETTLE_S)
            session_kb = (control.usage.memory_info().rss - alone_bytes) / len(members) / 1000
            before, cpu_s, from_s = control.suspicions(), control.cpu_s, time.monotonic()
            await asyncio.sleep(watched_s)
            core = (control.cpu_s - cpu_s) / (time.monotonic() - from_s)
            suspicions = control.suspicions() - before
        note(
            f"P7 sessions: all in {connected_s:.1f} s, {session_kb:.0f} kB each, {core:.2f} of a core"
            f" over {watched_s:g} s, {suspicions} suspected"
        )
        return Run(connected_s, session_kb, core, watched_s, suspicions)
    finally:
        control.stop()


def _cases(runs: list[Run]) -> list[Case]:
    suspicions = float(sum(run.suspicions for run in runs))
    watched_s, longest_s = sum(run.watched_s for run in runs), max(run.watched_s for run in runs)
    return [
        _case("sessions-2k-memory", "kB each", [run.session_kb for run in runs], peer=BARE_KB),
        _case("sessions-2k-core", "of a core", [run.core for run in runs]),
        _case("sessions-2k-connect", "s", [run.connected_s for run in runs]),
        Case(
            "P7",
            "sessions-2k-expiries",
            suspicions,
            "workers",
            len(runs),
            suspicions,
            suspicions,
            target=NONE_TARGET,
            remark=f"in {watched_s:.0f} s, the longest of them {longest_s:.0f} s without a break",
        ),
    ]


def _case(name: str, unit: str, values: list[float], peer: float | None = None) -> Case:
    value = median(values)
    ratio = value / peer if peer is not None else None
    return Case("P7", name, value, unit, len(values), min(values), max(values), peer, ratio)
