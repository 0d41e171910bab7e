"""Many seeds side by side, each in a process of its own that imports this file by its name."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from typing import TYPE_CHECKING

import structlog

from orchestrator.sim.schedules import play
from orchestrator.sim.world import Result, run_seed

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

PROCESSES = 2
"""Runs are independent; more processes than cores would only slow each other down."""


AGAIN: dict[Callable[[int], Result], str] = {run_seed: "--seed", play: "--schedule"}
"""How one run is seen again."""


def quiet_run(run: Callable[[int], Result], seed: int) -> Result | str:
    """A run's result, or the violation it ended in."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    try:
        return run(seed)
    except Exception as error:  # noqa: BLE001 - whatever ends a run is its finding
        return f"{type(error).__name__}: {error}"


def run_many(
    seeds: range, console: Console, run: Callable[[int], Result] = run_seed, report_every: int = 20
) -> int:
    """Run seeds side by side; the number of failures."""
    failures = 0
    # Not by fork: where gRPC ran before, its finalizers wait in the child for threads that only the parent has.
    with ProcessPoolExecutor(PROCESSES, get_context("spawn")) as pool:
        running = {pool.submit(partial(quiet_run, run), seed): seed for seed in seeds}
        for done, future in enumerate(as_completed(running), start=1):
            result = future.result()
            if isinstance(result, str):
                failures += 1
                seed = running[future]
                again = f"python -m orchestrator.sim {AGAIN[run]} {seed}"
                console.print(f"[red]seed {seed}[/red] {result}\n  again: {again}")
            elif done % report_every == 0 or done == len(seeds):
                console.print(f"{done}/{len(seeds)} seeds, {failures} failed")
    return failures
