"""Training by torch over the overlay, and the all-reduce that the network measures by the same torch."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from examples.demo.network import Machine
from tests.integration.tenants import end
from tests.lab.lab import missing
from tests.lab.network import CONTROL, LAB_JOB_S, LabNetwork, LabTenant
from tests.lab.topology import LabHost
from tests.polling import wait_until
from tests.runtimes import TORCH_NAME, torch_catalogue, torch_runtime

TENANTS_CODE = Path(__file__).with_name("tenant")

HOSTS = (
    LabHost(CONTROL),
    LabHost("head", delay_ms=4),
    LabHost("w1", "cone", 4),
    LabHost("w2", "symmetric", 4),
)
MACHINES = (
    Machine("head", "heads", "cpu", slots=0, head_slots=1),
    Machine("w1", "north", "consumer", "RTX4090x1"),
    Machine("w2", "south", "consumer", "RTX4090x1"),
)
SETTINGS = {
    # Longer than the all-reduce may take to be reported.
    "ORCH_IDLE_TEARDOWN_MS": "120000",
    # Three Ray nodes and two torches start on two cores, beside whatever else runs there.
    "ORCH_PREPARE_DEADLINE_MS": "120000",
    "ORCH_HEAD_DEADLINE_MS": "300000",
    "ORCH_JOIN_DEADLINE_MS": "300000",
}

REPORTED_S = 100.0
"""Torch's own deadline of a minute, which a heartbeat follows."""

pytestmark = [
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
    pytest.mark.ray,
    pytest.mark.torch,
    # A gigabyte may have to be installed first.
    pytest.mark.timeout(900),
]


@pytest.fixture(scope="module")
def network() -> Iterator[LabNetwork]:
    # Before anything waits for it; the agents share what is built here.
    asyncio.run(torch_runtime())
    settings = {**SETTINGS, "ORCH_RUNTIMES_DIR": str(torch_catalogue())}
    with LabNetwork.open(HOSTS, MACHINES, settings) as network:
        yield network


def test_torch_trains_over_the_overlay_and_the_networks_own_all_reduce_is_by_torch(
    network: LabNetwork,
) -> None:
    tenant = LabTenant(network, network.create_tenant("acme"))
    wanted: dict[str, str | int] = {"gpus": 2, "runtime": TORCH_NAME}
    job = tenant.submit("train", "python", "train_torch.py", "2", working_dir=TENANTS_CODE, orch=wanted)
    try:
        assert job.code(LAB_JOB_S) == 0, job.text
    finally:
        end(job)
    assert "trained alike on 198.1" in job.text
    cluster_id = tenant.job("train").attempts[-1].cluster_id

    def shown() -> dict[str, Any]:
        found: dict[str, Any] = network.orch_json("cluster", "show", cluster_id)
        return found

    wait_until(lambda: "bus" in shown(), what="the all-reduce to be reported", deadline_s=REPORTED_S)
    bus = shown()["bus"]
    assert (bus["method"], bus["ranks"]) == ("gloo", 2)
    assert int(bus["bus_bits_per_s"]) > 0
