"""Processes killed while a job runs: what was acknowledged goes on, runs once, and is paid once."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from orchestrator.adapters.clock import SystemClock
from orchestrator.api.v1 import jobs_pb2, operator_pb2
from orchestrator.receipts.receipt import Receipt
from tests.integration.network import MACHINES, START_S, Network, Node, tell
from tests.integration.tenants import REPOSITORY, TRAIN_DIGITS, Submitted, Tenant, end, verified
from tests.polling import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(500)]

GANG: dict[str, str | int] = {"gpus": 2, "hardware_class": "consumer"}

READD = REPOSITORY / "examples" / "demo" / "readd.py"

LOOK_MS = 100
"""Between the record's begin and the agent's own: nothing is stated beyond its last look at the living node."""

LATE_MS = 10_000
"""How much later than a member's death it may be known: on idle cores its agent looks several times a second."""

# The first try waits to lose its ground; those after it find the mark and end.
GROUND = """
import os, time
import ray

ray.init()

@ray.remote(num_gpus=1, num_cpus=0)
class Holder:
    def node(self):
        return ray.get_runtime_context().get_node_id()

holders = [Holder.remote() for _ in range(2)]
print("holding", len(set(ray.get([holder.node.remote() for holder in holders]))), flush=True)
if not os.path.exists(os.environ["MARK"]):
    open(os.environ["MARK"], "w").close()
    print("waiting", flush=True)
    while True:
        ray.get([holder.node.remote() for holder in holders])
        time.sleep(0.2)
print("done", flush=True)
"""


def train(tenant: Tenant, name: str, seconds: int) -> Submitted:
    """A gang that trains for so long, once it runs."""
    arguments = ("python", "train.py", "--seconds", str(seconds))
    job = tenant.submit(name, *arguments, working_dir=TRAIN_DIGITS, orch=GANG)
    tenant.await_output(job, "epoch   2")
    return job


def wall_ms() -> int:
    return SystemClock().now().wall_ms


def members_of(network: Network, job: jobs_pb2.Job) -> dict[str, Node]:
    """The nodes of the job's last attempt, by worker."""
    attempt = job.attempts[-1]
    return {one.worker_name: network.node_of(attempt.cluster_id, one.worker_name) for one in attempt.members}


def check_ran_once(tenant: Tenant, name: str) -> None:
    """One attempt, and one driver's log without anything twice."""
    job = tenant.job(name)
    assert [attempt.number for attempt in job.attempts] == [1]
    code, text = tenant.ray("logs", name)
    assert code == 0, text
    epochs = [int(number) for number in re.findall(r"^epoch +([0-9]+)", text, re.MULTILINE)]
    assert epochs == list(range(1, len(epochs) + 1))
    assert text.count("placing 2 trainers") == text.count("test accuracy:") == 1


def check_books(network: Network, receipts: list[Receipt]) -> None:
    """No device is paid twice for one moment, and the ledger says what the receipts say."""
    by_device: dict[tuple[str, str], list[Receipt]] = {}
    for receipt in receipts:
        assert 0 < receipt.billed_ms <= (receipt.end_ms - receipt.start_ms) * len(receipt.device_ids)
        for device in receipt.device_ids:
            by_device.setdefault((receipt.worker_id, device), []).append(receipt)
    for held in by_device.values():
        held.sort(key=lambda receipt: receipt.start_ms)
        for earlier, later in pairwise(held):
            assert earlier.end_ms <= later.start_ms, (earlier, later)


def check_postings(network: Network, folder: Path) -> None:
    """Every receipt of the network, added up again by the independent script."""
    with network.client() as client:
        listed = client.call(client.operator.ListReceipts, operator_pb2.ListReceiptsRequest()).receipts
        for one in listed:
            request = operator_pb2.GetReceiptRequest(receipt_id=one.receipt_id)
            (folder / f"{one.receipt_id}.json").write_bytes(
                client.call(client.operator.GetReceipt, request).bundle
            )
    code, balances = network.orch("ledger", "balance", "--output", "json")
    assert code == 0, balances
    json.loads(balances)
    (folder / "balances").write_text(balances)
    bundles = sorted(str(path) for path in folder.glob("rct_*.json"))
    assert len(bundles) == len(listed) > 0
    readded = subprocess.run(
        [sys.executable, "-I", str(READD), "--balances", str(folder / "balances"), *bundles],
        capture_output=True,
        text=True,
        check=False,
    )
    assert readded.returncode == 0, readded.stdout + readded.stderr


def test_control_plane_killed_in_the_middle_of_a_job_then_it_succeeds_once(
    network: Network, tenant: Tenant, tmp_path: Path
) -> None:
    job = train(tenant, "survivor", 15)
    try:
        before = {name: node.keeper_pid for name, node in members_of(network, tenant.job("survivor")).items()}
        network.kill("serve")
        network.start_serve()
        # Attached to what was killed, it may say that it does not know; it may not say what is not so.
        if job.code() == 0:
            assert tenant.status("survivor") == "SUCCEEDED"
        network.await_live(machine.name for machine in MACHINES)
        nodes = members_of(network, tenant.job("survivor"))
        assert {name: node.keeper_pid for name, node in nodes.items()} == before
        tenant.await_status("survivor", "SUCCEEDED", "FAILED", "STOPPED")
    finally:
        end(job)
    code, text = tenant.ray("status", "survivor")
    assert (code, "succeeded" in text) == (0, True), text
    check_ran_once(tenant, "survivor")
    receipts = [bundle.receipt for bundle in verified(network, tenant.receipts("survivor", count=2))]
    # A job that crosses the full hour has a receipt on either side of it.
    billed_ms: Counter[str] = Counter()
    for receipt in receipts:
        billed_ms[receipt.worker_id] += receipt.billed_ms
    assert len(billed_ms) == 2
    assert min(billed_ms.values()) > 12_000
    check_books(network, receipts)
    check_postings(network, tmp_path)


def test_agents_killed_in_the_middle_of_a_job_then_it_succeeds_once_on_the_same_nodes(
    network: Network, tenant: Tenant
) -> None:
    job = train(tenant, "adopted", 8)
    try:
        before = members_of(network, tenant.job("adopted"))
        pids = {name: (node.keeper_pid, node.pid_of("raylet")) for name, node in before.items()}
        assert all(keeper and raylet for keeper, raylet in pids.values())
        for name in before:
            network.kill(name)
        for name in before:
            network.start_agent(network.workers[name])
        assert job.code() == 0, job.text
        after = members_of(network, tenant.job("adopted"))
        assert {name: (node.keeper_pid, node.pid_of("raylet")) for name, node in after.items()} == pids
    finally:
        end(job)
    check_ran_once(tenant, "adopted")
    receipts = [bundle.receipt for bundle in verified(network, tenant.receipts("adopted", count=2))]
    check_books(network, receipts)


def test_member_killed_in_the_middle_of_a_job_then_it_is_tried_again_and_the_loss_is_not_paid(
    network: Network, tenant: Tenant, scripts: Path, tmp_path: Path
) -> None:
    (scripts / "ground.py").write_text(GROUND)
    job = tenant.submit(
        "ground",
        "python",
        "ground.py",
        working_dir=scripts,
        env_vars={"MARK": str(tmp_path / "mark")},
        orch=GANG,
    )
    try:
        tenant.await_output(job, "waiting")
        first = tenant.job("ground").attempts[0]
        lost = next(one for one in first.members if one.role == "member")
        node = network.node_of(first.cluster_id, lost.worker_name)
        # Two statements at least, so that something of it is to be paid.
        started_ms = tenant.job("ground").started_at.ToMilliseconds()
        wait_until(lambda: wall_ms() > started_ms + 5_000, what="statements", deadline_s=START_S)
        for pid in (node.keeper_pid, *node.processes):
            tell(pid, signal.SIGKILL)
        killed_ms = wall_ms()
        wait_until(
            lambda: len(tenant.job("ground").attempts) == 2, what="another attempt", deadline_s=START_S
        )
        assert lost.worker_name in tenant.job("ground").attempts[0].message
        assert job.code() == 0, job.text
        assert "done" in job.text
    finally:
        end(job)
    attempts = tenant.job("ground").attempts
    assert len(attempts) == 2
    assert attempts[1].cluster_id != first.cluster_id
    assert not node.processes
    receipts = [bundle.receipt for bundle in verified(network, tenant.receipts("ground", count=3))]
    check_books(network, receipts)
    of_first = [receipt for receipt in receipts if receipt.attempt_id == first.attempt_id]
    assert {receipt.worker_id for receipt in of_first} == {
        one.worker_id for one in first.members if one.device_ids
    }
    for receipt in of_first:
        assert receipt.end_ms <= killed_ms + LATE_MS
        if receipt.worker_id == lost.worker_id:
            assert receipt.start_ms + receipt.billed_ms <= killed_ms + LOOK_MS
