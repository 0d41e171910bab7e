"""A head host and four workers behind four NATs: jobs over the overlay, and what happens when parts of it fail."""

from __future__ import annotations

import re
import signal
import time
import urllib.request
from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from examples.demo.network import Machine
from orchestrator.api.v1 import jobs_pb2
from orchestrator.receipts.receipt import Receipt
from tests.integration.network import START_S, Node, tell
from tests.integration.tenants import TRAIN_DIGITS, end, verified
from tests.lab.lab import missing
from tests.lab.network import CONTROL, LAB_JOB_S, LabNetwork, LabTenant
from tests.lab.talking import ECHO_PORT, Watch, echo, nebula_below, talk_in
from tests.lab.topology import LabHost
from tests.polling import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(500)]

HOSTS = (
    LabHost(CONTROL, "none", 10),
    LabHost("head", "none", 10),
    LabHost("w1", "cone", 10),
    LabHost("w2", "cone", 20),
    LabHost("w3", "symmetric", 40),
    LabHost("w4", "symmetric", 80),
)
WORKERS = ("w1", "w2", "w3", "w4")
MACHINES = (
    Machine("head", "heads", "cpu", slots=0, head_slots=2),
    *(Machine(name, f"home-{name}", "consumer", "RTX4090x1") for name in WORKERS),
)

LEASE_TTL_S = 30
LOST_AFTER_S = 45
SETTINGS = {
    # Warm from one test to the next, which all look at the nodes of the first job.
    "ORCH_IDLE_TEARDOWN_MS": "300000",
    # Short, so that a minute's cut shows all that follows from it.
    "ORCH_HEARTBEAT_INTERVAL_MS": "1000",
    "ORCH_SUSPECT_AFTER_MS": "10000",
    "ORCH_LEASE_TTL_MS": str(LEASE_TTL_S * 1000),
    "ORCH_LOST_AFTER_MS": str(LOST_AFTER_S * 1000),
}
CUT_S = 60
NOTICE_S = 15
"""A keeper looks four times a second, and ends its box within a second or two; by then it is lost to the network."""

RELAY_BACK_S = 20
"""What an overlay without its only relay is given to be whole again."""

SHOWN_S = 60
"""For what has to be seen before or after that, however busy the cores are."""

MEGABYTE = 1_000_000
MOVED_BYTES = 20 * MEGABYTE
ASIDE_BYTES = 5 * MEGABYTE
"""Heartbeats, logs and Ray's own talk while a job runs for some seconds: far less than what it moves."""

BURST, BURST_BYTES = 200, 1000
SETTLED_S = 60
"""A path that was relayed at first is tried directly now and then, the more often the more it is used."""

REPORTED_S = 90
"""Agents report four times a minute, and what they report is shown at the next look."""

MOVE = """
import sys
import numpy as np
import ray

source, target, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
ray.init()

@ray.remote(num_cpus=0)
def made(size):
    return np.random.default_rng(1).bytes(size)

@ray.remote(num_cpus=0)
def seen(content):
    return len(content), ray.util.get_node_ip_address()

content = made.options(resources={f"node:{source}": 0.001}).remote(size)
size, ip = ray.get(seen.options(resources={f"node:{target}": 0.001}).remote(content))
print(f"moved {size} to {ip}", flush=True)
"""


@pytest.fixture(scope="module")
def network() -> Iterator[LabNetwork]:
    """One for all tests here: its clusters stay warm from one to the next."""
    if reason := missing():
        pytest.skip(reason)
    with LabNetwork.open(HOSTS, MACHINES, SETTINGS) as network:
        yield network


@pytest.fixture(scope="module")
def tenant(network: LabNetwork) -> LabTenant:
    """Who submits."""
    return LabTenant(network, network.create_tenant("acme"))


@pytest.fixture(autouse=True)
def said(request: pytest.FixtureRequest) -> Iterator[None]:
    """The ends of all logs, shown where a test of the network has failed."""
    failed_before = request.session.testsfailed
    yield
    if request.session.testsfailed > failed_before and "network" in request.fixturenames:
        network: LabNetwork = request.getfixturevalue("network")
        network.print_logs()


def nodes_of(network: LabNetwork, job: jobs_pb2.Job) -> dict[str, Node]:
    """The nodes of the job's last attempt, by host."""
    attempt = job.attempts[-1]
    return {one.worker_name: network.node_of(attempt.cluster_id, one.worker_name) for one in attempt.members}


class Crossed:
    """What crosses the public links of some hosts from now on."""

    def __init__(self, network: LabNetwork, hosts: Sequence[str]) -> None:
        self.lab = network.lab
        self.before = {host: self.lab.counters(host) for host in hosts}

    def sent_bytes(self) -> dict[str, int]:
        """By host."""
        return {
            host: self.lab.counters(host).sent_bytes - before.sent_bytes
            for host, before in self.before.items()
        }

    def received_bytes(self) -> dict[str, int]:
        """By host."""
        return {
            host: self.lab.counters(host).received_bytes - before.received_bytes
            for host, before in self.before.items()
        }


def check_billed_once(receipts: list[Receipt]) -> None:
    """No device is paid twice for one moment."""
    for one, other in combinations(receipts, 2):
        if one.worker_id == other.worker_id and set(one.device_ids) & set(other.device_ids):
            assert one.end_ms <= other.start_ms or other.end_ms <= one.start_ms, (one, other)


def test_digits_on_four_machines_behind_four_nats_learns_and_all_four_are_paid(
    network: LabNetwork, tenant: LabTenant
) -> None:
    command = ("python", "train.py", "--epochs", "3")
    job = tenant.submit("digits", *command, working_dir=TRAIN_DIGITS, orch={"gpus": 4})
    try:
        assert job.code(LAB_JOB_S) == 0, job.text
    finally:
        end(job)
    assert "placing 4 trainers, 1 GPU each, STRICT_SPREAD over 4 nodes" in job.text
    assert re.search(r"^test accuracy: 0\.9", job.text, re.MULTILINE)
    (attempt,) = tenant.job("digits").attempts
    assert sorted((member.worker_name, member.role) for member in attempt.members) == [
        ("head", "head"),
        *((name, "member") for name in WORKERS),
    ]
    nodes = nodes_of(network, tenant.job("digits"))
    assert len({node.spec.node_ip for node in nodes.values()}) == len(nodes)
    assert all(node.spec.node_ip.startswith("198.18.") for node in nodes.values())
    receipts = [bundle.receipt for bundle in verified(network, tenant.receipts("digits", count=4))]
    assert {receipt.worker_id for receipt in receipts} == {network.worker(name).worker_id for name in WORKERS}
    assert all(receipt.billed_ms > 0 for receipt in receipts)


@pytest.mark.parametrize(
    ("source", "target", "relayed"),
    [("w1", "w2", False), ("w3", "w4", True)],
    ids=["cone to cone", "symmetric to symmetric"],
)
def test_transfer_goes_directly_where_nats_allow_it_and_by_the_relay_elsewhere(
    network: LabNetwork, tenant: LabTenant, tmp_path: Path, source: str, target: str, *, relayed: bool
) -> None:
    nodes = nodes_of(network, tenant.job("digits"))
    settle(network, nodes[source], nodes[target], relayed=relayed)
    crossed = Crossed(network, (CONTROL, source, target))
    name = f"move-{source}-{target}"
    ends = (nodes[source].spec.node_ip, nodes[target].spec.node_ip)
    text = tenant.run_script(name, MOVE, tmp_path / "job", *ends, str(MOVED_BYTES), orch={"gpus": 4})
    assert f"moved {MOVED_BYTES} to {ends[1]}" in text
    sent, received = crossed.sent_bytes(), crossed.received_bytes()
    assert sent[source] > MOVED_BYTES
    assert received[target] > MOVED_BYTES
    by_relay_bytes = min(sent[CONTROL], received[CONTROL]), max(sent[CONTROL], received[CONTROL])
    assert by_relay_bytes[0] > MOVED_BYTES if relayed else by_relay_bytes[1] < ASIDE_BYTES, (sent, received)
    way = "relayed" if relayed else "direct"
    wait_until(
        lambda: tunnels(network)[way] > 0, what=f"a {way} tunnel among the metrics", deadline_s=REPORTED_S
    )


def tunnels(network: LabNetwork) -> dict[str, float]:
    """As the control plane's metrics tell of them, by their ways."""
    token = (network.control_dir / "metrics-token").read_text().strip()
    asked = urllib.request.Request(
        f"http://{network.addresses.metrics}/metrics", headers={"Authorization": f"Bearer {token}"}
    )
    with urllib.request.urlopen(asked) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    return {
        sample.labels["way"]: sample.value
        for family in families
        for sample in family.samples
        if sample.name == "orchestrator_overlay_tunnels"
    }


def settle(network: LabNetwork, source: Node, target: Node, *, relayed: bool) -> None:
    """Until datagrams between two members take the way that is theirs: at first any may be relayed."""
    size = BURST * BURST_BYTES

    def settled() -> bool:
        crossed = Crossed(network, (CONTROL, source.worker))
        arguments = (str(BURST), str(BURST_BYTES), f"{target.spec.node_ip}:{ECHO_PORT}")
        network.lab.run(source.worker, talk_in(source, "udp-burst", *arguments))
        sent = crossed.sent_bytes()
        return sent[source.worker] > size and (sent[CONTROL] > size if relayed else sent[CONTROL] < size / 4)

    with echo(network, target):
        wait_until(settled, what=f"{source.worker} and {target.worker} to settle", deadline_s=SETTLED_S)


def test_relay_killed_while_a_job_runs_then_the_overlay_is_back_in_time_and_the_job_succeeds(
    network: LabNetwork, tenant: LabTenant, tmp_path: Path
) -> None:
    command = ("python", "train.py", "--epochs", "3", "--seconds", "15")
    job = tenant.submit("relay", *command, working_dir=TRAIN_DIGITS, orch={"gpus": 4})
    try:
        tenant.await_output(job, "4 trainers on 4 nodes", deadline_s=LAB_JOB_S)
        nodes = nodes_of(network, tenant.job("relay"))
        with (
            echo(network, nodes["w4"]),
            Watch(network, "w3", nodes["w4"], tmp_path / "watched", inside=nodes["w3"]) as watch,
        ):
            wait_until(lambda: len(watch.answered_s) > 5, what="the relayed path", deadline_s=SHOWN_S)
            serve_pid = network.processes["serve"].pid
            killed = nebula_below(serve_pid)
            tell(killed, signal.SIGKILL)
            killed_s = time.monotonic()
            wait_until(
                lambda: nebula_below(serve_pid) not in (0, killed),
                what="a new relay",
                deadline_s=RELAY_BACK_S,
            )

            def back_s() -> float:
                """When the first answer came after the path was seen to be broken; 0 so far."""
                asked_s = [at for at in watch.answered_s if at > killed_s - 1]
                return next((later for earlier, later in pairwise(asked_s) if later - earlier > 1), 0.0)

            wait_until(lambda: back_s() > 0, what="an answer over the new relay", deadline_s=SHOWN_S)
            assert back_s() - killed_s < RELAY_BACK_S
        assert job.code(LAB_JOB_S) == 0, job.text
    finally:
        end(job)
    assert "test accuracy: 0.9" in job.text
    assert len(tenant.job("relay").attempts) == 1


def test_member_cut_off_for_a_minute_then_its_node_ends_with_its_lease_and_no_moment_is_billed_twice(
    network: LabNetwork, tenant: LabTenant
) -> None:
    command = ("python", "train.py", "--epochs", "3", "--seconds", "15")
    job = tenant.submit("cut", *command, working_dir=TRAIN_DIGITS, orch={"gpus": 3})
    try:
        tenant.await_output(job, "epoch   1", deadline_s=LAB_JOB_S)
        # On a busy machine an earlier attempt may have found no cluster that formed.
        *_, first = begun = tenant.job("cut").attempts
        nodes = nodes_of(network, tenant.job("cut"))
        cut = next(member for member in first.members if member.role == "member")
        node = nodes[cut.worker_name]
        assert node.namespace_pid
        network.lab.partition(cut.worker_name)
        cut_s = time.monotonic()
        wait_until(
            lambda: network.worker(cut.worker_name).liveness == "suspect",
            what="it to be suspected",
            deadline_s=LEASE_TTL_S,
        )
        assert node.processes, "ended before its lease did"
        wait_until(lambda: not node.processes, what="its node to end", deadline_s=LEASE_TTL_S + NOTICE_S)
        ended_s = time.monotonic() - cut_s
        assert ended_s < LEASE_TTL_S + NOTICE_S
        wait_until(
            lambda: network.worker(cut.worker_name).liveness == "lost",
            what="it to be lost",
            deadline_s=LOST_AFTER_S,
        )
        wait_until(
            lambda: len(tenant.job("cut").attempts) > len(begun), what="another attempt", deadline_s=START_S
        )
        wait_until(lambda: time.monotonic() > cut_s + CUT_S, what="the cut to have lasted", deadline_s=CUT_S)
        network.lab.heal(cut.worker_name)
        network.await_live([cut.worker_name])
        assert job.code(LAB_JOB_S) == 0, job.text
    finally:
        network.lab.heal(cut.worker_name)
        end(job)
    after = tenant.job("cut").attempts[len(begun) :]
    assert first.cluster_id not in {attempt.cluster_id for attempt in after}
    assert cut.worker_id not in {member.worker_id for member in after[0].members}
    # Three of each attempt: what the lost member did before it was cut off is paid once it is back.
    leases = tenant.paid("cut", count=6)
    check_billed_once([bundle.receipt for lease in leases for bundle in lease.bundles])
    (lost,) = [lease for lease in leases if lease.worker_id == cut.worker_id]
    others = [lease for lease in leases if lease.attempt_id == first.attempt_id and lease is not lost]
    assert 0 < lost.billed_ms <= max(other.billed_ms for other in others) + LEASE_TTL_S * 1000
