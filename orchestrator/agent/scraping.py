"""Answers scrapes over the session: of the agent itself, and of the Ray nodes of its members.

An order names a member or nobody. Where its node shows metrics is known here alone, so no order can lead anywhere else.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import structlog

from orchestrator.adapters.box.namespaces import SocketFactory
from orchestrator.adapters.box.tools import BoxError
from orchestrator.adapters.metrics.exposition import packed
from orchestrator.adapters.ray_metrics import RayMetricsError, read_node_metrics

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping

    from orchestrator.adapters.node_records import NodeSpec, NodeStatus
    from orchestrator.agent.ports import ControlChannel
    from orchestrator.api.v1 import telemetry_pb2, worker_pb2

log = structlog.get_logger(__name__)

ORDERS_MAX = 16
"""Answered at once: as many as the network asks for. More are let go; each may hold the largest exposition."""

PATIENCE_S_MAX = 30.0
"""However long an order would wait."""

PORT = "metrics_export"
"""Name of the node's port for metrics in its block."""


class Answers(Protocol):
    """Where answers go."""

    async def answer_scrape(self, number: int, packed_text: bytes, refusal: str = "") -> None:
        """Send an exposition as a gzip stream, or why there is none. Raises ConnectionError, ValueError if unasked."""


class Scraping:
    """An attendant of every session."""

    def __init__(
        self,
        answers: Answers,
        own: Callable[[], bytes],
        nodes: Callable[[], Mapping[str, NodeStatus]],
        spec: Callable[[str], NodeSpec | None],
    ) -> None:
        """``own`` is the agent's own exposition; ``spec`` what a member was prepared with, which may block."""
        self._answers = answers
        self._own = own
        self._nodes = nodes
        self._spec = spec
        self._orders: asyncio.Queue[telemetry_pb2.ScrapeOrder] = asyncio.Queue(ORDERS_MAX)

    def take(self, message: worker_pb2.SessionResponse) -> None:
        """As Attendant.take."""
        if not message.HasField("scrape_order"):
            return
        try:
            self._orders.put_nowait(message.scrape_order)
        except asyncio.QueueFull:
            # Whoever asked hears that it took too long, as it would have.
            log.warning("scrape_not_answered", reason="too many at once")

    async def attend(self, channel: ControlChannel) -> None:  # noqa: ARG002 -- answers have calls of their own
        """As Attendant.attend: answer this session's orders until cancelled."""
        while not self._orders.empty():
            self._orders.get_nowait()
        async with asyncio.TaskGroup() as answering:
            for _ in range(ORDERS_MAX):
                answering.create_task(self._answer_all())

    async def _answer_all(self) -> None:
        while True:
            order = await self._orders.get()
            try:
                async with asyncio.timeout(min(order.deadline_ms / 1000, PATIENCE_S_MAX)):
                    await self._answer(order)
            except (ConnectionError, TimeoutError, ValueError) as error:
                log.info("scrape_not_answered", member_id=order.member_id[:100], reason=str(error))
            except Exception:
                log.warning("scrape_failed", member_id=order.member_id[:100], exc_info=True)

    async def _answer(self, order: telemetry_pb2.ScrapeOrder) -> None:
        try:
            text = await self._text_of(order)
        except (RayMetricsError, BoxError, OSError) as error:
            await self._answers.answer_scrape(order.number, b"", str(error))
            return
        await self._answers.answer_scrape(order.number, await asyncio.to_thread(packed, text))

    async def _text_of(self, order: telemetry_pb2.ScrapeOrder) -> bytes:
        """Raises RayMetricsError, BoxError, OSError."""
        if not order.member_id:
            return await asyncio.to_thread(self._own)
        status = self._nodes().get(order.member_id)
        spec = await asyncio.to_thread(self._spec, order.member_id) if status is not None else None
        if status is None or spec is None or status.phase != "up" or PORT not in spec.ports:
            raise RayMetricsError("this worker has no such Ray node now")
        patience_s = min(order.deadline_ms / 1000, PATIENCE_S_MAX)
        return await read_node_metrics(spec.node_ip, spec.ports[PORT], _sockets_of(spec, status), patience_s)


def _sockets_of(spec: NodeSpec, status: NodeStatus) -> Callable[[int, int], socket.socket] | None:
    """What makes sockets in a boxed node's network; None for a bare one. Raises BoxError where the box is gone."""
    if spec.box is None:
        return None
    if not status.namespace_pid:
        raise BoxError("the box has no network yet")
    factory = SocketFactory(status.namespace_pid)
    # The process may have ended and its number be another's, outside: then this would reach the machine itself.
    if Path(f"/proc/{status.namespace_pid}/ns/net").samefile("/proc/self/ns/net"):
        raise BoxError("the box is gone")
    return factory.create
