"""Amounts as people type and read them: credits and hours as decimal numbers, whole microcredits and ms inside."""

from __future__ import annotations

import re
from decimal import Decimal

from orchestrator.cli.errors import usage_error
from orchestrator.core.market.pricing import MICROCREDITS

MS_PER_HOUR = 3_600_000

_NUMBER = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,9})?")
"""More than any amount of this network needs."""


def whole(option: str, text: str, unit: int, of_what: str) -> int:
    """A number of ``unit`` each, such as 0.5 hours in ms. Raises a usage error for what comes to no whole number."""
    if _NUMBER.fullmatch(text) is None:
        example = "8" if unit == 1 else "0.5"
        raise usage_error(f"{option}: {of_what} such as {example} are expected, not {text[:40]!r}")
    amount = Decimal(text) * unit
    if amount != int(amount):
        raise usage_error(f"{option}: {text} is finer than what is counted; give fewer decimals")
    return int(amount)


def decimal(amount: int, unit: int) -> str:
    """Exactly, with no more decimals than it has up to six; the rest is cut off."""
    sign = "-" if amount < 0 else ""
    millionths = abs(amount) * MICROCREDITS // unit
    text = f"{millionths // MICROCREDITS}.{millionths % MICROCREDITS:06d}".rstrip("0").rstrip(".")
    return f"{sign}{text}"


def credits_of(microcredits: int) -> str:
    """Microcredits as credits, with their name."""
    return f"{decimal(microcredits, MICROCREDITS)} credits"


def percent_of_ppm(ppm: int) -> str:
    """Millionths as a percentage with two decimals, cut off."""
    hundredths = ppm // 100
    return f"{hundredths // 100}.{hundredths % 100:02d} %"
