"""`orch simulate`: a trace of jobs on a fleet, decided by the scheduler of the network itself, on a virtual clock."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.output import Output, OutputFormat


def simulate(
    fleet: Annotated[Path, typer.Option(help="CSV of machines: ours, or openb's list of nodes.")],
    trace: Annotated[Path, typer.Option(help="CSV of jobs: ours, or openb's list of pods.")],
    availability: Annotated[
        Path | None, typer.Option(help="CSV of milliseconds,machines: how many of the fleet are there.")
    ] = None,
    policy: Annotated[
        str,
        typer.Option(
            help="fair: the network's own; no-backfill: it lends nothing; fifo: one queue for everybody."
        ),
    ] = "fair",
    seed: Annotated[int, typer.Option(help="Chooses which machines go, and what is sampled.")] = 0,
    speed: Annotated[float, typer.Option(help="Arrivals come so many times as fast.")] = 1.0,
    until: Annotated[float | None, typer.Option(help="Seconds of virtual time to end after.")] = None,
    formation: Annotated[float, typer.Option(help="Seconds that a cluster takes to form.")] = 20.0,
    warm: Annotated[
        float, typer.Option(help="Seconds that a cluster waits for its tenant's next job.")
    ] = 120.0,
    checkpoint_every: Annotated[
        float, typer.Option(help="Seconds of work between checkpoints; 0: none.")
    ] = 600.0,
    checkpoint_cost: Annotated[float, typer.Option(help="Seconds that a checkpoint takes.")] = 10.0,
    notice: Annotated[float, typer.Option(help="Seconds before it goes that a machine says so.")] = 0.0,
    near_rtt_ms: Annotated[int, typer.Option(help="Round trip between machines of one region.")] = 2,
    far_rtt_ms: Annotated[int, typer.Option(help="Round trip between regions.")] = 80,
    rows_max: Annotated[int, typer.Option(help="Rows of the trace that are read at most.")] = 10_000_000,
    plots: Annotated[
        Path | None, typer.Option(help="Folder for plots of utilisation, queue and waits.")
    ] = None,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Run a trace of jobs on a fleet with the scheduler that the network itself uses, without any network.

    The files' columns are in docs/simulate.md. Ends with a table; Ctrl-C ends early, with what is known by then.
    """
    # Only now: what it needs would make every other command start late.
    from orchestrator.cli.simulating import Asked, simulate_files

    simulate_files(
        Asked(
            fleet=fleet,
            trace=trace,
            availability=availability,
            policy=policy,
            seed=seed,
            speed=speed,
            until_s=until,
            formation_s=formation,
            warm_s=warm,
            checkpoint_every_s=checkpoint_every,
            checkpoint_cost_s=checkpoint_cost,
            notice_s=notice,
            near_rtt_ms=near_rtt_ms,
            far_rtt_ms=far_rtt_ms,
            rows_max=rows_max,
            plots=plots,
        ),
        output,
    )
