"""The collectors of one process, made from the catalogue, and whoever feeds them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.registry import Collector

from orchestrator.adapters.metrics.catalogue import NETWORK, Kind, Metric

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from prometheus_client.metrics_core import Metric as Family

# A gauge beside each counter and histogram that says when it was made: twice the series, and nobody asks.
disable_created_metrics()  # type: ignore[no-untyped-call]

BATCHES_KEPT = 64
"""Right after a commit nothing of a metric is in the processor's caches, and one batch takes as long to count as ten in
a row. So many in a row take a fifth of a millisecond."""

PREFIX = "orchestrator_"
COUNTED = "_total"


def short_name(metric: Metric) -> str:
    """What code calls it by: without what is before and after every name."""
    return metric.name.removeprefix(PREFIX).removesuffix(COUNTED)


class Metrics:
    """All metrics of a catalogue in a registry of their own. A name that the catalogue lacks is a KeyError."""

    def __init__(self, catalogue: Sequence[Metric] = NETWORK) -> None:
        self.registry = CollectorRegistry()
        self.fed: set[str] = set()
        """Names of the catalogue that somebody has fed: the others show that nothing has come to them yet."""
        self._names: dict[str, str] = {}
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}
        self._totals: dict[tuple[str, ...], float] = {}
        self._batches: list[tuple[int, int, float, float, float]] = []
        """Not counted yet: they are before anybody looks."""
        self.registry.register(_BeforeALook(self._count_batches))
        for metric in catalogue:
            self._declare(metric)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

    def _declare(self, metric: Metric) -> None:
        name, labels = short_name(metric), metric.labels
        self._names[name] = metric.name
        match metric.kind:
            case Kind.COUNTER:
                self._counters[name] = Counter(metric.name, metric.text, labels, registry=self.registry)
            case Kind.GAUGE:
                self._gauges[name] = Gauge(metric.name, metric.text, labels, registry=self.registry)
            case Kind.HISTOGRAM:
                self._histograms[name] = Histogram(
                    metric.name, metric.text, labels, buckets=metric.buckets, registry=self.registry
                )

    # ------------------------------------------------------------ feeding

    def add(self, name: str, amount: float = 1.0, labels: tuple[str, ...] = ()) -> None:
        """A counter grows. With 0 its series is there before anything has happened: its first step is seen then."""
        counter = self._counters[name]
        if amount:
            self.fed.add(self._names[name])
        (counter.labels(*labels) if labels else counter).inc(amount)

    def advance(self, name: str, total: float, labels: tuple[str, ...] = ()) -> None:
        """A counter comes to ``total``, which somebody else counts and never lowers."""
        key = (name, *labels)
        before = self._totals.get(key, 0.0)
        self._totals[key] = total
        self.add(name, max(0.0, total - before), labels)

    def observe(self, name: str, value: float, labels: tuple[str, ...] = ()) -> None:
        """A histogram takes one more."""
        histogram = self._histograms[name]
        self.fed.add(self._names[name])
        (histogram.labels(*labels) if labels else histogram).observe(value)

    def show(self, name: str, series: Mapping[tuple[str, ...], float]) -> None:
        """All series of a gauge, by their labels, from now on; those not named are gone."""
        gauge = self._gauges[name]
        if series:
            self.fed.add(self._names[name])
        if () in series:
            gauge.set(series[()])
            return
        gauge.clear()
        for labels, value in series.items():
            gauge.labels(*labels).set(value)

    # ------------------------------------------------------------ observers

    def batch(self, commands: int, events: int, decide_s: float, commit_s: float, waited_s: float) -> None:
        """The loop finished a batch."""
        self._batches.append((commands, events, decide_s, commit_s, waited_s))
        if len(self._batches) >= BATCHES_KEPT:
            self._count_batches()

    def _count_batches(self) -> None:
        if not self._batches:
            return
        batches, self._batches = self._batches, []
        self.add("loop_commands", sum(commands for commands, *_ in batches))
        self.add("loop_events", sum(events for _, events, *_ in batches))
        for _, events, decide_s, commit_s, waited_s in batches:
            self.observe("loop_decide_seconds", decide_s)
            self.observe("loop_wait_seconds", waited_s)
            if events:
                self.observe("loop_commit_seconds", commit_s)

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """The gateway answered."""
        self.observe("gateway_request_seconds", seconds, (method, route, str(status)))

    def refused(self, door: str, code: str) -> None:
        """A call or a session was refused."""
        self.add("refusals", 1, (door, code))

    def text(self) -> bytes:
        """All of it as Prometheus reads it."""
        return generate_latest(self.registry)


class _BeforeALook(Collector):
    """Of all that a registry collects the first, and nothing itself."""

    def __init__(self, prepare: Callable[[], None]) -> None:
        self._prepare = prepare

    def collect(self) -> Iterable[Family]:
        """No metrics."""
        self._prepare()
        return ()
