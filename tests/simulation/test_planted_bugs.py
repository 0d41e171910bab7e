"""The checker is checked: each kind of bug, planted, is found within a few seeds."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from orchestrator.agent.meter import Meter
from orchestrator.control import planner
from orchestrator.core.decisions import jobs, limits, metering
from orchestrator.core.jobs import Outcome
from orchestrator.core.messages import AttemptEnded
from orchestrator.core.metering import sealable
from orchestrator.core.queries.queue import Queue
from orchestrator.core.scheduling import nominations, preempting
from orchestrator.core.scheduling import plan as scheduling
from orchestrator.core.scheduling.placement import JobNeed, Placement
from orchestrator.sim.memory import MemoryStore
from orchestrator.sim.ray import Machine
from orchestrator.sim.world import run_seed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from orchestrator.core.metering import Interval, Lease

pytestmark = [pytest.mark.simulation, pytest.mark.timeout(300)]

SEEDS_MAX = 60
"""A bug that needs more luck than this to show would not be found by 200 seeds reliably either."""


def first_finding() -> str:
    """What the first seed that fails says; empty where none does."""
    for seed in range(SEEDS_MAX):
        try:
            run_seed(seed)
        except Exception as found:  # noqa: BLE001 - as `make sim` counts them: whatever ends a run is a finding
            return f"{type(found).__name__}: {found}"
    return ""


def plant_device_given_twice(patch: pytest.MonkeyPatch) -> None:
    real = scheduling.plan

    def careless(*arguments: Any) -> Any:
        made = real(*arguments)
        alone = [one for one in made.placements if one.head_host is None]
        if len(alone) < 2:
            return made
        copied = replace(alone[1], shares=alone[0].shares)
        return replace(made, placements=tuple(copied if one is alone[1] else one for one in made.placements))

    patch.setattr(planner, "plan", careless)


def plant_partial_gang(patch: pytest.MonkeyPatch) -> None:
    real = scheduling.plan

    def short(*arguments: Any) -> Any:
        made = real(*arguments)

        def cut(placement: Placement) -> Placement:
            return (
                replace(placement, shares=placement.shares[:-1]) if len(placement.shares) > 1 else placement
            )

        return replace(made, placements=tuple(cut(one) for one in made.placements))

    patch.setattr(planner, "plan", short)


def plant_stale_report_believed(patch: pytest.MonkeyPatch) -> None:
    real = jobs.observe_attempt

    def gullible(state: Any, report: Any, cluster_id: str) -> Iterator[Any]:
        attempt = state.attempts.get(report.attempt_id)
        job = state.jobs.get(attempt.job_id) if attempt is not None else None
        if job is not None and job.attempt_id not in (None, report.attempt_id) and not job.status.terminal:
            yield AttemptEnded(job.attempt_id, Outcome.SUCCEEDED, "believed", 0)
        yield from real(state, report, cluster_id)

    patch.setattr(jobs, "observe_attempt", gullible)
    keep = Machine.keep

    def keep_for_ever(machine: Machine) -> None:
        """Keepers that forget their deadline: a stale node has something to report."""
        for node in machine.nodes.values():
            node.deadline_boottime_ms = 2**60
        keep(machine)

    patch.setattr(Machine, "keep", keep_for_ever)


def plant_time_from_nowhere(patch: pytest.MonkeyPatch) -> None:
    def trusting(lease: Lease, stated_end_ms: int, at_ms: int) -> int:
        del at_ms
        return max(lease.billed_offset_ms, stated_end_ms)

    patch.setattr(metering, "billed_offset", trusting)


def plant_dead_node_counted(patch: pytest.MonkeyPatch) -> None:
    real = Meter.follow

    def follow(self: Meter, desired: Any, running: Any, ended: Any) -> bool:
        del running
        return real(self, desired, list(desired), dict.fromkeys(ended, 2**60))

    patch.setattr(Meter, "follow", follow)


def plant_paid_twice(patch: pytest.MonkeyPatch) -> None:
    real = sealable

    def again(lease: Lease) -> list[Interval]:
        return real(lease) * 2

    patch.setattr(metering, "sealable", again)


def plant_lost_row(patch: pytest.MonkeyPatch) -> None:
    real = MemoryStore.write

    def forgetful(self: MemoryStore, transaction: Any) -> None:
        kept = [
            row for row in transaction.rows if not (row[0] == "members" and transaction.base_version % 7 == 0)
        ]
        real(self, replace(transaction, rows=kept))

    patch.setattr(MemoryStore, "write", forgetful)


def plant_falsified_event(patch: pytest.MonkeyPatch) -> None:
    real = MemoryStore.write

    def forging(self: MemoryStore, transaction: Any) -> None:
        real(self, transaction)
        version, at_ms, name, body = self.log[-1]
        self.log[-1] = (version, at_ms, name, body.replace(b"asked for", b"begged for"))

    patch.setattr(MemoryStore, "write", forging)


def plant_acknowledged_before_durable(patch: pytest.MonkeyPatch) -> None:
    held: list[Any] = []
    load = MemoryStore.load

    async def hasty(self: MemoryStore, transaction: Any) -> None:
        """Each batch reaches the disk with the next one; the last one of a life never does."""
        if held:
            self.write(held.pop())
        held.append(transaction)

    def load_without(self: MemoryStore, policies: Any) -> Any:
        held.clear()
        return load(self, policies)

    patch.setattr(MemoryStore, "commit", hasty)
    patch.setattr(MemoryStore, "load", load_without)


def plant_job_forgotten(patch: pytest.MonkeyPatch) -> None:
    class Selective(Queue):
        def __iter__(self) -> Iterator[Any]:
            for need in super().__iter__():
                if not (isinstance(need, JobNeed) and self._state.jobs[need.job_id].attempts > 0):
                    yield need

    patch.setattr(planner, "Queue", Selective)


def plant_limit_not_kept(patch: pytest.MonkeyPatch) -> None:
    def patient(*arguments: Any) -> Iterator[Any]:
        del arguments
        yield from ()

    patch.setattr(limits, "tick_limits", patient)


def plant_nomination_forgotten(patch: pytest.MonkeyPatch) -> None:
    def forget(*_arguments: Any) -> None:
        """What others give way from is anybody's."""

    patch.setattr(nominations, "nominate", forget)
    patch.setattr(preempting, "nominate", forget)


PLANTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str]] = {
    "device given twice": (plant_device_given_twice, "is in"),
    "partial gang": (plant_partial_gang, "devices"),
    "stale report believed": (plant_stale_report_believed, "succeeded"),
    "time from nowhere": (plant_time_from_nowhere, "lies outside its lease"),
    "dead node counted": (plant_dead_node_counted, "is paid"),
    "paid twice": (plant_paid_twice, "paid twice"),
    "lost row": (plant_lost_row, ""),
    "falsified event": (plant_falsified_event, "differ"),
    "acknowledged before durable": (plant_acknowledged_before_durable, ""),
    "job forgotten": (plant_job_forgotten, "sub-"),
    "limit not kept": (plant_limit_not_kept, "outlived its time limit"),
    "nomination broken": (plant_nomination_forgotten, "took what was kept for"),
}


@pytest.mark.parametrize("name", PLANTS)
def test_checker_planted_bug_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, words = PLANTS[name]
    plant(monkeypatch)
    said = first_finding()
    assert said, f"{name}: {SEEDS_MAX} seeds passed with the bug in place"
    assert words in said
