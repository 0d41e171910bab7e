"""Logs: whole, followed, and cut where cutting is the truth."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import aiohttp
import pytest
from aiohttp import WSCloseCode, WSMsgType

from orchestrator.core.errors import RefusalCode, RefusedError
from orchestrator.core.jobs import JobStatus
from orchestrator.gateway.app import Gateway, start_gateway
from orchestrator.gateway.config import GatewayConfig
from tests.gateway.conftest import Observed
from tests.gateway.fake_jobs import PIECE_BYTES, SECRET, TENANT, FakeJobs
from tests.polling import wait_until_async

TAIL = "/api/jobs/mine/logs/tail"
DEADLINE_S = 20.0


@pytest.fixture
async def submitted(client: aiohttp.ClientSession, jobs: FakeJobs) -> FakeJobs:
    async with client.post("/api/jobs/", json={"entrypoint": "x", "submission_id": "mine"}) as response:
        assert response.status == 200
    return jobs


async def closing(socket: aiohttp.ClientWebSocketResponse) -> int | None:
    """The code of the close; fails where there is still text."""
    async with asyncio.timeout(DEADLINE_S):
        message = await socket.receive()
        assert message.type is not WSMsgType.TEXT
        while message.type is not WSMsgType.CLOSED:
            message = await socket.receive()
    return socket.close_code


@pytest.mark.parametrize(
    "log", [b"", b"plain\n", '"ü€😀\\'.encode() * 200_000, b"\xffx\xe2\x82", b"\x00\x1b[0m"]
)
async def test_log_any_bytes_arrive_as_text(
    client: aiohttp.ClientSession, submitted: FakeJobs, log: bytes
) -> None:
    submitted.write_log(TENANT, "mine", log)
    async with client.get("/api/jobs/mine/logs") as response:
        assert response.content_type == "application/json"
        assert json.loads(await response.read()) == {"logs": log.decode(errors="replace")}


async def test_log_source_fails_in_the_middle_is_cut(
    client: aiohttp.ClientSession, submitted: FakeJobs
) -> None:
    submitted.write_log(TENANT, "mine", b"x" * (PIECE_BYTES + 1))
    submitted.break_log(TENANT, "mine", OSError("the disk is gone"))
    async with client.get("/api/jobs/mine/logs") as response:
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()


async def test_log_absent_job_is_404(client: aiohttp.ClientSession) -> None:
    async with client.get("/api/jobs/absent/logs") as response:
        assert response.status == 404


async def test_tail_queued_then_run_forwards_each_piece_and_closes_at_the_end(
    client: aiohttp.ClientSession, submitted: FakeJobs, observed: Observed
) -> None:
    async with asyncio.timeout(DEADLINE_S), client.ws_connect(TAIL) as socket:
        submitted.run(TENANT, "mine")
        submitted.write_log(TENANT, "mine", b"one\n")
        assert await socket.receive_str() == "one\n"
        submitted.write_log(TENANT, "mine", "h\u00e9".encode()[:2])
        assert await socket.receive_str() == "h"
        submitted.write_log(TENANT, "mine", "h\u00e9".encode()[2:] + b"\xe2\x82")
        assert await socket.receive_str() == "\u00e9"
        submitted.end(TENANT, "mine", JobStatus.SUCCEEDED, 0)
        assert await socket.receive_str() == "\ufffd"
        assert await closing(socket) == WSCloseCode.OK
    held = ("GET", "/api/jobs/{submission_id}/logs/tail", 101)
    await wait_until_async(
        lambda: held in observed.calls, what="the tail to be observed", deadline_s=DEADLINE_S
    )


async def test_tail_large_log_is_split_below_what_rays_client_takes(
    client: aiohttp.ClientSession, submitted: FakeJobs
) -> None:
    text = "😀" * 2_000_000
    submitted.write_log(TENANT, "mine", text.encode())
    submitted.end(TENANT, "mine", JobStatus.SUCCEEDED, 0)
    async with asyncio.timeout(DEADLINE_S), client.ws_connect(TAIL) as socket:
        frames = [message.data async for message in socket]
        assert socket.close_code == WSCloseCode.OK
    assert "".join(frames) == text
    assert max(len(frame.encode()) for frame in frames) < 4 * 2**20


@pytest.mark.parametrize("failure", [RuntimeError("lost"), RefusedError(RefusalCode.UNAVAILABLE, "down")])
async def test_tail_source_fails_while_running_is_cut_without_close(
    client: aiohttp.ClientSession, submitted: FakeJobs, failure: Exception
) -> None:
    async with client.ws_connect(TAIL) as socket:
        submitted.run(TENANT, "mine")
        submitted.write_log(TENANT, "mine", b"one\n")
        assert await socket.receive_str() == "one\n"
        submitted.break_log(TENANT, "mine", failure)
        assert await closing(socket) == WSCloseCode.ABNORMAL_CLOSURE


async def test_tail_log_ends_before_the_job_is_cut_without_close(
    client: aiohttp.ClientSession, submitted: FakeJobs
) -> None:
    async with client.ws_connect(TAIL) as socket:
        submitted.run(TENANT, "mine")
        submitted.lose_log(TENANT, "mine")
        assert await closing(socket) == WSCloseCode.ABNORMAL_CLOSURE


async def test_tail_gateway_closes_while_running_is_cut_without_close(
    client: aiohttp.ClientSession, submitted: FakeJobs, gateway: Gateway
) -> None:
    async with client.ws_connect(TAIL) as socket:
        submitted.run(TENANT, "mine")
        submitted.write_log(TENANT, "mine", b"one\n")
        assert await socket.receive_str() == "one\n"
        async with asyncio.timeout(DEADLINE_S):
            await gateway.close()
        assert await closing(socket) == WSCloseCode.ABNORMAL_CLOSURE
    assert submitted.record(TENANT, "mine").followers == 0


async def test_tail_client_leaves_stops_reading_the_log(
    client: aiohttp.ClientSession, submitted: FakeJobs
) -> None:
    async with client.ws_connect(TAIL):
        record = submitted.record(TENANT, "mine")
        await wait_until_async(
            lambda: record.followers == 1, what="the log to be read", deadline_s=DEADLINE_S
        )
    await wait_until_async(lambda: record.followers == 0, what="the log to be left", deadline_s=DEADLINE_S)


async def test_tail_silent_job_is_kept_alive_by_pings(jobs: FakeJobs, config: GatewayConfig) -> None:
    gateway = await start_gateway(jobs, replace(config, ping_interval_s=0.05), host="127.0.0.1", port=0)
    headers = {"Authorization": f"Bearer {SECRET}"}
    base_url = f"http://127.0.0.1:{gateway.port}"
    async with asyncio.timeout(DEADLINE_S), aiohttp.ClientSession(base_url, headers=headers) as client:
        async with client.post("/api/jobs/", json={"entrypoint": "x", "submission_id": "mine"}):
            pass
        async with client.ws_connect(TAIL, autoping=False) as socket:
            for _ in range(3):
                assert (await socket.receive()).type is WSMsgType.PING
    await gateway.close()


async def test_tail_absent_job_is_404_before_the_upgrade(client: aiohttp.ClientSession) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        await client.ws_connect("/api/jobs/absent/logs/tail")
    assert caught.value.status == 404


async def test_tail_without_upgrade_is_400(client: aiohttp.ClientSession, submitted: FakeJobs) -> None:
    async with client.get(TAIL) as response:
        assert response.status == 400
        assert "/tail" in await response.text()


async def test_tail_foreign_page_cannot_open_it(client: aiohttp.ClientSession, submitted: FakeJobs) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        await client.ws_connect(TAIL, origin="https://evil.example")
    assert caught.value.status == 403


async def test_tail_too_many_of_one_tenant_is_429(client: aiohttp.ClientSession, submitted: FakeJobs) -> None:
    async with client.ws_connect(TAIL), client.ws_connect(TAIL):
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await client.ws_connect(TAIL)
        assert caught.value.status == 429
    record = submitted.record(TENANT, "mine")
    await wait_until_async(lambda: record.followers == 0, what="the log to be left", deadline_s=DEADLINE_S)
    async with client.ws_connect(TAIL):
        pass
