"""FAIRNESS: what tenants of equal weight get in one hour in which all of them want more than there is.

Simulated by `orchestrator.sim.replay` with the network's own scheduler, on a virtual clock; nothing is timed. The figure
is Jain's index of the GPU time that each tenant's jobs held: 1 is perfectly fair, one part in the number of tenants if
one had everything. The peer is one queue for everybody.

`jain-hour`: ten tenants with jobs of unlike sizes and lengths on 64 GPUs, as the network is set up, where a cluster waits
two minutes for its tenant's next job and counts for nobody meanwhile. `jain-hour-cold`: clusters end with their jobs.
`jain-hour-mixed`: each seed draws another world, of 3 to 20 tenants, six fleets of 64 to 128 GPUs, jobs of 1 to 16 GPUs
and of one minute to half an hour. Some of these cannot be shared out well: one job of 16 GPUs for half an hour is more
than a tenth of 64 GPUs in an hour. Nothing was tuned on them one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from benchmarks.report import Case, FigureError, Target, compared, note
from benchmarks.stats import median, paired_ratio_interval
from orchestrator.core.supply.fleet import HardwareClass
from orchestrator.sim.plots import Curve
from orchestrator.sim.replay import Options, Replay
from orchestrator.sim.traces import Machines, TracedJob

S = 1000
MINUTE_MS, HOUR_MS = 60 * S, 3_600 * S
SEEDS = range(5)
MIXED_SEEDS = range(12)
TARGET = Target(0.95, ">=", "value")

MODEL, MEMORY_GB = "V100", 32
QUEUED = 3
"""Times a fair part of the hour that each tenant has queued: all of them contend to its end."""

TENANTS = 10
FLEET = (8, 8)
"""Machines, and GPUs of each."""
SIZES = ((1,), (1, 2), (2, 4), (4, 8), (1, 2, 4, 8))
LONGEST_S = 900

MIXED_TENANTS = (3, 4, 6, 8, 10, 12, 16, 20)
MIXED_FLEETS = (FLEET, (16, 4), (32, 2), (64, 1), (16, 8), (12, 8))
MIXED_SIZES = (*SIZES, (8,), (1, 8), (2, 16), (3, 5))
MIXED_LONGEST_S = (300, 600, 900, 1800)
LONGEST_S_MIN, SHORTEST_S = 120, 60


@dataclass(frozen=True, slots=True)
class World:
    """A fleet, and all its tenants' jobs, there from the beginning."""

    fleet: tuple[int, int]
    jobs: tuple[TracedJob, ...]


@dataclass(frozen=True, slots=True)
class Hour:
    """Jain's index of all of it, and of what lay before the end of each minute."""

    jain: float
    by_minute: tuple[float, ...]


def measure() -> list[Case]:
    """All cases."""
    return [
        _beside_one_queue("jain-hour", "ours", Options()),
        _beside_one_queue("jain-hour-cold", "ours, clusters end with their jobs", Options(warm_ms=0)),
        _mixed(MIXED_SEEDS),
    ]


def _beside_one_queue(name: str, curve: str, options: Options) -> Case:
    ours, peer = [], []
    for seed in SEEDS:
        ours.append(an_hour(world(seed), replace(options, seed=seed)))
        peer.append(an_hour(world(seed), replace(options, seed=seed, policy="fifo")))
        note(f"{name} seed {seed}: {ours[-1].jain:.3f}, one queue {peer[-1].jain:.3f}")
    values, others = [one.jain for one in ours], [one.jain for one in peer]
    case = compared("FAIRNESS", name, "", values, others, TARGET, paired_ratio_interval(values, others))
    sides = [(curve, ours)] if options.warm_ms == 0 else [(curve, ours), ("one queue for everybody", peer)]
    return replace(case, curves=tuple(_over_the_hour(label, hours) for label, hours in sides))


def _mixed(seeds: Sequence[int]) -> Case:
    values = []
    for seed in seeds:
        values.append(an_hour(mixed_world(seed), Options(seed=seed)).jain)
        note(f"jain-hour-mixed seed {seed}: {values[-1]:.3f}")
    beyond = sum(value >= TARGET.bound for value in values)
    remark = f"{beyond} of {len(values)} worlds reach {TARGET.bound}"
    least, most = min(values), max(values)
    name = "jain-hour-mixed"
    return Case("FAIRNESS", name, median(values), "", len(values), least, most, target=TARGET, remark=remark)


def _over_the_hour(name: str, hours: Sequence[Hour]) -> Curve:
    """The median over the seeds."""
    minutes = min(len(one.by_minute) for one in hours)
    points = [(float(at + 1), median([one.by_minute[at] for one in hours])) for at in range(minutes)]
    return Curve(name, points)


def world(seed: int) -> World:
    """Ten tenants of unlike jobs on 64 GPUs."""
    return World(FLEET, _jobs(Random(seed), TENANTS, FLEET, SIZES, LONGEST_S))


def mixed_world(seed: int) -> World:
    """Any number of tenants on any fleet."""
    chance = Random(f"mixed {seed}")
    tenants, fleet = chance.choice(MIXED_TENANTS), chance.choice(MIXED_FLEETS)
    return World(fleet, _jobs(chance, tenants, fleet, MIXED_SIZES, chance.choice(MIXED_LONGEST_S)))


def _jobs(
    chance: Random,
    tenants: int,
    fleet: tuple[int, int],
    kinds: Sequence[tuple[int, ...]],
    longest_s: int,
) -> tuple[TracedJob, ...]:
    jobs = []
    for number in range(tenants):
        sizes = chance.choice(kinds)
        most_s = chance.randrange(LONGEST_S_MIN, longest_s)
        wanted_ms = QUEUED * fleet[0] * fleet[1] * HOUR_MS // tenants
        while wanted_ms > 0:
            gpus, length_s = chance.choice(sizes), chance.randrange(SHORTEST_S, most_s)
            wanted_ms -= gpus * length_s * S
            # Each comes as a whole, so that one queue serves one tenant after another.
            jobs.append((number, chance.random(), f"t{number}", gpus, length_s))
    return tuple(TracedJob(0, tenant, gpus, length_s * S) for _, _, tenant, gpus, length_s in sorted(jobs))


def an_hour(drawn: World, options: Options) -> Hour:
    """Simulate it."""
    machines, gpus = drawn.fleet
    fleet = (Machines(machines, gpus, MODEL, MEMORY_GB, HardwareClass.DATACENTER),)
    replay = Replay(fleet, drawn.jobs, replace(options, until_ms=HOUR_MS))
    by_minute: list[float] = []
    going = True
    while going:
        going = replay.step()
        known = replay.tally.jain()
        while known is not None and (len(by_minute) + 1) * MINUTE_MS <= replay.now_ms:
            by_minute.append(known)
    found = replay.tally.jain()
    if found is None:
        raise FigureError("the tenants did not contend")
    return Hour(found, tuple(by_minute))
