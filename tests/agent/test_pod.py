"""An agent in a pod takes its node's labels along, as evidence and, where its owner names none, for its region."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.adapters.devices import Reading
from orchestrator.adapters.evidence_wire import machine_evidence_to
from orchestrator.agent.inventory import Capabilities, DeviceIds, Machine, Offer, build_inventory
from orchestrator.agent.pod import node_labels, say_contradictions, terms_by_labels
from orchestrator.api.v1 import common_pb2
from orchestrator.core.supply.evidence import DeviceEvidence, DeviceVendor, MachineEvidence, NodeLabels
from orchestrator.core.supply.terms import Terms
from tests.adapters.kube_api import MANAGED, KubeApi, kube_api
from tests.agent.scripted_server import ScriptedServer
from tests.polling import wait_until_async

START_S = 60.0
"""Far above what it takes, for machines that are busy."""

RUN = """
import os, sys
from pathlib import Path
from orchestrator.adapters import kube
from orchestrator.agent.daemon import AgentConfig, run_agent
address, data_dir, account = sys.argv[1:]
kube.SERVICE_ACCOUNT = Path(account)
sys.exit(run_agent(AgentConfig(
    control_plane=address, data_dir=Path(data_dir), name="rig", join_token=os.environ["TOKEN"],
    simulate=("H100x1",), isolation="none",
)))
"""

LABELS = NodeLabels(node="rack3-u12", region="eu-west-1", gpu_product="Tesla-T4", gpu_count=1)
PROCESSOR = DeviceEvidence(vendor=DeviceVendor.CPU, model="x", memory_bytes=1)
NO_GPUS = Reading(gpus=(), processor=PROCESSOR, machine=MachineEvidence(processor="x"))
HERE = Machine(4, 1 << 30, "linux", "x86_64", "3.11.9", "2.60.0")


@pytest.fixture
def api(tmp_path: Path) -> Iterator[KubeApi]:
    with kube_api(tmp_path) as found:
        yield found


def test_pod_that_may_not_read_its_node_says_one_line_and_goes_on() -> None:
    said: list[str] = []
    assert node_labels({"ORCH_NODE_NAME": "rack3-u12"}, said.append) is None
    (line,) = said
    assert line.startswith("going on without the labels of this node: ORCH_NODE_NAME is set")


def test_agent_outside_kubernetes_asks_nobody_and_says_nothing() -> None:
    said: list[str] = []
    assert node_labels({"KUBERNETES_SERVICE_HOST": "127.0.0.1"}, said.append) is None
    assert said == []


def test_region_is_the_nodes_where_its_owner_names_none() -> None:
    said: list[str] = []
    assert terms_by_labels(Terms(notice_ms=1), LABELS, said.append) == Terms(
        notice_ms=1, regions=("eu-west-1",)
    )
    assert said == ["region: eu-west-1, by the label of node rack3-u12; --region names another"]


def test_region_that_its_owner_names_wins_and_the_other_is_told() -> None:
    said: list[str] = []
    terms = Terms(regions=("eu", "home"))
    assert terms_by_labels(terms, LABELS, said.append) == terms
    (line,) = said
    assert "eu, home, as named by --region" in line
    assert "eu-west-1, which is left aside" in line


def test_region_that_both_name_needs_no_word() -> None:
    said: list[str] = []
    terms = Terms(regions=("eu-west-1", "eu"))
    assert terms_by_labels(terms, LABELS, said.append) == terms
    assert said == []


@pytest.mark.parametrize("region", ["Western Europe", "x" * 41, "-a"])
def test_region_that_no_job_could_name_is_not_taken(region: str) -> None:
    said: list[str] = []
    assert terms_by_labels(Terms(), NodeLabels(node="n", region=region), said.append) == Terms()
    assert "no region's name" in said[0]


@pytest.mark.parametrize("labels", [None, NodeLabels(node="n")])
def test_region_without_a_label_stays_as_it_is(labels: NodeLabels | None) -> None:
    said: list[str] = []
    assert terms_by_labels(Terms(), labels, said.append) == Terms()
    assert said == []


def test_contradiction_is_said_where_the_pod_writes_its_log() -> None:
    said: list[str] = []
    say_contradictions(LABELS, NO_GPUS, said.append)
    assert "no GPU is seen here" in said[0]
    say_contradictions(None, NO_GPUS, said.append)
    say_contradictions(LABELS, None, said.append)
    assert len(said) == 1


def built(
    folder: Path, offer: Offer, reading: Reading | None, labels: NodeLabels | None
) -> common_pb2.Inventory:
    ids = DeviceIds(folder, lambda prefix: f"{prefix}_1")
    return build_inventory(offer, HERE, reading, ids, Capabilities("none", "none"), labels)


def test_inventory_holds_the_labels_beside_what_the_machine_shows(tmp_path: Path) -> None:
    with_labels = MachineEvidence(processor="x", labels=LABELS)
    found = built(tmp_path, Offer(), NO_GPUS, LABELS)
    assert found.evidence == machine_evidence_to(with_labels)


def test_inventory_of_simulated_gpus_holds_the_labels_alone(tmp_path: Path) -> None:
    found = built(tmp_path, Offer(simulate=("RTX4090x1",)), None, LABELS)
    assert found.evidence == machine_evidence_to(MachineEvidence(labels=LABELS))


def started(api: KubeApi, arguments: list[str], token: str, said: Path) -> subprocess.Popen[bytes]:
    """An agent as a pod's only process."""
    environment = {**os.environ, **api.of(MANAGED), "TOKEN": token}
    command = [sys.executable, "-c", RUN, *arguments, str(api.account)]
    with said.open("wb") as output:
        return subprocess.Popen(command, env=environment, stderr=output)


async def test_agent_joins_with_what_its_cluster_answered(api: KubeApi, tmp_path: Path) -> None:
    server = ScriptedServer(tmp_path / "network")
    await server.start()
    token = server.network.token("orch_supplier_1")
    agent = started(api, [server.address, str(tmp_path / "agent")], token, tmp_path / "said")
    try:
        await wait_until_async(
            lambda: bool(server.joins) or agent.poll() is not None, what="the join", deadline_s=START_S
        )
        (joined,) = server.joins
    finally:
        agent.kill()
        agent.wait()
        await server.stop()
    assert joined.inventory.evidence.labels.gpu_product == "NVIDIA-H100-80GB-HBM3"
    assert list(joined.terms.regions) == ["eu-west-1"]
    assert f"region: eu-west-1, by the label of node {MANAGED}" in (tmp_path / "said").read_text()
