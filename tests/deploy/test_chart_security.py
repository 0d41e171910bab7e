"""What the pods may do: as little as their work takes, in every way to install."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from orchestrator.adapters.systemd import BOX_CAPABILITIES
from tests.deploy.matrix import MATRIX, Values
from tests.deploy.policies import selects
from tests.deploy.tools import named, of_kind, render

MAY_BE_PRIVILEGED = {("worker", "agent"), ("head-host", "agent")}
"""They make boxes. Every other container is held to the strictest of Kubernetes' own levels."""

MAY_OWN_FILES = ("worker", "own-data")
"""Root with one right, before the agent of a worker without rights: to give that agent its directory."""

SECRET_WORDS = re.compile(r"password|secret_key|orch_[a-z]+_[0-9a-f]{16}|postgres(ql)?://", re.IGNORECASE)

each_way = pytest.mark.parametrize("way", MATRIX)


def templates(manifests: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(component, pod template) of every pod."""
    for manifest in manifests:
        if manifest["kind"] in ("Deployment", "StatefulSet", "DaemonSet"):
            template = manifest["spec"]["template"]
            yield template["metadata"]["labels"]["app.kubernetes.io/component"], template


def containers(manifests: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(component, pod, container) of every container, those that only prepare among them."""
    for component, template in templates(manifests):
        pod = template["spec"]
        for container in (*pod.get("initContainers", ()), *pod["containers"]):
            yield component, pod, container


@each_way
def test_containers_each_without_boxes_is_restricted(way: str) -> None:
    for component, pod, container in containers(render(MATRIX[way])):
        who, own = (component, container["name"]), container["securityContext"]
        assert own["readOnlyRootFilesystem"] is True, who
        if own.get("privileged"):
            assert who in MAY_BE_PRIVILEGED
            continue
        assert pod["securityContext"]["runAsNonRoot"] is True, who
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, who
        assert own["allowPrivilegeEscalation"] is False, who
        assert own["capabilities"]["drop"] == ["ALL"], who
        if who == MAY_OWN_FILES:
            assert own["capabilities"]["add"] == ["CHOWN"]
            continue
        assert "add" not in own["capabilities"], who
        assert own.get("runAsUser", pod["securityContext"]["runAsUser"]) > 0, who
        assert not pod.get("hostNetwork"), who


@each_way
def test_pods_none_shares_the_nodes_processes(way: str) -> None:
    for component, template in templates(render(MATRIX[way])):
        assert not template["spec"].get("hostPID"), component
        assert not template["spec"].get("hostIPC"), component
        # Else variables named after Services could be taken for settings.
        assert template["spec"]["enableServiceLinks"] is False, component


@each_way
def test_node_directories_only_agents_have_any(way: str) -> None:
    for component, template in templates(render(MATRIX[way])):
        paths = {one["hostPath"]["path"] for one in template["spec"]["volumes"] if "hostPath" in one}
        allowed = {"worker": {"/dev", "/var/lib/orchestrator-agent"}, "head-host": {"/dev"}}
        assert paths <= allowed.get(component, set()), component


def test_boxes_agent_keeps_of_roots_rights_what_its_unit_keeps() -> None:
    kept = ",".join(("-all", *(f"+{name.removeprefix('CAP_').lower()}" for name in BOX_CAPABILITIES)))
    for component, _, container in containers(render(MATRIX["everything"])):
        if container["securityContext"].get("privileged"):
            assert f"--bounding-set={kept}" in container["command"], component
            assert f"--inh-caps={kept}" in container["command"], component
            assert "--no-new-privs" in container["command"], component


@each_way
def test_service_account_tokens_only_workers_that_read_their_node_hold_one(way: str) -> None:
    manifests = render(MATRIX[way])
    for account in of_kind(manifests, "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False
    holders = {
        component
        for component, template in templates(manifests)
        if template["spec"]["automountServiceAccountToken"] is not False
    }
    workers = MATRIX[way].get("workers", {})
    reads = workers.get("isolation", "box") == "box" and workers.get("nodeEvidence", True)
    assert holders == ({"worker"} if reads and workers.get("enabled") else set())


@each_way
def test_service_accounts_each_pod_has_one_of_its_own(way: str) -> None:
    manifests = render(MATRIX[way])
    accounts = {account["metadata"]["name"] for account in of_kind(manifests, "ServiceAccount")}
    used = [template["spec"]["serviceAccountName"] for _, template in templates(manifests)]
    assert sorted(used) == sorted(accounts)


@each_way
def test_roles_any_allows_to_read_nodes_and_nothing_else(way: str) -> None:
    manifests = render(MATRIX[way])
    assert not of_kind(manifests, "Role")
    for role in of_kind(manifests, "ClusterRole"):
        assert role["rules"] == [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get"]}]
    workers = {
        template["spec"]["serviceAccountName"] for name, template in templates(manifests) if name == "worker"
    }
    for binding in of_kind(manifests, "ClusterRoleBinding"):
        assert {subject["name"] for subject in binding["subjects"]} == workers


def test_node_evidence_without_boxes_or_switched_off_gives_no_right() -> None:
    workers = {"enabled": True, "joinTokens": {"existingSecret": "t"}}
    for change in ({"isolation": "none"}, {"nodeEvidence": False}):
        manifests = render({"workers": {**workers, **change}})
        assert not of_kind(manifests, "ClusterRole")
        assert "ORCH_NODE_NAME" not in yaml.safe_dump(manifests)


@each_way
def test_secrets_any_stands_in_no_config_map_argument_or_variable(way: str) -> None:
    manifests = render(MATRIX[way])
    for config in of_kind(manifests, "ConfigMap"):
        if "grafana_dashboard" not in config["metadata"]["labels"]:
            assert not SECRET_WORDS.search(yaml.safe_dump(config["data"])), config["metadata"]["name"]
    for component, _, container in containers(manifests):
        words = [*container.get("command", ()), *container.get("args", ())]
        words += [variable.get("value", "") for variable in container.get("env", ())]
        assert not SECRET_WORDS.search(" ".join(words)), component
        assert not any("--token=" in word or "--database-url" in word for word in words), component


def test_secrets_given_ones_leave_none_to_make() -> None:
    assert not of_kind(render(MATRIX["existing-secrets"]), "Secret")
    (made,) = of_kind(render({}), "Secret")
    assert made["metadata"]["name"] == "rel-orchestrator-metrics-token"


# ---------------------------------------------------------------- who may speak to whom


def policies_of(manifests: list[dict[str, Any]], labels: dict[str, str]) -> list[dict[str, Any]]:
    """The NetworkPolicies that select a pod with these labels."""
    return [one for one in of_kind(manifests, "NetworkPolicy") if selects(one["spec"]["podSelector"], labels)]


@each_way
def test_network_policies_each_pod_is_denied_and_then_allowed_its_own(way: str) -> None:
    manifests = render(MATRIX[way])
    if MATRIX[way].get("networkPolicy", {}).get("enabled") is False:
        assert not of_kind(manifests, "NetworkPolicy")
        return
    for component, template in templates(manifests):
        found = policies_of(manifests, template["metadata"]["labels"])
        denying = [one for one in found if not one["spec"].get("ingress") and not one["spec"].get("egress")]
        assert len(denying) == 1, component
        assert denying[0]["spec"]["policyTypes"] == ["Ingress", "Egress"]
        assert len(found) > 1, f"{component} can do nothing at all"


def ports_let_in(manifests: list[dict[str, Any]], labels: dict[str, str]) -> set[tuple[str, str]]:
    """(protocol, port) by which anybody may come in; port `any` for all."""
    return {
        (port.get("protocol", "TCP"), str(port.get("port", "any")))
        for policy in policies_of(manifests, labels)
        for rule in policy["spec"].get("ingress", ())
        for port in rule["ports"]
    }


@each_way
def test_network_policies_control_plane_opens_exactly_its_ports(way: str) -> None:
    manifests = render(MATRIX[way])
    for component, template in templates(manifests):
        if component != "control-plane" or not of_kind(manifests, "NetworkPolicy"):
            continue
        (container,) = template["spec"]["containers"]
        listening = {(port.get("protocol", "TCP"), port["name"]) for port in container["ports"]}
        assert ports_let_in(manifests, template["metadata"]["labels"]) == listening


def test_network_policies_agents_take_in_the_overlay_only() -> None:
    ways = {"everything": {("UDP", "any")}, "no-overlay": set(), "workers-without-rights": set()}
    for way, expected in ways.items():
        manifests = render(MATRIX[way])
        for component, template in templates(manifests):
            if component != "control-plane":
                assert ports_let_in(manifests, template["metadata"]["labels"]) == expected, (way, component)


def test_network_policies_agents_keep_out_of_private_networks() -> None:
    manifests = render(MATRIX["several-head-hosts"])
    policy = named(manifests, "NetworkPolicy", "rel-orchestrator-agents")
    blocks = [
        peer["ipBlock"]
        for rule in policy["spec"]["egress"]
        for peer in rule.get("to", ())
        if "ipBlock" in peer
    ]
    assert [block["cidr"] for block in blocks] == ["0.0.0.0/0"]
    # Where clouds keep what a machine may do.
    assert {"169.254.0.0/16", "10.0.0.0/8"} <= set(blocks[0]["except"])


def test_network_policies_named_peers_take_the_place_of_everybody() -> None:
    values: Values = MATRIX["everything"]
    manifests = render(values)
    rules = named(manifests, "NetworkPolicy", "rel-orchestrator")["spec"]
    by_port = {rule["ports"][0]["port"]: rule.get("from") for rule in rules["ingress"]}
    assert by_port["gateway"] == values["networkPolicy"]["gatewayFrom"]
    assert by_port["metrics"] == values["networkPolicy"]["metricsFrom"]
    (database,) = [rule for rule in rules["egress"] if rule["ports"][0].get("port") == 5432]
    assert database["to"] == values["networkPolicy"]["databaseTo"]


def test_ingress_and_load_balancers_none_ends_tls_of_sessions() -> None:
    for values in MATRIX.values():
        manifests = render(values)
        for ingress in of_kind(manifests, "Ingress"):
            for rule in ingress["spec"]["rules"]:
                services = {path["backend"]["service"]["name"] for path in rule["http"]["paths"]}
                assert services == {"rel-orchestrator-gateway"}
            assert ingress["spec"]["tls"], "tenants' tokens would travel in the clear"
        for service in of_kind(manifests, "Service"):
            if service["spec"].get("type") == "LoadBalancer":
                assert service["spec"]["externalTrafficPolicy"] == "Local"
                assert "metrics" not in {port["name"] for port in service["spec"]["ports"]}
