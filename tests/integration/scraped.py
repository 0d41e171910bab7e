"""What Prometheus is shown of a real network's agents and Ray nodes, over their sessions."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from http import HTTPStatus

from prometheus_client.parser import text_string_to_metric_families

from tests.integration.network import Network
from tests.integration.tenants import Tenant
from tests.polling import wait_until

LISTED_S = 30.0
"""A list is a second old at most."""

SHOWN_S = 90.0
"""A Ray node measures itself each five seconds or so, and shows it some seconds later; on busy cores much is later."""

JOB = "import time; time.sleep(300)"

Labels = dict[str, str]
Series = dict[str, list[Labels]]
"""Labels of every series, by metric name."""


@dataclass(frozen=True)
class Watcher:
    """Whoever has the metrics' token."""

    network: Network

    def get(self, path: str, *, token: bool = True) -> tuple[int, str]:
        """(status, body)."""
        request = urllib.request.Request(f"http://{self.network.addresses.metrics}{path}")
        if token:
            secret = (self.network.control_dir / "metrics-token").read_text().strip()
            request.add_header("Authorization", f"Bearer {secret}")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def listed(self, path: str) -> list[Labels]:
        """Labels of the targets of a list, all of them at the listener that was asked."""
        status, text = self.get(path)
        assert status == HTTPStatus.OK, text
        targets = json.loads(text)
        assert all(target["targets"] == [self.network.addresses.metrics] for target in targets)
        return [target["labels"] for target in targets]

    def series(self, path: str) -> Series:
        """What a target shows; nothing where it does not answer."""
        status, text = self.get(path)
        found: Series = {}
        for family in text_string_to_metric_families(text if status == HTTPStatus.OK else ""):
            for sample in family.samples:
                found.setdefault(sample.name, []).append(sample.labels)
        return found


def check_scrapes(network: Network, tenant: Tenant, submission_id: str) -> Series:
    """While a job runs its Ray node is listed, with its labels, and shows what Ray measures there; what it showed."""
    watcher = Watcher(network)
    job = tenant.submit(submission_id, "python", "-c", JOB)
    try:
        tenant.await_status(submission_id, "RUNNING")
        # Clusters of jobs before it may still be warm.
        cluster_id = tenant.job(submission_id).attempts[-1].cluster_id
        listed: list[Labels] = []

        def is_listed() -> bool:
            listed[:] = [one for one in watcher.listed("/sd/ray") if one["cluster"] == cluster_id]
            return bool(listed)

        wait_until(is_listed, what="the Ray node to be listed", deadline_s=LISTED_S)
        (labels,) = listed
        agents = {one["worker"]: one for one in watcher.listed("/sd/agents")}
        of_agent = agents[labels["worker"]]
        assert labels["supplier"] == of_agent["supplier"]
        assert labels["hardware_class"] == of_agent["hardware_class"] == "consumer"
        assert labels["ray_io_cluster"] == labels["cluster"] == labels["instance"].rpartition("-")[0]
        path = labels["__metrics_path__"]
        shown: Series = {}

        def is_shown() -> bool:
            shown.clear()
            shown.update(watcher.series(path))
            return {"ray_node_mem_used", "ray_node_cpu_utilization"} <= shown.keys()

        wait_until(is_shown, what="Ray's metrics", deadline_s=SHOWN_S)
        assert {name.split("_")[0] for name in shown} <= {"ray", "python", "process", "target"}
        own = of_agent["__metrics_path__"]
        wait_until(
            lambda: "orchestrator_agent_session_connected" in watcher.series(own),
            what="the agent's own metrics",
            deadline_s=SHOWN_S,
        )
        assert watcher.get(path, token=False)[0] == HTTPStatus.UNAUTHORIZED
        return shown
    finally:
        tenant.ray("stop", submission_id)
        job.code()
