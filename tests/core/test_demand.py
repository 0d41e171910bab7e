"""The histogram of what was asked for lately, and what free devices are worth to it."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.core.jobs import Requirements
from orchestrator.core.scheduling.demand import (
    HALF_LIFE_MS,
    LEARNT_ARRIVALS_MIN,
    LOST_DEVICE_PRICE,
    PRIOR,
    REBASED_HALF_LIVES,
    Demand,
)
from orchestrator.core.scheduling.fragmentation import GAP_WEIGHT, WHOLE_MILLI, Machines, Worth
from orchestrator.core.supply.catalogue import MODELS
from orchestrator.core.supply.fleet import HardwareClass
from orchestrator.core.supply.hardware import DEVICES_MAX
from tests.core.worlds import START_WALL_MS, World

MANY = 4_000
"""Arrivals beside which what is expected of every fleet hardly counts."""


def arrived(demand: Demand, wanted: Requirements, count: int = MANY, at_ms: int = START_WALL_MS) -> None:
    for _ in range(count):
        demand.arrived(wanted, at_ms)


def lost(demand: Demand, free: int, taken: int, model: str = "RTX4090") -> int:
    """Microcredits per hour that a machine is worth less afterwards."""
    (row,) = demand.model_numbers([model]).tolist()
    worth = demand.worth()[row]
    return int(worth[free] - worth[free - taken])


@pytest.mark.parametrize("taken", [1, 2, 3, 8])
def test_demand_of_which_nothing_is_known_prefers_what_leaves_least(taken: int) -> None:
    losses = [lost(Demand(), free, taken) for free in range(taken, DEVICES_MAX + 1)]
    assert losses == sorted(losses)
    assert len(set(losses)) == len(losses), "one more device that is left over is always worse"
    assert losses[0] > 0


def test_demand_of_large_gangs_keeps_machines_whole_for_them() -> None:
    demand = Demand()
    arrived(demand, Requirements(gpus=8))
    assert lost(demand, 9, 1) < lost(demand, 8, 1), "nine can spare one, though eight would leave less"
    assert lost(demand, 8, 1) == pytest.approx(8 * LOST_DEVICE_PRICE, rel=0.05)
    assert lost(demand, 7, 1) < LOST_DEVICE_PRICE // 10, "nobody wants seven"


def test_demand_of_one_model_is_felt_by_that_model_alone() -> None:
    demand = Demand()
    arrived(demand, Requirements(gpus=4, gpu_model="H100"))
    assert lost(demand, 4, 1, "H100") > 3 * LOST_DEVICE_PRICE
    assert lost(demand, 4, 1, "RTX4090") < LOST_DEVICE_PRICE // 10
    arrived(
        demand, Requirements(gpus=4, min_gpu_memory_gb=24, hardware_class=HardwareClass.CONSUMER), 2 * MANY
    )
    assert lost(demand, 4, 1, "RTX4090") > LOST_DEVICE_PRICE
    assert lost(demand, 4, 1, "RTX3060") < LOST_DEVICE_PRICE // 10, "its memory is too small"


def test_demand_of_gpus_per_worker_counts_the_parts() -> None:
    demand = Demand()
    arrived(demand, Requirements(gpus=16, gpus_per_worker=2))
    assert lost(demand, 2, 1) > LOST_DEVICE_PRICE
    assert lost(demand, 16, 1) == pytest.approx(lost(demand, 4, 1), rel=0.2), "nobody wants sixteen at once"


def test_demand_of_processors_leaves_gpus_alone() -> None:
    demand = Demand()
    arrived(demand, Requirements(gpus=0))
    assert np.array_equal(demand.worth(), Demand().worth())


def test_demand_fades_with_time() -> None:
    demand = Demand()
    arrived(demand, Requirements(gpus=8), 200)
    arrived(demand, Requirements(gpus=2), 200, START_WALL_MS + 6 * HALF_LIFE_MS)
    assert lost(demand, 2, 1) > lost(demand, 8, 1) > 0


def test_demand_over_years_still_counts_and_stays_small() -> None:
    demand = Demand()
    fresh = Demand()
    arrived(demand, Requirements(gpus=8), 100)
    far_ms = START_WALL_MS + 3 * REBASED_HALF_LIVES * HALF_LIFE_MS
    for one, at_ms in ((demand, far_ms), (fresh, START_WALL_MS)):
        arrived(one, Requirements(gpus=2), 100, at_ms)
        arrived(one, Requirements(gpus=4), 200, at_ms + 6 * HALF_LIFE_MS)
    # The two learn at other moments of the last arrivals.
    assert np.abs(demand.worth() - fresh.worth()).max() < LOST_DEVICE_PRICE // 20


def test_demand_is_learnt_from_again_after_a_fifth_more() -> None:
    demand = Demand()
    before = demand.worth()
    arrived(demand, Requirements(gpus=8), LEARNT_ARRIVALS_MIN - 1)
    assert demand.worth() is before
    arrived(demand, Requirements(gpus=8), 1)
    assert lost(demand, 8, 1) > before[0][8] - before[0][7]


def test_demand_is_worth_what_the_fragmentation_measure_says() -> None:
    """But for what whole devices cannot have, gaps; of any model where none was named."""
    free = np.where(np.arange(DEVICES_MAX) < np.array([[3], [8]]), WHOLE_MILLI, 0)
    nothing = np.zeros(2, dtype=np.int64)
    machines = Machines(nothing, nothing, free, np.array([list(MODELS).index("RTX4090")] * 2))
    three, eight = Worth(PRIOR).of(machines) - GAP_WEIGHT * WHOLE_MILLI * np.array([3, 8])
    assert lost(Demand(), 8, 5) == pytest.approx((eight - three) * LOST_DEVICE_PRICE / WHOLE_MILLI, abs=1)


def test_state_learns_from_jobs_as_they_come_and_as_they_are_loaded() -> None:
    world = World()
    for _ in range(LEARNT_ARRIVALS_MIN):
        world.submit(Requirements(gpus=8))
    came = lost(world.state.demand, 8, 1)
    assert came > lost(Demand(), 8, 1)
    loaded = World()
    for job in world.state.jobs.values():
        loaded.state.put(job)
        loaded.state.put(job)
    assert lost(loaded.state.demand, 8, 1) == came, "a change of a job is no other arrival"
