"""Plots as small SVG files, written by hand: lines or dots with their spreads over two axes, legible on light and dark.

A reader who sees no colours tells curves by the shape of their dots, and one who sees no pictures has the title and the
names of axes and curves as text.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SVG = "http://www.w3.org/2000/svg"
"""The namespace of its elements."""

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 76, 32, 76, 76
INNER_WIDTH, INNER_HEIGHT = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

TICKS = 6
"""About so many on an axis: each has room for its number."""

DOTS_MAX = 40
"""A curve of more points is a line alone: its dots would hide it."""

DECADES_MAX = 2
"""Beyond them only powers of ten have a number."""

THOUSAND = 1_000
CHARACTER = 6.4
"""Width of one, in the mean, at the size of the legend."""

DOT = 4.0
ROOM = 0.04
"""Of what the data span."""
STEPS = (1, 2, 5, 10)

LIGHT = ("#0b62c4", "#b35300", "#1a7f37", "#8250df", "#b3261e", "#59636e")
DARK = ("#6cb0ff", "#f0a04b", "#56d364", "#c9a2ff", "#ff8f85", "#9aa4af")
"""Of the curves, in their order; each has a contrast of 4.5 or more to its ground."""

PAPER = {"paper": ("#ffffff", "#0d1117"), "ink": ("#1f2328", "#e6edf3"), "grid": ("#d8dee4", "#30363d")}


@dataclass(frozen=True, slots=True)
class Axis:
    """``title`` says what is measured, with its unit. ``low`` and ``high`` None: as the data have it."""

    title: str
    low: float | None = None
    high: float | None = None
    logarithmic: bool = False
    names: tuple[str, ...] = ()
    """What stands at 0, 1, 2 … of an axis without numbers."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Points, joined or not; with ``spreads``, a low and a high value at each."""

    name: str
    points: Sequence[tuple[float, float]]
    spreads: Sequence[tuple[float, float]] = ()
    joined: bool = True


@dataclass(frozen=True, slots=True)
class Mark:
    """A line across the plot at a height: a target, or a bound."""

    name: str
    at: float


@dataclass(frozen=True, slots=True)
class _Scale:
    """From values to places: ``first`` and ``last`` are the places of ``low`` and ``high``."""

    low: float
    high: float
    first: float
    last: float
    logarithmic: bool

    def place(self, value: float) -> float:
        low, high, at = self.low, self.high, min(max(value, self.low), self.high)
        if self.logarithmic:
            low, high, at = math.log10(low), math.log10(high), math.log10(at)
        return self.first + (self.last - self.first) * (at - low) / (high - low)


def plot(
    title: str, across: Axis, up: Axis, curves: Sequence[Curve], marks: Sequence[Mark] = (), source: str = ""
) -> str:
    """An SVG document. ``source`` says in one line where the data are from.

    Raises ValueError where a logarithmic axis is to show what is not above zero.
    """
    spread = [value for curve in curves for pair in curve.spreads for value in pair]
    heights = [y for curve in curves for _, y in curve.points] + spread + [mark.at for mark in marks]
    scale_x = _scale(across, [x for curve in curves for x, _ in curve.points], LEFT, WIDTH - RIGHT)
    scale_y = _scale(up, heights, HEIGHT - BOTTOM, TOP)
    parts = [
        _opening(),
        f"<title>{escape(title)}</title>",
        f"<desc>{escape(f'{up.title} over {across.title}: ' + ', '.join(curve.name for curve in curves))}</desc>",
        _style(),
        f'<rect width="{WIDTH}" height="{HEIGHT}" class="paper"/>',
        _text(LEFT, 26, title, "font-size='15' font-weight='600'"),
        *_axes(across, up, scale_x, scale_y),
        *_legend(curves, marks),
        *(line for mark in marks for line in _mark(mark, scale_y)),
        *(line for number, curve in enumerate(curves) for line in _curve(number, curve, scale_x, scale_y)),
        _text(LEFT, HEIGHT - 10, source, "font-size='10' opacity='.75'"),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _opening() -> str:
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    font = 'font-family="system-ui, sans-serif" font-size="12"'
    return f'<svg xmlns="{SVG}" {size} role="img" {font}>'


def _scale(axis: Axis, values: Sequence[float], first: float, last: float) -> _Scale:
    if axis.names:
        return _Scale(-0.5, len(axis.names) - 0.5, first, last, logarithmic=False)
    least, most = min(values, default=0.0), max(values, default=1.0)
    # Nothing lies on the frame, unless the axis begins or ends there by its caller's will.
    room = 0.0 if axis.logarithmic else ROOM * (most - least)
    low = least - room if axis.low is None else axis.low
    high = most + room if axis.high is None else axis.high
    if axis.logarithmic:
        if low <= 0:
            raise ValueError(
                f"{axis.title}: a logarithmic axis shows nothing at or below 0, and {low} is there"
            )
        low, high = 10 ** math.floor(math.log10(low) + 1e-9), 10 ** math.ceil(math.log10(high) - 1e-9)
    return _Scale(
        low, high if high > low else low * 10 if axis.logarithmic else low + 1, first, last, axis.logarithmic
    )


def _ticks(scale: _Scale) -> list[float]:
    """Round numbers within a scale."""
    if scale.logarithmic:
        decades = round(math.log10(scale.high / scale.low))
        first = round(math.log10(scale.low))
        found = [factor * 10.0 ** (first + number) for number in range(decades + 1) for factor in (1, 2, 5)]
        wanted = found if decades <= DECADES_MAX else found[::3]
        return [tick for tick in wanted if tick <= scale.high * (1 + 1e-9)]
    rough = (scale.high - scale.low) / TICKS
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * one for one in STEPS if power * one >= rough * (1 - 1e-9))
    first = math.ceil(scale.low / step - 1e-9)
    return [step * number for number in range(first, math.floor(scale.high / step + 1e-9) + 1)]


def _axes(across: Axis, up: Axis, scale_x: _Scale, scale_y: _Scale) -> Iterator[str]:
    for tick in _ticks(scale_y):
        y = scale_y.place(tick)
        yield f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" class="grid"/>'
        yield _text(LEFT - 8, y + 4, _number(tick), "text-anchor='end'")
    named: list[tuple[float, str]] = [*enumerate(across.names)]
    for tick, name in named or [(tick, _number(tick)) for tick in _ticks(scale_x)]:
        x = scale_x.place(tick)
        if not across.names:
            yield f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{HEIGHT - BOTTOM}" class="grid"/>'
        yield _text(x, HEIGHT - BOTTOM + 18, name, "text-anchor='middle'")
    bottom = HEIGHT - BOTTOM
    yield f'<path d="M{LEFT} {TOP}V{bottom}H{WIDTH - RIGHT}" fill="none" class="axis"/>'
    yield _text(LEFT + INNER_WIDTH / 2, bottom + 38, across.title, "text-anchor='middle'")
    middle = TOP + INNER_HEIGHT / 2
    yield _text(18, middle, up.title, f"text-anchor='middle' transform='rotate(-90 18 {middle})'")


def _legend(curves: Sequence[Curve], marks: Sequence[Mark]) -> Iterator[str]:
    x = float(LEFT)
    if len(curves) > 1:
        for number, curve in enumerate(curves):
            yield _dot(number, x + 5, 46)
            yield _text(x + 16, 50, curve.name)
            x += 34 + CHARACTER * len(curve.name)
    for mark in marks:
        yield f'<line x1="{x:.1f}" y1="46" x2="{x + 18:.1f}" y2="46" class="mark"/>'
        yield _text(x + 24, 50, mark.name)
        x += 42 + CHARACTER * len(mark.name)


def _mark(mark: Mark, scale_y: _Scale) -> Iterator[str]:
    y = scale_y.place(mark.at)
    yield f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" class="mark"/>'


def _curve(number: int, curve: Curve, scale_x: _Scale, scale_y: _Scale) -> Iterator[str]:
    colour = number % len(LIGHT)
    places = [(scale_x.place(x), scale_y.place(y)) for x, y in curve.points]
    for (x, _), (low, high) in zip(places, curve.spreads, strict=False):
        ends = f'y1="{scale_y.place(low):.1f}" y2="{scale_y.place(high):.1f}"'
        yield f'<line x1="{x:.1f}" x2="{x:.1f}" {ends} class="l{colour}" opacity=".6"/>'
    if curve.joined:
        shown = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        yield f'<polyline points="{shown}" fill="none" class="l{colour}"/>'
    if not curve.joined or len(places) <= DOTS_MAX:
        for x, y in places:
            yield _dot(number, x, y)


def _dot(number: int, x: float, y: float) -> str:
    """A circle, a square, a triangle or a diamond, by turns."""
    size = DOT
    match number % 4:
        case 0:
            shape = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}"'
        case 1:
            shape = f'<rect x="{x - size:.1f}" y="{y - size:.1f}" width="{2 * size}" height="{2 * size}"'
        case 2:
            shape = f'<path d="M{x:.1f} {y - size:.1f}l{size} {2 * size}h{-2 * size}z"'
        case _:
            shape = f'<path d="M{x:.1f} {y - size - 1:.1f}l{size} {size + 1}l{-size} {size + 1}l{-size} {-size - 1}z"'
    return f'{shape} class="f{number % len(LIGHT)}"/>'


def _text(x: float, y: float, words: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="ink" {more}>{escape(words)}</text>'


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= THOUSAND else f"{value:.4g}"


def _style() -> str:
    return f"<style>{_rules(0, LIGHT)}@media (prefers-color-scheme:dark){{{_rules(1, DARK)}}}</style>"


def _rules(shade: int, colours: Sequence[str]) -> str:
    paper, ink, grid = (PAPER[name][shade] for name in ("paper", "ink", "grid"))
    rules = [
        f".paper{{fill:{paper}}}.ink{{fill:{ink}}}.grid{{stroke:{grid}}}.axis{{stroke:{ink}}}",
        f".mark{{stroke:{ink};stroke-width:1.5;stroke-dasharray:6 4}}",
    ]
    rules += [
        f".l{number}{{stroke:{colour};stroke-width:2}}.f{number}{{fill:{colour};stroke:{paper}}}"
        for number, colour in enumerate(colours)
    ]
    return "".join(rules)


def beside(count: int, number: int, each: float = 0.16) -> float:
    """How far from its name the dots of one of ``count`` curves stand, so that none hides another."""
    return (number - (count - 1) / 2) * each
