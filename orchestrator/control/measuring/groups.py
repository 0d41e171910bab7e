"""How far apart the workers of each group are, and how much is lost between them: from what was measured lately."""

from __future__ import annotations

import asyncio
import heapq
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from orchestrator.control.loop import Loop
    from orchestrator.control.paths import Paths
    from orchestrator.core.ids import WorkerId
    from orchestrator.core.nearness.grouping import Group, GroupNumber
    from orchestrator.core.state import State

GROUPS_MAX = 100
"""Groups with series of their own, the largest: an operator looks at no more, and each costs some milliseconds."""

GROUPS_EVERY_S = 30.0
"""Ways are measured six times an hour: looking more often shows nothing new."""

US = 1_000_000


@dataclass(frozen=True, slots=True)
class GroupSeen:
    """A group as it is shown; None where nothing of it is measured."""

    number: str
    hardware_class: str
    model: str
    workers: int
    median_s: float | None
    longest_s: float | None
    loss_ratio: float | None


@dataclass(frozen=True, slots=True)
class GroupsSeen:
    """All of two workers or more are counted; the largest are shown."""

    groups: int = 0
    shown: tuple[GroupSeen, ...] = ()


async def look(loop: Loop, paths: Paths | None) -> GroupsSeen:
    """One group at a time, so that the loop never waits for more than one of them."""
    count, numbers = await loop.read(_largest)
    shown: list[GroupSeen] = []
    for number in numbers:
        found = await loop.read(partial(_seen, loop, number))
        if found is not None:
            seen, members = found
            loss = None if paths is None else paths.loss_ratio(members)
            shown.append(replace(seen, loss_ratio=loss))
        await asyncio.sleep(0)
    return GroupsSeen(count, tuple(shown))


def _largest(state: State) -> tuple[int, list[GroupNumber]]:
    several = [group for group in state.groups if len(group.members) > 1]
    largest = heapq.nsmallest(GROUPS_MAX, several, key=lambda one: (-len(one.members), one.number))
    return len(several), [group.number for group in largest]


def _seen(loop: Loop, number: GroupNumber, state: State) -> tuple[GroupSeen, frozenset[WorkerId]] | None:
    group = state.groups.get(number)
    if group is None:
        return None
    at_ms = state.time_ms(loop.now())
    measured = state.latency.measured_between(tuple(group.members), at_ms, state.groups.known_ms_max)
    return _as_seen(group, measured), frozenset(group.members)


def _as_seen(group: Group, measured_us: NDArray[np.int32]) -> GroupSeen:
    known = len(measured_us) > 0
    return GroupSeen(
        str(group.number),
        group.kind.hardware_class.value,
        group.kind.model,
        len(group.members),
        float(np.median(measured_us)) / US if known else None,
        float(measured_us.max()) / US if known else None,
        None,
    )
