"""Who and what gets in: routes, tokens, hosts, foreign pages."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import aiohttp
import pytest
from yarl import URL

from orchestrator.core.errors import RefusalCode, RefusedError
from orchestrator.gateway.app import Gateway, start_gateway
from orchestrator.gateway.config import GatewayConfig
from tests.gateway.conftest import Observed
from tests.gateway.fake_jobs import OTHER_SECRET, SECRET, FakeJobs


async def test_version_with_token_is_what_rays_client_needs(client: aiohttp.ClientSession) -> None:
    async with client.get("/api/version") as response:
        assert (response.status, await response.json()) == (200, {"version": "4", "ray_version": "2.60.0"})
        assert response.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/api/v0/nodes"),
        ("GET", "/worker/traceback"),
        ("GET", "/memory_profile"),
        ("GET", "/api/jobs"),
        ("PUT", "/api/jobs/"),
        ("HEAD", "/api/version"),
        ("OPTIONS", "/api/jobs/"),
        ("DELETE", "/api/packages/gcs/_ray_pkg_00.zip"),
        ("GET", "/api/jobs/a/logs/tail/x"),
        ("GET", "/api/jobs/..%2f..%2fsecret"),
        ("GET", "/api/jobs/a%00b"),
        ("GET", "/api/jobs/" + "a" * 129),
    ],
)
async def test_path_not_on_the_list_is_404(client: aiohttp.ClientSession, method: str, path: str) -> None:
    url = URL(path, encoded=True)
    async with client.request(method, url) as response:
        assert response.status == 404


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": ""}, 401),
        ({"Authorization": "Bearer "}, 401),
        ({"Authorization": f"Basic {SECRET}"}, 401),
        ({"Authorization": f"Bearer {SECRET}x"}, 403),
        ({"Authorization": f"Bearer {SECRET} {SECRET}"}, 403),
        ({"Authorization": "Bearer " + "x" * 600}, 403),
        ({"Authorization": f"Bearer {SECRET}"}, 200),
        ({"Authorization": f"bearer {SECRET}"}, 200),
        ({"X-Ray-Authorization": f"Bearer {SECRET}"}, 200),
        ({"Authorization": "Bearer wrong", "X-Ray-Authorization": f"Bearer {SECRET}"}, 403),
        ({"Cookie": f"ray-authentication-token={SECRET}"}, 200),
        ({"Cookie": "ray-authentication-token=wrong"}, 403),
    ],
)
async def test_token_each_place_and_fault_is_told_apart(
    bare: aiohttp.ClientSession, headers: dict[str, str], status: int
) -> None:
    async with bare.get("/api/version", headers=headers) as response:
        text = await response.text()
        assert response.status == status
        assert SECRET not in text
        if status == 401:
            assert "RAY_AUTH_TOKEN" in text
            assert "RAY_AUTH_MODE" in text


async def test_header_malformed_is_neither_logged_with_its_token(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    reader, writer = await asyncio.open_connection(gateway.host, gateway.port)
    writer.write(
        f"GET /api/version HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {SECRET}\x01\r\n\r\n".encode()
    )
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    assert answer.startswith((b"HTTP/1.0 400", b"HTTP/1.1 400"))
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:8265", 200),
        ("LOCALHOST:1", 200),
        ("[::1]:8265", 200),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("10.0.0.1", 421),
        ("[::1", 421),
        ("", 421),
    ],
)
async def test_host_foreign_name_is_refused(client: aiohttp.ClientSession, host: str, status: int) -> None:
    async with client.get("/api/version", headers={"Host": host}) as response:
        assert response.status == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://[::1"}, 403),
        ({"Origin": "http://127.0.0.1:9", "Host": "127.0.0.1:9"}, 200),
        ({"Origin": "http://127.0.0.1:8", "Host": "127.0.0.1:9"}, 403),
    ],
)
@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_foreign_page_is_refused_before_anything_happens(
    client: aiohttp.ClientSession, jobs: FakeJobs, method: str, headers: dict[str, str], status: int
) -> None:
    body = {"entrypoint": "true"} if method == "POST" else None
    async with client.request(method, "/api/jobs/", json=body, headers=headers) as response:
        assert response.status == status
    assert len(jobs.records) == (1 if method == "POST" and status == 200 else 0)


async def test_tenant_sees_only_its_own(client: aiohttp.ClientSession) -> None:
    async with client.post("/api/jobs/", json={"entrypoint": "true", "submission_id": "mine"}) as response:
        assert response.status == 200
    other = {"Authorization": f"Bearer {OTHER_SECRET}"}
    async with client.get("/api/jobs/", headers=other) as response:
        assert await response.json() == []
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/stop"), ("GET", "/logs")):
        async with client.request(method, f"/api/jobs/mine{path}", headers=other) as response:
            assert response.status == 404


async def test_observer_is_told_templates_not_names(
    client: aiohttp.ClientSession, bare: aiohttp.ClientSession, observed: Observed
) -> None:
    for session, path in ((client, "/api/jobs/absent"), (client, "/other"), (bare, "/api/jobs/")):
        async with session.get(path):
            pass
    assert observed.calls == [
        ("GET", "/api/jobs/{submission_id}", 404),
        ("GET", "unmatched", 404),
        ("GET", "/api/jobs/", 401),
    ]


@pytest.mark.parametrize(
    ("code", "status", "retry_after"),
    [
        (RefusalCode.INVALID, 400, None),
        (RefusalCode.ALREADY_EXISTS, 409, None),
        (RefusalCode.CONFLICT, 409, None),
        (RefusalCode.STALE, 409, None),
        (RefusalCode.EXHAUSTED, 429, "1"),
        (RefusalCode.UNAVAILABLE, 503, "1"),
    ],
)
async def test_refusal_each_code_has_its_status_and_sentence(
    client: aiohttp.ClientSession, jobs: FakeJobs, code: RefusalCode, status: int, retry_after: str | None
) -> None:
    jobs.refuse_submit = RefusedError(code, "do this instead")
    async with client.post("/api/jobs/", json={"entrypoint": "true"}) as response:
        assert (response.status, await response.text()) == (status, "do this instead")
        assert response.headers.get("Retry-After") == retry_after


async def test_failure_unforeseen_is_500_without_its_text(
    client: aiohttp.ClientSession,
    jobs: FakeJobs,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    jobs.refuse_submit = ValueError("value-of-a-variable")
    async with client.post("/api/jobs/", json={"entrypoint": "true"}) as response:
        assert response.status == 500
        assert "value-of-a-variable" not in await response.text()
    logged = capsys.readouterr().out + caplog.text
    assert "ValueError" in logged
    assert "value-of-a-variable" not in logged


async def test_start_port_taken_raises_and_leaves_nothing(gateway: Gateway, jobs: FakeJobs) -> None:
    with pytest.raises(OSError, match="address already in use"):
        await start_gateway(jobs, GatewayConfig(), host=gateway.host, port=gateway.port)


async def test_gateway_connections_that_ask_nothing_end_and_keep_nobody_out(
    jobs: FakeJobs, config: GatewayConfig
) -> None:
    small = replace(config, connections_max=4, connection_idle_s=0.5)
    gateway = await start_gateway(jobs, small, host="127.0.0.1", port=0)
    silent = [await asyncio.open_connection(gateway.host, gateway.port) for _ in range(8)]
    async with asyncio.timeout(10), aiohttp.ClientSession() as session:
        async with session.get(f"http://{gateway.host}:{gateway.port}/api/version") as answer:
            assert answer.status == 401
        for reader, writer in silent:
            assert await reader.read() == b""
            writer.close()
    await gateway.close()
