"""The operator's file of cloud prices: what is read, what is said of it, and what is refused where."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from orchestrator.adapters.price_file import (
    EXAMPLE,
    FILE_BYTES_MAX,
    PriceFile,
    PriceFileError,
    read_price_file,
)
from orchestrator.core.market.pricing import PROVIDERS_MIN, CloudPrice, cloud_medians

TODAY = date(2026, 11, 20)
WHOLE = {
    "model": '"H100"',
    "provider": '"cloud-a"',
    "region": '"us-east"',
    "date": "2026-11-03",
    "usd_per_gpu_hour": '"2.99"',
}


def entry(**changes: str | None) -> str:
    fields = {key: value for key, value in {**WHOLE, **changes}.items() if value is not None}
    return "\n".join(["[[price]]", *(f"{key} = {value}" for key, value in fields.items())]) + "\n"


def read(folder: Path, text: str) -> PriceFile:
    path = folder / "prices.toml"
    path.write_text(text)
    return read_price_file(path, TODAY)


# ---------------------------------------------------------------- read


def test_price_file_of_three_providers_is_read_exactly_and_without_a_word(tmp_path: Path) -> None:
    text = "".join(entry(provider=f'"cloud-{name}"') for name in "abc")
    got = read(tmp_path, text + entry(provider='"cloud-a"', region='"eu"', usd_per_gpu_hour='"0.000001"'))
    assert got.warnings == ()
    assert got.prices[0] == CloudPrice("H100", "cloud-a", "us-east", date(2026, 11, 3), 2_990_000)
    assert got.prices[3].microcredits_per_gpu_hour == 1


def test_price_file_names_models_as_people_write_them(tmp_path: Path) -> None:
    got = read(tmp_path, entry(model='"GeForce RTX 4090"'))
    assert got.prices[0].model == "RTX4090"


def test_price_file_of_few_providers_is_read_and_said(tmp_path: Path) -> None:
    got = read(tmp_path, entry() + entry(provider='"cloud-b"'))
    assert len(got.prices) == 2
    assert len(got.warnings) == 1
    assert "H100 has prices of 2 providers that count; 3 are needed" in got.warnings[0]


def test_price_file_with_dates_to_come_and_long_past_says_where(tmp_path: Path) -> None:
    text = entry(date="2026-11-21") + entry(provider='"cloud-b"', date="2026-08-21")
    got = read(tmp_path, text + entry(provider='"cloud-c"', date="2026-08-22"))
    future, old, thin = got.warnings
    assert "prices.toml:1: price 1: date: 2026-11-21 is in the future" in future
    assert "prices.toml:7: price 2: date: 2026-08-21 is 91 days ago" in old
    assert "prices of 2 providers" in thin


def test_example_that_comes_with_the_project_has_a_median_of_every_model_in_it() -> None:
    got = read_price_file(EXAMPLE, TODAY)
    assert got.warnings == ()
    medians = cloud_medians(got.prices, TODAY)
    assert medians.keys() == {price.model for price in got.prices}
    assert {"H100", "H200", "A100-80", "L40S", "RTX4090", "RTX3090"} <= medians.keys()
    assert all(len(one.sources) >= PROVIDERS_MIN for one in medians.values())
    assert {(price.day.year, price.day.month) for price in got.prices} == {(2026, 11)}
    assert EXAMPLE.read_text().startswith("# EXAMPLE FIGURES.")


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (
            entry(model='"RTX4091"'),
            r"prices.toml:7: price 2: model: unknown model 'RTX4091'; did you mean RTX40",
        ),
        (entry(model="7"), "price 2: model: must be a name of the catalogue, in quotes"),
        (entry(currency='"EUR"'), "price 2: currency: no such field"),
        (entry(usd_per_gpu_huor='"2"'), "usd_per_gpu_huor: no such field; did you mean usd_per_gpu_hour"),
        (entry(region=None), "price 2: region: is missing"),
        (entry(provider='"Cloud A"'), "price 2: provider: must be at most 40 of a-z"),
        (entry(region='""'), "price 2: region: must be at most 40 of a-z"),
        (entry(date='"2026-11-03"'), "price 2: date: must be a day such as 2026-11-03, without quotes"),
        (entry(date="2026-11-03T10:00:00Z"), "price 2: date: must be a day"),
        (
            entry(usd_per_gpu_hour="2.99"),
            "usd_per_gpu_hour: must be US dollars with at most six decimals, in quotes",
        ),
        (entry(usd_per_gpu_hour='"2.9999999"'), "at most six decimals"),
        (entry(usd_per_gpu_hour='"-1"'), "usd_per_gpu_hour: must be US dollars"),
        (entry(usd_per_gpu_hour='"NaN"'), "usd_per_gpu_hour: must be US dollars"),
        (entry(usd_per_gpu_hour='"1e3"'), "usd_per_gpu_hour: must be US dollars"),
        (entry(usd_per_gpu_hour='"0.00"'), "must be above 0 and at most 1000 dollars"),
        (entry(usd_per_gpu_hour='"1000.01"'), "must be above 0 and at most 1000 dollars"),
        (
            entry(model='"h100"'),
            r"second price of H100 in us-east on 2026-11-03; the first is at .*prices.toml:1",
        ),
    ],
)
def test_price_file_with_a_wrong_entry_names_line_entry_and_field(
    tmp_path: Path, second: str, words: str
) -> None:
    with pytest.raises(PriceFileError, match=words):
        read(tmp_path, entry() + second)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no price; write a"),
        ("price = []", "has no price; write a"),
        ("price = 7", "has no price; write a"),
        ("price = [7]", "price 1: must be a"),
        ("prices = 1\n" + entry(), "prices: no such table"),
        (entry() + "[[price]\n", r"is not TOML: .*line 7"),
        (entry(date="2026-02-30"), "is not TOML"),
        ("a = " + "9" * 5_000, "is not TOML"),
        ("a = " + "[" * 100_000, "is not TOML"),
    ],
)
def test_price_file_that_is_none_is_refused_with_a_sentence(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(PriceFileError, match=words):
        read(tmp_path, text)


def test_price_file_written_in_one_line_names_the_entry_without_a_line(tmp_path: Path) -> None:
    with pytest.raises(PriceFileError, match=r"prices.toml: price 1: provider: is missing"):
        read(tmp_path, 'price = [{ model = "H100" }]\n')


def test_price_file_that_is_absent_too_large_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PriceFileError, match=r"none.toml: cannot be read: No such file"):
        read_price_file(tmp_path / "none.toml", TODAY)
    large = tmp_path / "large.toml"
    large.write_bytes(b"#" * (FILE_BYTES_MAX + 1))
    with pytest.raises(PriceFileError, match="is larger than 1048576 bytes"):
        read_price_file(large, TODAY)
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"# \xff")
    with pytest.raises(PriceFileError, match="byte 2 is not UTF-8"):
        read_price_file(binary, TODAY)
