"""Ray's placement groups on one local GCS, in a child process: reads `BUNDLES COUNT MODE` a line, answers in seconds.

In MODE `each` a group counts from its creation until Ray says that all its bundles are reserved, and then comes the
next; in `batch` all are created first, and the clock stops when the last is reserved. Removing them is not counted.
"""

from __future__ import annotations

import sys
import time

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

CPUS = 4_000
"""More than all groups of a line have bundles: none waits for what another still gives back. Nothing runs in them."""

READY_S = 60
PAUSE_S = 0.1


def measure(bundles: int, count: int, *, batch: bool) -> float:
    """Seconds for so many groups."""
    groups = []
    began_s = time.perf_counter()
    for _ in range(count):
        groups.append(placement_group([{"CPU": 1}] * bundles))
        if not batch:
            _await(groups[-1], bundles)
    if batch:
        for group in groups:
            _await(group, bundles)
    elapsed_s = time.perf_counter() - began_s
    for group in groups:
        remove_placement_group(group)
    while ray.available_resources().get("CPU", 0) < CPUS:
        time.sleep(PAUSE_S)
    return elapsed_s


def _await(group: PlacementGroup, bundles: int) -> None:
    if not group.wait(READY_S):
        raise SystemExit(f"a group of {bundles} bundles was not ready within {READY_S} s")


def main() -> None:
    """Start Ray, say so, and answer until the input ends."""
    ray.init(num_cpus=CPUS, include_dashboard=False, log_to_driver=False, logging_level="error")
    print("ready", flush=True)
    for line in sys.stdin:
        bundles, count, mode = line.split()
        print(measure(int(bundles), int(count), batch=mode == "batch"), flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main()
