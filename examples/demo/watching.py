"""Prometheus beside the demo's network: the configuration and the rules that operators get, on a free loopback port."""

from __future__ import annotations

import urllib.parse

from deploy.local.prometheus import FILES, PROGRAM, READY_S, Prometheus, operators_configuration
from examples.demo.network import Network
from examples.demo.operations import wait_for
from examples.demo.report import Progress

MISSING = (
    "no Prometheus here: install it (Debian: `apt install prometheus`) and `make demo KEEP=1` starts one"
)

QUERIES = {
    "what is scraped": "up",
    "uptime by worker": "orchestrator_worker_up_seconds_total / orchestrator_worker_expected_seconds_total",
    "GPUs by what can be done with them": "sum by (hardware_class, model, state) (orchestrator_gpus)",
}
"""For a first look; each answers within a minute of the start."""


def start_prometheus(network: Network, progress: Progress) -> str | None:
    """Start it and wait until it answers; its URL, or None, with a line, where it is not installed."""
    rules = [FILES / "rules" / "*.yaml"]
    configuration = operators_configuration(network.addresses.metrics, network.metrics_token_file, rules)
    try:
        prometheus = Prometheus(network.folder / PROGRAM, configuration)
    except FileNotFoundError:
        progress.wrong(MISSING)
        return None
    network.start_beside(PROGRAM, prometheus.command)
    wait_for(network, progress, PROGRAM, READY_S, prometheus.unready)
    progress.done(f"Prometheus at {prometheus.url}")
    return prometheus.url


def graph_url(url: str, query: str) -> str:
    """Where a browser shows this query's graph."""
    return f"{url}/graph?{urllib.parse.urlencode({'g0.expr': query, 'g0.tab': '0', 'g0.range_input': '15m'})}"
