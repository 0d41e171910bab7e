"""A loop over a store that a test holds back, and a clock that a test moves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from orchestrator.adapters.store import Transaction
from orchestrator.control.loop import Loop
from orchestrator.core import messages as m
from orchestrator.core.errors import UndecidedError
from orchestrator.core.ids import Now
from orchestrator.core.policies import Policies
from orchestrator.core.state import State
from tests.core.worlds import NETWORK_ID, START_WALL_MS


@dataclass(slots=True)
class HandClock:
    """Time passes only when a test says so."""

    monotonic_ms: int = 5_000_000

    def now(self) -> Now:
        return Now(START_WALL_MS + self.monotonic_ms, self.monotonic_ms, "boot-1")

    def elapsed_s(self) -> float:
        return self.monotonic_ms / 1000


@dataclass(slots=True)
class HeldStore:
    """Commits at once, unless it is held; then when it is let go, or fails."""

    transactions: list[Transaction] = field(default_factory=list)
    free: asyncio.Event = field(default_factory=asyncio.Event)
    busy: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while a commit is under way."""
    failure: Exception | None = None

    async def commit(self, transaction: Transaction) -> None:
        self.busy.set()
        await self.free.wait()
        self.busy.clear()
        if self.failure is not None:
            raise self.failure
        self.transactions.append(transaction)

    def hold(self) -> None:
        self.free.clear()

    def let_go(self) -> None:
        self.free.set()


@dataclass(slots=True)
class Rig:
    """A running loop and everything around it."""

    loop: Loop
    state: State
    store: HeldStore
    clock: HandClock
    steps: list[str]
    performed: list[m.Effect]
    task: asyncio.Task[None]


@asynccontextmanager
async def rigged(
    on_step: Callable[[str], None] | None = None,
    undecided: Callable[[m.Command, UndecidedError], None] | None = None,
) -> AsyncIterator[Rig]:
    """A loop that has started its control plane; ended when the test is."""
    state, store, clock = State(Policies()), HeldStore(), HandClock()
    store.let_go()
    steps: list[str] = []
    performed: list[m.Effect] = []

    def perform(effects: Sequence[m.Effect]) -> None:
        performed.extend(effects)

    def step(name: str) -> None:
        steps.append(name)
        if on_step is not None:
            on_step(name)

    loop = Loop(state, store, clock, perform, checkpoint=step, undecided=undecided)
    task = asyncio.create_task(loop.run())
    await loop.submit(m.StartControl(NETWORK_ID))
    steps.clear()
    try:
        yield Rig(loop, state, store, clock, steps, performed, task)
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task


async def settle() -> None:
    """Let everything run that can run without time or the store."""
    for _ in range(20):
        await asyncio.sleep(0)
