"""Real Ray on loopback: a head with two members on one machine, and a solo node."""

from __future__ import annotations

import asyncio
import os
import signal
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator.adapters.clock import boottime_ms
from orchestrator.adapters.node_records import HeadAddress, NodeOrder, NodeStatus
from orchestrator.adapters.port_blocks import retake_port_block
from orchestrator.adapters.process_tree import marked_processes
from orchestrator.adapters.ray_jobs import RayJobs, RayJobStatus, RayNodeInfo, driver_log
from orchestrator.agent.keeper import KEEPER_LOCK_FILE
from orchestrator.agent.nodes import RayNodes
from tests.polling import wait_for_answer, wait_until, wait_until_async

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

FAR_MS = 3_600_000
TOKEN = "0123456789abcdef" * 4
HEAD, FIRST, SECOND, SOLO = (f"{name}-{os.getpid()}" for name in ("head", "first", "second", "solo"))
START_DEADLINE_S = 60
JOB_DEADLINE_S = 60

TRAIN = """
import os, time, ray
ray.init()
@ray.remote(num_gpus=1)
class Worker:
    def where(self, name):
        print("said by the", name, "actor")
        return ray.get_runtime_context().get_node_id(), ray.get_gpu_ids()
names = ["first", "second"]
workers = [Worker.remote() for _ in names]
places = ray.get([worker.where.remote(name) for worker, name in zip(workers, names)])
# What actors say comes by another way than what they return; it is in this driver's own log.
log, end_s = os.readlink("/proc/self/fd/1"), time.monotonic() + 30
while not all("said by the " + name in open(log).read() for name in names) and time.monotonic() < end_s:
    time.sleep(0.1)
print("nodes", len({node for node, _ in places}), "gpus", sum(len(gpus) for _, gpus in places))
print("module", open("data.txt").read())
print("kept", os.environ["KEPT"], "secret", os.environ.get("ORCH_TEST_SECRET"))
"""
DETACHED = """
import ray
ray.init(namespace="left-over")
@ray.remote(num_gpus=1)
class Idle:
    def ready(self): pass
if {make}:
    ray.get(Idle.options(name="idle", lifetime="detached").remote().ready.remote())
else:
    ray.kill(ray.get_actor("idle"))
"""


@dataclass(frozen=True)
class Cluster:
    """A head with two members, all up, each with one simulated GPU."""

    nodes: RayNodes
    head: NodeStatus

    def jobs(self) -> RayJobs:
        return RayJobs(self.head.dashboard_url, TOKEN)

    def log_of(self, submission_id: str) -> str:
        return (Path(self.head.session_dir) / driver_log(submission_id)).read_text()


async def start_node(nodes: RayNodes, member_id: str, head: HeadAddress | None) -> None:
    deadline_ms = boottime_ms() + FAR_MS
    await nodes.start(member_id, head=head, cluster_token=TOKEN, deadline_boottime_ms=deadline_ms)


def await_up(nodes: RayNodes, member_id: str) -> NodeStatus:
    wait_until(
        lambda: nodes.observe(member_id).phase != "starting", what=member_id, deadline_s=START_DEADLINE_S
    )
    status = nodes.observe(member_id)
    assert status.phase == "up", status.reason
    return status


async def start_cluster(nodes: RayNodes) -> NodeStatus:
    prepared = await nodes.prepare(NodeOrder(HEAD, "c-1", "head", 0, 0))
    for member_id in (FIRST, SECOND):
        await nodes.prepare(NodeOrder(member_id, "c-1", "member", 1, 1, {"class": "consumer"}))
    await start_node(nodes, HEAD, None)
    head = await asyncio.to_thread(await_up, nodes, HEAD)
    address = HeadAddress(head.gcs_address, prepared.host_id, head.temp_dir)
    for member_id in (FIRST, SECOND):
        await start_node(nodes, member_id, address)
    for member_id in (FIRST, SECOND):
        await asyncio.to_thread(await_up, nodes, member_id)
    return head


async def stop_all(nodes: RayNodes) -> None:
    await asyncio.gather(*(nodes.stop(member_id) for member_id in nodes.discover()))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("agent")
    nodes = RayNodes(directory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ORCH_TEST_SECRET", "must not reach user code")
        try:
            yield Cluster(nodes, asyncio.run(start_cluster(nodes)))
        finally:
            specs = [nodes.spec(member_id) for member_id in nodes.discover()]
            asyncio.run(stop_all(nodes))
    assert list((directory / "members").iterdir()) == []
    for spec in specs:
        assert spec is not None
        assert not marked_processes(spec.member_id)
        assert not Path(spec.temp_dir).exists()
        block = retake_port_block(spec.block_index)
        assert block is not None
        block.release()


async def run_job(jobs: RayJobs, submission_id: str, entrypoint: str, **options: Any) -> RayJobStatus:
    await jobs.submit(submission_id, entrypoint, options.pop("runtime_env", {}), {}, **options)
    return await await_terminal(jobs, submission_id)


async def await_terminal(jobs: RayJobs, submission_id: str) -> RayJobStatus:
    seen: list[RayJobStatus] = []

    async def ended() -> bool:
        status = await jobs.status(submission_id)
        assert status is not None
        seen.append(status)
        return status.is_terminal

    await wait_for_answer(ended, what="the job's end", deadline_s=JOB_DEADLINE_S)
    return seen[-1]


async def await_clean(jobs: RayJobs) -> None:
    await wait_for_answer(jobs.is_clean, what="a clean cluster", deadline_s=JOB_DEADLINE_S)


async def test_ray_nodes_of_a_cluster_are_listed_by_member_with_their_gpus(cluster: Cluster) -> None:
    listed: dict[str, RayNodeInfo] = {}
    async with cluster.jobs() as jobs:

        async def all_listed() -> bool:
            listed.update({node.member_id: node for node in await jobs.nodes()})
            return sum(node.gpus for node in listed.values()) == 2

        await wait_for_answer(all_listed, what="Ray's list of nodes", deadline_s=JOB_DEADLINE_S)
    assert {member_id: (node.gpus, node.cpus) for member_id, node in listed.items()} == {
        HEAD: (0, 0),
        FIRST: (1, 1),
        SECOND: (1, 1),
    }
    assert all(node.alive for node in listed.values())
    assert [node.member_id for node in listed.values() if node.is_head] == [HEAD]
    assert listed[FIRST].labels["class"] == "consumer"


async def test_ray_job_with_a_package_runs_actors_on_all_members_and_leaves_its_log(
    cluster: Cluster, tmp_path: Path
) -> None:
    package = tmp_path / "package.zip"
    with zipfile.ZipFile(package, "w") as archive:
        archive.writestr("train.py", TRAIN)
        archive.writestr("data.txt", "from the package")
    runtime_env = {"working_dir": "gcs://_ray_pkg_test.zip", "env_vars": {"KEPT": "env"}}
    async with cluster.jobs() as jobs:
        assert await jobs.is_clean()
        assert await jobs.put_package("gcs://_ray_pkg_test.zip", package)
        assert not await jobs.put_package("gcs://_ray_pkg_test.zip", package)
        await jobs.submit("train", "python train.py", runtime_env, {"name": "test"})
        await jobs.submit("train", "python train.py", runtime_env, {"name": "test"})
        assert not await jobs.is_clean()
        ended = await await_terminal(jobs, "train")
        assert (ended.status, ended.driver_exit_code) == ("SUCCEEDED", 0), cluster.log_of("train")
        assert ended.start_time_ms is not None
        assert ended.end_time_ms is not None
        assert ended.end_time_ms > ended.start_time_ms
        await await_clean(jobs)
        assert [job.submission_id for job in await jobs.list()] == ["train"]
    log = cluster.log_of("train")
    assert "nodes 2 gpus 2\n" in log
    assert "module from the package\n" in log
    assert "kept env secret None\n" in log
    assert [log.count(f"said by the {name} actor") for name in ("first", "second")] == [1, 1]
    assert TOKEN not in log


async def test_ray_job_that_fails_reports_its_exit_code(cluster: Cluster) -> None:
    async with cluster.jobs() as jobs:
        ended = await run_job(jobs, "fails", "echo last words; exit 3", num_gpus=1)
    assert (ended.status, ended.driver_exit_code) == ("FAILED", 3)
    assert "last words\n" in cluster.log_of("fails")


async def test_ray_job_stopped_ends_as_stopped(cluster: Cluster) -> None:
    async with cluster.jobs() as jobs:
        await jobs.submit("endless", "echo begun; sleep 300", {}, {})
        log = Path(cluster.head.session_dir) / driver_log("endless")
        await wait_until_async(
            lambda: log.exists() and "\nbegun\n" in log.read_text(),
            what="the driver",
            deadline_s=JOB_DEADLINE_S,
        )
        assert await jobs.stop("endless")
        assert (await await_terminal(jobs, "endless")).status == "STOPPED"


async def test_ray_jobs_unknown_job_is_none_and_cannot_be_stopped(cluster: Cluster) -> None:
    async with cluster.jobs() as jobs:
        assert await jobs.status("nobody") is None
        assert not await jobs.stop("nobody")


async def test_ray_cluster_with_a_detached_actor_left_is_not_clean(cluster: Cluster, tmp_path: Path) -> None:
    for name, make in (("make.py", True), ("kill.py", False)):
        (tmp_path / name).write_text(DETACHED.format(make=make))
    async with cluster.jobs() as jobs:
        assert (await run_job(jobs, "make", f"python {tmp_path}/make.py")).status == "SUCCEEDED"
        assert not await jobs.is_clean()
        assert (await run_job(jobs, "kill", f"python {tmp_path}/kill.py")).status == "SUCCEEDED"
        await await_clean(jobs)


async def test_ray_nodes_after_an_agent_restart_are_found_and_left_alone(cluster: Cluster) -> None:
    keeper = cluster.nodes.data_dir / "members" / FIRST / KEEPER_LOCK_FILE
    before = keeper.read_text()
    restarted = RayNodes(cluster.nodes.data_dir)
    assert restarted.discover() == tuple(sorted((HEAD, FIRST, SECOND)))
    prepared = await restarted.prepare(NodeOrder(FIRST, "c-1", "member", 1, 1, {"class": "consumer"}))
    await start_node(restarted, FIRST, HeadAddress("127.0.0.2:1", prepared.host_id, ""))
    assert restarted.observe(FIRST).phase == "up"
    assert keeper.read_text() == before


async def test_ray_member_past_its_deadline_leaves_the_cluster_and_the_rest_stays(cluster: Cluster) -> None:
    cluster.nodes.renew(SECOND, boottime_ms())
    await wait_until_async(
        lambda: cluster.nodes.observe(SECOND).phase == "failed",
        what="the deadline",
        deadline_s=START_DEADLINE_S,
    )
    assert "deadline" in cluster.nodes.observe(SECOND).reason
    assert not marked_processes(SECOND)
    async with cluster.jobs() as jobs:

        async def forgotten() -> bool:
            return SECOND not in {node.member_id for node in await jobs.nodes() if node.alive}

        await wait_for_answer(forgotten, what="the head to notice", deadline_s=JOB_DEADLINE_S)
        assert {node.member_id for node in await jobs.nodes() if node.alive} == {HEAD, FIRST}
    assert cluster.nodes.observe(FIRST).phase == "up"


async def test_ray_solo_node_runs_a_gpu_job_and_nothing_survives_its_killed_keeper(tmp_path: Path) -> None:
    nodes = RayNodes(tmp_path)
    await nodes.prepare(NodeOrder(SOLO, "c-2", "solo", 2, 1))
    await start_node(nodes, SOLO, None)
    try:
        status = await asyncio.to_thread(await_up, nodes, SOLO)
        async with RayJobs(status.dashboard_url, TOKEN) as jobs:
            ended = await run_job(jobs, "solo", "echo devices $CUDA_VISIBLE_DEVICES", num_gpus=2)
        assert ended.status == "SUCCEEDED"
        assert "devices 0,1\n" in (Path(status.session_dir) / driver_log("solo")).read_text()
        assert len(marked_processes(SOLO)) > 5
        os.kill(int((tmp_path / "members" / SOLO / KEEPER_LOCK_FILE).read_text()), signal.SIGKILL)
        await wait_until_async(lambda: nodes.observe(SOLO).phase == "failed", what="burial", deadline_s=30)
        assert not marked_processes(SOLO)
        assert not os.access(status.temp_dir, os.F_OK)
    finally:
        await nodes.stop(SOLO)
    assert nodes.discover() == ()
