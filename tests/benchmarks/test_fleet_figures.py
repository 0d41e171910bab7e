"""That the fleet's figures can be taken; never how fast anything is."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from benchmarks import crowd, p7_beats, p7_sessions, p7_storm
from benchmarks.beats_server import Size
from benchmarks.report import FigureError

BEATS = ("-ratio", "-table-ratio", "-paced-ratio", "-table-paced-ratio", "-peer-paced-ratio", "-expiries")


def test_beats_tiny_size_gives_every_case_and_expires_nobody() -> None:
    plan = p7_beats.Plan(Size(workers=50, streams=4), full_speed_s=0.3, paced_s=0.5)
    cases = {case.case: case for case in p7_beats.measure(plan, repetitions=2)}
    assert set(cases) == {f"beats-100k{kind}" for kind in BEATS}
    assert cases["beats-100k-ratio"].n == 2
    assert cases["beats-100k-ratio"].value > 0
    assert cases["beats-100k-expiries"].value == 0


def test_size_shares_name_every_worker_once() -> None:
    size = Size(workers=1_000, streams=7)
    assert [number for stream in range(7) for number in size.share(stream)] == list(range(1_000))


def test_sessions_few_agents_gives_every_case_and_suspects_nobody() -> None:
    cases = {case.case: case for case in p7_sessions.measure(p7_sessions.Plan(5, 0.5, 0.5), repetitions=1)}
    assert set(cases) == {f"sessions-2k-{kind}" for kind in ("memory", "core", "connect", "expiries")}
    assert cases["sessions-2k-expiries"].value == 0


def test_storm_few_agents_are_live_again_after_a_cut_and_after_a_restart() -> None:
    cases = {case.case: case for case in p7_storm.measure(5, repetitions=1, calm_s=0.5)}
    assert set(cases) == {
        *("storm-2k", "storm-2k-commit-p99", "storm-2k-probe-p99"),
        *("storm-2k-restart", "storm-2k-restart-commit-p99"),
    }
    assert cases["storm-2k"].value > 0
    assert cases["storm-2k-restart-commit-p99"].value > 0


def test_prepare_more_agents_than_files_allow_says_what_is_needed(tmp_path: Path) -> None:
    count = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    with pytest.raises(FigureError, match="need ulimit -n"):
        crowd.prepare(tmp_path / "data", count)


def test_quantile_of_two_readings_interpolates_within_the_bucket() -> None:
    before = {0.001: 10.0, 0.002: 10.0, float("inf"): 10.0}
    after = {0.001: 10.0, 0.002: 110.0, float("inf"): 110.0}
    assert crowd.quantile_s(before, after, 0.5) == pytest.approx(0.0015)
    assert crowd.quantile_s({}, before, 0.99) == pytest.approx(0.00099)


def test_quantile_beyond_the_last_bound_is_that_bound() -> None:
    assert crowd.quantile_s({}, {0.001: 0.0, float("inf"): 5.0}, 0.99) == 0.001
