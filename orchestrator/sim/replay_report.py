"""What a simulation came to: numbers for programs, a table for people, and plots as small SVG files."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from orchestrator.sim.replay import Replay

MS_PER_HOUR = 3_600_000
CURVE_POINTS = 500

WIDTH, HEIGHT, MARGIN = 720, 260, 48
SVG = "http://www.w3.org/2000/svg"
GRID = 4
"""Lines across a plot."""


@dataclass(frozen=True, slots=True)
class Report:
    """Names carry units; None where nothing was there to measure."""

    policy: str
    seed: int
    interrupted: bool
    """Ended by hand: what is here is what was known until then."""
    simulated_s: float
    jobs_arrived: int
    jobs_done: int
    jobs_running: int
    """They hold GPUs at the end."""
    jobs_waiting: int
    """They hold none at the end, though the whole fleet could hold them."""
    jobs_never_fitted: int
    """The whole fleet, empty, could not hold them."""
    jobs_rounded_up: int
    """They asked for a part of a GPU and got a whole one."""
    interruptions: int
    gpu_hours_available: float
    gpu_hours_held: float
    gpu_hours_useful: float
    utilisation: float | None
    """GPU time that jobs held, forming included, over what was there."""
    goodput: float | None
    """Work that counted over GPU time held."""
    wait_s_p50: float | None
    """From arrival to the first start."""
    wait_s_p90: float | None
    wait_s_p99: float | None
    jct_s_mean: float | None
    """From arrival to the end."""
    jct_s_p50: float | None
    jct_s_p99: float | None
    tenants: int
    contended_s: float
    """Time in which two tenants or more had jobs waiting."""
    fairness_jain: float | None
    """Over tenants: GPU time in contention by what their weights made due; 1 is perfectly fair."""
    fragmentation_gpus: float | None
    """GPUs free, in the mean, while a job waited that the whole fleet could hold: nothing that waited fitted them."""
    fragmentation: float | None
    """The same over GPUs available, in the mean of the whole time."""

    def as_json(self) -> dict[str, object]:
        """One object, as it is."""
        return asdict(self)


def report(replay: Replay, *, interrupted: bool = False) -> Report:
    """What is known now; the simulation may have been ended at any instant."""
    tally = replay.tally
    useful_ms = replay.useful_gpu_ms()
    unfinished = replay.unfinished.values()
    free = tally.short_free_gpu_ms / tally.short_ms if tally.short_ms else None
    available = tally.available_gpu_ms / tally.now_ms if tally.now_ms else 0
    waits, completions = tally.waits, tally.completions
    return Report(
        policy=replay.options.policy,
        seed=replay.options.seed,
        interrupted=interrupted,
        simulated_s=tally.now_ms / 1000,
        jobs_arrived=tally.arrived,
        jobs_done=tally.done,
        jobs_running=sum(one.held for one in unfinished),
        jobs_waiting=sum(one.possible and not one.held for one in unfinished),
        jobs_never_fitted=sum(not one.possible and not one.held for one in unfinished),
        jobs_rounded_up=tally.rounded,
        interruptions=tally.interruptions,
        gpu_hours_available=tally.available_gpu_ms / MS_PER_HOUR,
        gpu_hours_held=tally.held_gpu_ms / MS_PER_HOUR,
        gpu_hours_useful=useful_ms / MS_PER_HOUR,
        utilisation=_ratio(tally.held_gpu_ms, tally.available_gpu_ms),
        goodput=_ratio(useful_ms, tally.held_gpu_ms),
        wait_s_p50=_seconds(waits.quantile(0.5)),
        wait_s_p90=_seconds(waits.quantile(0.9)),
        wait_s_p99=_seconds(waits.quantile(0.99)),
        jct_s_mean=_seconds(completions.mean),
        jct_s_p50=_seconds(completions.quantile(0.5)),
        jct_s_p99=_seconds(completions.quantile(0.99)),
        tenants=len(tally.tenants),
        contended_s=tally.contended_ms / 1000,
        fairness_jain=tally.jain(),
        fragmentation_gpus=free,
        fragmentation=None if free is None or not available else free / available,
    )


def table(found: Report) -> dict[str, str]:
    """A line for each thing, in words."""
    jobs = f"{found.jobs_arrived:,} arrived, {found.jobs_done:,} done, {found.jobs_running:,} running,"
    rounded = f"; {found.jobs_rounded_up:,} asked for part of a GPU and got a whole one"
    hours = f"{found.gpu_hours_held:,.1f} of {found.gpu_hours_available:,.1f} GPU-hours"
    return {
        "jobs": (
            f"{jobs} {found.jobs_waiting:,} waiting, {found.jobs_never_fitted:,} never fitted"
            f"{rounded if found.jobs_rounded_up else ''}"
        ),
        "simulated": f"{_time(found.simulated_s)}{', ended by hand' if found.interrupted else ''}",
        "utilisation": f"{_percent(found.utilisation)} ({hours})",
        "wait": f"p50 {_time(found.wait_s_p50)}, p90 {_time(found.wait_s_p90)}, p99 {_time(found.wait_s_p99)}",
        "completion": f"mean {_time(found.jct_s_mean)}, p50 {_time(found.jct_s_p50)}, p99 {_time(found.jct_s_p99)}",
        "fairness": _fairness(found),
        "fragmentation": _fragmentation(found),
        "goodput": f"{_percent(found.goodput)} of GPU time held was work that counted",
        "interruptions": f"{found.interruptions:,}",
        "policy": f"{found.policy}, seed {found.seed}",
    }


def _fairness(found: Report) -> str:
    if found.fairness_jain is None:
        return "no contention between tenants"
    return f"Jain {found.fairness_jain:.3f} of {found.tenants:,} tenants in {_time(found.contended_s)} of contention"


def _fragmentation(found: Report) -> str:
    if found.fragmentation_gpus is None:
        return "no job waited for room"
    share = _percent(found.fragmentation)
    return f"{found.fragmentation_gpus:,.2f} GPUs ({share}) free while jobs waited, in the mean"


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _seconds(ms: float | None) -> float | None:
    return None if ms is None else ms / 1000


def _percent(part: float | None) -> str:
    return "–" if part is None else f"{100 * part:.1f} %"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    for unit, length, least in (("d", 86_400, 2 * 86_400), ("h", 3_600, 2 * 3_600), ("min", 60, 120)):
        if seconds >= least:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


# ---------------------------------------------------------------- plots


def write_plots(replay: Replay, folder: Path) -> tuple[Path, ...]:
    """``utilisation.svg``, ``queue.svg`` and ``wait.svg`` in a folder, which is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    tally = replay.tally
    hours = "hours"
    plots = {
        "utilisation": plot("GPUs held, of those there", hours, _in_hours(tally.utilisation.points()), top=1),
        "queue": plot("Jobs waiting", hours, _in_hours(tally.queue.points())),
        "wait": plot(
            "Part of jobs that had started after",
            "seconds of waiting",
            [(ms / 1000, part) for ms, part in tally.waits.curve(CURVE_POINTS)],
            top=1,
        ),
    }
    paths = []
    for name, text in plots.items():
        path = folder / f"{name}.svg"
        path.write_text(text, encoding="utf-8")
        paths.append(path)
    return tuple(paths)


def _in_hours(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(ms / MS_PER_HOUR, value) for ms, value in points]


def plot(title: str, unit: str, points: Sequence[tuple[float, float]], top: float = 0) -> str:
    """One line over its axes; ``top`` 0: as high as the line."""
    across = max((x for x, _ in points), default=0) or 1
    height = top or max((y for _, y in points), default=0) or 1
    inner_width, inner_height = WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN
    place = [
        f"{MARGIN + inner_width * x / across:.1f},{HEIGHT - MARGIN - inner_height * y / height:.1f}"
        for x, y in points
    ]
    lines = [
        f'<svg xmlns="{SVG}" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{MARGIN}" y="24" font-size="14">{escape(title)}</text>',
    ]
    for step in range(GRID + 1):
        x, y = MARGIN + inner_width * step / GRID, HEIGHT - MARGIN - inner_height * step / GRID
        lines += [
            f'<line x1="{MARGIN}" y1="{y:.1f}" x2="{WIDTH - MARGIN}" y2="{y:.1f}" stroke="#ddd"/>',
            f'<text x="{MARGIN - 6}" y="{y + 4:.1f}" text-anchor="end">{height * step / GRID:.4g}</text>',
            f'<text x="{x:.1f}" y="{HEIGHT - MARGIN + 18}" text-anchor="middle">{across * step / GRID:.4g}</text>',
        ]
    middle = WIDTH // 2
    lines += [
        f'<text x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">{escape(unit)}</text>',
        f'<polyline fill="none" stroke="#1f6feb" stroke-width="1.5" points="{" ".join(place)}"/>',
        "</svg>",
    ]
    return "\n".join(lines) + "\n"
