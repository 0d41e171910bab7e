"""What NetworkPolicies let through, judged as Kubernetes describes it: whatever no rule allows is denied.

A pod that a policy of a direction selects may do in that direction what any of these policies' rules allows. The
traffic of a pod's own node, such as the kubelet's probes, is not a policy's business, and answers follow what was
asked. A rule's ports are those of pods, behind whatever Service.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Manifest = Mapping[str, Any]


@dataclass(frozen=True)
class End:
    """One end of a connection: a pod by its labels, or an address alone, which is outside of Kubernetes."""

    address: str
    labels: Mapping[str, str] = field(default_factory=dict)
    namespace: str = ""
    ports: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    """Of a pod: name → protocol and number."""


def pod(manifests: Sequence[Manifest], component: str, *, namespace: str = "net") -> End:
    """A pod of the release."""
    for number, one in enumerate(manifests):
        if one["kind"] not in ("Deployment", "StatefulSet", "DaemonSet"):
            continue
        template = one["spec"]["template"]
        if template["metadata"]["labels"]["app.kubernetes.io/component"] == component:
            listed = [port for each in template["spec"]["containers"] for port in each.get("ports", ())]
            ports = {port["name"]: (port.get("protocol", "TCP"), port["containerPort"]) for port in listed}
            return End(f"10.42.0.{number + 1}", template["metadata"]["labels"], namespace, ports)
    raise AssertionError(f"the release has no {component}")


def lets_through(policies: Sequence[Manifest], source: End, to: End, protocol: str, port: int) -> bool:
    """Whether a connection can be made: its source may begin it, and its end may take it."""
    return _allows(policies, "Egress", source, to, to, protocol, port) and _allows(
        policies, "Ingress", to, source, to, protocol, port
    )


def _allows(
    policies: Sequence[Manifest], way: str, whose: End, other: End, to: End, protocol: str, port: int
) -> bool:
    """One direction, by the policies of one end."""
    mine = [
        one["spec"]
        for one in policies
        if way in one["spec"]["policyTypes"]
        and whose.labels
        and one["metadata"]["namespace"] == whose.namespace
        and selects(one["spec"]["podSelector"], whose.labels)
    ]
    if not mine:
        return True
    rules = [rule for spec in mine for rule in spec.get(way.lower()) or ()]
    peers = {"Egress": "to", "Ingress": "from"}[way]
    return any(
        _is_port(rule.get("ports"), to, protocol, port) and _is_peer(rule.get(peers), other, whose.namespace)
        for rule in rules
    )


def _is_port(ports: Sequence[Manifest] | None, to: End, protocol: str, port: int) -> bool:
    # None at all, or none of a rule's: any.
    return not ports or any(
        one.get("protocol", "TCP") == protocol
        and one.get("port", port)
        in (port, *(name for name, at in to.ports.items() if at == (protocol, port)))
        for one in ports
    )


def _is_peer(peers: Sequence[Manifest] | None, other: End, namespace: str) -> bool:
    return not peers or any(_is_one(peer, other, namespace) for peer in peers)


def _is_one(peer: Manifest, other: End, namespace: str) -> bool:
    block = peer.get("ipBlock")
    if block is not None:
        address = ipaddress.ip_address(other.address)
        return address in ipaddress.ip_network(block["cidr"]) and not any(
            address in ipaddress.ip_network(one) for one in block.get("except", ())
        )
    if not other.labels:
        return False
    spaces = peer.get("namespaceSelector")
    in_space = (
        other.namespace == namespace
        if spaces is None
        else selects(spaces, {"kubernetes.io/metadata.name": other.namespace})
    )
    return in_space and selects(peer.get("podSelector", {}), other.labels)


def selects(selector: Manifest, labels: Mapping[str, str]) -> bool:
    """Whether a selector takes a pod or a namespace with these labels."""
    if not selector.get("matchLabels", {}).items() <= labels.items():
        return False
    for expression in selector.get("matchExpressions", ()):
        assert expression["operator"] == "In"
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return True
