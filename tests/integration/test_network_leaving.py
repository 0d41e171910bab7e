"""A supplier takes a machine back in the middle of a job: it gets it back, and is paid to the last moment."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from orchestrator.cli.errors import EXIT_INTERRUPTED
from tests.integration.network import START_S, Network, Node
from tests.integration.tenants import Submitted, Tenant, end
from tests.polling import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

WORKER = "hall-1"
"""The only machine of its class, so that a job that asks for the class runs here or waits."""

GONE_S = 60.0
"""A keeper that is told to stop needs a second or two for its node on idle cores."""


@pytest.fixture
def back(network: Network) -> Iterator[None]:
    """Afterwards the machine is offered again: it is the same worker."""
    yield
    if network.processes[WORKER].poll() is not None:
        network.start_agent(network.workers[WORKER])
    network.await_live([WORKER])


def occupy(network: Network, tenant: Tenant, name: str) -> tuple[Submitted, Node]:
    """A job that runs on the machine until it is stopped, and its node there."""
    command = ("python", "-c", "import time; print('busy', flush=True); time.sleep(600)")
    job = tenant.submit(name, *command, orch={"hardware_class": "datacenter"})
    tenant.await_output(job, "busy")
    tenant.await_status(name, "RUNNING")
    return job, network.node_of(tenant.job(name).attempts[0].cluster_id, WORKER)


def check_given_back(network: Network, tenant: Tenant, name: str, job: Submitted, node: Node) -> None:
    """Nothing runs there any more, all is paid, and the job waits for another machine until it is stopped."""
    assert not node.processes
    assert not node.folder.exists()
    assert network.worker(WORKER).liveness == "left"
    (paid,) = tenant.paid(name, count=1)
    assert paid.final
    assert paid.billed_ms > 0
    waiting = tenant.await_status(name, "PENDING")
    assert waiting.message
    assert job.process.poll() is None
    code, text = tenant.ray("stop", name)
    assert code == 0, text
    assert job.code() == 0, job.text
    assert tenant.status(name) == "STOPPED"


def test_agent_interrupted_in_the_middle_of_a_job_states_the_last_and_leaves(
    network: Network, tenant: Tenant, back: None
) -> None:
    job, node = occupy(network, tenant, "reclaimed")
    try:
        network.interrupt(WORKER)
        assert network.exit_code(WORKER) == 0
        check_given_back(network, tenant, "reclaimed", job, node)
    finally:
        end(job)


def test_worker_leave_in_the_middle_of_a_job_is_the_same(
    network: Network, tenant: Tenant, back: None
) -> None:
    job, node = occupy(network, tenant, "dismissed")
    try:
        code, text = network.orch("worker", "leave", WORKER)
        assert code == 0, text
        assert network.exit_code(WORKER) == 0
        check_given_back(network, tenant, "dismissed", job, node)
    finally:
        end(job)


def test_agent_interrupted_twice_ends_at_once_and_states_the_rest_when_it_is_back(
    network: Network, tenant: Tenant, back: None
) -> None:
    job, node = occupy(network, tenant, "hurried")
    try:
        # A control plane that is away: the first interrupt would wait for it.
        network.kill("serve")
        network.interrupt(WORKER)
        wait_until(lambda: "draining" in network.said(WORKER), what="the drain", deadline_s=GONE_S)
        network.interrupt(WORKER)
        # Whoever drains to the end, in vain or not, ends with another code.
        assert network.exit_code(WORKER) == EXIT_INTERRUPTED
        wait_until(lambda: not node.processes, what="the node's end", deadline_s=GONE_S)
    finally:
        end(job)
        network.start_serve()
    network.start_agent(network.workers[WORKER])
    # Its next life clears what the last one left, and brings the statement that was owed.
    wait_until(
        lambda: not node.folder.exists(), what="the member's folder to go", deadline_s=START_S + GONE_S
    )
    (paid,) = tenant.paid("hurried", count=1)
    assert paid.final
    code, text = tenant.ray("stop", "hurried")
    assert code == 0, text


def test_agent_that_steps_aside_for_an_upgrade_leaves_job_keeper_and_node_alone(
    network: Network, tenant: Tenant, back: None
) -> None:
    """What `systemctl restart` does by the unit that `orch worker install` writes: SIGHUP, and a new agent."""
    job, node = occupy(network, tenant, "upgraded")
    try:
        keeper, raylet = node.keeper_pid, node.pid_of("raylet")
        assert raylet
        network.processes[WORKER].send_signal(signal.SIGHUP)
        network.exit_code(WORKER)
        network.start_agent(network.workers[WORKER])
        network.await_live([WORKER])
        tried = len(tenant.job("upgraded").attempts)
        assert (node.keeper_pid, tried, tenant.status("upgraded")) == (keeper, 1, "RUNNING")
        assert node.pid_of("raylet") == raylet, "Ray was started anew"
        code, text = tenant.ray("stop", "upgraded")
        assert code == 0, text
        assert job.code() == 0, job.text
        (paid,) = tenant.paid("upgraded", count=1)
        assert paid.billed_ms > 0
    finally:
        end(job)
