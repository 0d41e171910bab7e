"""Whoever waits for connections may be cancelled at any moment, and no connection is lost by that."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import pytest

from orchestrator.adapters.accepting import accepted
from orchestrator.adapters.probes.wire import Stream, accept_all

HOST = "127.0.0.1"
DEADLINE_S = 60.0
TURNS = range(6)
"""From before the connection is noticed until whoever waited has it."""


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server((HOST, 0)) as made:
        made.setblocking(False)
        yield made


@pytest.fixture
def client() -> Iterator[socket.socket]:
    with socket.socket() as made:
        made.settimeout(DEADLINE_S)
        yield made


async def pass_turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("turns", TURNS)
async def test_accepted_cancelled_at_any_turn_leaves_the_connection_to_the_next(
    listening: socket.socket, client: socket.socket, turns: int
) -> None:
    first = asyncio.create_task(accepted(listening))
    await pass_turns(1)
    client.connect(listening.getsockname())
    await pass_turns(turns)
    first.cancel()
    (came,) = await asyncio.gather(first, return_exceptions=True)
    async with asyncio.timeout(DEADLINE_S):
        connection = came if isinstance(came, socket.socket) else await accepted(listening)
    with connection:
        assert connection.getpeername() == client.getsockname()
        assert connection.gettimeout() == 0


@pytest.mark.parametrize("turns", TURNS)
async def test_accept_all_cancelled_at_any_turn_closes_what_it_accepted(
    listening: socket.socket, client: socket.socket, turns: int
) -> None:
    async def serve(stream: Stream) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stream.close()

    door = asyncio.create_task(accept_all(listening, serve))
    await pass_turns(1)
    client.connect(listening.getsockname())
    await pass_turns(turns)
    door.cancel()
    await asyncio.gather(door, return_exceptions=True)
    listening.close()
    with contextlib.suppress(ConnectionError):
        assert client.recv(1) == b""


async def test_accepted_at_a_listener_that_is_closed_is_an_error_of_the_system(
    listening: socket.socket,
) -> None:
    listening.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        await accepted(listening)
