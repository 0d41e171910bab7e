"""When an owner's use takes his machine back, and when it is offered again."""

from __future__ import annotations

import pytest

from orchestrator.core.idle import (
    BUSY_RATIO,
    BUSY_SAMPLES_MIN,
    IDLE_MS_MIN,
    IDLE_RATIO,
    Change,
    UseHistory,
    judge,
)

STEP_MS = 5_000


def play(ratios: list[float], *, busy: bool, step_ms: int = STEP_MS) -> list[Change]:
    """What each sample of a use comes to; whoever judges acts on every change."""
    history, changes = UseHistory(), []
    for number, ratio in enumerate(ratios):
        history, change = judge(history, ratio, number * step_ms, busy=busy)
        busy = {Change.RISEN: True, Change.FALLEN: False, Change.NONE: busy}[change]
        changes.append(change)
    return changes


def test_use_that_stays_takes_the_machine_back_once() -> None:
    changes = play([BUSY_RATIO] * (BUSY_SAMPLES_MIN + 20), busy=False)
    assert changes.count(Change.RISEN) == 1
    assert changes.index(Change.RISEN) == BUSY_SAMPLES_MIN - 1
    assert Change.FALLEN not in changes


def test_peaks_take_nothing_back() -> None:
    peaks = ([1.0] * (BUSY_SAMPLES_MIN - 1) + [0.0]) * 20
    assert set(play(peaks, busy=False)) == {Change.NONE}


def test_machine_is_offered_again_after_a_whole_pause_and_not_before() -> None:
    looks = IDLE_MS_MIN // STEP_MS
    changes = play([0.0] * (looks + 3), busy=True)
    assert changes.index(Change.FALLEN) == looks
    assert changes.count(Change.FALLEN) == 1


@pytest.mark.parametrize("ratio", [IDLE_RATIO, (IDLE_RATIO + BUSY_RATIO) / 2])
def test_use_between_the_bounds_changes_nothing_either_way(ratio: float) -> None:
    assert set(play([ratio] * 200, busy=True)) == {Change.NONE}
    assert set(play([ratio] * 200, busy=False)) == {Change.NONE}


def test_pause_that_is_interrupted_begins_anew() -> None:
    looks = IDLE_MS_MIN // STEP_MS
    changes = play([0.0] * looks + [IDLE_RATIO] + [0.0] * looks, busy=True)
    assert Change.FALLEN not in changes
