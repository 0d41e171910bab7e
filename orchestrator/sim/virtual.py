"""Virtual time: an asyncio loop whose clock jumps to the next timer instead of waiting for it."""

from __future__ import annotations

import asyncio
import selectors
from contextvars import Context, ContextVar, copy_context
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple

from orchestrator.core.ids import Now

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from random import Random

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

EPOCH_WALL_MS = 1_800_000_000_000
"""Where virtual wall clocks begin: some instant, the same in every run."""


class DeadlockError(Exception):
    """Nothing can ever happen again: every task waits and no timer is set."""


class _JumpingSelector(selectors.SelectSelector):
    """Never waits for a file: there are none. Time passes instead."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise DeadlockError("every task waits and no timer is set")
        self.now_s += max(0.0, timeout)
        return []


WORLD = "world"

PROCESS: ContextVar[str] = ContextVar("process", default=WORLD)
"""The simulated process that the running task belongs to; tasks it starts belong to it too."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """Deterministic: one thread, no files, timers in order.

    A process can be frozen, as by SIGSTOP: nothing of it runs, and whatever would have run meanwhile does so, in
    order, when it is thawed.
    """

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        self._frozen: dict[
            str, list[tuple[asyncio.Handle, Callable[..., object], tuple[Any, ...], Context]]
        ] = {}
        super().__init__(self._jumping)

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._jumping.now_s

    def freeze(self, process: str) -> None:
        """Run nothing more of a process."""
        self._frozen.setdefault(process, [])

    def thaw(self, process: str) -> None:
        """Let a process go on where it was; harmless where it was not frozen."""
        for handle, callback, arguments, context in self._frozen.pop(process, ()):
            super().call_soon(_resume, handle, callback, arguments, context=context)

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """As every event loop's, but not for a frozen process."""
        if self._frozen:
            where = copy_context() if context is None else context
            held = self._frozen.get(where.get(PROCESS, WORLD))
            if held is not None:
                handle = asyncio.Handle(callback, args, self, where)
                held.append((handle, callback, args, where))
                return handle
        return super().call_soon(callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """As every event loop's; a timer of a frozen process fires when it is thawed."""
        where = copy_context() if context is None else context
        own: list[asyncio.TimerHandle] = []
        own.append(super().call_at(when, self._fire, own, callback, args, where, context=where))
        return own[0]

    def _fire(
        self,
        own: list[asyncio.TimerHandle],
        callback: Callable[..., object],
        arguments: tuple[Any, ...],
        context: Context,
    ) -> None:
        held = self._frozen.get(PROCESS.get()) if self._frozen else None
        if held is None:
            callback(*arguments)
        else:
            held.append((own[0], callback, arguments, context))


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run to the end in virtual time."""
    loop = VirtualLoop()
    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(main)
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        pending = asyncio.all_tasks(loop)
        if pending:
            loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
        asyncio.set_event_loop(None)
        loop.close()


def virtual_ms() -> int:
    """The running loop's time."""
    return int(asyncio.get_running_loop().time() * 1000)


class SimClock:
    """One machine's clocks. ``wall_skew_ms`` is how wrong its wall clock is."""

    def __init__(self, name: str, random: Random, wall_skew_ms: int = 0, rate: float = 1.0) -> None:
        self._name = name
        self._random = random
        self._boots = 0
        self._booted_ms = 0
        self.wall_skew_ms = wall_skew_ms
        self.rate = rate
        """How fast its boot clock runs; a real one is right to some parts in a million."""

    def reboot(self) -> None:
        """A new boot id, and a boot clock that starts over."""
        self._boots += 1
        self._booted_ms = virtual_ms()

    def now(self) -> Now:
        """As orchestrator.control.loop.Clock has it."""
        return Now(EPOCH_WALL_MS + virtual_ms() + self.wall_skew_ms, self.boottime_ms(), self.boot_id())

    def elapsed_s(self) -> float:
        """As orchestrator.control.loop.Clock has it; nothing takes time here that is not waited for."""
        return virtual_ms() / 1000

    def boottime_ms(self) -> int:
        """As orchestrator.agent.ports.AgentClock has it."""
        return int((virtual_ms() - self._booted_ms) * self.rate)

    def boot_id(self) -> str:
        """One per boot."""
        return f"{self._name}-boot-{self._boots}"

    def jitter(self, base_s: float) -> float:
        """Seeded, within the same bounds as the real one."""
        return base_s * (0.5 + self._random.random())


def _resume(handle: asyncio.Handle, callback: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    """What was held back, unless what ran before it has cancelled it."""
    if not handle.cancelled():
        callback(*arguments)


class Processes:
    """Tasks by simulated process, so that one can be frozen, or killed with everything it had begun."""

    def __init__(self) -> None:
        self._tasks: dict[str, dict[asyncio.Task[Any], None]] = {}
        loop = asyncio.get_running_loop()
        if not isinstance(loop, VirtualLoop):
            raise TypeError("simulated processes need virtual time; begin with run_virtual")
        self._loop = loop
        loop.set_task_factory(self._make)

    def freeze(self, process: str) -> None:
        """Stop a process as it stands."""
        self._loop.freeze(process)

    def thaw(self, process: str) -> None:
        """Let a frozen process go on."""
        self._loop.thaw(process)

    def _make(
        self,
        loop: asyncio.AbstractEventLoop,
        coroutine: Any,
        context: Context | None = None,
    ) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, context=context)
        process = context.run(PROCESS.get) if context is not None else PROCESS.get()
        tasks = self._tasks.setdefault(process, {})
        tasks[task] = None
        task.add_done_callback(lambda done: tasks.pop(done, None))
        return task

    def spawn(self, process: str, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a task as part of a process."""
        context = copy_context()
        context.run(PROCESS.set, process)
        return asyncio.get_running_loop().create_task(coroutine, context=context)

    async def kill(self, process: str) -> None:
        """End every task of a process now; what they were about to do stays undone."""
        tasks = self._tasks.pop(process, {})
        doomed = [task for task in tasks if task is not asyncio.current_task()]
        for task in doomed:
            task.cancel()
        self.thaw(process)
        await asyncio.gather(*doomed, return_exceptions=True)
