"""A thousand seeded schedules of loss, delay, pause, sleep, restart and drift; and the checks, checked."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from orchestrator.agent.agent import Agent
from orchestrator.core.decisions import jobs
from orchestrator.core.jobs import Outcome
from orchestrator.core.messages import AttemptEnded
from orchestrator.sim.ray import Machine
from orchestrator.sim.schedules import EVENTS, play
from orchestrator.sim.seeds import run_many

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.simulation, pytest.mark.timeout(600)]

SCHEDULES = 1_000

PLANTED_MAX = 60
"""A bug that needs more luck than this to show would not be found by a thousand schedules reliably either."""


# All cores are busy with it for minutes, and it has to share them.
@pytest.mark.timeout(2400)
def test_schedules_1000_seeds_no_stale_holder_affects_a_newer_attempt_and_none_is_paid() -> None:
    said = io.StringIO()
    failures = run_many(range(SCHEDULES), Console(file=said, width=200), play, 100)
    assert failures == 0, said.getvalue()


def test_schedules_hand_work_over_and_pay_for_it() -> None:
    """Schedules in which nothing happened would prove nothing."""
    results = [play(seed) for seed in range(20)]
    happened = {name for result in results for name in result.faults}
    assert {
        "sleep",
        "pause",
        "lose_messages",
        "delay_messages",
        "restart_agent",
        "restart_control",
    } <= happened
    assert all(sum(result.faults.values()) >= EVENTS[0] for result in results)
    assert sum(result.attempts for result in results) > 1.3 * sum(result.jobs for result in results)
    assert sum(result.billed_ms for result in results) > 0


# ---------------------------------------------------------------- planted bugs


def first_finding() -> str:
    """What the first schedule that fails says; empty where none does."""
    for seed in range(PLANTED_MAX):
        try:
            play(seed)
        except Exception as found:  # noqa: BLE001 - as runs are counted: whatever ends one is a finding
            return f"{type(found).__name__}: {found}"
    return ""


def plant_keeper_that_does_not_count_sleep(patch: pytest.MonkeyPatch) -> None:
    """The deadline is held on a clock that stands still while the machine sleeps."""
    keep = Machine.keep
    asleep: dict[int, int] = {}
    slept_ms: dict[int, int] = {}

    def drowsy(machine: Machine) -> None:
        now_ms = machine.clock.boottime_ms()
        if machine.frozen:
            asleep.setdefault(id(machine), now_ms)
            return
        if id(machine) in asleep:
            slept_ms[id(machine)] = slept_ms.get(id(machine), 0) + now_ms - asleep.pop(id(machine))
        late = slept_ms.get(id(machine), 0)
        running = [node for node in machine.nodes.values() if node.runs]
        for node in running:
            node.deadline_boottime_ms += late
        keep(machine)
        for node in running:
            node.deadline_boottime_ms -= late

    patch.setattr(Machine, "keep", drowsy)


def plant_fence_not_checked(patch: pytest.MonkeyPatch) -> None:
    """What is reported of an older attempt is taken for the one that counts."""
    real = jobs.observe_attempt

    def gullible(state: Any, report: Any, cluster_id: str) -> Iterator[Any]:
        attempt = state.attempts.get(report.attempt_id)
        job = state.jobs.get(attempt.job_id) if attempt is not None else None
        if job is not None and job.attempt_id not in (None, report.attempt_id) and not job.status.terminal:
            yield AttemptEnded(job.attempt_id, Outcome.SUCCEEDED, "believed", 0)
        yield from real(state, report, cluster_id)

    patch.setattr(jobs, "observe_attempt", gullible)


def plant_renewed_from_the_answer(patch: pytest.MonkeyPatch) -> None:
    """The lease is counted from a heartbeat's answer, which is later, instead of from its sending."""
    real = Agent.acknowledged

    def generous(agent: Agent, sent_boottime_ms: int, welcome: Any) -> None:
        real(agent, sent_boottime_ms + 100, welcome)

    patch.setattr(Agent, "acknowledged", generous)


def plant_sleep_is_paid(patch: pytest.MonkeyPatch) -> None:
    """A keeper that wakes too late states the time until then."""
    keep = Machine.keep

    def late(machine: Machine) -> None:
        running = [node for node in machine.nodes.values() if node.runs]
        keep(machine)
        for node in running:
            if not node.runs:
                node.ended_boottime_ms = machine.clock.boottime_ms()

    patch.setattr(Machine, "keep", late)


PLANTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str]] = {
    "keeper that does not count sleep": (plant_keeper_that_does_not_count_sleep, "past its deadline"),
    "fence not checked": (plant_fence_not_checked, "succeeded"),
    "renewed from the answer": (plant_renewed_from_the_answer, "are promised"),
    "sleep is paid": (plant_sleep_is_paid, "is paid"),
}


@pytest.mark.parametrize("name", PLANTS)
def test_schedules_planted_bug_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, words = PLANTS[name]
    plant(monkeypatch)
    said = first_finding()
    assert said, f"{name}: {PLANTED_MAX} schedules passed with the bug in place"
    assert words in said
