"""``python -m orchestrator.sim``: run seeds, print what each came to, and say how to see a failing one again."""

from __future__ import annotations

import argparse
import sys

from rich.console import Console

from orchestrator.sim.schedules import play
from orchestrator.sim.seeds import run_many
from orchestrator.sim.world import run_seed

SEEDS_DEFAULT = 20


def main() -> int:
    """Exit 1 where any invariant did not hold."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator.sim", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this one seed, with the log of every process")
    parser.add_argument("--seeds", type=int, default=SEEDS_DEFAULT, help="run this many seeds from 0")
    parser.add_argument("--schedule", type=int, help="run this one schedule, with the log of every process")
    parser.add_argument("--schedules", type=int, default=0, help="run this many schedules from 0 instead")
    arguments = parser.parse_args()
    console = Console()
    if arguments.seed is not None:
        console.print(run_seed(arguments.seed))
    elif arguments.schedule is not None:
        console.print(play(arguments.schedule))
    elif arguments.schedules:
        return 1 if run_many(range(arguments.schedules), console, play, 100) else 0
    else:
        return 1 if run_many(range(arguments.seeds), console) else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
