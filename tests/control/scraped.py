"""A real agent in this process, at a real control plane over TLS, whose Ray node is a web server that a test scripts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from orchestrator.adapters.node_records import NodeSpec, NodeStatus
from orchestrator.agent.agent import Agent, AgentSettings
from orchestrator.agent.connection import GrpcControlPlane
from orchestrator.agent.credentials import Credentials
from orchestrator.agent.daemon import AgentClock
from orchestrator.agent.exporter import AgentExporter
from orchestrator.agent.ports import NodeListed
from orchestrator.agent.scraping import PORT, Scraping
from orchestrator.control.jobs_port import ControlJobs
from orchestrator.core.ids import MemberId, WorkerId
from orchestrator.gateway.ports import Submission
from tests.agent.fakes import FakeHead, FakeJournal, FakeNodes
from tests.control.agents import Agent as Joiner
from tests.control.agents import Served, agent_of
from tests.control.house import DEADLINE_S
from tests.control.test_authority_changes import files_of
from tests.polling import wait_until_async

NODE_IP = "127.0.0.2"
PAGES = 2
RAY_TEXT = b'# TYPE ray_node_mem_used gauge\nray_node_mem_used{IsHeadNode="true"} 12.0\n'
RAY_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass
class RayNode:
    """What listens at a node's port for metrics."""

    text: bytes = RAY_TEXT
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": RAY_TYPE})
    status: int = 200
    hangs: bool = False
    asked: list[str] = field(default_factory=list)
    port: int = 0

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(f"{request.method} {request.host} {request.path_qs}")
        if self.hangs:
            await asyncio.Event().wait()
        return web.Response(status=self.status, body=self.text, headers=dict(self.headers))


class ScrapedNodes(FakeNodes):
    """FakeNodes whose members were prepared with the port of a RayNode."""

    def __init__(self, ray: RayNode) -> None:
        super().__init__()
        self._ray = ray

    def spec(self, member_id: str) -> NodeSpec | None:
        order = self.orders.get(member_id)
        if order is None:
            return None
        return NodeSpec(
            member_id=member_id,
            cluster_id=order.cluster_id,
            role=order.role,
            gpus=order.gpus,
            cpus=order.cpus,
            labels={},
            node_ip=NODE_IP,
            ports={PORT: self._ray.port},
            host_id="host",
            block_index=0,
        )


@dataclass
class Rig:
    """The agent, and how a Prometheus would ask for it."""

    served: Served
    worker_id: WorkerId
    agent: Agent
    nodes: ScrapedNodes
    head: FakeHead
    ray: RayNode
    running: asyncio.Task[None]
    http: aiohttp.ClientSession
    base: str

    async def get(self, path: str, **headers: str) -> tuple[int, str]:
        async with self.http.get(f"{self.base}{path}", headers=headers) as response:
            return response.status, await response.text()

    async def listed(self, path: str) -> list[dict[str, Any]]:
        async with self.http.get(f"{self.base}{path}") as response:
            assert response.content_type == "application/json"
            found: list[dict[str, Any]] = await response.json()
            return found

    async def node_up(self) -> MemberId:
        """A job's only member, its node up."""
        tenant_id, _ = await self.served.house.tenant("acme")
        jobs: ControlJobs = self.served.house.plane.jobs
        await jobs.submit(tenant_id, Submission("true", "mine"))
        await wait_until_async(
            lambda: any(status.phase == "starting" for status in self.nodes.nodes.values()),
            what="the node to start",
            deadline_s=DEADLINE_S,
        )
        (member_id,) = self.nodes.nodes
        self.head.listed = [NodeListed(member_id, 1.0, 1.0)]
        self.nodes.come_up(member_id)
        loop = self.served.house.plane.loop
        changed = loop.watch()
        async with asyncio.timeout(DEADLINE_S):
            while await loop.read(lambda state: state.members[MemberId(member_id)].phase) != "up":
                await changed.wait()
                changed.clear()
        loop.unwatch(changed)
        return MemberId(member_id)

    async def connected(self, *, on: bool = True) -> None:
        scrapes = self.served.house.plane.scrapes
        await wait_until_async(
            lambda: scrapes.can_answer(self.worker_id) is on,
            what=f"the session to be {'open' if on else 'over'}",
            deadline_s=DEADLINE_S,
        )


@asynccontextmanager
async def rig_of(served: Served, folder: Path) -> AsyncIterator[Rig]:
    """A joined agent with a session."""
    async with AsyncExitStack() as closing:
        joiner = await closing.enter_async_context(agent_of(served))
        await joiner.join()
        ray = RayNode()
        ray.port = await _listen(closing, [web.route("*", "/{any:.*}", ray.answer)], NODE_IP)
        base_port = await _listen(closing, list(served.house.plane.discovery(lambda: PAGES).routes()))
        http = await closing.enter_async_context(aiohttp.ClientSession(trust_env=False))
        agent, control, nodes, head = agent_at(joiner, folder, ray)
        closing.push_async_callback(control.close)
        running = asyncio.create_task(agent.run())
        rig = Rig(
            served,
            WorkerId(joiner.worker_id),
            agent,
            nodes,
            head,
            ray,
            running,
            http,
            f"http://127.0.0.1:{base_port}",
        )
        await rig.connected()
        yield rig
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def agent_at(
    joiner: Joiner, folder: Path, ray: RayNode
) -> tuple[Agent, GrpcControlPlane, ScrapedNodes, FakeHead]:
    """The agent of a worker that has joined, put together as the daemon does."""
    identity, keys, _ = files_of(joiner, folder)
    clock, nodes, head = AgentClock(), ScrapedNodes(ray), FakeHead()
    credentials = Credentials(folder, identity, keys, clock, lambda _said: None)
    control = GrpcControlPlane(credentials)

    def shown() -> Mapping[str, NodeStatus]:
        return agent.nodes

    scraping = Scraping(control, lambda: exporter.text(), shown, nodes.spec)  # noqa: PLW0108 -- made below
    settings = AgentSettings(joiner.worker_id, "0.1.0", joiner.offer, folder, poll_s=0.02)
    agent = Agent(
        settings,
        keys.statement,
        control,
        nodes,
        lambda _status, _token: head,
        FakeJournal(),
        clock,
        (credentials, scraping),
    )
    exporter = AgentExporter(agent, "0.1.0", folder)
    return agent, control, nodes, head


async def _listen(closing: AsyncExitStack, routes: list[web.RouteDef], host: str = "127.0.0.1") -> int:
    app = web.Application()
    app.add_routes(routes)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    closing.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, host, 0).start()
    return int(runner.addresses[0][1])
