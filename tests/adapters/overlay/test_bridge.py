"""The bridge over TCP: who may use it and how much, on loopback; and a real overlay across it without any UDP."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from orchestrator.adapters.clock import boottime_ms
from orchestrator.adapters.overlay import bridge
from orchestrator.adapters.overlay.bridge import BridgeClient, BridgeConfig, BridgeError, BridgeServer
from orchestrator.adapters.overlay.config import Landmark
from orchestrator.adapters.overlay.process import BridgeChild
from orchestrator.adapters.peers import SERVER_NAME
from tests.adapters.overlay.underlay import (
    LIGHTHOUSE_ADDRESS,
    LIGHTHOUSE_PORT,
    NEEDS,
    Underlay,
    inside,
)
from tests.polling import wait_for_answer, wait_until_async
from tests.tls import TestNetwork, wall_ms

TOKEN = "orch_bridge_token"
BRIDGE_PORT = 8443
NEBULA_PORT = 4300


async def verify(token: str) -> str | None:
    return "wk_1" if token == TOKEN else None


def server_tls(folder: Path) -> ssl.SSLContext:
    """The control plane's own certificate; the authority to trust lies in ``folder/ca.pem``."""
    network = TestNetwork(folder)
    key, chain = network.authority.server_credentials_pem(wall_ms())
    pair = folder / "server.pem"
    pair.write_bytes(key + chain)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair)
    return context


def client_tls(folder: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=folder / "ca.pem")


class Echo(asyncio.DatagramProtocol):
    """Stands for the lighthouse."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.transport.sendto(data.upper(), addr)


class Inbox(asyncio.DatagramProtocol):
    """Stands for nebula."""

    def __init__(self) -> None:
        self.got: list[bytes] = []

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.got.append(data)


@contextlib.asynccontextmanager
async def a_server(
    folder: Path,
    verify: Callable[[str], Awaitable[str | None]] = verify,
    recheck_s: float = bridge.RECHECK_S,
) -> AsyncIterator[tuple[BridgeServer, int]]:
    loop = asyncio.get_running_loop()
    echo, _ = await loop.create_datagram_endpoint(Echo, local_addr=(bridge.LOOPBACK, 0))
    server = BridgeServer(server_tls(folder), verify, echo.get_extra_info("sockname"), recheck_s)
    port = await server.start(bridge.LOOPBACK, 0)
    try:
        yield server, port
    finally:
        await server.stop()
        echo.close()


@contextlib.asynccontextmanager
async def a_client(
    folder: Path, port: int, token: str = TOKEN
) -> AsyncIterator[tuple[Inbox, asyncio.DatagramTransport]]:
    client = BridgeClient(client_tls(folder), (bridge.LOOPBACK, port), SERVER_NAME, token)
    local = await client.listen(0)
    running = asyncio.create_task(client.run())
    nebula, inbox = await asyncio.get_running_loop().create_datagram_endpoint(
        Inbox, remote_addr=(bridge.LOOPBACK, local)
    )
    try:
        yield inbox, nebula
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        client.close()
        nebula.close()


async def answers(inbox: Inbox, nebula: asyncio.DatagramTransport) -> None:
    """Wait until a datagram came back; those sent before there is a connection are lost, as anywhere."""
    seen = len(inbox.got)

    async def ask() -> bool:
        nebula.sendto(b"packet")
        return len(inbox.got) > seen

    await wait_for_answer(ask, what="a datagram to come back", deadline_s=60)
    assert set(inbox.got) == {b"PACKET"}


async def test_bridge_datagram_goes_there_and_back(tmp_path: Path) -> None:
    async with a_server(tmp_path) as (server, port), a_client(tmp_path, port) as (inbox, nebula):
        await answers(inbox, nebula)
        assert server.connections == 1
        # Another datagram may still be on its way between the two.
        await wait_until_async(
            lambda: server.bytes_in == server.bytes_out > 0, what="all to be answered", deadline_s=60
        )
        assert (server.bytes_in % len(b"packet"), server.dropped_datagrams) == (0, 0)


def test_bridge_datagram_too_large_for_a_frame_is_dropped_and_said_so() -> None:
    sent: list[bytes] = []
    transport = SimpleNamespace(get_write_buffer_size=lambda: 0)
    writer = cast("asyncio.StreamWriter", SimpleNamespace(transport=transport, write=sent.append))
    assert bridge.send_frame(writer, b"x" * bridge.FRAME_BYTES_MAX)
    assert not bridge.send_frame(writer, b"x" * (bridge.FRAME_BYTES_MAX + 1))
    transport.get_write_buffer_size = lambda: bridge.BUFFER_BYTES_MAX + 1
    assert not bridge.send_frame(writer, b"x")
    assert len(sent) == 1


async def test_bridge_server_ended_client_comes_back_to_the_next(tmp_path: Path) -> None:
    async with a_server(tmp_path) as (first, port), a_client(tmp_path, port) as (inbox, nebula):
        await answers(inbox, nebula)
        await first.stop()
        loop = asyncio.get_running_loop()
        echo, _ = await loop.create_datagram_endpoint(Echo, local_addr=(bridge.LOOPBACK, 0))
        second = BridgeServer(server_tls(tmp_path), verify, echo.get_extra_info("sockname"))
        await second.start(bridge.LOOPBACK, port)
        await answers(inbox, nebula)
        await second.stop()
        echo.close()


async def test_bridge_token_that_counts_no_more_carries_nothing_any_more(tmp_path: Path) -> None:
    wanted = {TOKEN}

    async def still_wanted(token: str) -> str | None:
        return "wk_1" if token in wanted else None

    async with (
        a_server(tmp_path, still_wanted, recheck_s=0.05) as (server, port),
        a_client(tmp_path, port) as (inbox, nebula),
    ):
        await answers(inbox, nebula)
        # Asked again and again, and still good.
        await answers(inbox, nebula)
        assert server.connections == 1
        wanted.clear()
        await wait_until_async(lambda: server.connections == 0, what="the connection to end", deadline_s=60)


@pytest.mark.parametrize(
    "greeting",
    [b"wrong\n", b"\xff\n", TOKEN.encode() + b" \x00\n", b"x" * 600 + b"\n", b"x" * 200_000 + b"\n"],
)
async def test_bridge_stranger_is_shut_out_without_a_word(tmp_path: Path, greeting: bytes) -> None:
    async with a_server(tmp_path) as (server, port):
        reader, writer = await asyncio.open_connection(
            bridge.LOOPBACK, port, ssl=client_tls(tmp_path), server_hostname=SERVER_NAME
        )
        writer.write(greeting + b"\x00\x01a")
        said = b""
        with contextlib.suppress(ConnectionError):
            said = await asyncio.wait_for(reader.read(), 10)
        assert said == b""
        await wait_until_async(lambda: server.connections == 0, what="the stranger to be gone", deadline_s=8)
        writer.transport.abort()


async def test_bridge_frame_too_long_ends_the_connection(tmp_path: Path) -> None:
    async with a_server(tmp_path) as (server, port):
        reader, writer = await asyncio.open_connection(
            bridge.LOOPBACK, port, ssl=client_tls(tmp_path), server_hostname=SERVER_NAME
        )
        writer.write(TOKEN.encode() + b"\n")
        assert await reader.readexactly(len(bridge.WELCOME)) == bridge.WELCOME
        writer.write((bridge.FRAME_BYTES_MAX + 1).to_bytes(2))
        await wait_until_async(lambda: server.connections == 0, what="the connection to end", deadline_s=60)
        writer.transport.abort()


async def test_bridge_one_owner_gets_no_more_than_his_places(tmp_path: Path) -> None:
    async with a_server(tmp_path) as (server, port), contextlib.AsyncExitStack() as stack:
        welcomed, streams = 0, []
        for _ in range(bridge.CONNECTIONS_OF_ONE_MAX + 1):
            reader, writer = await asyncio.open_connection(
                bridge.LOOPBACK, port, ssl=client_tls(tmp_path), server_hostname=SERVER_NAME
            )
            stack.callback(writer.transport.abort)
            # Streams that are collected would close their connection.
            streams.append((reader, writer))
            writer.write(TOKEN.encode() + b"\n")
            with contextlib.suppress(OSError, EOFError):
                welcomed += await asyncio.wait_for(reader.readexactly(3), 10) == bridge.WELCOME
        assert welcomed == bridge.CONNECTIONS_OF_ONE_MAX == server.connections


def test_config_written_reads_the_same_and_holds_no_token(tmp_path: Path) -> None:
    config = BridgeConfig(
        4300, "orch.example", 443, SERVER_NAME, str(tmp_path / "ca"), str(tmp_path / "token")
    )
    assert bridge.read_config(bridge.write_config(config)) == config


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"listen_port": 1}'])
def test_config_damaged_is_refused(text: str) -> None:
    with pytest.raises(BridgeError, match="the bridge's configuration"):
        bridge.read_config(text)


def test_token_file_that_others_read_is_refused_and_not_repeated(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(TOKEN)
    path.chmod(0o644)
    with pytest.raises(BridgeError, match="chmod 600") as caught:
        bridge.read_token(path)
    assert TOKEN not in str(caught.value)
    path.chmod(0o600)
    assert bridge.read_token(path) == TOKEN


@contextlib.contextmanager
def bridge_on_hub(underlay: Underlay, tls: ssl.SSLContext) -> Iterator[None]:
    """A bridge server on the lighthouse's host, in a thread that lives there."""
    loop = asyncio.new_event_loop()
    ready = threading.Event()

    def live() -> None:
        with inside(underlay.namespace("hub")):
            server = BridgeServer(tls, verify, (bridge.LOOPBACK, LIGHTHOUSE_PORT))
            loop.run_until_complete(server.start("0.0.0.0", BRIDGE_PORT))
            ready.set()
            loop.run_forever()
            loop.run_until_complete(server.stop())
            loop.close()

    thread = threading.Thread(target=live)
    thread.start()
    try:
        assert ready.wait(60)
        yield
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


@pytest.mark.skipif(NEEDS != "", reason=NEEDS)
def test_bridge_host_without_udp_is_on_the_overlay(tmp_path: Path) -> None:
    tls = server_tls(tmp_path)
    token = tmp_path / "token"
    token.touch(0o600)
    token.write_text(TOKEN)
    with Underlay(tmp_path / "lab", ("a", "b")) as underlay, bridge_on_hub(underlay, tls):
        underlay.start_lighthouse()
        underlay.block("b", 'iifname "eth0" meta l4proto udp')
        underlay.block("b", 'oifname "eth0" meta l4proto udp', "output")
        config = tmp_path / "bridge.json"
        config.write_text(
            bridge.write_config(
                BridgeConfig(
                    NEBULA_PORT,
                    underlay.ip("hub"),
                    BRIDGE_PORT,
                    SERVER_NAME,
                    str(tmp_path / "ca.pem"),
                    str(token),
                )
            )
        )
        child = BridgeChild(config, tmp_path / "bridge.log")
        with inside(underlay.namespace("b")):
            child.start(boottime_ms())
        underlay.on_exit(child.stop)
        bridged = Landmark(LIGHTHOUSE_ADDRESS, (f"{bridge.LOOPBACK}:{NEBULA_PORT}",))
        server = underlay.add("a", 11, "cluster-one")
        member = underlay.add("b", 12, "cluster-one", landmarks=[bridged])
        underlay.serve(server)
        stream = underlay.talk(member, server)
        stream.goes_on()
        assert TOKEN.encode() not in Path(f"/proc/{child.pid}/cmdline").read_bytes()
