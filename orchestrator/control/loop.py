"""The single writer: commands in, events committed, callers answered, effects begun. In that order, always.

The state in memory runs ahead of the disk only while a commit is under way; nobody is answered and nobody reads in that
time, so what was acknowledged or seen is durable. A commit that fails is fatal: the process ends and loads again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from orchestrator.adapters.store import Transaction
from orchestrator.core.decide import effects_of, handle, pending_effects
from orchestrator.core.errors import RefusalCode, RefusedError, UndecidedError
from orchestrator.core.scheduling.assembling import KNOWN_MS_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from orchestrator.core import messages as m
    from orchestrator.core.ids import Now, WorkerId
    from orchestrator.core.state import State
    from orchestrator.core.supply.caches import Cached

T = TypeVar("T")

REFITTED = 16
"""Workers whose coordinates are fitted again with each report: some tens of microseconds, and all of them in turn."""

REVIEWED = 2
"""Workers whose place in a group is looked at again with each report: with six reports an hour, each twelve times."""

INBOX_MAX = 10_000
"""Some seconds of work at full speed: beyond it a caller is better told to come back."""

BATCH_MAX = 512
"""Large enough to share one disk flush among many, small enough that the first of them does not wait long."""

DEADLINE_MS = 30_000
"""A caller that waited this long has given up; its command is dropped undone."""


NOT_DONE = "internal error: nothing was done, and the same again would fail again; tell the operator, whose log says more"


class Clock(Protocol):
    """Where the loop reads the time."""

    def now(self) -> Now: ...

    def elapsed_s(self) -> float:
        """For measuring what takes less than a millisecond; only differences mean anything."""
        ...


class Store(Protocol):
    """Durable memory. ``commit`` returns when the batch would survive a power cut, and raises where it may not."""

    async def commit(self, transaction: Transaction) -> None: ...


class LoopObserver(Protocol):
    """What the loop lets be measured; all in seconds."""

    def batch(
        self, commands: int, events: int, decide_s: float, commit_s: float, waited_s: float
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class Committed:
    """A command's answer, and the state version that contains it."""

    version: int
    result: object


@dataclass(frozen=True, slots=True)
class Waiting:
    """``oldest_ms`` is by the monotonic clock; None: nobody waits."""

    commands: int
    oldest_ms: int | None


@dataclass(frozen=True, slots=True)
class _Entry:
    command: m.Command
    answer: asyncio.Future[Committed]
    received_ms: int


class Loop:
    """Owns the state. ``checkpoint`` is called by name at every step, so that a test can end the process there."""

    def __init__(
        self,
        state: State,
        store: Store,
        clock: Clock,
        perform: Callable[[Sequence[m.Effect]], None],
        observer: LoopObserver | None = None,
        checkpoint: Callable[[str], None] | None = None,
        undecided: Callable[[m.Command, UndecidedError], None] | None = None,
    ) -> None:
        """``undecided`` is told of a command whose decision failed by a fault of ours: its caller hears that nothing was
        done, and the loop goes on. Without it such a fault ends the loop, so that no simulation passes over one.
        """
        self._state = state
        self._store = store
        self._clock = clock
        self._perform = perform
        self._observer = observer
        self._checkpoint = checkpoint
        self._undecided = undecided
        self._inbox: deque[_Entry] = deque()
        self._deciding: list[_Entry] = []
        """The batch under way: taken from the inbox, not answered yet."""
        self._filled = asyncio.Event()
        self._committing = False
        self._readers: list[Callable[[RefusedError | None], None]] = []
        self._changed: list[asyncio.Event] = []
        self._failed: BaseException | None = None

    # ------------------------------------------------------------ callers

    async def submit(self, command: m.Command) -> Committed:
        """Wait until the command's events are durable. Raises RefusedError; EXHAUSTED where the inbox is full."""
        if self._failed is not None:
            raise _stopping()
        if len(self._inbox) >= INBOX_MAX:
            raise RefusedError(RefusalCode.EXHAUSTED, "the control plane is busy; try again in a second")
        answer: asyncio.Future[Committed] = asyncio.get_running_loop().create_future()
        self._inbox.append(_Entry(command, answer, self._clock.now().monotonic_ms))
        self._filled.set()
        return await answer

    async def read(self, query: Callable[[State], T]) -> T:
        """Run a query on committed state. It must return at once and keep nothing mutable of the state."""
        if not self._committing:
            return query(self._state)
        if self._failed is not None:
            raise _stopping()
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def run(refusal: RefusedError | None) -> None:
            if answer.done():
                return
            if refusal is not None:
                answer.set_exception(refusal)
                return
            try:
                answer.set_result(query(self._state))
            except Exception as error:  # noqa: BLE001 - it is the reader's to handle, not the loop's
                answer.set_exception(error)

        self._readers.append(run)
        return await answer

    def heard(self, worker_id: WorkerId) -> bool:
        """Record a worker's sign of life, a measurement; whether it counts as live already."""
        self._state.heartbeats.heard(worker_id, self._clock.now().monotonic_ms)
        worker = self._state.workers.get(worker_id)
        return worker is not None and worker.liveness == "live"

    def measured(self, worker_id: WorkerId, found: Iterable[tuple[WorkerId, int]]) -> None:
        """Record round trips in microseconds as a worker measured them: measurements, never events."""
        at_ms, latency = self._state.time_ms(self._clock.now()), self._state.latency
        peers = []
        for peer_id, rtt_us in found:
            latency.observe(worker_id, peer_id, rtt_us, at_ms)
            peers.append(peer_id)
        latency.update(at_ms, KNOWN_MS_MAX, REFITTED)
        self._state.groups.measured(worker_id, peers, at_ms)
        self._state.groups.review(at_ms, REVIEWED)

    def cached(self, worker_id: WorkerId, cached: Cached) -> None:
        """Record what lies ready on a worker: a measurement, never an event. One that has gone meanwhile has nothing."""
        worker = self._state.workers.get(worker_id)
        if worker is not None and worker.liveness != "left":
            self._state.caches.put(worker_id, cached)

    @property
    def network_id(self) -> str:
        """Of the network that this control plane serves; it never changes."""
        return self._state.control.network_id

    def now(self) -> Now:
        """The loop's clock."""
        return self._clock.now()

    def elapsed_s(self) -> float:
        """The same clock, for measuring."""
        return self._clock.elapsed_s()

    def waiting(self) -> Waiting:
        """How many commands wait, and since when the oldest that is not answered yet does."""
        first = next(iter(self._deciding or self._inbox), None)
        return Waiting(len(self._inbox), None if first is None else first.received_ms)

    def watch(self) -> asyncio.Event:
        """An event that is set after each commit; the watcher clears it."""
        event = asyncio.Event()
        self._changed.append(event)
        return event

    def unwatch(self, event: asyncio.Event) -> None:
        """Forget a watcher."""
        self._changed.remove(event)

    # ------------------------------------------------------------ the one way through

    async def run(self) -> None:
        """Serve until cancelled. Any failure to commit ends it with that failure."""
        self._perform(pending_effects(self._state))
        try:
            while True:
                await self._filled.wait()
                await self._step()
        except BaseException as error:
            self._fail(error)
            raise

    async def _step(self) -> None:
        batch = self._take_batch()
        if not batch:
            return
        self._deciding = batch
        now, began_s = self._clock.now(), self._clock.elapsed_s()
        base_version = self._state.version
        # From here until the commit has returned, memory is ahead of the disk: no reads.
        self._committing = True
        answers, events, expired = self._decide(batch, now)
        touched = self._state.take_touched()
        decided_s = self._clock.elapsed_s()
        self._reach("decided")
        if events:
            rows = [(table, key, self._state.entity(table, key)) for table, key in touched]
            at_ms = self._state.time_ms(now)
            await self._store.commit(Transaction(base_version, at_ms, events, rows))
        self._committing = False
        self._reach("committed")
        self._acknowledge(answers, expired)
        self._deciding = []
        self._reach("acknowledged")
        if self._observer is not None:
            decide_s, commit_s = decided_s - began_s, self._clock.elapsed_s() - decided_s
            waited_s = (now.monotonic_ms - batch[0].received_ms) / 1000
            self._observer.batch(len(batch), len(events), decide_s, commit_s, waited_s)
        self._perform(effects_of(self._state, touched))
        self._reach("performed")

    def _take_batch(self) -> list[_Entry]:
        batch: list[_Entry] = []
        while self._inbox and len(batch) < BATCH_MAX:
            batch.append(self._inbox.popleft())
        if not self._inbox:
            self._filled.clear()
        return batch

    def _decide(
        self, batch: list[_Entry], now: Now
    ) -> tuple[list[tuple[_Entry, Committed | RefusedError]], list[m.Event], list[_Entry]]:
        answers: list[tuple[_Entry, Committed | RefusedError]] = []
        events: list[m.Event] = []
        expired: list[_Entry] = []
        for entry in batch:
            if now.monotonic_ms - entry.received_ms > DEADLINE_MS:
                expired.append(entry)
                continue
            if entry.answer.cancelled():
                continue
            try:
                decision = handle(self._state, entry.command, now)
            except RefusedError as refusal:
                answers.append((entry, refusal))
            except UndecidedError as error:
                if self._undecided is None:
                    raise
                self._undecided(entry.command, error)
                answers.append((entry, RefusedError(RefusalCode.INTERNAL, NOT_DONE)))
            else:
                events.extend(decision.events)
                answers.append((entry, Committed(self._state.version, decision.result)))
        return answers, events, expired

    def _acknowledge(
        self, answers: list[tuple[_Entry, Committed | RefusedError]], expired: list[_Entry]
    ) -> None:
        for entry, answer in answers:
            if entry.answer.done():
                continue
            if isinstance(answer, RefusedError):
                entry.answer.set_exception(answer)
            else:
                entry.answer.set_result(answer)
        for entry in expired:
            if not entry.answer.done():
                late = RefusedError(
                    RefusalCode.UNAVAILABLE, "the control plane is too slow now; safe to retry"
                )
                entry.answer.set_exception(late)
        readers, self._readers = self._readers, []
        for run in readers:
            run(None)
        for event in self._changed:
            event.set()

    def _reach(self, name: str) -> None:
        if self._checkpoint is not None:
            self._checkpoint(name)

    def _fail(self, error: BaseException) -> None:
        """Nobody waits for an answer that will not come: not in the inbox, nor in the batch whose fate is unknown."""
        self._failed = error
        for entry in (*self._deciding, *self._inbox):
            if not entry.answer.done():
                entry.answer.set_exception(_stopping())
        self._deciding = []
        self._inbox.clear()
        readers, self._readers = self._readers, []
        for run in readers:
            run(_stopping())


def _stopping() -> RefusedError:
    return RefusedError(RefusalCode.UNAVAILABLE, "the control plane is stopping; safe to retry")
