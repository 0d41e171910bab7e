"""Conservative backfill: what is promised to an entitled job is kept, whatever is lent meanwhile."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field

from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from orchestrator.adapters import codec
from orchestrator.core import messages as m
from orchestrator.core.apply import apply
from orchestrator.core.entities import TABLES
from orchestrator.core.ids import JobId
from orchestrator.core.jobs import JobPolicy, Requirements
from orchestrator.core.policies import Policies
from orchestrator.core.queries.explain import explain
from orchestrator.core.scheduling.draft import FORMING_ALLOWANCE_MS
from orchestrator.core.scheduling.ends import ENDING_ALLOWANCE_MS
from orchestrator.core.state import State
from orchestrator.core.tenancy.fairness import FairnessPolicy
from tests.core.fleets import let_go
from tests.core.worlds import World

POLICIES = Policies(jobs=JobPolicy(overtaken_max=1), fairness=FairnessPolicy(memory_bp=0))

FORMING_MS_MAX = FORMING_ALLOWANCE_MS - ENDING_ALLOWANCE_MS
MINUTE_MS = 60_000

PLANS_MAX = 50
"""Of one instant: each but the last places somebody, or changes a promise."""

RESTARTED = 0.3
"""Part of the plans that are the first after a start of the control plane."""


@dataclass(frozen=True)
class Coming:
    """A job of a stream. ``limit_ms`` 0: none; it then runs for ``lasting_ms`` all the same."""

    arrives_ms: int
    gpus: int
    each: int
    tenant: str
    limit_ms: int
    lasting_ms: int
    forming_ms: int
    leaving_ms: int
    """From the end of its driver until its machines are free."""


def coming(seed: int) -> Coming:
    """Limits are obeyed, often to the last millisecond, and so are the allowances for forming and leaving."""
    dice = random.Random(seed)
    limit_ms = dice.choice([0, 5, 5, 10, 20, 60]) * MINUTE_MS
    most_ms = limit_ms or dice.choice([5, 60]) * MINUTE_MS
    gpus = dice.choice([1, 1, 1, 2, 3, 4, 5])
    return Coming(
        arrives_ms=dice.choice([0, 0, dice.randint(0, 6)]) * 5 * MINUTE_MS + dice.choice([0, 1]),
        gpus=gpus,
        each=dice.choice([0, 0, 0, 1]),
        tenant=dice.choice("ab"),
        limit_ms=limit_ms,
        lasting_ms=dice.choice([most_ms, most_ms, most_ms, dice.randint(1, most_ms)]),
        forming_ms=dice.choice([FORMING_MS_MAX, FORMING_MS_MAX, dice.randint(0, FORMING_MS_MAX)]),
        leaving_ms=dice.choice(
            [ENDING_ALLOWANCE_MS, ENDING_ALLOWANCE_MS, dice.randint(0, ENDING_ALLOWANCE_MS)]
        ),
    )


@dataclass
class Yard:
    """A small fleet on which a stream runs, instant by instant."""

    machines: list[int]
    heads: int
    world: World = field(default_factory=lambda: World(POLICIES))
    of: dict[JobId, Coming] = field(default_factory=dict)
    promised_ms: dict[JobId, int] = field(default_factory=dict)
    placed_ms: dict[JobId, int] = field(default_factory=dict)
    lent: int = 0
    due: list[tuple[int, int, str, JobId]] = field(default_factory=list)
    restarting: random.Random | None = None
    """Draws before which plans the control plane is started again; None: never."""
    restarts: int = 0

    def __post_init__(self) -> None:
        for name in "ab":
            self.world.tenant(name)
        self.world.head_host(self.heads)
        for gpus in self.machines:
            self.world.worker(count=gpus)

    def run(self, stream: list[Coming]) -> None:
        start_ms = self.world.at_ms
        arrivals = sorted(stream, key=lambda one: one.arrives_ms)
        while arrivals or self.due:
            times = [self.due[0][0]] if self.due else []
            times += [start_ms + arrivals[0].arrives_ms] if arrivals else []
            self.world.forward(min(times) - self.world.at_ms)
            while self.due and self.due[0][0] <= self.world.at_ms:
                _, _, what, job_id = heapq.heappop(self.due)
                self.happen(what, job_id)
            while arrivals and start_ms + arrivals[0].arrives_ms <= self.world.at_ms:
                self.arrive(arrivals.pop(0))
            self.plan()

    def arrive(self, one: Coming) -> None:
        wanted = Requirements(gpus=one.gpus, gpus_per_worker=one.each)
        self.of[self.world.submit(wanted, tenant=one.tenant, time_limit_ms=one.limit_ms)] = one

    def later(self, ms: int, what: str, job_id: JobId) -> None:
        heapq.heappush(self.due, (self.world.at_ms + ms, len(self.due), what, job_id))

    def happen(self, what: str, job_id: JobId) -> None:
        if what == "start":
            apply(self.world.state, m.AttemptStarted(self.world.attempt(job_id).attempt_id), self.world.at_ms)
            self.later(self.of[job_id].lasting_ms + self.of[job_id].leaving_ms, "gone", job_id)
        else:
            let_go(self.world, job_id)

    def restart(self) -> None:
        """The control plane has died: it knows what stands in its rows, and nothing else."""
        rows, loaded = self.world.state.rows(), State(POLICIES)
        for table in TABLES:
            for key in sorted(rows[table]):
                loaded.put(codec.decode_entity(table, codec.encode(rows[table][key])))
        loaded.version, loaded.latest_ms = self.world.state.version, self.world.state.latest_ms
        assert loaded.promises == self.world.state.promises
        self.world.state = loaded
        self.world.do(m.StartControl(loaded.control.network_id))
        self.restarts += 1

    def plan(self) -> None:
        """Until nothing more finds a place; and nobody starts later than was promised, or is told so."""
        at_ms = self.world.at_ms
        for _ in range(PLANS_MAX):
            if self.restarting is not None and self.restarting.random() < RESTARTED:
                self.restart()
            promises = self.world.state.promises
            kept = {worker_id for one in promises.values() for worker_id, _ in one.devices}
            made = self.world.plan()
            for job_id, promise in promises.items():
                before_ms = self.promised_ms.get(job_id, promise.starts_by_ms)
                assert promise.starts_by_ms <= before_ms, "a promise is put off"
                self.promised_ms[job_id] = promise.starts_by_ms
            for placement in made.placements:
                job_id = placement.job_id
                self.placed_ms[job_id] = at_ms
                self.later(self.of[job_id].forming_ms, "start", job_id)
                promised = job_id in self.promised_ms
                self.lent += not promised and any(share.worker_id in kept for share in placement.shares)
            for job_id, promised_ms in self.promised_ms.items():
                assert job_id in self.placed_ms or at_ms < promised_ms, f"{at_ms - promised_ms} ms late"
            if made.empty:
                break
        else:
            raise AssertionError("plans do not end")
        for job_id, promised_ms in self.promised_ms.items():
            if job_id not in self.placed_ms:
                wait = explain(self.world.state, self.world.state.jobs[job_id], at_ms).wait
                assert wait is not None
                assert wait.estimated_start_ms is not None
                assert wait.estimated_start_ms <= promised_ms


@settings(max_examples=200)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.integers(1, 4),
    st.lists(st.integers(0, 2**32), min_size=6, max_size=30),
)
@example([1, 1, 4], 1, [1, 1, 1, 2, 79, 135, 298, 807, 14_700, 19_099, 497_100])  # two that ask for the same
def test_entitled_job_starts_no_later_than_was_promised(
    machines: list[int], heads: int, seeds: list[int]
) -> None:
    yard = Yard(machines, heads)
    yard.run([coming(seed) for seed in seeds])
    event(f"promises kept: {len(yard.promised_ms)}")
    event(f"jobs on lent machines: {min(yard.lent, 3)}")


@settings(max_examples=80)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.integers(1, 4),
    st.lists(st.integers(0, 2**32), min_size=6, max_size=30),
    st.integers(0, 2**32),
)
def test_entitled_job_starts_no_later_than_was_promised_whenever_the_control_plane_is_started_again(
    machines: list[int], heads: int, seeds: list[int], restarting: int
) -> None:
    yard = Yard(machines, heads, restarting=random.Random(restarting))
    yard.run([coming(seed) for seed in seeds])
    event(f"promises kept: {len(yard.promised_ms)}")
    event(f"restarts: {min(yard.restarts, 10)}")
