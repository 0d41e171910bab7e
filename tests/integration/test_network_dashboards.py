"""What dashboards show of a real network that a real Prometheus scrapes: its own metrics, agents' and Ray nodes'.

Three of its machines find GPUs, where there are none: a stand-in of NVIDIA's library tells agents and Ray of them. All
behind that library is real, its figures are not.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from functools import partial
from http import HTTPStatus

import pytest

from deploy.local.prometheus import Asked, Prometheus, operators_configuration
from examples.demo.network import Machine
from tests.adapters.devices.nvml_library import built_library, stub_environment
from tests.deploy.dashboards import NAMES, queries
from tests.deploy.seeing import OF_AN_OVERLAY, Seen, rules
from tests.integration.network import Network, running
from tests.integration.tenants import Tenant, end
from tests.polling import wait_until

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(300),
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus: `make system` installs it"),
]

SHOWN_S = 90.0
"""A cluster forms in some ten seconds on idle cores, and Ray shows its first figures seconds later."""

MACHINES = (
    Machine("head-1", "heads", "cpu", slots=0, head_slots=2),
    Machine("consumer-1", "north", "consumer", "RTX4090x1"),
    Machine("hall-1", "hall", "datacenter"),
    Machine("hot-1", "south", "consumer"),
    Machine("ailing-1", "hall", "datacenter"),
)

SCENARIOS = {"hall-1": "8xh100", "hot-1": "hot", "ailing-1": "xid"}
"""What the machines find that look for GPUs. The latter two are kept from work."""

GPUS_MAX = 100
"""Of one machine of the stand-in; the GPUs of the next are numbered from there."""

HERE = {"hardware_class": "consumer"}
ELSEWHERE = {"hardware_class": "datacenter"}
"""So that a second cluster forms: a series begins with its first event, and a rate sees the next one. Its node has GPUs
that Ray finds.
"""

TOO_LARGE = {"gpus": 50}
"""More than there are."""

JOBS_MAX = 4
"""Each takes some seconds, and at least one of them lies wholly between two looks of Prometheus."""

ENDED = (
    "sum(increase(orchestrator_attempts_total[5m])) > 0"
    " and sum(increase(orchestrator_job_queue_seconds_count[5m])) > 0"
)
"""What panels show of jobs that began and ended."""

ENOUGH = (
    ENDED,
    'orchestrator_receipts_total{state="posted"} > 0',
    "orchestrator_billed_seconds_total > 0",
    'increase(orchestrator_formation_seconds_count{phase="total"}[5m]) > 0',
    "increase(orchestrator_plan_rejections_total[5m]) > 0",
    "increase(orchestrator_refusals_total[5m]) > 0",
    'increase(orchestrator_gateway_request_seconds_count{status="404"}[5m]) > 0',
    "ray_node_network_receive_speed",
    "ray_node_gpus_utilization",
    "orchestrator_agent_build_info",
    "orchestrator_device_temperature_celsius",
    "orchestrator_device_ecc_uncorrected > 0",
    "orchestrator_device_last_xid > 0",
    "orchestrator_device_throttled > 0",
    # Uptime is told half a minute late: only then a silence would be known.
    "orchestrator:class_uptime_ratio:1h",
)
"""What there is once everything has been seen that this network has."""

RIGHTLY_EMPTY: dict[tuple[str, str], str] = {
    **dict.fromkeys(
        OF_AN_OVERLAY,
        "needs an overlay, and ways that are measured over it: tests/lab/test_network_groups.py",
    ),
    (
        "Routes",
        'sum by (method, route) (increase(orchestrator_gateway_request_seconds_count{status=~"5.."}[$__range]))',
    ): "a gateway that is well has nothing to answer so",
}
"""By title of its panel and expression: queries without an answer here, each with its reason."""


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """One of its own: what other tests did to theirs is nothing to look at, and what runs here holds nobody up."""
    library = built_library(tmp_path_factory.mktemp("nvml"))
    found = {
        name: stub_environment(library, scenario, 1 + GPUS_MAX * number)
        for number, (name, scenario) in enumerate(SCENARIOS.items())
    }
    with running(Network(found_gpus=found), MACHINES) as network:
        for name in ("hot-1", "ailing-1"):
            code, said = network.orch("worker", "cordon", name, "--reason", "is not well")
            assert code == 0, said
        yield network


@pytest.fixture(scope="module")
def tenant(network: Network) -> Tenant:
    """Who submits."""
    return Tenant(network, network.create_tenant("acme"))


@pytest.fixture(scope="module")
def seen(network: Network, tenant: Tenant, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    """Since Prometheus looks a job has ended and been paid for, others run and wait, and calls were refused."""
    folder = tmp_path_factory.mktemp("prometheus")
    token_file = network.control_dir / "metrics-token"
    made = operators_configuration(network.addresses.metrics, token_file, rules(folder), interval="1s")
    _be_refused(network, tenant)
    with Prometheus(folder, made) as prometheus:
        begin_s = time.time()
        scraped = partial(_answers, prometheus, "rate(orchestrator_loop_commands_total[5s])")
        wait_until(scraped, what="scrapes", deadline_s=SHOWN_S)
        for number in range(JOBS_MAX):
            _run(tenant, f"shown-ended-{number}")
            if _answers(prometheus, ENDED):
                break
        shown_running = tenant.submit(
            "shown-running", "python", "-c", "import time; time.sleep(300)", orch=ELSEWHERE
        )
        shown_waiting = tenant.submit("shown-waiting", "true", orch=TOO_LARGE, wait=False)
        try:
            assert shown_waiting.code() == 0, shown_waiting.text
            _be_refused(network, tenant)
            for shown in ENOUGH:
                # Some scrapes long, so that a range which ends now has it.
                lasting = f"count_over_time(({shown})[5s:1s]) >= 3"
                wait_until(partial(_answers, prometheus, lasting), what=shown, deadline_s=SHOWN_S)
            yield Seen(prometheus, begin_s, _instant_with_all(prometheus))
        finally:
            tenant.ray("stop", "shown-waiting")
            tenant.ray("stop", "shown-running")
            shown_running.code()


def _run(tenant: Tenant, submission_id: str) -> None:
    """To its end, which comes late enough for its machine to have seen its lease: else there is nothing to bill."""
    job = tenant.submit(submission_id, "python", "-c", "import time; time.sleep(3)", orch=HERE)
    try:
        assert job.code() == 0, job.text
    finally:
        end(job)


def _be_refused(network: Network, tenant: Tenant) -> None:
    """By the gateway and by the control plane."""
    assert tenant.get("/api/jobs/never-submitted") == HTTPStatus.NOT_FOUND
    code, said = network.orch("worker", "show", "nobody")
    assert code != 0, said


def _instant_with_all(prometheus: Asked) -> float:
    """A moment at which everything was there: a scrape that is late takes a target's series away until the next one."""
    found: list[float] = []

    def whole() -> bool:
        found.append(time.time())
        return all(prometheus.at(shown, found[-1]) for shown in ENOUGH)

    wait_until(whole, what="all of it at once", deadline_s=SHOWN_S)
    return found[-1]


def _answers(prometheus: Asked, expr: str) -> bool:
    return bool(prometheus.now(expr))


@pytest.mark.parametrize("name", NAMES)
def test_queries_of_a_real_network_answer_with_data_or_rightly_do_not(seen: Seen, name: str) -> None:
    asked = [query for query in queries(name) if not query.annotates]
    shown = {(query.panel, query.expr): seen.shows(query) for query in asked}
    missing = [query for query in shown if not shown[query] and query not in RIGHTLY_EMPTY]
    assert not missing, "\n".join(("no data:", *map(str, missing)))
    answered = [query for query in shown if shown[query] and query in RIGHTLY_EMPTY]
    assert not answered, "\n".join(("no reason to be exempt any more:", *map(str, answered)))


def test_exempt_queries_are_of_the_dashboards() -> None:
    there = {(query.panel, query.expr) for name in NAMES for query in queries(name)}
    assert not RIGHTLY_EMPTY.keys() - there
