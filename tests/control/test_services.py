"""The gRPC services as an agent and the command line meet them, over loopback."""

from __future__ import annotations

import asyncio
import hashlib
import io
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from grpc_health.v1 import health_pb2, health_pb2_grpc

from orchestrator.adapters.metrics.worker_pages import page_text
from orchestrator.api.v1 import (
    common_pb2,
    jobs_pb2,
    logs_pb2,
    logs_pb2_grpc,
    operator_pb2,
    telemetry_pb2,
    telemetry_pb2_grpc,
    worker_pb2,
)
from orchestrator.control.measuring.measuring import Sources
from orchestrator.control.services.workers import TUNNELS_MAX, TUNNELS_PER_MEMBER_MAX, Sample
from orchestrator.core.ids import AttemptId, WorkerId
from orchestrator.core.jobs import JobStatus
from orchestrator.core.supply.fleet import TokenRole
from orchestrator.gateway.ports import Submission
from tests.control.agents import Agent, Served, agent_of, bearer, refused, serving
from tests.control.house import DEADLINE_S, Puppet
from tests.polling import wait_until_async


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path) as running:
        yield running


@pytest.fixture
async def agent(served: Served) -> AsyncIterator[Agent]:
    async with agent_of(served) as made:
        yield made


# ---------------------------------------------------------------- joining and sessions


async def test_join_then_session_is_welcomed_and_told_the_whole_list(agent: Agent) -> None:
    await agent.join()
    async with asyncio.timeout(DEADLINE_S):
        answer = await agent.hello()
        assert answer.welcome.term == 1
        assert answer.welcome.session_token
        desired = (await agent.stream.read()).desired
        assert (desired.term, list(desired.members)) == (1, [])
        beat = worker_pb2.Heartbeat(sequence=7)
        await agent.stream.write(worker_pb2.SessionRequest(heartbeat=beat))
        assert (await agent.expect("heartbeat_ack")).heartbeat_ack.sequence == 7
        listed = await agent.served.operator.ListWorkers(
            operator_pb2.ListWorkersRequest(), metadata=agent.served.admin
        )
    (worker,) = listed.workers
    assert (worker.worker_id, worker.liveness, worker.connected) == (agent.worker_id, "live", True)
    assert worker.inventory.devices[0].simulated


async def test_join_same_key_and_token_again_is_the_same_worker(agent: Agent) -> None:
    token = await agent.served.house.token(TokenRole.SUPPLIER, "anna")
    enrol = agent.served.enrol
    first = await enrol.Join(agent.join_request(token))
    assert (await enrol.Join(agent.join_request(token))).worker_id == first.worker_id


async def test_join_bad_input_is_refused_by_field(agent: Agent) -> None:
    token = await agent.served.house.token(TokenRole.SUPPLIER, "anna")
    enrol = agent.served.enrol
    changes: list[tuple[dict[str, object], str]] = [
        ({"join_token": "x" * 600}, "join_token"),
        ({"statement_public_key": b"short"}, "statement_public_key"),
        ({"proof": b"x" * 64}, "proof"),
        ({"worker_name": "\x07"}, "worker_name"),
        ({"inventory": common_pb2.Inventory()}, "inventory.isolation"),
        ({"tls_csr": b"x"}, "tls_csr"),
    ]
    for change, field in changes:
        request = agent.join_request(token)
        for name, value in change.items():
            request.ClearField(name)  # type: ignore[arg-type]  # a name from the table above
            if isinstance(value, common_pb2.Inventory):
                request.inventory.CopyFrom(value)
            else:
                setattr(request, name, value)
        with refused(grpc.StatusCode.INVALID_ARGUMENT, field) as caught:
            await enrol.Join(request)
        trailing = dict(caught.value.trailing_metadata())
        assert trailing["orch-field"] == field


async def test_join_tokens_that_do_not_count_are_refused(agent: Agent) -> None:
    enrol = agent.served.enrol
    _, tenants = await agent.served.house.tenant("acme")
    for token, code in (
        ("never-issued", grpc.StatusCode.UNAUTHENTICATED),
        (tenants, grpc.StatusCode.PERMISSION_DENIED),
    ):
        with refused(code):
            await enrol.Join(agent.join_request(token))


async def test_hello_with_anothers_signature_gets_a_farewell_for_good(agent: Agent) -> None:
    await agent.join()
    answer = await agent.hello(forged=True)
    assert answer.WhichOneof("message") == "farewell"
    assert not answer.farewell.retry


async def test_session_reconnect_ends_the_older_one_and_its_token(agent: Agent) -> None:
    await agent.join()
    await agent.hello()
    stale, older = agent.token, agent.stream
    async with asyncio.timeout(DEADLINE_S):
        await agent.hello()
        while await older.read() is not grpc.aio.EOF:
            pass
    with refused(grpc.StatusCode.UNAUTHENTICATED, "session"):
        telemetry = telemetry_pb2_grpc.TelemetryServiceStub(agent.channel)
        await telemetry.Report(iter(()), metadata=bearer(stale))


async def test_session_cancelled_right_after_welcome_is_forgotten_each_time(agent: Agent) -> None:
    await agent.join()
    sessions = agent.served.house.plane.sessions
    for _ in range(12):
        await agent.hello()
        assert sessions.connected
        agent.stream.cancel()
        await wait_until_async(
            lambda: not sessions.connected, what="the session to be forgotten", deadline_s=DEADLINE_S
        )
        with refused(grpc.StatusCode.UNAUTHENTICATED):
            telemetry = telemetry_pb2_grpc.TelemetryServiceStub(agent.channel)
            await telemetry.Report(iter(()), metadata=bearer(agent.token))


async def test_session_that_begins_with_no_message_is_an_invalid_argument(agent: Agent) -> None:
    await agent.join()
    call: Any = agent.connect().stream_stream("/orchestrator.api.v1.WorkerService/Session")
    stream = call(iter((b"\xff\xff\xff",)))
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "request"):
        async with asyncio.timeout(DEADLINE_S):
            while await stream.read() is not grpc.aio.EOF:
                pass
            raise AssertionError(await stream.code())


async def test_telemetry_newest_sample_is_shown(agent: Agent) -> None:
    await agent.join()
    await agent.hello()
    telemetry = telemetry_pb2_grpc.TelemetryServiceStub(agent.channel)
    samples = [
        telemetry_pb2.ReportRequest(cpu_utilization_ratio=ratio, memory_used_bytes=5) for ratio in (0.1, 0.5)
    ]
    answer = await telemetry.Report(iter(samples), metadata=bearer(agent.token))
    assert answer.samples == 2
    listed = await agent.served.operator.ListWorkers(
        operator_pb2.ListWorkersRequest(), metadata=agent.served.admin
    )
    assert listed.workers[0].cpu_utilization_ratio == 0.5
    wrong = telemetry_pb2.ReportRequest(cpu_utilization_ratio=7)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "cpu_utilization_ratio"):
        await telemetry.Report(iter((wrong,)), metadata=bearer(agent.token))


async def test_telemetry_of_own_devices_is_exported_and_of_others_not(agent: Agent) -> None:
    await agent.join()
    await agent.hello()
    mine = agent.offer.devices[0].device_id
    devices = [
        telemetry_pb2.DeviceSample(device_id=mine, utilization_ratio=0.75, last_xid=48, ecc_uncorrected=2),
        telemetry_pb2.DeviceSample(device_id="somebody else's"),
    ]
    telemetry = telemetry_pb2_grpc.TelemetryServiceStub(agent.channel)
    await telemetry.Report(iter([telemetry_pb2.ReportRequest(devices=devices)]), metadata=bearer(agent.token))
    house = agent.served.house

    async def page() -> list[str]:
        return page_text(await house.plane.worker_rows(0)).decode().splitlines()

    lines = await page()
    labels = f'{{worker="{agent.worker_id}",device="0"}}'
    assert f"orchestrator_device_utilization_ratio{labels} 0.75" in lines
    assert f"orchestrator_device_last_xid{labels} 48" in lines
    assert f"orchestrator_device_ecc_uncorrected{labels} 2" in lines
    assert not [line for line in lines if "somebody else" in line]
    agent.stream.cancel()
    await wait_until_async(
        lambda: not house.plane.sessions.connected, what="the session's end", deadline_s=DEADLINE_S
    )
    lines = await page()
    assert not [line for line in lines if labels in line]
    assert [line for line in lines if line.startswith("orchestrator_worker_info{")]


async def test_telemetry_of_tunnels_is_added_up_by_way_and_bounded(agent: Agent) -> None:
    await placed(agent, zipped())
    telemetry = telemetry_pb2_grpc.TelemetryServiceStub(agent.channel)
    house = agent.served.house

    async def report(tunnels: telemetry_pb2.TunnelCounts | None) -> None:
        sample = telemetry_pb2.ReportRequest(tunnels=tunnels)
        await telemetry.Report(iter([sample]), metadata=bearer(agent.token))

    async def shown() -> list[float | None]:
        plane = house.plane
        sources = Sources(plane.sessions, plane.telemetry.newest, None, dict, None)
        await plane.measuring.network(plane.loop, sources)
        registry = house.metrics.registry
        return [
            registry.get_sample_value("orchestrator_overlay_tunnels", {"way": way})
            for way in ("direct", "relayed", "bridged")
        ]

    assert await shown() == [0, 0, 0]
    await report(telemetry_pb2.TunnelCounts(direct=4, relayed=2, bridged=1))
    another = telemetry_pb2.TunnelCounts(relayed=5)
    house.plane.telemetry.newest[WorkerId("wrk_without_members")] = Sample(0.0, 0, (), another)
    assert await shown() == [4, 2, 1]
    await report(telemetry_pb2.TunnelCounts(direct=1, relayed=TUNNELS_PER_MEMBER_MAX))
    assert await shown() == [0, 0, 0], "more than its member can have"
    await report(None)
    assert await shown() == [0, 0, 0]
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "tunnels"):
        await report(telemetry_pb2.TunnelCounts(direct=TUNNELS_MAX, bridged=1))


# ---------------------------------------------------------------- packages and logs


async def placed(agent: Agent, data: bytes) -> AttemptId:
    """A job with a package, running on the agent's worker."""
    await agent.join()
    await agent.hello()
    built = agent.served.house
    tenant, _ = await built.tenant("acme")

    async def pieces() -> AsyncIterator[bytes]:
        yield data

    await built.plane.jobs.put_package(tenant, "gcs://a.zip", pieces())
    submission = Submission("true", "mine", runtime_env={"working_dir": "gcs://a.zip"})
    job = await built.plane.jobs.submit(tenant, submission)
    puppet = Puppet(built, next(iter(built.plane.sessions.connected)))
    await puppet.until(lambda state: state.jobs[job.job_id].status is JobStatus.RUNNING)
    found = await built.plane.jobs.job(tenant, "mine")
    assert found.attempt_id is not None
    return found.attempt_id


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.py", "print()" * 100_000)
    return buffer.getvalue()


async def test_package_and_log_of_an_attempt_go_both_ways(agent: Agent) -> None:
    data = zipped()
    attempt_id = await placed(agent, data)
    sha256 = hashlib.sha256(data).hexdigest()
    request = worker_pb2.FetchPackageRequest(attempt_id=attempt_id, sha256=sha256)
    fetched = [one.data async for one in agent.stub.FetchPackage(request, metadata=bearer(agent.token))]
    assert b"".join(fetched) == data
    assert len(fetched) > 1

    logs = logs_pb2_grpc.LogsServiceStub(agent.channel)
    chunks = [
        logs_pb2.ShipLogsRequest(attempt_id=attempt_id, offset=0, data=b"one\n"),
        logs_pb2.ShipLogsRequest(attempt_id=attempt_id, offset=9, data=b"beyond a gap"),
        logs_pb2.ShipLogsRequest(attempt_id=attempt_id, offset=2, data=b"e\ntwo\n"),
    ]
    answers = [one async for one in logs.ShipLogs(iter(chunks), metadata=bearer(agent.token))]
    assert [one.acknowledged_offset for one in answers] == [4, 4, 8]
    read = jobs_pb2.ReadJobLogRequest(job="mine", offset=2)
    pieces = [one async for one in agent.served.jobs.ReadJobLog(read, metadata=agent.served.admin)]
    assert [(piece.offset, piece.data) for piece in pieces] == [(2, b"e\ntwo\n")]


async def test_read_job_log_follower_that_leaves_is_forgotten(agent: Agent) -> None:
    attempt_id = await placed(agent, zipped())
    logs = agent.served.house.plane.logs
    read = jobs_pb2.ReadJobLogRequest(job="mine", follow=True)
    following = agent.served.jobs.ReadJobLog(read, metadata=agent.served.admin)
    await wait_until_async(
        lambda: logs.watched == {attempt_id}, what="the log to be followed", deadline_s=DEADLINE_S
    )
    following.cancel()
    await wait_until_async(lambda: not logs.watched, what="the follower to go", deadline_s=DEADLINE_S)


async def test_attempt_of_others_is_forbidden(agent: Agent) -> None:
    data = zipped()
    attempt_id = await placed(agent, data)
    stranger = Agent(agent.served, Ed25519PrivateKey.generate())
    await stranger.join()
    await stranger.hello()
    request = worker_pb2.FetchPackageRequest(attempt_id=attempt_id, sha256=hashlib.sha256(data).hexdigest())
    with refused(grpc.StatusCode.PERMISSION_DENIED):
        await anext(aiter(stranger.stub.FetchPackage(request, metadata=bearer(stranger.token))))
    logs = logs_pb2_grpc.LogsServiceStub(agent.channel)
    chunk = logs_pb2.ShipLogsRequest(attempt_id=attempt_id, data=b"lies")
    with refused(grpc.StatusCode.PERMISSION_DENIED):
        await anext(aiter(logs.ShipLogs(iter((chunk,)), metadata=bearer(stranger.token))))


# ---------------------------------------------------------------- operators and tenants


async def test_operator_calls_need_an_operators_token(served: Served) -> None:
    _, tenants = await served.house.tenant("acme")
    status = operator_pb2.GetStatusRequest()
    with refused(grpc.StatusCode.UNAUTHENTICATED, "ORCH_TOKEN"):
        await served.operator.GetStatus(status)
    with refused(grpc.StatusCode.UNAUTHENTICATED, "not known here; ask the operator for a new one"):
        await served.operator.GetStatus(status, metadata=bearer("never-issued"))
    with refused(grpc.StatusCode.PERMISSION_DENIED, "the token of an operator; this one is a tenant's"):
        await served.operator.GetStatus(status, metadata=bearer(tenants))
    answer = await served.operator.GetStatus(status, metadata=served.admin)
    assert (answer.gateway_url, answer.term) == ("http://gateway", 1)


async def test_create_token_same_request_id_is_the_same_token_and_secret(served: Served) -> None:
    await served.house.tenant("acme")
    request = operator_pb2.CreateTokenRequest(
        request_id="req_1", role=operator_pb2.TOKEN_ROLE_TENANT, subject="acme"
    )
    first = await served.operator.CreateToken(request, metadata=served.admin)
    again = await served.operator.CreateToken(request, metadata=served.admin)
    assert (again.token.token_id, again.secret) == (first.token.token_id, first.secret)
    request.request_id = "req_2"
    other = await served.operator.CreateToken(request, metadata=served.admin)
    assert other.secret != first.secret
    listed = await served.jobs.ListJobs(jobs_pb2.ListJobsRequest(), metadata=bearer(first.secret))
    assert list(listed.jobs) == []
    await served.operator.RevokeToken(
        operator_pb2.RevokeTokenRequest(token_id=first.token.token_id), metadata=served.admin
    )
    with refused(grpc.StatusCode.UNAUTHENTICATED, "revoked"):
        await served.jobs.ListJobs(jobs_pb2.ListJobsRequest(), metadata=bearer(first.secret))


async def test_operator_bad_values_are_refused_by_field(served: Served) -> None:
    calls: list[tuple[Any, Any, str]] = [
        (served.operator.CreateTenant, operator_pb2.CreateTenantRequest(name="\n"), "name"),
        (served.operator.CreateToken, operator_pb2.CreateTokenRequest(subject="x"), "role"),
        (
            served.operator.CreateToken,
            operator_pb2.CreateTokenRequest(role=operator_pb2.TOKEN_ROLE_OPERATOR, ttl_seconds=2**63),
            "ttl_seconds",
        ),
        (served.operator.GetCluster, operator_pb2.GetClusterRequest(), "cluster_id"),
        (served.operator.LeaveWorker, operator_pb2.LeaveWorkerRequest(worker="w" * 300), "worker"),
        (served.jobs.ListJobs, jobs_pb2.ListJobsRequest(page_size=10**6), "page_size"),
    ]
    for call, request, field in calls:
        with refused(grpc.StatusCode.INVALID_ARGUMENT, field):
            await call(request, metadata=served.admin)


async def test_absent_thing_with_a_long_name_is_answered_shortly(served: Served) -> None:
    request = operator_pb2.GetClusterRequest(cluster_id="c" * 200)
    with refused(grpc.StatusCode.NOT_FOUND, "c" * 80) as caught:
        await served.operator.GetCluster(request, metadata=served.admin)
    assert "c" * 81 not in str(caught.value.details())


async def test_bytes_that_are_no_message_are_invalid_arguments(served: Served) -> None:
    for method in ("OperatorService/CreateTenant", "EnrolService/Join"):
        call: Any = served.channel.unary_unary(f"/orchestrator.api.v1.{method}")
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "request"):
            await call(b"\xff\xff\xff", metadata=served.admin)


async def test_jobs_tenant_sees_only_its_own(served: Served) -> None:
    one, secret = await served.house.tenant("one")
    two, _ = await served.house.tenant("two")
    await served.house.plane.jobs.submit(one, Submission("true", "mine"))
    theirs = await served.house.plane.jobs.submit(two, Submission("true", "mine"))
    listed = await served.jobs.ListJobs(jobs_pb2.ListJobsRequest(), metadata=bearer(secret))
    assert [job.tenant_id for job in listed.jobs] == [one]
    with refused(grpc.StatusCode.NOT_FOUND):
        await served.jobs.GetJob(jobs_pb2.GetJobRequest(job=theirs.job_id), metadata=bearer(secret))
    with refused(grpc.StatusCode.PERMISSION_DENIED):
        await served.jobs.ListJobs(jobs_pb2.ListJobsRequest(tenant_id=two), metadata=bearer(secret))
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "2 tenants"):
        await served.jobs.GetJob(jobs_pb2.GetJobRequest(job="mine"), metadata=served.admin)
    pages = jobs_pb2.ListJobsRequest(page_size=1, before_job_id=theirs.job_id)
    older = await served.jobs.ListJobs(pages, metadata=served.admin)
    assert [job.tenant_id for job in older.jobs] == [one]
    stopped = await served.jobs.StopJob(jobs_pb2.StopJobRequest(job="mine"), metadata=bearer(secret))
    assert stopped.stopped


async def test_health_every_service_is_serving_without_a_token(served: Served) -> None:
    stub = health_pb2_grpc.HealthStub(served.channel)
    for name in ("", "orchestrator.api.v1.EnrolService"):
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
