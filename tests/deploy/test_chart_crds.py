"""The schemas of prometheus-operator: whole, and strict enough that a slip in a template does not get past them."""

from __future__ import annotations

import copy
from typing import Any

import jsonschema
import pytest

from tests.deploy.crds import CRDS
from tests.deploy.matrix import MATRIX
from tests.deploy.tools import of_kind, render

HTTP_SD = ("spec", "httpSDConfigs", 0)
ENDPOINT = ("spec", "endpoints", 0)
RULE = ("spec", "groups", 0, "rules", 0)


def manifest_of(kind: str) -> dict[str, Any]:
    """One that the chart makes."""
    return copy.deepcopy(of_kind(render(MATRIX["monitoring"]), kind)[0])


def test_schemas_each_kind_of_the_operator_that_the_chart_makes_has_one() -> None:
    made = {
        manifest["kind"]
        for manifest in render(MATRIX["monitoring"])
        if manifest["apiVersion"].startswith("monitoring.coreos.com/")
    }
    assert set(CRDS) == made
    for schema in CRDS.values():
        jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("ServiceMonitor", ("apiVersion",), "monitoring.coreos.com/v1beta1"),
        ("ServiceMonitor", ("metadata", "label"), {}),
        ("ServiceMonitor", ("spec", "endpoint"), []),
        ("ServiceMonitor", ("spec", "endpoints"), None),
        ("ServiceMonitor", (*ENDPOINT, "interval"), "15 s"),
        ("ServiceMonitor", (*ENDPOINT, "relabelings", 0, "action"), "rename"),
        ("ServiceMonitor", (*ENDPOINT, "relabelings", 0, "target_label"), "job"),
        ("ServiceMonitor", (*ENDPOINT, "authorization", "credentials"), "token"),
        ("ScrapeConfig", ("spec", "honor_labels"), False),
        ("ScrapeConfig", ("spec", "sampleLimit"), "500"),
        ("ScrapeConfig", (*HTTP_SD, "url"), "rel-orchestrator-metrics:9464"),
        ("ScrapeConfig", (*HTTP_SD, "refreshInterval"), 60),
        ("PrometheusRule", (*RULE, "keepFiringFor"), "5m"),
        ("PrometheusRule", (*RULE, "for"), "5 minutes"),
        ("PrometheusRule", (*RULE, "labels"), {"severity": 1}),
        ("PrometheusRule", ("spec", "groups", 0, "name"), ""),
    ],
)
def test_schemas_a_slip_anywhere_is_refused(kind: str, path: tuple[str | int, ...], value: Any) -> None:
    manifest = manifest_of(kind)
    jsonschema.validate(manifest, CRDS[kind])
    within: Any = manifest
    for step in path[:-1]:
        within = within[step]
    within[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(manifest, CRDS[kind])


@pytest.mark.parametrize("kind", CRDS)
def test_schemas_a_manifest_without_a_spec_is_refused(kind: str) -> None:
    manifest = manifest_of(kind)
    del manifest["spec"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(manifest, CRDS[kind])
