"""P7 `storm-2k`: 2,000 workers lose their sessions at once and all come back.

As `sessions-2k`; then either every connection breaks while the control plane goes on (``cut``), or the control plane is
killed and started again (``restart``). Inside the clock: from the break or the kill until every worker has a new session
in which a heartbeat was acknowledged, the agents' own backoff included. A prober in a process of its own creates
tokens one after another meanwhile, as an operator would, each of which is a durable commit.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from benchmarks.crowd import ControlProcess, Crowd, Member, gathered, prepare, quantile_s
from benchmarks.p7_sessions import SESSIONS
from benchmarks.report import Case, Target, note
from benchmarks.stats import median, percentile
from orchestrator.api.v1 import operator_pb2, operator_pb2_grpc
from orchestrator.cli.client import open_channel

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

REPETITIONS = 5
CALM_S = 8.0
"""Between storms: a heartbeat and a half of everybody."""
PROBE_S = 0.02
"""Between probes: fifty a second is more than any operator does."""
PROBE_TIMEOUT_S = 30.0

BACK_TARGET = Target(15.0, "<=", "value")


@dataclass(frozen=True, slots=True)
class Probe:
    """One command of an operator: when it was sent (monotonic), and how long its answer took."""

    at_s: float
    took_ms: float


@dataclass(slots=True)
class Storm:
    """What the storms of one kind came to."""

    back_s: list[float] = field(default_factory=list)
    commit_p99_ms: list[float] = field(default_factory=list)
    probe_p99_ms: list[float] = field(default_factory=list)
    calm_p99_ms: list[float] = field(default_factory=list)


def measure(sessions: int = SESSIONS, repetitions: int = REPETITIONS, calm_s: float = CALM_S) -> list[Case]:
    """All cases."""
    with tempfile.TemporaryDirectory(prefix="orch-bench-") as name:
        folder = Path(name) / "data"
        members = prepare(folder, sessions)
        cut, restart = asyncio.run(_measure(ControlProcess(folder), members, repetitions, calm_s))
    return [*_cases(cut, "cut"), *_cases(restart, "restart")]


async def _measure(
    control: ControlProcess, members: list[Member], repetitions: int, calm_s: float
) -> tuple[Storm, Storm]:
    cut, restart = Storm(), Storm()
    control.start()
    try:
        await control.serving()
        began_s = time.monotonic()
        async with gathered(members, control) as crowd:
            await crowd.all_live(began_s)
            for _ in range(repetitions):
                await _cut(control, crowd, cut, calm_s)
            for _ in range(repetitions):
                await _restart(control, crowd, restart, calm_s)
    finally:
        control.stop()
    return cut, restart


async def _cut(control: ControlProcess, crowd: Crowd, storm: Storm, calm_s: float) -> None:
    with _prober(control) as probes:
        await asyncio.sleep(calm_s)
        before, began_s = await asyncio.to_thread(control.commits), time.monotonic()
        await crowd.cut()
        back_s = await crowd.all_live(began_s)
        after = await asyncio.to_thread(control.commits)
    storm.back_s.append(back_s)
    storm.commit_p99_ms.append(quantile_s(before, after, 0.99) * 1000)
    storm.calm_p99_ms.append(_p99_ms(probes, began_s - calm_s, began_s))
    storm.probe_p99_ms.append(_p99_ms(probes, began_s, began_s + back_s))
    note(
        f"P7 storm, cut: back in {back_s:.1f} s, commit p99 {storm.commit_p99_ms[-1]:.1f} ms,"
        f" probe p99 {storm.probe_p99_ms[-1]:.0f} ms (calm {storm.calm_p99_ms[-1]:.0f})"
    )


async def _restart(control: ControlProcess, crowd: Crowd, storm: Storm, calm_s: float) -> None:
    await asyncio.sleep(calm_s)
    began_s = time.monotonic()
    control.kill()
    control.start()
    await control.serving()
    served_s = time.monotonic() - began_s
    back_s = await crowd.all_live(began_s)
    after = await asyncio.to_thread(control.commits)
    storm.back_s.append(back_s)
    storm.commit_p99_ms.append(quantile_s({}, after, 0.99) * 1000)
    note(
        f"P7 storm, restart: serving after {served_s:.1f} s, back in {back_s:.1f} s,"
        f" commit p99 {storm.commit_p99_ms[-1]:.1f} ms"
    )


def _p99_ms(probes: list[Probe], from_s: float, until_s: float) -> float:
    return percentile([one.took_ms for one in probes if from_s <= one.at_s <= until_s], 0.99)


# ---------------------------------------------------------------- the prober


@contextlib.contextmanager
def _prober(control: ControlProcess) -> Iterator[list[Probe]]:
    """Probe for as long as this lasts; the list is filled at its end."""
    probes: list[Probe] = []
    admin = (control.folder / "admin-token").read_text().strip()
    spawning = multiprocessing.get_context("spawn")
    ours, theirs = spawning.Pipe()
    process = spawning.Process(
        target=_probe, args=(theirs, control.endpoints["grpc"], control.trust_pem, admin)
    )
    process.start()
    theirs.close()
    ours.recv()
    try:
        yield probes
        ours.send(None)
        probes.extend(ours.recv())
    finally:
        ours.close()
        process.join()


def _probe(pipe: Connection, address: str, authorities: bytes, admin: str) -> None:
    """Create tokens one after another until told to stop, and send back how it went."""
    probes: list[Probe] = []
    request = operator_pb2.CreateTokenRequest(role=operator_pb2.TOKEN_ROLE_SUPPLIER, subject="supplier-0")
    metadata = (("authorization", f"Bearer {admin}"),)
    with open_channel(address, authorities) as channel:
        stub = operator_pb2_grpc.OperatorServiceStub(channel)
        stub.CreateToken(request, metadata=metadata, timeout=PROBE_TIMEOUT_S)
        pipe.send(None)
        while not pipe.poll(PROBE_S):
            at_s = time.monotonic()
            with contextlib.suppress(grpc.RpcError):
                # One that was given up counts with all the time it took.
                stub.CreateToken(request, metadata=metadata, timeout=PROBE_TIMEOUT_S)
            probes.append(Probe(at_s, (time.monotonic() - at_s) * 1000))
    pipe.send(probes)


# ---------------------------------------------------------------- cases


def _cases(storm: Storm, kind: str) -> list[Case]:
    name = "storm-2k" if kind == "cut" else f"storm-2k-{kind}"
    cases = [
        _case(name, "s", storm.back_s, target=BACK_TARGET, remark="from the break until the last is live"),
        _case(f"{name}-commit-p99", "ms", storm.commit_p99_ms, remark="by the server's histogram"),
    ]
    if storm.probe_p99_ms:
        remark = "an operator's command, call and commit; peer: the same in the calm before"
        cases.append(
            _case(f"{name}-probe-p99", "ms", storm.probe_p99_ms, peer=storm.calm_p99_ms, remark=remark)
        )
    return cases


def _case(
    name: str,
    unit: str,
    values: list[float],
    *,
    peer: list[float] | None = None,
    target: Target | None = None,
    remark: str = "",
) -> Case:
    value = median(values)
    other = median(peer) if peer else None
    return Case(
        "P7",
        name,
        value,
        unit,
        len(values),
        min(values),
        max(values),
        other,
        value / other if other else None,
        target,
        remark=remark,
    )
