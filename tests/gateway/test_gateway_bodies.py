"""Submissions and packages: what is taken, and how what is not is named."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from dataclasses import replace

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.errors import RefusalCode, RefusedError
from orchestrator.core.jobs import JobStatus
from orchestrator.gateway.app import Gateway, start_gateway
from orchestrator.gateway.body import parse_object
from orchestrator.gateway.config import GatewayConfig
from orchestrator.gateway.submissions import parse_submission
from tests.gateway.conftest import Observed
from tests.gateway.fake_jobs import OTHER_SECRET, QUEUED, SECRET, TENANT, FakeJobs
from tests.gateway.jobs_contract import URI, zipped
from tests.polling import wait_for_answer, wait_until_async

PACKAGE = "/api/packages/gcs/_ray_pkg_0123456789abcdef.zip"


async def test_submit_all_that_rays_client_sends_arrives_as_it_was(
    client: aiohttp.ClientSession, jobs: FakeJobs
) -> None:
    jobs.packages[TENANT, URI] = zipped()
    body = {
        "entrypoint": "python a.py --name 'ü'",
        "submission_id": "raysubmit_4LamXRuQpYdSMg7J",
        "job_id": None,
        "runtime_env": {"working_dir": URI, "excludes": ["data"], "env_vars": {"KEY": "hush"}},
        "metadata": {"orch.gpus": "2", "team": "x"},
        "entrypoint_num_cpus": 1,
        "entrypoint_num_gpus": 0.5,
        "entrypoint_memory": 2**33,
        "entrypoint_resources": {"driver": 1},
        "entrypoint_label_selector": {},
    }
    async with client.post("/api/jobs/", json=body) as response:
        answer = await response.json()
    name = "raysubmit_4LamXRuQpYdSMg7J"
    assert answer == {"job_id": name, "submission_id": name}
    request = (await jobs.job(TENANT, name)).request
    assert request.entrypoint == body["entrypoint"]
    assert json.loads(request.runtime_env_json) == {"working_dir": URI, "env_vars": {"KEY": "hush"}}
    assert request.requirements.gpus == 2
    assert (request.entrypoint_num_cpus, request.entrypoint_num_gpus) == (1.0, 0.5)
    assert (request.entrypoint_memory_bytes, request.entrypoint_resources) == (2**33, (("driver", 1.0),))


async def test_job_details_each_status_reads_as_rays_own(
    client: aiohttp.ClientSession, jobs: FakeJobs
) -> None:
    body = {"entrypoint": "x", "job_id": "old-name", "runtime_env": {"env_vars": {"KEY": "hush"}}}
    async with client.post("/api/jobs/", json=body) as response:
        assert (await response.json())["submission_id"] == "old-name"
    async with client.get("/api/jobs/old-name") as response:
        queued = await response.json()
    assert queued == {
        "type": "SUBMISSION",
        "job_id": None,
        "submission_id": "old-name",
        "driver_info": None,
        "status": "PENDING",
        "entrypoint": "x",
        "message": QUEUED,
        "error_type": None,
        "start_time": None,
        "end_time": None,
        "metadata": {},
        "runtime_env": {"env_vars": {"KEY": "<redacted>"}},
        "driver_agent_http_address": None,
        "driver_node_id": None,
        "driver_exit_code": None,
    }
    jobs.run(TENANT, "old-name")
    jobs.end(TENANT, "old-name", JobStatus.FAILED, 7)
    async with client.get("/api/jobs/") as response:
        (ended,) = await response.json()
    assert (ended["status"], ended["driver_exit_code"]) == ("FAILED", 7)
    assert ended["error_type"] == "JOB_ENTRYPOINT_COMMAND_ERROR"
    assert 1_600_000_000_000 < ended["start_time"] < ended["end_time"]


async def test_stop_and_delete_answer_as_rays_server_does(client: aiohttp.ClientSession) -> None:
    async with client.post("/api/jobs/", json={"entrypoint": "x", "submission_id": "mine"}):
        pass
    async with client.delete("/api/jobs/mine") as response:
        assert response.status == 409
    for stopped in (True, False):
        async with client.post("/api/jobs/mine/stop") as response:
            assert await response.json() == {"stopped": stopped}
    async with client.delete("/api/jobs/mine") as response:
        assert await response.json() == {"deleted": True}


BAD_BODIES = [
    (b"", "not JSON"),
    (b"{", "not JSON"),
    (b"[]", "object"),
    (b"null", "object"),
    (b'"entrypoint"', "object"),
    (b'{"entrypoint": "x\xff"}', "UTF-8"),
    (b"[" * 200_000, "deeply"),
    (b'{"a":' * 200_000, "deeply"),
    (b'{"entrypoint": "a", "entrypoint": "b"}', "'entrypoint' stands twice"),
    (b'{"entrypoint": "a", "metadata": {"k": "a", "k": "b"}}', "'k' stands twice"),
    (b'{"entrypoint": "a", "entrypoint_num_gpus": NaN}', "NaN"),
    (b'{"entrypoint": "a", "entrypoint_num_gpus": -Infinity}', "Infinity"),
    (b'{"entrypoint": "a", "entrypoint_num_gpus": 1e999}', "entrypoint_num_gpus"),
    (b'{"entrypoint": "a", "entrypoint_num_gpus": -1}', "entrypoint_num_gpus"),
    (b'{"entrypoint": "a", "entrypoint_num_cpus": 1e12}', "entrypoint_num_cpus"),
    (b'{"entrypoint": "a", "entrypoint_num_cpus": true}', "entrypoint_num_cpus"),
    (b'{"entrypoint": "a", "entrypoint_num_cpus": "1"}', "entrypoint_num_cpus"),
    (b'{"entrypoint": "a", "entrypoint_memory": 1.5}', "entrypoint_memory"),
    (b'{"entrypoint": "a", "entrypoint_memory": -1}', "entrypoint_memory"),
    (b'{"entrypoint": "a", "entrypoint_memory": 9999999999999999999}', "entrypoint_memory"),
    (b'{"entrypoint": "a", "entrypoint_memory": ' + b"9" * 5000 + b"}", "digits"),
    (b'{"entrypoint": "a", "entrypoint_resources": []}', "entrypoint_resources"),
    (b'{"entrypoint": "a", "entrypoint_resources": {"r": "1"}}', "entrypoint_resources['r']"),
    (b'{"entrypoint": "a", "entrypoint_resources": {"r": -1}}', "entrypoint_resources['r']"),
    (b'{"entrypoint": "a", "entrypoint_label_selector": {"k": "v"}}', "entrypoint_label_selector"),
    (b"{}", "entrypoint is missing"),
    (b'{"entrypoint": null}', "entrypoint is missing"),
    (b'{"entrypoint": " "}', "entrypoint is empty"),
    (b'{"entrypoint": ["python"]}', "entrypoint must be a string, not an array"),
    (b'{"entrypoint": "a\\u0000b"}', "NUL"),
    (b'{"entrypoint": "a\\ud800b"}', "surrogate"),
    (b'{"entrypoint": "a", "entry_point_num_gpus": 1}', "'entrypoint_num_gpus'"),
    (b'{"entrypoint": "a", "\\ud800": 1}', "unknown field"),
    (b'{"entrypoint": "a", "submission_id": 7}', "submission_id"),
    (b'{"entrypoint": "a", "submission_id": ""}', "submission_id"),
    (b'{"entrypoint": "a", "submission_id": "../x"}', "submission_id"),
    (b'{"entrypoint": "a", "submission_id": "-x"}', "submission_id"),
    (b'{"entrypoint": "a", "submission_id": "x\\n"}', "submission_id"),
    (b'{"entrypoint": "a", "job_id": "a b"}', "job_id"),
    (b'{"entrypoint": "a", "submission_id": "' + b"a" * 129 + b'"}', "submission_id"),
    (b'{"entrypoint": "a", "metadata": "x"}', "metadata must be an object, not a string"),
    (
        b'{"entrypoint": "a", "metadata": {"orch.gpus": 2}}',
        "metadata['orch.gpus'] must be a string, not a number",
    ),
    (b'{"entrypoint": "a", "metadata": {"orch.gpuz": "2"}}', "orch.gpus"),
    (b'{"entrypoint": "a", "runtime_env": []}', "runtime_env must be an object, not an array"),
    (b'{"entrypoint": "a", "runtime_env": {"conda": {}}}', "['conda'] is not offered"),
    (b'{"entrypoint": "a", "runtime_env": {"py_executable": "sh"}}', "['py_executable'] is not offered"),
    (b'{"entrypoint": "a", "runtime_env": {"image_uri": "a/b"}}', "['image_uri'] is not offered"),
    (b'{"entrypoint": "a", "runtime_env": {"pip": ["a"], "uv": ["b"]}}', "exclude each other"),
    (b'{"entrypoint": "a", "runtime_env": {"pip": ["https://me:hush@h/x.whl"]}}', "['pip']['packages']"),
    (b'{"entrypoint": "a", "runtime_env": {"container": {}}}', "runtime_env['container'] is not offered"),
    (b'{"entrypoint": "a", "runtime_env": {"worker_process_setup_hook": "m"}}', "worker_process_setup_hook"),
    (b'{"entrypoint": "a", "runtime_env": {"working_dir": null}}', "working_dir"),
    (b'{"entrypoint": "a", "runtime_env": {"working_dir": "/etc"}}', "working_dir"),
    (b'{"entrypoint": "a", "runtime_env": {"working_dir": "file:///etc/x.zip"}}', "working_dir"),
    (b'{"entrypoint": "a", "runtime_env": {"working_dir": "https://h/x.zip"}}', "working_dir"),
    (b'{"entrypoint": "a", "runtime_env": {"working_dir": "gcs://../x.zip"}}', "working_dir"),
    (b'{"entrypoint": "a", "runtime_env": {"working_dir": "gcs://_ray_pkg_00.zip"}}', "not uploaded"),
    (b'{"entrypoint": "a", "runtime_env": {"env_vars": {"K": 1}}}', "['env_vars']['K'] must be a string"),
    (b'{"entrypoint": "a", "runtime_env": {"env_vars": {"A=B": "hush"}}}', "env_vars"),
    (b'{"entrypoint": "a", "runtime_env": {"env_vars": {"": "hush"}}}', "env_vars"),
    (b'{"entrypoint": "a", "runtime_env": {"env_vars": {"K": "hush\\u0000"}}}', "env_vars"),
]


@pytest.mark.parametrize(("body", "named"), BAD_BODIES)
async def test_submit_bad_body_is_400_naming_the_field_and_keeps_nothing(
    client: aiohttp.ClientSession, jobs: FakeJobs, body: bytes, named: str
) -> None:
    async with client.post("/api/jobs/", data=body) as response:
        text = await response.text()
        assert response.status == 400
    assert named in text
    assert "hush" not in text
    assert jobs.records == {}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=20), inner, max_size=3),
    max_leaves=8,
)
fields = st.sampled_from(
    ["entrypoint", "submission_id", "runtime_env", "metadata", "entrypoint_memory", "entrypoint_num_gpus"]
)
runtime_envs = st.dictionaries(
    st.sampled_from(["working_dir", "env_vars", "pip", "uv"]), json_values, max_size=2
)


@given(st.dictionaries(fields, json_values | runtime_envs) | st.binary(max_size=50))
def test_parse_submission_any_body_is_taken_or_refused_as_invalid(body: dict[str, object] | bytes) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    refused: RefusedError | None = None
    try:
        submission = parse_submission(parse_object(data))
    except RefusedError as error:
        refused = error
    else:
        assert submission.entrypoint.strip()
        json.dumps(dict(submission.runtime_env), allow_nan=False).encode()
        assert set(submission.runtime_env) <= {"working_dir", "env_vars", "pip", "uv"}
    assert refused is None or (refused.code is RefusalCode.INVALID and refused.message)


async def test_submit_oversize_is_413_with_and_without_a_length(client: aiohttp.ClientSession) -> None:
    body = json.dumps({"entrypoint": "x" * 2**21}).encode()

    async def pieces() -> AsyncIterator[bytes]:
        yield body

    for data in (io.BytesIO(body), pieces()):
        async with client.post("/api/jobs/", data=data) as response:
            assert response.status == 413
            assert "1048576 bytes" in await response.text()


async def test_submit_compressed_body_is_not_unpacked(client: aiohttp.ClientSession) -> None:
    async with client.post("/api/jobs/", data=b'{"entrypoint": "x"}', compress="gzip") as response:
        assert response.status == 400


async def test_package_upload_then_known_to_its_tenant_only(
    client: aiohttp.ClientSession, jobs: FakeJobs
) -> None:
    async with client.get(PACKAGE) as response:
        assert response.status == 404
    data = zipped("x" * 100_000)
    async with client.put(PACKAGE, data=data) as response:
        assert response.status == 200
    async with client.get(PACKAGE) as response:
        assert (response.status, await response.read()) == (200, b"")
    assert jobs.packages == {(TENANT, URI): data}


@pytest.mark.parametrize(
    "path",
    [
        "gcs/a.whl",
        "gcs/.zip",
        "gcs/-a.zip",
        "http/_ray_pkg_0.zip",
        "gcs/a%2Fb.zip",
        "gcs/" + "a" * 300 + ".zip",
    ],
)
async def test_package_bad_name_is_400(client: aiohttp.ClientSession, jobs: FakeJobs, path: str) -> None:
    for method in ("GET", "PUT"):
        async with client.request(method, f"/api/packages/{path}", data=zipped()) as response:
            assert response.status == 400
    assert jobs.packages == {}


async def test_package_no_zip_is_400(client: aiohttp.ClientSession) -> None:
    async with client.put(PACKAGE, data=b"plain") as response:
        assert (response.status, await response.text()) == (400, f"{URI} is no zip file")


async def test_package_oversize_is_413_and_not_kept(jobs: FakeJobs, config: GatewayConfig) -> None:
    small = replace(config, package_bytes_max=1000)
    gateway = await start_gateway(jobs, small, host="127.0.0.1", port=0)

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * 100

    headers = {"Authorization": f"Bearer {SECRET}"}
    async with aiohttp.ClientSession(headers=headers) as client:
        for data in (b"x" * 1001, pieces()):
            url = f"http://127.0.0.1:{gateway.port}{PACKAGE}"
            async with client.put(url, data=data) as response:
                assert response.status == 413
                assert "working_dir" in await response.text()
    await gateway.close()
    assert jobs.packages == {}


async def test_body_stalled_is_408_and_a_package_cut_off_is_not_kept(
    gateway: Gateway, jobs: FakeJobs, observed: Observed
) -> None:
    head = f"Host: localhost\r\nAuthorization: Bearer {SECRET}\r\nContent-Length: 1000\r\n\r\n".encode()
    for target in (b"POST /api/jobs/", b"PUT " + PACKAGE.encode()):
        reader, writer = await asyncio.open_connection(gateway.host, gateway.port)
        writer.write(target + b" HTTP/1.1\r\n" + head + b"{")
        assert (await reader.readline()).startswith(b"HTTP/1.1 408")
        writer.close()
        await writer.wait_closed()
    _, writer = await asyncio.open_connection(gateway.host, gateway.port)
    writer.write(b"PUT " + PACKAGE.encode() + b" HTTP/1.1\r\n" + head + zipped())
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    cut_off = ("PUT", "/api/packages/{protocol}/{name}", 400)
    await wait_until_async(lambda: cut_off in observed.calls, what="the cut upload to end", deadline_s=60)
    assert jobs.packages == {}


async def test_requests_too_many_of_one_tenant_are_429_and_no_other_tenants_matter(
    jobs: FakeJobs, config: GatewayConfig
) -> None:
    """Whoever sends slowly holds a connection: all of one tenant's together are bounded."""
    patient = replace(config, requests_per_tenant_max=2, body_idle_timeout_s=60)
    gateway = await start_gateway(jobs, patient, host="127.0.0.1", port=0)
    url = f"http://127.0.0.1:{gateway.port}"
    go_on = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield zipped()[:10]
        await go_on.wait()
        yield zipped()[10:]

    mine, theirs = ({"Authorization": f"Bearer {secret}"} for secret in (SECRET, OTHER_SECRET))
    async with aiohttp.ClientSession() as client:
        slow = [
            asyncio.create_task(client.put(f"{url}{PACKAGE}", data=pieces(), headers=mine)) for _ in range(2)
        ]

        async def status(headers: dict[str, str]) -> int:
            async with client.get(f"{url}/api/jobs/", headers=headers) as response:
                return response.status

        async def full() -> bool:
            return await status(mine) == 429

        await wait_for_answer(full, what="two requests under way", deadline_s=60)
        assert await status(theirs) == 200
        go_on.set()
        for response in await asyncio.gather(*slow):
            assert response.status == 200
            response.release()
        assert await status(mine) == 200
    await gateway.close()
