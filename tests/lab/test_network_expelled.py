"""A member that failed before its cluster was ready is shut out by the others at once, whoever has its files now."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from examples.demo.network import Machine
from orchestrator.adapters.node_records import NodeStatus, read_record
from orchestrator.agent.housing import AUTHORITIES_FILE, CERTIFICATE_FILE
from orchestrator.agent.keeper import STATUS_FILE
from tests.integration.network import Node, tell
from tests.integration.tenants import Submitted, end
from tests.lab.intruder import (
    CONNECTED_S,
    STRANGER,
    Loot,
    closed,
    intruding,
    outcome,
    reaches,
    scanning,
    steal,
)
from tests.lab.lab import missing
from tests.lab.network import CONTROL, LAB_JOB_S, LISTENS, LabNetwork, LabTenant
from tests.lab.talking import Watch, echo, nebula_below
from tests.lab.topology import LabHost
from tests.polling import wait_until

TENANTS_CODE = Path(__file__).with_name("tenant")
JOB = "stay"

WORKERS = ("w1", "w2", "w3")
HOSTS = (
    LabHost(CONTROL),
    LabHost("head", delay_ms=4),
    LabHost("w1", "cone", 4),
    LabHost("w2", "symmetric", 4),
    LabHost("w3", "symmetric", 4),
    LabHost(STRANGER),
)
MACHINES = (
    Machine("head", "heads", "cpu", slots=0, head_slots=1),
    *(Machine(name, f"home-{name}", "consumer", "RTX4090x1") for name in WORKERS),
)

SETTINGS = {
    "ORCH_IDLE_TEARDOWN_MS": "3000",
    # Ray nodes start on two cores, beside whatever else runs there.
    "ORCH_PREPARE_DEADLINE_MS": "120000",
    "ORCH_HEAD_DEADLINE_MS": "300000",
    "ORCH_JOIN_DEADLINE_MS": "300000",
}

FAILED_S = 60.0
"""Ray's start command gives up on a killed node within some five seconds, and the box ends in an orderly way."""

SHUT_OUT_S = 20.0
"""From the record of a member's failure until nobody answers its certificate: its agent, the control plane, the head's
agent and keeper pass the word on, within a tenth of a second on idle cores."""

SILENCE_S = 3.0
"""Who asks four times a second and has no answer for so long has none any more; nothing else is lost on these links."""

pytestmark = [
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
    pytest.mark.ray,
    pytest.mark.timeout(500),
]


@dataclass(frozen=True)
class Forming:
    """A cluster that cannot be ready before ``other`` goes on, as its keeper is held."""

    head: Node
    victim: Node
    other: Node


@pytest.fixture(scope="module")
def network() -> Iterator[LabNetwork]:
    with LabNetwork.open(HOSTS, MACHINES, SETTINGS) as network:
        yield network


@contextlib.contextmanager
def held(network: LabNetwork, job: Submitted) -> Iterator[Forming]:
    """The job's cluster, from the moment in which its members' nodes begin to start."""

    def started() -> dict[str, Node]:
        return {node.worker: node for node in network.nodes() if node.keeper_pid}

    wait_until(
        lambda: len(started()) == len(WORKERS) or job.process.poll() is not None,
        what="head and two members",
        deadline_s=LAB_JOB_S,
    )
    assert job.process.poll() is None, job.text
    nodes = started()
    head = nodes.pop("head")
    other, victim = nodes.values()
    # The keeper says when a node is up, so this one is not; its nebula and the words it is told wait as well.
    tell(other.keeper_pid, signal.SIGSTOP)
    try:
        yield Forming(head, victim, other)
    finally:
        tell(other.keeper_pid, signal.SIGCONT)


def robbed(network: LabNetwork, victim: Node) -> Loot:
    """What the member has once its node starts; from then on its own nebula is still, so that nobody else is it."""
    wait_until(lambda: victim.pid_of("raylet") > 0, what="the victim's node", deadline_s=LAB_JOB_S)
    loot = steal(network, victim)
    tell(nebula_below(victim.keeper_pid), signal.SIGSTOP)
    return loot


def fail(victim: Node) -> None:
    """Kill the process that is its node; return when its keeper has said so."""
    tell(victim.pid_of("raylet"), signal.SIGKILL)

    def is_known() -> bool:
        status = read_record(victim.folder / STATUS_FILE, NodeStatus)
        return status is None or status.phase == "failed"

    wait_until(is_known, what="the member's failure", deadline_s=FAILED_S)


def is_valid(loot: Loot) -> bool:
    """Whether a certificate is of the network's authority and within its time, as nebula's own tool says."""
    command = ["nebula-cert", "verify", "-ca", str(loot.folder / AUTHORITIES_FILE)]
    command += ["-crt", str(loot.folder / CERTIFICATE_FILE)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def staying(acme: LabTenant) -> Iterator[Submitted]:
    """A job that has a task on each of two machines, and stays."""
    orch: dict[str, str | int] = {"gpus": 2, "gpu_model": "RTX4090"}
    job = acme.submit(JOB, "python", "stay.py", "2", working_dir=TENANTS_CODE, orch=orch)
    try:
        yield job
    finally:
        end(job)


def test_stolen_certificate_of_an_expelled_member_is_shut_out_at_once_while_it_is_still_valid(
    network: LabNetwork, tmp_path: Path
) -> None:
    acme = LabTenant(network, network.create_tenant("acme"))
    with staying(acme) as job, held(network, job) as forming:
        head, victim = forming.head, forming.victim
        gcs = (head.spec.node_ip, head.spec.ports["gcs"])
        loot = robbed(network, victim)
        with intruding(network, loot):
            with echo(network, head), Watch(network, STRANGER, head, tmp_path / "answers") as watch:
                # While the member is one of the cluster, who has its files has its doors.
                wait_until(lambda: len(watch.answered_s) > 1, what="an answer", deadline_s=CONNECTED_S)
                assert reaches(network, *gcs)
                fail(victim)
                failed_s = time.monotonic()
                # Who asks may be kept from the cores, too, and is silent for that long.
                wait_until(
                    lambda: (
                        time.monotonic() - watch.answered_s[-1] > SILENCE_S and not reaches(network, *gcs)
                    ),
                    what="the head to fall silent",
                    deadline_s=SHUT_OUT_S + SILENCE_S,
                )
                assert watch.answered_s[-1] - failed_s < SHUT_OUT_S
            assert is_valid(loot)
            tell(forming.other.keeper_pid, signal.SIGCONT)
            acme.await_output(job, "settled on", deadline_s=LAB_JOB_S)
            (attempt,) = acme.job(JOB).attempts
            # It is the member that is expelled: its machine may be chosen again where no other one can be.
            assert victim.spec.member_id not in {one.member_id for one in attempt.members}
            members = {one.worker_name for one in attempt.members}
            assert forming.other.worker in members
            nodes = {name: network.node_of(head.spec.cluster_id, name) for name in members}
            addresses = sorted(node.spec.node_ip for node in nodes.values())
            control = network.lab.public_ip(CONTROL)
            with scanning(network, STRANGER, [control, *addresses]) as scan:
                found = outcome(scan)
            # It would see an open port: the control plane's own are.
            assert found.pop(control) == set(LISTENS.values())
            assert found == closed(*addresses)
            assert is_valid(loot)
        # And it would find a way in: one who is a member still has it.
        with intruding(network, steal(network, nodes[forming.other.worker])):
            wait_until(
                lambda: reaches(network, *gcs), what="a member's files to be of use", deadline_s=CONNECTED_S
            )
