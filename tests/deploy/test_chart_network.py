"""Every connection that a pod of the chart makes or takes, held against the NetworkPolicies; and those that none may."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import yaml

from tests.deploy.matrix import MATRIX
from tests.deploy.policies import End, lets_through, pod
from tests.deploy.tools import CHART, of_kind, render

WHOLE = "network-of-its-own"
PRIVATE = "agents-of-a-private-control-plane"

ENDS: Mapping[str, End] = {
    "internet": End("203.0.113.9"),
    "private": End("10.20.0.5"),
    "metadata": End("169.254.169.254"),
    "resolver": End("10.96.0.10", {"k8s-app": "kube-dns"}, "kube-system"),
    "api": End("10.0.0.1"),
    "prometheus": End("10.42.9.9", {"app.kubernetes.io/name": "prometheus"}, "monitoring"),
    "ingress": End("10.42.9.8", {"app.kubernetes.io/name": "ingress-nginx"}, "ingress"),
    "stranger": End("10.42.9.7", {"app": "anything"}, "elsewhere"),
}


@dataclass(frozen=True)
class Case:
    """A connection in one way to install."""

    way: str
    source: str
    to: str
    protocol: str
    port: int

    def __str__(self) -> str:
        return f"{self.way}:{self.source}-{self.to}:{self.port}/{self.protocol}"


def cases(way: str, *lines: str) -> list[Case]:
    """Of lines such as `worker > internet 443/TCP`."""
    found = []
    for line in lines:
        source, _, to, at = line.split()
        port, _, protocol = at.partition("/")
        found.append(Case(way, source, to, protocol, int(port)))
    return found


NEEDED = (
    *cases(
        WHOLE,
        # Joining, sessions, operators; agents of this release and machines outside.
        *(
            f"{who} > control-plane 7443/TCP"
            for who in ("worker", "head-host", "internet", "private", "stranger")
        ),
        *(f"{who} > control-plane 7444/TCP" for who in ("worker", "head-host", "internet", "private")),
        # Lighthouse, relay and bridge.
        *(f"{who} > control-plane 4242/UDP" for who in ("worker", "head-host", "internet", "private")),
        *(f"{who} > control-plane 7445/TCP" for who in ("worker", "head-host", "internet", "private")),
        *(f"control-plane > {whom} 40001/UDP" for whom in ("worker", "head-host", "internet", "private")),
        # The overlay itself.
        "worker > head-host 40001/UDP",
        "head-host > worker 40001/UDP",
        "worker > internet 40001/UDP",
        "internet > worker 40001/UDP",
        "private > head-host 40001/UDP",
        # Tenants, Prometheus.
        "ingress > control-plane 8265/TCP",
        "internet > control-plane 8265/TCP",
        "prometheus > control-plane 9464/TCP",
        # Names.
        *(
            f"{who} > resolver 53/{how}"
            for who in ("control-plane", "worker", "head-host")
            for how in ("UDP", "TCP")
        ),
        # Database, owners' webhooks.
        "control-plane > private 5432/TCP",
        "control-plane > internet 443/TCP",
        "control-plane > internet 80/TCP",
        # Packages, and what jobs ask; the resolvers of boxes.
        "worker > internet 443/TCP",
        "head-host > internet 443/TCP",
        "worker > internet 53/UDP",
        # The node's labels.
        "worker > api 443/TCP",
        "worker > api 6443/TCP",
    ),
    *cases(
        PRIVATE,
        # Addresses that agents are told, at the ports that they are told.
        "worker > private 9443/TCP",
        "worker > private 7444/TCP",
        "worker > lighthouse 4242/UDP",
        "worker > bridge 8443/TCP",
        # Named, because only their names are told.
        "worker > named 9444/TCP",
        "worker > index 8443/TCP",
        # Other machines of the network.
        "worker > machine 40001/UDP",
    ),
    *cases("everything", "control-plane > metadata 9000/TCP", "control-plane > private 9000/TCP"),
    *cases("workers-without-rights", "worker > control-plane 7444/TCP", "worker > internet 443/TCP"),
    *cases("agents-told-of-load-balancers", "worker > private 9444/TCP", "worker > private 443/TCP"),
)

DENIED = (
    *cases(
        WHOLE,
        # Webhooks lead into no private network, and nowhere but to their ports.
        "control-plane > private 443/TCP",
        "control-plane > metadata 80/TCP",
        "control-plane > internet 8443/TCP",
        # Nobody scrapes from outside of Kubernetes; nobody but the overlay comes to agents.
        "internet > control-plane 9464/TCP",
        "private > control-plane 9464/TCP",
        "worker > control-plane 8265/TCP",
        "worker > control-plane 9464/TCP",
        "internet > worker 22/TCP",
        "prometheus > worker 9464/TCP",
        "stranger > head-host 6379/TCP",
        "worker > head-host 6379/TCP",
        # What tenants' code could make an agent's pod reach.
        "worker > private 5432/TCP",
        "worker > metadata 80/TCP",
        "worker > stranger 80/TCP",
        "head-host > private 443/TCP",
        "head-host > api 6443/TCP",
    ),
    *cases(
        PRIVATE,
        "worker > private 22/TCP",
        "worker > machine 22/TCP",
        "worker > index 22/TCP",
        "worker > metadata 80/TCP",
        "worker > resolver 8080/TCP",
    ),
    # Without boxes there is no overlay, and tenants' code is in the pod.
    *cases(
        "workers-without-rights",
        "internet > worker 40001/UDP",
        "worker > control-plane 4242/UDP",
        "worker > private 40001/UDP",
        "worker > api 443/TCP",
    ),
    *cases("no-overlay", "internet > worker 40001/UDP", "control-plane > internet 40001/UDP"),
    *cases("own-beacons-alone", "control-plane > internet 4242/UDP", "internet > control-plane 4242/UDP"),
)


def is_let_through(case: Case) -> bool:
    manifests = render(MATRIX[case.way])

    def end(name: str) -> End:
        return ENDS.get(name) or OTHERS.get(name) or pod(manifests, name)

    policies = of_kind(manifests, "NetworkPolicy")
    return lets_through(policies, end(case.source), end(case.to), case.protocol, case.port)


OTHERS: Mapping[str, End] = {
    "lighthouse": End("10.20.0.6"),
    "bridge": End("10.20.0.7"),
    "named": End("10.30.0.9"),
    "machine": End("10.40.0.9"),
    "index": End("10.50.0.9"),
}
"""What the row of a private control plane names."""


@pytest.mark.parametrize("case", NEEDED, ids=str)
def test_network_policies_what_a_pod_needs_is_let_through(case: Case) -> None:
    assert is_let_through(case)


@pytest.mark.parametrize("case", DENIED, ids=str)
def test_network_policies_what_no_pod_needs_is_denied(case: Case) -> None:
    assert not is_let_through(case)


@pytest.mark.parametrize(
    "key", ["webhookPorts", "apiServerPorts", "controlPlanePorts", "packagesPorts", "dnsPorts"]
)
def test_network_policies_a_list_of_ports_without_any_opens_none(key: str) -> None:
    """In Kubernetes a rule without ports is one of every port."""
    policy: dict[str, Any] = {**MATRIX[PRIVATE]["networkPolicy"], key: []}
    values = {**MATRIX[WHOLE], "networkPolicy": policy, "overlay": {"enabled": False}, "headHosts": {}}
    for one in of_kind(render(values), "NetworkPolicy"):
        for rule in one["spec"].get("egress") or ():
            assert "ports" not in rule or rule["ports"], one["metadata"]["name"]
            assert "ports" in rule or [*rule["to"][0]] == ["ipBlock"], one["metadata"]["name"]


def test_readme_connections_say_what_narrows_or_widens_each() -> None:
    section = (CHART / "README.md").read_text().partition("## Connections\n")[2].partition("\n## ")[0]
    keys = yaml.safe_load((CHART / "values.yaml").read_text())["networkPolicy"]
    assert [key for key in keys if f"`{key}`" not in section and f"networkPolicy.{key}`" not in section] == []


def test_network_policies_switched_off_leave_none() -> None:
    assert not of_kind(render(MATRIX["no-policies"]), "NetworkPolicy")
