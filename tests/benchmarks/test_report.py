"""What a figure says, and that the durable path's figure can be taken; never how fast anything is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import metrics_scrape, p4_durable
from benchmarks.__main__ import FIGURES, figure_module
from benchmarks.cold_network import stages_of
from benchmarks.report import KEYS, Case, Target, compared
from benchmarks.stats import median, paired_difference_interval, paired_ratio_interval, percentile
from orchestrator.core import messages as m
from orchestrator.core.clusters import ClusterPhase, NodeAddress
from orchestrator.core.ids import ClusterId, MemberId

ROOT = Path(__file__).resolve().parents[2]
JSON_KEYS = ["figure", "case", "value", "peer", "ratio", "target", "unit", "n", "min", "max"]


def sample(target: Target | None = None) -> Case:
    return compared("P0", "one", "s", [1.0, 2.0, 3.0], [2.0, 4.0, 6.0], target)


def test_json_line_any_case_has_exactly_the_keys_in_order() -> None:
    read = json.loads(sample(Target(1.1, "<=", "ratio")).json_line())
    assert list(read) == JSON_KEYS == list(KEYS)
    assert read == {
        "figure": "P0",
        "case": "one",
        "value": 2.0,
        "peer": 4.0,
        "ratio": 0.5,
        "target": 1.1,
        "unit": "s",
        "n": 3,
        "min": 1.0,
        "max": 3.0,
    }


def test_json_line_without_peer_and_target_says_null() -> None:
    read = json.loads(Case("P0", "alone", 61.5, "s", 1, 61.5, 61.5).json_line())
    assert (read["peer"], read["ratio"], read["target"]) == (None, None, None)


@pytest.mark.parametrize(
    ("target", "met"),
    [
        (None, None),
        (Target(0.5, ">=", "ratio"), True),
        (Target(0.6, ">=", "ratio"), False),
        (Target(2.0, "<=", "value"), True),
        (Target(1.9, "<=", "value"), False),
    ],
)
def test_met_each_target_looks_at_its_own_number(target: Target | None, *, met: bool | None) -> None:
    assert sample(target).met is met


def test_met_ratio_without_peer_is_missed() -> None:
    assert Case("P0", "alone", 1.0, "s", 1, 1.0, 1.0, target=Target(1.0, "<=", "ratio")).met is False


def test_percentile_known_values_interpolates() -> None:
    values = [4.0, 1.0, 3.0, 2.0]
    assert median(values) == 2.5
    assert (percentile(values, 0.0), percentile(values, 1.0)) == (1.0, 4.0)
    assert percentile(values, 0.99) == pytest.approx(3.97)


def test_percentile_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing was measured"):
        percentile([], 0.5)


def test_paired_interval_constant_ratio_is_a_point() -> None:
    peer = [1.0, 5.0, 2.0, 9.0, 3.0]
    interval = paired_ratio_interval([2 * one for one in peer], peer)
    assert (interval.low, interval.high) == (2.0, 2.0)


def test_paired_interval_common_noise_cancels_in_differences() -> None:
    peer = [1.0, 50.0, 3.0, 20.0, 7.0]
    interval = paired_difference_interval([one + 4.0 for one in peer], peer)
    assert (interval.low, interval.high) == (4.0, 4.0)


def test_paired_interval_noisy_pairs_holds_the_median_ratio_and_repeats_itself() -> None:
    ours, peer = [1.0, 1.2, 1.1, 1.4, 0.9, 1.3], [1.0, 1.0, 1.1, 0.9, 1.0, 1.2]
    interval = paired_ratio_interval(ours, peer)
    assert interval.low < median(ours) / median(peer) < interval.high
    assert interval == paired_ratio_interval(ours, peer)


def test_paired_interval_unequal_sides_are_refused() -> None:
    with pytest.raises(ValueError, match="pairs are needed"):
        paired_ratio_interval([1.0, 2.0], [1.0])


def test_registry_lists_every_figure_with_a_module_that_measures() -> None:
    assert list(FIGURES) == [
        *("P1", "P2", "P3", "P4", "P5", "P7-BEATS", "P7-SESSIONS", "P7-STORM"),
        *("P8-LATENCY", "P8-GANGS", "P9", "FAIRNESS"),
        *("P11", "RUNTIME", "METRICS", "HOSTILE", "DEMO"),
    ]
    assert all(callable(figure_module(name).measure) for name in FIGURES)


def test_main_unknown_figure_names_those_there_are() -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "benchmarks", "P99"],
        cwd=ROOT,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 2
    assert f"no figure P99; there are {', '.join(FIGURES)}" in answer.stderr


def test_p4_tiny_size_gives_every_case() -> None:
    size = p4_durable.Size(workers=200, submitters=4, submissions=60, gangs=20)
    cases = p4_durable.measure(size, repetitions=2)
    names = [case.case for case in cases]
    kinds = ["", "-ratio", "-p99", "-cpu"]
    single = [f"durable{delay}{kind}" for delay in ("", "-5ms") for kind in kinds]
    assert names == [*single, "durable-bundles", "durable-bundles-cpu"]
    assert all(case.n == 2 and case.low <= case.value <= case.high for case in cases)
    assert all(case.peer is not None and case.peer > 0 for case in cases)


def test_metrics_tiny_size_gives_every_case() -> None:
    size = metrics_scrape.Size(
        workers=200, scrapes=2, pairs=1, submissions=60, storms=1, storm_submissions=40
    )
    cases = {case.case: case for case in metrics_scrape.measure(size)}
    scrape = {"scrape", "scrape-network", "scrape-core", "series"}
    assert set(cases) == {*scrape, "overhead-share", "overhead-cpu", "overhead-rate", "storm-p99"}
    assert cases["series"].value > 200
    assert 0 < cases["overhead-share"].value < 100


def test_stages_of_a_formation_the_last_member_up_counts() -> None:
    address = NodeAddress("127.0.0.2", "", "host", "")
    cluster_id = ClusterId("cl_1")
    events: list[tuple[float, m.Event]] = [
        (1.0, m.ClusterAdvanced(cluster_id, ClusterPhase.STARTING_HEAD)),
        (2.0, m.MemberUp(MemberId("cl_1-0"), address)),
        (2.0, m.ClusterAdvanced(cluster_id, ClusterPhase.JOINING)),
        (3.0, m.MemberUp(MemberId("cl_1-1"), address)),
        (4.0, m.MemberUp(MemberId("cl_1-2"), address)),
        (5.0, m.ClusterClosed(cluster_id)),
    ]
    assert stages_of(events) == {"prepared": 1.0, "head up": 2.0, "members up": 4.0}
