"""The owner's words become terms: prices without rounding, weeks without a minute lost."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cli.errors import CliError
from orchestrator.cli.join import asks, duration_ms, terms_of, week_windows
from orchestrator.cli.worker_settings import WorkerSettings
from orchestrator.core.supply.terms import WEEK_MINUTES, Ask, Terms, Tier, WeekWindow

WINTER = datetime(2026, 1, 14, 12, tzinfo=UTC)
SUMMER = datetime(2026, 7, 15, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], ()),
        (["auto"], ()),
        (["RTX4090=2.50"], (Ask("RTX4090", 2_500_000),)),
        (["rtx4090=0.000001", "H100=1000"], (Ask("RTX4090", 1), Ask("H100", 1_000_000_000))),
        (["RTX4090=auto", "H100=0.1"], (Ask("H100", 100_000),)),
    ],
)
def test_asks_price_is_exact_in_microcredits(texts: list[str], expected: tuple[Ask, ...]) -> None:
    assert asks(texts) == expected


@given(st.integers(0, 1_000_000_000))
def test_asks_every_microcredit_survives(microcredits: int) -> None:
    text = f"H100={microcredits // 1_000_000}.{microcredits % 1_000_000:06d}"
    assert asks([text]) == (Ask("H100", microcredits),)


@pytest.mark.parametrize(
    "text",
    [
        "RTX4090",
        "RTX4090=",
        "RTX4090=-1",
        "RTX4090=1e3",
        "RTX4090=0.0000001",
        "=1",
        "RTX4091=1",
        "RTX4090=1,5",
    ],
)
def test_asks_other_form_is_refused(text: str) -> None:
    with pytest.raises(CliError, match="--price") as refused:
        asks([text])
    assert refused.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [("500ms", 500), ("30s", 30_000), ("90m", 5_400_000), ("12H", 43_200_000), ("2d", 172_800_000)],
)
def test_duration_ms_each_unit(text: str, expected: int) -> None:
    assert duration_ms(text, "--notice") == expected


@pytest.mark.parametrize("text", ["", "12", "h", "-1h", "1.5h", "1 week", "9999999999h"])
def test_duration_ms_other_form_is_refused(text: str) -> None:
    with pytest.raises(CliError, match="--notice: a duration such as 30s"):
        duration_ms(text, "--notice")


def minutes(day: int, hour: int, minute: int = 0) -> int:
    return (day * 24 + hour) * 60 + minute


def test_week_windows_weekdays_and_weekend_are_joined_where_they_touch() -> None:
    found = week_windows("Mon-Fri 18:00-08:00, Sat-Sun 00:00-24:00", "UTC", WINTER)
    assert found == (
        *(WeekWindow(minutes(day, 18), minutes(day + 1, 8)) for day in range(4)),
        # Friday evening, the weekend, and nothing of Monday.
        WeekWindow(minutes(4, 18), 0),
    )


def test_week_windows_nights_follow_the_zone_and_its_season() -> None:
    assert WeekWindow(minutes(0, 21), minutes(1, 6)) in week_windows("nights", "Europe/Berlin", WINTER)
    assert WeekWindow(minutes(0, 20), minutes(1, 5)) in week_windows("nights", "Europe/Berlin", SUMMER)
    assert len(week_windows("Nights", "Europe/Berlin", WINTER)) == 7


def test_week_windows_zone_ahead_of_utc_reaches_back_into_sunday() -> None:
    (window,) = week_windows("Mon 00:00-03:00", "Asia/Kolkata", WINTER)
    assert window == WeekWindow(minutes(6, 18, 30), minutes(6, 21, 30))


@pytest.mark.parametrize("text", ["00:00-24:00", "Mon-Sun 00:00-24:00", "Wed-Tue 12:00-11:59, 11:00-13:00"])
def test_week_windows_whole_week_is_one_that_never_closes(text: str) -> None:
    (window,) = week_windows(text, "America/St_Johns", SUMMER)
    assert window.start_minute == window.end_minute


@given(
    st.lists(
        st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(0, 1439), st.integers(1, 1440)).filter(
            lambda one: one[2] != one[3]
        ),
        min_size=1,
        max_size=6,
    )
)
def test_week_windows_any_schedule_is_open_exactly_when_the_owner_said(
    parts: list[tuple[int, int, int, int]],
) -> None:
    days = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
    text = ", ".join(
        f"{days[first]}-{days[last]} {a // 60:02}:{a % 60:02}-{b // 60:02}:{b % 60:02}"
        for first, last, a, b in parts
    )
    expected = set()
    for first, last, start, end in parts:
        length = (end - start) % 1440 or 1440
        for day in range(first, first + (last - first) % 7 + 1):
            # UTC+1: the owner's minute is an hour later.
            expected |= {(day * 1440 + start - 60 + into) % WEEK_MINUTES for into in range(length)}
    found = week_windows(text, "Europe/Berlin", WINTER)
    step = 7  # Divides no hour, so that every minute of an hour is looked at somewhere.
    for minute in range(0, WEEK_MINUTES, step):
        assert any(window.left(minute) for window in found) == (minute in expected)
    assert len({window.start_minute for window in found}) == len(found)


@pytest.mark.parametrize(
    ("text", "zone", "complaint"),
    [
        ("weekends", "UTC", "--schedule: `nights`, or windows"),
        ("Mon 25:00-26:00", "UTC", "--schedule"),
        ("Mon 24:00-01:00", "UTC", "--schedule"),
        ("Mon 18:60-19:00", "UTC", "--schedule"),
        ("Moo 18:00-19:00", "UTC", "--schedule"),
        ("Mon 18:00-19:00,", "UTC", "--schedule"),
        ("Mon 18:00-18:00", "UTC", "is empty; a whole day is 00:00-24:00"),
        ("nights", "Europe/Berlyn", "--timezone: .*did you mean Europe/Berlin"),
        ("nights", "../../etc/passwd", "--timezone"),
        ("nights", "", "add --timezone"),
    ],
)
def test_week_windows_bad_schedule_or_zone_is_refused(text: str, zone: str, complaint: str) -> None:
    with pytest.raises(CliError, match=complaint) as refused:
        week_windows(text, zone, WINTER)
    assert refused.value.exit_code == 2


def test_terms_of_all_settings_become_the_owners_terms(environment: pytest.MonkeyPatch) -> None:
    settings = WorkerSettings(
        price=("H100=2.5",),
        region=("eu-west",),
        max_lease="12h",
        schedule="Mon 01:00-02:00",
        timezone="Europe/Berlin",
        idle_only=True,
        tier="committed",
        notice="10m",
        webhook="https://hook.example/x",
    )
    assert terms_of(settings, WINTER, "Asia/Tokyo") == Terms(
        asks=(Ask("H100", 2_500_000),),
        regions=("eu-west",),
        lease_max_ms=43_200_000,
        schedule=(WeekWindow(0, 60),),
        idle_only=True,
        tier=Tier.COMMITTED,
        notice_ms=600_000,
        webhook_url="https://hook.example/x",
    )


def test_terms_of_nothing_set_is_the_default(environment: pytest.MonkeyPatch) -> None:
    assert terms_of(WorkerSettings(), WINTER, "") == Terms()


@pytest.mark.parametrize(
    ("setting", "value", "flag"),
    [
        ("price", ("H100=100000",), "--price"),
        ("price", ("H100=1", "H100=2"), "--price"),
        ("region", ("Europe!",), "--region"),
        ("max_lease", "1s", "--max-lease"),
        ("notice", "1ms", "--notice"),
        ("tier", "commited", "--tier"),
        ("webhook", "ftp://x", "--webhook"),
    ],
)
def test_terms_of_what_nobody_can_mean_names_the_flag(
    environment: pytest.MonkeyPatch, setting: str, value: object, flag: str
) -> None:
    with pytest.raises(CliError, match=f"^{flag}: ") as refused:
        terms_of(WorkerSettings.model_validate({setting: value}), WINTER, "UTC")
    assert refused.value.exit_code == 2
