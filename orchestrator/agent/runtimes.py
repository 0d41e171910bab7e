"""The runtimes of this machine: built when a member needs one, and the network's default before any does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import structlog

from orchestrator.adapters.node_records import RuntimeName
from orchestrator.adapters.runtimes import Provisioned, Runtime, RuntimeDigest
from orchestrator.adapters.runtimes.errors import RuntimeUnavailableError
from orchestrator.api.v1 import agent_pb2, worker_pb2

if TYPE_CHECKING:
    from orchestrator.agent.ports import AgentClock, ControlChannel

log = structlog.get_logger(__name__)

RETRY_S = 15.0
RETRY_S_MAX = 900.0
"""A build downloads some 300 MB: one that fails halfway must not be begun anew each minute for hours."""

BUILDING, READY, FAILED = "building", "ready", "failed"


class Store(Protocol):
    """Runtimes on the disk, as RuntimeStore keeps them."""

    def find(self, digest: RuntimeDigest) -> Provisioned | None: ...

    def ready(self) -> tuple[RuntimeDigest, ...]: ...

    async def provision(self, runtime: Runtime, progress: Callable[[str], None]) -> Provisioned: ...


@dataclass(slots=True)
class Runtimes:
    """Builds runtimes, each once at a time, and knows what became of those that were asked for."""

    store: Store
    known: Mapping[str, Runtime]
    """Runtimes that the agent brings along, by digest."""
    fetch: Callable[[RuntimeName], Awaitable[Runtime]]
    """Asks the network for another one. Raises OSError without a session, ValueError for a wrong answer."""
    say: Callable[[str], None]
    clock: AgentClock
    _turns: dict[str, asyncio.Lock] = field(default_factory=dict, init=False)
    _shown: dict[str, agent_pb2.AgentRuntime] = field(default_factory=dict, init=False)

    async def provision(self, wanted: RuntimeName) -> Provisioned:
        """The runtime, built now where it is not here yet. Raises RuntimeUnavailableError, OSError, ValueError."""
        async with self._turns.setdefault(wanted.digest, asyncio.Lock()):
            ready = self.store.find(RuntimeDigest(wanted.digest))
            if ready is None:
                ready = await self._build(wanted)
            self._note(wanted, READY)
            return ready

    def shown(self) -> list[agent_pb2.AgentRuntime]:
        """Those that were asked for since the agent's start, for its owner."""
        return list(self._shown.values())

    async def _build(self, wanted: RuntimeName) -> Provisioned:
        begun_ms = self.clock.boottime_ms()
        before = self._shown.get(wanted.digest, agent_pb2.AgentRuntime())
        self._note(wanted, BUILDING)
        try:
            runtime = self.known.get(wanted.digest)
            if runtime is None:
                runtime = await self.fetch(wanted)
            if before.state != FAILED:
                self.say(f"building runtime {wanted.name}: Python and {len(runtime.locked)} packages")
            ready = await self.store.provision(runtime, lambda step: self._step(wanted, step))
        except (RuntimeUnavailableError, OSError, ValueError) as error:
            reason = str(error) or type(error).__name__
            self._note(wanted, FAILED, reason)
            # The same reason after each pause is no news.
            if reason != before.detail:
                self.say(f"runtime {wanted.name} cannot be built, and is tried again: {reason}")
            raise
        except asyncio.CancelledError:
            self._note(wanted, FAILED, "stopped halfway")
            raise
        self.say(f"runtime {wanted.name} is ready in {(self.clock.boottime_ms() - begun_ms) / 1000:.0f} s")
        return ready

    def _step(self, wanted: RuntimeName, step: str) -> None:
        log.info("runtime_progress", runtime=wanted.name, digest=wanted.digest[:12], step=step)
        self._note(wanted, BUILDING, step)

    def _note(self, wanted: RuntimeName, state: str, detail: str = "") -> None:
        self._shown[wanted.digest] = agent_pb2.AgentRuntime(
            name=wanted.name, digest=wanted.digest, state=state, detail=detail
        )


class WarmUp:
    """An attendant of every session: has the network's default runtime built before the first job needs it."""

    def __init__(self, runtimes: Runtimes, clock: AgentClock) -> None:
        self._runtimes = runtimes
        self._clock = clock
        self._wanted: RuntimeName | None = None
        self._changed = asyncio.Event()

    async def attend(self, channel: ControlChannel) -> None:
        """Nothing is sent."""

    def take(self, message: worker_pb2.SessionResponse) -> None:
        """A welcome names the default; the one that is in the works already is no news."""
        told = message.welcome.default_runtime
        wanted = RuntimeName(told.name, told.digest) if told.digest else None
        if wanted is not None and wanted != self._wanted:
            self._wanted = wanted
            self._changed.set()

    async def run(self) -> None:
        """Have it built, with longer and longer pauses where that fails; ends only cancelled."""
        failures = 0
        while True:
            if self._wanted is None or await self._have(self._wanted):
                await self._changed.wait()
                failures = 0
            else:
                pause_s = self._clock.jitter(min(RETRY_S_MAX, RETRY_S * 2 ** min(failures, 10)))
                failures += 1
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._changed.wait()
            self._changed.clear()

    async def _have(self, wanted: RuntimeName) -> bool:
        try:
            await self._runtimes.provision(wanted)
        except (RuntimeUnavailableError, OSError, ValueError) as error:
            log.warning("warm_up_failed", runtime=wanted.name, reason=str(error))
            return False
        return True
