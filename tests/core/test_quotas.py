"""What a tenant may hold, use and spend, and the sentence that refuses."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.errors import RefusedError
from orchestrator.core.tenancy.quotas import (
    GPU_MS_MAX,
    GPUS_MAX,
    MICROCREDITS_MAX,
    UNLIMITED,
    Month,
    MonthUse,
    Quota,
    QuotaRequest,
    Standing,
    after_spending,
    after_use,
    check_quota,
    in_month_of,
    month_of,
    never,
    refusal,
)

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
NOVEMBER = Month(2026, 11)
NOTHING_YET = Standing(NOVEMBER)


def at(year: int, month: int, day: int, hour: int = 0, minute: int = 0, second: int = 0) -> int:
    return int(datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp()) * 1_000


# ---------------------------------------------------------------- months


def test_month_of_an_instant_is_utc_and_its_end_is_the_next_ones_beginning() -> None:
    assert month_of(at(2026, 11, 30, 23, 59, 59) + 999) == NOVEMBER
    assert month_of(at(2026, 12, 1)) == Month(2026, 12)
    assert NOVEMBER.end_ms - NOVEMBER.start_ms == 30 * DAY_MS
    assert Month(2026, 12).next == Month(2027, 1)
    assert Month(2028, 2).end_ms - Month(2028, 2).start_ms == 29 * DAY_MS
    assert str(NOVEMBER) == "2026-11"


@given(at_ms=st.integers(0, 200 * 366 * DAY_MS))
def test_month_of_any_instant_holds_it(at_ms: int) -> None:
    month = month_of(at_ms)
    assert month.start_ms <= at_ms < month.end_ms


@pytest.mark.parametrize("at_ms", [-1, 10**15])
def test_month_of_no_time_is_refused(at_ms: int) -> None:
    with pytest.raises(RefusedError, match="machine's clock"):
        month_of(at_ms)


def test_use_across_the_end_of_a_month_counts_what_lies_in_the_new_one() -> None:
    use = MonthUse(NOVEMBER, gpu_ms=7, microcredits=9)
    edge_ms = at(2026, 12, 1)
    assert after_use(use, 4, edge_ms - 2 * HOUR_MS, edge_ms) == MonthUse(NOVEMBER, 7 + 8 * HOUR_MS, 9)
    assert after_use(use, 4, edge_ms - 2 * HOUR_MS, edge_ms + HOUR_MS) == MonthUse(
        Month(2026, 12), 4 * HOUR_MS
    )


def test_use_and_spending_of_a_month_already_past_change_nothing_of_this_one() -> None:
    use = MonthUse(Month(2026, 12), gpu_ms=7, microcredits=9)
    assert after_use(use, 4, at(2026, 11, 3), at(2026, 11, 4)) == use
    assert after_spending(use, 5, at(2026, 11, 3)) == use
    assert after_spending(use, 5, at(2026, 12, 3)) == MonthUse(Month(2026, 12), 7, 14)
    assert after_spending(use, 5, at(2027, 1, 1)) == MonthUse(Month(2027, 1), 0, 5)


def test_use_at_a_later_month_is_nothing_yet() -> None:
    use = MonthUse(NOVEMBER, gpu_ms=7, microcredits=9)
    assert in_month_of(use, at(2026, 11, 30)) == use
    assert in_month_of(use, at(2026, 12, 1)) == MonthUse(Month(2026, 12))


@given(
    cuts=st.lists(st.integers(0, 90 * DAY_MS), min_size=2, max_size=8, unique=True), gpus=st.integers(1, 64)
)
def test_use_in_pieces_is_the_use_of_the_whole(cuts: list[int], gpus: int) -> None:
    start = NOVEMBER.start_ms
    cuts = sorted(cuts)
    pieces = MonthUse(NOVEMBER)
    for one, other in pairwise(cuts):
        pieces = after_use(pieces, gpus, start + one, start + other)
    assert pieces == after_use(MonthUse(NOVEMBER), gpus, start + cuts[0], start + cuts[-1])


# ---------------------------------------------------------------- refusals


def test_refusal_without_a_quota_is_none() -> None:
    assert refusal(UNLIMITED, replace(NOTHING_YET, gpus_held=10**6), QuotaRequest(GPUS_MAX)) is None


def test_refusal_of_more_gpus_than_the_quota_says_that_it_never_will() -> None:
    quota, request = Quota(gpus=8), QuotaRequest(gpus=16)
    sentence = never(quota, request)
    assert sentence is not None
    assert "quota of 8 GPUs at once" in sentence
    assert "16 asked for" in sentence
    assert refusal(quota, NOTHING_YET, request) == sentence


def test_refusal_of_gpus_that_are_held_names_them_and_ends_when_they_are_back() -> None:
    quota = Quota(gpus=8)
    sentence = refusal(quota, replace(NOTHING_YET, gpus_held=6), QuotaRequest(gpus=3))
    assert sentence is not None
    assert "quota of 8 GPUs at once leaves 2, as 6 are held, and 3 are asked for" in sentence
    assert "stop one" in sentence
    assert refusal(quota, replace(NOTHING_YET, gpus_held=6), QuotaRequest(gpus=2)) is None
    assert never(quota, QuotaRequest(gpus=3)) is None


def test_refusal_of_gpu_hours_counts_what_is_committed_and_names_the_next_month() -> None:
    quota = Quota(gpu_ms_per_month=100 * HOUR_MS)
    standing = replace(NOTHING_YET, gpu_ms_used=60 * HOUR_MS, gpu_ms_committed=35 * HOUR_MS)
    sentence = refusal(quota, standing, QuotaRequest(gpus=2, gpu_ms=6 * HOUR_MS))
    assert sentence == (
        "the quota of 100 GPU-hours a month leaves 5 of 2026-11, as 60 are used and 35 committed, and 6 are asked for:"
        " it starts from 2026-12-01 UTC on, or when the operator gives a larger quota"
    )
    assert refusal(quota, standing, QuotaRequest(gpus=2, gpu_ms=5 * HOUR_MS)) is None


def test_refusal_of_work_of_unknown_length_comes_when_nothing_is_left() -> None:
    quota = Quota(gpu_ms_per_month=HOUR_MS)
    almost = replace(NOTHING_YET, gpu_ms_used=HOUR_MS - 1)
    assert refusal(quota, almost, QuotaRequest(gpus=8)) is None
    gone = refusal(quota, replace(almost, gpu_ms_used=HOUR_MS), QuotaRequest(gpus=8))
    assert gone is not None
    assert "leaves 0 of 2026-11" in gone
    assert refusal(quota, replace(almost, gpu_ms_used=HOUR_MS), QuotaRequest(gpus=0)) is None


def test_refusal_of_spending_counts_holds_and_lets_what_is_free_run() -> None:
    quota = Quota(microcredits_per_month=50_000_000)
    standing = replace(NOTHING_YET, microcredits_spent=30_000_000, microcredits_committed=20_000_000)
    sentence = refusal(quota, standing, QuotaRequest(gpus=1, microcredits=1_500_000))
    assert sentence is not None
    assert "quota of 50 credits a month leaves 0 of 2026-11, as 30 are spent and 20 committed" in sentence
    assert "1.5 would be held" in sentence
    assert refusal(quota, standing, QuotaRequest(gpus=1, microcredits=0)) is None
    assert refusal(quota, standing, QuotaRequest(gpus=1)) is not None


def test_never_of_hours_and_money_names_what_is_asked() -> None:
    hours = never(Quota(gpu_ms_per_month=10 * HOUR_MS), QuotaRequest(2, gpu_ms=10 * HOUR_MS + 36_000))
    assert hours is not None
    assert "10 GPU-hours" in hours
    assert "10.01 asked" in hours
    money = never(Quota(microcredits_per_month=1_000_000), QuotaRequest(2, microcredits=1_000_001))
    assert money is not None
    assert "1.000001 that this would hold" in money


@given(
    quota=st.builds(
        Quota,
        gpus=st.none() | st.integers(0, 64),
        gpu_ms_per_month=st.none() | st.integers(0, 10**6),
        microcredits_per_month=st.none() | st.integers(0, 10**6),
    ),
    requests=st.lists(
        st.builds(
            QuotaRequest,
            gpus=st.integers(0, 32),
            gpu_ms=st.integers(0, 10**6),
            microcredits=st.integers(0, 10**6),
        ),
        max_size=20,
    ),
)
def test_whatever_is_let_in_keeps_every_quota(quota: Quota, requests: list[QuotaRequest]) -> None:
    standing = NOTHING_YET
    for request in requests:
        if refusal(quota, standing, request) is None:
            assert never(quota, request) is None
            standing = replace(
                standing,
                gpus_held=standing.gpus_held + request.gpus,
                gpu_ms_committed=standing.gpu_ms_committed + (request.gpu_ms or 0) * (request.gpus > 0),
                microcredits_committed=standing.microcredits_committed + (request.microcredits or 0),
            )
    for limit, got in (
        (quota.gpus, standing.gpus_held),
        (quota.gpu_ms_per_month, standing.gpu_ms_committed),
        (quota.microcredits_per_month, standing.microcredits_committed),
    ):
        assert limit is None or got <= limit


@given(gpus=st.integers(1, 64), held=st.integers(0, 64), asked=st.integers(1, 64))
def test_every_refusal_is_true(gpus: int, held: int, asked: int) -> None:
    """With as many more as are missing it would have been let in, with one less it would not."""
    standing, request = replace(NOTHING_YET, gpus_held=held), QuotaRequest(asked)
    if refusal(Quota(gpus=gpus), standing, request) is not None:
        assert refusal(Quota(gpus=held + asked), standing, request) is None
        assert refusal(Quota(gpus=held + asked - 1), standing, request) is not None


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("quota", "field", "words"),
    [
        (Quota(gpus=-1), "quota.gpus", "must be 0 to"),
        (Quota(gpus=GPUS_MAX + 1), "quota.gpus", "must be 0 to"),
        (Quota(gpu_ms_per_month=GPU_MS_MAX + 1), "quota.gpu_ms_per_month", "left out for no limit"),
        (Quota(microcredits_per_month=-5), "quota.microcredits_per_month", "not -5"),
        (Quota(microcredits_per_month=MICROCREDITS_MAX + 1), "quota.microcredits_per_month", "must be 0 to"),
        (Quota(gpus=0, gpu_ms_per_month=HOUR_MS), "quota.gpus", "0 GPUs at once contradicts 1 GPU-hours"),
        (Quota(gpus=3, gpu_ms_per_month=0), "quota.gpus", "make both 0, or neither"),
        (Quota(gpus=1, gpu_ms_per_month=745 * HOUR_MS), "quota.gpu_ms_per_month", "744 at most"),
    ],
)
def test_quota_that_nobody_can_mean_is_refused(quota: Quota, field: str, words: str) -> None:
    with pytest.raises(RefusedError, match=words) as caught:
        check_quota(quota)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "quota",
    [
        UNLIMITED,
        Quota(gpus=0, gpu_ms_per_month=0),
        Quota(gpus=1, gpu_ms_per_month=744 * HOUR_MS),
        Quota(gpus=0),
    ],
)
def test_quota_that_makes_sense_is_accepted(quota: Quota) -> None:
    check_quota(quota)


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        (QuotaRequest(gpus=-1), "request.gpus"),
        (QuotaRequest(gpus=1, gpu_ms=GPU_MS_MAX + 1), "request.gpu_ms"),
        (QuotaRequest(gpus=1, microcredits=2**63), "request.microcredits"),
    ],
)
def test_request_out_of_range_is_refused_whatever_the_quota(wanted: QuotaRequest, field: str) -> None:
    with pytest.raises(RefusedError) as caught:
        refusal(UNLIMITED, NOTHING_YET, wanted)
    assert caught.value.field == field
