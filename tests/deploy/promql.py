"""What an expression of PromQL names, held against what there is: for the tests of rules and of dashboards."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, reduce
from pathlib import Path
from types import MappingProxyType

import promql_parser as promql
import yaml

from orchestrator.adapters.metrics.catalogue import AGENT, ALL, Kind
from orchestrator.core.clusters import ClusterPhase
from orchestrator.core.errors import RefusalCode
from orchestrator.core.jobs import JobStatus, Outcome
from orchestrator.core.supply.fleet import HardwareClass, Liveness
from orchestrator.core.supply.health import FaultKind
from orchestrator.core.supply.holds import HoldKind
from orchestrator.core.tenancy.reservations import ReservationPhase

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy/helm/orchestrator/files/rules"

TARGET_LABELS = frozenset({"job", "instance"})
"""What Prometheus itself writes beside each series."""

AGENT_TARGET_LABELS = TARGET_LABELS | {"worker", "supplier", "hardware_class", "group"}
"""The same of an agent's series, and of `up`: service discovery names whose they are."""

RAY_TARGET_LABELS = AGENT_TARGET_LABELS | {"cluster", "ray_io_cluster"}

JOBS = frozenset({"orchestrator", "orchestrator-workers", "orchestrator-agents", "orchestrator-ray"})

HISTOGRAM_SUFFIXES = {"_bucket": frozenset({"le"}), "_sum": frozenset[str](), "_count": frozenset[str]()}

WORDS: dict[tuple[str, str], frozenset[str]] = {
    ("orchestrator_workers", "liveness"): frozenset(Liveness),
    ("orchestrator_worker_transitions_total", "liveness"): frozenset(Liveness),
    ("orchestrator_worker_holds", "kind"): frozenset(HoldKind),
    ("orchestrator_device_faults_total", "kind"): frozenset(FaultKind),
    ("orchestrator_gpus", "state"): frozenset({"free", "leased", "reserved", "held", "unreachable"}),
    ("orchestrator_leases", "state"): frozenset({"open", "closing", "settled"}),
    ("orchestrator_group_rtt_seconds", "stat"): frozenset({"median", "longest"}),
    ("orchestrator_jobs", "status"): frozenset(JobStatus),
    ("orchestrator_jobs_finished_total", "status"): frozenset(JobStatus),
    ("orchestrator_plan_placements_total", "kind"): frozenset({"new", "warm", "replacement"}),
    ("orchestrator_reservations", "phase"): frozenset(ReservationPhase),
    ("orchestrator_clusters", "phase"): frozenset(ClusterPhase),
    ("orchestrator_formation_seconds", "phase"): frozenset(
        {"preparing", "starting_head", "joining", "total"}
    ),
    ("orchestrator_formations_total", "outcome"): frozenset({"ready", "failed"}),
    ("orchestrator_attempts_total", "outcome"): frozenset(Outcome),
    ("orchestrator_refusals_total", "code"): frozenset(RefusalCode),
    ("orchestrator_receipts_total", "state"): frozenset({"sealed", "signed", "posted"}),
    ("orchestrator_overlay_tunnels", "way"): frozenset({"direct", "relayed", "bridged"}),
    ("orchestrator_relay_bytes_total", "direction"): frozenset({"in", "out"}),
    ("orchestrator_certificate_remaining_seconds", "certificate"): frozenset(
        {"authority", "session", "gateway", "overlay"}
    ),
    ("orchestrator_scrapes_total", "target"): frozenset({"agent", "ray"}),
    ("orchestrator_scrapes_total", "outcome"): frozenset({"ok", "refused", "timeout", "away", "too_large"}),
    ("up", "job"): JOBS,
}
"""Values that a label may take. A matcher that names another one finds nothing, and nobody would notice."""

ALTERNATIVES = re.compile(r"[\w.-]+(?:\|[\w.-]+)*")
"""A regular expression that only lists values."""

VARIABLE = re.compile(r"\[\$\{?\w+\}?(?=[]:])")
"""A range that a dashboard fills in."""

SCALAR_FUNCTIONS = frozenset({"vector", "scalar", "time", "pi"})


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a file, as it is written there."""

    file: str
    group: str
    record: str
    """Empty of an alert."""
    alert: str
    expr: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    hold: str
    """How long it must hold (`for`), as written; empty: not at all."""


@cache
def read_rules(folder: Path = RULES) -> tuple[Rule, ...]:
    """All rules of a folder, in the order of its files."""
    return tuple(
        Rule(
            path.name,
            group["name"],
            rule.get("record", ""),
            rule.get("alert", ""),
            rule["expr"],
            rule.get("labels", {}),
            rule.get("annotations", {}),
            rule.get("for", ""),
        )
        for path in sorted(folder.glob("*.yaml"))
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
    )


def parse(expr: str) -> promql.Expr:
    """The expression, with a range that a dashboard fills in read as five minutes. Raises ValueError."""
    return promql.parse(VARIABLE.sub("[5m", expr))


def metrics_used(expr: str) -> frozenset[str]:
    """Names of the series that an expression selects: of a histogram with their suffix."""
    return frozenset(name for name, _ in _selectors(parse(expr)))


def catalogue_series() -> dict[str, frozenset[str]]:
    """Series by name that the code shows, and `up`, each with the labels that it has in Prometheus."""
    found = {"up": RAY_TARGET_LABELS}
    for metric in ALL:
        labels = frozenset(metric.labels) | (AGENT_TARGET_LABELS if metric in AGENT else TARGET_LABELS)
        if metric.kind is Kind.HISTOGRAM:
            found |= {metric.name + suffix: labels | more for suffix, more in HISTOGRAM_SUFFIXES.items()}
        else:
            found[metric.name] = labels
    return found


@cache
def known_series() -> Mapping[str, frozenset[str]]:
    """The same, and what the rules record."""
    found = catalogue_series()
    recorded = [rule for rule in read_rules() if rule.record]
    # A rule may read what a later one records: as often as there are rules is always enough.
    for _ in recorded:
        before = dict(found)
        for rule in recorded:
            found[rule.record] = labels_of(parse(rule.expr), found) | frozenset(rule.labels)
        if found == before:
            break
    return MappingProxyType(found)


def mistakes(expr: str, series: Mapping[str, frozenset[str]]) -> list[str]:
    """What is wrong with an expression, in words: names, labels and values that are not there. Empty: nothing."""
    try:
        tree = parse(expr)
    except ValueError as error:
        return [f"it does not parse: {error}"]
    found = []
    for name, matchers in _selectors(tree):
        if name not in series:
            found.append(f"nothing is named {name}")
            continue
        for label, operator, value in matchers:
            if label not in series[name]:
                found.append(f"{name} has no label {label}")
            found += _wrong_values(name, label, operator, value)
    if not found:
        found += _wrong_groupings(tree, series)
    return found


def labels_of(expr: promql.Expr, series: Mapping[str, frozenset[str]]) -> frozenset[str]:
    """Labels that the result of an expression has."""
    match expr:
        case promql.VectorSelector():
            return series.get(expr.name or "", frozenset())
        case promql.MatrixSelector():
            return labels_of(expr.vector_selector, series)
        case promql.ParenExpr() | promql.UnaryExpr() | promql.SubqueryExpr():
            return labels_of(expr.expr, series)
        case promql.AggregateExpr():
            return _aggregated(expr, series)
        case promql.Call():
            return _called(expr, series)
        case promql.BinaryExpr():
            return _combined(expr, series)
        case _:
            return frozenset()


def _aggregated(expr: promql.AggregateExpr, series: Mapping[str, frozenset[str]]) -> frozenset[str]:
    inner = labels_of(expr.expr, series)
    if str(expr.op) in {"topk", "bottomk"}:
        return inner
    if expr.modifier is None:
        return frozenset()
    named = frozenset(expr.modifier.labels)
    return named if expr.modifier.type == promql.AggModifierType.By else inner - named


def _called(expr: promql.Call, series: Mapping[str, frozenset[str]]) -> frozenset[str]:
    name = expr.func.name
    if name in SCALAR_FUNCTIONS:
        return frozenset()
    inner = reduce(frozenset.union, (labels_of(one, series) for one in expr.args), frozenset[str]())
    match name:
        case "absent" | "absent_over_time":
            return frozenset(label for _, found in _selectors(expr) for label, op, _ in found if op == "=")
        case "histogram_quantile":
            return inner - {"le"}
        case "label_replace" | "label_join":
            return inner | {str(expr.args[1].val)}
        case _:
            return inner


def _combined(expr: promql.BinaryExpr, series: Mapping[str, frozenset[str]]) -> frozenset[str]:
    left, right = labels_of(expr.lhs, series), labels_of(expr.rhs, series)
    if str(expr.op) == "or":
        return left | right
    if str(expr.op) in {"and", "unless"} or expr.modifier is None:
        return left or right
    grouped = frozenset(expr.modifier.group_labels or ())
    matching = expr.modifier.matching
    match str(expr.modifier.card):
        case card if "ManyToOne" in card:
            return left | grouped
        case card if "OneToMany" in card:
            return right | grouped
        case _ if matching is None:
            return left or right
        case _ if matching.type == promql.LabelModifierType.Include:
            return frozenset(matching.labels)
        case _:
            return left - frozenset(matching.labels)


def _wrong_groupings(tree: promql.Expr, series: Mapping[str, frozenset[str]]) -> list[str]:
    """Labels that are grouped or matched by, and which no series there has."""
    found: list[str] = []

    def visit(one: promql.Expr) -> None:
        if isinstance(one, promql.AggregateExpr) and one.modifier is not None:
            missing = frozenset(one.modifier.labels) - labels_of(one.expr, series)
            found.extend(f"{one.expr.prettify().strip()} has no label {label}" for label in sorted(missing))
        if isinstance(one, promql.BinaryExpr) and one.modifier is not None:
            matching = one.modifier.matching
            labels = frozenset(matching.labels if matching is not None else ())
            for side in (one.lhs, one.rhs):
                missing = labels - labels_of(side, series)
                found.extend(f"{side.prettify().strip()} has no label {label}" for label in sorted(missing))

    promql.walk(tree, visit)
    return found


def _wrong_values(name: str, label: str, operator: str, value: str) -> list[str]:
    words = WORDS.get((_metric(name), label)) or (
        frozenset(HardwareClass) if label == "hardware_class" else None
    )
    # What a dashboard fills in, and patterns that are no lists, cannot be judged here.
    if words is None or "$" in value or not value:
        return []
    if operator in {"=~", "!~"} and ALTERNATIVES.fullmatch(value) is None:
        return []
    values = value.split("|") if operator in {"=~", "!~"} else [value]
    return [f"{name} has no {label} {one}" for one in values if one not in words and "." not in one]


def _metric(name: str) -> str:
    """The catalogue's name of a series: a histogram's without suffix."""
    histograms = {metric.name for metric in ALL if metric.kind is Kind.HISTOGRAM}
    for suffix in HISTOGRAM_SUFFIXES:
        if name.endswith(suffix) and name.removesuffix(suffix) in histograms:
            return name.removesuffix(suffix)
    return name


def _selectors(tree: promql.Expr) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """(name, [(label, operator, value)]) of each selector."""
    found: list[tuple[str, list[tuple[str, str, str]]]] = []

    def visit(one: promql.Expr) -> None:
        if isinstance(one, promql.VectorSelector):
            matchers = [(m.name, OPERATORS[str(m.op)], m.value) for m in one.matchers.matchers]
            named = [value for label, operator, value in matchers if (label, operator) == ("__name__", "=")]
            name = one.name or (named[0] if named else "")
            found.append((name, [one for one in matchers if one[0] != "__name__"]))

    promql.walk(tree, visit)
    yield from found


OPERATORS = {"MatchOp.Equal": "=", "MatchOp.NotEqual": "!=", "MatchOp.Re": "=~", "MatchOp.NotRe": "!~"}
