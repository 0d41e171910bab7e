"""The plots of benchmarks/README.md, drawn from what a run of the figures found: `make bench` writes benchmarks/plots/.

A plot is drawn again whenever all its figures were measured, and says when and on what machine.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.report import Case, note
from orchestrator.adapters.clock import SystemClock
from orchestrator.sim.plots import Axis, Curve, Mark, beside, plot

FOLDER = Path(__file__).parent / "plots"
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Drawing:
    """What is drawn of all cases of a figure whose names begin so: curves of one name are one curve."""

    file: str
    figure: str
    prefix: str
    title: str
    across: Axis
    up: Axis
    marks: tuple[Mark, ...] = ()


DRAWINGS = (
    Drawing(
        "decision-time",
        "P3",
        "decision-",
        "One placement, by the size of the fleet",
        Axis("workers of ten GPUs each", logarithmic=True),
        Axis("milliseconds, in memory", logarithmic=True),
        (Mark("target for the 99th percentile at 10,000 workers", 10.0),),
    ),
    Drawing(
        "gang-admission",
        "P3",
        "bundles-",
        "Gangs admitted, by their size",
        Axis("machines in a gang", logarithmic=True),
        Axis("gangs a second", logarithmic=True),
    ),
    Drawing(
        "openb-allocation",
        "P5",
        "",
        "GPUs given out until fragmentation stops it, openb at 130 % load",
        Axis("policy", names=("ours", "FGD", "FGD, arrived", "best fit", "random", "upper bound")),
        Axis("% of all GPUs (median, least and most of the seeds)"),
    ),
    Drawing(
        "near-pairs",
        "P8",
        "f1-20ms",
        "Pairs within 20 ms found with 32 probes a machine",
        Axis("method", names=("ours", "log-ALS, our pairs", "log-ALS", "Vivaldi")),
        Axis("F1 (median, least and most of the seeds)", low=0, high=1),
    ),
    Drawing(
        "diameter-violations",
        "P8",
        "diameter-violations",
        "Pairs of verified gangs beyond their bound one frame later",
        Axis("planner", names=("ours", "ours, bound used to its end", "every distance known (median)")),
        Axis("% of pairs (median, least and most of the runs)", low=0),
    ),
    Drawing(
        "fairness",
        "FAIRNESS",
        "jain-hour",
        "Fairness of a contended hour, ten tenants of equal weight on 64 GPUs",
        Axis("minutes since the beginning", low=0, high=60),
        Axis("Jain's index of GPU time so far (median)", low=0, high=1),
        (Mark("target for the hour", 0.95),),
    ),
    Drawing(
        "goodput",
        "P9",
        "goodput-",
        "Goodput on spot machines",
        Axis("policy", names=("ours, 30 s of notice", "periodic checkpoints", "upper bound")),
        Axis("work that counted, of GPU time there"),
    ),
)


def write(cases: Sequence[Case], folder: Path = FOLDER) -> tuple[Path, ...]:
    """Draw what can be drawn of these; the files."""
    source, written = machine(), []
    for drawing in DRAWINGS:
        curves = curves_of(drawing, cases)
        if curves:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{drawing.file}.svg"
            text = plot(drawing.title, drawing.across, drawing.up, curves, drawing.marks, source)
            path.write_text(text, encoding="utf-8")
            note(f"wrote {path}")
            written.append(path)
    return tuple(written)


def curves_of(drawing: Drawing, cases: Iterable[Case]) -> list[Curve]:
    """The curves of a drawing; those over names stand beside each other."""
    found: dict[str, Curve] = {}
    for case in cases:
        if case.figure != drawing.figure or not case.case.startswith(drawing.prefix):
            continue
        for curve in case.curves:
            known = found.get(curve.name)
            found[curve.name] = curve if known is None else _joined(known, curve)
    curves = list(found.values())
    if not drawing.across.names:
        return curves
    return [
        Curve(
            curve.name,
            [(x + beside(len(curves), number), y) for x, y in curve.points],
            curve.spreads,
            curve.joined,
        )
        for number, curve in enumerate(curves)
    ]


def _joined(one: Curve, other: Curve) -> Curve:
    return Curve(one.name, [*one.points, *other.points], [*one.spreads, *other.spreads], one.joined)


def machine() -> str:
    """When and where this runs, in one line."""
    day = datetime.fromtimestamp(SystemClock().now().wall_ms / 1000, tz=UTC).date()
    memory_gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
    cores = len(os.sched_getaffinity(0))
    return (
        f"make bench, {day.isoformat()}: {cores} cores ({platform.machine()}), {memory_gib:.0f} GiB,"
        f" Python {platform.python_version()}, {os.getloadavg()[0]:.1f} processes running at its end"
    )
