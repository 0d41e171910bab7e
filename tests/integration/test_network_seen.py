"""What can be seen of a network from outside, what must never be seen, and what is left of it in the end."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import (
    reflection_pb2,
    reflection_pb2_grpc,
)
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.api.v1 import operator_pb2
from tests.integration.network import MACHINES, Network, command_of
from tests.integration.scraped import check_scrapes
from tests.integration.tenants import BOOKED_S, Tenant, verified
from tests.polling import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

IDLE_S = 120.0
"""The end of a cluster, on busy cores."""

IDLE_SETTING = "ORCH_IDLE_TEARDOWN_MS"

PAGE = "/metrics/workers?page=0"

Labels = frozenset[tuple[str, str]]


class Scrape:
    """One answer of the metrics' door."""

    def __init__(self, network: Network, path: str = "/metrics") -> None:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        token = (network.control_dir / "metrics-token").read_text().strip()
        request = urllib.request.Request(
            f"http://{network.addresses.metrics}{path}", headers={"Authorization": f"Bearer {token}"}
        )
        with opener.open(request, timeout=20) as answer:
            text = answer.read().decode()
        self._samples: dict[tuple[str, Labels], float] = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float:
        """One series; KeyError where there is none."""
        return self._samples[f"orchestrator_{name}", frozenset(labels.items())]

    def total(self, name: str, **labels: str) -> float:
        """All series of one name with these labels among theirs."""
        return sum(
            value
            for (found, shown), value in self._samples.items()
            if found == f"orchestrator_{name}" and shown >= frozenset(labels.items())
        )

    def by(self, name: str, label: str) -> dict[str, float]:
        """All series of one name, by one of their labels."""
        return {
            dict(labels)[label]: value
            for (found, labels), value in self._samples.items()
            if found == f"orchestrator_{name}"
        }


@pytest.fixture(scope="module")
def ran(network: Network, tenant: Tenant) -> str:
    """A job that has run and is paid; its cluster is still warm."""
    tenant.run("seen", "python", "-c", "import time; time.sleep(2)")
    for bundle in verified(network, tenant.receipts("seen", count=1)):
        assert bundle.receipt.billed_ms > 0
    return "seen"


def test_metrics_after_a_job_have_every_series_with_sane_values(
    network: Network, tenant: Tenant, ran: str
) -> None:
    # Its cluster is kept warm for a while only, so this is looked at before anything is waited for.
    scrape = Scrape(network)
    workers = {network.worker(machine.name).worker_id for machine in MACHINES}
    # Newcomers are shown at zero for half a minute.
    wait_until(
        lambda: all(Scrape(network, PAGE).by("worker_up_seconds_total", "worker").values()),
        what="uptime of every worker",
        deadline_s=IDLE_S,
    )
    page = Scrape(network, PAGE)
    expected_s = page.by("worker_expected_seconds_total", "worker")
    up_s = page.by("worker_up_seconds_total", "worker")
    assert workers <= expected_s.keys() == up_s.keys()
    assert all(0 < up_s[worker] <= expected_s[worker] for worker in workers)
    assert scrape.total("workers", liveness="live") == len(MACHINES)
    assert scrape.total("workers", liveness="lost") == 0
    assert scrape.total("gpus", state="unreachable") == 0
    assert scrape.total("certificate_remaining_seconds", certificate="session") > 0
    assert scrape.value("receipts_unaccounted") == 0
    assert scrape.value("ledger_imbalance_microcredits") == 0
    assert scrape.value("clusters", phase="ready") >= 1
    assert scrape.value("jobs", status="SUCCEEDED") >= 1
    assert scrape.value("jobs", status="RUNNING") == 0
    queued = scrape.value("job_queue_seconds_count")
    assert queued >= 1
    assert 0 < scrape.value("job_queue_seconds_sum") < 100 * queued
    for name in ("loop_decide", "loop_commit", "plan"):
        count = scrape.value(f"{name}_seconds_count")
        assert count > 0
        assert 0 < scrape.value(f"{name}_seconds_sum") < count, name

    def are_all_posted() -> bool:
        """Those of jobs before this one may still be on their way."""
        now = Scrape(network)
        sealed, signed, posted = (
            now.value("receipts_total", state=state) for state in ("sealed", "signed", "posted")
        )
        return sealed == signed == posted >= 1 and status_of(network).receipts_unposted == 0

    wait_until(are_all_posted, what="every receipt in the ledger", deadline_s=BOOKED_S)
    status = status_of(network)
    assert status.devices_simulated == sum(bool(machine.simulate) for machine in MACHINES)


def status_of(network: Network) -> operator_pb2.GetStatusResponse:
    with network.client() as client:
        return client.call(client.operator.GetStatus, operator_pb2.GetStatusRequest())


def test_ray_node_of_a_running_job_is_scraped_over_its_workers_session(
    network: Network, tenant: Tenant, ran: str
) -> None:
    shown = check_scrapes(network, tenant, "scraped")
    assert "ray_node_cpu_utilization" in shown


def test_grpc_health_and_reflection_answer_for_every_service(network: Network) -> None:
    """Those for newcomers and operators at one listener, those for workers at the other."""
    with network.channel() as channel:
        assert served_by(channel) == {"EnrolService", "OperatorService", "JobsService", "LedgerService"}
    with network.worker_channel("consumer-1") as channel:
        assert served_by(channel) == {"WorkerService", "TelemetryService", "LogsService"}


def served_by(channel: grpc.Channel) -> set[str]:
    """Our services that reflection lists, each of them serving."""
    listed = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
        iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    )
    names = {service.name for service in next(listed).list_services_response.service}
    ours = {name for name in names if name.startswith("orchestrator.api.v1.")}
    health = health_pb2_grpc.HealthStub(channel)
    for name in ("", *sorted(ours)):
        answer = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING, name
    return {name.rpartition(".")[2] for name in ours}


def test_secrets_are_in_no_log_and_on_no_command_line(network: Network, ran: str) -> None:
    nodes = network.nodes()
    kinds = {name.split()[0] for name in network.secrets}
    assert kinds == {"admin", "join", "token", "cluster"}
    temp_dirs = {Path(node.spec.temp_dir) for node in nodes if node.spec.temp_dir}
    logs = [
        *network.folder.glob("*.log"),
        *network.folder.glob("*.out"),
        *network.folder.glob("*/members/*/*.log"),
        *(path for temp_dir in temp_dirs for path in temp_dir.glob("session_*/logs/**/*") if path.is_file()),
    ]
    assert {path.stem for path in logs} >= {"serve", "head-1", "keeper", "ray-start", "raylet"}
    pids = network.every_process()
    assert len(pids) > len(MACHINES) + 1
    texts = {str(path): path.read_text(errors="replace") for path in logs}
    texts |= {f"the command line of {pid}": command_of(pid) for pid in pids}
    found = [
        (what, where) for what, secret in network.secrets.items() for where in texts if secret in texts[where]
    ]
    assert found == []


@pytest.fixture
def hasty(network: Network) -> Iterator[None]:
    """A control plane that keeps no idle cluster, on the same data; afterwards it is again as the others know it."""

    def restart(idle_ms: str) -> None:
        network.settings[IDLE_SETTING] = idle_ms
        network.interrupt("serve")
        network.exit_code("serve")
        network.start_serve()
        network.await_live(machine.name for machine in MACHINES)

    network.nodes()
    before = network.settings[IDLE_SETTING]
    restart("1000")
    yield
    restart(before)


def test_cluster_after_its_idle_time_leaves_no_trace(network: Network, ran: str, hasty: None) -> None:
    nodes = [node for node in network.members.values() if node.spec.temp_dir]
    assert nodes
    wait_until(lambda: not network.nodes(), what="idle clusters to be taken down", deadline_s=IDLE_S)
    wait_until(
        lambda: not Scrape(network).value("clusters", phase="closing"), what="their end", deadline_s=IDLE_S
    )
    assert Scrape(network).value("clusters", phase="ready") == 0
    for node in nodes:
        assert not node.processes
        assert not node.folder.exists()
        assert not Path(node.spec.temp_dir).exists()
    # What is left is what was started, and none of it holds a port block any more.
    started = {process.pid for process in network.processes.values()}
    assert network.every_process() == started
    assert [(pid, path) for pid in started for path in open_files(pid) if path.startswith("block-")] == []
    assert status_of(network).devices_held == 0


def open_files(pid: int) -> list[str]:
    """The names of the files that a process has open."""
    return [path.resolve().name for path in Path(f"/proc/{pid}/fd").iterdir()]
