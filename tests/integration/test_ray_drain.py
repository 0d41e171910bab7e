"""A notice on real Ray: a job reads it in its file, and Ray lists the node that goes as draining."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.adapters.clock import boottime_ms
from orchestrator.adapters.node_records import HeadAddress, NodeOrder, NodeStatus
from orchestrator.adapters.ray_jobs import RayJobs, driver_log
from orchestrator.agent.nodes import RayNodes
from orchestrator.agent.notices import Notices
from orchestrator.agent.ray_head import RayHead
from orchestrator.api.v1 import worker_pb2
from orchestrator.core.ids import Now
from tests.polling import wait_for_answer, wait_until, wait_until_async

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

TOKEN = "fedcba9876543210" * 4
HEAD, BUSY, IDLE = (f"{name}-{os.getpid()}" for name in ("drainhead", "drainbusy", "drainidle"))
FAR_MS = 3_600_000
DEADLINE_S = 60
REMAINING_MS = 120_000
REASON = "taken back by its owner --with what looks like a flag"

JOB = """
import json, os, time, ray
ray.init()

@ray.remote(num_gpus=1, label_selector={"orch-member": "THE-BUSY-ONE"})
class Trainer:
    def notice(self):
        path = os.environ["ORCH_NOTICE_FILE"]
        return os.environ["ORCH_MEMBER_ID"], open(path).read() if os.path.exists(path) else ""
    def node(self):
        return ray.get_runtime_context().get_node_id()

trainer = Trainer.remote()
node = ray.get(trainer.node.remote())
print("placed", flush=True)
while not os.path.exists(os.environ["ORCH_NOTICE_FILE"]):
    time.sleep(0.1)
print("driver", open(os.environ["ORCH_NOTICE_FILE"]).read().strip(), flush=True)
member, read = ray.get(trainer.notice.remote())
print("actor", json.dumps({"member": member, "read": json.loads(read)}), flush=True)
while node not in ray._private.state.state.get_draining_nodes():
    time.sleep(0.1)
print("draining", json.dumps([node]), flush=True)
time.sleep(600)
""".replace("THE-BUSY-ONE", BUSY)


class _Clock:
    """The real boot clock, and a wall clock that need not be right."""

    def boottime_ms(self) -> int:
        return boottime_ms()

    def boot_id(self) -> str:
        return "this-boot"

    def now(self) -> Now:
        return Now(wall_ms=1_700_000_000_000, monotonic_ms=boottime_ms(), boot_id="this-boot")

    def jitter(self, base_s: float) -> float:
        return base_s


@dataclass(frozen=True)
class Cluster:
    nodes: RayNodes
    head: NodeStatus


async def _start(nodes: RayNodes) -> NodeStatus:
    deadline_ms = boottime_ms() + FAR_MS
    prepared = await nodes.prepare(NodeOrder(HEAD, "c-1", "head", 0, 0))
    for member_id in (BUSY, IDLE):
        await nodes.prepare(NodeOrder(member_id, "c-1", "member", 1, 1))
    await nodes.start(HEAD, head=None, cluster_token=TOKEN, deadline_boottime_ms=deadline_ms)
    head = await asyncio.to_thread(_await_up, nodes, HEAD)
    address = HeadAddress(head.gcs_address, prepared.host_id, head.temp_dir)
    for member_id in (BUSY, IDLE):
        await nodes.start(member_id, head=address, cluster_token=TOKEN, deadline_boottime_ms=deadline_ms)
    for member_id in (BUSY, IDLE):
        await asyncio.to_thread(_await_up, nodes, member_id)
    return head


def _await_up(nodes: RayNodes, member_id: str) -> NodeStatus:
    wait_until(lambda: nodes.observe(member_id).phase != "starting", what=member_id, deadline_s=DEADLINE_S)
    status = nodes.observe(member_id)
    assert status.phase == "up", status.reason
    return status


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    nodes = RayNodes(tmp_path_factory.mktemp("agent"))

    async def stop() -> None:
        await asyncio.gather(*(nodes.stop(member_id) for member_id in nodes.discover()))

    try:
        yield Cluster(nodes, asyncio.run(_start(nodes)))
    finally:
        asyncio.run(stop())


def what_it_said(log: Path) -> str:
    return log.read_text() if log.exists() else "no log"


async def _line(log: Path, word: str) -> dict[str, object]:
    """What the job printed after a word."""
    found: list[str] = []

    def said() -> bool:
        lines = log.read_text().splitlines() if log.exists() else []
        found[:] = [line.removeprefix(word).strip() for line in lines if line.startswith(word)]
        return bool(found)

    try:
        await wait_until_async(said, what=f"the job to say {word!r}", deadline_s=DEADLINE_S)
    except AssertionError as error:
        error.add_note(what_it_said(log))
        raise
    return {"value": json.loads(found[0]) if found[0] else None}


def _noticed() -> list[worker_pb2.DesiredMember]:
    notice = worker_pb2.MemberNotice(member_id=BUSY, remaining_ms=REMAINING_MS, reason=REASON)
    return [worker_pb2.DesiredMember(member_id=one, notices=[notice]) for one in (HEAD, BUSY, IDLE)]


async def test_notice_reaches_driver_and_actor_and_ray_drains_the_node(
    cluster: Cluster, tmp_path: Path
) -> None:
    script = tmp_path / "job.py"
    script.write_text(JOB)
    log = Path(cluster.head.session_dir) / driver_log("drained")
    head = RayHead(cluster.head, TOKEN)
    try:
        async with RayJobs(cluster.head.dashboard_url, TOKEN) as jobs:
            await jobs.submit("drained", f"python {script}", {}, {})
            await _line(log, "placed")
            notices = Notices(cluster.nodes, _Clock())
            notices.take(_noticed())
            notices.write({one: cluster.nodes.observe(one).phase for one in cluster.nodes.discover()})

            driver = (await _line(log, "driver"))["value"]
            assert isinstance(driver, dict)
            told = driver["notices"][0]
            assert (told["member_id"], told["reason"]) == (BUSY, REASON)
            assert 0 < told["remaining_ms_at_write"] <= REMAINING_MS
            actor = (await _line(log, "actor"))["value"]
            assert isinstance(actor, dict)
            assert (actor["member"], actor["read"]["notices"][0]["member_id"]) == (BUSY, BUSY)

            # Ray's head hears of a node's work a moment after it began; until then the agent would ask again.
            await wait_for_answer(
                lambda: head.drain(BUSY, REASON, REMAINING_MS), what="Ray to drain", deadline_s=DEADLINE_S
            )
            assert (await _line(log, "draining"))["value"]
            # Once more changes nothing, and neither node ends by it.
            assert await head.drain(BUSY, REASON, REMAINING_MS) is True
            assert cluster.nodes.observe(BUSY).phase == "up"
    finally:
        await head.close()


async def test_drain_of_an_idle_node_waits_so_that_the_node_does_not_end(cluster: Cluster) -> None:
    head = RayHead(cluster.head, TOKEN)
    try:
        assert await head.drain(IDLE, REASON, REMAINING_MS) is False
        assert await head.drain("nobody", REASON, REMAINING_MS) is False
        assert cluster.nodes.observe(IDLE).phase == "up"
    finally:
        await head.close()


def test_processes_are_those_of_the_nodes_and_no_others(cluster: Cluster) -> None:
    found = cluster.nodes.processes()
    named = ""
    for pid in found:
        # Short-lived helpers of Ray come and go.
        with contextlib.suppress(OSError):
            named += Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    assert "orchestrator.agent.keeper" in named
    assert "raylet" in named
    assert os.getpid() not in found
