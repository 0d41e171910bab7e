"""Fleets whose machines stand in towns: near within one, far between two, and what they say of that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from orchestrator.core.ids import WorkerId
from orchestrator.core.nearness.grouping import NOBODY, Group, Groups
from orchestrator.core.scheduling.offers import Column
from orchestrator.core.state import State
from orchestrator.core.supply.fleet import NEBULA, HardwareClass, Isolation, Worker
from tests.core.fleets import device, machine, state_of

START_MS = 1_790_000_000_000
HOUR_MS = 3_600_000

Rtt = Callable[[WorkerId, WorkerId], int]


def boxed(name: str, model: str = "RTX4090", gpus: int = 1, **more: object) -> Worker:
    """A machine that can work together with others."""
    devices = [device(f"{name}-{number}", model) for number in range(gpus)]
    values: dict[str, object] = {"isolation": Isolation.BOX, "overlay": NEBULA, **more}
    return machine(name, *devices, **values)  # type: ignore[arg-type]  # names as machine() has them


@dataclass
class Towns:
    """A state, its clock, and how far everybody is from everybody."""

    state: State
    rtt_us: Rtt
    now_ms: int = START_MS

    @property
    def groups(self) -> Groups:
        return self.state.groups

    def say(self, worker_id: WorkerId, *peers: WorkerId, rtt_us: int = 0) -> None:
        """One report, as the loop takes it: true unless ``rtt_us`` is given."""
        for peer_id in peers:
            told_us = rtt_us or self.rtt_us(worker_id, peer_id)
            self.state.latency.observe(worker_id, peer_id, told_us, self.now_ms)
        self.groups.measured(worker_id, peers, self.now_ms)

    def meet(self, workers: Sequence[WorkerId]) -> None:
        """All of them measure all others."""
        for worker_id in workers:
            self.say(worker_id, *(peer_id for peer_id in workers if peer_id != worker_id))

    def review(self) -> None:
        """Everybody is looked at once more."""
        self.groups.review(self.now_ms, len(self.state.workers))

    def who(self, worker_id: WorkerId) -> set[WorkerId]:
        """Everybody in a worker's group."""
        group = self.groups.of(worker_id)
        return set() if group is None else set(group.members)

    def parts(self) -> set[frozenset[WorkerId]]:
        return {frozenset(group.members) for group in self.groups}


def named(*names: str) -> list[WorkerId]:
    return [WorkerId(name) for name in names]


def apart(distances_ms: dict[tuple[str, str], float], other_ms: float = 100) -> Rtt:
    """As given, either way around."""
    known = {frozenset(pair): round(1_000 * rtt_ms) for pair, rtt_ms in distances_ms.items()}
    return lambda one, other: known.get(frozenset((one, other)), round(1_000 * other_ms))


def by_town(near_us: int = 2_000, far_us: int = 80_000) -> Rtt:
    """Names are TOWN-NUMBER."""
    return lambda one, other: near_us if one.partition("-")[0] == other.partition("-")[0] else far_us


def towns(workers: Iterable[Worker], rtt_us: Rtt) -> Towns:
    return Towns(state_of(workers), rtt_us)


def check(groups: Groups, state: State) -> None:
    """What holds whatever was said."""
    seen: list[WorkerId] = []
    for group in groups:
        _check_group(groups, group, state)
        seen += group.members
    assert len(seen) == len(set(seen))
    able = {one for one in state.workers if groups.of(one) is not None}
    assert set(seen) == able
    rows = groups.number_by_row
    numbered = {state.offers.number_of(one): groups.of(one) for one in able}
    for row in range(len(rows)):
        group_here = numbered.get(row)
        assert rows[row] == (NOBODY if group_here is None else group_here.number)


def _check_group(groups: Groups, group: Group, state: State) -> None:
    assert groups.get(group.number) is group
    assert group.leader in group.members
    assert groups.away_us(group.leader) == 0
    assert len(group.members) <= 256
    rows = [next(iter(state.offers.rows_of(one))) for one in group.members]
    for column in (Column.GROUND, Column.HARDWARE_CLASS):
        assert len(np.unique(state.offers[column][rows])) == 1
    systems = {state.workers[one].inventory.operating_system for one in group.members}
    models = {one.model for name in group.members for one in state.workers[name].inventory.devices}
    assert len(systems) == len(models) == 1
    for one in group.members:
        assert groups.of(one) is group
        assert groups.away_us(one) <= groups.stay_us
        assert groups.away_us_by_row[state.offers.number_of(one)] == groups.away_us(one)


def other_system(worker: Worker) -> Worker:
    return replace(worker, inventory=replace(worker.inventory, operating_system="darwin"))


def other_class(worker: Worker) -> Worker:
    return replace(worker, inventory=replace(worker.inventory, hardware_class=HardwareClass.DATACENTER))
