"""P9 `goodput-…`: machines that come and go under jobs that are longer than any of them stays.

Simulated by `orchestrator.sim.replay` with the network's own scheduler, on a virtual clock; nothing is timed. The spot
instances of p3.csv (or of `BENCH_SPOT`) are machines of one GPU, and there are more long jobs than machines.
A cluster takes 20 s to form, a checkpoint 10 s. Ours hears of a machine's going 30 s before, as owners' terms promise,
and checkpoints every half hour besides. Goodput is work that counted ÷ GPU time that was there. Beside it: periodic
checkpoints without a notice, at the period that Young's rule gives for the trace's own mean time between losses; and a
bound that nobody can pass who knows all: each stay of a machine pays one formation, and one checkpoint if it ends before
the trace does.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from benchmarks.own import own_files
from benchmarks.report import Case, FigureError, Target, compared, note
from benchmarks.stats import median, paired_ratio_interval
from orchestrator.core.ids import WorkerId
from orchestrator.core.supply.fleet import HardwareClass, Liveness
from orchestrator.sim.plots import Curve
from orchestrator.sim.replay import Options, Replay, ReplayError
from orchestrator.sim.replay_report import report
from orchestrator.sim.traces import Machines, TracedJob, TraceError, read_availability

SPOT = Path(__file__).parent / "data" / "spot" / "p3.csv"
SEEDS = range(10)
S = 1000
HOUR_MS = 3_600 * S

CHECKPOINT_MS = 10 * S
FORMATION_MS = 20 * S
NOTICE_MS = 30 * S
SAFETY_MS = 1_800 * S
LONG_MS = 100 * HOUR_MS
"""Longer than the trace: no job ends in it."""

MODEL, MEMORY_GB = "V100", 32
SPOT_VARIABLE = "BENCH_SPOT"

Stays = dict[WorkerId, list[tuple[int, int | None]]]
"""When each machine came and went; None: it stayed to the end."""


def measure() -> list[Case]:
    """All cases."""
    path = own_files(SPOT_VARIABLE, (SPOT,))[0]
    try:
        return _goodput(path.name, read_availability(path))
    except (TraceError, ReplayError) as error:
        raise FigureError(str(error)) from error


def _goodput(name: str, availability: tuple[tuple[int, int], ...]) -> list[Case]:
    until_ms = availability[-1][0]
    most = max(count for _, count in availability)
    options = Options(
        until_ms=until_ms,
        formation_ms=FORMATION_MS,
        checkpoint_every_ms=SAFETY_MS,
        checkpoint_cost_ms=CHECKPOINT_MS,
        notice_ms=NOTICE_MS,
    )
    period_ms = youngs_period_ms(availability)
    periodic = replace(options, checkpoint_every_ms=period_ms, notice_ms=0)
    note(
        f"goodput on {name}: {most} machines, {len(SEEDS)} seeds; the peer's period is {period_ms / S:.0f} s"
    )
    ours, peer, bound = [], [], []
    for seed in SEEDS:
        share, stays = goodput(replace(options, seed=seed), availability)
        ours.append(share)
        peer.append(goodput(replace(periodic, seed=seed), availability)[0])
        bound.append(clairvoyant(stays, until_ms))
    remark = f"work that counted ÷ GPU time there; checkpoint {CHECKPOINT_MS / S:.0f} s, notice {NOTICE_MS / S:.0f} s"
    target, interval = Target(0.9, ">=", "ratio"), paired_ratio_interval(ours, bound)
    first = compared("P9", "goodput-clairvoyant", "of GPU time", ours, bound, target, interval, remark)
    interval = paired_ratio_interval(ours, peer)
    second = compared("P9", "goodput-periodic", "of GPU time", ours, peer, None, interval)
    sides = (ours, peer, bound)
    points = [(float(number), median(side)) for number, side in enumerate(sides)]
    curve = Curve("goodput", points, [(min(side), max(side)) for side in sides], joined=False)
    return [replace(first, curves=(curve,)), second]


def goodput(options: Options, availability: tuple[tuple[int, int], ...]) -> tuple[float, Stays]:
    """Of one run, with the machines' stays in it."""
    most = max(count for _, count in availability)
    fleet = (Machines(most, 1, MODEL, MEMORY_GB, HardwareClass.DATACENTER),)
    jobs = [TracedJob(0, f"t{number % 4}", 1, LONG_MS) for number in range(most + 8)]
    replay = Replay(fleet, jobs, options, availability)
    stays: Stays = {worker_id: [] for worker_id in replay.house.machines}
    while True:
        _note_stays(replay, stays)
        if not replay.step():
            break
    found = report(replay)
    if found.jobs_done:
        raise FigureError("a job ended: the work was to last for longer than the trace")
    return found.gpu_hours_useful / found.gpu_hours_available, stays


def _note_stays(replay: Replay, stays: Stays) -> None:
    for worker_id, known in stays.items():
        here = replay.house.state.workers[worker_id].liveness is Liveness.LIVE
        inside = bool(known) and known[-1][1] is None
        if here and not inside:
            known.append((replay.now_ms, None))
        elif inside and not here:
            known[-1] = (known[-1][0], replay.now_ms)


def clairvoyant(stays: Stays, until_ms: int) -> float:
    """The goodput that nobody passes: less is lost by no plan, whatever it knows."""
    there_ms = useful_ms = 0
    for known in stays.values():
        for came_ms, went_ms in known:
            length_ms = (until_ms if went_ms is None else went_ms) - came_ms
            lost_ms = FORMATION_MS + (0 if went_ms is None else CHECKPOINT_MS)
            there_ms += length_ms
            useful_ms += max(0, length_ms - lost_ms)
    if not there_ms:
        raise FigureError("no machine of the spot trace is ever there; give one with instances in it")
    return useful_ms / there_ms


def youngs_period_ms(availability: tuple[tuple[int, int], ...]) -> int:
    """√(2 · checkpoint · mean time between losses of one machine), as the whole trace has it."""
    there_ms = losses = 0
    for (at_ms, count), (next_ms, next_count) in pairwise(availability):
        there_ms += count * (next_ms - at_ms)
        losses += max(0, count - next_count)
    return round(math.sqrt(2 * CHECKPOINT_MS * there_ms / max(1, losses)))
