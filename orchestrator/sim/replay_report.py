"""What a simulation came to: numbers for programs, a table for people, and plots as small SVG files."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from orchestrator.sim.plots import Axis, Curve, plot

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from orchestrator.sim.replay import Replay
    from orchestrator.sim.replay_tally import Readings, Samples

MS_PER_HOUR = 3_600_000
CURVE_POINTS = 500


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
    jobs_cut_short: int
    """They came to their time limit before they were done."""
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
        jobs_cut_short=tally.cut_short,
        jobs_running=sum(one.held for one in unfinished),
        jobs_waiting=sum(one.possible and not one.held for one in unfinished),
        jobs_never_fitted=sum(not one.possible and not one.held for one in unfinished),
        jobs_rounded_up=tally.rounded,
        interruptions=tally.interruptions,
        gpu_hours_available=tally.available_gpu_ms / MS_PER_HOUR,
        gpu_hours_held=tally.held_gpu_ms / MS_PER_HOUR,
        gpu_hours_useful=useful_ms / MS_PER_HOUR,
        utilisation=_ratio(tally.held_gpu_ms, tally.available_gpu_ms),
        goodput=replay.goodput(),
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
    cut_short = f"; {found.jobs_cut_short:,} came to their time limit"
    rounded = f"; {found.jobs_rounded_up:,} asked for part of a GPU and got a whole one"
    hours = f"{found.gpu_hours_held:,.1f} of {found.gpu_hours_available:,.1f} GPU-hours"
    return {
        "jobs": (
            f"{jobs} {found.jobs_waiting:,} waiting, {found.jobs_never_fitted:,} never fitted"
            f"{cut_short if found.jobs_cut_short else ''}{rounded if found.jobs_rounded_up else ''}"
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


HOURS: Final = Axis("virtual time in hours", low=0)
WHOLE: Final = Axis("part of all", low=0, high=1)


@dataclass(frozen=True, slots=True)
class Plotted:
    """What a plot shows, and where its points come from."""

    title: str
    across: Axis
    up: Axis
    points: Callable[[Replay], Sequence[tuple[float, float]]]


PLOTS: Final = {
    "utilisation": Plotted(
        "GPUs held, of those there", HOURS, WHOLE, lambda replay: _in_hours(replay.tally.utilisation.points())
    ),
    "queue": Plotted(
        "Jobs waiting",
        HOURS,
        Axis("jobs", low=0),
        lambda replay: _in_hours(replay.tally.queue.points()),
    ),
    "wait": Plotted(
        "Jobs that had started after so long",
        Axis("seconds of waiting", low=0),
        WHOLE,
        lambda replay: _in_seconds(replay.tally.waits),
    ),
    "completion": Plotted(
        "Jobs that were done after so long",
        Axis("seconds from arrival to the end", low=0),
        WHOLE,
        lambda replay: _in_seconds(replay.tally.completions),
    ),
    "fairness": Plotted(
        "Fairness between tenants until then (Jain's index)",
        HOURS,
        WHOLE,
        lambda replay: _until_now(replay, replay.tally.fairness, replay.tally.jain()),
    ),
    "fragmentation": Plotted(
        "GPUs free while jobs waited, of those there",
        HOURS,
        WHOLE,
        lambda replay: _in_hours(replay.tally.fragmentation.points()),
    ),
    "goodput": Plotted(
        "Work that counted until then, of GPU time held",
        HOURS,
        WHOLE,
        lambda replay: _until_now(replay, replay.tally.goodput, replay.goodput()),
    ),
}
"""By the name of its file. What is shown *until then* ends in what the table says."""


def write_plots(replay: Replay, folder: Path) -> tuple[Path, ...]:
    """One SVG file for each of PLOTS in a folder, which is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    source = f"orch simulate, policy {replay.options.policy}, seed {replay.options.seed}"
    paths = []
    for name, plotted in PLOTS.items():
        title, points = plotted.title, plotted.points(replay)
        path = folder / f"{name}.svg"
        path.write_text(
            plot(title, plotted.across, plotted.up, [Curve(title, points)], source=source), encoding="utf-8"
        )
        paths.append(path)
    return tuple(paths)


def _in_seconds(samples: Samples) -> list[tuple[float, float]]:
    return [(ms / 1000, part) for ms, part in samples.curve(CURVE_POINTS)]


def _until_now(replay: Replay, readings: Readings, last: float | None) -> list[tuple[float, float]]:
    now = [] if last is None else [(replay.now_ms, last)]
    return _in_hours([*readings.points, *now])


def _in_hours(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(ms / MS_PER_HOUR, value) for ms, value in points]
