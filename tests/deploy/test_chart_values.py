"""What an operator types: every slip is refused, named, and where it is clear with what was meant."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from orchestrator.cli.serve_settings import ServeSettings
from orchestrator.cli.worker_settings import WorkerSettings
from scripts import chart
from tests.deploy.matrix import EVERYTHING
from tests.deploy.tools import CHART, refused, render, run_helm

SCHEMA: dict[str, Any] = json.loads(chart.SCHEMA.read_text())
DEFAULTS: dict[str, Any] = yaml.safe_load(chart.VALUES.read_text())


def nested(path: str, value: Any) -> dict[str, Any]:
    """{a: {b: value}} of a.b."""
    for key in reversed(path.split(".")):
        value = {key: value}
    assert isinstance(value, dict)
    return value


def closed_objects(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """(path, schema) of every object with keys of its own, lists' items left out."""
    if "properties" in schema:
        yield path, schema
        for key, below in schema["properties"].items():
            yield from closed_objects(below, f"{path}.{key}" if path else key)


CLOSED = dict(closed_objects(SCHEMA))


def test_schema_and_table_made_again_are_as_committed() -> None:
    stale = [path.name for path, text in chart.made().items() if path.read_text(encoding="utf-8") != text]
    assert not stale, "run `make chart` and commit what it writes"


def test_values_each_key_is_described() -> None:
    silent = [
        value.path
        for value in all_values(chart.read_values(chart.VALUES.read_text()))
        if not value.description and value.children is None and value.key not in SELF_EXPLANATORY
    ]
    assert not silent


SELF_EXPLANATORY = {
    *("enabled", "type", "port", "annotations", "className", "labels", "resources", "podAnnotations"),
    *("nodeSelector", "tolerations", "affinity", "priorityClassName", "pullPolicy", "size", "interval"),
    *("refreshInterval", "sourceRanges", "databasePort", "apiServerPorts", "packagesPorts"),
}
"""Kubernetes' and Prometheus' own words."""


def all_values(values: tuple[chart.Value, ...]) -> Iterator[chart.Value]:
    for value in values:
        yield value
        yield from all_values(value.children or ())


def test_defaults_whole_satisfy_the_schema() -> None:
    jsonschema.validate(DEFAULTS, SCHEMA)


@pytest.mark.parametrize("path", [path for path in CLOSED if path != "global"])
def test_keys_any_that_is_unknown_is_refused_at_its_level(path: str) -> None:
    values = copy.deepcopy(DEFAULTS)
    below = values
    for key in filter(None, path.split(".")):
        below = below.setdefault(key, {})
    below["zzz"] = 1
    with pytest.raises(jsonschema.ValidationError, match="zzz"):
        jsonschema.validate(values, SCHEMA)


@pytest.mark.parametrize("path", CLOSED)
def test_keys_each_with_a_letter_too_few_is_named_as_it_was_meant(path: str) -> None:
    schema = CLOSED[path]["propertyNames"]
    for key in CLOSED[path]["properties"]:
        assert list(consts(schema, key[:-2] + key[-1])) == [key]


def consts(schema: dict[str, Any], name: str) -> Iterator[str]:
    """The names that a propertyNames schema asks for instead of this one."""
    while schema:
        if "const" in schema:
            yield schema["const"]
            return
        if "if" not in schema:
            return
        fits = jsonschema.Draft7Validator(schema["if"]).is_valid(name)
        schema = schema.get("then" if fits else "else", {})


@pytest.mark.parametrize(
    ("slip", "meant"),
    [
        ("controlplane.enabled", "controlPlane"),
        ("controlPlan.enabled", "controlPlane"),
        ("worker.enabled", "workers"),
        ("headHost.replicas", "headHosts"),
        ("metrics.serviceMonitr.enabled", "serviceMonitor"),
        ("workers.joinToken.existingSecret", "joinTokens"),
        ("workers.joinTokens.existingSecrets", "existingSecret"),
        ("controlPlane.persistence.storageClassName", "storageClass"),
        ("controlPlane.settings.idle_teardown", "idle_teardown_ms"),
        ("workers.settings.regoin", "region"),
        ("controlPlane.resources.request", "requests"),
        ("networkPolicy.gatewayFrm", "gatewayFrom"),
    ],
)
def test_helm_mistyped_key_is_refused_with_the_nearest(slip: str, meant: str, tmp_path: Path) -> None:
    said = refused(tmp_path, nested(slip, True))
    wrong = next(part for part in slip.split(".") if f"'{part}' not allowed" in said)
    assert f"invalid propertyName '{wrong}'" in said
    assert f"value must be '{meant}'" in said


def test_helm_mistyped_key_of_a_selector_is_refused_and_selects_nobody(tmp_path: Path) -> None:
    """The API would drop it, and let everybody in."""
    peer = {"namespaceSelector": {"matchLabel": {"team": "ours"}}}
    said = refused(tmp_path, {"networkPolicy": {"gatewayFrom": [peer]}})
    assert (
        "/networkPolicy/gatewayFrom/0/namespaceSelector': additional properties 'matchLabel' not allowed"
        in said
    )
    assert "value must be 'matchLabels'" in said


def test_helm_key_like_none_is_refused_with_all_that_are_known(tmp_path: Path) -> None:
    said = refused(tmp_path, {"monitoring": {"enabled": True}})
    assert "additional properties 'monitoring' not allowed" in said
    assert all(f"'{key}'" in said for key in DEFAULTS)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("headHosts.replicas", "three", "/headHosts/replicas': got string, want integer"),
        ("headHosts.replicas", -1, "/headHosts/replicas': minimum: got -1, want 0"),
        ("gateway.tls.mode", "tls", "/gateway/tls/mode': value must be one of 'own', 'secret', 'plain'"),
        ("workers.isolation", "vm", "/workers/isolation': value must be one of 'box', 'none'"),
        (
            "controlPlane.settings.idle_teardown_ms",
            "10m",
            "/controlPlane/settings/idle_teardown_ms': got string",
        ),
        ("controlPlane.settings.gang_gpus_max", 0, "/controlPlane/settings/gang_gpus_max': minimum"),
        ("workers.settings.notice", "30d", "/workers/settings/notice': '30d' does not match pattern"),
        ("images.agent.digest", "latest", "/images/agent/digest': 'latest' does not match pattern"),
        ("agents.controlPlane", "https://x:7443", "/agents/controlPlane': 'https://x:7443' does not match"),
        ("metrics.serviceMonitor.interval", "15", "/metrics/serviceMonitor/interval': '15' does not match"),
        (
            "workers.tolerations",
            [{"key": "a", "effect": "Never"}],
            "/workers/tolerations/0/effect': value must be",
        ),
    ],
)
def test_helm_value_of_the_wrong_kind_is_refused_by_its_path(
    path: str, value: Any, words: str, tmp_path: Path
) -> None:
    assert words in refused(tmp_path, nested(path, value))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"controlPlane": {"enabled": False}}, "agents.controlPlane: with controlPlane.enabled=false name"),
        ({"workers": {"enabled": True}}, "workers.joinTokens.existingSecret: name the Secret"),
        ({"headHosts": {"replicas": 1}}, "headHosts.joinTokens.existingSecret: name the Secret"),
        ({"gateway": {"tls": {"mode": "secret"}}}, "gateway.tls.existingSecret: mode secret needs"),
        (
            {"gateway": {"tls": {"mode": "plain"}, "service": {"type": "LoadBalancer"}}},
            "gateway.tls.mode: tenants' tokens must not travel unencrypted",
        ),
        ({"gateway": {"ingress": {"enabled": True}}}, "gateway.ingress.host: name the host"),
        ({"gateway": {"url": "http://ray.example.com"}}, "gateway.url: the gateway speaks HTTPS"),
        (
            {"gateway": {"ingress": {"enabled": True, "host": "ray.example.com"}}},
            "gateway.tls.mode: an Ingress speaks HTTP",
        ),
        (
            {"overlay": {"enabled": False, "bridge": {"enabled": True}}},
            "overlay.bridge.enabled: there is no overlay",
        ),
        (
            {"overlay": {"bridge": {"enabled": True, "port": 7443}}},
            "overlay.bridge.port: 7443 is one of the Service's own ports",
        ),
        (
            {"overlay": {"beacons": ["198.18.0.1=a:4242"], "public": {"enabled": True}}},
            "overlay.public.enabled: there is no lighthouse",
        ),
        (
            {
                "overlay": {"enabled": False},
                "headHosts": {"replicas": 1, "joinTokens": {"existingSecret": "t"}},
            },
            "headHosts.replicas: without overlay",
        ),
        (
            {
                "workers": {
                    "enabled": True,
                    "isolation": "none",
                    "joinTokens": {"existingSecret": "t"},
                    "settings": {"overlay": "nebula"},
                }
            },
            "workers.settings.overlay: with isolation none",
        ),
    ],
)
def test_helm_values_that_contradict_each_other_are_refused_by_name(
    values: dict[str, Any], words: str, tmp_path: Path
) -> None:
    assert words in refused(tmp_path, values)


def test_helm_password_in_an_address_is_refused_and_not_repeated(tmp_path: Path) -> None:
    said = refused(tmp_path, {"agents": {"packageIndex": "https://me:hunter2@packages.example.com/"}})
    assert "agents.packageIndex: a password would stand" in said
    assert "hunter2" not in said


BY_PATH = {value.path: value for value in all_values(chart.read_values(chart.VALUES.read_text()))}


@pytest.mark.parametrize("path", ["gateway.tls.mode", "networkPolicy", "gateway.names", "overlay.network"])
def test_helm_key_without_a_value_is_refused_by_name(path: str, tmp_path: Path) -> None:
    """`mode:` alone in a file takes the default away, and a template takes nothing for the weaker choice."""
    above, _, key = path.rpartition(".")
    said = refused(tmp_path, nested(path, None))
    assert f"at '{'/' + above.replace('.', '/') if above else ''}': missing property '{key}'" in said


def test_keys_without_a_value_are_refused_but_maps_and_lists_of_kubernetes_and_settings() -> None:
    taken = set()
    for path in BY_PATH:
        values = copy.deepcopy(DEFAULTS)
        above, _, key = path.rpartition(".")
        below = values
        for part in filter(None, above.split(".")):
            below = below[part]
        del below[key]
        if jsonschema.Draft7Validator(SCHEMA).is_valid(values):
            taken.add(path)
    assert {path.rpartition(".")[2] for path in taken} == {
        *(
            "commonLabels",
            "labels",
            "annotations",
            "podAnnotations",
            "nodeSelector",
            "tolerations",
            "affinity",
        ),
        *("resources", "settings"),
    }


def test_helm_maps_and_settings_without_a_value_are_as_empty_ones() -> None:
    values, emptied = copy.deepcopy(dict(EVERYTHING)), copy.deepcopy(dict(EVERYTHING))
    for path, value in BY_PATH.items():
        if any(rule.split()[0] in chart.NOTHING_MEANS_NONE for rule in value.rules):
            # Each key of a map takes its own default away.
            put(values, path, [] if isinstance(value.default, list) else dict.fromkeys(value.default))
            put(emptied, path, None)
    assert render(emptied) == render(values)


def put(values: dict[str, Any], path: str, value: Any) -> None:
    """Set a.b, in place of whatever is there."""
    above, _, key = path.rpartition(".")
    for part in filter(None, above.split(".")):
        values = values.setdefault(part, {})
    values[key] = value


def test_settings_each_of_serve_is_the_charts_or_the_operators() -> None:
    offered = set(CLOSED["controlPlane.settings"]["properties"])
    assert offered | chart.SERVE_OWN >= set(ServeSettings.model_fields)
    assert not offered & chart.SERVE_OWN
    offered = set(CLOSED["workers.settings"]["properties"])
    assert offered | chart.WORKER_OWN >= set(WorkerSettings.model_fields)
    assert not offered & chart.WORKER_OWN


@pytest.mark.parametrize(
    ("missing", "key"), [("rules", "metrics.prometheusRule"), ("dashboards", "metrics.dashboards")]
)
def test_files_of_monitoring_missing_are_told_where_they_are_asked_for(
    missing: str, key: str, tmp_path: Path
) -> None:
    partial = tmp_path / "orchestrator"
    shutil.copytree(CHART, partial, ignore=shutil.ignore_patterns(missing))
    without = run_helm("template", "rel", partial)
    assert without.returncode == 0, without.stderr
    asked = run_helm("template", "rel", partial, "--set", f"{key}.enabled=true")
    assert asked.returncode != 0, "helm would have installed nothing, and said nothing"
    assert f"{key}.enabled: this copy of the chart has no files/{missing}" in asked.stderr
