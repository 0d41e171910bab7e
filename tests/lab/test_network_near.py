"""A gang that has to be near, or to have bandwidth: the ways between its machines are measured before it starts."""

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

FAR_MS, NEAR_MS = 80, 2
"""What the way of each worker to the middle adds to a round trip: the near ones are 4 ms from each other, and 82 ms
from the far one."""

BOUND_MS = 60
"""Far above what busy cores add to 4 ms, and below what no round trip with the far one is."""

SLOW_MBIT, ASKED_MBIT = 1.5, 5
"""A line that Ray joins over all the same, and what every other one has many times of, however busy the cores are."""

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
SPREAD_CODE = """
import ray


class Resident:
    def place(self):
        return ray.util.get_node_ip_address()


ray.init(log_to_driver=False)
resident = ray.remote(Resident).options(num_gpus=1, scheduling_strategy="SPREAD")
residents = [resident.remote() for _ in range(2)]
print("settled on", len(set(ray.get([one.place.remote() for one in residents]))), "machines")
"""
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
    assert f"within {BOUND_MS} ms" in str(explained)
    tenant.ray("stop", "near")
    tenant.await_status("near", "STOPPED", deadline_s=LAB_JOB_S)
    end(job)


def test_gang_of_more_than_are_near_waits_and_says_how_many_there_are(network: LabNetwork) -> None:
    tenant = LabTenant(network, network.create_tenant("birch"))
    job = tenant.submit(
        "wide", "python", "stay.py", "3", working_dir=TENANTS_CODE, orch={"gpus": 3, "max_rtt_ms": BOUND_MS}
    )
    wait_until(
        lambda: f"2 of 3 GPUs within {BOUND_MS} ms" in tenant.job("wide").message,
        what="the reason",
        deadline_s=LAB_JOB_S,
    )
    network.orch("job", "stop", "wide")
    tenant.await_status("wide", "STOPPED", deadline_s=LAB_JOB_S)
    end(job)


def test_host_with_a_slow_line_is_replaced_before_ready_and_the_job_succeeds(
    network: LabNetwork, tmp_path: Path
) -> None:
    tenant = LabTenant(network, network.create_tenant("cedar"))
    network.lab.change_link("one", rate_mbit=SLOW_MBIT)
    try:
        # Nothing is known of any line yet: the two that are near are tried first.
        wanted: dict[str, str | int] = {"gpus": 2, "min_bandwidth_mbps": ASKED_MBIT}
        said = tenant.run_script("broad", SPREAD_CODE, tmp_path, orch=wanted)
    finally:
        network.lab.change_link("one", rate_mbit=0)
    assert "settled on 2 machines" in said, said
    (attempt,) = tenant.job("broad").attempts
    assert {member.worker_name for member in attempt.members if member.device_ids} == {"far", "two"}
    shown = network.orch_json("cluster", "show", attempt.cluster_id)
    assert int(shown["cluster"]["generation"]) > 1
    for rank in shown["certificate"]:
        assert [one["uuid"] for one in rank["devices"]], rank
        assert rank["evidence_class"] == "t0"
        assert int(rank["bandwidth_bits_per_s"]) >= ASKED_MBIT * 1_000_000
        assert int(rank["rtt_us"]) > 2 * NEAR_MS * 1_000
    (delivered,) = (line for line in attempt.explanation if line.startswith("delivered: "))
    assert "Mbit/s between machines" in delivered
