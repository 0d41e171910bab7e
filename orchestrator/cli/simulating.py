"""What `orch simulate` does with its options."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import typer

from orchestrator.adapters.clock import SystemClock
from orchestrator.cli.errors import EXIT_INTERRUPTED, usage_error
from orchestrator.cli.output import OutputFormat, note, print_fields
from orchestrator.core.supply.catalogue import nearest
from orchestrator.sim.obedient import Ways
from orchestrator.sim.replay import POLICIES, Options, Replay, ReplayError
from orchestrator.sim.replay_report import report, table, write_plots
from orchestrator.sim.traces import (
    SECONDS_MAX,
    TracedJob,
    TraceError,
    read_availability,
    read_fleet,
    read_trace,
)

MS_PER_S = 1000
PROGRESS_S = 1.0
COUNTED_EACH = 100_000
"""Jobs that are read in about a second."""

SPEED_MIN, SPEED_MAX = 1e-3, 1e6
"""Beyond them all arrives at once, or nothing ever."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The options as typed."""

    fleet: Path
    trace: Path
    availability: Path | None
    policy: str
    seed: int
    speed: float
    until_s: float | None
    formation_s: float
    warm_s: float
    checkpoint_every_s: float
    checkpoint_cost_s: float
    notice_s: float
    near_rtt_ms: int
    far_rtt_ms: int
    rows_max: int
    plots: Path | None


def simulate_files(asked: Asked, output: OutputFormat) -> None:
    """Read, run, show. Raises CliError, and typer.Exit where it was interrupted."""
    options = _options(asked)
    if asked.plots is not None:
        try:
            # Now, not when all is done and would be lost.
            asked.plots.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise usage_error(f"--plots: {asked.plots} cannot be a folder: {reason}") from None
    try:
        # Once through before anything is simulated: what is wrong in its last row is said now, not in an hour.
        total = _count(read_trace(asked.trace, asked.rows_max))
        replay = Replay(
            read_fleet(asked.fleet),
            read_trace(asked.trace, asked.rows_max),
            options,
            read_availability(asked.availability, asked.rows_max) if asked.availability else (),
        )
        interrupted = _run(replay, total)
    except (TraceError, ReplayError) as error:
        raise usage_error(str(error)) from error
    except KeyboardInterrupt:
        # While it was reading: there is nothing to show yet.
        raise typer.Exit(EXIT_INTERRUPTED) from None
    _show(replay, output, asked.plots, interrupted=interrupted)
    if interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)


def _options(asked: Asked) -> Options:
    if asked.policy not in POLICIES:
        hint = nearest(asked.policy, list(POLICIES))
        raise usage_error(f"--policy {asked.policy[:40]!r} is not known; nearest is {hint}")
    if not SPEED_MIN <= asked.speed <= SPEED_MAX:
        raise usage_error(f"--speed is {asked.speed}; it must lie between {SPEED_MIN:g} and {SPEED_MAX:,.0f}")
    if asked.rows_max < 1:
        raise usage_error(f"--rows-max is {asked.rows_max}; it must be at least 1")
    ways = Ways(asked.near_rtt_ms, asked.far_rtt_ms)
    if not 1 <= ways.near_ms <= ways.far_ms <= MS_PER_S:
        raise usage_error(f"--near-rtt-ms must be at least 1, --far-rtt-ms from there to {MS_PER_S}")
    return Options(
        policy=asked.policy,
        seed=asked.seed,
        speed=asked.speed,
        until_ms=None if asked.until_s is None else _milliseconds("--until", asked.until_s),
        formation_ms=_milliseconds("--formation", asked.formation_s),
        warm_ms=_milliseconds("--warm", asked.warm_s),
        checkpoint_every_ms=_milliseconds("--checkpoint-every", asked.checkpoint_every_s),
        checkpoint_cost_ms=_milliseconds("--checkpoint-cost", asked.checkpoint_cost_s),
        notice_ms=_milliseconds("--notice", asked.notice_s),
        ways=ways,
    )


def _count(trace: Iterator[TracedJob]) -> int:
    """Of its jobs, with a line now and then on a terminal."""
    total = 0
    for _ in trace:
        total += 1
        if total % COUNTED_EACH == 0 and sys.stderr.isatty():
            note(f"… {total:,} jobs read")
    return total


def _run(replay: Replay, total: int) -> bool:
    """To its end, with a line of progress each second on a terminal; whether it was interrupted."""
    clock = SystemClock()
    shown_s = clock.elapsed_s()
    terminal = sys.stderr.isatty()
    try:
        while replay.step():
            if terminal and clock.elapsed_s() - shown_s >= PROGRESS_S:
                shown_s = clock.elapsed_s()
                tally = replay.tally
                note(
                    f"… {replay.now_ms / MS_PER_S:,.0f} s: {tally.arrived:,} of {total:,} jobs arrived,"
                    f" {tally.done:,} done, {tally.waiting:,} waiting"
                )
    except KeyboardInterrupt:
        return True
    return False


def _show(replay: Replay, output: OutputFormat, plots: Path | None, *, interrupted: bool) -> None:
    found = report(replay, interrupted=interrupted)
    if output is OutputFormat.JSON:
        sys.stdout.write(json.dumps(found.as_json(), indent=2) + "\n")
    else:
        print_fields(table(found))
    if plots is not None:
        for path in write_plots(replay, plots):
            note(f"wrote {path}")


def _milliseconds(option: str, seconds: float) -> int:
    if not 0 <= seconds <= SECONDS_MAX:
        raise usage_error(f"{option} is {seconds} s; it must lie between 0 and {SECONDS_MAX:,} s")
    return round(seconds * MS_PER_S)
