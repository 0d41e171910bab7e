"""A site without UDP, and one behind a NAT: a cluster by the control plane's bridge; and ways measured before any."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.demo.network import Machine
from orchestrator.adapters.node_records import NodeStatus, read_record
from orchestrator.agent.keeper import STATUS_FILE
from tests.integration.network import Node
from tests.lab.lab import missing
from tests.lab.network import CONTROL, LabNetwork, LabTenant
from tests.lab.topology import LabHost
from tests.polling import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

HOSTS = (
    LabHost(CONTROL, "none", 10),
    LabHost("head", "none", 10),
    LabHost("w1", "symmetric", 10),
    LabHost("w2", "udp-blocked", 20),
)
MACHINES = (
    Machine("head", "heads", "cpu", slots=0, head_slots=1),
    Machine("w1", "home", "consumer", "RTX4090x1"),
    Machine("w2", "office", "consumer", "RTX4090x1"),
)

BRIDGE_PORT = 443

SAID_S = 60.0
"""Agents look at their nodes several times a second on idle cores."""

KNOWN_S = 180.0
"""A worker is told whom to measure within 15 s, and on busy cores finds the others later."""

PAIR = """
import ray

ray.init()


@ray.remote(num_gpus=1)
class Half:
    def make(self):
        return bytes(3_000_000)

    def take(self, content):
        return len(content), ray.util.get_node_ip_address()


one, other = Half.remote(), Half.remote()
there = ray.get(other.take.remote(one.make.remote()))
back = ray.get(one.take.remote(other.make.remote()))
assert there[1] != back[1], "both halves are on one machine"
print("exchanged", there[0], back[0], flush=True)
"""


@pytest.fixture(scope="module")
def network() -> Iterator[LabNetwork]:
    """With a bridge where HTTPS is expected, at an address that is told without a host."""
    if reason := missing():
        pytest.skip(reason)
    settings = {"ORCH_OVERLAY_BRIDGE_LISTEN": f"0.0.0.0:{BRIDGE_PORT}"}
    with LabNetwork.open(HOSTS, MACHINES, settings) as network:
        yield network


def transport_of(node: Node) -> str:
    """How the member's overlay leaves its machine, as its keeper states it."""
    status = read_record(node.folder / STATUS_FILE, NodeStatus)
    return "" if status is None else status.overlay_transport


def test_job_on_a_site_without_udp_and_one_behind_a_nat_exchanges_over_the_bridge(
    network: LabNetwork, tmp_path: Path
) -> None:
    tenant = LabTenant(network, network.create_tenant("acme"))
    said = tenant.run_script("pair", PAIR, tmp_path / "pair", orch={"gpus": 2})
    assert "exchanged 3000000 3000000" in said
    cluster = tenant.job("pair").attempts[-1].cluster_id
    nodes = {name: network.node_of(cluster, name) for name in ("head", "w1", "w2")}
    # It was tried by UDP first, and only where that was in vain it became another.
    assert {name: transport_of(node) for name, node in nodes.items()} == {
        "head": "udp",
        "w1": "udp",
        "w2": "tls",
    }
    keeper_log = (nodes["w2"].folder / "keeper.log").read_text()
    assert "no beacon of the overlay answered over UDP" in keeper_log
    token = (nodes["w2"].folder / "overlay" / "bridge-token").read_text()
    assert token.encode() not in b"".join(
        path.read_bytes() for pid in nodes["w2"].processes for path in Path(f"/proc/{pid}").glob("cmdline")
    )
    wait_until(
        lambda: "overlay_over_tls" in network.said("w2"), what="the agent to say so", deadline_s=SAID_S
    )


def answered(network: LabNetwork, worker: str) -> dict[str, bool]:
    """Which workers one of them has measured the way to so far, and whether there was an answer."""
    shown = network.orch_json("worker", "show", worker)
    return {path["peer_name"]: path["measured"]["received"] > 0 for path in shown.get("paths", [])}


def test_workers_know_the_ways_between_them_before_any_cluster(network: LabNetwork) -> None:
    pairs = {name: {other for other in ("head", "w1") if other != name} for name in ("head", "w1")}

    def are_known() -> bool:
        return any(answered(network, name).get(other) for name, others in pairs.items() for other in others)

    wait_until(are_known, what="the way from home to the head host to be measured", deadline_s=KNOWN_S)
    # Where no UDP gets out there is nothing to be measured; it keeps nobody waiting.
    assert not any(answered(network, "w2").values())
