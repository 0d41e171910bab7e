"""Accepts connections for a server over HTTP: no more than so many, and none that says nothing for ever.

Whoever can reach a listener can open connections and leave them open; each holds a file of this process, and one that
runs out of those writes no database either. So a connection that waits for a request is closed after a while, and
where all are taken, a new one takes the place of the one that has waited longest. One whose request is being answered
gives way to nobody, but it is cut where its peer stops taking the answer.
"""

from __future__ import annotations

import asyncio
import socket
from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
from aiohttp import web

from orchestrator.adapters.accepting import accepted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence
    from ssl import SSLContext

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
    Serve = Callable[[], asyncio.Protocol]

log = structlog.get_logger(__name__)

BACKLOG = 128
"""Connections that wait to be accepted: a storm beyond it is turned away by the system, without work for us."""

HANDSHAKE_S = 10.0
"""For TLS: three round trips, over the worst line there is."""

STALL_S = 60.0
"""Without a byte taken of what waits to be sent: a line that is that slow has broken, though nobody has said so."""

LOOKS = 10
"""How often a connection is looked at within the time that it has: it has a tenth more at most."""

ACCEPT_PAUSE_S = 1.0
"""Where the system gives no more files: what is open ends meanwhile."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of one listener."""

    connections_max: int
    idle_s: float
    """From the accepting or the last answer until the head of the next request is whole."""
    stall_s: float = STALL_S


async def bind(host: str, port: int) -> list[socket.socket]:
    """Sockets for every address of ``host``, as asyncio binds them. Raises OSError where the port is taken."""
    server = await asyncio.get_running_loop().create_server(asyncio.Protocol, host, port, start_serving=False)
    try:
        return [one.dup() for one in server.sockets]
    finally:
        server.close()


class _Unread(asyncio.Protocol):
    """Of a connection below TLS, until that is laid over it."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 -- of a stream
        transport.pause_reading()


class _Connection(asyncio.Protocol):
    """What stands between the transport and the server's own protocol."""

    def __init__(self, listener: HttpListener, own: asyncio.Protocol) -> None:
        self._listener = listener
        self._own = own
        self.transport: asyncio.Transport | None = None
        """None before the handshake has ended."""
        self.raw: asyncio.Transport | None = None
        """What carries it, below TLS: that alone knows what the system has not taken yet, and can end it at any time."""
        self.task: asyncio.Task[None] | None = None
        self.requests = 0
        """Under way."""
        self._early = bytearray()
        """Came with the end of the handshake."""
        self._lost = False
        self._seen_bytes = 0
        self._seen_s = 0.0
        """When these were unsent first."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 -- of a stream
        if self._lost:
            return
        self.transport = transport
        self.raw = self.raw or transport
        self._listener.opened(self, transport)
        self._own.connection_made(transport)
        if self._early:
            self._own.data_received(bytes(self._early))
            self._early.clear()

    def data_received(self, data: bytes) -> None:
        if self.transport is None:
            self._early += data
        else:
            self._own.data_received(data)

    def eof_received(self) -> bool | None:
        return self._own.eof_received() if self.transport is not None else None

    def pause_writing(self) -> None:
        self._own.pause_writing()

    def resume_writing(self) -> None:
        self._own.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._listener.ended(self)
        if self.transport is not None:
            self._own.connection_lost(exc)

    def unsent(self) -> int:
        """Bytes that its peer has not taken yet."""
        if self.transport is None or self.raw is None:
            return 0
        below = self.raw.get_write_buffer_size()
        if self.transport is self.raw:
            return below
        try:
            return below + self.transport.get_write_buffer_size()
        except AttributeError:
            # CPython 3.11 forgets its TLS at the second close; what that still holds waits for what is below.
            return below

    def stalled(self, now_s: float, stall_s: float) -> bool:
        """Whether its peer has taken nothing for so long of what waits for it."""
        unsent_bytes = self.unsent()
        if not unsent_bytes or unsent_bytes != self._seen_bytes:
            self._seen_bytes, self._seen_s = unsent_bytes, now_s
            return False
        return now_s - self._seen_s >= stall_s

    def cut(self) -> None:
        """End it without a word."""
        if self.transport is not None and self.raw is not None:
            self.raw.abort()
        elif self.task is not None:
            self.task.cancel()


async def _ended(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _tell(task: asyncio.Task[None]) -> None:
    """Nobody waits for it before the end: a fault of ours shall not be silent until then."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("listener_broken", exc_info=error)


class HttpListener:
    """``listen``, and say who ``serve``s; ``close`` accepts no more and leaves what is open to its server."""

    def __init__(self, bounds: Bounds, tls: SSLContext | None = None) -> None:
        self._bounds = bounds
        self._tls = tls
        self._serve: Serve | None = None
        self._waiting: OrderedDict[_Connection, float] = OrderedDict()
        """For a request, since when; the longest first."""
        self._answered: set[_Connection] = set()
        self._by_transport: dict[asyncio.BaseTransport, _Connection] = {}
        self._sockets: list[socket.socket] = []
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def connections(self) -> int:
        """That are open, handshakes under way included."""
        return len(self._waiting) + len(self._answered)

    @property
    def port(self) -> int:
        """Of the first socket."""
        return int(self._sockets[0].getsockname()[1])

    def serve(self, serve: Serve) -> None:
        """Let these answer what is accepted from now on: an aiohttp runner's ``server``."""
        self._serve = serve

    def listen(self, sockets: Sequence[socket.socket]) -> None:
        """Accept what comes to these; they are closed with the listener."""
        self._sockets = list(sockets)
        for one in self._sockets:
            one.settimeout(0)
            one.listen(BACKLOG)
            self._tasks.append(asyncio.create_task(self._accept(one)))
        self._tasks.append(asyncio.create_task(self._look_forever()))
        for task in self._tasks:
            task.add_done_callback(_tell)

    async def close(self) -> None:
        """Stop listening, and end what has not finished its handshake."""
        await _ended(self._tasks)
        # Only now: one that had not begun would never close its socket.
        await _ended([one.task for one in self._waiting if one.transport is None and one.task is not None])
        for one in self._sockets:
            one.close()

    # ------------------------------------------------------------ accepting

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock = await accepted(listening)
            except OSError as error:
                log.warning("connection_not_accepted", error=str(error))
                await asyncio.sleep(ACCEPT_PAUSE_S)
                continue
            if self._serve is None or not self._has_room():
                sock.close()
            else:
                connection = _Connection(self, self._serve())
                self._waiting[connection] = loop.time()
                connection.task = asyncio.create_task(self._open(connection, sock))
            # Where more are waiting, accepting would never let anybody else have a turn.
            await asyncio.sleep(0)

    def _has_room(self) -> bool:
        """Whether another one fits in, if need be for the one that has waited longest."""
        if self.connections < self._bounds.connections_max:
            return True
        # One that takes its answer still only where there is no other: a peer that takes a little now and then would
        # keep its place for ever.
        silent = (one for one in self._waiting if not one.unsent())
        longest = next(silent, None) or next(iter(self._waiting), None)
        if longest is None:
            return False
        del self._waiting[longest]
        longest.cut()
        return True

    async def _open(self, connection: _Connection, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            if self._tls is None:
                await loop.connect_accepted_socket(lambda: connection, sock)
                return
            connection.raw, _ = await loop.connect_accepted_socket(_Unread, sock)
            transport = await loop.start_tls(
                connection.raw, connection, self._tls, server_side=True, ssl_handshake_timeout=HANDSHAKE_S
            )
            if transport is not None:
                connection.connection_made(transport)
        except OSError as error:
            log.debug("connection_not_opened", error=str(error))
        finally:
            if connection.transport is None:
                self._waiting.pop(connection, None)
                if connection.raw is None:
                    sock.close()
                else:
                    connection.raw.abort()

    # ------------------------------------------------------------ connections

    def opened(self, connection: _Connection, transport: asyncio.BaseTransport) -> None:
        """Its handshake has ended."""
        self._by_transport[transport] = connection

    def ended(self, connection: _Connection) -> None:
        """It is closed."""
        self._waiting.pop(connection, None)
        self._answered.discard(connection)
        if connection.transport is not None:
            self._by_transport.pop(connection.transport, None)

    @web.middleware
    async def follow(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The first middleware of each application that is served: a request is being answered."""
        transport = request.transport
        connection = None if transport is None else self._by_transport.get(transport)
        if connection is None:
            return await handler(request)
        connection.requests += 1
        if self._waiting.pop(connection, None) is not None:
            self._answered.add(connection)
        try:
            return await handler(request)
        finally:
            connection.requests -= 1
            if not connection.requests and connection in self._answered:
                self._answered.discard(connection)
                self._waiting[connection] = asyncio.get_running_loop().time()

    @contextmanager
    def yielding(self, request: web.Request) -> Iterator[None]:
        """Meanwhile its connection gives way to new ones as if it waited for a request: it is only held up."""
        transport = request.transport
        connection = None if transport is None else self._by_transport.get(transport)
        if connection is None or connection not in self._answered:
            yield
            return
        self._answered.discard(connection)
        self._waiting[connection] = asyncio.get_running_loop().time()
        try:
            yield
        finally:
            if self._waiting.pop(connection, None) is not None:
                self._answered.add(connection)

    async def _look_forever(self) -> None:
        every_s = min(self._bounds.idle_s, self._bounds.stall_s) / LOOKS
        while True:
            await asyncio.sleep(every_s)
            self._look(asyncio.get_running_loop().time())

    def _look(self, now_s: float) -> None:
        """Close what has waited too long, and cut what is not taken."""
        for connection in [*self._waiting, *self._answered]:
            if connection.stalled(now_s, self._bounds.stall_s):
                connection.cut()
        for connection, since_s in list(self._waiting.items()):
            if now_s - since_s < self._bounds.idle_s:
                break
            if connection.unsent():
                # Its answer is being taken still.
                continue
            if connection.transport is not None and not connection.transport.is_closing():
                connection.transport.close()
            else:
                connection.cut()
