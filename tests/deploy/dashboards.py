"""Reads dashboards as Grafana does, and their queries as Prometheus does, without either."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import promql_parser as promql

from deploy.dashboards.build import FOLDER
from orchestrator.adapters.metrics import catalogue
from tests.deploy.promql import (
    HISTOGRAM_SUFFIXES,
    RAY_TARGET_LABELS,
    TARGET_LABELS,
    known_series,
    labels_of,
    metrics_used,
    mistakes,
    parse,
)

NAMES = ("clusters", "control-plane", "fleet", "scheduling")

PROCESS = (
    "process_cpu_seconds_total",
    "process_max_fds",
    "process_open_fds",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
)
"""What the client library says of its process."""

RAY_NODE = (
    "ray_node_cpu_utilization",
    "ray_node_gpus_utilization",
    "ray_node_gram_available",
    "ray_node_gram_used",
    "ray_node_mem_total",
    "ray_node_mem_used",
    "ray_node_network_receive_speed",
)
"""What a Ray node says of itself."""

COUNTING = frozenset({"rate", "increase"})
"""A counter's value means nothing by itself, and a gauge has no rate."""

COUNTERS = frozenset(
    f"{metric.name}{part}"
    for metric in catalogue.ALL
    for part in {"counter": ("",), "histogram": tuple(HISTOGRAM_SUFFIXES)}.get(metric.kind, ())
) | {"process_cpu_seconds_total"}


@cache
def series() -> Mapping[str, frozenset[str]]:
    """All that queries may name, by the labels it has: the catalogue, what rules record, and three short lists."""
    return {
        **known_series(),
        **dict.fromkeys(PROCESS, TARGET_LABELS),
        **dict.fromkeys(RAY_NODE, RAY_TARGET_LABELS | {"IsHeadNode", "GpuIndex"}),
        # What Prometheus says of its own alerts.
        "ALERTS": frozenset({"alertname", "alertstate", "severity"}),
    }


@dataclass(frozen=True, slots=True)
class Query:
    """One query of a panel."""

    dashboard: str
    panel: str
    expr: str
    legend: str
    instant: bool
    datasource: str

    @property
    def annotates(self) -> bool:
        """Whether it marks moments in all panels, rather than showing something."""
        return self.panel.startswith("annotation ")

    def __str__(self) -> str:
        return f"{self.dashboard} / {self.panel}: {self.expr}"


def read(name: str) -> dict[str, Any]:
    """The dashboard as the chart carries it."""
    made: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return made


def panels(name: str) -> list[dict[str, Any]]:
    """All panels that show something."""
    return [panel for panel in read(name)["panels"] if panel["type"] != "row"]


def queries(name: str) -> Iterator[Query]:
    """All queries of all panels, and that of the annotations."""
    for panel in panels(name):
        for target in panel["targets"]:
            legend = "" if target["format"] == "table" else target["legendFormat"]
            source = target["datasource"]["uid"]
            yield Query(name, panel["title"], target["expr"], legend, target.get("instant", False), source)
    for annotation in read(name)["annotations"]["list"]:
        source = annotation["datasource"]["uid"]
        yield Query(name, f"annotation {annotation['name']}", annotation["expr"], "", False, source)


def filled(expr: str, variables: Mapping[str, str]) -> str:
    """The query as Grafana sends it. A variable without a value stays, which Prometheus refuses."""
    for name, value in sorted(variables.items(), reverse=True):
        expr = re.sub(rf"\$(?:{name}\b|\{{{name}\}})", value, expr)
    return expr


def shown_labels(expr: str) -> frozenset[str]:
    """The labels of what a query answers.

    Raises:
        ValueError: It names a metric, label or value that there is not, or counts what is no counter; says which.
    """
    found = mistakes(expr, series()) or _miscounted(expr)
    if found:
        raise ValueError("; ".join(found))
    return labels_of(parse(expr), series())


def _miscounted(expr: str) -> list[str]:
    counted: set[str] = set()

    def visit(node: promql.Expr) -> None:
        if isinstance(node, promql.Call) and node.func.name in COUNTING:
            counted.update(
                one.vector_selector.name or "" for one in node.args if isinstance(one, promql.MatrixSelector)
            )

    promql.walk(parse(expr), visit)
    used = metrics_used(expr)
    return [f"{name} is a counter: take its rate" for name in sorted(used & COUNTERS - counted)] + [
        f"{name} is no counter: it has no rate" for name in sorted(counted - COUNTERS)
    ]
