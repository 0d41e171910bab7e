"""Every door of every Ray node, asked by all who are not of its cluster, and by who stole another cluster's keys.

Two clusters of two tenants on the same machines: a head each on one host, members side by side on two others.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from examples.demo.network import Machine
from orchestrator.adapters.box.network import INTERFACE_PREFIX, POOL
from orchestrator.adapters.ray_node import SHARED_DIR, TOKEN_FILE
from tests.integration.network import Node
from tests.integration.tenants import Submitted, end
from tests.lab.intruder import (
    CONNECTED_S,
    SCANNED_S,
    STRANGER,
    closed,
    intruding,
    outcome,
    reaches,
    scanning,
    steal,
)
from tests.lab.lab import missing
from tests.lab.network import CONTROL, LISTENS, LabNetwork, LabTenant
from tests.lab.topology import LabHost
from tests.polling import wait_until

TENANTS_CODE = Path(__file__).with_name("tenant")

HOSTS = (
    LabHost(CONTROL),
    LabHost("head", delay_ms=4),
    LabHost("w1", "cone", 4),
    LabHost("w2", "symmetric", 4),
    LabHost(STRANGER),
)
MACHINES = (
    Machine("head", "heads", "cpu", slots=0, head_slots=2),
    Machine("w1", "north", "consumer", "RTX4090x1", slots=2),
    Machine("w2", "south", "consumer", "RTX4090x1", slots=2),
)
MORE_GPUS = dict.fromkeys(("w1", "w2"), ("--simulate", "RTX3090x1"))
"""Each cluster wants two of one model, of which no machine has more than one."""

SETTINGS = {
    "ORCH_IDLE_TEARDOWN_MS": "3000",
    # Six Ray nodes start on two cores, beside whatever else runs there.
    "ORCH_PREPARE_DEADLINE_MS": "120000",
    "ORCH_HEAD_DEADLINE_MS": "300000",
    "ORCH_JOIN_DEADLINE_MS": "300000",
}

OVERLAY_RANGE = "198.18.0.0/15"

FORMED_S = 200.0
"""As the deadlines above: some 20 s where nothing else runs."""

pytestmark = [
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
    pytest.mark.ray,
    pytest.mark.timeout(600),
]


@dataclass(frozen=True)
class Doors:
    """The network, and the nodes of both clusters by the name of their machine."""

    network: LabNetwork
    acme: LabTenant
    birch: LabTenant
    visit: Submitted
    """Birch's job, which knocks at acme's doors."""
    acmes: dict[str, Node]
    birchs: dict[str, Node]


@pytest.fixture(scope="module")
def doors() -> Iterator[Doors]:
    with LabNetwork.open(HOSTS, MACHINES, SETTINGS, MORE_GPUS) as network:
        acme, birch = (LabTenant(network, network.create_tenant(name)) for name in ("acme", "birch"))
        stay = settled(acme, "stay", "RTX4090", "stay.py", "2")
        acmes = nodes_of(network, acme, "stay")
        addresses = [node.spec.node_ip for node in acmes.values()]
        visit = settled(birch, "visit", "RTX3090", "knock.py", *addresses, *links_of(network, "w1"))
        yield Doors(network, acme, birch, visit, acmes, nodes_of(network, birch, "visit"))
        end(stay)
        end(visit)


def settled(tenant: LabTenant, name: str, model: str, *command: str) -> Submitted:
    """A job that has a task on each of two machines, and stays."""
    wanted: dict[str, str | int] = {"gpus": 2, "gpu_model": model}
    job = tenant.submit(name, "python", *command, working_dir=TENANTS_CODE, orch=wanted)
    tenant.await_output(job, "settled on", deadline_s=FORMED_S)
    return job


def nodes_of(network: LabNetwork, tenant: LabTenant, job: str) -> dict[str, Node]:
    cluster_id = tenant.job(job).attempts[-1].cluster_id
    return {name: network.node_of(cluster_id, name) for name in ("head", "w1", "w2")}


def links_of(network: LabNetwork, host: str) -> list[str]:
    """The addresses at both ends of all boxes' links to the internet on a host."""
    links = json.loads(network.lab.run(host, ["ip", "-j", "-4", "address"]).stdout)
    found = [link["addr_info"][0]["local"] for link in links if link["ifname"].startswith(INTERFACE_PREFIX)]
    return [end for address in found for end in (address, beyond(address))]


def beyond(address: str) -> str:
    """The box's end of a link, by the host's."""
    front, _, last = address.rpartition(".")
    return f"{front}.{int(last) + 1}"


def own_address(network: LabNetwork, node: Node) -> str:
    """The box's own end of its link."""
    (link,) = json.loads(network.beside(node, ["ip", "-j", "-4", "address", "show", "egress0"]).stdout)
    return str(link["addr_info"][0]["local"])


@contextlib.contextmanager
def routed(network: LabNetwork, place: str, gateway: str) -> Iterator[None]:
    """The addresses that only boxes have are looked for behind a host."""
    routes = [
        ("ip", "route", "{}", network_range, "via", gateway) for network_range in (OVERLAY_RANGE, str(POOL))
    ]
    for route in routes:
        network.lab.run(place, [word.format("add") for word in route])
    try:
        yield
    finally:
        for route in routes:
            network.lab.run(place, [word.format("delete") for word in route])


def test_every_port_of_every_node_from_outside_lan_and_neighbour_is_closed(doors: Doors) -> None:
    network, lab = doors.network, doors.network.lab
    on_head = [node.spec.node_ip for node in (doors.acmes["head"], doors.birchs["head"])]
    on_head += links_of(network, "head")
    public = [lab.public_ip(host) for host in ("head", "w1", "w2")]
    at_home = {
        host: [
            lab.address(host),
            doors.acmes[host].spec.node_ip,
            doors.birchs[host].spec.node_ip,
            *links_of(network, host),
        ]
        for host in ("w1", "w2")
    }
    member, own_head = doors.birchs["w1"], doors.birchs["head"]
    others = [node.spec.node_ip for node in doors.acmes.values()]
    others += [one for one in links_of(network, "w1") if one != own_address(network, member)]
    others += [lab.address("w1"), lab.lan_ip("w1"), lab.public_ip("head")]
    with contextlib.ExitStack() as stack:
        stack.enter_context(routed(network, STRANGER, lab.public_ip("head")))
        for host in at_home:
            stack.enter_context(routed(network, lab.router(host), lab.address(host)))
        control = lab.public_ip(CONTROL)
        outside = stack.enter_context(scanning(network, STRANGER, [control, *public, *on_head]))
        lans = {
            host: stack.enter_context(scanning(network, lab.router(host), addresses))
            for host, addresses in at_home.items()
        }
        neighbour = stack.enter_context(
            scanning(network, "w1", [own_head.spec.node_ip, *others], inside=member)
        )
        found = outcome(outside)
        # It would see an open port: the control plane's own are.
        assert found.pop(control) == set(LISTENS.values())
        assert found == closed(*public, *on_head)
        for host, addresses in at_home.items():
            assert outcome(lans[host]) == closed(*addresses)
        found = outcome(neighbour)
        # And so would this one: whoever is of the cluster finds Ray.
        assert found.pop(own_head.spec.node_ip) >= ports_of(own_head, "gcs", "dashboard", "node_manager")
        assert found == closed(*others)


def ports_of(node: Node, *names: str) -> set[int]:
    return {node.spec.ports[name] for name in names}


def test_every_port_of_every_node_asked_by_another_tenants_task_is_closed(doors: Doors) -> None:
    doors.birch.await_output(doors.visit, "found ", deadline_s=SCANNED_S)
    found = json.loads(doors.visit.text.partition("found ")[2].splitlines()[0])
    own = set(found.pop("own"))
    assert any(own >= ports_of(doors.birchs[host], "node_manager", "object_manager") for host in ("w1", "w2"))
    assert len(found) >= len(doors.acmes) + 2
    assert not any(found.values()), found


def test_host_of_ray_nodes_itself_listens_to_nobody(doors: Doors) -> None:
    for host, nodes in (("head", doors.acmes), ("w1", doors.birchs), ("w2", doors.acmes)):
        assert doors.network.lab.run(host, ["ss", "-Htln"]).stdout == ""
        datagrams = doors.network.lab.run(host, ["ss", "-Hulnp"]).stdout.splitlines()
        assert [line for line in datagrams if '"nebula"' not in line] == []
        inside = doors.network.beside(nodes[host], ["ss", "-Htln"]).stdout
        assert f":{nodes[host].spec.ports['node_manager']} " in inside


ASK = """
import sys, urllib.error, urllib.request
request = urllib.request.Request(sys.argv[1], headers={"Authorization": "Bearer " + sys.stdin.read()})
try:
    print(urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""


def status_of(network: LabNetwork, head: Node, token: str) -> int:
    """What Ray's API answers to a token, spoken from within the cluster's own network."""
    enter = ["nsenter", f"--net=/proc/{head.namespace_pid}/ns/net"]
    command = [*enter, sys.executable, "-I", "-c", ASK, f"{head.spec.dashboard_url}/api/jobs/"]
    return int(network.lab.run("head", command, text_in=token).stdout)


def is_member(network: LabNetwork, head: Node, token: str) -> bool:
    """Whether Ray's own protocol takes a token."""
    env = [f"RAY_AUTH_TOKEN={token}", "RAY_AUTH_MODE=token"]
    ray = [head.spec.interpreter, "-P", "-m", "ray.scripts.scripts"]
    command = ["env", "-i", *env, *ray, "status", f"--address={head.spec.gcs_address}"]
    done = network.inside(head, command, timeout_s=CONNECTED_S * 3)
    return done.returncode == 0 and "Node status" in done.stdout


def test_stolen_token_and_certificate_in_the_next_cluster_are_worthless(doors: Doors) -> None:
    network, head = doors.network, doors.acmes["head"]
    loot = steal(network, doors.acmes["w2"])
    # While the cluster lives they are worth all that its member is.
    assert status_of(network, head, loot.token) == 200
    with intruding(network, loot):
        wait_until(
            lambda: reaches(network, head.spec.node_ip, head.spec.ports["gcs"]),
            what="a stolen certificate to be of use",
            deadline_s=CONNECTED_S,
        )
    doors.acme.ray("stop", "stay")
    wait_until(
        lambda: not any(node.folder.exists() for node in doors.acmes.values()),
        what="the robbed cluster to be gone",
        deadline_s=FORMED_S,
    )
    stay = settled(doors.acme, "stay-again", "RTX4090", "stay.py", "2")
    nodes = nodes_of(network, doors.acme, "stay-again")
    head = nodes["head"]
    own_token = (head.folder / SHARED_DIR / TOKEN_FILE).read_text()
    assert (status_of(network, head, own_token), is_member(network, head, own_token)) == (200, True)
    assert status_of(network, head, loot.token) in {401, 403}
    assert not is_member(network, head, loot.token)
    everybody = [*nodes.values(), doors.birchs["head"], *doors.acmes.values()]
    addresses = {node.spec.node_ip for node in everybody} - {loot.address}
    control = network.lab.public_ip(CONTROL)
    with intruding(network, loot), scanning(network, STRANGER, [control, *sorted(addresses)]) as scan:
        found = outcome(scan)
    assert found.pop(control) == set(LISTENS.values())
    assert found == closed(*addresses)
    end(stay)
