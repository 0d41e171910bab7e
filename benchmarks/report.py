"""What a figure hands back, and how it is shown: a table for people, one JSON line per case for programs."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import structlog
from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.stats import Interval, median
from orchestrator.sim.plots import Curve

KEYS = ("figure", "case", "value", "peer", "ratio", "target", "unit", "n", "min", "max")
DIGITS = 4
"""Significant digits shown: more than any two runs agree on."""
TABLE_COLUMNS = 150
"""Width of the table where the output is no terminal that says its own."""


class FigureError(Exception):
    """A figure could not be measured at all; the text says why."""


@dataclass(frozen=True, slots=True)
class Target:
    """The bound a case is held against, and which of its numbers is."""

    bound: float
    direction: Literal["<=", ">="]
    of: Literal["value", "ratio"]

    def __str__(self) -> str:
        sign = "≤" if self.direction == "<=" else "≥"
        return f"{self.of} {sign} {_short(self.bound)}"


@dataclass(frozen=True, slots=True)
class Case:
    """One measured case: medians of alternating runs, ``low`` and ``high`` the extremes of what ``value`` is from.

    ``ratio`` is ours / peer. Where a case states what ours *adds*, ``value`` is the median of the paired
    differences and ``peer`` the peer's own median; ``ratio`` still compares the two totals.
    """

    figure: str
    case: str
    value: float
    unit: str
    n: int
    low: float
    high: float
    peer: float | None = None
    ratio: float | None = None
    target: Target | None = None
    interval: Interval | None = None
    """Of what the target is held against."""
    remark: str = ""
    curves: tuple[Curve, ...] = ()
    """What plots draw of it."""

    @property
    def met(self) -> bool | None:
        """Whether the target holds; None where there is none."""
        if self.target is None:
            return None
        number = self.value if self.target.of == "value" else self.ratio
        if number is None:
            return False
        return number <= self.target.bound if self.target.direction == "<=" else number >= self.target.bound

    def json_line(self) -> str:
        """Exactly KEYS, in their order."""
        values = (
            self.figure,
            self.case,
            _rounded(self.value),
            _rounded(self.peer),
            _rounded(self.ratio),
            None if self.target is None else self.target.bound,
            self.unit,
            self.n,
            _rounded(self.low),
            _rounded(self.high),
        )
        return json.dumps(dict(zip(KEYS, values, strict=True)), ensure_ascii=False)


def compared(
    figure: str,
    case: str,
    unit: str,
    ours: Sequence[float],
    peer: Sequence[float],
    target: Target | None = None,
    interval: Interval | None = None,
    remark: str = "",
) -> Case:
    """A case of two alternating sides."""
    value, other = median(ours), median(peer)
    return Case(
        figure,
        case,
        value,
        unit,
        len(ours),
        min(ours),
        max(ours),
        other,
        value / other if other else None,
        target,
        interval,
        remark,
    )


def print_table(cases: Sequence[Case]) -> None:
    """For people."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = TABLE_COLUMNS
    table = Table(header_style="bold")
    for column in ("figure", "case"):
        table.add_column(column)
    for column in ("median", "min", "max", "peer", "ratio", "95 % interval", "n"):
        table.add_column(column, justify="right")
    table.add_column("target")
    for case in cases:
        table.add_row(*_row(case))
    console.print(table)
    for case in cases:
        if case.remark:
            console.print(Text(f"{case.figure} {case.case}: {case.remark}"), soft_wrap=True)


def print_json(cases: Sequence[Case]) -> None:
    """For programs."""
    for case in cases:
        print(case.json_line())
    sys.stdout.flush()


def note(text: str) -> None:
    """What is going on now: to standard error, so that standard output holds results alone."""
    print(f"… {text}", file=sys.stderr, flush=True)


def quiet() -> None:
    """Log warnings alone, and to standard error: lines of thousands of sessions would cost more than the sessions."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def _row(case: Case) -> tuple[Text | str, ...]:
    interval = "" if case.interval is None else f"{_short(case.interval.low)} – {_short(case.interval.high)}"
    sign, style = {None: ("", ""), True: ("✓ ", "green"), False: ("✗ ", "red")}[case.met]
    target = Text(f"{sign}{case.target or ''}", style=style)
    return (
        case.figure,
        case.case,
        f"{_short(case.value)} {case.unit}",
        _short(case.low),
        _short(case.high),
        _short(case.peer),
        _short(case.ratio),
        interval,
        str(case.n),
        target,
    )


def _rounded(number: float | None) -> float | None:
    return None if number is None else float(f"{number:.6g}")


def _short(number: float | None) -> str:
    if number is None:
        return "–"
    if abs(number) >= 10**DIGITS:
        return f"{number:,.0f}"
    return f"{number:,.{DIGITS}g}"
