"""The scrape configuration, by Prometheus itself: it accepts it, and finds agents and Ray nodes with it."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.local.prometheus import FILES, Prometheus, operators_configuration
from tests.control.agents import serving
from tests.control.scraped import RAY_TEXT, rig_of
from tests.polling import wait_for_answer

CONFIGURATION = FILES / "prometheus.yaml"

SHOWN_S = 90.0
"""Prometheus applies what it discovered each five seconds; on two busy cores that is later."""

pytestmark = pytest.mark.timeout(400)

needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="needs Prometheus: run `make system`, or `apt-get install prometheus`",
)


def configuration(folder: Path, text: str) -> Path:
    """The configuration where an operator would put it."""
    path = folder / "prometheus.yaml"
    path.write_text(text)
    (folder / "metrics-token").write_text("orch_metrics_of-the-test\n")
    return path


@needs_prometheus
def test_configuration_is_accepted_by_promtool(tmp_path: Path) -> None:
    path = configuration(tmp_path, CONFIGURATION.read_text())
    checked = subprocess.run(
        ["promtool", "check", "config", path], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
    assert "SUCCESS" in checked.stdout


def test_configuration_asks_for_everything_with_the_token_and_lets_nobody_override_our_labels() -> None:
    jobs = {job["job_name"]: job for job in yaml.safe_load(CONFIGURATION.read_text())["scrape_configs"]}
    assert set(jobs) == {"orchestrator", "orchestrator-workers", "orchestrator-agents", "orchestrator-ray"}
    for job in jobs.values():
        assert job["authorization"]["credentials_file"] == "metrics-token"
        for listed in job.get("http_sd_configs", ()):
            # Without its type the oldest Prometheus sends the bare token, and is refused.
            assert listed["authorization"] == {"type": "Bearer", "credentials_file": "metrics-token"}
        assert not job.get("honor_labels")
    for name in ("orchestrator-agents", "orchestrator-ray"):
        assert jobs[name]["honor_timestamps"] is False
        assert jobs[name]["sample_limit"] > 0


@asynccontextmanager
async def scraping(folder: Path, made: Mapping[str, Any]) -> AsyncIterator[Prometheus]:
    """A Prometheus beside what runs in this event loop."""
    prometheus = Prometheus(folder, made)
    try:
        await asyncio.to_thread(prometheus.start)
        yield prometheus
    finally:
        await asyncio.to_thread(prometheus.stop)


async def found(prometheus: Prometheus, text: str) -> list[dict[str, Any]]:
    """What a query has once it has anything."""
    result: list[dict[str, Any]] = []

    async def some() -> bool:
        result[:] = await asyncio.to_thread(prometheus.now, text)
        return bool(result)

    await wait_for_answer(some, what=f"{text} to have a series", deadline_s=SHOWN_S)
    return result


@needs_prometheus
async def test_prometheus_finds_agents_and_ray_nodes_behind_their_sessions(tmp_path: Path) -> None:
    (tmp_path / "plane").mkdir()
    async with serving(tmp_path / "plane") as served, rig_of(served, tmp_path / "agent") as rig:
        member_id = await rig.node_up()
        # What a tenant may try: to be somebody else, at another time.
        rig.ray.text = (
            RAY_TEXT
            + f'ray_lies{{worker="wrk_other",instance="x",supplier="me"}} 1 {2**42}\n'.encode()
            + b"up 0\norchestrator_workers 0\n"
        )
        (tmp_path / "metrics-token").write_text("orch_metrics_of-the-test\n")
        at = rig.base.removeprefix("http://")
        made = operators_configuration(at, tmp_path / "metrics-token", [], interval="1s")
        async with scraping(tmp_path, made) as prometheus:
            (lie,) = await found(prometheus, "ray_lies")
            assert lie["metric"]["worker"] == rig.worker_id
            assert lie["metric"]["exported_worker"] == "wrk_other"
            assert lie["metric"]["instance"] == member_id
            cluster_id = member_id.rpartition("-")[0]
            (used,) = await found(prometheus, f'ray_node_mem_used{{ray_io_cluster="{cluster_id}"}}')
            assert used["value"][1] == "12"
            assert used["metric"]["job"] == "orchestrator-ray"
            (up,) = await found(prometheus, f'up{{job="orchestrator-ray",instance="{member_id}"}} == 1')
            assert up["metric"]["hardware_class"] == "consumer"
            (connected,) = await found(prometheus, "orchestrator_agent_session_connected == 1")
            assert connected["metric"]["instance"] == connected["metric"]["worker"] == rig.worker_id
            assert connected["metric"]["supplier"]
            assert await asyncio.to_thread(prometheus.now, "orchestrator_workers") == []
