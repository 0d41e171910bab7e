"""Connections over real sockets: those that say nothing are closed, those that are answered are not; all are bounded."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web

from orchestrator.adapters.authority import Authority
from orchestrator.adapters.http_listener import Bounds, HttpListener, bind
from orchestrator.adapters.https_identity import HttpsIdentity
from orchestrator.cli.gateway_tls import open_identity
from orchestrator.cli.serve_settings import listen_address, read_settings
from tests.polling import wait_until_async
from tests.tls import wall_ms

HOST = "127.0.0.1"
DEADLINE_S = 20.0
IDLE_S = 0.4
PATIENT = Bounds(3, DEADLINE_S * 3)
LARGE_BYTES = 32 * 1024 * 1024
"""More than a system keeps for a peer that reads nothing."""

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Served:
    """A listener with a server behind it."""

    listener: HttpListener
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    held: int = 0
    answered_large: int = 0
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def quick(self, _request: web.Request) -> web.Response:
        return web.Response(text="quick")

    async def slow(self, _request: web.Request) -> web.Response:
        self.held += 1
        await self.gate.wait()
        return web.Response(text="slow")

    async def large(self, _request: web.Request) -> web.Response:
        self.answered_large += 1
        return web.Response(body=b"x" * LARGE_BYTES)

    async def connect(self, tls: ssl.SSLContext | None = None) -> Stream:
        stream = await asyncio.open_connection(HOST, self.listener.port, ssl=tls)
        self.writers.append(stream[1])
        return stream

    async def holding(self) -> Stream:
        """A connection whose request is being answered."""
        before = self.held
        stream = await self.connect()
        await ask(stream, "/slow")
        await wait_until_async(lambda: self.held > before, what="a slow request", deadline_s=DEADLINE_S)
        return stream

    async def opened(self, count: int) -> None:
        await wait_until_async(
            lambda: self.listener.connections == count, what=f"{count} connections", deadline_s=DEADLINE_S
        )


async def ask(stream: Stream, path: str) -> None:
    stream[1].write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    await stream[1].drain()


async def answer(stream: Stream) -> bytes:
    """The head of the next answer and its body; empty where the connection has ended."""
    async with asyncio.timeout(DEADLINE_S):
        try:
            head = await stream[0].readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return b""
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
        return head + await stream[0].readexactly(int(length.partition(b":")[2]))


async def ended(stream: Stream) -> bool:
    """Whether it is closed; waits until it is."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            while await stream[0].read(65_536):
                pass
    except ConnectionError:
        pass
    return True


@asynccontextmanager
async def serving(bounds: Bounds, tls: ssl.SSLContext | None = None) -> AsyncIterator[Served]:
    served = Served(HttpListener(bounds, tls))
    app = web.Application(middlewares=[served.listener.follow])
    app.add_routes(
        [web.get("/quick", served.quick), web.get("/slow", served.slow), web.get("/large", served.large)]
    )
    runner = web.AppRunner(app, handle_signals=False, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    assert runner.server is not None
    served.listener.serve(runner.server)
    served.listener.listen(await bind(HOST, 0))
    yield served
    served.gate.set()
    for writer in served.writers:
        writer.transport.abort()
    await served.listener.close()
    await runner.cleanup()


@pytest.fixture
def identity(tmp_path: Path) -> HttpsIdentity:
    authority = Authority(tmp_path / "data", now_ms=wall_ms(), founded=False)
    settings = read_settings({"gateway_tls": "own", "gateway_names": ("localhost",)}, None)
    made = open_identity(settings, listen_address("gateway", f"{HOST}:0"), authority, tmp_path / "data")
    assert made is not None
    return made


def trusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


async def test_connection_that_says_nothing_is_closed() -> None:
    async with serving(Bounds(8, IDLE_S)) as served:
        stream = await served.connect()
        began_s = asyncio.get_running_loop().time()
        assert await ended(stream)
        assert asyncio.get_running_loop().time() - began_s >= IDLE_S / 2
        await served.opened(0)


async def test_connection_that_dribbles_its_head_is_closed_all_the_same() -> None:
    async with serving(Bounds(8, IDLE_S)) as served:
        reader, writer = await served.connect()
        writer.write(b"GET /quick HTTP/1.1\r\nHost: x\r\nX-Slow: ")

        async def over() -> bool:
            try:
                async with asyncio.timeout(IDLE_S / 10):
                    return await reader.read(1) == b""
            except TimeoutError:
                return False
            except ConnectionError:
                return True

        for _ in range(200):
            writer.write(b"x")
            if await over():
                break
        else:
            pytest.fail("it was never closed")


async def test_connection_is_kept_between_requests_and_closed_after_the_last() -> None:
    async with serving(Bounds(8, IDLE_S)) as served:
        stream = await served.connect()
        for _ in range(3):
            await ask(stream, "/quick")
            assert (await answer(stream)).endswith(b"quick")
        assert await ended(stream)


async def test_connection_whose_request_takes_long_is_not_closed() -> None:
    async with serving(Bounds(8, IDLE_S)) as served:
        held, silent = await served.holding(), await served.connect()
        assert await ended(silent)
        assert served.listener.connections == 1
        served.gate.set()
        assert (await answer(held)).endswith(b"slow")


async def test_connection_of_a_reader_that_takes_nothing_is_cut() -> None:
    async with serving(Bounds(8, DEADLINE_S * 3, stall_s=IDLE_S)) as served:
        stalled = await served.connect()
        await ask(stalled, "/large")
        await served.opened(1)
        await served.opened(0)


async def test_connection_of_a_slow_reader_gets_all_of_it() -> None:
    async with serving(Bounds(8, IDLE_S)) as served:
        stream = await served.connect()
        await ask(stream, "/large")
        silent = await served.connect()
        assert await ended(silent), "so long has nothing been read"
        assert len(await answer(stream)) > LARGE_BYTES


async def test_connection_past_the_bound_takes_the_place_of_the_longest_silent() -> None:
    async with serving(PATIENT) as served:
        first = await served.connect()
        await served.opened(1)
        second, third = await served.connect(), await served.connect()
        await served.opened(3)
        fourth = await served.connect()
        assert await ended(first)
        for stream in (second, third, fourth):
            await ask(stream, "/quick")
            assert (await answer(stream)).endswith(b"quick")
        assert served.listener.connections == 3


async def test_connection_past_the_bound_is_closed_where_all_are_answered() -> None:
    async with serving(PATIENT) as served:
        held = [await served.holding() for _ in range(3)]
        assert await ended(await served.connect())
        served.gate.set()
        for stream in held:
            assert (await answer(stream)).endswith(b"slow")
        late = await served.connect()
        await ask(late, "/quick")
        assert (await answer(late)).endswith(b"quick")


async def test_connection_that_ends_makes_room() -> None:
    async with serving(PATIENT) as served:
        for _ in range(20):
            stream = await served.connect()
            await ask(stream, "/quick")
            assert (await answer(stream)).endswith(b"quick")
            stream[1].close()
        await served.opened(0)


@pytest.mark.parametrize("over_tls", [False, True], ids=["plain", "tls"])
async def test_connection_of_a_slow_reader_outlives_its_idle_time(
    identity: HttpsIdentity, monkeypatch: pytest.MonkeyPatch, *, over_tls: bool
) -> None:
    """Its answer is written after its handler has ended, and is more than the system and TLS take at once."""
    monkeypatch.setattr("asyncio.constants.SSL_SHUTDOWN_TIMEOUT", IDLE_S)
    context = identity.context if over_tls else None
    async with serving(Bounds(8, IDLE_S, DEADLINE_S), context) as served:
        stream = await served.connect(trusting() if over_tls else None)
        await ask(stream, "/large")
        stream[1].transport.pause_reading()  # type: ignore[attr-defined]  # of a stream
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        await wait_until_async(
            lambda: loop.time() - began_s > 4 * IDLE_S, what="its idle time", deadline_s=DEADLINE_S
        )
        stream[1].transport.resume_reading()  # type: ignore[attr-defined]  # of a stream
        assert len(await answer(stream)) > LARGE_BYTES


async def test_connection_that_takes_its_answer_gives_way_where_nobody_else_does() -> None:
    async with serving(Bounds(1, DEADLINE_S, DEADLINE_S)) as served:
        slow = await served.connect()
        slow[1].transport.pause_reading()  # type: ignore[attr-defined]  # of a stream
        await ask(slow, "/large")
        await wait_until_async(
            lambda: served.answered_large > 0, what="an answer to be on its way", deadline_s=DEADLINE_S
        )
        other = await served.connect()
        await ask(other, "/quick")
        assert b"quick" in await answer(other)


async def test_connection_that_says_goodbye_over_tls_with_an_answer_unread_does_not_end_the_listener(
    identity: HttpsIdentity,
) -> None:
    """Its last request asks for the end, and the end of TLS comes with it: its transport is closed twice."""
    async with serving(Bounds(2, 5 * IDLE_S, 5 * IDLE_S), identity.context) as served:
        rude = await asyncio.to_thread(goodbye, served.listener.port)
        try:
            await served.opened(0)
            for _ in range(4):
                stream = await served.connect(trusting())
                await ask(stream, "/quick")
                assert b"quick" in await answer(stream)
        finally:
            rude.close()


def goodbye(port: int) -> socket.socket:
    """Asks for much, reads nothing, and ends TLS in the same flight as a last request."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.settimeout(DEADLINE_S)
    raw.connect((HOST, port))
    came, going = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = trusting().wrap_bio(came, going)
    while True:
        try:
            tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            raw.sendall(going.read())
            came.write(raw.recv(65_536))
    tls.write(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
    raw.sendall(going.read())
    # Some of the answer is there: it is on its way.
    raw.recv(1)
    tls.write(b"GET /quick HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    with contextlib.suppress(ssl.SSLError):
        tls.unwrap()
    raw.sendall(going.read())
    return raw


async def test_handshake_that_never_comes_is_a_connection_that_says_nothing(identity: HttpsIdentity) -> None:
    async with serving(PATIENT, identity.context) as served:
        silent = [await served.connect() for _ in range(3)]
        await served.opened(3)
        stream = await served.connect(trusting())
        await ask(stream, "/quick")
        assert (await answer(stream)).endswith(b"quick")
        assert await ended(silent[0])
        assert served.listener.connections == 3
    async with serving(Bounds(8, IDLE_S), identity.context) as served:
        assert await ended(await served.connect())
        await served.opened(0)


async def test_handshake_that_is_none_is_forgotten(identity: HttpsIdentity) -> None:
    async with serving(PATIENT, identity.context) as served:
        plain = await served.connect()
        await ask(plain, "/quick")
        assert await ended(plain)
        await served.opened(0)


async def test_listener_closed_frees_its_port() -> None:
    async with serving(PATIENT) as served:
        port = served.listener.port
        await served.listener.close()
        with socket.create_server((HOST, port)):
            pass


@pytest.mark.parametrize("turns", range(8))
async def test_connection_that_comes_as_the_listener_closes_is_closed_as_well(turns: int) -> None:
    with socket.socket() as client:
        client.settimeout(DEADLINE_S)
        async with serving(PATIENT) as served:
            client.connect((HOST, served.listener.port))
            for _ in range(turns):
                await asyncio.sleep(0)
            await served.listener.close()
        with contextlib.suppress(ConnectionError):
            assert client.recv(1) == b""
