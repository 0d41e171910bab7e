"""Labels of what is scraped over sessions: of a Ray node those of its worker, its group too."""

from __future__ import annotations

import pytest

from orchestrator.core.jobs import Requirements
from orchestrator.core.queries.scrape_targets import agent_labels, node_labels
from orchestrator.core.supply.fleet import NEBULA, Isolation
from tests.core.worlds import World


@pytest.mark.parametrize("near", [True, False])
def test_node_labels_group_is_that_of_its_worker_where_somebody_is_near(near: bool) -> None:
    world = World()
    pair = [world.worker(isolation=Isolation.BOX, overlay=NEBULA) for _ in range(2)]
    world.head_host(isolation=Isolation.BOX, overlay=NEBULA)
    job_id = world.running(Requirements(gpus=2, isolation=Isolation.BOX))
    groups = world.state.groups
    if near:
        for one, other in (pair, pair[::-1]):
            world.state.latency.observe(one, other, 2_000, world.at_ms)
            groups.measured(one, (other,), world.at_ms)
    nodes = {
        labels["worker"]: labels for _, labels in node_labels(world.state, world.cluster(job_id).cluster_id)
    }
    assert nodes.keys() >= set(pair)
    for worker_id in pair:
        group = groups.of(worker_id)
        assert group is not None
        assert len(group.members) == (2 if near else 1)
        wanted = str(group.number) if near else None
        assert nodes[worker_id].get("group") == wanted
        assert (agent_labels(world.state, worker_id) or {}).get("group") == wanted
