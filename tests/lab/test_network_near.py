"""A gang that has to be near: the network measures the ways between its machines first, and takes those that are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.demo.network import Machine
from tests.integration.tenants import end
from tests.lab.lab import missing
from tests.lab.network import CONTROL, LAB_JOB_S, LabNetwork, LabTenant
from tests.lab.topology import LabHost
from tests.polling import wait_until

TENANTS_CODE = Path(__file__).with_name("tenant")

FAR_MS, NEAR_MS = 30, 2
"""One way from each worker to the middle: the near ones are some 8 ms from each other, and 64 ms from the far one."""

BOUND_MS = 30
"""Far from both: what else runs on the two cores delays packets, too."""

HOSTS = (
    LabHost(CONTROL),
    LabHost("head", delay_ms=NEAR_MS),
    LabHost("far", "cone", FAR_MS),
    LabHost("one", "cone", NEAR_MS),
    LabHost("two", "cone", NEAR_MS),
)
MACHINES = (
    Machine("head", "heads", "cpu", slots=0, head_slots=1),
    # First in every list.
    Machine("far", "away", "consumer", "RTX4090x1"),
    Machine("one", "north", "consumer", "RTX4090x1"),
    Machine("two", "south", "consumer", "RTX4090x1"),
)
SETTINGS = {
    "ORCH_IDLE_TEARDOWN_MS": "3000",
    # Ray nodes start on two cores, beside whatever else runs there.
    "ORCH_PREPARE_DEADLINE_MS": "120000",
    "ORCH_HEAD_DEADLINE_MS": "300000",
    "ORCH_JOIN_DEADLINE_MS": "300000",
}

pytestmark = [
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
    pytest.mark.ray,
    pytest.mark.timeout(500),
]


@pytest.fixture(scope="module")
def network() -> Iterator[LabNetwork]:
    with LabNetwork.open(HOSTS, MACHINES, SETTINGS) as network:
        yield network


def test_gang_with_a_bound_runs_on_the_machines_that_are_measured_to_be_near(network: LabNetwork) -> None:
    tenant = LabTenant(network, network.create_tenant("acme"))
    wanted: dict[str, str | int] = {"gpus": 2, "max_rtt_ms": BOUND_MS}
    job = tenant.submit("near", "python", "stay.py", "2", working_dir=TENANTS_CODE, orch=wanted)
    tenant.await_output(job, "settled on", deadline_s=LAB_JOB_S)
    members = tenant.job("near").attempts[-1].members
    assert {member.worker_name for member in members if member.device_ids} == {"one", "two"}
    cluster = network.orch_json("cluster", "show", tenant.job("near").attempts[-1].cluster_id)
    assert cluster["cluster"]["phase"] == "ready"
    explained = network.orch_json("job", "explain", "near")
    assert "within 30 ms" in str(explained)
    tenant.ray("stop", "near")
    tenant.await_status("near", "STOPPED", deadline_s=LAB_JOB_S)
    end(job)


def test_gang_of_more_than_are_near_waits_and_says_how_many_there_are(network: LabNetwork) -> None:
    tenant = LabTenant(network, network.create_tenant("birch"))
    job = tenant.submit(
        "wide", "python", "stay.py", "3", working_dir=TENANTS_CODE, orch={"gpus": 3, "max_rtt_ms": BOUND_MS}
    )
    wait_until(
        lambda: "2 of 3 GPUs within 30 ms" in tenant.job("wide").message,
        what="the reason",
        deadline_s=LAB_JOB_S,
    )
    network.orch("job", "stop", "wide")
    tenant.await_status("wide", "STOPPED", deadline_s=LAB_JOB_S)
    end(job)
