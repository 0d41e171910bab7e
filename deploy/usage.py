"""Which of the chart's files use a metric: its rules, its dashboards, both, or neither."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from orchestrator.adapters.metrics.catalogue import ALL, Kind, Metric

FILES = Path(__file__).parent / "helm" / "orchestrator" / "files"

NAME = re.compile(r"(?<![\w:])orchestrator_\w+")
"""In an expression; what rules record has a colon before."""

HISTOGRAM_PARTS = ("_bucket", "_sum", "_count")


def expressions(found: Any) -> Iterator[str]:
    """Every ``expr`` in a file of rules or a dashboard."""
    if isinstance(found, list):
        for one in found:
            yield from expressions(one)
    elif isinstance(found, dict):
        if isinstance(found.get("expr"), str):
            yield found["expr"]
        yield from expressions(list(found.values()))


def named(metric: Metric, texts: Iterable[str]) -> bool:
    """Whether one of these expressions names the metric, or a part of it where it is a histogram."""
    parts = HISTOGRAM_PARTS if metric.kind is Kind.HISTOGRAM else ("",)
    names = {f"{metric.name}{part}" for part in parts}
    return any(not names.isdisjoint(NAME.findall(text)) for text in texts)


@cache
def _files() -> dict[str, tuple[str, ...]]:
    """All expressions of each."""
    rules = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in (FILES / "rules").glob("*.yaml")]
    dashboards = [
        json.loads(path.read_text(encoding="utf-8")) for path in (FILES / "dashboards").glob("*.json")
    ]
    return {"rules": tuple(expressions(rules)), "dashboards": tuple(expressions(dashboards))}


def users(metric: Metric) -> tuple[str, ...]:
    """Of ``rules`` and ``dashboards``, those that use it."""
    return tuple(name for name, texts in _files().items() if named(metric, texts))


def unused() -> tuple[Metric, ...]:
    """Those in neither: they are there for whoever asks."""
    return tuple(metric for metric in ALL if not users(metric))
