"""Open enrolment: from a stranger's machine to a paid receipt, and no operator did anything for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from examples.demo.network import Machine
from orchestrator.adapters.peers import bundle_pins
from tests.integration.network import START_S, Network
from tests.integration.tenants import Tenant
from tests.polling import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(500)]

PROBATION_MS = 3_000
STRANGER = Machine("stranger-1", "nobody", "consumer", "RTX4090x1")


@pytest.fixture
def open_network() -> Iterator[Network]:
    """A control plane that lets anybody join; simulated devices count, because there are no others here."""
    network = Network()
    try:
        rules = ("--probation-ms", str(PROBATION_MS), "--probation-evidence", "T0")
        network.start_serve("--open-enrolment", *rules)
        yield network
        remaining = network.stop()
    except BaseException:
        network.destroy()
        raise
    assert remaining == [], "left behind by a stopped network"


def test_stranger_joins_serves_its_probation_works_and_is_paid_without_an_operator(
    open_network: Network,
) -> None:
    network = open_network
    pin = next(iter(bundle_pins((network.control_dir / "ca.pem").read_bytes())))
    network.start_agent(STRANGER, "--open-enrolment", "--ca-pin", pin)
    network.await_live([STRANGER.name])
    joined = network.worker(STRANGER.name)
    assert joined.supplier_name.startswith("open"), "a supplier of its own, whom nobody vouched for"
    wait_until(
        lambda: not network.worker(STRANGER.name).standing.holds,
        what="its probation to end",
        deadline_s=START_S,
    )
    tenant = Tenant(network, network.create_tenant("acme"))
    tenant.run("plain", "python", "-c", "import time; time.sleep(4); print(6*7)")
    (attempt,) = tenant.job("plain").attempts
    assert [member.worker_name for member in attempt.members] == [STRANGER.name]
    (paid,) = tenant.paid("plain", count=1)
    assert paid.worker_id == joined.worker_id
    assert paid.billed_ms > 0
