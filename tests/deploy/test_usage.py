"""What the docs say of who uses a metric, held against PromQL as it is parsed."""

from __future__ import annotations

import json

import pytest
import yaml

from deploy.usage import FILES, expressions, named, unused, users
from orchestrator.adapters.metrics.catalogue import ALL
from scripts.docs import metrics_text
from tests.deploy.dashboards import NAMES, filled, queries
from tests.deploy.promql import metrics_used, read_rules
from tests.deploy.seeing import VARIABLES

BY_NAME = {metric.name: metric for metric in ALL}


def test_expressions_are_all_that_rules_and_dashboards_have() -> None:
    rules = [yaml.safe_load(path.read_text()) for path in (FILES / "rules").glob("*.yaml")]
    assert sorted(expressions(rules)) == sorted(rule.expr for rule in read_rules())
    boards = [json.loads(path.read_text()) for path in (FILES / "dashboards").glob("*.json")]
    assert set(expressions(boards)) == {query.expr for name in NAMES for query in queries(name)}


def test_users_of_each_metric_are_those_whose_parsed_expressions_select_it() -> None:
    variables = {**VARIABLES, "__range": "1h"}
    parsed = {
        "rules": {name for rule in read_rules() for name in metrics_used(rule.expr)},
        "dashboards": {
            used
            for name in NAMES
            for query in queries(name)
            for used in metrics_used(filled(query.expr, variables))
        },
    }
    for metric in ALL:
        names = {f"{metric.name}{part}" for part in ("", "_bucket", "_sum", "_count")}
        assert set(users(metric)) == {who for who, used in parsed.items() if not names.isdisjoint(used)}, (
            metric
        )


@pytest.mark.parametrize(
    ("name", "expr", "is_named"),
    [
        ("orchestrator_workers", 'sum(orchestrator_workers{job="x"})', True),
        ("orchestrator_workers", "orchestrator_workers_connected", False),
        ("orchestrator_plan_seconds", "rate(orchestrator_plan_seconds_bucket[5m])", True),
        ("orchestrator_plan_seconds", "orchestrator_plan_seconds", False),
        ("orchestrator_groups", "other:orchestrator_groups", False),
    ],
)
def test_metric_is_named_by_its_whole_name_or_a_part_of_its_histogram(
    name: str, expr: str, is_named: bool
) -> None:
    assert named(BY_NAME[name], [expr]) is is_named


def test_docs_list_what_nobody_uses() -> None:
    found = unused()
    assert len(found) < len(ALL)
    text = metrics_text()
    assert f"{len(found)} of {len(ALL)} are in neither" in text
    for metric in ALL:
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{metric.name}` |")]
        assert row.endswith("| neither |") == (metric in found)
