from __future__ import annotations

import itertools
import math
import random
import re
from dataclasses import replace
from typing import Any

import pytest

from deploy.dashboards import build
from deploy.dashboards.model import OUTAGE_S, Fleet
from deploy.dashboards.model_machines import joined
from deploy.dashboards.panels import DASHBOARDS
from deploy.dashboards.series import Sample
from tests.deploy.dashboards import NAMES, filled, panels, queries, read, series, shown_labels
from tests.deploy.promql import metrics_used, read_rules

ANY = {
    "hardware_class": ".*",
    "supplier": ".*",
    "ray_io_cluster": ".*",
    "__rate_interval": "1m",
    "__range": "6h",
}


def test_dashboards_in_the_chart_are_what_the_source_makes() -> None:
    held = {path.name: path.read_text(encoding="utf-8") for path in build.FOLDER.glob("*.json")}
    assert held == build.built(), "run make dashboards"
    assert sorted(held) == [f"{name}.json" for name in NAMES]


def test_dashboards_are_found_by_fixed_uids_and_lead_to_each_other() -> None:
    assert {read(name)["uid"]: read(name)["title"] for name in NAMES} == DASHBOARDS
    for name in NAMES:
        made = read(name)
        linked = {link["url"].removeprefix("/d/") for link in made["links"]}
        assert linked == set(DASHBOARDS) - {made["uid"]}
        assert all(link["keepTime"] and link["includeVars"] for link in made["links"])


@pytest.mark.parametrize("name", NAMES)
def test_queries_name_only_metrics_and_labels_that_there_are(name: str) -> None:
    for query in queries(name):
        labels = shown_labels(filled(query.expr, ANY))
        legend = set(re.findall(r"\{\{(\w+)\}\}", query.legend))
        assert legend <= labels, f"{query} is named by {sorted(legend - labels)}, which it does not answer"


@pytest.mark.parametrize("name", NAMES)
def test_tables_show_only_labels_that_their_queries_answer(name: str) -> None:
    for panel in panels(name):
        if panel["type"] == "table":
            answered = [shown_labels(filled(target["expr"], ANY)) for target in panel["targets"]]
            chosen = next(step for step in panel["transformations"] if step["id"] == "filterFieldsByName")
            shown = {
                field for field in chosen["options"]["include"]["names"] if not field.startswith("Value")
            }
            assert shown <= frozenset().union(*answered), panel["title"]
            assert frozenset.intersection(*answered), f"{panel['title']}: nothing joins its columns"


@pytest.mark.parametrize("name", NAMES)
def test_variables_take_their_values_from_labels_that_there_are(name: str) -> None:
    used = {word for query in queries(name) for word in re.findall(r"\$\{?([a-z]\w*)", query.expr)}
    offered = {variable["name"]: variable for variable in read(name)["templating"]["list"]}
    assert used == set(offered) - {"datasource"}
    for variable in used:
        metric, label = re.findall(r"label_values\((\w+), (\w+)\)", offered[variable]["query"]["query"])[0]
        assert label == variable
        assert label in series()[metric]


@pytest.mark.parametrize(
    ("expr", "word"),
    [
        ("sum(orchestrator_wrokers)", "nothing is named orchestrator_wrokers"),
        ('orchestrator_workers{livenes="live"}', "no label livenes"),
        ('orchestrator_workers{liveness="alive"}', "no liveness alive"),
        ("sum by (device) (orchestrator_workers)", "no label device"),
        ("orchestrator_loop_events_total", "a counter: take its rate"),
        ("rate(orchestrator_workers[5m])", "it has no rate"),
        ("sum(rate(orchestrator_plan_seconds[5m]))", "nothing is named orchestrator_plan_seconds"),
        ("orchestrator_groups * on (group) group_left orchestrator_group_loss_ratio", "no label group"),
    ],
)
def test_checker_query_with_a_mistake_is_refused(expr: str, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        shown_labels(expr)


@pytest.mark.parametrize("name", NAMES)
def test_panels_say_what_they_are_and_what_to_do(name: str) -> None:
    ids = [panel["id"] for panel in read(name)["panels"]]
    assert len(ids) == len(set(ids))
    for panel in panels(name):
        defaults = panel["fieldConfig"]["defaults"]
        title = f"{name} / {panel['title']}"
        assert panel["title"], f"panel {panel['id']} has no title"
        assert len(re.findall(r"[.:?](?: |$)", panel["description"])) >= 2, f"{title}: {panel['description']}"
        assert defaults["unit"], title
        assert len(defaults["noValue"]) > 4, title
        assert defaults["thresholds"]["steps"], title
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}, title
        assert panel["datasource"]["uid"] == "${datasource}", title


@pytest.mark.parametrize("name", NAMES)
def test_panels_fill_the_grid_and_none_lies_over_another(name: str) -> None:
    spots: dict[tuple[int, int], str] = {}
    for panel in read(name)["panels"]:
        place = panel["gridPos"]
        x, y = place.get("x", 0), place.get("y", 0)
        assert x + place["w"] <= 24
        for spot in itertools.product(range(x, x + place["w"]), range(y, y + place["h"])):
            assert spot not in spots, f"{panel['title']} lies over {spots[spot]}"
            spots[spot] = panel["title"]


@pytest.mark.parametrize("name", NAMES)
def test_dashboards_begin_with_five_figures(name: str) -> None:
    heading, *first = read(name)["panels"][:6]
    assert heading["type"] == "row"
    assert [panel["type"] for panel in first] == ["stat"] * 5
    assert {panel["gridPos"]["y"] for panel in first} == {1}


CERTIFICATES = ("authority", "gateway", "overlay", "session")


def limits_s(alert: str, metric: str) -> dict[str, float]:
    """Below how many seconds an alert's rule is about a certificate, by its kind; of a metric without kinds: by ''."""
    (expr,) = (rule.expr for rule in read_rules() if rule.alert == alert)
    found: dict[str, float] = {}
    for sign, which, product in re.findall(
        rf'{metric}(?:\{{certificate(=~|=|!=)"([^"]+)"\}})? < ([\d *]+)', expr
    ):
        chosen = [kind for kind in CERTIFICATES if bool(re.fullmatch(which, kind)) == (sign != "!=")]
        found |= dict.fromkeys(chosen if sign else [""], float(math.prod(map(int, product.split("*")))))
    return found


def coloured_s(panel: dict[str, Any], target: dict[str, Any]) -> list[tuple[str, float | None]]:
    """Colours of what a query shows and the seconds from which each counts; one colour only: nothing is bad."""
    config = panel["fieldConfig"]
    steps = config["defaults"]["thresholds"]["steps"]
    names = {target["legendFormat"], *({"Left"} if panel["type"] == "table" else ())}
    for override in config["overrides"]:
        looks = {look["id"]: look["value"] for look in override["properties"]}
        if override["matcher"]["options"] in names and "thresholds" in looks:
            steps = looks["thresholds"]["steps"]
    return [(step["color"], step.get("value")) for step in steps]


def test_panels_of_the_networks_certificates_have_the_colours_of_their_alerts() -> None:
    metric = "orchestrator_certificate_remaining_seconds"
    warning = limits_s("OrchestratorCertificateExpiring", metric)
    critical = limits_s("OrchestratorCertificateExpiresSoon", metric)
    assert sorted(warning) == sorted(critical) == sorted(CERTIFICATES)
    coloured: list[str] = []
    for panel in panels("control-plane"):
        for target in panel["targets"]:
            if metric not in target["expr"]:
                continue
            steps = coloured_s(panel, target)
            if len(steps) == 1:
                assert steps[0][0] not in {"green", "yellow", "red"}, panel["title"]
                continue
            matcher = re.search(r'certificate=~"([^"]+)"', target["expr"])
            for kind in CERTIFICATES:
                if matcher is None or re.fullmatch(matcher[1], kind):
                    coloured.append(kind)
                    wanted = [("red", None), ("yellow", critical[kind]), ("green", warning[kind])]
                    assert steps == wanted, f"{panel['title']}: {kind}"
    assert sorted(coloured) == sorted(CERTIFICATES)


def test_panel_of_workers_certificates_is_green_only_above_its_alert() -> None:
    metric = "orchestrator_worker_certificate_remaining_seconds"
    limit_s = limits_s("OrchestratorRenewalsFailing", metric)[""]
    shown = [
        coloured_s(panel, target)
        for panel in panels("control-plane")
        for target in panel["targets"]
        if metric in target["expr"]
    ]
    assert [steps[-1] for steps in shown] == [("green", limit_s)]


def test_model_certificates_are_renewed_before_an_alert_is_about_them() -> None:
    metric = "orchestrator_certificate_remaining_seconds"
    limits = limits_s("OrchestratorCertificateExpiring", metric)
    fleet = Fleet()
    for hour in range(4 * 24):
        fleet.step(3_600)
        shown = {
            dict(sample.labels)["certificate"]: sample.value
            for sample in fleet.network(hour * 3_600)
            if sample.name == metric
        }
        assert shown.keys() == limits.keys()
        assert all(shown[kind] >= limits[kind] for kind in limits), shown


LOOKBACK_S = 300
"""Prometheus shows a series for this long after its last sample, unless it is told that it ended."""


def test_model_states_add_up_to_the_fleet_whatever_fell_silent() -> None:
    stacked = {
        name
        for dashboard in NAMES
        for panel in panels(dashboard)
        if panel["fieldConfig"]["defaults"].get("custom", {}).get("stacking", {}).get("mode") == "normal"
        for target in panel["targets"]
        for name in metrics_used(target["expr"])
    }
    wholes = {"orchestrator_workers", "orchestrator_gpus"}
    assert wholes < stacked
    fleet, step_s = Fleet(), 60
    seen: dict[Sample, int] = {}
    sums: dict[str, set[float]] = {name: set() for name in wholes}
    for at_s in range(0, int(OUTAGE_S[1]) + LOOKBACK_S, step_s):
        fleet.step(step_s)
        shown = {replace(one, value=0.0): one.value for one in fleet.network(at_s) if one.name in stacked}
        gone = [one for one, last_s in seen.items() if one not in shown and at_s - last_s <= LOOKBACK_S]
        assert not gone, f"at {at_s} s Prometheus adds what is gone: {gone}"
        seen |= dict.fromkeys(shown, at_s)
        for name in wholes:
            sums[name].add(sum(value for one, value in shown.items() if one.name == name))
    workers = list(joined(random.Random(7)))
    assert sums["orchestrator_workers"] == {float(len(workers))}
    assert sums["orchestrator_gpus"] == {float(sum(worker.gpus for worker in workers))}
