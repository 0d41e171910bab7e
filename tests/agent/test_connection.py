"""The agent's gRPC side against a real server on loopback that plays a script."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from orchestrator.agent import connection
from orchestrator.agent.connection import GrpcControlPlane, JoinRefusedError, join
from orchestrator.agent.ports import LogChunk
from orchestrator.api.v1 import telemetry_pb2, worker_pb2
from tests.agent.scripted_server import ScriptedServer
from tests.polling import wait_until_async

DEADLINE_S = 5.0


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    made = ScriptedServer()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def control(server: ScriptedServer) -> AsyncIterator[GrpcControlPlane]:
    made = GrpcControlPlane(server.address)
    yield made
    await made.close()


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
    channel = await control.open()
    with pytest.raises(ConnectionError, match="the control plane is starting"):
        await channel.receive()
    with pytest.raises(ConnectionError):
        await channel.send(beat(1))


async def test_session_to_nobody_is_a_connection_error() -> None:
    control = GrpcControlPlane("127.0.0.1:1")
    channel = await control.open()
    with pytest.raises(ConnectionError):
        await channel.receive()
    await control.close()


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
    server: ScriptedServer, control: GrpcControlPlane
) -> None:
    control.authorise("secret-1")
    answers = await asyncio.gather(
        *(control.ship_log(chunk(f"a-{number}", 0, b"x" * number, final=True)) for number in range(5))
    )
    assert answers == [(number, True) for number in range(5)]
    assert server.tokens_of("ShipLogs") == ["Bearer secret-1"]


async def test_ship_log_after_a_new_session_uses_the_new_token(
    server: ScriptedServer, control: GrpcControlPlane
) -> None:
    control.authorise("secret-1")
    await control.ship_log(chunk("a-1", 0, b"12"))
    control.authorise("secret-2")
    assert await control.ship_log(chunk("a-1", 2, b"34")) == (4, False)
    assert server.tokens_of("ShipLogs") == ["Bearer secret-1", "Bearer secret-2"]


async def test_ship_log_that_failed_is_sent_again_on_a_new_stream(
    server: ScriptedServer, control: GrpcControlPlane
) -> None:
    server.refuse = (grpc.StatusCode.UNAUTHENTICATED, "this session token is not valid")
    with pytest.raises(ConnectionError, match="not valid"):
        await control.ship_log(chunk("a-1", 0, b"12"))
    server.refuse = None
    assert await control.ship_log(chunk("a-1", 0, b"12")) == (2, False)


async def test_ship_log_answered_about_another_attempt_is_refused(
    server: ScriptedServer, control: GrpcControlPlane
) -> None:
    server.confused = True
    with pytest.raises(ConnectionError, match="'a-1'"):
        await control.ship_log(chunk("a-1", 0, b"12"))


async def test_ship_log_without_an_answer_does_not_wait_for_ever(
    server: ScriptedServer, control: GrpcControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "ANSWER_S", 0.05)
    server.mute = True
    with pytest.raises(ConnectionError, match="no answer"):
        await control.ship_log(chunk("a-1", 0, b"12"))


async def test_fetch_package_writes_the_whole_file_under_its_name(
    server: ScriptedServer, control: GrpcControlPlane, tmp_path: Path
) -> None:
    server.package = bytes(range(256)) * 1000
    control.authorise("secret-1")
    into = tmp_path / "cache" / "p.zip"
    await control.fetch_package("a-1", hashlib.sha256(server.package).hexdigest(), into)
    assert into.read_bytes() == server.package
    assert names_in(into.parent) == ["p.zip"]
    assert server.tokens_of("FetchPackage") == ["Bearer secret-1"]


async def test_fetch_package_with_other_bytes_leaves_nothing(
    server: ScriptedServer, control: GrpcControlPlane, tmp_path: Path
) -> None:
    server.package = b"changed"
    with pytest.raises(ValueError, match="other bytes"):
        await control.fetch_package("a-1", hashlib.sha256(b"as asked").hexdigest(), tmp_path / "p.zip")
    assert names_in(tmp_path) == []


async def test_fetch_package_that_breaks_off_leaves_nothing(
    server: ScriptedServer, control: GrpcControlPlane, tmp_path: Path
) -> None:
    server.package, server.break_after = b"x" * 1000, 1
    with pytest.raises(ConnectionError, match="broke off"):
        await control.fetch_package("a-1", "0" * 64, tmp_path / "p.zip")
    assert names_in(tmp_path) == []


async def test_report_keeps_one_stream_and_opens_another_after_a_failure(
    server: ScriptedServer, control: GrpcControlPlane
) -> None:
    control.authorise("secret-1")
    for second in range(2):
        await control.report(telemetry_pb2.ReportRequest(sampled_at=Timestamp(seconds=second)))
    await wait_until_async(lambda: len(server.samples) == 2, what="two samples", deadline_s=DEADLINE_S)
    assert server.tokens_of("Report") == ["Bearer secret-1"]


async def test_report_to_nobody_is_a_connection_error() -> None:
    control = GrpcControlPlane("127.0.0.1:1")
    with pytest.raises(ConnectionError):
        await control.report(telemetry_pb2.ReportRequest())
    await control.close()


async def test_join_answers_with_the_identity(server: ScriptedServer) -> None:
    answer = await join(server.address, worker_pb2.JoinRequest(worker_name="rig"))
    assert (answer.worker_id, answer.supplier_id, answer.network_id) == ("wk_1", "sup_1", "net_1")
    assert [one.worker_name for one in server.joins] == ["rig"]


@pytest.mark.parametrize(
    ("code", "about_token"),
    [(grpc.StatusCode.PERMISSION_DENIED, True), (grpc.StatusCode.INVALID_ARGUMENT, False)],
)
async def test_join_refused_says_why_and_whether_the_token_is_at_fault(
    server: ScriptedServer, code: grpc.StatusCode, *, about_token: bool
) -> None:
    server.refuse = (code, "this token is used")
    with pytest.raises(JoinRefusedError, match="this token is used") as refused:
        await join(server.address, worker_pb2.JoinRequest())
    assert refused.value.about_token is about_token


async def test_join_nobody_there_is_a_connection_error() -> None:
    with pytest.raises(ConnectionError):
        await join("127.0.0.1:1", worker_pb2.JoinRequest())
