"""What an agent shows of itself. Nothing listens for it: it is read over the session only."""

from __future__ import annotations

import shutil
from collections import Counter
from typing import TYPE_CHECKING, Protocol, get_args

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from orchestrator.adapters.metrics.catalogue import AGENT, Kind
from orchestrator.adapters.node_records import Phase

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from prometheus_client.metrics_core import Metric

    from orchestrator.adapters.node_records import NodeStatus

    Samples = Iterable[tuple[tuple[str, ...], float]]
    """(values of its labels, value) of each series of a metric."""

PHASES = tuple(phase for phase in get_args(Phase) if phase != "none")
"""Of members; each has a series, so that one that empties is seen to."""


class Shown(Protocol):
    """What is asked of the agent."""

    @property
    def connected(self) -> bool: ...
    @property
    def undelivered(self) -> int: ...
    @property
    def sessions_begun(self) -> int: ...
    @property
    def heartbeat_rtt_s(self) -> float | None: ...
    @property
    def nodes(self) -> Mapping[str, NodeStatus]: ...


class AgentExporter:
    """Reads the agent whenever it is asked; between that it costs nothing."""

    def __init__(self, agent: Shown, version: str, data_dir: Path) -> None:
        self._agent = agent
        self._version = version
        self._data_dir = data_dir
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        """All of it as Prometheus reads it."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """As prometheus_client's Collector: every metric that the catalogue has of an agent."""
        values = self._values()
        for metric in AGENT:
            samples = values[metric.name]
            family = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
            shown = family(metric.name, metric.text, labels=metric.labels)
            for labels, value in samples:
                shown.add_metric(labels, value)
            yield shown

    def _values(self) -> dict[str, Samples]:
        """By name; without samples where nothing is known yet."""
        agent = self._agent
        phases = Counter(status.phase for status in agent.nodes.values())
        rtt_s = agent.heartbeat_rtt_s
        return {
            "orchestrator_agent_build_info": [((self._version,), 1)],
            "orchestrator_agent_members": [((phase,), phases[phase]) for phase in PHASES],
            "orchestrator_agent_session_connected": [((), agent.connected)],
            "orchestrator_agent_sessions_total": [((), agent.sessions_begun)],
            "orchestrator_agent_heartbeat_rtt_seconds": [] if rtt_s is None else [((), rtt_s)],
            "orchestrator_agent_statements_unacknowledged": [((), agent.undelivered)],
            "orchestrator_agent_disk_free_bytes": self._free_bytes(),
        }

    def _free_bytes(self) -> Samples:
        try:
            return [((), shutil.disk_usage(self._data_dir).free)]
        except OSError:
            return []
