"""Spending over any story of jobs: what a tenant's quota lets begin never costs more than the quota."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core import messages as m
from orchestrator.core.ids import JobId
from orchestrator.core.jobs import AttemptPhase, Requirements
from orchestrator.core.market.pricing import HOUR_MS
from orchestrator.core.queries.allowance import standing_of
from orchestrator.core.supply.terms import Ask, Terms
from tests.core.worlds import World, request, sha

KINDS = ("submit", "plan", "hours") * 3 + ("end", "state", "days")
STEPS = 45


@dataclass(frozen=True)
class Plot:
    """Prices of machines and devices of each, the quota, and a kind of step with a number for its choices."""

    machines: list[tuple[int, int]]
    quota: int
    steps: list[tuple[str, int]]


def drawn(seed: int) -> Plot:
    """All of one number, so that jobs come as near to the quota as chance has it, not to nothing."""
    dice = random.Random(seed)
    return Plot(
        [(dice.randint(300_000, 900_000), dice.randint(1, 2)) for _ in range(dice.randint(3, 6))],
        dice.randint(0, 6_000_000),
        [(dice.choice(KINDS), dice.randrange(10**6)) for _ in range(STEPS)],
    )


PLOTS = st.integers(0, 2**32 - 1).map(drawn)


class Story:
    """One tenant with a quota of money, whose jobs are stopped at their time limits by the hour."""

    def __init__(self, plot: Plot) -> None:
        self.world = World()
        self.world.head_host(8)
        self.tenant_id = self.world.tenant()
        for price, count in plot.machines:
            worker_id = self.world.worker(count=count)
            self.world.do(m.SetTerms(worker_id, Terms(asks=(Ask("RTX4090", price),))))
        self.world.do(m.SetTenant("acme", microcredits_per_month=m.QuotaLimit(plot.quota)))

    def submit(self, hours: int, gpus: int) -> None:
        name = self.world.name("job")
        asked = replace(request(Requirements(gpus=gpus)), time_limit_ms=hours * HOUR_MS)
        self.world.do(m.SubmitJob(JobId(name), self.tenant_id, f"sub-{name}", asked, sha(name)))

    def plan(self) -> None:
        """Make one, form what it placed, and let the drivers begin."""
        self.world.plan()
        self.world.reports()
        for attempt_id in list(self.world.state.attempt_in.values()):
            self.world.start(self.world.state.attempts[attempt_id].job_id)

    def pass_hours(self, hours: int) -> None:
        """An hour at a time; whoever has had his time is stopped."""
        for _ in range(hours):
            self.world.forward(HOUR_MS)
            for attempt in list(self.world.state.attempts.values()):
                limit_ms = self.world.state.jobs[attempt.job_id].request.time_limit_ms
                running = attempt.phase is AttemptPhase.RUNNING and attempt.started_at_ms is not None
                if running and limit_ms and self.world.at_ms - (attempt.started_at_ms or 0) >= limit_ms:
                    self.world.finish(attempt.job_id)

    def end(self, number: int) -> None:
        running = [one for one in self.world.state.attempts.values() if one.phase is AttemptPhase.RUNNING]
        if running:
            self.world.finish(running[number % len(running)].job_id)

    def state(self, number: int) -> None:
        """A worker states some of what it held, or all."""
        leases = [self.world.state.leases[key] for key in self.world.state.unsettled_leases]
        if leases:
            lease = leases[number % len(leases)]
            held_ms = (self.world.at_ms if lease.ended_ms is None else lease.ended_ms) - lease.started_ms
            whole = number % 3 > 0
            until_ms = held_ms if whole else lease.stated_offset_ms + (held_ms - lease.stated_offset_ms) // 2
            self.world.state_time(lease, until_ms, final=whole and lease.ended_ms is not None)

    def step(self, kind: str, number: int, *, limited: bool) -> None:
        match kind:
            case "submit":
                self.submit(1 + number % 9 if limited or number % 2 else 0, 1 + number % 3)
            case "plan":
                self.plan()
            case "hours":
                self.pass_hours(1 + number % 4)
            case "days":
                self.pass_hours(24 * (1 + number % 3))
            case "end":
                self.end(number)
            case "state":
                self.state(number)

    @property
    def gone(self) -> int:
        """Spent this month, and committed."""
        found = standing_of(self.world.state, self.world.state.tenants[self.tenant_id], self.world.at_ms)
        return found.microcredits_spent + found.microcredits_committed


@given(plot=PLOTS)
@settings(max_examples=60)
def test_spending_of_jobs_with_time_limits_never_exceeds_the_quota(plot: Plot) -> None:
    story = Story(plot)
    for kind, number in plot.steps:
        story.step(kind, number, limited=True)
        assert story.gone <= plot.quota


@given(plot=PLOTS)
@settings(max_examples=60)
def test_spending_beyond_the_quota_is_of_those_who_ran_before_and_nobody_else_begins(plot: Plot) -> None:
    """Some jobs have no time limit: what they go over is theirs, and grows only while they run."""
    story = Story(plot)
    state = story.world.state
    for kind, number in plot.steps:
        before, attempts, at_ms = story.gone, set(state.attempts), story.world.at_ms
        running = [lease for lease in state.leases.values() if lease.ended_ms is None]
        story.step(kind, number, limited=False)
        begun = [state.attempts[one] for one in state.attempts.keys() - attempts]
        assert not begun or before < plot.quota, "a job began though nothing was left"
        if story.gone > max(before, plot.quota):
            grown_ms = story.world.at_ms - at_ms
            assert story.gone - before <= sum(one.price_until(grown_ms) + 1 for one in running)
