"""The listener of whoever watches: health and readiness for everybody, metrics for those who show the token.

It listens before anything else is opened, so that what waits for this process sees that it lives and why it does not
serve yet. ``open`` then hands in what there is to show; routes of others stand behind the same token.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Protocol

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from orchestrator.adapters.http_listener import BACKLOG, Bounds, HttpListener
from orchestrator.adapters.keys import KeyFileError
from orchestrator.core.errors import RefusalCode, RefusedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from orchestrator.adapters.metrics.token import TokenFile

FRESH_S = 1.0
"""A page is made at most this often, however often somebody asks: Prometheus asks each fifteen seconds."""

BYTES_PER_S = 20e6
"""Sent of each kind in the long run: a megabyte takes half a millisecond of the thread that decides, so all of it a
hundredth. Ten Prometheus servers that ask for ten thousand workers each fifteen seconds stay within it."""

BYTES_AT_ONCE = 100e6
"""Prometheus spreads what it asks for over its interval; five of those servers that do not fit all the same."""

ANSWER_BYTES_MIN = 100e3
"""What an answer counts at least: a request costs something however little it brings."""

SCRAPE_BYTES_MIN = 30e3
"""The same of a scrape over a session: 667 a second, so that ten thousand agents and as many Ray nodes can be asked each
thirty seconds."""

SCRAPES_AT_ONCE = 256
"""Each waits for a worker, mostly for less than a tenth of a second; some of them for all of their ten seconds."""

ANSWERS_AT_ONCE = 64
"""Of each other kind: three Prometheus servers that ask for twenty pages in the same instant."""

REFUSALS_AT_ONCE = 8
"""Of those who show no token."""

PAUSE_S = 1.0
"""Whoever asks for more waits so long for the refusal: a storm then asks once a second on each connection."""

PAGE_S_MAX = 4.0
"""For one page: the network's waits two seconds for the state, writing the largest takes tenths of one."""

CLOSE_S = 1.0
"""For scrapes under way when the listener ends; Prometheus asks again."""

CONNECTIONS_MAX = 512
"""Each Prometheus holds one for every answer that it waits for. All that may be answered at once are fewer, so that
whoever asks whether this process lives gets in always."""

IDLE_S = 90.0
"""Targets are asked each 15 to 60 s, on the connections of the last time."""

STARTING = "starting: the database is being opened and the state loaded"
STOPPING = "stopping"

HEALTHZ, READYZ = "/healthz", "/readyz"

PAGE = re.compile("[0-9]{1,6}")
"""More pages than any network has workers."""


class Kind(StrEnum):
    """What is asked for. Who storms one leaves the others."""

    NETWORK = "network"
    WORKERS = "workers"
    LISTS = "lists"
    SCRAPES = "scrapes"
    STRANGERS = "strangers"
    """Whatever is asked for without the token: who guesses at it is slow, and takes no time from anybody."""


@dataclass(frozen=True, slots=True)
class Share:
    """What may be sent of one kind."""

    at_once: int
    bytes_at_once: float
    bytes_min: float
    """What an answer counts at least."""


SHARES = {
    Kind.NETWORK: Share(ANSWERS_AT_ONCE, BYTES_AT_ONCE, ANSWER_BYTES_MIN),
    Kind.WORKERS: Share(ANSWERS_AT_ONCE, BYTES_AT_ONCE, ANSWER_BYTES_MIN),
    Kind.LISTS: Share(ANSWERS_AT_ONCE, BYTES_AT_ONCE, ANSWER_BYTES_MIN),
    # Each is work for a session besides: no more than a second's at once.
    Kind.SCRAPES: Share(SCRAPES_AT_ONCE, BYTES_PER_S, SCRAPE_BYTES_MIN),
    # A thousand at once, then 200 a second. A refusal is sent at once, so few are ever under way.
    Kind.STRANGERS: Share(REFUSALS_AT_ONCE, BYTES_AT_ONCE, ANSWER_BYTES_MIN),
}


class Pages(Protocol):
    """What is shown, as Prometheus reads it."""

    async def network(self) -> bytes:
        """Metrics of the network and of this process."""
        ...

    def page_count(self) -> int:
        """How many pages of workers there are; at least one."""
        ...

    async def workers(self, page: int) -> bytes:
        """Metrics of the workers of one page, 0 to ``page_count()`` - 1."""
        ...


class MetricsServer:
    """``start`` it, then ``open`` it once there is something to show, then ``close`` it."""

    def __init__(self, token: TokenFile) -> None:
        self._token = token
        self._listener = HttpListener(Bounds(CONNECTIONS_MAX, IDLE_S))
        self._runner: web.AppRunner | None = None
        self._unready: Callable[[], str] = lambda: STARTING
        self._pages: Pages | None = None
        self._made: dict[str, tuple[float, asyncio.Task[bytes]]] = {}
        self._making = asyncio.Lock()
        self._left: dict[Kind, tuple[float, float]] = {}
        """Bytes that may be sent, and when that was so."""
        self._answering: Counter[Kind] = Counter()

    async def start(self, host: str, port: int) -> int:
        """Listen: the port, the real one where 0 was asked for. Raises OSError where it is taken."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family, backlog=BACKLOG)
        await self._serve(())
        self._listener.listen([listening])
        return self._listener.port

    async def open(
        self, pages: Pages, unready: Callable[[], str], routes: Sequence[web.RouteDef] = ()
    ) -> None:
        """Show these from now on. ``unready`` says in one line why this process does not serve; empty: it does.

        ``routes`` are others' and want the token, too.
        """
        self._pages, self._unready = pages, unready
        await self._serve(routes)

    def stopping(self) -> None:
        """Be unready from now on."""
        self._unready = lambda: STOPPING

    async def close(self) -> None:
        """Stop listening."""
        await self._listener.close()
        if self._runner is not None:
            await self._runner.cleanup()

    @property
    def token_file(self) -> Path:
        """Where the token is that everybody but health and readiness wants."""
        return self._token.path

    async def _serve(self, routes: Sequence[web.RouteDef]) -> None:
        """Answer by these routes instead of those before; the socket stays, so nobody is refused between."""
        app = web.Application(middlewares=[self._listener.follow, self._guard])
        app.router.add_get(HEALTHZ, self._healthz)
        app.router.add_get(READYZ, self._readyz)
        if self._pages is not None:
            app.router.add_get("/metrics", self._network)
            app.router.add_get("/metrics/workers", self._workers)
        app.router.add_routes(routes)
        runner = web.AppRunner(app, handle_signals=False, access_log=None, shutdown_timeout=CLOSE_S)
        await runner.setup()
        assert runner.server is not None  # noqa: S101 -- it was set up
        self._listener.serve(runner.server)
        before, self._runner = self._runner, runner
        if before is not None:
            await before.cleanup()

    # ------------------------------------------------------------ answers

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if request.path in (HEALTHZ, READYZ):
            return await handler(request)
        refusal = self._refusal(request)
        if refusal is not None:
            return await self._bounded(Kind.STRANGERS, request, partial(_answer, refusal))
        if self._pages is None:
            return _line(503, self._unready())
        return await self._bounded(_kind(request.path), request, handler)

    def _refusal(self, request: web.Request) -> web.Response | None:
        """What whoever does not show the token is answered; None: he does."""
        try:
            admitted = self._token.admits(request.headers.get("Authorization", ""))
        except KeyFileError as error:
            return _line(503, f"nobody can be let in: {error}")
        if admitted:
            return None
        refusal = _line(401, f"show `Authorization: Bearer TOKEN`; the token is in {self._token.path}")
        refusal.headers["WWW-Authenticate"] = "Bearer"
        return refusal

    async def _healthz(self, _request: web.Request) -> web.Response:
        return _line(200, "alive")

    async def _readyz(self, _request: web.Request) -> web.Response:
        reason = self._unready()
        return _line(503, reason) if reason else _line(200, "ready")

    async def _network(self, _request: web.Request) -> web.Response:
        assert self._pages is not None  # noqa: S101 -- the route is there only then
        return await self._shown("network", self._pages.network)

    async def _workers(self, request: web.Request) -> web.Response:
        assert self._pages is not None  # noqa: S101 -- the route is there only then
        pages, count = self._pages, self._pages.page_count()
        said = request.query.get("page")
        if said is None and count > 1:
            return _line(400, f"page: there are {count}; ask for each, page=0 to page={count - 1}")
        page = int(said) if said is not None and PAGE.fullmatch(said) else 0 if said is None else count
        if page >= count:
            return _line(404, f"page: a number from 0 to {count - 1} is expected")
        return await self._shown(f"workers/{page}", lambda: pages.workers(page))

    async def _shown(self, name: str, make: Callable[[], Awaitable[bytes]]) -> web.Response:
        try:
            body = await self._fresh(name, make)
        except RefusedError as refusal:
            return _line(503, str(refusal))
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _bounded(
        self,
        kind: Kind,
        request: web.Request,
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        """Answer within the share of this kind; refuse after a while where it is used up."""
        share = SHARES[kind]
        if self._left_bytes(kind) <= 0 or self._answering[kind] >= share.at_once:
            with self._listener.yielding(request):
                await asyncio.sleep(PAUSE_S)
            return _line(429, "more is asked for than this control plane has time to send; ask less often")
        self._answering[kind] += 1
        sent_bytes = 0
        try:
            response = await handler(request)
            body = response.body if isinstance(response, web.Response) else None
            sent_bytes = len(body) if isinstance(body, bytes) else 0
            return response
        finally:
            self._answering[kind] -= 1
            left_bytes = self._left_bytes(kind) - max(sent_bytes, share.bytes_min)
            self._left[kind] = (left_bytes, asyncio.get_running_loop().time())

    def _left_bytes(self, kind: Kind) -> float:
        """What may be sent now; below zero where too much was."""
        now_s = asyncio.get_running_loop().time()
        left, at_s = self._left.get(kind, (SHARES[kind].bytes_at_once, now_s))
        return min(SHARES[kind].bytes_at_once, left + (now_s - at_s) * BYTES_PER_S)

    async def _make(self, make: Callable[[], Awaitable[bytes]]) -> bytes:
        """One at a time: each thread that writes a page takes turns with the one that decides.

        And none for longer than a scrape waits: one that hangs with a commit must not keep the others from being shown.
        """
        async with self._making:
            try:
                async with asyncio.timeout(PAGE_S_MAX):
                    return await make()
            except TimeoutError:
                message = (
                    "the control plane is behind: a commit does not end; see orchestrator_loop_lag_seconds"
                )
                raise RefusedError(RefusalCode.UNAVAILABLE, message) from None

    async def _fresh(self, name: str, make: Callable[[], Awaitable[bytes]]) -> bytes:
        """A page that is young enough; whoever asks while it is being made waits for the same one."""
        now_s = asyncio.get_running_loop().time()
        for known, (made_s, making) in list(self._made.items()):
            if making.done() and now_s - made_s >= FRESH_S:
                del self._made[known]
        if name not in self._made:
            self._made[name] = (now_s, asyncio.create_task(self._make(make)))
        # Whoever goes away takes nothing from the others who wait for it.
        return await asyncio.shield(self._made[name][1])


def _kind(path: str) -> Kind:
    """Of whatever is asked for by name; what is not there costs no less than the network's page."""
    if path.startswith("/scrape/"):
        return Kind.SCRAPES
    if path.startswith("/sd/"):
        return Kind.LISTS
    return Kind.WORKERS if path == "/metrics/workers" else Kind.NETWORK


async def _answer(response: web.Response, _request: web.Request) -> web.StreamResponse:
    """Whoever asks."""
    return response


def _line(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=f"{text}\n")
