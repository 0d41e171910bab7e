"""Texts that end in names, labels and hosts of Kubernetes: what its API would refuse, the chart refuses before."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from functools import cache
from typing import Any

import jsonschema
import pytest
import yaml

from scripts.chart_names import FULL_NAME_CHARACTERS_MAX, MAPS, TEXTS
from tests.deploy.tools import CHART, render, run_helm

HOST = "a" * 63 + "." + "b" * 63 + "." + "c" * 63 + "." + "d" * 61
"""253 characters, the most that DNS takes."""

REFUSED: Mapping[str, tuple[Any, str]] = {
    "nameOverride": ("-gpus", "'-gpus' does not match pattern"),
    "fullnameOverride": ("g" * (FULL_NAME_CHARACTERS_MAX + 1), "maxLength: got 41, want 40"),
    "commonLabels": ({"team": "our team"}, "/team': 'our team' does not match pattern"),
    "imagePullSecrets": (["Pull_Secret"], "/0': 'Pull_Secret' does not match pattern"),
    "clusterDomain": ("cluster.local.", "'cluster.local.' does not match pattern"),
    "images.controlPlane.repository": ("Registry/x y", "'Registry/x y' does not match pattern"),
    "images.agent.tag": ("v1:2", "'v1:2' does not match pattern"),
    "controlPlane.adminToken.existingSecret": ("admin_token", "'admin_token' does not match pattern"),
    "controlPlane.adminToken.key": ("..", "'..' does not match pattern"),
    "controlPlane.database.existingSecret": ("Database", "'Database' does not match pattern"),
    "controlPlane.persistence.existingClaim": ("my claim", "'my claim' does not match pattern"),
    "controlPlane.persistence.storageClass": ("Fast", "'Fast' does not match pattern"),
    "controlPlane.runtimesConfigMap": ("runtimes/", "'runtimes/' does not match pattern"),
    "controlPlane.priorityClassName": ("High", "'High' does not match pattern"),
    "controlPlane.nodeSelector": ({"a b": "c"}, "additional properties 'a b' not allowed"),
    "controlPlane.podAnnotations": ({"x/y/z": "c"}, "additional properties 'x/y/z' not allowed"),
    "controlPlane.tolerations": ([{"key": "a/", "operator": "Exists"}], "/0/key': 'a/' does not match"),
    "controlPlane.resources.limits": ({"a b": 1}, "additional properties 'a b' not allowed"),
    "gateway.names": (["https://gpu.example.com"], "/0': 'https://gpu.example.com' does not match pattern"),
    "gateway.service.sourceRanges": (["10.0.0.1"], "/0': '10.0.0.1' does not match pattern"),
    "gateway.ingress.host": ("ray.example.com:443", "'ray.example.com:443' does not match pattern"),
    "gateway.ingress.className": ("Nginx", "'Nginx' does not match pattern"),
    "public.sessionAddress": ("join.example.com:70000", "'join.example.com:70000' does not match pattern"),
    "overlay.network": ("198.18.0.0", "'198.18.0.0' does not match pattern"),
    "overlay.beacons": (["beacon.example.com:4242"], "/0': 'beacon.example.com:4242' does not match"),
    "metrics.serviceMonitor.labels": ({"release": "x" * 64}, f"/release': '{'x' * 64}' does not match"),
    "metrics.dashboards.annotations": ({"-a": "b"}, "additional properties '-a' not allowed"),
    "agents.packageIndex": ("index.example.com", "'index.example.com' does not match pattern"),
    "workers.dataPath": ("/var/../etc", "'/var/../etc' does not match pattern"),
    "workers.runtimeClassName": ("NVIDIA", "'NVIDIA' does not match pattern"),
    "workers.maxUnavailable": ("150%", "'150%' does not match pattern"),
    "workers.settings.notice": ("5 minutes", "'5 minutes' does not match pattern"),
    "networkPolicy.databaseTo": ([{}], "/0': minProperties: got 0, want 1"),
    "networkPolicy.metricsFrom": (
        [{"ipBlock": {"cidr": "192.0.2.0/24"}, "podSelector": {}}],
        "/0': maxProperties: got 2, want 1",
    ),
    "networkPolicy.gatewayFrom": ([{"ipBlock": {"cidr": "192.0.2.1"}}], "/cidr': '192.0.2.1' does not match"),
    "networkPolicy.overlayTo": (
        [{"podSelector": {"matchExpressions": [{"key": "team", "operator": "Is"}]}}],
        "/operator': value must be one of 'In'",
    ),
    "networkPolicy.apiServerTo": ([{"ipBlock": {"except": []}}], "/ipBlock': missing property 'cidr'"),
    "networkPolicy.deniedNetworks": (["10.0.0.0/33"], "/0': '10.0.0.0/33' does not match pattern"),
}
"""Key → (a value that the API would not take, what helm says)."""


@cache
def refusals() -> list[str]:
    """What helm says to all of them at once, line by line."""
    values: dict[str, Any] = {}
    for path, (value, _) in REFUSED.items():
        within = values
        *above, last = path.split(".")
        for key in above:
            within = within.setdefault(key, {})
        within[last] = value
    done = run_helm("template", "rel", CHART, "--values", "-", given=yaml.safe_dump(values))
    assert done.returncode != 0, "helm took these values"
    return done.stderr.splitlines()


@pytest.mark.parametrize("path", REFUSED)
def test_values_that_the_api_refuses_are_named_with_what_is_wrong(path: str) -> None:
    at = "/" + path.replace(".", "/")
    (said,) = [line for line in refusals() if f"'{at}'" in line or f"'{at}/" in line]
    assert REFUSED[path][1] in said


TAKEN: Mapping[str, tuple[str, ...]] = {
    "label": ("", "g", "g" * FULL_NAME_CHARACTERS_MAX, "gpus-2"),
    "name": ("", "a", "tokens.gpu-7", HOST),
    "host": ("", "ray.example.com", "xn--bcher-kva.example", HOST),
    "domain": ("cluster.local", "k8s"),
    "reached": ("gpu.example.com", "gpu_1", "192.0.2.7", "2001:db8::7", "[::1]"),
    "key": ("token", "tls.crt", "..data", "A_b-c"),
    "address": ("", "join.example.com:1", "10.0.0.7:65535", "[2001:db8::7]:7443"),
    "beacon": ("198.18.0.1=b.example.com:4242", "198.18.0.2=192.0.2.1:4242,b.example.com:443"),
    "network": ("0.0.0.0/0", "192.0.2.7/32", "2001:db8::/32", "::/0"),
    "network4": ("0.0.0.0/0", "100.64.0.0/10", "192.0.2.7/32"),
    "repository": ("agent", "registry.example.com:5000/gpus/orchestrator-agent", "localhost/a__b.c"),
    "tag": ("", "0.2.0", "edge_1-x", "t" * 128),
    "directory": ("/data", "/var/lib/orchestrator-agent", "/srv/.gpus", "/srv/..gpus"),
}

NOT_TAKEN: Mapping[str, tuple[str, ...]] = {
    "label": ("1gpu", "gpus.ours", "gpus-", "Gpus", "g" * 41, "gpus\n"),
    "name": ("a..b", ".a", "a_b", HOST + "e", "a" * 64),
    "host": ("*.example.com", "ray.example.com.", "RAY"),
    "domain": ("", "cluster_local"),
    "reached": ("", "gpu.example.com:443", "a/b", "-a"),
    "key": ("", ".", "..", "a/b", "k" * 254),
    "address": ("host", "host:0", "host:65536", ":7443", "https://host:1", "host:1 "),
    "beacon": ("198.18.0.256=b:4242", "198.18.0.1=b", "198.18.0.1=b:0"),
    "network": ("192.0.2.7", "2001:db8::", "192.0.2.0/33", "::/129", "net/8"),
    "network4": ("::/0", "192.0.2.7", "256.0.0.0/8"),
    "repository": ("", "Agent", "a//b", "agent:tag", "agent@sha256:1"),
    "tag": (".t", "a/b", "t" * 129),
    "directory": ("", "/", "data", "/a/", "/a/../b", "/..", "/a:b", "/./a"),
}


def test_texts_each_kind_is_tried_both_ways() -> None:
    assert TAKEN.keys() == NOT_TAKEN.keys() == TEXTS.keys()


@pytest.mark.parametrize("kind", TEXTS)
def test_texts_each_kind_takes_what_the_api_takes_and_no_more(kind: str) -> None:
    judge = jsonschema.Draft7Validator(TEXTS[kind])
    assert [text for text in TAKEN[kind] if not judge.is_valid(text)] == []
    # Python takes a newline at the end for the end, and Go does not.
    wrong = [text for text in NOT_TAKEN[kind] if not text.endswith("\n")]
    assert [text for text in wrong if judge.is_valid(text)] == []


def test_maps_keys_and_values_have_the_bounds_of_labels() -> None:
    key, value = "p" * 63 + ".example.com/" + "k" * 63, "v" * 63
    for kind in MAPS:
        jsonschema.validate({key: value}, MAPS[kind])
        for wrong in (key + "k", "/k", "a/b/c", "", "a b"):
            assert not jsonschema.Draft7Validator(MAPS[kind]).is_valid({wrong: value}), (kind, wrong)
    assert not jsonschema.Draft7Validator(MAPS["labels"]).is_valid({key: value + "v"})
    jsonschema.validate({key: "any text, of any length"}, MAPS["annotations"])


@pytest.mark.parametrize(
    ("values", "release", "words"),
    [
        ({}, "1st", 'fullnameOverride: the release\'s name makes "1st-orchestrator"'),
        ({}, "gpus.ours", 'fullnameOverride: the release\'s name makes "gpus.ours-orchestrator"'),
        ({"commonLabels": {"app.kubernetes.io/name": "x"}}, "rel", "commonLabels: app.kubernetes.io/name is"),
        (
            {"metrics": {"serviceMonitor": {"labels": {"helm.sh/chart": "x"}}}},
            "rel",
            "metrics.serviceMonitor.labels: helm.sh/chart is the chart's own",
        ),
        (
            {"workers": {"podAnnotations": {"orchestrator/settings-sha256": "x"}}},
            "rel",
            "workers.podAnnotations: orchestrator/settings-sha256 is the chart's own",
        ),
    ],
)
def test_names_that_the_chart_could_not_use_are_refused_by_key(
    values: dict[str, Any], release: str, words: str
) -> None:
    done = run_helm("template", release, CHART, "--values", "-", given=yaml.safe_dump(values))
    assert done.returncode != 0, "helm took these values"
    assert words in done.stderr


def test_names_a_release_that_begins_with_a_digit_serves_under_a_name_of_its_own() -> None:
    for one in render({"fullnameOverride": "gpus"}, release="1st"):
        assert one["metadata"]["name"].startswith("gpus")


def test_labels_of_one_kind_take_the_place_of_everybodys() -> None:
    """A key twice in one object would be refused by some readers, and be either by others."""
    own = {"enabled": True, "labels": {"team": "metrics"}}
    kinds = ("serviceMonitor", "scrapeConfig", "prometheusRule", "dashboards")
    values = {"commonLabels": {"team": "gpu", "x": "y"}, "metrics": dict.fromkeys(kinds, own)}
    for one in render(copy.deepcopy(values)):
        ours = one["metadata"]["labels"]["app.kubernetes.io/component"] == "metrics"
        monitoring = ours and one["kind"] not in ("Secret", "Service")
        assert one["metadata"]["labels"]["team"] == ("metrics" if monitoring else "gpu"), one["kind"]
        assert one["metadata"]["labels"]["x"] == "y"


def test_keys_none_stands_twice_in_one_object() -> None:
    labels = {"release": "a", "team": "b"}
    values = {"commonLabels": labels, "metrics": {"serviceMonitor": {"enabled": True, "labels": labels}}}
    done = run_helm("template", "rel", CHART, "--values", "-", given=yaml.safe_dump(values))
    assert done.returncode == 0, done.stderr
    for document in yaml.compose_all(done.stdout):
        for mapping in mappings(document):
            keys = [key.value for key, _ in mapping.value]
            twice = {key for key, count in itertools.groupby(sorted(keys)) if len(list(count)) > 1}
            assert not twice


def mappings(node: yaml.Node | None) -> list[yaml.MappingNode]:
    """Every mapping of a document."""
    match node:
        case yaml.MappingNode():
            return [node, *(one for _, value in node.value for one in mappings(value))]
        case yaml.SequenceNode():
            return [one for value in node.value for one in mappings(value)]
        case _:
            return []
