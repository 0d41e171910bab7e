"""Two hundred seeded runs of the whole system, each with its own faults."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest
from rich.console import Console

from orchestrator.sim.seeds import run_many
from orchestrator.sim.world import run_seed

pytestmark = [pytest.mark.simulation, pytest.mark.timeout(900)]

SEEDS = 200


def test_simulation_200_seeds_every_invariant_holds() -> None:
    said = io.StringIO()
    failures = run_many(range(SEEDS), Console(file=said, width=200))
    assert failures == 0, said.getvalue()


def test_simulation_tries_come_to_their_time_limit() -> None:
    """Runs in which no limit was ever reached would say nothing of it."""
    assert sum(run_seed(seed).cut_short for seed in range(5)) > 0


def test_simulation_one_seed_twice_takes_the_same_course() -> None:
    script = "from orchestrator.sim.world import run_seed; print(run_seed(11).digest)"
    digests = set()
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        run = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
        )
        digests.add(run.stdout.split()[-1])
    assert len(digests) == 1
