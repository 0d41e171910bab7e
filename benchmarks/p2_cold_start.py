"""P2 cold start: from `ray job submit` to the first line of the user's output, with no cluster there before.

Ours: the unmodified CLI against the gateway; the cluster is formed for the job. The peer: a script that starts the same
nodes by `ray start` with the flags and environment of our own nodes (`cold_peer`), and then the same CLI against their
head. Both sides are measured from the start of their first process to the moment when the line comes out of the CLI.

- `cold-3`: a head host and three machines of one simulated GPU, no isolation. `cold-1`: one machine with its own head.
- `-box`: ours with boxes and overlay. The peer is the same as without, bare and in turn.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cold_network import STAGES, ColdNetwork, cold_network
from benchmarks.cold_peer import NodeFailedError, peer_cluster
from benchmarks.report import Case, FigureError, Target, compared, note
from benchmarks.stats import median, paired_ratio_interval
from examples.demo.network import BIN, Machine, child_environment

PAIRS = 5
ENTRYPOINT = ("date", "+%s%N")
"""Its first line says when it was written."""
STAMP = re.compile(rb"^(?P<nanoseconds>[0-9]{19})\s*$")
CLI_TIMEOUT_S = 300.0
FAILED_MAX = 3
"""On a machine with ten times more to do than it can, Ray gives up some starts: such a pair measures that."""

RUNTIMES_DIR = Path(__file__).resolve().parents[1] / ".venv" / "runtimes"
"""Where tests keep theirs: building one is RUNTIME's figure, not this one's."""

HEAD_HOST = Machine("head-1", "operator-heads", "cpu", slots=0, head_slots=1)
SUPPLIERS = ("north", "south", "west")
WORKERS = tuple(
    Machine(f"consumer-{number}", f"supplier-{name}", "consumer", "RTX4090x1")
    for number, name in enumerate(SUPPLIERS, start=1)
)


@dataclass(frozen=True, slots=True)
class Shape:
    """One case: the machines, how many members beside a head of its own (0: a head that works), and the target."""

    case: str
    machines: tuple[Machine, ...]
    members: int
    boxed: bool
    target: float


SHAPES = (
    Shape("cold-3", (HEAD_HOST, *WORKERS), 3, boxed=False, target=1.15),
    Shape("cold-3-box", (HEAD_HOST, *WORKERS), 3, boxed=True, target=1.3),
    Shape("cold-1", WORKERS[:1], 0, boxed=False, target=1.15),
    Shape("cold-1-box", WORKERS[:1], 0, boxed=True, target=1.3),
)


@dataclass(frozen=True, slots=True)
class Run:
    """One cold start, in seconds since its first process began: when the line was written, when it was seen."""

    seen_s: float
    stages: Mapping[str, float]


def measure(shapes: Sequence[Shape] = SHAPES, pairs: int = PAIRS) -> list[Case]:
    """Each shape in a network of its own, a pair that does not count first. Raises FigureError."""
    cases = []
    for shape in shapes:
        runs, failed = _pairs(shape, pairs)
        ours, peers = [ours for ours, _ in runs], [peer for _, peer in runs]
        for line in (*_breakdown("ours", ours), *_breakdown("peer", peers)):
            note(f"P2 {shape.case} {line}")
        ours_s, peer_s = [one.seen_s for one in ours], [one.seen_s for one in peers]
        interval = paired_ratio_interval(ours_s, peer_s)
        target = Target(shape.target, "<=", "ratio")
        remark = f"{failed} pairs were taken again, as Ray did not start a node in them" if failed else ""
        cases.append(compared("P2", shape.case, "s", ours_s, peer_s, target, interval, remark))
    return cases


def _pairs(shape: Shape, pairs: int) -> tuple[list[tuple[Run, Run]], int]:
    """The pairs, and how many were taken again.

    The first one is left out: it reads Ray's files into memory, and may build the boxes' runtime.
    """
    runs: list[tuple[Run, Run]] = []
    failed = 0
    with cold_network(shape.machines, RUNTIMES_DIR if shape.boxed else None) as (network, environment):
        while len(runs) <= pairs:
            number = len(runs)
            try:
                runs.append(_pair(shape, network, environment, peer_first=number % 2 == 1))
            except NodeFailedError as error:
                failed += 1
                note(f"P2 {shape.case}: a pair is taken again: {error}")
                if failed > FAILED_MAX:
                    raise
                continue
            ours, peer = runs[-1]
            text = f"ours {ours.seen_s:.2f} s, by script {peer.seen_s:.2f} s"
            note(f"P2 {shape.case} {number or 'left out'}: {text}")
            for side, run in (("ours", ours), ("by script", peer)):
                passed = ", ".join(
                    f"{name} {at_s:.1f}" for name, at_s in sorted(run.stages.items(), key=_at_s)
                )
                note(f"  {side}: {passed}")
    return runs[1:], failed


def _pair(
    shape: Shape, network: ColdNetwork, environment: Mapping[str, str], *, peer_first: bool
) -> tuple[Run, Run]:
    """Who goes first changes from pair to pair. Raises NodeFailedError."""
    if peer_first:
        peer = _peer_run(shape)
        return _our_run(shape, network, environment), peer
    ours = _our_run(shape, network, environment)
    return ours, _peer_run(shape)


def _our_run(shape: Shape, network: ColdNetwork, environment: Mapping[str, str]) -> Run:
    """From an empty network back to an empty network."""
    network.wait_gone()
    version = network.last_version()
    metadata = {"orch.gpus": str(max(1, shape.members))}
    # Owner and job have to consent to none; to Ray itself the keys mean nothing.
    metadata |= {} if shape.boxed else {"orch.isolation": "none"}
    began_s = time.time()
    stages = _submit(environment, metadata)
    stages |= network.stages(version)
    network.wait_gone()
    if network.clusters(version) > 1:
        raise NodeFailedError("the network needed a second try to form the cluster")
    return _run(began_s, stages)


def _peer_run(shape: Shape) -> Run:
    with peer_cluster(shape.members) as cluster:
        began_s = time.time()
        cluster.start_head()
        stages = {"head up": time.time()}
        cluster.start_members()
        stages["members up"] = time.time()
        stages |= _submit(cluster.environment, {"orch.gpus": str(max(1, shape.members))})
    return _run(began_s, stages)


def _at_s(stage: tuple[str, float]) -> float:
    return stage[1]


def _run(began_s: float, stages: Mapping[str, float]) -> Run:
    since = {name: at_s - began_s for name, at_s in stages.items()}
    return Run(since["line seen"], since)


def _submit(environment: Mapping[str, str], metadata: Mapping[str, str]) -> dict[str, float]:
    """One whole `ray job submit`: when its job wrote the line, and when the line was seen, by the wall clock."""
    process = subprocess.Popen(
        [str(BIN / "ray"), "job", "submit", "--metadata-json", json.dumps(metadata), "--", *ENTRYPOINT],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=child_environment(environment),
    )
    stages: dict[str, float] = {}
    said: list[bytes] = []
    assert process.stdout is not None  # noqa: S101 -- PIPE was asked for
    for line in process.stdout:
        said.append(line)
        found = STAMP.match(line)
        if found:
            stages = {"line written": int(found["nanoseconds"]) / 1e9, "line seen": time.time()}
    try:
        code = process.wait(CLI_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise FigureError("`ray job submit` does not end") from None
    if code != 0 or not stages:
        tail = b" / ".join(line.strip() for line in said[-5:]).decode("utf-8", "replace")
        raise FigureError(f"`ray job submit` exited with {code}: {tail}")
    return stages


def _breakdown(side: str, runs: Sequence[Run]) -> list[str]:
    """A line for each stage: median seconds since the beginning, and since the stage before."""
    names = [name for name in (*STAGES, "line written", "line seen") if name in runs[0].stages]
    lines, before_s = [], 0.0
    for name in names:
        at_s = median([run.stages[name] for run in runs if name in run.stages])
        lines.append(f"{side}: {name:<26} at {at_s:6.2f} s, +{at_s - before_s:.2f}")
        before_s = at_s
    return lines
