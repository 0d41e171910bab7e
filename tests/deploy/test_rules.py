"""Rules and runbook: what they name exists, every alert has its page, and the real promtool runs their own tests."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from orchestrator.adapters.metrics.catalogue import ALL
from orchestrator.cli.commands import COMMANDS, load
from tests.deploy.promql import (
    ROOT,
    RULES,
    WORDS,
    Rule,
    known_series,
    labels_of,
    metrics_used,
    mistakes,
    parse,
    read_rules,
)

CASES = ROOT / "deploy/rules_tests"
RUNBOOK = ROOT / "docs/runbook.md"

PARTS = ("Means", "At risk", "Look", "Do", "Ignore")
LOOKBACK_MIN = 5
"""Prometheus shows a series for this long after its last sample."""

promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool: `make system` installs it")

ALERTS = [rule for rule in read_rules() if rule.alert]
RECORDED = [rule for rule in read_rules() if rule.record]


def run_promtool(*arguments: str | Path) -> str:
    """What it printed. Fails with that where it is not content."""
    command = ["promtool", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@cache
def cases() -> list[dict[str, Any]]:
    """All tests of the rules' own files."""
    return [
        test for path in sorted(CASES.glob("*.yaml")) for test in yaml.safe_load(path.read_text())["tests"]
    ]


@cache
def anchors() -> dict[str, str]:
    """Sections of the runbook by the anchor that a browser is sent to."""
    found: defaultdict[str, str] = defaultdict(str)
    name = ""
    for line in RUNBOOK.read_text().splitlines():
        if line.startswith("### "):
            name = line.removeprefix("### ").strip().lower()
        elif line.startswith("## "):
            name = ""
        elif name:
            found[name] += line + "\n"
    return dict(found)


@promtool
def test_rule_files_checked_by_promtool_pass() -> None:
    printed = run_promtool("check", "rules", *sorted(RULES.glob("*.yaml")))
    assert sum(int(count) for count in re.findall(r"(\d+) rules found", printed)) == len(read_rules())


@promtool
@pytest.mark.parametrize("path", sorted(CASES.glob("*.yaml")), ids=lambda path: path.stem)
def test_rules_in_their_own_cases_do_as_expected(path: Path) -> None:
    run_promtool("test", "rules", path)


@promtool
def test_case_with_another_outcome_fails(tmp_path: Path) -> None:
    """That promtool reads the rules and the cases at all."""
    text = (CASES / "money.yaml").read_text()
    path = tmp_path / "money.yaml"
    path.write_text(text.replace("../helm", str(CASES.parent / "helm")).replace("0+60x40", "0+30x40"))
    with pytest.raises(AssertionError, match="OrchestratorOutboxAgeing"):
        run_promtool("test", "rules", path)


def test_cases_of_each_alert_have_it_firing_and_silent() -> None:
    firing: Counter[str] = Counter()
    silent: Counter[str] = Counter()
    for test in cases():
        fired = {case["alertname"] for case in test.get("alert_rule_test", []) if case.get("exp_alerts")}
        for case in test.get("alert_rule_test", []):
            firing[case["alertname"]] += bool(case.get("exp_alerts"))
            # Not merely before it fires: a case of its own, in which it never does.
            silent[case["alertname"]] += case["alertname"] not in fired
    names = {rule.alert for rule in ALERTS}
    assert {name for name in names if not firing[name]} == set()
    assert {name for name in names if not silent[name]} == set()
    assert set(firing) == names


def test_cases_of_each_recording_rule_ask_for_its_value() -> None:
    asked = {
        name
        for test in cases()
        for case in test.get("promql_expr_test", [])
        if case.get("exp_samples")
        for name in metrics_used(case["expr"])
    }
    assert {rule.record for rule in RECORDED} - asked == set()


def test_case_names_are_unique() -> None:
    assert [name for name, count in Counter(test["name"] for test in cases()).items() if count > 1] == []


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule.alert)
def test_alert_says_how_bad_it_is_and_what_to_do(rule: Rule) -> None:
    assert re.fullmatch(r"Orchestrator([A-Z][a-z]+)+", rule.alert)
    assert rule.labels == {"severity": rule.labels["severity"]}
    assert rule.labels["severity"] in {"critical", "warning", "info"}
    assert set(rule.annotations) == {"summary", "description", "runbook_url"}
    assert rule.annotations["summary"].endswith(".")
    assert "{{" not in rule.annotations["summary"], "summaries of one alert are grouped by"
    assert rule.annotations["description"].endswith(".")
    anchor = rule.alert.lower()
    assert rule.annotations["runbook_url"] == f"docs/runbook.md#{anchor}"
    section = anchors()[anchor]
    for part in PARTS:
        assert f"**{part}**" in section, f"{rule.alert}: the runbook does not say: {part}"


def test_alert_names_are_unique_and_the_runbook_has_no_others() -> None:
    names = [rule.alert.lower() for rule in ALERTS]
    assert sorted(names) == sorted(anchors())


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule.alert)
def test_alert_description_names_only_labels_that_the_alert_has(rule: Rule) -> None:
    has = labels_of(parse(rule.expr), known_series()) | frozenset(rule.labels)
    named = re.findall(r"\$labels\.(\w+)", rule.annotations["description"])
    assert set(named) - has == set()


@pytest.mark.parametrize("rule", read_rules(), ids=lambda rule: rule.alert or rule.record)
def test_rule_names_only_what_there_is(rule: Rule) -> None:
    assert mistakes(rule.expr, known_series()) == []


def test_recorded_uptime_has_the_labels_that_are_promised() -> None:
    series = known_series()
    for window in ("1h", "24h", "30d"):
        assert series[f"orchestrator:worker_uptime_ratio:{window}"] == {
            "worker",
            "supplier",
            "hardware_class",
        }
        assert series[f"orchestrator:supplier_uptime_ratio:{window}"] == {"supplier"}
        assert series[f"orchestrator:class_uptime_ratio:{window}"] == {"hardware_class"}


def test_groups_of_shown_series_are_evaluated_before_prometheus_forgets_them() -> None:
    for path in sorted(RULES.glob("*.yaml")):
        for group in yaml.safe_load(path.read_text())["groups"]:
            minutes = int(group.get("interval", "1m").removesuffix("m"))
            read_later = group["name"] == "orchestrator-uptime-month"
            assert (minutes < LOOKBACK_MIN) != read_later, f"{path.name}: {group['name']}"


def test_rule_files_have_nothing_for_helm_and_nothing_newer_than_they_may() -> None:
    """They are read as they are, by Prometheus 2.42 too: it knows no later field of a rule or group."""
    for path in sorted(RULES.glob("*.yaml")):
        assert "{{-" not in path.read_text()
        for group in yaml.safe_load(path.read_text())["groups"]:
            assert set(group) <= {"name", "interval", "limit", "rules"}
            for rule in group["rules"]:
                assert set(rule) <= {"record", "alert", "expr", "for", "labels", "annotations"}


def test_runbook_names_only_commands_and_options_that_exist() -> None:
    text = RUNBOOK.read_text()
    found = re.findall(r"`orch ([^`]+)`", text)
    assert len(found) > 20
    for line in found:
        words = line.split()
        assert words[0] in COMMANDS, f"orch {line}"
        command = load(words.pop(0))
        while words and getattr(command, "commands", None) is not None:
            name = words.pop(0)
            assert name in command.commands, f"orch {line}"
            command = command.commands[name]
        options = {option for parameter in command.params for option in parameter.opts}
        for word in words:
            assert not word.startswith("-") or word in options, f"orch {line}"
    served = {option for parameter in load("serve").params for option in parameter.opts}
    for option in re.findall(r"`(--[a-z-]+)`", text):
        assert option in served, option


def test_runbook_queries_name_only_what_there_is() -> None:
    blocks = re.findall(r"```promql\n(.*?)```", RUNBOOK.read_text(), flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line]
    assert len(lines) > 20
    series = known_series()
    assert [(line, found) for line in lines if (found := mistakes(line, series))] == []


def test_runbook_routing_example_is_whole() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", RUNBOOK.read_text(), flags=re.DOTALL)
    routing = yaml.safe_load(block)
    named = {routing["route"]["receiver"], *(route["receiver"] for route in routing["route"]["routes"])}
    assert named == {receiver["name"] for receiver in routing["receivers"]}


def test_runbook_mentions_only_metrics_and_alerts_that_exist() -> None:
    text = RUNBOOK.read_text()
    series = known_series()
    metrics = {name for name in re.findall(r"orchestrator_[a-z_]+", text) if name not in series}
    assert metrics == set()
    alerts = {rule.alert for rule in ALERTS}
    assert {name for name in re.findall(r"\bOrchestrator[A-Z]\w+", text) if name not in alerts} == set()


def parses(expr: str) -> bool:
    try:
        parse(expr)
    except ValueError:
        return False
    return True


def test_words_of_labels_are_of_labels_that_there_are() -> None:
    labels = {(metric.name, label) for metric in ALL for label in metric.labels}
    assert set(WORDS) - labels == {("up", "job")}


@pytest.mark.parametrize(
    ("expr", "expected"),
    [
        ("orchestrator_wrokers", "nothing is named orchestrator_wrokers"),
        ("sum(rate(orchestrator_plan_seconds[5m]))", "nothing is named orchestrator_plan_seconds"),
        ('orchestrator_workers{class="cpu"}', "orchestrator_workers has no label class"),
        ('orchestrator_workers{liveness="dead"}', "orchestrator_workers has no liveness dead"),
        ('orchestrator_workers{liveness=~"live|dead"}', "orchestrator_workers has no liveness dead"),
        ('orchestrator_gpus{hardware_class="gaming"}', "orchestrator_gpus has no hardware_class gaming"),
        ('up{job="orchestrator-worker"}', "up has no job orchestrator-worker"),
        ("sum by (worker) (orchestrator_workers)", "orchestrator_workers has no label worker"),
        ("sum without (zone) (orchestrator_workers)", "orchestrator_workers has no label zone"),
        (
            "orchestrator_device_throttled and on (worker, device) orchestrator_worker_info",
            "orchestrator_worker_info has no label device",
        ),
        ("sum(orchestrator_workers", "it does not parse"),
    ],
)
def test_mistakes_of_an_expression_with_one_are_named(expr: str, expected: str) -> None:
    (found,) = mistakes(expr, known_series())
    assert expected in found


@pytest.mark.parametrize(
    "expr",
    [
        "histogram_quantile(0.9, sum by (le, phase) (rate(orchestrator_formation_seconds_bucket[$__rate_interval])))",
        "sum(increase(orchestrator_preemptions_total[${__range}]))",
        'orchestrator_workers{hardware_class=~"$hardware_class", liveness!="left", instance="x"}',
        'orchestrator_agent_members{worker="wrk_1", phase=~".+"}',
        "max_over_time(orchestrator:class_uptime_ratio:1h[1d:1h])",
        'label_replace(orchestrator_groups, "what", "groups", "", "")',
        "orchestrator_device_throttled * on (worker) group_left (name) orchestrator_worker_info",
        'topk(3, {__name__="orchestrator_groups"})',
    ],
)
def test_mistakes_of_a_right_expression_are_none(expr: str) -> None:
    assert mistakes(expr, known_series()) == []


@pytest.mark.parametrize(
    ("expr", "labels"),
    [
        ("sum(orchestrator_gpus)", set()),
        ("sum by (model) (orchestrator_gpus)", {"model"}),
        ("sum without (instance, job) (orchestrator_gpus)", {"hardware_class", "model", "state"}),
        ("orchestrator_gpus / on (model) group_left () orchestrator_gpus", None),
        ("orchestrator_groups * on (job) orchestrator_gpus", {"job"}),
        ("1 - avg by (job) (up)", {"job"}),
        ('absent(up{job="orchestrator"})', {"job"}),
        ("vector(1)", set()),
        ("topk(2, orchestrator_groups)", {"instance", "job"}),
    ],
)
def test_labels_of_an_expression_are_those_of_its_result(expr: str, labels: set[str] | None) -> None:
    expected = known_series()["orchestrator_gpus"] if labels is None else labels
    assert labels_of(promql_parser.parse(expr), known_series()) == expected
