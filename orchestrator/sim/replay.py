"""A trace of jobs on a fleet, decided by the core, in discrete events: what `orch simulate` runs.

Arrivals, ends, formed clusters, machines that come and go; after each instant a plan. A job works for its traced
duration, in stretches between checkpoints; when a machine of it goes, all since the last checkpoint is done again.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from enum import IntEnum
from random import Random
from typing import TYPE_CHECKING, assert_never

from orchestrator.core import messages as m
from orchestrator.core.clusters import ClusterPhase, ClusterPolicy
from orchestrator.core.ids import ClusterId, JobId, TenantId, WorkerId, member_id_of
from orchestrator.core.jobs import Outcome, Requirements
from orchestrator.core.tenancy.fairness import WEIGHT_DEFAULT
from orchestrator.sim.obedient import Obedient, Ways
from orchestrator.sim.replay_tally import Samples, Tally, TenantTally

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from orchestrator.core.ids import AttemptId
    from orchestrator.sim.traces import Machines, TracedJob

POLICIES = ("fair", "fifo", "no-backfill")
"""The product's; one queue for everybody by priority and age; and the product's without lending what it keeps."""

TENANTS_MAX = 10_000
UNFINISHED_MAX = 1_000_000
"""Jobs that wait or run at once: about 2 GB of memory."""

POSSIBLE_MAX = 10_000
"""Different requests of which it is remembered whether the whole fleet could hold them."""


class ReplayError(ValueError):
    """A trace that does not go with its fleet or is too large; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Options:
    """How the machines and jobs behave. Milliseconds."""

    policy: str = "fair"
    seed: int = 0
    speed: float = 1.0
    """Arrivals come so many times as fast; durations stay."""
    until_ms: int | None = None
    formation_ms: int = 20_000
    warm_ms: int = ClusterPolicy().idle_teardown_ms
    """How long a cluster waits for its tenant's next job."""
    checkpoint_every_ms: int = 600_000
    """Work between two checkpoints; 0: there are none."""
    checkpoint_cost_ms: int = 10_000
    notice_ms: int = 0
    """How long before it goes a machine says so; its job then writes a last checkpoint, just in time."""
    ways: Ways = Ways()


class Kind(IntEnum):
    """What happens; of one instant in this order."""

    FINISH = 0
    TICK = 1
    MACHINES = 2
    NOTICE = 3
    FORMED = 4
    WAKE = 5


@dataclass(slots=True)
class Running:
    """A job that has arrived and not ended."""

    tenant: TenantTally
    gpus: int
    possible: bool
    submit_ms: int
    left_ms: int
    """Work that no checkpoint holds yet."""
    waited: bool = False
    """Its first start was counted."""
    held: bool = False
    started_ms: int | None = None
    ends_ms: int = 0
    """When this try is done."""
    warned_ms: int | None = None
    """When it heard that a machine of it goes."""
    tries: int = 0
    """Tells the end of this try from that of one before."""


@dataclass(order=True, slots=True)
class _Event:
    at_ms: int
    kind: Kind
    number: int
    name: str = field(compare=False, default="")
    count: int = field(compare=False, default=0)


class Replay:
    """One simulation. ``step`` until it says that nothing is left."""

    def __init__(
        self,
        fleet: Sequence[Machines],
        trace: Iterable[TracedJob],
        options: Options,
        availability: Sequence[tuple[int, int]] = (),
    ) -> None:
        machines = sum(one.count for one in fleet)
        most = max((count for _, count in availability), default=0)
        if most > machines:
            raise ReplayError(
                f"up to {most} machines are available, but the fleet has {machines}; give a larger fleet"
            )
        self.options = options
        self._chance = Random(options.seed)
        backfill = options.policy != "no-backfill"
        self.house = Obedient(fleet, options.formation_ms, options.warm_ms, options.ways, backfill=backfill)
        self.tally = Tally(Samples(Random(options.seed)), Samples(Random(options.seed)))
        self.unfinished: dict[JobId, Running] = {}
        self._fleet = fleet
        self._trace: Iterator[TracedJob] = iter(trace)
        self._next = next(self._trace, None)
        self._events: list[_Event] = []
        self._number = 0
        self._queues: dict[str, TenantId] = {}
        """Who each tenant of the trace is to the core."""
        self._possible: dict[Requirements, bool] = {}
        self._present = list(self.house.machines)
        self._absent: list[WorkerId] = []
        self._going: list[WorkerId] = []
        """Those of the present that said so, in order."""
        self._ended: list[AttemptId] = []
        self._closed: list[ClusterId] = []
        if availability:
            self._set_machines(availability[0][1])
            self._announce(availability)
        self._take_stock()

    @property
    def now_ms(self) -> int:
        """Virtual time."""
        return self.house.now_ms

    def step(self) -> bool:
        """Everything of the next instant, and the plan after it. False when nothing is left that could happen."""
        at_ms = self._next_ms()
        until_ms = self.options.until_ms
        if at_ms is None or (until_ms is not None and at_ms > until_ms):
            if until_ms is not None and (at_ms is not None or self.unfinished):
                self._move_to(max(until_ms, self.now_ms))
            return False
        self._move_to(at_ms)
        again = False
        while self._events and self._events[0].at_ms <= at_ms:
            event = heapq.heappop(self._events)
            self._handle(event)
            again = again or event.kind is Kind.WAKE
        while self._next is not None and self._arrival_ms(self._next) <= at_ms:
            self._arrive(self._next)
            self._next = next(self._trace, None)
        self._follow()
        self.house.plan(again=again)
        self._follow()
        self._take_stock()
        if self.tally.goodput.due(self.now_ms):
            self.tally.fairness.add(self.now_ms, self.tally.jain())
            self.tally.goodput.add(self.now_ms, self.goodput())
        return True

    def useful_gpu_ms(self) -> int:
        """Work that counted until now, that of running jobs included as if nothing happened to them."""
        running = (one for one in self.unfinished.values() if one.started_ms is not None)
        return self.tally.useful_gpu_ms + sum(
            self._progress_ms(one, self.now_ms) * one.gpus for one in running
        )

    def goodput(self) -> float | None:
        """Work that counted over GPU time held, until now; None where nothing was held."""
        held_ms = self.tally.held_gpu_ms
        return self.useful_gpu_ms() / held_ms if held_ms else None

    # ------------------------------------------------------------ time

    def _next_ms(self) -> int | None:
        if self._next is None and not self.unfinished:
            return None
        times = [self._events[0].at_ms] if self._events else []
        if self._next is not None:
            times.append(self._arrival_ms(self._next))
        return min(times, default=None)

    def _arrival_ms(self, job: TracedJob) -> int:
        return round(job.submit_ms / self.options.speed)

    def _move_to(self, at_ms: int) -> None:
        self.tally.move_to(at_ms)
        self.house.now_ms = at_ms

    def _schedule(self, at_ms: int, kind: Kind, name: str = "", count: int = 0) -> None:
        self._number += 1
        heapq.heappush(self._events, _Event(at_ms, kind, self._number, name, count))

    def _take_stock(self) -> None:
        tally = self.tally
        tally.available_gpus = sum(self.house.gpus_on[one] for one in self._present)
        tally.free_gpus = self.house.free_gpus() if tally.waiting else 0

    def _announce(self, availability: Sequence[tuple[int, int]]) -> None:
        before = availability[0][1]
        for at_ms, count in availability:
            self._schedule(at_ms, Kind.MACHINES, count=count)
            if self.options.notice_ms and count < before:
                notice_ms = max(0, at_ms - self.options.notice_ms)
                self._schedule(notice_ms, Kind.NOTICE, count=before - count)
            before = count

    # ------------------------------------------------------------ what happens

    def _handle(self, event: _Event) -> None:
        match event.kind:
            case Kind.FINISH:
                self._finish(JobId(event.name), event.count)
            case Kind.TICK:
                self.house.do(m.Tick())
            case Kind.MACHINES:
                self._set_machines(event.count)
            case Kind.NOTICE:
                self._warn(event.count)
            case Kind.FORMED:
                cluster_id = ClusterId(event.name)
                if self.house.form(cluster_id, event.count):
                    attempt_id = self.house.state.attempt_in.get(cluster_id)
                    if attempt_id is not None:
                        self._start(attempt_id)
            case Kind.WAKE:
                pass
            case _:
                assert_never(event.kind)
        self._follow()

    def _arrive(self, job: TracedJob) -> None:
        tally = self.tally
        if len(self.unfinished) >= UNFINISHED_MAX:
            raise ReplayError(
                f"{UNFINISHED_MAX:,} jobs wait at once; give a larger fleet, a lower --speed or an earlier --until"
            )
        known = tally.tenants.get(job.tenant)
        if known is None:
            known = self._meet(job)
        wanted = Requirements(
            gpus=job.gpus,
            gpu_model=job.model or None,
            min_gpu_memory_gb=job.min_memory_gb,
            gpus_per_worker=job.gpus_per_worker,
            region=job.region,
            max_price=job.max_price,
            max_rtt_ms=job.max_rtt_ms,
        )
        job_id = JobId(f"job_{tally.arrived:010d}")
        one = Running(known, job.gpus, self._could_hold(wanted), self.now_ms, job.duration_ms)
        self.unfinished[job_id] = one
        tally.arrived += 1
        tally.rounded += job.rounded
        tally.waiting += 1
        known.waiting += one.possible
        self.house.submit(job_id, self._queues[job.tenant], wanted, job.priority, job.time_limit_ms)

    def _meet(self, job: TracedJob) -> TenantTally:
        tenants = self.tally.tenants
        if len(tenants) >= TENANTS_MAX:
            raise ReplayError(f"more than {TENANTS_MAX:,} tenants; put small ones together in the trace")
        one_queue = self.options.policy == "fifo"
        if not one_queue:
            self._queues[job.tenant] = self.house.tenant(f"tenant-{len(tenants)}", job.weight)
        elif tenants:
            self._queues[job.tenant] = next(iter(self._queues.values()))
        else:
            self._queues[job.tenant] = self.house.tenant("everybody", 0)
        known = tenants[job.tenant] = TenantTally(job.weight or WEIGHT_DEFAULT)
        return known

    def _finish(self, job_id: JobId, tries: int) -> None:
        one = self.unfinished.get(job_id)
        if one is None or one.tries != tries or one.started_ms is None:
            return
        del self.unfinished[job_id]
        tally = self.tally
        tally.useful_gpu_ms += one.left_ms * one.gpus
        tally.done += 1
        tally.completions.add(self.now_ms - one.submit_ms)
        self._let_go(one)
        self.house.finish(job_id)

    def _start(self, attempt_id: AttemptId) -> None:
        state = self.house.state
        job_id = state.attempts[attempt_id].job_id
        one = self.unfinished[job_id]
        one.started_ms = self.now_ms
        if not one.waited:
            one.waited = True
            self.tally.waits.add(self.now_ms - one.submit_ms)
        self.house.start(attempt_id)
        length_ms = one.left_ms + self._checkpoints(one.left_ms) * self.options.checkpoint_cost_ms
        one.ends_ms = self.now_ms + length_ms
        self._schedule(one.ends_ms, Kind.FINISH, job_id, one.tries)
        limit_ms = state.jobs[job_id].request.time_limit_ms
        if limit_ms and limit_ms < length_ms:
            self._schedule(self.now_ms + limit_ms, Kind.TICK)

    def _cut_short(self, attempt_id: AttemptId) -> None:
        """It came to its time limit: what its last try did does not count, unless it is done at this very instant."""
        job_id = self.house.state.attempts[attempt_id].job_id
        one = self.unfinished[job_id]
        if self.now_ms >= one.ends_ms:
            self._finish(job_id, one.tries)
            return
        self._let_go(self.unfinished.pop(job_id))
        self.tally.cut_short += 1
        self.house.finish(job_id, Outcome.STOPPED)

    def _set_machines(self, count: int) -> None:
        """So many are there from now; which of them go is chance, and who went first comes back first."""
        while len(self._present) > count:
            worker_id = self._going.pop(0) if self._going else self._chance.choice(self._present)
            self._present.remove(worker_id)
            self._absent.append(worker_id)
            self.house.lose(worker_id)
        while len(self._present) < count and self._absent:
            worker_id = self._absent.pop(0)
            self._present.append(worker_id)
            self.house.bring_back(worker_id)

    def _warn(self, count: int) -> None:
        staying = [one for one in self._present if one not in self._going]
        for worker_id in self._chance.sample(staying, min(count, len(staying))):
            self._going.append(worker_id)
            self.house.warn(worker_id, self.options.notice_ms)

    # ------------------------------------------------------------ what the core decided

    def _follow(self) -> None:
        """Act on all events since the last time, and on those that follow from that."""
        house = self.house
        while house.happened:
            happened, house.happened = house.happened, []
            for event in happened:
                self._act_on(event)
        for attempt_id in self._ended:
            house.forget_attempt(attempt_id)
        for cluster_id in self._closed:
            cluster = house.state.clusters[cluster_id]
            house.forget_cluster(
                cluster_id, [member_id_of(cluster_id, number) for number in range(cluster.next_ordinal)]
            )
        self._ended, self._closed = [], []

    def _act_on(self, event: m.Event) -> None:
        state = self.house.state
        match event:
            case m.AttemptPlaced(attempt):
                self._take_hold(self.unfinished[attempt.job_id])
                if state.clusters[attempt.cluster_id].phase is ClusterPhase.READY:
                    self._start(attempt.attempt_id)
            case m.ClusterPlanned(cluster, _):
                self._schedule_formed(cluster.cluster_id, cluster.generation)
            case m.MemberNoticed(member_id, _):
                self._hear_notice(state.attempt_in.get(state.members[member_id].cluster_id))
            case m.MemberReplaced(cluster_id, member):
                self._schedule_formed(cluster_id, member.generation)
            case m.MemberFailed(_, vacancy, _) if vacancy is not None:
                patience_ms = state.policies.clusters.prepare_deadline_ms + 1
                self._schedule(self.now_ms + patience_ms, Kind.TICK)
            case m.JobRequeued():
                self._interrupt(self.unfinished[event.job_id])
                self._schedule(max(self.now_ms, event.not_before_ms - self._began_ms()), Kind.WAKE)
            case m.ClusterIdled():
                self._schedule(self.now_ms + self.options.warm_ms, Kind.TICK)
            case m.AttemptTimedOut(attempt_id, _):
                self._cut_short(attempt_id)
            case m.AttemptEnded(attempt_id, outcome) if outcome is Outcome.GROUND:
                self._ended.append(attempt_id)
            case m.ClusterClosed(cluster_id):
                self._closed.append(cluster_id)
            case _:
                pass

    def _schedule_formed(self, cluster_id: ClusterId, generation: int) -> None:
        self._schedule(self.now_ms + self.options.formation_ms, Kind.FORMED, cluster_id, generation)

    def _began_ms(self) -> int:
        return self.house.at_ms - self.now_ms

    # ------------------------------------------------------------ jobs

    def _take_hold(self, one: Running) -> None:
        one.held = True
        one.tenant.waiting -= one.possible
        one.tenant.held_gpus += one.gpus
        self.tally.waiting -= 1
        self.tally.held_gpus += one.gpus

    def _let_go(self, one: Running) -> None:
        one.held = False
        one.tenant.held_gpus -= one.gpus
        self.tally.held_gpus -= one.gpus

    def _hear_notice(self, attempt_id: AttemptId | None) -> None:
        if attempt_id is not None:
            one = self.unfinished[self.house.state.attempts[attempt_id].job_id]
            one.warned_ms = self.now_ms if one.warned_ms is None else one.warned_ms

    def _interrupt(self, one: Running) -> None:
        """Its ground is gone: it waits again, with what its last checkpoint holds."""
        self._let_go(one)
        one.tenant.waiting += one.possible
        one.tries += 1
        self.tally.waiting += 1
        if one.started_ms is not None:
            saved_ms = self._saved_ms(one, one.started_ms)
            one.left_ms -= saved_ms
            self.tally.useful_gpu_ms += saved_ms * one.gpus
            self.tally.interruptions += 1
        one.started_ms = one.warned_ms = None

    def _saved_ms(self, one: Running, started_ms: int) -> int:
        """Work of this try that a checkpoint holds."""
        saved_ms = 0
        every_ms, cost_ms = self.options.checkpoint_every_ms, self.options.checkpoint_cost_ms
        if every_ms:
            cycles = (self.now_ms - started_ms) // (every_ms + cost_ms)
            saved_ms = min(cycles, self._checkpoints(one.left_ms)) * every_ms
        last_ms = self.now_ms - cost_ms
        if one.warned_ms is not None and last_ms >= max(started_ms, one.warned_ms):
            saved_ms = max(saved_ms, self._progress_ms(one, last_ms))
        return saved_ms

    def _checkpoints(self, work_ms: int) -> int:
        """Taken in so much work; none at its end."""
        every_ms = self.options.checkpoint_every_ms
        return max(0, -(-work_ms // every_ms) - 1) if every_ms else 0

    def _progress_ms(self, one: Running, at_ms: int) -> int:
        """Work done in this try until ``at_ms``."""
        elapsed_ms = 0 if one.started_ms is None else at_ms - one.started_ms
        every_ms = self.options.checkpoint_every_ms
        if not every_ms:
            return min(elapsed_ms, one.left_ms)
        cycles, rest_ms = divmod(elapsed_ms, every_ms + self.options.checkpoint_cost_ms)
        return min(cycles * every_ms + min(rest_ms, every_ms), one.left_ms)

    def _could_hold(self, wanted: Requirements) -> bool:
        """Whether the whole fleet, empty and complete, would do for a request."""
        known = self._possible.get(wanted)
        if known is None:
            if len(self._possible) >= POSSIBLE_MAX:
                self._possible.clear()
            known = self._possible[wanted] = self._fleet_holds(wanted)
        return known

    def _fleet_holds(self, wanted: Requirements) -> bool:
        together: dict[tuple[str, str], int] = {}
        ways = self.options.ways
        bound_ms = wanted.max_rtt_ms
        for one in self._fleet:
            price = one.price or self.house.state.market_price(one.model)
            fits = (
                wanted.gpu_model in (None, one.model)
                and one.memory_gb >= wanted.min_gpu_memory_gb
                and wanted.region in ("", one.region)
                and (not wanted.max_price or price <= wanted.max_price)
            )
            if not fits:
                continue
            if one.gpus >= wanted.gpus and one.count:
                return True
            if bound_ms and ways.near_ms > bound_ms:
                continue
            each = wanted.gpus_per_worker or one.gpus
            group = (one.hardware_class.value, one.region if bound_ms and ways.far_ms > bound_ms else "")
            # Several members of one gang may share a machine.
            together[group] = together.get(group, 0) + one.count * (one.gpus // each) * each
        return any(gpus >= wanted.gpus for gpus in together.values())
