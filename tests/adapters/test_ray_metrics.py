"""What a Ray node answers, which is a tenant's to write."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from orchestrator.adapters.ray_metrics import RayMetricsError, read_node_metrics

TEXT = b"ray_tasks 3\n"


@asynccontextmanager
async def node(content_type: bytes) -> AsyncIterator[int]:
    """Answers one request as told; its port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
        writer.write(head % (content_type, len(TEXT)) + TEXT)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize(
    "content_type",
    [
        b"text/plain; version=0.0.4; charset=utf-8",
        b"Text/Plain",
        # What reads parameters falls over these.
        b"text/plain; a*1*",
        b"text/plain; a=" + b"(" * 7_000,
    ],
)
async def test_text_is_taken_whatever_else_its_type_says(content_type: bytes) -> None:
    async with node(content_type) as port:
        assert await read_node_metrics("127.0.0.1", port, None, 5.0) == TEXT


@pytest.mark.parametrize("content_type", [b"text/html", b"", b"a*1*; text/plain"])
async def test_anything_but_text_is_refused(content_type: bytes) -> None:
    async with node(content_type) as port:
        with pytest.raises(RayMetricsError, match="something else than text/plain"):
            await read_node_metrics("127.0.0.1", port, None, 5.0)
