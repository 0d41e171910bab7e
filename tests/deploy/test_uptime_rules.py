"""Recorded uptime beside the truth: a real Prometheus, asked about months of which every second is known."""

from __future__ import annotations

import re
import shutil
from collections import defaultdict
from collections.abc import Iterator

import pytest
import yaml

from deploy.local.prometheus import Prometheus, backfill
from tests.deploy.histories import (
    DAY_S,
    HOUR_S,
    MINUTE_S,
    History,
    Watched,
    flapping,
    open_metrics,
    seconds,
)
from tests.deploy.promql import RULES, read_rules

pytestmark = [
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus: `make system` installs it"),
    pytest.mark.timeout(300),
]

START_S = 1_767_225_600
"""A midnight; time 0 of the histories."""

END_S = 31 * DAY_S
WINDOWS = {"1h": HOUR_S, "24h": DAY_S, "30d": 30 * DAY_S}

DIFFERENCE_MAX = 0.001
SCRAPE_S = 15.0

WATCHED = Watched(
    # The last restart is within the last hour; the one before it in the night, when some are down.
    runs=(
        (0.0, 4.3 * DAY_S),
        (4.3 * DAY_S + 70, 12.1 * DAY_S),
        (12.1 * DAY_S + 45, 26 * DAY_S),
        (26 * DAY_S + 90, END_S - 9 * HOUR_S),
        (END_S - 9 * HOUR_S + 33, END_S - 1500),
        (END_S - 1500 + 21, END_S + DAY_S),
    ),
    # An upgrade of Prometheus, a night without it, and an afternoon of the last day.
    paused=(
        (9.5 * DAY_S, 9.5 * DAY_S + 600),
        (17 * DAY_S, 17 * DAY_S + 7 * HOUR_S),
        (END_S - 14 * HOUR_S, END_S - 11 * HOUR_S),
    ),
    fine_from_s=END_S - 27 * HOUR_S,
    until_s=END_S,
)

ALWAYS = ((0.0, END_S + DAY_S),)


def nights(begin_s: float, end_s: float) -> tuple[tuple[float, float], ...]:
    """Up from seven in the morning to eleven at night."""
    days = range(int(begin_s // DAY_S), int(end_s // DAY_S) + 1)
    return tuple((day * DAY_S + 7 * HOUR_S, day * DAY_S + 23 * HOUR_S) for day in days)


HISTORIES = [
    History("steady", "sup_1", "datacenter", ALWAYS, ALWAYS),
    History("never", "sup_1", "miner", ALWAYS, ()),
    History("nightly", "sup_2", "consumer", ALWAYS, nights(0, END_S)),
    History("flapping", "sup_2", "consumer", ALWAYS, flapping(0, END_S, 3 * HOUR_S, 10 * MINUTE_S, seed=1)),
    History("unsteady", "sup_2", "miner", ALWAYS, flapping(0, END_S, 20 * MINUTE_S, 20 * MINUTE_S, seed=2)),
    History("late", "sup_1", "datacenter", ((20 * DAY_S, END_S + DAY_S),), ((20.01 * DAY_S, END_S),)),
    History(
        "today",
        "sup_3",
        "consumer",
        ((END_S - 10 * HOUR_S, END_S + DAY_S),),
        ((END_S - 10 * HOUR_S, END_S - 4 * HOUR_S), (END_S - 3 * HOUR_S, END_S)),
    ),
    History("new", "sup_4", "apple", ((END_S - 1200, END_S + DAY_S),), ((END_S - 1200, END_S - 240),)),
    History("left", "sup_3", "consumer", ((0.0, 25 * DAY_S),), ((0.0, 5 * DAY_S), (6 * DAY_S, 25 * DAY_S))),
    History(
        "leaving",
        "sup_3",
        "consumer",
        ((0.0, END_S - 16 * HOUR_S),),
        ((0.0, END_S - 21 * HOUR_S), (END_S - 18 * HOUR_S, END_S - 16 * HOUR_S)),
    ),
    History(
        "back",
        "sup_4",
        "apple",
        ((0.0, 8 * DAY_S), (15 * DAY_S, END_S + DAY_S)),
        ((0.0, 7 * DAY_S), (15 * DAY_S, 22 * DAY_S), (23 * DAY_S, END_S + DAY_S)),
    ),
]

INSTANTS_S = {
    "on a scrape": END_S - 8,
    "between two": END_S - 2,
    "hours before": END_S - 5 * HOUR_S + 3,
    "after the pause": END_S - 9.9 * HOUR_S,
    "the day before": END_S - 23 * HOUR_S + 1,
}


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("prometheus")
    backfill(folder, open_metrics(HISTORIES, WATCHED, START_S))
    with Prometheus(folder, {}) as prometheus:
        yield prometheus


def spelt_out(name: str) -> str:
    """A rule's expression in terms of scraped series alone: what the recorded series would hold at that instant.

    Ranges over a recorded series become subqueries in steps of its group, which is when it would have been recorded.
    """
    rule = next(rule for rule in read_rules() if rule.record == name)

    def replaced(found: re.Match[str]) -> str:
        inner = f"({spelt_out(found[1])})"
        return f"{inner}[{found[2]}:{interval_of(found[1])}]" if found[2] else inner

    return re.sub(r"(orchestrator:[\w:]+)(?:\[(\w+)\])?", replaced, rule.expr)


def interval_of(name: str) -> str:
    for group in yaml.safe_load((RULES / "uptime.yaml").read_text())["groups"]:
        if any(rule["record"] == name for rule in group["rules"]):
            return str(group["interval"])
    raise AssertionError(name)


def truths(label: str, at_s: float, window_s: float) -> dict[str, tuple[float, float]]:
    """(expected, up) seconds by a label's value; nothing of what was never expected in the window."""
    sums: defaultdict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    for history in HISTORIES:
        expected_s, up_s = seconds(history, WATCHED, max(0.0, at_s - window_s), at_s)
        before = sums[getattr(history, label)]
        sums[getattr(history, label)] = (before[0] + expected_s, before[1] + up_s)
    return {value: sums[value] for value in sums if sums[value][0] > 0}


@pytest.mark.parametrize("when", INSTANTS_S)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(
    ("level", "label"), [("worker", "worker"), ("supplier", "supplier"), ("class", "hardware_class")]
)
def test_recorded_uptime_beside_the_truth_differs_by_a_thousandth_at_most(
    prometheus: Prometheus, level: str, label: str, window: str, when: str
) -> None:
    at_s = INSTANTS_S[when]
    asked = prometheus.at(spelt_out(f"orchestrator:{level}_uptime_ratio:{window}"), START_S + at_s)
    found = {one["metric"][label]: float(one["value"][1]) for one in asked}
    assert len(found) == len(asked)
    expected = truths(label, at_s, WINDOWS[window])
    assert set(found) == set(expected)
    for name, (expected_s, up_s) in expected.items():
        # What happened since the newest sample, Prometheus cannot know.
        unseen = SCRAPE_S / expected_s
        assert abs(found[name] - up_s / expected_s) <= max(DIFFERENCE_MAX, unseen), name
        assert 0 <= found[name] <= 1
