"""Keeps asking for plans and hands them to the loop: debounced, bounded, and again where one came too late."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from orchestrator.core import messages as m
from orchestrator.core.errors import RefusalCode, RefusedError
from orchestrator.core.ids import ClusterId, WorkerId
from orchestrator.core.queries.queue import Queue
from orchestrator.core.scheduling.placement import Budget, Plan
from orchestrator.core.scheduling.plan import plan

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from orchestrator.control.loop import Loop
    from orchestrator.core.state import State

DEBOUNCE_S = 0.005
"""Submissions that arrive together are planned together; nobody notices the wait."""

REVISIT_MS = 1_000
"""What could not be placed is looked at again this soon although nothing changed: pauses of retries run out."""

TICK_S = 1.0
"""Deadlines are in seconds and more; a finer tick would only cost."""


PASSING = frozenset({RefusalCode.STALE, RefusalCode.EXHAUSTED, RefusalCode.UNAVAILABLE, RefusalCode.INTERNAL})
"""Refusals of a plan after which the next one is as good as ever."""


class PlanObserver(Protocol):
    """What planning lets be measured."""

    def looked(self) -> None:
        """Everything that is committed was looked at."""
        ...

    def planned(self, seconds: float, made: Plan) -> None:
        """A plan was made, which may be empty."""
        ...

    def applied(self, made: Plan) -> None:
        """It has become true."""
        ...

    def stale(self) -> None:
        """It came too late, and another is made."""
        ...


class Planner:
    """One per loop."""

    def __init__(
        self,
        loop: Loop,
        new_id: Callable[[str], str],
        budget: Budget,
        observer: PlanObserver | None = None,
        measure: Callable[[Sequence[tuple[WorkerId, WorkerId]]], None] | None = None,
    ) -> None:
        """``measure`` has the round trip between pairs of workers measured; without it nothing is."""
        self._loop = loop
        self._measure = measure
        self._new_id = new_id
        self._budget = budget
        self._observer = observer
        self._fruitless = (-1, -1)
        """(capacity, queue) versions at which the last plan found nothing to place."""
        self._fruitless_ms = 0

    async def run(self) -> None:
        """Plan whenever something was committed, until cancelled. The ticks count as such."""
        changed = self._loop.watch()
        try:
            while True:
                more = await self.plan_once()
                if not more:
                    await changed.wait()
                changed.clear()
                await asyncio.sleep(DEBOUNCE_S)
        finally:
            self._loop.unwatch(changed)

    async def plan_once(self) -> bool:
        """Make and apply one plan; whether another may follow at once."""
        try:
            made, seconds = await self._loop.read(self._measured)
        except RefusedError as refusal:
            # The loop has ended: its failure is the one to be told, not that of those who waited for it.
            if refusal.code is not RefusalCode.UNAVAILABLE:
                raise
            return False
        if self._observer is not None and made is not None:
            self._observer.planned(seconds, made)
        if made is not None and made.pairs and self._measure is not None:
            self._measure(made.pairs)
        if made is None or made.empty:
            return False
        ids = tuple(ClusterId(self._new_id("cl")) for _ in made.placements)
        try:
            await self._loop.submit(m.ApplyPlan(made, ids))
        except RefusedError as refusal:
            # A plan that our own fault keeps from being applied is logged there; the next is made of another state.
            if refusal.code not in PASSING:
                raise
            if self._observer is not None and refusal.code is RefusalCode.STALE:
                self._observer.stale()
            return refusal.code is RefusalCode.STALE
        if self._observer is not None:
            self._observer.applied(made)
        return not made.fruitless

    def _measured(self, state: State) -> tuple[Plan | None, float]:
        """The plan and the seconds it took to make, without the wait for a commit before it."""
        began_s = self._loop.elapsed_s()
        made = self._make(state)
        if self._observer is not None:
            self._observer.looked()
        return made, self._loop.elapsed_s() - began_s

    def _make(self, state: State) -> Plan | None:
        at_ms = state.time_ms(self._loop.now())
        seen = (state.capacity_version, state.queue_version)
        if seen == self._fruitless and at_ms - self._fruitless_ms < REVISIT_MS:
            return None
        made = plan(state, Queue(state, at_ms), at_ms, self._budget)
        if made.fruitless:
            self._fruitless, self._fruitless_ms = seen, at_ms
        state.waiting.update((one.job_id, one.reason) for one in made.deferrals)
        return made


async def tick_forever(loop: Loop) -> None:
    """Let the loop notice that time has passed."""
    while True:
        await asyncio.sleep(TICK_S)
        try:
            await loop.submit(m.Tick())
        except RefusedError as refusal:
            if refusal.code not in (RefusalCode.EXHAUSTED, RefusalCode.UNAVAILABLE):
                raise
