"""P1 warm submit: what the network adds to a job on a cluster that is already up.

Both sides are Ray's unmodified client with an address and a token; one is given our gateway, the other the dashboard
of the very head that the gateway's job will run on. The cluster is one simulated machine with its own head, warm,
with nothing running when a run begins; no package on either side, no entrypoint resources, the driver beside the head.

- `cli-ratio`: wall time of `ray job submit -- date +%s%N`, from starting its process to its exit.
- `accept-ms`: what the gateway adds between sending POST /api/jobs/ and its answer, on an open connection.
- `exit-ms`: what it adds between the CLI's printing of the job's last log byte and its exit, in the same runs as
  `cli-ratio`; `exit-written-ms` counts from the moment the driver wrote that byte, which it tells itself.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.report import Case, FigureError, Target, compared, note
from benchmarks.stats import median, paired_difference_interval, paired_ratio_interval
from benchmarks.warm_network import CONSENT, Warm, Way, warm_cluster
from examples.demo.network import BIN, child_environment

PAIRS = 15
ENTRYPOINT = ("date", "+%s%N")
"""A no-op that says when it wrote its last byte."""

CLI_TIMEOUT_S = 120.0
STAMP = re.compile(rb"^(?P<nanoseconds>[0-9]{19})\s*$")

RATIO_TARGET = Target(1.10, "<=", "ratio")
ACCEPT_TARGET = Target(15.0, "<=", "value")
EXIT_TARGET = Target(100.0, "<=", "value")


@dataclass(frozen=True, slots=True)
class CliRun:
    """One `ray job submit`, in seconds."""

    wall_s: float
    exit_after_seen_s: float
    """From the job's last log byte on the CLI's standard output to the CLI's exit."""
    exit_after_written_s: float
    """From the driver's writing of that byte."""


def measure(pairs: int = PAIRS) -> list[Case]:
    """Start the network, measure alternating pairs, end the network."""
    with warm_cluster(" ".join(ENTRYPOINT)) as warm:
        for way in (warm.ours, warm.peer):
            _run_cli(warm, way)
        runs: list[tuple[CliRun, CliRun]] = []
        accepts: list[tuple[float, float]] = []
        for number in range(pairs):
            ours, peer = _alternate(warm, number)
            runs.append((ours, peer))
            accepts.append(_accept_pair(warm, number))
            note(
                f"P1 {number + 1}/{pairs}: CLI {ours.wall_s:.2f} s, directly {peer.wall_s:.2f} s;"
                f" accepted in {accepts[-1][0] * 1000:.1f} and {accepts[-1][1] * 1000:.1f} ms"
            )
    return [*_cli_cases(runs), _added("accept-ms", *_columns(accepts), ACCEPT_TARGET)]


def _alternate(warm: Warm, number: int) -> tuple[CliRun, CliRun]:
    """A pair; who goes first changes from pair to pair."""
    if number % 2:
        peer = _run_cli(warm, warm.peer)
        return _run_cli(warm, warm.ours), peer
    ours = _run_cli(warm, warm.ours)
    return ours, _run_cli(warm, warm.peer)


def _accept_pair(warm: Warm, number: int) -> tuple[float, float]:
    ways = (warm.peer, warm.ours) if number % 2 else (warm.ours, warm.peer)
    seconds = {}
    for way in ways:
        warm.settle()
        # The connection may have rested for long: what is measured is a submission, not a reconnection.
        way.ask("GET", "/api/version")
        submission_id, seconds[way.name] = way.submit(" ".join(ENTRYPOINT))
        way.wait_ended(submission_id)
    return seconds[warm.ours.name], seconds[warm.peer.name]


def _run_cli(warm: Warm, way: Way) -> CliRun:
    """One whole `ray job submit` from rest. Raises FigureError where it fails or does not show the job's output."""
    warm.settle()
    began_s = time.perf_counter()
    process = subprocess.Popen(
        [str(BIN / "ray"), "job", "submit", "--metadata-json", json.dumps(CONSENT), "--", *ENTRYPOINT],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=child_environment(way.environment),
    )
    seen_s = written_s = None
    said: list[bytes] = []
    assert process.stdout is not None  # noqa: S101 -- PIPE was asked for
    for line in process.stdout:
        said.append(line)
        found = STAMP.match(line)
        if found:
            seen_s = time.perf_counter()
            written_s = seen_s - (time.time() - int(found["nanoseconds"]) / 1e9)
    try:
        code = process.wait(CLI_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise FigureError(f"`ray job submit` through {way.name} does not end") from None
    ended_s = time.perf_counter()
    if code != 0 or seen_s is None or written_s is None:
        tail = b" / ".join(line.strip() for line in said[-5:]).decode("utf-8", "replace")
        raise FigureError(f"`ray job submit` through {way.name} exited with {code}: {tail}")
    return CliRun(ended_s - began_s, ended_s - seen_s, ended_s - written_s)


# ---------------------------------------------------------------- cases


def _cli_cases(runs: Sequence[tuple[CliRun, CliRun]]) -> list[Case]:
    ours_s, peer_s = _columns([(ours.wall_s, peer.wall_s) for ours, peer in runs])
    seen = _columns([(ours.exit_after_seen_s, peer.exit_after_seen_s) for ours, peer in runs])
    written = _columns([(ours.exit_after_written_s, peer.exit_after_written_s) for ours, peer in runs])
    return [
        compared(
            "P1",
            "cli-ratio",
            "s",
            ours_s,
            peer_s,
            RATIO_TARGET,
            paired_ratio_interval(ours_s, peer_s),
        ),
        _added("exit-ms", *seen, EXIT_TARGET),
        _added("exit-written-ms", *written, None),
    ]


def _added(case: str, ours_s: Sequence[float], peer_s: Sequence[float], target: Target | None) -> Case:
    """What ours adds to the peer, pair by pair, in ms."""
    differences = [(ours - peer) * 1000 for ours, peer in zip(ours_s, peer_s, strict=True)]
    ours_ms, peer_ms = median(ours_s) * 1000, median(peer_s) * 1000
    return Case(
        "P1",
        case,
        median(differences),
        "ms",
        len(differences),
        min(differences),
        max(differences),
        peer_ms,
        ours_ms / peer_ms,
        target,
        paired_difference_interval([one * 1000 for one in ours_s], [one * 1000 for one in peer_s]),
        f"ours {ours_ms:.1f} ms, the peer {peer_ms:.1f} ms; median, min, max and interval are of the difference",
    )


def _columns(pairs: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Ours and the peer's, apart."""
    return [ours for ours, _ in pairs], [peer for _, peer in pairs]
