"""What tenants and agents are told of the network's runtimes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from orchestrator.api.v1 import common_pb2, jobs_pb2, worker_pb2
from orchestrator.control.inventory_wire import inventory_to
from orchestrator.core.supply.fleet import Isolation
from tests.control.agents import Agent, Served, agent_of, bearer, refused, serving
from tests.control.house import DEADLINE_S, inventory

DEFAULT = common_pb2.Runtime(
    name="default", digest="d" * 64, python="3.11", ray_version="2.60.0", lock=b"ray==2.60.0 --hash=sha256:00"
)
TORCH = common_pb2.Runtime(
    name="torch", digest="a" * 64, python="3.12", ray_version="2.60.0", lock=b"torch==2 --hash=sha256:00"
)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path, runtimes=(DEFAULT, TORCH)) as running:
        yield running


@pytest.fixture
async def agent(served: Served) -> AsyncIterator[Agent]:
    async with agent_of(served) as made:
        yield made


async def test_list_runtimes_tenant_sees_the_default_first_without_locks(served: Served) -> None:
    _, tenant = await served.house.tenant("acme")
    answer = await served.jobs.ListRuntimes(jobs_pb2.ListRuntimesRequest(), metadata=bearer(tenant))
    assert [(one.name, one.digest, one.lock) for one in answer.runtimes] == [
        ("default", DEFAULT.digest, b""),
        ("torch", TORCH.digest, b""),
    ]
    # What was sent was a copy.
    shown = await served.jobs.GetRuntime(jobs_pb2.GetRuntimeRequest(name="torch"), metadata=bearer(tenant))
    assert shown.runtime == TORCH


@pytest.mark.parametrize("name", ["default", "d" * 64, "d" * 12])
async def test_get_runtime_by_name_or_digest_has_its_lock(served: Served, name: str) -> None:
    answer = await served.jobs.GetRuntime(jobs_pb2.GetRuntimeRequest(name=name), metadata=served.admin)
    assert answer.runtime == DEFAULT


async def test_get_runtime_unknown_name_tells_the_nearest(served: Served) -> None:
    with refused(grpc.StatusCode.NOT_FOUND, "'torsh'", "did you mean 'torch'?"):
        await served.jobs.GetRuntime(jobs_pb2.GetRuntimeRequest(name="torsh"), metadata=served.admin)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "name"):
        await served.jobs.GetRuntime(jobs_pb2.GetRuntimeRequest(), metadata=served.admin)


async def test_get_runtime_of_a_network_without_any_says_so(tmp_path: Path) -> None:
    async with serving(tmp_path) as bare:
        with refused(grpc.StatusCode.NOT_FOUND, "offers no runtimes"):
            await bare.jobs.GetRuntime(jobs_pb2.GetRuntimeRequest(name="default"), metadata=bare.admin)


async def test_runtimes_without_a_token_are_not_told(served: Served) -> None:
    with refused(grpc.StatusCode.UNAUTHENTICATED):
        await served.jobs.ListRuntimes(jobs_pb2.ListRuntimesRequest())
    with refused(grpc.StatusCode.UNAUTHENTICATED):
        await served.jobs.GetRuntime(jobs_pb2.GetRuntimeRequest(name="default"))


async def test_fetch_runtime_is_for_a_workers_session_only(agent: Agent) -> None:
    await agent.join()
    await agent.hello()
    request = worker_pb2.FetchRuntimeRequest(digest=TORCH.digest)
    answer = await agent.stub.FetchRuntime(request, metadata=bearer(agent.token))
    assert answer.runtime == TORCH
    for strange in ((), agent.served.admin, bearer("never-issued")):
        with refused(grpc.StatusCode.UNAUTHENTICATED):
            await agent.stub.FetchRuntime(request, metadata=strange)


async def test_fetch_runtime_unknown_digest_is_not_found(agent: Agent) -> None:
    await agent.join()
    await agent.hello()
    for unknown in ("f" * 64, TORCH.digest[:12], TORCH.name):
        with refused(grpc.StatusCode.NOT_FOUND, unknown):
            await agent.stub.FetchRuntime(
                worker_pb2.FetchRuntimeRequest(digest=unknown), metadata=bearer(agent.token)
            )


async def test_welcome_names_the_default_runtime_to_a_worker_with_boxes(agent: Agent) -> None:
    await agent.join()
    async with asyncio.timeout(DEADLINE_S):
        told = (await agent.hello()).welcome.default_runtime
    assert (told.name, told.digest, told.lock) == ("default", DEFAULT.digest, b"")


async def test_welcome_names_no_runtime_to_a_worker_without_boxes(agent: Agent) -> None:
    agent.offer = inventory_to(inventory())
    agent.offer.isolation = Isolation.NONE
    await agent.join()
    async with asyncio.timeout(DEADLINE_S):
        assert not (await agent.hello()).welcome.HasField("default_runtime")
