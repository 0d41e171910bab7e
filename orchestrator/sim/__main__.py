"""``python -m orchestrator.sim``: run seeds, print what each came to, and say how to see a failing one again."""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed

import structlog
from rich.console import Console

from orchestrator.sim.world import Result, run_seed

SEEDS_DEFAULT = 20
PROCESSES = 2
"""Runs are independent; more processes than cores would only slow each other down."""


def quiet_run(seed: int) -> Result | str:
    """A run's result, or the violation it ended in."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    try:
        return run_seed(seed)
    except Exception as error:  # noqa: BLE001 - whatever ends a run is its finding
        return f"{type(error).__name__}: {error}"


def run_many(seeds: range, console: Console) -> int:
    """Run seeds side by side; the number of failures."""
    failures = 0
    with ProcessPoolExecutor(PROCESSES) as pool:
        running = {pool.submit(quiet_run, seed): seed for seed in seeds}
        for done, future in enumerate(as_completed(running), start=1):
            result = future.result()
            if isinstance(result, str):
                failures += 1
                console.print(
                    f"[red]seed {running[future]}[/red] {result}\n  again: make sim SEED={running[future]}"
                )
            elif done % 20 == 0 or done == len(seeds):
                console.print(f"{done}/{len(seeds)} seeds, {failures} failed")
    return failures


def main() -> int:
    """Exit 1 where any invariant did not hold."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator.sim", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this one seed, with the log of every process")
    parser.add_argument("--seeds", type=int, default=SEEDS_DEFAULT, help="run this many seeds from 0")
    arguments = parser.parse_args()
    console = Console()
    if arguments.seed is None:
        return 1 if run_many(range(arguments.seeds), console) else 0
    console.print(run_seed(arguments.seed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
