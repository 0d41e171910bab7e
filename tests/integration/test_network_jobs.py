"""What a tenant does with plain `ray job`, on real Ray nodes of real agents."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration.network import Network
from tests.integration.tenants import JOB_S, Tenant, end, verified
from tests.polling import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

LEAVE_ACTOR = """
import ray
ray.init()

@ray.remote(num_cpus=0)
class Keeps:
    def ping(self):
        return "still here"

print(ray.get(Keeps.options(name="left", lifetime="detached").remote().ping.remote()))
"""

SHARE = """
import sys, ray
ray.init()

@ray.remote(num_gpus=0.5, num_cpus=0)
class Half:
    def gpus(self):
        return ray.get_gpu_ids()

halves = [Half.remote() for _ in range(int(sys.argv[1]))]
ids = {gpu for gpus in ray.get([half.gpus.remote() for half in halves]) for gpu in gpus}
total, left = ray.cluster_resources()["GPU"], ray.available_resources().get("GPU", 0.0)
print(f"{len(halves)} halves on {len(ids)} of {total:g} GPUs, {left:g} left", flush=True)
"""

GANG = """
import os, sys, time
import ray
from beside import WORD

ray.init()

@ray.remote(num_gpus=1, num_cpus=0)
def where():
    return ray.get_runtime_context().get_node_id()

print("word", WORD, "variable", os.environ["COLOUR"], flush=True)
nodes = {node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")}
print("gpu nodes", len(nodes), "gpus", ray.cluster_resources()["GPU"], flush=True)
while "--wait" in sys.argv:
    time.sleep(0.2)
"""


@pytest.fixture
def stranger(network: Network) -> Tenant:
    return Tenant(network, network.create_tenant("stranger"))


def cluster_of(tenant: Tenant, submission_id: str) -> str:
    return tenant.job(submission_id).attempts[-1].cluster_id


def test_gang_job_sees_its_machines_and_every_ray_job_command_works(
    network: Network, tenant: Tenant, stranger: Tenant, scripts: Path
) -> None:
    (scripts / "gang.py").write_text(GANG)
    (scripts / "beside.py").write_text("WORD = 'uploaded'\n")
    job = tenant.submit(
        "gang",
        "python",
        "gang.py",
        "--wait",
        working_dir=scripts,
        env_vars={"COLOUR": "teal"},
        orch={"gpus": 2, "hardware_class": "consumer"},
    )
    try:
        tenant.await_output(job, "gpu nodes")
        assert "word uploaded variable teal" in job.text
        assert "gpu nodes 2 gpus 2.0" in job.text
        attempt = tenant.job("gang").attempts[0]
        roles = {member.worker_name: member.role for member in attempt.members}
        assert roles["head-1"] == "head"
        assert sorted(roles.values()) == ["head", "member", "member"]
        assert all(name.startswith("consumer-") for name, role in roles.items() if role == "member")
        code, shown = network.orch("cluster", "show", attempt.cluster_id)
        assert code == 0
        assert all(member.member_id in shown for member in attempt.members)

        code, text = tenant.ray("status", "gang")
        assert (code, "RUNNING" in text) == (0, True), text
        code, text = tenant.ray("list")
        assert (code, "'gang'" in text) == (0, True), text
        code, text = tenant.ray("logs", "gang")
        assert (code, "word uploaded" in text) == (0, True), text
        check_invisible(tenant, stranger, "gang")

        code, text = tenant.ray("delete", "gang")
        assert code != 0, "a running job was deleted"
        code, text = tenant.ray("stop", "gang")
        assert code == 0, text
        assert tenant.status("gang") == "STOPPED"
        assert job.code() == 0, job.text
    finally:
        end(job)
    for bundle in verified(network, tenant.receipts("gang", count=2)):
        assert bundle.receipt.billed_ms > 0
    code, text = tenant.ray("delete", "gang")
    assert code == 0, text
    assert tenant.get("/api/jobs/gang") == 404


def check_invisible(tenant: Tenant, stranger: Tenant, submission_id: str) -> None:
    """Nothing of a tenant's job, nor its package, is there for another tenant."""
    runtime_env = json.loads(tenant.read(f"/api/jobs/{submission_id}"))["runtime_env"]
    package = runtime_env["working_dir"].removeprefix("gcs://")
    assert tenant.get(f"/api/packages/gcs/{package}") == 200
    for path in (
        f"/api/jobs/{submission_id}",
        f"/api/jobs/{submission_id}/logs",
        f"/api/packages/gcs/{package}",
    ):
        assert stranger.get(path) == 404
    assert json.loads(stranger.read("/api/jobs/")) == []


def test_submit_with_no_orch_key_runs_on_one_machine_and_its_cluster_is_reused(
    network: Network, tenant: Tenant, scripts: Path
) -> None:
    assert "plain works" in tenant.run("plain-1", "echo", "plain", "works")
    job = tenant.job("plain-1")
    (member,) = job.attempts[0].members
    assert (member.role, len(member.device_ids), member.simulated) == ("solo", 1, True)

    tenant.await_idle("plain-1")
    tenant.run("plain-2", "true")
    assert cluster_of(tenant, "plain-2") == cluster_of(tenant, "plain-1")
    tenant.await_idle("plain-2")

    # A tenant's own parts share a GPU, which is whole to the network.
    (scripts / "share.py").write_text(SHARE)
    said = tenant.run("shares", "python", "share.py", "2", working_dir=scripts)
    assert "2 halves on 1 of 1 GPUs, 0 left" in said
    tenant.await_idle("shares")
    said = tenant.run("half", "python", "share.py", "1", working_dir=scripts, num_gpus=0.5)
    assert "1 halves on 1 of 1 GPUs, 0 left" in said
    assert {cluster_of(tenant, one) for one in ("shares", "half")} == {cluster_of(tenant, "plain-1")}
    tenant.await_idle("half")

    failing = tenant.submit(
        "fails", "python", "-c", "import time; time.sleep(2); print(6 * 7); raise SystemExit(3)"
    )
    assert failing.code() == 1, failing.text
    assert "42" in failing.text
    assert "failed" in failing.text
    assert tenant.status("fails") == "FAILED"
    assert len(tenant.job("fails").attempts) == 1
    # It ended between two looks of its agent, and was started all the same.
    assert tenant.job("plain-1").HasField("started_at")

    # Nothing is waited for here but the cluster itself: it is not kept warm for ever.
    (scripts / "leave.py").write_text(LEAVE_ACTOR)
    tenant.await_idle("fails")
    assert "still here" in tenant.run("leaves", "python", "leave.py", working_dir=scripts)
    assert cluster_of(tenant, "leaves") == cluster_of(tenant, "plain-1")
    after = tenant.submit("after", "true", wait=False)
    assert after.code() == 0, after.text
    wait_until(lambda: bool(tenant.job("after").attempts), what="another cluster", deadline_s=JOB_S)
    assert cluster_of(tenant, "after") != cluster_of(tenant, "leaves")
    tenant.await_status("after", "SUCCEEDED")

    (paid,) = tenant.paid("fails", count=1)
    failed = tenant.job("fails")
    lasted_ms = failed.ended_at.ToMilliseconds() - failed.submitted_at.ToMilliseconds()
    assert 1000 < paid.billed_ms < lasted_ms


def test_stop_of_a_queued_job_ends_it_with_the_reason_it_waited_for(tenant: Tenant) -> None:
    job = tenant.submit("too-many", "echo", "never", orch={"gpus": 9})
    try:
        wait_until(lambda: bool(tenant.job("too-many").job_id), what="the job", deadline_s=JOB_S)
        tenant.await_status("too-many", "PENDING")
        wait_until(
            lambda: "9" in tenant.job("too-many").message, what="the reason why it waits", deadline_s=JOB_S
        )
        code, text = tenant.ray("stop", "too-many")
        assert code == 0, text
        assert tenant.status("too-many") == "STOPPED"
        assert not tenant.job("too-many").attempts
        assert job.code() == 0, job.text
        assert "never\n" not in job.text
    finally:
        end(job)
