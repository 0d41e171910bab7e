"""The operator's file of cloud prices: what it says, and what an operator should know of it."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.core.decisions.terms import ASK_MICROCREDITS_MAX
from orchestrator.core.market.pricing import MICROCREDITS, PROVIDERS_MIN, CloudPrice
from orchestrator.core.supply.catalogue import MODELS, find_model, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

EXAMPLE = Path(__file__).with_name("data") / "cloud-prices.toml"
"""Comes with the project: shows the form, and its figures are examples."""

FILE_BYTES_MAX = 1024 * 1024
"""Some eight thousand prices; a larger file is another file."""

OLD_DAYS = 90
"""Clouds change their prices several times a year."""

SHOWN_CHARACTERS = 80

_KEYS = ("model", "provider", "region", "date", "usd_per_gpu_hour")
_LABEL = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
_USD = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?")
_ENTRY_LINE = re.compile(r"\s*\[\[\s*price\s*\]\]\s*(#.*)?")


class PriceFileError(ValueError):
    """The file cannot be used; names file, line, entry and field, and says what to write."""


@dataclass(frozen=True, slots=True)
class PriceFile:
    """What a file says, in its order. ``warnings`` are sentences for the operator; nothing was left out for them."""

    prices: tuple[CloudPrice, ...]
    warnings: tuple[str, ...]


def read_price_file(path: Path, today: date) -> PriceFile:
    """Every price of a file. Raises PriceFileError."""
    text = _text(path)
    try:
        table: dict[str, object] = tomllib.loads(text)
    except RecursionError:
        raise PriceFileError(f"{path}: is not TOML of prices: brackets in brackets; look at it") from None
    except (
        ValueError
    ) as error:  # Its own error is one, and a number of thousands of digits raises a plain one.
        raise PriceFileError(f"{path}: is not TOML: {error}") from None
    for key in sorted(table.keys() - {"price"}):
        raise PriceFileError(f"{path}: {key[:SHOWN_CHARACTERS]}: no such table; each price is a [[price]]")
    entries = table.get("price")
    if not isinstance(entries, list) or not entries:
        raise PriceFileError(f"{path}: has no price; write a [[price]] with {', '.join(_KEYS)}")
    places = _places(path, text, len(entries))
    prices: list[CloudPrice] = []
    seen: dict[tuple[str, str, str, date], str] = {}
    for place, entry in zip(places, entries, strict=True):
        price = _price(place, entry)
        named = (price.model, price.provider, price.region, price.day)
        if named in seen:
            raise PriceFileError(
                f"{place}: {price.provider} has a second price of {price.model} in {price.region} on {price.day};"
                f" the first is at {seen[named]}; leave one of them out"
            )
        seen[named] = place
        prices.append(price)
    return PriceFile(tuple(prices), (*_dates(places, prices, today), *_thin(path, prices, today)))


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise PriceFileError(f"{path}: cannot be read: {error.strerror}; name a file of prices") from None
    if len(content) > FILE_BYTES_MAX:
        raise PriceFileError(f"{path}: is larger than {FILE_BYTES_MAX} bytes; keep the latest prices only")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PriceFileError(f"{path}: byte {error.start} is not UTF-8; save it as UTF-8 text") from None


def _places(path: Path, text: str, count: int) -> tuple[str, ...]:
    """Where each entry stands; without a line where the entries are written in another way than one by one."""
    lines = [number for number, line in enumerate(text.split("\n"), 1) if _ENTRY_LINE.fullmatch(line)]
    if len(lines) != count:
        return tuple(f"{path}: price {number}" for number in range(1, count + 1))
    return tuple(f"{path}:{line}: price {number}" for number, line in enumerate(lines, 1))


def _price(place: str, entry: object) -> CloudPrice:
    if not isinstance(entry, dict):
        raise PriceFileError(f"{place}: must be a [[price]] with {', '.join(_KEYS)}")
    for key in sorted(entry.keys() - set(_KEYS)):
        shown = key[:SHOWN_CHARACTERS]
        raise PriceFileError(f"{place}: {shown}: no such field; did you mean {nearest(shown, list(_KEYS))}?")
    for key in _KEYS:
        if key not in entry:
            raise PriceFileError(f"{place}: {key}: is missing")
    return CloudPrice(
        model=_model(place, entry),
        provider=_label(place, entry, "provider"),
        region=_label(place, entry, "region"),
        day=_day(place, entry),
        microcredits_per_gpu_hour=_microcredits(place, entry),
    )


def _model(place: str, entry: Mapping[str, object]) -> str:
    value = entry["model"]
    if not isinstance(value, str):
        raise PriceFileError(f"{place}: model: must be a name of the catalogue, in quotes")
    shown = value[:SHOWN_CHARACTERS]
    model = find_model(shown)
    if model is None:
        hint = nearest(shown, list(MODELS))
        raise PriceFileError(f"{place}: model: unknown model {shown!r}; did you mean {hint}?")
    return model.name


def _label(place: str, entry: Mapping[str, object], key: str) -> str:
    value = entry[key]
    if not isinstance(value, str) or _LABEL.fullmatch(value) is None:
        raise PriceFileError(f"{place}: {key}: must be at most 40 of a-z, 0-9 and dashes, in quotes")
    return value


def _day(place: str, entry: Mapping[str, object]) -> date:
    value = entry["date"]
    if not isinstance(value, date) or isinstance(value, datetime):
        raise PriceFileError(f"{place}: date: must be a day such as 2026-11-03, without quotes")
    return value


def _microcredits(place: str, entry: Mapping[str, object]) -> int:
    value = entry["usd_per_gpu_hour"]
    if not isinstance(value, str) or _USD.fullmatch(value) is None:
        raise PriceFileError(
            f'{place}: usd_per_gpu_hour: must be US dollars with at most six decimals, in quotes, such as "2.99"'
        )
    microcredits = int(Decimal(value) * MICROCREDITS)
    if not 0 < microcredits <= ASK_MICROCREDITS_MAX:
        raise PriceFileError(
            f"{place}: usd_per_gpu_hour: must be above 0 and at most {ASK_MICROCREDITS_MAX // MICROCREDITS} dollars"
            " for one GPU and one hour"
        )
    return microcredits


def _dates(places: Sequence[str], prices: Sequence[CloudPrice], today: date) -> tuple[str, ...]:
    sentences = []
    for place, price in zip(places, prices, strict=True):
        if price.day > today:
            sentences.append(
                f"{place}: date: {price.day} is in the future; the price does not count until then, correct the date"
            )
        elif today - price.day > timedelta(days=OLD_DAYS):
            days = (today - price.day).days
            sentences.append(
                f"{place}: date: {price.day} is {days} days ago; the price still counts, read it again after {OLD_DAYS}"
            )
    return tuple(sentences)


def _thin(path: Path, prices: Sequence[CloudPrice], today: date) -> tuple[str, ...]:
    known = {(price.model, price.provider) for price in prices if price.day <= today}
    providers = Counter(model for model, _ in known)
    return tuple(
        f"{path}: {model} has prices of {providers[model]} providers that count; {PROVIDERS_MIN} are needed for a"
        " comparison, so its price follows other models"
        for model in sorted({price.model for price in prices})
        if providers[model] < PROVIDERS_MIN
    )
