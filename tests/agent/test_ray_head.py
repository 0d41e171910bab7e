"""The head's API in the agent's terms, against an HTTP server that answers as Ray does."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from orchestrator.adapters.node_records import NodeStatus
from orchestrator.agent.ports import HeadRefusedError, HeadUnreachableError, NodeListed
from orchestrator.agent.ray_head import RayHead
from orchestrator.api.v1 import worker_pb2

URI = "gcs://_ray_pkg_1.zip"


class RayServer:
    """Jobs, packages and nodes; what it got is kept in order."""

    def __init__(self) -> None:
        self.got: list[tuple[str, Any]] = []
        self.submit_code = 200
        self.package_code = 200
        self.nodes: list[dict[str, Any]] = []
        self.garbled = False
        self.url = ""
        self.hostile = ""

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/api/jobs/", self.submit)
        app.router.add_get("/api/jobs/{id}", self.status)
        app.router.add_get("/api/packages/gcs/{name}", self.missing)
        app.router.add_put("/api/packages/gcs/{name}", self.put)
        app.router.add_get("/nodes", self.list_nodes)
        return app

    async def submit(self, request: web.Request) -> web.Response:
        self.got.append(("submit", await request.json()))
        self.got.append(("token", request.headers["Authorization"]))
        return web.Response(status=self.submit_code, text="Traceback: no such runtime_env field")

    async def status(self, request: web.Request) -> web.Response:
        if self.garbled:
            return web.Response(text="{")
        if request.match_info["id"] == "hostile":
            return web.Response(text=self.hostile, content_type="application/json")
        if request.match_info["id"] == "elsewhere":
            raise web.HTTPFound("http://router.home/admin")
        if request.match_info["id"] != "known":
            raise web.HTTPNotFound
        return web.json_response({"status": "FAILED", "message": "said", "driver_exit_code": 3})

    async def missing(self, request: web.Request) -> web.Response:
        raise web.HTTPNotFound

    async def put(self, request: web.Request) -> web.Response:
        self.got.append(("package", await request.read()))
        return web.Response(status=self.package_code, text="too large")

    async def list_nodes(self, request: web.Request) -> web.Response:
        return web.json_response({"data": {"summary": [{"raylet": node} for node in self.nodes]}})


@pytest.fixture
async def server() -> AsyncIterator[RayServer]:
    made = RayServer()
    runner = web.AppRunner(made.app())
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    made.url = f"http://{host}:{port}"
    yield made
    await runner.cleanup()


@pytest.fixture
async def head(server: RayServer, tmp_path: Path) -> AsyncIterator[RayHead]:
    made = RayHead(
        NodeStatus("up", dashboard_url=server.url, session_dir=str(tmp_path), temp_dir=str(tmp_path.parent)),
        "secret",
    )
    yield made
    await made.close()


def attempt(**fields: object) -> worker_pb2.DesiredAttempt:
    settings: dict[str, object] = {"attempt_id": "a-1", "entrypoint": "python a.py"}
    return worker_pb2.DesiredAttempt(**(settings | fields))  # type: ignore[arg-type]  # as the proto names them


async def test_head_submit_without_resources_names_none_so_that_the_driver_runs_here(
    server: RayServer, head: RayHead
) -> None:
    runtime_env = {"working_dir": URI, "env_vars": {"A": "1"}}
    await head.submit(attempt(runtime_env_json=json.dumps(runtime_env), metadata={"k": "v"}), {})
    assert server.got == [
        (
            "submit",
            {
                "entrypoint": "python a.py",
                "submission_id": "a-1",
                "runtime_env": runtime_env,
                "metadata": {"k": "v"},
            },
        ),
        ("token", "Bearer secret"),
    ]


async def test_head_submit_passes_the_resources_that_were_asked_for(server: RayServer, head: RayHead) -> None:
    await head.submit(
        attempt(entrypoint_num_gpus=1, entrypoint_memory_bytes=5, entrypoint_resources={"x": 2}), {}
    )
    body = server.got[0][1]
    assert (body["entrypoint_num_gpus"], body["entrypoint_memory"], body["entrypoint_resources"]) == (
        1,
        5,
        {"x": 2},
    )
    assert "entrypoint_num_cpus" not in body


async def test_head_submit_puts_packages_first(server: RayServer, head: RayHead, tmp_path: Path) -> None:
    package = tmp_path / "p.zip"
    package.write_bytes(b"zip")
    await head.submit(attempt(), {URI: package})
    assert [what for what, _ in server.got] == ["package", "submit", "token"]
    assert server.got[0][1] == b"zip"


@pytest.mark.parametrize("code", [400, 422])
async def test_head_submit_that_ray_refuses_is_refused_for_good(
    server: RayServer, head: RayHead, code: int
) -> None:
    server.submit_code = code
    with pytest.raises(HeadRefusedError, match="no such runtime_env field"):
        await head.submit(attempt(), {})


@pytest.mark.parametrize("code", [401, 429, 500, 503])
async def test_head_submit_that_says_nothing_of_the_request_may_be_tried_again(
    server: RayServer, head: RayHead, code: int
) -> None:
    server.submit_code = code
    with pytest.raises(HeadUnreachableError):
        await head.submit(attempt(), {})


async def test_head_package_that_ray_refuses_is_refused_for_good(
    server: RayServer, head: RayHead, tmp_path: Path
) -> None:
    package = tmp_path / "p.zip"
    package.write_bytes(b"zip")
    server.package_code = 413
    with pytest.raises(HeadRefusedError, match="413"):
        await head.submit(attempt(), {URI: package})


@pytest.mark.parametrize(
    ("fields", "packages", "said"),
    [
        ({"runtime_env_json": "{"}, {}, "not JSON"),
        ({"runtime_env_json": "[]"}, {}, "object"),
        ({}, {"s3://x.zip": Path("/x")}, "gcs://"),
    ],
)
async def test_head_submit_of_what_cannot_be_meant_is_refused_before_ray_hears_of_it(
    server: RayServer, head: RayHead, fields: dict[str, object], packages: dict[str, Path], said: str
) -> None:
    with pytest.raises(HeadRefusedError, match=said):
        await head.submit(attempt(**fields), packages)
    assert server.got == []


async def test_head_status_of_known_and_unknown_drivers(head: RayHead) -> None:
    known = await head.status("known")
    assert known is not None
    assert (known.status, known.message, known.exit_code) == ("FAILED", "said", 3)
    assert await head.status("other") is None


async def test_head_half_an_answer_is_unreachable(server: RayServer, head: RayHead) -> None:
    server.garbled = True
    with pytest.raises(HeadUnreachableError, match="not understood"):
        await head.status("known")


async def test_head_nobody_there_is_unreachable() -> None:
    head = RayHead(NodeStatus("up", dashboard_url="http://127.0.0.1:1"), "secret")
    with pytest.raises(HeadUnreachableError):
        await head.nodes()
    with pytest.raises(HeadUnreachableError):
        await head.submit(attempt(), {})
    await head.close()


async def test_head_lists_our_living_nodes_only(server: RayServer, head: RayHead) -> None:
    base = {"nodeManagerAddress": "10.0.0.1", "resourcesTotal": {"GPU": 2.0, "CPU": 4.0}}
    server.nodes = [
        base | {"nodeId": "1", "state": "ALIVE", "labels": {"orch-member": "m-0"}},
        base | {"nodeId": "2", "state": "DEAD", "labels": {"orch-member": "m-1"}},
        base | {"nodeId": "3", "state": "ALIVE", "labels": {}},
    ]
    assert await head.nodes() == [NodeListed("m-0", 2.0, 4.0)]


async def test_head_log_is_read_from_any_offset_and_empty_before_there_is_one(
    head: RayHead, tmp_path: Path
) -> None:
    assert head.read_log("a-1", 0, 10) == b""
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "job-driver-a-1.log").write_bytes(b"0123456789")
    assert head.read_log("a-1", 3, 4) == b"3456"
    assert head.read_log("a-1", 10, 4) == b""


@pytest.mark.parametrize(
    "answer",
    [
        '{"status": "FAILED", "message": "\\ud800", "driver_exit_code": 1099511627776}',
        '{"status": "FAILED", "message": [1], "driver_exit_code": "1"}',
        '{"status": "FAILED", "message": "' + "x" * 100_000 + '", "driver_exit_code": true}',
    ],
)
async def test_head_answer_of_a_tenants_code_becomes_what_can_be_reported(
    server: RayServer, head: RayHead, answer: str
) -> None:
    server.hostile = answer
    status = await head.status("hostile")
    assert status is not None
    assert (status.status, status.exit_code) == ("FAILED", None)
    told = worker_pb2.AttemptObserved(message=status.message)
    assert len(told.SerializeToString()) < 10_000


@pytest.mark.parametrize(
    "answer", ["[" * 100_000, '{"message": 1}', "[]", '{"status": "x"', " " * 9 * 2**20 + "{}"]
)
async def test_head_answer_that_is_none_means_that_the_head_is_not_reached(
    server: RayServer, head: RayHead, answer: str
) -> None:
    server.hostile = answer
    with pytest.raises(HeadUnreachableError):
        await head.status("hostile")


async def test_head_that_leads_elsewhere_is_not_followed(head: RayHead) -> None:
    with pytest.raises(HeadUnreachableError, match="302"):
        await head.status("elsewhere")


@pytest.mark.parametrize("amount", ["Infinity", "NaN", "-1", "1e300", '"8"', "[]"])
async def test_head_that_lists_impossible_nodes_is_not_reached(
    server: RayServer, head: RayHead, amount: str
) -> None:
    node = {"nodeId": "n", "nodeManagerAddress": "a", "resourcesTotal": {"GPU": json.loads(amount)}}
    server.nodes = [node]
    with pytest.raises(HeadUnreachableError):
        await head.nodes()
