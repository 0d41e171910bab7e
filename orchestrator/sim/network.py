"""A network between agents and the control plane: delay, cut connections, partitions, frozen machines."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.api.v1 import worker_pb2
from orchestrator.control.authority import Peer
from orchestrator.core.errors import RefusedError
from orchestrator.core.ids import AttemptId, WorkerId

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from pathlib import Path
    from random import Random

    from orchestrator.agent.ports import LogChunk
    from orchestrator.control.logs import Logs
    from orchestrator.control.sessions import Sessions

DELAY_S_MAX = 0.15
BLACKHOLE_S = 20.0
"""A link that swallows everything is noticed by keepalive after about this long."""


class Link:
    """One worker's way to the control plane, and what is wrong with it now."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self.blocked = False
        self.loss = 0.0
        self.delay_s_max = DELAY_S_MAX
        self.pipe: Pipe | None = None
        """Of the newest session."""
        self.reports: list[bytes] = []
        """What was reported of attempts over this link, ever."""

    async def pass_through(self) -> None:
        """Take a message across; raises ConnectionError where the connection breaks under it."""
        await asyncio.sleep(self._random.random() * self.delay_s_max)
        if self.blocked:
            await asyncio.sleep(BLACKHOLE_S)
            raise ConnectionError("no answer")
        if self._random.random() < self.loss:
            raise ConnectionError("connection reset")


class Pipe:
    """One session's two directions, in order each; either side's end ends both."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._up: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._down: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.server: asyncio.Task[None] | None = None

    async def send(self, message: worker_pb2.SessionRequest) -> None:
        """Agent to control plane. Bytes travel, so both sides own what they read."""
        await self._link.pass_through()
        if self.server is not None and self.server.done():
            raise ConnectionError("the control plane is gone")
        data = message.SerializeToString()
        if any(member.attempts for member in message.observed.members):
            self._link.reports.append(data)
        self._up.put_nowait(data)

    def repeat(self, data: bytes) -> None:
        """Have a message arrive that was sent long ago."""
        if self.server is not None and not self.server.done():
            self._up.put_nowait(data)

    async def receive(self) -> worker_pb2.SessionResponse | None:
        """Control plane to agent."""
        data = await self._down.get()
        if data is None:
            return None
        await self._link.pass_through()
        return worker_pb2.SessionResponse.FromString(data)

    async def answer(self, message: worker_pb2.SessionResponse) -> None:
        """The control plane's side of sending."""
        self._down.put_nowait(message.SerializeToString())

    async def requests(self) -> AsyncIterator[worker_pb2.SessionRequest]:
        """The control plane's side of receiving."""
        while (data := await self._up.get()) is not None:
            yield worker_pb2.SessionRequest.FromString(data)

    def hang_up(self) -> None:
        """Both sides find the end."""
        self._up.put_nowait(None)
        self._down.put_nowait(None)

    async def close(self) -> None:
        """The agent's side of the end."""
        self.hang_up()


@dataclass(frozen=True, slots=True)
class Parts:
    """What of a living control plane agents reach; ``spawn`` starts a task that dies with its process."""

    sessions: Sessions
    logs: Logs
    spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]


async def _serve(sessions: Sessions, pipe: Pipe, worker_id: str) -> None:
    try:
        # What TLS would show of the agent at the other end.
        await sessions.serve(pipe.requests(), pipe.answer, Peer(WorkerId(worker_id), "", 0))
    except RefusedError:
        pass  # a control plane that stops refuses everything; the agent dials again
    finally:
        pipe.hang_up()


class SimControlPlane:
    """ControlPlane port of one agent. ``current`` gives the parts of the control plane that lives now, or None."""

    def __init__(self, link: Link, worker_id: str, current: Callable[[], Parts | None]) -> None:
        self._link = link
        self._worker_id = worker_id
        self._current = current
        self._token = ""

    def _parts(self) -> Parts:
        parts = self._current()
        if parts is None:
            raise ConnectionError("connection refused")
        return parts

    async def open(self) -> Pipe:
        """Dial, and have the session served."""
        await self._link.pass_through()
        parts = self._parts()
        pipe = self._link.pipe = Pipe(self._link)
        pipe.server = parts.spawn(_serve(parts.sessions, pipe, self._worker_id))
        return pipe

    def authorise(self, session_token: str) -> None:
        """As ControlPlane.authorise."""
        self._token = session_token

    async def ship_log(self, chunk: LogChunk) -> tuple[int, bool]:
        """As ControlPlane.ship_log."""
        await self._link.pass_through()
        parts = self._parts()
        try:
            worker_id = parts.sessions.worker_of(self._token)
            answer = await parts.logs.ship(
                WorkerId(worker_id), AttemptId(chunk.attempt_id), chunk.offset, chunk.data, final=chunk.final
            )
        except RefusedError as refusal:
            raise ConnectionError(refusal.message) from refusal
        await self._link.pass_through()
        return answer

    async def fetch_package(self, attempt_id: str, sha256: str, into: Path) -> None:
        """No simulated job brings packages."""
        raise ConnectionError(f"no package {sha256} of {attempt_id} for {into}")
