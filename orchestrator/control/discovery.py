"""Whom Prometheus should scrape (http_sd), and the scrapes that go over workers' sessions.

Handlers for the metrics listener, which lets nobody in without its token. Every target is that listener itself, under the
name by which Prometheus asked it: what is to be scraped is in the path.
"""

from __future__ import annotations

import asyncio
import math
import re
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeVar

import msgspec
from aiohttp import web

from orchestrator.adapters.metrics.exposition import CONTENT_TYPE
from orchestrator.control.scrapes import PATIENCE_S, ScrapeError, ScrapeOutcome
from orchestrator.core.errors import RefusedError
from orchestrator.core.ids import ClusterId, MemberId, WorkerId
from orchestrator.core.queries.scrape_targets import agent_labels, node_labels, worker_of_node

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence

    from orchestrator.control.loop import Loop
    from orchestrator.control.scrapes import Scrapes
    from orchestrator.control.sessions import Sessions
    from orchestrator.core.state import State

T = TypeVar("T")

Labels = dict[str, str]
Targets = list[tuple[str, Labels]]
"""(path below the listener, labels) of each."""

FRESH_S = 1.0
"""A list is made at most this often, however often somebody asks: Prometheus asks once a minute."""

SLICE = 500
"""Entities read at once: about a millisecond, between which the loop goes on."""

HOST = re.compile(r"[A-Za-z0-9_.-]{1,253}(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:[0-9]{1,5})?")

TIMEOUT_HEADER = "X-Prometheus-Scrape-Timeout-Seconds"

MARGIN_S = 0.5
"""For the way back to Prometheus: an answer in its last moment would not get there."""

MARGIN_RATIO_MAX = 0.5
"""Of a timeout so short that the margin would leave nothing."""

STATUS = {
    ScrapeOutcome.AWAY: HTTPStatus.SERVICE_UNAVAILABLE,
    ScrapeOutcome.TIMEOUT: HTTPStatus.GATEWAY_TIMEOUT,
    ScrapeOutcome.REFUSED: HTTPStatus.BAD_GATEWAY,
    ScrapeOutcome.TOO_LARGE: HTTPStatus.BAD_GATEWAY,
    ScrapeOutcome.OK: HTTPStatus.OK,
}


class Discovery:
    """Lists of targets, and the proxy that they lead to."""

    def __init__(
        self, loop: Loop, sessions: Sessions, scrapes: Scrapes, page_count: Callable[[], int]
    ) -> None:
        """``page_count`` is how many pages of /metrics/workers there are, the first of them 0."""
        self._loop = loop
        self._sessions = sessions
        self._scrapes = scrapes
        self._page_count = page_count
        self._made: dict[str, tuple[float, asyncio.Task[list[bytes]]]] = {}
        """By path: for every name by which somebody asks."""

    def routes(self) -> Sequence[web.RouteDef]:
        """Everything that is answered here."""
        return [
            web.get("/sd/workers", self._listing(self._pages)),
            web.get("/sd/agents", self._listing(self._agents)),
            web.get("/sd/ray", self._listing(self._nodes)),
            web.get("/scrape/agents/{worker}", self._agent),
            web.get("/scrape/ray/{member}", self._node),
        ]

    # ------------------------------------------------------------ lists

    def _listing(
        self, find: Callable[[], AsyncIterator[Targets]]
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def answer(request: web.Request) -> web.Response:
            host = request.host
            if not HOST.fullmatch(host):
                return _line(HTTPStatus.BAD_REQUEST, "the Host header is no HOST or HOST:PORT")
            try:
                labels = await asyncio.shield(self._fresh(request.path, find))
            except RefusedError as refusal:
                return _line(HTTPStatus.SERVICE_UNAVAILABLE, refusal.message)
            return web.Response(body=_listed(host, labels), content_type="application/json")

        return answer

    def _fresh(self, path: str, find: Callable[[], AsyncIterator[Targets]]) -> asyncio.Task[list[bytes]]:
        """The list that is being made, or was a moment ago: a storm of questions is one."""
        now_s = asyncio.get_running_loop().time()
        began_s, made = self._made.get(path, (-math.inf, None))
        if made is None or (made.done() and (now_s - began_s >= FRESH_S or made.exception() is not None)):
            made = asyncio.create_task(_labels(find()))
            self._made[path] = (now_s, made)
        return made

    async def _pages(self) -> AsyncIterator[Targets]:
        # Of its own name: the pages' series of one name would else be one series.
        yield [
            ("/metrics/workers", {"instance": f"page-{page}", "__param_page": str(page)})
            for page in range(self._page_count())
        ]

    async def _agents(self) -> AsyncIterator[Targets]:
        for some in _slices(await self._loop.read(lambda state: list(state.workers))):
            yield await self._loop.read(partial(self._agents_of, some))

    def _agents_of(self, some: Sequence[WorkerId], state: State) -> Targets:
        expected = (worker_id for worker_id in some if self._expected(worker_id))
        return [
            (f"/scrape/agents/{worker_id}", labels)
            for worker_id in expected
            if (labels := agent_labels(state, worker_id)) is not None
        ]

    async def _nodes(self) -> AsyncIterator[Targets]:
        for some in _slices(await self._loop.read(lambda state: list(state.open_clusters))):
            yield await self._loop.read(partial(self._nodes_of, some))

    def _nodes_of(self, some: Sequence[ClusterId], state: State) -> Targets:
        return [
            (f"/scrape/ray/{member_id}", labels)
            for cluster_id in some
            for member_id, labels in node_labels(state, cluster_id)
            if self._expected(WorkerId(labels["worker"]))
        ]

    def _expected(self, worker_id: WorkerId) -> bool:
        """Whether to ask for a worker at all: one that is away is missed, one that is too old never answers."""
        return self._scrapes.can_answer(worker_id) or not self._sessions.is_connected(worker_id)

    # ------------------------------------------------------------ scrapes

    async def _agent(self, request: web.Request) -> web.Response:
        worker_id = WorkerId(request.match_info["worker"])
        return await self._proxied(
            request, lambda state: worker_id if worker_id in state.workers else None, MemberId("")
        )

    async def _node(self, request: web.Request) -> web.Response:
        member_id = MemberId(request.match_info["member"])
        return await self._proxied(request, lambda state: worker_of_node(state, member_id), member_id)

    async def _proxied(
        self, request: web.Request, find: Callable[[State], WorkerId | None], member_id: MemberId
    ) -> web.Response:
        try:
            worker_id = await self._loop.read(find)
            if worker_id is None:
                return _line(
                    HTTPStatus.NOT_FOUND, "there is no such target now; the list under /sd/ has them"
                )
            patience_s = patience_of(request.headers.get(TIMEOUT_HEADER, ""))
            shown = await self._scrapes.scrape(worker_id, member_id, patience_s)
        except RefusedError as refusal:
            return _line(HTTPStatus.SERVICE_UNAVAILABLE, refusal.message)
        except ScrapeError as error:
            return _line(STATUS[error.outcome], f"{error.outcome}: {error}")
        return web.Response(body=shown.text, headers={"Content-Type": CONTENT_TYPE})


def patience_of(header: str) -> float:
    """Seconds that a scrape may take, by what Prometheus says that it waits."""
    try:
        timeout_s = float(header)
    except ValueError:
        return PATIENCE_S
    if not 0 < timeout_s < math.inf:
        return PATIENCE_S
    return timeout_s - min(MARGIN_S, timeout_s * MARGIN_RATIO_MAX)


async def _labels(found: AsyncIterator[Targets]) -> list[bytes]:
    """Of each target, as JSON."""
    made = []
    async for some in found:
        made += [msgspec.json.encode({"__metrics_path__": path, **labels}) for path, labels in some]
        await asyncio.sleep(0)
    return made


def _listed(host: str, labels: Sequence[bytes]) -> bytes:
    """Targets as http_sd has them. Ten thousand take a millisecond; of HOST's characters none has to be escaped."""
    head = f'{{"targets":["{host}"],"labels":'.encode()
    return b"[" + b",".join([b"%b%b}" % (head, one) for one in labels]) + b"]"


def _slices(some: Sequence[T]) -> Iterable[Sequence[T]]:
    return (some[first : first + SLICE] for first in range(0, len(some), SLICE))


def _line(status: HTTPStatus, text: str) -> web.Response:
    return web.Response(status=status, text=f"{text}\n")
