"""P3: how fast a decision is, beside Ray's placement groups and beside a bare numpy kernel.

`bundles-N`: gangs of N machines of one GPU each, all queued beforehand. Inside our clock are the plans (filter, score,
choice, explanation), the decision that each still holds, and applying all its events to the state in memory; no disk, no
RPC, no machine that is told. The peer is Ray's own placement groups of N bundles on one node and its GCS. Its clock holds
Ray's RPCs between driver, GCS and raylet, and the raylet's own reservation, which ours does not: what is compared is how
many gangs a second either can admit before anything else of it is the bottleneck. It is given its best: all bundles on
one node that has room for all groups, and of two ways, one group after another or all created before the first is waited
for, the quicker one of each pair of runs. Giving back is in neither clock.

`kernel`: a thousand one-GPU decisions over 10,000 machines, beside a numpy best fit over the same columns.
`decision-…`: one plan for one job, of mixed requests, over fleets of 1,000 to 100,000 machines of ten GPUs.
`queue-1m`: the same over 1,000 machines while a million jobs wait; and one of them explained.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks import fleet
from benchmarks.report import Case, FigureError, Target, compared, note
from benchmarks.stats import median, paired_ratio_interval, percentile
from orchestrator.adapters import clock
from orchestrator.core import messages as m
from orchestrator.core.decide import handle
from orchestrator.core.ids import ClusterId, DeviceId, JobId, TenantId, WorkerId
from orchestrator.core.jobs import Job, JobRequest, JobStatus, Requirements
from orchestrator.core.policies import Policies
from orchestrator.core.queries.explain import explain
from orchestrator.core.queries.queue import Queue
from orchestrator.core.scheduling.offers import OPEN, Column
from orchestrator.core.scheduling.placement import Budget, JobNeed
from orchestrator.core.scheduling.plan import plan
from orchestrator.core.state import State
from orchestrator.core.supply.catalogue import GIB, MODELS
from orchestrator.core.supply.fleet import Device, DeviceKind, HardwareClass
from orchestrator.sim.plots import Curve

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from orchestrator.core.scheduling.placement import Need, Served
    from orchestrator.core.supply.fleet import Inventory

REPETITIONS = 5
GANGS = {1: 400, 8: 100, 40: 24}
"""Of one repetition: some tenths of a second for ours, one or two for the peer."""

MODES = ("each", "batch")
CLOCKS = (
    "ours: plans, decisions and events, in memory; the peer: RPCs of driver, GCS and raylet besides, in memory, too;"
    " of its two ways (one group after another, all at once) the quicker one"
)

TARGETS = {8: 10.0, 40: 50.0}
GANG_FLEET = 2_000
KERNEL_FLEET, KERNEL_DECISIONS = 10_000, 1_000
SIZES = (1_000, 10_000, 100_000)
DECISION_FLEET = 10_000
DECISIONS = 200
GPUS_EACH = 10
QUEUED, QUEUE_TENANTS, QUEUE_FLEET = 1_000_000, 100, 1_000
MODELS_USED = ("RTX3060", "RTX3090", "RTX4090", "H100")
WISHES = (
    Requirements(),
    Requirements(gpus=4, gpu_model="RTX3090"),
    Requirements(gpus=8, min_gpu_memory_gb=20),
    Requirements(gpus=32, gpu_model="RTX4090"),
    Requirements(gpus=64, min_gpu_memory_gb=8),
)


def measure() -> list[Case]:
    """All cases."""
    return [*_bundles(), _kernel(), *_decisions(), *_queue()]


class Each:
    """One need, whatever becomes of it."""

    def __init__(self, need: Need) -> None:
        self._need = need

    def __iter__(self) -> Iterator[Need]:
        yield self._need

    def settled(self, need: Need, outcome: Served) -> None:
        """Nothing follows."""


def state_of(workers: int, gpus: int, heads: int = 40) -> State:
    """A fleet of live, idle machines of four models, and head hosts beside them."""
    state, now = State(Policies()), clock.SystemClock().now()
    fleet.remember(state, fleet.commands(100), now)
    pattern = state.workers[fleet.worker_id_of(next(n for n in range(100) if fleet.inventory(n).slots == 1))]
    host = next(worker for worker in state.workers.values() if worker.head_host)
    for number in range(workers):
        offer = _inventory(pattern.inventory, number, gpus)
        name = f"wkr_{number:06d}"
        state.put(replace(pattern, worker_id=WorkerId(name), name=name, statement_key=name, inventory=offer))
    for number in range(heads):
        name = f"hst_{number:06d}"
        near = replace(host.inventory, zone=pattern.inventory.zone)
        state.put(replace(host, worker_id=WorkerId(name), name=name, statement_key=name, inventory=near))
    for number in range(100):
        worker_id = fleet.worker_id_of(number)
        if not state.workers[worker_id].head_host:
            state.remove_worker(worker_id)
    state.take_touched()
    return state


def _inventory(like: Inventory, number: int, gpus: int) -> Inventory:
    model = MODELS_USED[number % len(MODELS_USED)] if gpus > 1 else MODELS_USED[2]
    memory_bytes = MODELS[model].memory_gb * GIB
    devices = tuple(
        Device(DeviceId(f"{number}-{index}"), DeviceKind.GPU, model, memory_bytes, simulated=True)
        for index in range(gpus)
    )
    return replace(like, devices=devices, slots=gpus, hardware_class=HardwareClass.CONSUMER)


def _submit(state: State, count: int, wanted: Requirements) -> None:
    request = JobRequest("python train.py", "{}", (), (), wanted)
    tenants = fleet.tenant_ids()
    for number in range(count):
        name = f"job_{number:07d}"
        state.put(_job(name, tenants[number % len(tenants)], request, number))
    state.take_touched()


def _job(name: str, tenant_id: TenantId, request: JobRequest, at_ms: int) -> Job:
    return Job(
        job_id=JobId(name),
        tenant_id=tenant_id,
        submission_id=name,
        request_sha256="",
        request=request,
        status=JobStatus.PENDING,
        message="",
        submitted_at_ms=at_ms,
        started_at_ms=None,
        ended_at_ms=None,
        attempts=0,
        starts=0,
        attempt_id=None,
        not_before_ms=0,
        stop_requested=False,
        driver_exit_code=None,
        avoid=(),
        formation_failures=0,
    )


# ---------------------------------------------------------------- gangs beside Ray


def _bundles() -> list[Case]:
    cases = []
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("peer_placement_groups.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as peer:
        if _answer(peer) != "ready":
            raise FigureError("Ray did not start for the placement groups")
        for bundles, gangs in GANGS.items():
            note(f"gangs of {bundles}: {gangs} of them on either side, {REPETITIONS} times")
            ours, theirs = [], []
            _ask(peer, bundles, 2, MODES[0])
            for _ in range(REPETITIONS):
                ours.append(gangs / _admit(bundles, gangs))
                theirs.append(gangs / min(_ask(peer, bundles, gangs, mode) for mode in MODES))
            target = Target(TARGETS[bundles], ">=", "ratio") if bundles in TARGETS else None
            interval = paired_ratio_interval(ours, theirs)
            case = compared("P3", f"bundles-{bundles}", "/s", ours, theirs, target, interval, CLOCKS)
            curves = [
                Curve(name, ((bundles, median(side)),), ((min(side), max(side)),))
                for name, side in (("ours, in memory", ours), ("Ray's placement groups, with RPCs", theirs))
            ]
            cases.append(replace(case, curves=tuple(curves)))
        if peer.stdin is not None:
            peer.stdin.close()
    return cases


def _answer(peer: subprocess.Popen[str]) -> str:
    return "" if peer.stdout is None else peer.stdout.readline().strip()


def _ask(peer: subprocess.Popen[str], bundles: int, count: int, mode: str) -> float:
    if peer.stdin is None:
        raise FigureError("the peer has no input")
    peer.stdin.write(f"{bundles} {count} {mode}\n")
    peer.stdin.flush()
    said = _answer(peer)
    if not said:
        raise FigureError("Ray ended while it made placement groups")
    return float(said)


def _admit(bundles: int, gangs: int) -> float:
    """Seconds until all gangs of a new queue are admitted."""
    state = state_of(GANG_FLEET, 1)
    _submit(state, gangs, Requirements(gpus=bundles))
    now = clock.SystemClock().now()
    admitted = 0
    gc.collect()
    began_s = time.perf_counter()
    while admitted < gangs:
        at_ms = state.time_ms(now)
        made = plan(state, Queue(state, at_ms), at_ms, Budget())
        if not made.placements:
            raise FigureError(f"only {admitted} of {gangs} gangs of {bundles} found a place")
        ids = tuple(ClusterId(f"cl_{admitted + index}") for index in range(len(made.placements)))
        handle(state, m.ApplyPlan(made, ids), now)
        admitted += len(made.placements)
    return time.perf_counter() - began_s


# ---------------------------------------------------------------- one decision


class Many:
    """So many needs for one GPU."""

    def __init__(self, count: int, wanted: Requirements) -> None:
        self._needs = [JobNeed(JobId(f"j{number}"), TenantId("ten_0000"), wanted) for number in range(count)]

    def __iter__(self) -> Iterator[Need]:
        return iter(self._needs)

    def settled(self, need: Need, outcome: Served) -> None:
        """Nothing follows."""


def _kernel() -> Case:
    note(f"{KERNEL_DECISIONS} decisions over {KERNEL_FLEET} machines beside a numpy best fit")
    state = state_of(KERNEL_FLEET, GPUS_EACH)
    wanted = Requirements(gpu_model="RTX4090", min_gpu_memory_gb=20)
    ours, theirs = [], []
    for _ in range(REPETITIONS):
        needs = Many(KERNEL_DECISIONS, wanted)
        began_s = time.perf_counter()
        made = plan(state, needs, 0, Budget(placements_max=KERNEL_DECISIONS))
        ours.append((time.perf_counter() - began_s) * 1e6 / KERNEL_DECISIONS)
        if len(made.placements) != KERNEL_DECISIONS:
            raise FigureError("the kernel's fleet is too small for its decisions")
        theirs.append(_best_fit(state, wanted) * 1e6 / KERNEL_DECISIONS)
    return compared(
        "P3", "kernel", "µs", ours, theirs, Target(2.0, "<=", "ratio"), paired_ratio_interval(ours, theirs)
    )


def _best_fit(state: State, wanted: Requirements) -> float:
    """Seconds of the bare kernel: mask the columns, take the row with the fewest free devices, count it down."""
    offers = state.offers
    free, slots = offers[Column.FREE].copy(), offers[Column.SLOTS].copy()
    model = offers.models.find(wanted.gpu_model or "")
    began_s = time.perf_counter()
    for _ in range(KERNEL_DECISIONS):
        fits = (
            (offers[Column.STATE] == OPEN)
            & (offers[Column.MODEL] == model)
            & (offers[Column.DEVICE_BYTES] >= wanted.min_gpu_memory_gb * GIB)
            & (free >= wanted.gpus)
            & (slots > 0)
        )
        row = int(np.argmin(np.where(fits, free, np.iinfo(np.int64).max)))
        free[row] -= wanted.gpus
        slots[row] -= 1
    return time.perf_counter() - began_s


def _decisions() -> list[Case]:
    cases = []
    for workers in SIZES:
        note(f"one decision over {workers} machines of {GPUS_EACH} GPUs")
        state = state_of(workers, GPUS_EACH)
        times_ms = _timed_plans(state)
        name = "decision-100k" if workers == DECISION_FLEET else f"decision-{workers}-workers"
        target = Target(10.0, "<=", "value") if workers == DECISION_FLEET else None
        remark = f"median {median(times_ms):.2f} ms over {workers * GPUS_EACH} GPUs; the value is the 99th percentile"
        p99 = percentile(times_ms, 0.99)
        curves = (
            Curve("median", ((workers, median(times_ms)),)),
            Curve("99th percentile", ((workers, p99),)),
        )
        least, most = min(times_ms), max(times_ms)
        cases.append(
            Case(
                "P3", name, p99, "ms", len(times_ms), least, most, target=target, remark=remark, curves=curves
            )
        )
        del state
        gc.collect()
    return cases


def _timed_plans(state: State) -> list[float]:
    times_ms = []
    gc.collect()
    for number in range(DECISIONS):
        need = JobNeed(JobId(f"j{number}"), TenantId("ten_0000"), WISHES[number % len(WISHES)])
        began_s = time.perf_counter()
        made = plan(state, Each(need), 0, Budget())
        times_ms.append((time.perf_counter() - began_s) * 1000)
        if not made.placements:
            raise FigureError(f"no place for {need.requirements}")
    return times_ms


def _queue() -> list[Case]:
    note(f"{QUEUED} queued jobs of {QUEUE_TENANTS} tenants; this takes a minute to build")
    state = state_of(QUEUE_FLEET, 1)
    # Nothing of what waits fits: the longest way through a queue.
    _submit(state, QUEUED, Requirements(gpus=1, gpu_model="H100"))
    gc.collect()
    gc.freeze()
    decided_ms, explained_ms = [], []
    job_ids: Sequence[JobId] = [queue[len(queue) // 2][2] for queue in state.queues.values()]
    for number in range(DECISIONS):
        began_s = time.perf_counter()
        plan(state, Queue(state, 0), 0, Budget())
        decided_ms.append((time.perf_counter() - began_s) * 1000)
        began_s = time.perf_counter()
        explain(state, state.jobs[job_ids[number % len(job_ids)]], 0)
        explained_ms.append((time.perf_counter() - began_s) * 1000)
    gc.unfreeze()
    return [
        Case(
            "P3",
            name,
            percentile(times_ms, 0.99),
            "ms",
            len(times_ms),
            min(times_ms),
            max(times_ms),
            target=Target(bound, "<=", "value"),
            remark=f"median {median(times_ms):.2f} ms; the value is the 99th percentile",
        )
        for name, times_ms, bound in (
            ("queue-1m", decided_ms, 10.0),
            ("queue-1m-explain", explained_ms, 100.0),
        )
    ]
