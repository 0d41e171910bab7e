"""A worker's own number in the overlay's address plan: one, for as long as it is known, and nobody else's."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.core import messages as m
from orchestrator.core.ids import WorkerId
from orchestrator.core.policies import Policies
from orchestrator.core.supply.fleet import NEBULA, Isolation
from tests.core.worlds import World


def opened(world: World, worker_id: WorkerId) -> int:
    """The worker's number after one more session."""
    sessions = world.state.workers[worker_id].sessions
    world.do(m.ConnectWorker(worker_id, None, sessions + 1, "0.3.0"))
    return world.state.workers[worker_id].overlay_host


def test_own_host_is_given_at_the_first_session_and_kept() -> None:
    world = World()
    one, two = (world.worker(isolation=Isolation.BOX, overlay=NEBULA) for _ in range(2))
    first, second = opened(world, one), opened(world, two)
    assert first != second
    assert 0 not in (first, second)
    assert (opened(world, one), opened(world, two)) == (first, second)
    assert world.state.overlay_hosts == {first: one, second: two}
    assert world.state.control.overlay_host == max(first, second)


def test_own_host_is_for_workers_with_an_overlay_only() -> None:
    world = World()
    assert opened(world, world.worker()) == 0
    policies = Policies()
    bare = World(replace(policies, clusters=replace(policies.clusters, overlay_hosts_max=0)))
    assert opened(bare, bare.worker(isolation=Isolation.BOX, overlay=NEBULA)) == 0


def test_own_host_used_up_plan_lets_a_worker_in_without_one() -> None:
    policies = Policies()
    world = World(replace(policies, clusters=replace(policies.clusters, overlay_hosts_max=1)))
    hosts = [opened(world, world.worker(isolation=Isolation.BOX, overlay=NEBULA)) for _ in range(2)]
    assert hosts == [1, 0]
