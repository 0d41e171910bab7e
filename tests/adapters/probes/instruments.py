"""What the probes' tests share: real instruments, a virtual clock, and a middleman for datagrams."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from typing import cast

from orchestrator.adapters.clock import random_bytes
from orchestrator.adapters.probes.wire import Instruments, Target

LOOPBACK = "127.0.0.1"
KEY = bytes(range(32))
OTHER_KEY = bytes(32)
REAL = Instruments(clock_ns=time.perf_counter_ns, random_bytes=random_bytes)

Mischief = Callable[[bool, int, bytes], list[bytes]]
"""(is it an answer, its number in that direction, datagram) → what is passed on instead."""


class VirtualClock:
    """Nanoseconds that pass only when told."""

    def __init__(self) -> None:
        self.now_ns = 1_000_000_000

    def __call__(self) -> int:
        return self.now_ns

    def pass_ms(self, duration_ms: float) -> None:
        self.now_ns += int(duration_ms * 1_000_000)


class Nonces:
    """Random bytes that are not: 1, 2, 3 …"""

    def __init__(self) -> None:
        self.given = 0

    def __call__(self, count: int) -> bytes:
        self.given += 1
        return self.given.to_bytes(count, "big")


def udp_socket() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((LOOPBACK, 0))
    return sock


def target_of(sock: socket.socket, peer: str = "peer") -> Target:
    return Target(peer, LOOPBACK, sock.getsockname()[1])


@contextlib.contextmanager
def closed_port() -> Generator[int]:
    """A port at which connections are refused: it is held, so that nobody else listens there meanwhile."""
    with socket.socket() as sock:
        sock.bind((LOOPBACK, 0))
        yield int(sock.getsockname()[1])


@contextlib.asynccontextmanager
async def running(coroutine: Coroutine[None, None, None]) -> AsyncGenerator[None]:
    task = asyncio.ensure_future(coroutine)
    try:
        yield
        assert not task.done(), "it ended by itself"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Middleman(asyncio.DatagramProtocol):
    """Stands between one asker and one responder and passes on whatever ``mischief`` makes of a datagram."""

    def __init__(self, server: Target, mischief: Mischief) -> None:
        self._server = (server.host, server.port)
        self._mischief = mischief
        self._asker: tuple[str, int] | None = None
        self._counts = {True: 0, False: 0}
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        is_answer = addr == self._server
        if not is_answer:
            self._asker = addr
        receiver = self._asker if is_answer else self._server
        number = self._counts[is_answer]
        self._counts[is_answer] += 1
        assert self._transport is not None
        for changed in self._mischief(is_answer, number, data):
            self._transport.sendto(changed, receiver)


@contextlib.asynccontextmanager
async def middleman(server: Target, mischief: Mischief) -> AsyncGenerator[Target]:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(
        lambda: Middleman(server, mischief), local_addr=(LOOPBACK, 0)
    )
    try:
        yield Target("peer", LOOPBACK, transport.get_extra_info("sockname")[1])
    finally:
        transport.close()
        await asyncio.sleep(0)
