"""Workers that are near each other, as an operator sees them: the ways are real, and so is the Prometheus."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator

import pytest

from deploy.local.prometheus import Prometheus, operators_configuration
from examples.demo.network import Machine
from tests.deploy.dashboards import NAMES, queries
from tests.deploy.seeing import OF_AN_OVERLAY, Seen, rules
from tests.integration.scraped import Watcher
from tests.lab.lab import missing
from tests.lab.network import CONTROL, LabNetwork
from tests.lab.topology import LabHost
from tests.polling import wait_until

FAR_MS, NEAR_MS = 100, 2
"""What the way of each worker to the middle adds to a round trip."""

SETTINGS = {
    # Near means within 80 ms: far above what busy cores add to 4 ms, below the 102 ms of the far one.
    "ORCH_GROUP_BOUND_MS": "200",
}

HOSTS = (
    LabHost(CONTROL),
    LabHost("far", "cone", FAR_MS),
    LabHost("one", "cone", NEAR_MS),
    LabHost("two", "cone", NEAR_MS),
)
MACHINES = (
    Machine("far", "away", "consumer", "RTX4090x1"),
    Machine("one", "north", "consumer", "RTX4090x1"),
    Machine("two", "south", "consumer", "RTX4090x1"),
)
TOGETHER = ("one", "two")

GROUPED_S = 120.0
"""A worker is told whom to measure within 15 s, and groups are looked at each 30 s; on busy cores much is later."""

WINDOW_S = 10
"""Of scrapes, a second apart."""

pytestmark = [
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus: `make system` installs it"),
    pytest.mark.timeout(400),
]


@pytest.fixture(scope="module")
def network() -> Iterator[LabNetwork]:
    with LabNetwork.open(HOSTS, MACHINES, SETTINGS) as network:
        yield network


@pytest.fixture(scope="module")
def grouped(network: LabNetwork) -> str:
    """The label of the group that two of the workers are in."""
    watcher = Watcher(network)
    ids = {network.worker(name).worker_id for name in TOGETHER}

    def labels() -> dict[str, str]:
        return {one["worker"]: one["group"] for one in watcher.listed("/sd/agents") if "group" in one}

    wait_until(lambda: labels().keys() >= ids, what="a group", deadline_s=GROUPED_S)
    (group,) = {labels()[worker_id] for worker_id in ids}
    # Whoever is far is in no group, and has no label of one.
    assert labels().keys() == ids
    return group


@pytest.fixture(scope="module")
def seen(network: LabNetwork, grouped: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    """Since everything is known of the group."""
    folder = tmp_path_factory.mktemp("prometheus")
    token_file = network.control_dir / "metrics-token"
    made = operators_configuration(network.addresses.metrics, token_file, rules(folder), interval="1s")
    with Prometheus(folder, made) as prometheus:
        enough = (
            f"count_over_time(orchestrator_group_loss_ratio[{WINDOW_S}s]) >= {WINDOW_S - 1}",
            "orchestrator_group_workers",
            'orchestrator_group_rtt_seconds{stat="longest"}',
            f'count(up{{job="orchestrator-agents"}} == 1) == {len(MACHINES)}',
        )
        found: list[float] = []

        def whole() -> bool:
            """On busy cores a scrape may be late, which takes its series away until the next one."""
            found.append(time.time())
            return all(prometheus.at(shown, found[-1]) for shown in enough)

        wait_until(whole, what="figures of the group and of its workers at once", deadline_s=GROUPED_S)
        yield Seen(prometheus, found[-1] - WINDOW_S, found[-1])


def test_targets_of_workers_in_a_group_are_labelled_with_it(
    seen: Seen, network: LabNetwork, grouped: str
) -> None:
    found = seen.prometheus.at(f'up{{job="orchestrator-agents", group="{grouped}"}} == 1', seen.end_s)
    assert {one["metric"]["worker"] for one in found} == {network.worker(name).worker_id for name in TOGETHER}
    (alone,) = seen.prometheus.at('up{job="orchestrator-agents", group=""}', seen.end_s)
    assert alone["metric"]["worker"] == network.worker("far").worker_id


def test_group_is_shown_with_its_measured_ways(seen: Seen, grouped: str) -> None:
    def value(metric: str) -> float:
        (found,) = seen.prometheus.at(metric, seen.end_s)
        assert found["metric"]["group"] == grouped
        return float(found["value"][1])

    assert value("orchestrator_group_workers") == len(TOGETHER)
    least_s = 2 * NEAR_MS / 1_000
    assert least_s <= value('orchestrator_group_rtt_seconds{stat="longest"}') < FAR_MS / 1_000
    assert 0 <= value("orchestrator_group_loss_ratio") < 1


def test_queries_of_an_overlay_and_its_groups_answer_with_data(seen: Seen) -> None:
    asked = {(query.panel, query.expr): query for name in NAMES for query in queries(name)}
    empty = [f"{panel}: {expr}" for panel, expr in OF_AN_OVERLAY if not seen.shows(asked[panel, expr])]
    assert not empty, "\n".join(("no data:", *empty))
