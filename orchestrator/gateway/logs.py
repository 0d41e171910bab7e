"""Logs, whole and followed.

Ray's client takes any close of the socket for the end of the job and exits 0 unless it then reads FAILED.
So the socket is held while the job is queued or running, closed only when the job has ended, and otherwise
cut without a close, which is the one thing the client takes for an error.
"""

from __future__ import annotations

import asyncio
import codecs
import json
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from aiohttp import ClientConnectionResetError, WSMsgType, web

from orchestrator.core.errors import RefusalCode, RefusedError, invalid
from orchestrator.gateway.config import CONFIG, JOBS, tenant_of
from orchestrator.gateway.errors import log_failure
from orchestrator.gateway.jobs import submission_id_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from orchestrator.core.ids import TenantId

FRAME_CHARS_MAX = 256 * 1024
"""At most 1 MiB as UTF-8: Ray's client fails on a frame of 4 MiB."""

CLIENT_MESSAGE_BYTES_MAX = 4 * 1024
"""Ray's client says nothing on this socket; what others send is read only to be dropped."""

CLOSE_TIMEOUT_S = 5.0
"""Ray's client answers a close at once; one that does not has left."""

CLOSED = (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR)


class Tails:
    """The sockets that follow a log, bounded per tenant, and cut together when the gateway closes."""

    def __init__(self, per_tenant_max: int) -> None:
        self._per_tenant_max = per_tenant_max
        self._open: set[asyncio.Transport] = set()
        self._count: Counter[TenantId] = Counter()
        self._closed = False

    @contextmanager
    def holding(self, tenant_id: TenantId, transport: asyncio.Transport) -> Iterator[None]:
        """Count one socket in; EXHAUSTED past the bound, UNAVAILABLE once closed."""
        if self._closed:
            raise RefusedError(RefusalCode.UNAVAILABLE, "the gateway is closing; try again in a moment")
        if self._count[tenant_id] >= self._per_tenant_max:
            message = f"{self._per_tenant_max} logs are followed already; end one, or submit with --no-wait"
            raise RefusedError(RefusalCode.EXHAUSTED, message)
        self._count[tenant_id] += 1
        self._open.add(transport)
        try:
            yield
        finally:
            self._open.discard(transport)
            self._count[tenant_id] -= 1
            if not self._count[tenant_id]:
                del self._count[tenant_id]

    def cut(self) -> None:
        """Cut every socket without a close: the jobs behind them have not ended."""
        self._closed = True
        for transport in self._open:
            transport.abort()


TAILS = web.AppKey("TAILS", Tails)


async def get_log(request: web.Request) -> web.StreamResponse:
    """The log so far, in one JSON string, piece by piece: a log may be larger than memory."""
    async with _closing(request.app[JOBS].log(tenant_of(request), submission_id_of(request))) as pieces:
        # Before the first byte of an answer: afterwards it is too late to refuse.
        piece = await _next_or_none(pieces)
        response = web.StreamResponse()
        response.content_type = "application/json"
        await response.prepare(request)
        try:
            await _write_log(response, piece, pieces)
        except ClientConnectionResetError:
            raise
        except Exception as error:
            # An answer that began is no error any more to its reader, unless it is cut.
            if request.transport is not None:
                request.transport.abort()
            log_failure("log_cut", request, error)
            raise
    return response


async def _write_log(response: web.StreamResponse, piece: bytes | None, rest: AsyncIterator[bytes]) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    await response.write(b'{"logs": "')
    while piece is not None:
        await response.write(_quoted(decoder.decode(piece)))
        # A client that reads quickly never makes the write wait; the others' turn comes here.
        await asyncio.sleep(0)
        piece = await _next_or_none(rest)
    await response.write_eof(_quoted(decoder.decode(b"", final=True)) + b'"}')


def _quoted(text: str) -> bytes:
    """The inside of a JSON string."""
    return json.dumps(text)[1:-1].encode()


@asynccontextmanager
async def _closing(pieces: AsyncIterator[bytes]) -> AsyncIterator[AsyncIterator[bytes]]:
    """Whoever leaves in the middle leaves nothing open behind."""
    try:
        yield pieces
    finally:
        if isinstance(pieces, AsyncGenerator):
            await pieces.aclose()


async def tail_log(request: web.Request) -> web.StreamResponse:
    """Follow the log over a WebSocket until the job has ended."""
    tenant_id, submission_id = tenant_of(request), submission_id_of(request)
    config = request.app[CONFIG]
    socket = web.WebSocketResponse(
        timeout=CLOSE_TIMEOUT_S, compress=False, max_msg_size=CLIENT_MESSAGE_BYTES_MAX
    )
    if not socket.can_prepare(request).ok:
        raise invalid("Upgrade", "a log is followed over a WebSocket; for the log so far leave out /tail")
    await request.app[JOBS].job(tenant_id, submission_id)
    transport = request.transport
    if transport is None:
        raise ConnectionResetError
    with request.app[TAILS].holding(tenant_id, transport):
        await socket.prepare(request)
        try:
            if await _follow(request, socket, config.ping_interval_s):
                await socket.close()
            else:
                transport.abort()
        except ClientConnectionResetError:
            transport.abort()
        except Exception as error:  # noqa: BLE001 -- past the upgrade only a cut tells of an error
            transport.abort()
            log_failure("tail_cut", request, error)
        except BaseException:
            transport.abort()
            raise
    return socket


async def _follow(request: web.Request, socket: web.WebSocketResponse, ping_interval_s: float) -> bool:
    """Forward the log; True when the job has ended, False when the client left."""
    jobs, tenant_id, submission_id = request.app[JOBS], tenant_of(request), submission_id_of(request)
    async with _closing(jobs.follow_log(tenant_id, submission_id)) as pieces:
        follower = _Follower(socket, ping_interval_s)
        try:
            if not await follower.forward(pieces):
                return False
        finally:
            await follower.end()
    if not (await jobs.job(tenant_id, submission_id)).status.terminal:
        raise RuntimeError("a log ended before its job")
    return True


class _Follower:
    """Waits on three things at once: the next piece of the log, the client's leaving, the time to ping."""

    def __init__(self, socket: web.WebSocketResponse, ping_interval_s: float) -> None:
        self._socket = socket
        self._ping_interval_s = ping_interval_s
        self._left = asyncio.create_task(self._client_left())
        self._next: asyncio.Task[bytes | None] | None = None

    async def forward(self, pieces: AsyncIterator[bytes]) -> bool:
        """Send every piece at once; False when the client left before the end."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        while True:
            self._next = asyncio.create_task(_next_or_none(pieces))
            if not await self._await_next(self._next):
                return False
            piece = self._next.result()
            await self._send(decoder.decode(piece or b"", final=piece is None))
            if piece is None:
                return True

    async def end(self) -> None:
        """Leave nothing running behind."""
        tasks = [task for task in (self._next, self._left) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _await_next(self, piece: asyncio.Task[bytes | None]) -> bool:
        while True:
            waited: set[asyncio.Task[bytes | None] | asyncio.Task[None]] = {piece, self._left}
            await asyncio.wait(waited, timeout=self._ping_interval_s, return_when=asyncio.FIRST_COMPLETED)
            if self._left.done():
                return False
            if piece.done():
                return True
            # No answer is waited for: a paused terminal stops the client from answering, and it is not gone.
            await self._socket.ping()

    async def _send(self, text: str) -> None:
        for start in range(0, len(text), FRAME_CHARS_MAX):
            await self._socket.send_str(text[start : start + FRAME_CHARS_MAX])

    async def _client_left(self) -> None:
        while (await self._socket.receive()).type not in CLOSED:
            pass


async def _next_or_none(pieces: AsyncIterator[bytes]) -> bytes | None:
    return await anext(pieces, None)
