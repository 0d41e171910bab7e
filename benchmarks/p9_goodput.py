"""P9 `goodput-…` and FAIRNESS `jain-hour`: machines that come and go, and tenants that all want everything.

Both are simulations by `orchestrator.sim.replay` with the network's own scheduler, on a virtual clock; nothing is timed.

P9: the spot instances of p3.csv as machines of one GPU, and more long jobs than machines. A cluster takes 20 s to form, a
checkpoint 10 s. Ours hears of a machine's going 30 s before, as owners' terms promise, and checkpoints every half hour
besides. Goodput is work that counted ÷ GPU time that was there. Beside it: periodic checkpoints without a notice, at the
period that Young's rule gives for the trace's own mean time between losses; and a bound that nobody can pass who knows
all: each stay of a machine pays one formation, and one checkpoint if it ends before the trace does.

FAIRNESS: ten tenants of equal weight with unlike jobs, all with more queued than they can get, for one hour on 64 GPUs;
Jain's index of the GPU time that their jobs held. `jain-hour` as the network is set up, where a cluster waits two minutes
for its tenant's next job and counts for nobody meanwhile; `jain-hour-cold` with clusters that end with their jobs. The
peer is one queue for everybody.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random

from benchmarks.report import Case, FigureError, Target, compared, note
from benchmarks.stats import paired_ratio_interval
from orchestrator.core.fleet import HardwareClass, Liveness
from orchestrator.core.ids import WorkerId
from orchestrator.sim.replay import Options, Replay
from orchestrator.sim.replay_report import report
from orchestrator.sim.traces import Machines, TracedJob, read_availability

SPOT = Path(__file__).parent / "data" / "spot" / "p3.csv"
SEEDS = range(10)
FAIR_SEEDS = range(5)
S = 1000
HOUR_MS = 3_600 * S

CHECKPOINT_MS = 10 * S
FORMATION_MS = 20 * S
NOTICE_MS = 30 * S
SAFETY_MS = 1_800 * S
LONG_MS = 100 * HOUR_MS
"""Longer than the trace: no job ends in it."""

MODEL, MEMORY_GB = "V100", 32
TENANTS = 10
FAIR_MACHINES, FAIR_GPUS = 8, 8
QUEUED = 3
"""Times a fair part of the hour that each tenant has queued: all of them contend to its end."""

Stays = dict[WorkerId, list[tuple[int, int | None]]]
"""When each machine came and went; None: it stayed to the end."""


def measure() -> list[Case]:
    """All cases."""
    return [*_goodput(), _fairness("jain-hour", Options()), _fairness("jain-hour-cold", Options(warm_ms=0))]


def _goodput() -> list[Case]:
    availability = read_availability(SPOT)
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
        f"goodput on {SPOT.name}: {most} machines, {len(SEEDS)} seeds; the peer's period is {period_ms / S:.0f} s"
    )
    ours, peer, bound = [], [], []
    for seed in SEEDS:
        share, stays = goodput(replace(options, seed=seed), availability)
        ours.append(share)
        peer.append(goodput(replace(periodic, seed=seed), availability)[0])
        bound.append(clairvoyant(stays, until_ms))
    remark = f"work that counted ÷ GPU time there; checkpoint {CHECKPOINT_MS / S:.0f} s, notice {NOTICE_MS / S:.0f} s"
    return [
        compared(
            "P9",
            "goodput-clairvoyant",
            "of GPU time",
            ours,
            bound,
            Target(0.9, ">=", "ratio"),
            paired_ratio_interval(ours, bound),
            remark,
        ),
        compared(
            "P9", "goodput-periodic", "of GPU time", ours, peer, None, paired_ratio_interval(ours, peer)
        ),
    ]


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
    return useful_ms / there_ms


def youngs_period_ms(availability: tuple[tuple[int, int], ...]) -> int:
    """√(2 · checkpoint · mean time between losses of one machine), as the whole trace has it."""
    there_ms = losses = 0
    for (at_ms, count), (next_ms, next_count) in pairwise(availability):
        there_ms += count * (next_ms - at_ms)
        losses += max(0, count - next_count)
    return round(math.sqrt(2 * CHECKPOINT_MS * there_ms / max(1, losses)))


def _fairness(case: str, options: Options) -> Case:
    note(
        f"{case}: {TENANTS} tenants for an hour on {FAIR_MACHINES * FAIR_GPUS} GPUs, {len(FAIR_SEEDS)} seeds"
    )
    ours, peer = [], []
    for seed in FAIR_SEEDS:
        ours.append(jain_of_an_hour(replace(options, seed=seed)))
        peer.append(jain_of_an_hour(replace(options, seed=seed, policy="fifo")))
    target = Target(0.95, ">=", "value")
    return compared("FAIRNESS", case, "", ours, peer, target, paired_ratio_interval(ours, peer))


def jain_of_an_hour(options: Options) -> float:
    """Of tenants whose jobs are unlike: sizes and lengths by tenant."""
    chance = Random(options.seed)
    jobs = []
    for number in range(TENANTS):
        sizes = chance.choice([(1,), (1, 2), (2, 4), (4, 8), (1, 2, 4, 8)])
        longest_s = chance.randrange(120, 900)
        wanted_ms = QUEUED * FAIR_MACHINES * FAIR_GPUS * HOUR_MS // TENANTS
        while wanted_ms > 0:
            gpus, length_s = chance.choice(sizes), chance.randrange(60, longest_s)
            wanted_ms -= gpus * length_s * S
            # Each comes as a whole, so that one queue serves one tenant after another.
            jobs.append((number, chance.random(), f"t{number}", gpus, length_s))
    traced = [TracedJob(0, tenant, gpus, length_s * S) for _, _, tenant, gpus, length_s in sorted(jobs)]
    fleet = (Machines(FAIR_MACHINES, FAIR_GPUS, MODEL, MEMORY_GB, HardwareClass.DATACENTER),)
    replay = Replay(fleet, traced, replace(options, until_ms=HOUR_MS))
    while replay.step():
        pass
    found = report(replay)
    if found.fairness_jain is None:
        raise FigureError("the tenants did not contend")
    return found.fairness_jain
