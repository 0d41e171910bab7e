"""The agent's gRPC side against a real server on loopback that plays a script."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NoReturn

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from orchestrator.adapters.peers import key_to_pem, make_csr, new_tls_key
from orchestrator.agent import connection
from orchestrator.agent.connection import Endpoint, GrpcControlPlane
from orchestrator.agent.ports import LogChunk
from orchestrator.api.v1 import telemetry_pb2, worker_pb2
from tests.agent.scripted_server import ScriptedServer
from tests.polling import wait_until_async

DEADLINE_S = 60.0


class FakeAccess:
    """Access with one certificate, or with what a test puts in its place."""

    def __init__(self, server: ScriptedServer) -> None:
        self._server = server
        self.accepts = 0
        self.refusals: list[str] = []
        self.renew()

    def renew(self) -> None:
        key = new_tls_key()
        certificate = self._server.network.certificate(make_csr(key))
        self.current = Endpoint(
            self._server.session_address, certificate.trust_bundle, key_to_pem(key), certificate.chain
        )

    async def endpoint(self) -> Endpoint:
        return self.current

    async def failed(self, reason: str) -> NoReturn:
        self.refusals.append(reason)
        raise ConnectionError(reason)

    def accepted(self) -> None:
        self.accepts += 1


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ScriptedServer]:
    made = ScriptedServer(tmp_path / "network")
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
def access(server: ScriptedServer) -> FakeAccess:
    return FakeAccess(server)


@pytest.fixture
async def control(access: FakeAccess) -> AsyncIterator[GrpcControlPlane]:
    made = GrpcControlPlane(access)
    yield made
    await made.close()


@pytest.fixture
async def connected(control: GrpcControlPlane) -> GrpcControlPlane:
    """With a session, without which nothing else is asked for."""
    await control.open()
    return control


def chunk(attempt_id: str, offset: int, data: bytes, *, final: bool = False) -> LogChunk:
    return LogChunk(attempt_id, "m-0", offset, data, final)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def beat(sequence: int) -> worker_pb2.SessionRequest:
    return worker_pb2.SessionRequest(heartbeat=worker_pb2.Heartbeat(sequence=sequence))


async def test_session_carries_messages_both_ways_in_order(
    server: ScriptedServer, control: GrpcControlPlane
) -> None:
    channel = await control.open()
    challenge = await channel.receive()
    assert challenge is not None
    assert challenge.challenge.nonce == b"nonce"
    await asyncio.gather(*(channel.send(beat(number)) for number in range(20)))
    acks = [await channel.receive() for _ in range(20)]
    assert [ack.heartbeat_ack.sequence for ack in acks if ack is not None] == list(range(20))


async def test_session_ended_in_order_by_the_server_is_none(
    server: ScriptedServer, control: GrpcControlPlane
) -> None:
    channel = await control.open()
    await channel.receive()
    await channel.send(worker_pb2.SessionRequest(leaving=worker_pb2.Leaving()))
    assert await channel.receive() is None


async def test_session_refused_by_the_server_is_a_connection_error_with_its_words(
    server: ScriptedServer, control: GrpcControlPlane
) -> None:
    server.refuse = (grpc.StatusCode.UNAVAILABLE, "the control plane is starting")
    with pytest.raises(ConnectionError, match="the control plane is starting"):
        await control.open()


async def test_session_to_nobody_is_a_connection_error_that_its_access_is_told(
    access: FakeAccess, control: GrpcControlPlane
) -> None:
    access.current = Endpoint("127.0.0.1:1", access.current.trust_pem)
    with pytest.raises(ConnectionError, match="refused"):
        await control.open()
    assert (access.accepts, len(access.refusals)) == (0, 1)


async def test_session_without_a_certificate_is_not_let_in(
    access: FakeAccess, control: GrpcControlPlane
) -> None:
    access.current = Endpoint(access.current.address, access.current.trust_pem)
    # Which of the two it is hangs on whether its first words came before the server closed.
    with pytest.raises(ConnectionError, match=r"Socket closed|reset by peer|Broken pipe"):
        await control.open()


async def test_session_with_a_server_of_another_network_is_not_opened(
    access: FakeAccess, control: GrpcControlPlane, tmp_path: Path
) -> None:
    other = ScriptedServer(tmp_path / "other")
    await other.start()
    access.current = Endpoint(
        other.session_address, access.current.trust_pem, access.current.key_pem, access.current.chain_pem
    )
    with pytest.raises(ConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
        await control.open()
    await other.stop()
    assert other.shown == []


async def test_session_after_a_renewal_shows_the_new_certificate_and_the_old_one_was_left_alone(
    server: ScriptedServer, access: FakeAccess, control: GrpcControlPlane
) -> None:
    first = await control.open()
    old = access.current
    access.renew()
    await first.send(beat(1))
    await first.receive()
    assert (await first.receive()) is not None
    await first.close()
    await control.open()
    assert server.shown == [old.chain_pem, access.current.chain_pem]
    assert access.accepts == 2


async def test_control_plane_before_any_session_has_no_connection(
    server: ScriptedServer, control: GrpcControlPlane
) -> None:
    with pytest.raises(ConnectionError, match="no session yet"):
        await control.ship_log(chunk("a-1", 0, b"12"))
    assert server.calls == []


async def test_session_server_that_goes_away_ends_the_waiting_receive(
    server: ScriptedServer, control: GrpcControlPlane
) -> None:
    channel = await control.open()
    await channel.receive()
    waiting = asyncio.create_task(channel.receive())
    await server.stop()
    with pytest.raises(ConnectionError):
        await waiting


async def test_session_closed_here_gives_a_connection_error_not_a_cancelled_task(
    server: ScriptedServer, control: GrpcControlPlane
) -> None:
    channel = await control.open()
    await channel.receive()
    waiting = asyncio.create_task(channel.receive())
    await asyncio.sleep(0)
    await channel.close()
    with pytest.raises(ConnectionError):
        await waiting


async def test_session_waiting_task_that_is_cancelled_stays_cancelled(
    server: ScriptedServer, control: GrpcControlPlane
) -> None:
    channel = await control.open()
    await channel.receive()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await channel.receive()


async def test_ship_log_of_several_attempts_shares_one_stream_with_the_sessions_token(
    server: ScriptedServer, connected: GrpcControlPlane
) -> None:
    connected.authorise("secret-1")
    answers = await asyncio.gather(
        *(connected.ship_log(chunk(f"a-{number}", 0, b"x" * number, final=True)) for number in range(5))
    )
    assert answers == [(number, True) for number in range(5)]
    assert server.tokens_of("ShipLogs") == ["Bearer secret-1"]


async def test_ship_log_after_a_new_session_uses_the_new_token(
    server: ScriptedServer, connected: GrpcControlPlane
) -> None:
    connected.authorise("secret-1")
    await connected.ship_log(chunk("a-1", 0, b"12"))
    connected.authorise("secret-2")
    assert await connected.ship_log(chunk("a-1", 2, b"34")) == (4, False)
    assert server.tokens_of("ShipLogs") == ["Bearer secret-1", "Bearer secret-2"]


async def test_ship_log_that_failed_is_sent_again_on_a_new_stream(
    server: ScriptedServer, connected: GrpcControlPlane
) -> None:
    server.refuse = (grpc.StatusCode.UNAUTHENTICATED, "this session token is not valid")
    with pytest.raises(ConnectionError, match="not valid"):
        await connected.ship_log(chunk("a-1", 0, b"12"))
    server.refuse = None
    assert await connected.ship_log(chunk("a-1", 0, b"12")) == (2, False)


async def test_ship_log_answered_about_another_attempt_is_refused(
    server: ScriptedServer, connected: GrpcControlPlane
) -> None:
    server.confused = True
    with pytest.raises(ConnectionError, match="'a-1'"):
        await connected.ship_log(chunk("a-1", 0, b"12"))


async def test_ship_log_without_an_answer_does_not_wait_for_ever(
    server: ScriptedServer, connected: GrpcControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "ANSWER_S", 0.05)
    server.mute = True
    with pytest.raises(ConnectionError, match="no answer"):
        await connected.ship_log(chunk("a-1", 0, b"12"))


async def test_fetch_package_writes_the_whole_file_under_its_name(
    server: ScriptedServer, connected: GrpcControlPlane, tmp_path: Path
) -> None:
    server.package = bytes(range(256)) * 1000
    connected.authorise("secret-1")
    into = tmp_path / "cache" / "p.zip"
    await connected.fetch_package("a-1", hashlib.sha256(server.package).hexdigest(), into)
    assert into.read_bytes() == server.package
    assert names_in(into.parent) == ["p.zip"]
    assert server.tokens_of("FetchPackage") == ["Bearer secret-1"]


async def test_fetch_package_with_other_bytes_leaves_nothing(
    server: ScriptedServer, connected: GrpcControlPlane, tmp_path: Path
) -> None:
    server.package = b"changed"
    with pytest.raises(ValueError, match="other bytes"):
        await connected.fetch_package(
            "a-1", hashlib.sha256(b"as asked").hexdigest(), tmp_path / "cache" / "p.zip"
        )
    assert names_in(tmp_path / "cache") == []


async def test_fetch_package_that_breaks_off_leaves_nothing(
    server: ScriptedServer, connected: GrpcControlPlane, tmp_path: Path
) -> None:
    server.package, server.break_after = b"x" * 1000, 1
    with pytest.raises(ConnectionError, match="broke off"):
        await connected.fetch_package("a-1", "0" * 64, tmp_path / "cache" / "p.zip")
    assert names_in(tmp_path / "cache") == []


async def test_report_keeps_one_stream_and_opens_another_after_a_failure(
    server: ScriptedServer, connected: GrpcControlPlane
) -> None:
    connected.authorise("secret-1")
    for second in range(2):
        await connected.report(telemetry_pb2.ReportRequest(sampled_at=Timestamp(seconds=second)))
    await wait_until_async(lambda: len(server.samples) == 2, what="two samples", deadline_s=DEADLINE_S)
    assert server.tokens_of("Report") == ["Bearer secret-1"]
