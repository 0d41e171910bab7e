"""Pictures of groups: an SVG file for a browser, letters for a terminal. Distances are about the round trips."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from html import escape
from math import hypot
from string import ascii_letters
from typing import TYPE_CHECKING

from orchestrator.cli.output import clean
from orchestrator.sim.plots import SVG

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

WIDTH, HEIGHT, MARGIN = 960, 640, 48
LEGEND_WIDTH = 240
LINE = 18
"""Pixels from one line of the legend to the next."""

DOT, RING_MIN = 4, 14
"""Radii: of a worker, and of the smallest circle around a group."""

LABELS_MAX = 40
"""Of groups, the largest: more would lie on each other."""

LABEL_HALF = 100
"""Half of a label's width: none begins left of the page."""

COLOURS = ("#1f6feb", "#d1495b", "#2e8b57", "#8e5ea2", "#e08e0b", "#117a8b", "#6b4f3a", "#c2417c")
"""Of kinds of workers, the commonest first; further kinds share the last."""

COLUMNS, ROWS = 76, 22
"""Of the terminal's picture: what every terminal has."""

ALONE, CROWD = "·", "*"

SCALES_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500)


@dataclass(frozen=True, slots=True)
class Mark:
    """One worker."""

    name: str
    group: int
    leads: bool
    x_ms: float
    y_ms: float
    kind: str


@dataclass(frozen=True, slots=True)
class _Frame:
    """From milliseconds to a page of so many units, the same both ways; ``squash`` is of a unit's height to its width."""

    left_ms: float
    top_ms: float
    units_per_ms: float
    squash: float = 1.0

    def at(self, mark: Mark) -> tuple[float, float]:
        across = (mark.x_ms - self.left_ms) * self.units_per_ms
        return across, (self.top_ms - mark.y_ms) * self.units_per_ms * self.squash


def _frame(marks: Sequence[Mark], width: float, height: float, squash: float = 1.0) -> _Frame:
    """All marks in the middle of a page."""
    left, right = min(one.x_ms for one in marks), max(one.x_ms for one in marks)
    low, top = min(one.y_ms for one in marks), max(one.y_ms for one in marks)
    per_ms = min(width / max(right - left, 1e-6), height / squash / max(top - low, 1e-6))
    # Where all stand at one place, that is not blown up beyond what a microsecond is worth.
    per_ms = min(per_ms, width)
    left -= (width / per_ms - (right - left)) / 2
    top += (height / squash / per_ms - (top - low)) / 2
    return _Frame(left, top, per_ms, squash)


def _groups(marks: Iterable[Mark]) -> list[tuple[int, list[Mark]]]:
    """Groups of two or more, the largest first."""
    found: dict[int, list[Mark]] = {}
    for mark in marks:
        found.setdefault(mark.group, []).append(mark)
    several = [(number, members) for number, members in found.items() if len(members) > 1]
    return sorted(several, key=lambda one: (-len(one[1]), one[0]))


def _called(number: int, members: Sequence[Mark]) -> str:
    return f"g{number}: {len(members)} × {members[0].kind}"


def _shown(text: str) -> str:
    """As a page may hold it: strangers chose the names."""
    return escape(clean(text))


# ---------------------------------------------------------------- SVG


def svg(marks: Sequence[Mark], bound_ms: int) -> str:
    """A page of its own; hovering over a dot tells the worker's name. ``marks`` are one at least."""
    frame = _frame(marks, WIDTH - LEGEND_WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN)
    kinds = [kind for kind, _ in Counter(one.kind for one in marks).most_common()]
    colour = {kind: COLOURS[min(number, len(COLOURS) - 1)] for number, kind in enumerate(kinds)}
    lines = [
        f'<svg xmlns="{SVG}" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{MARGIN}" y="24" font-size="14">Workers by round trip; groups within {bound_ms} ms</text>',
        f'<g transform="translate({MARGIN},{MARGIN})">',
        *_circles(marks, frame, colour),
        *(_dot(one, frame, colour[one.kind]) for one in marks),
        "</g>",
        *_legend(kinds, colour, frame),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _circles(marks: Sequence[Mark], frame: _Frame, colour: dict[str, str]) -> Iterator[str]:
    """Around each group's leader, as wide as the farthest of it is drawn."""
    for place, (number, members) in enumerate(_groups(marks)):
        leader = next((one for one in members if one.leads), members[0])
        x, y = frame.at(leader)
        reach = max(hypot(x - there[0], y - there[1]) for there in map(frame.at, members))
        radius = max(RING_MIN, reach + 2 * DOT)
        paint = colour[leader.kind]
        yield (
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{paint}" fill-opacity="0.08"'
            f' stroke="{paint}"/>'
        )
        if place < LABELS_MAX:
            text = _shown(_called(number, members))
            middle = max(x, LABEL_HALF - MARGIN)
            yield f'<text x="{middle:.1f}" y="{y - radius - 4:.1f}" text-anchor="middle">{text}</text>'


def _dot(mark: Mark, frame: _Frame, paint: str) -> str:
    x, y = frame.at(mark)
    fill = "white" if mark.leads else paint
    title = _shown(f"{mark.name}, g{mark.group}{', leader' if mark.leads else ''}")
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{DOT}" fill="{fill}" stroke="{paint}" stroke-width="2">'
        f"<title>{title}</title></circle>"
    )


def _legend(kinds: Sequence[str], colour: dict[str, str], frame: _Frame) -> Iterator[str]:
    """What the colours mean, what a leader looks like, and how long some milliseconds are."""
    x, y = WIDTH - LEGEND_WIDTH, MARGIN
    for kind in kinds[: len(COLOURS)]:
        yield f'<circle cx="{x}" cy="{y}" r="{DOT}" fill="{colour[kind]}"/>'
        yield f'<text x="{x + 12}" y="{y + 4}">{_shown(kind)}</text>'
        y += LINE
    if len(kinds) > len(COLOURS):
        yield f'<text x="{x + 12}" y="{y + 4}">and {len(kinds) - len(COLOURS)} more in the last colour</text>'
        y += LINE
    yield f'<circle cx="{x}" cy="{y}" r="{DOT}" fill="white" stroke="black" stroke-width="2"/>'
    yield f'<text x="{x + 12}" y="{y + 4}">leader of a group, or alone</text>'
    bar_ms = max((ms for ms in SCALES_MS if ms * frame.units_per_ms <= LEGEND_WIDTH - MARGIN), default=1)
    length = min(bar_ms * frame.units_per_ms, LEGEND_WIDTH - MARGIN)
    yield f'<line x1="{x}" y1="{y + 40}" x2="{x + length:.1f}" y2="{y + 40}" stroke="black" stroke-width="2"/>'
    yield f'<text x="{x}" y="{y + 34}">{bar_ms} ms of round trip</text>'


# ---------------------------------------------------------------- terminal


def scatter(marks: Sequence[Mark]) -> list[str]:
    """Lines of letters, one letter for each group, and what they mean. ``marks`` are one at least."""
    several = _groups(marks)
    letters = {
        number: ascii_letters[place] for place, (number, _) in enumerate(several[: len(ascii_letters)])
    }
    # A character is about twice as high as it is wide.
    frame = _frame(marks, COLUMNS - 1, ROWS - 1, squash=0.5)
    page = [[" "] * COLUMNS for _ in range(ROWS)]
    for mark in marks:
        x, y = frame.at(mark)
        column, row = min(COLUMNS - 1, max(0, round(x))), min(ROWS - 1, max(0, round(y)))
        letter = letters.get(mark.group, ALONE)
        here = page[row][column]
        page[row][column] = letter if here in {" ", ALONE, letter} else here if letter == ALONE else CROWD
    lines = ["".join(row) for row in page]
    lines += ["", f"across: {COLUMNS / frame.units_per_ms:.0f} ms of round trip"]
    lines += [
        f"{letters[number]}  {_called(number, members)}" for number, members in several if number in letters
    ]
    if len(several) > len(letters):
        lines.append(f"{ALONE}  {len(several) - len(letters)} smaller groups")
    if any(mark.group not in dict(several) for mark in marks):
        lines.append(f"{ALONE}  alone")
    if any(CROWD in line for line in lines[:ROWS]):
        lines.append(f"{CROWD}  several groups at one place")
    return lines
