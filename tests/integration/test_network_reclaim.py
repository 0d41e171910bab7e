"""An owner takes his machine back from under a running job, and offers it again."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.api.v1 import operator_pb2
from tests.integration.network import Network
from tests.integration.tenants import JOB_S, REPOSITORY, Tenant, end
from tests.polling import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(500)]

CHECKPOINTING = REPOSITORY / "examples" / "checkpointing"

STEPS = 60
IN_STEPS = (
    *("sh", "-c"),
    f'python train.py --steps {STEPS} --step-s $(test -e "$CHECKPOINT_DIR/checkpoint.json" && echo 0.1 || echo 2)',
)
"""The first try is at it for two minutes, which whoever takes its machine away has time for; what is left is quick."""

RECLAIMED_S = 30.0
"""What the owner's machine is told of, the network knows at the next look."""

STUBBORN = """
import time
print("working", flush=True)
while True:
    time.sleep(0.2)
"""


SHORT = """
import time
time.sleep(4)
print("worked", flush=True)
"""
"""Long enough to be seen running: what ends before that holds its machine for no time that could be stated."""


def own(network: Network, worker: str, *arguments: str) -> str:
    """`orch worker …` as the owner types it on his own machine; what it said."""
    code, text = network.orch("worker", *arguments, "--data-dir", str(network.folder / worker))
    assert code == 0, text
    return text


def open_clusters(network: Network) -> dict[str, operator_pb2.Cluster]:
    with network.client() as client:
        answer = client.call(client.operator.ListClusters, operator_pb2.ListClustersRequest())
    return {cluster.cluster_id: cluster for cluster in answer.clusters if cluster.phase != "closing"}


def test_reclaim_gives_notice_and_the_job_goes_on_elsewhere_from_its_checkpoint(
    network: Network, tenant: Tenant, tmp_path: Path
) -> None:
    job = tenant.submit(
        "gives-way",
        *IN_STEPS,
        working_dir=CHECKPOINTING,
        env_vars={"CHECKPOINT_DIR": str(tmp_path / "checkpoints")},
        orch={"hardware_class": "consumer"},
    )
    try:
        tenant.await_output(job, f"beginning at step 0 of {STEPS}")
        (member,) = tenant.job("gives-way").attempts[0].members
        owner = member.worker_name
        node = network.node_of(tenant.job("gives-way").attempts[0].cluster_id, owner)
        said = own(network, owner, "reclaim", "--notice", "40s", "--wait")
        assert "free" in said
        assert not node.processes, "the machine is its owner's, and something of a tenant still runs on it"
        assert {hold.kind for hold in network.worker(owner).standing.holds} == {"reclaimed"}
        assert job.code() == 0, job.text
        assert "done: weight" in job.text
    finally:
        end(job)
        own(network, owner, "uncordon")
    tried = tenant.job("gives-way").attempts
    assert len(tried) == 2
    assert tried[1].members[0].worker_name != owner
    # One of two receipts is the owner's: for what was held there, to the millisecond, and no more.
    leases = tenant.paid("gives-way", count=2)
    assert {lease.worker_id for lease in leases} == {attempt.members[0].worker_id for attempt in tried}
    for lease in leases:
        assert lease.billed_ms == lease.end_ms - lease.start_ms > 0
    code, log = tenant.ray("logs", "gives-way")
    assert code == 0
    assert "beginning at step 0" not in log, "the second try began anew"
    wait_until(
        lambda: not network.worker(owner).standing.holds,
        what="the machine to be offered again",
        deadline_s=RECLAIMED_S,
    )


def test_interruptible_job_gives_way_to_a_higher_priority_and_goes_on_from_its_checkpoint(
    network: Network, tenant: Tenant, scripts: Path, tmp_path: Path
) -> None:
    """On a machine that is the only one of its class."""
    (scripts / "short.py").write_text(SHORT)
    only_here = {"hardware_class": "datacenter"}
    low = tenant.submit(
        "interruptible",
        *IN_STEPS,
        working_dir=CHECKPOINTING,
        env_vars={"CHECKPOINT_DIR": str(tmp_path / "checkpoints")},
        orch={**only_here, "tier": "interruptible"},
    )
    high = None
    try:
        tenant.await_output(low, f"beginning at step 0 of {STEPS}")
        high = tenant.submit(
            "urgent", "python", "short.py", working_dir=scripts, orch={**only_here, "priority": 5}
        )
        wait_until(
            lambda: "gave way to a job of higher priority" in tenant.job("interruptible").message,
            what="the job to say that it gave way",
            deadline_s=JOB_S,
        )
        assert high.code() == 0, high.text
        assert low.code() == 0, low.text
        assert "done: weight" in low.text
    finally:
        end(low)
        if high is not None:
            end(high)
    tried = tenant.job("interruptible").attempts
    assert [one.members[0].worker_name for one in tried] == ["hall-1", "hall-1"]
    first, second = tenant.paid("interruptible", count=2)
    (between,) = tenant.paid("urgent", count=1)
    # One machine, three leases, one after the other: each is paid for what it held.
    assert first.end_ms <= between.start_ms < between.end_ms <= second.start_ms
    for lease in (first, second, between):
        assert lease.billed_ms == lease.end_ms - lease.start_ms > 0
    code, log = tenant.ray("logs", "interruptible")
    assert code == 0
    assert "beginning at step 0" not in log, "the second try began anew"


def test_join_work_reclaim_rejoin_and_work_again_as_the_readme_says(
    network: Network, tenant: Tenant, scripts: Path
) -> None:
    """The supplier's own sequence, on a machine that is the only one of its class."""
    (scripts / "short.py").write_text(SHORT)
    (scripts / "stubborn.py").write_text(STUBBORN)
    only_here = {"hardware_class": "datacenter"}

    def works(name: str) -> None:
        job = tenant.submit(name, "python", "short.py", working_dir=scripts, orch=only_here)
        try:
            assert job.code() == 0, job.text
        finally:
            end(job)
        assert [one.members[0].worker_name for one in tenant.job(name).attempts] == ["hall-1"]
        assert all(lease.billed_ms > 0 for lease in tenant.paid(name, count=1))

    works("on-hall-1")
    under_way = tenant.submit(
        "taken-from", "python", "stubborn.py", working_dir=scripts, wait=True, orch=only_here
    )
    try:
        tenant.await_output(under_way, "working")
        assert "connected" in own(network, "hall-1", "status")
        assert "free" in own(network, "hall-1", "reclaim", "--notice", "2s", "--wait")
        assert not [node for node in network.nodes() if node.worker == "hall-1" and node.processes]
        code, text = tenant.ray("stop", "taken-from")
        assert code == 0, text
    finally:
        end(under_way)
        said = own(network, "hall-1", "uncordon")
    assert "offered again" in said
    wait_until(
        lambda: not network.worker("hall-1").standing.holds,
        what="the machine to be offered again",
        deadline_s=RECLAIMED_S,
    )
    works("on-hall-1-again")


def test_reclaim_of_a_stubborn_job_forms_its_next_cluster_before_the_deadline(
    network: Network, tenant: Tenant, scripts: Path
) -> None:
    (scripts / "stubborn.py").write_text(STUBBORN)
    job = tenant.submit(
        "stubborn", "python", "stubborn.py", working_dir=scripts, orch={"hardware_class": "consumer"}
    )
    owner = ""
    try:
        tenant.await_output(job, "working")
        first = tenant.job("stubborn").attempts[0]
        owner = first.members[0].worker_name
        before = set(open_clusters(network))
        own(network, owner, "reclaim", "--notice", "10m")

        def spares() -> list[str]:
            return [
                cluster_id
                for cluster_id, cluster in open_clusters(network).items()
                if cluster_id not in before and cluster.phase == "ready"
            ]

        wait_until(lambda: bool(spares()), what="the next cluster to stand ready", deadline_s=JOB_S)
        (spare,) = spares()
        assert len(tenant.job("stubborn").attempts) == 1, "it still runs where it was"
        # He cannot wait any longer.
        own(network, owner, "reclaim", "--notice", "1s")
        wait_until(lambda: len(tenant.job("stubborn").attempts) == 2, what="the next try", deadline_s=JOB_S)
        second = tenant.job("stubborn").attempts[1]
        assert second.cluster_id == spare
        assert second.members[0].worker_name != owner
        code, text = tenant.ray("stop", "stubborn")
        assert code == 0, text
    finally:
        end(job)
        if owner:
            own(network, owner, "uncordon")
