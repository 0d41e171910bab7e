"""What `helm install` prints at its end: commands that work as they are, and what this way to install still needs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import yaml

from orchestrator.cli.main import run
from tests.deploy.matrix import MATRIX
from tests.deploy.tools import CHART, named, of_kind, render, run_helm

WORKERS = {"enabled": True, "joinTokens": {"existingSecret": "tokens"}}
POD_SECURITY = "pod-security.kubernetes.io/enforce=privileged"


@cache
def _notes(values: str) -> str:
    done = run_helm(
        *("install", "rel", CHART, "--dry-run=client", "--namespace", "net", "--values", "-"), given=values
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.partition("NOTES:\n")[2]


def notes(values: Mapping[str, Any]) -> str:
    """The end of `helm install`, which asks no cluster here."""
    return _notes(yaml.safe_dump(dict(values)))


@pytest.mark.parametrize("way", MATRIX)
def test_notes_any_way_names_objects_that_are_made(way: str) -> None:
    text, manifests = notes(MATRIX[way]), render(MATRIX[way])
    kinds = {"deploy": "Deployment", "service": "Service"}
    for kind, name in re.findall(r"\b(deploy|service)/([a-z0-9-]+)", text):
        assert named(manifests, kinds[kind], name)
    for name in re.findall(r"get service ([a-z0-9-]+)", text):
        assert named(manifests, "Service", name)
    assert "<no value>" not in text
    assert "%!" not in text


def test_notes_commands_of_orch_are_commands_with_these_options(capsys: pytest.CaptureFixture[str]) -> None:
    lines = {line for way in MATRIX for line in re.findall(r"-- orch ([^>\n]+)", notes(MATRIX[way]))}
    assert len(lines) >= 5
    for line in sorted(lines):
        # Options are read before help is given: one that is none is refused.
        assert run([*line.split(), "--help"]) == 0, capsys.readouterr().err
    assert run(["token", "create", "--head-hosts", "--help"]) != 0


def test_notes_pod_security_is_said_wherever_the_namespace_has_to_give_way() -> None:
    """A directory of the node is beyond what the level `baseline` takes, without privilege, too."""
    for way, values in MATRIX.items():
        pods = [
            one["spec"]["template"]["spec"] for one in render(values) if "template" in one.get("spec", {})
        ]
        wanted = any("hostPath" in volume for pod in pods for volume in pod["volumes"])
        assert (POD_SECURITY in notes(values)) == wanted, way


def test_notes_names_that_may_be_private_are_pointed_out_until_they_are_named() -> None:
    told = {"agents": {"controlPlane": "join.example.com:7443"}, "workers": WORKERS}
    hint = "networkPolicy.controlPlaneTo"
    assert "Agents are told to come to join.example.com." in notes(told)
    assert hint in notes(told)
    peers = [{"ipBlock": {"cidr": "10.20.0.0/24"}}]
    for silent in (
        {**told, "networkPolicy": {"controlPlaneTo": peers}},
        {**told, "networkPolicy": {"enabled": False}},
        # The policies let an address through by themselves.
        {**told, "agents": {"controlPlane": "10.20.0.5:7443"}},
        {"workers": WORKERS},
        {"public": {"enabled": True, "sessionAddress": "join.example.com:7444"}},
    ):
        assert hint not in notes(silent), silent


def test_notes_load_balancer_without_a_name_says_that_its_address_has_to_be_known() -> None:
    service = {"type": "LoadBalancer"}
    assert "add that ADDRESS to gateway.names" in notes({"gateway": {"service": service}})
    assert "gateway.names" not in notes({"gateway": {"service": service, "names": ["gpu.example.com"]}})


def test_notes_tokens_are_made_for_each_pod_of_head_hosts() -> None:
    text = notes(MATRIX["several-head-hosts"])
    (first, last, stem) = re.findall(r"seq (\d+) (\d+)\); do\n.*> heads/([a-z0-9-]+)-\$number", text)[0]
    (stateful,) = of_kind(render(MATRIX["several-head-hosts"]), "StatefulSet")
    assert stem == stateful["metadata"]["name"]
    assert int(last) - int(first) + 1 == stateful["spec"]["replicas"]
