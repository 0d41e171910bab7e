"""Samples of a made-up network, held to the catalogue: a name or label that the code lacks cannot be set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from orchestrator.adapters.metrics import catalogue

Labels = tuple[tuple[str, str], ...]

METRICS = {metric.name: metric for metric in catalogue.ALL}
"""By the name of the declaration."""

SHOWN_BY = {
    metric.name: page
    for page, metrics in (
        ("network", catalogue.NETWORK),
        ("workers", catalogue.PER_WORKER),
        ("agent", catalogue.AGENT),
    )
    for metric in metrics
}
"""Which of the three exporters shows a metric."""


FROM_THE_START: list[tuple[str, Labels]] = [
    (name, ())
    for name, metric in METRICS.items()
    if metric.kind is catalogue.Kind.COUNTER and not metric.labels
]
"""A counter without labels is shown before it counts; one with labels when it first does."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of one series, as an exporter shows it."""

    name: str
    labels: Labels
    value: float

    def line(self, more: Labels = (), at_s: float | None = None) -> str:
        """One line of the exposition format; ``more`` is what a target adds, ``at_s`` its time."""
        names = ",".join(f'{name}="{value}"' for name, value in (*self.labels, *more))
        when = "" if at_s is None else f" {at_s:.0f}"
        return f"{self.name}{{{names}}} {self.value!r}{when}"


class Series:
    """Counters, gauges and histograms by name and labels."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, Labels], float] = dict.fromkeys(FROM_THE_START, 0.0)
        self._gauges: dict[tuple[str, Labels], float] = {}
        self._buckets: dict[tuple[str, Labels], list[float]] = {}

    def begin_anew(self) -> None:
        """As a process does that was started again: what was counted is gone."""
        self._counts = dict.fromkeys(FROM_THE_START, 0.0)
        self._buckets.clear()

    def forget_gauges(self) -> None:
        """Before they are set anew: what is not set is not there."""
        self._gauges.clear()

    def add(self, name: str, value: float = 1, /, **labels: str) -> None:
        """Count."""
        key = _key(name, catalogue.Kind.COUNTER, labels)
        self._counts[key] = self._counts.get(key, 0) + value

    def put(self, name: str, value: float, /, **labels: str) -> None:
        """Set a gauge."""
        self._gauges[_key(name, catalogue.Kind.GAUGE, labels)] = value

    def observe(self, name: str, value: float, times: float = 1, /, **labels: str) -> None:
        """Put a value into a histogram, as often as it occurred."""
        key = _key(name, catalogue.Kind.HISTOGRAM, labels)
        bounds = METRICS[name].buckets
        held = self._buckets.setdefault(key, [0.0] * (len(bounds) + 3))
        for index, bound in enumerate(bounds):
            if value <= bound:
                held[index] += times
        held[-3] += times  # +Inf
        held[-2] += value * times
        held[-1] += times

    def samples(self, page: str) -> Iterator[Sample]:
        """All of one exporter."""
        for store in (self._counts, self._gauges):
            for (name, labels), value in store.items():
                if SHOWN_BY[name] == page:
                    yield Sample(name, labels, value)
        for (name, labels), held in self._buckets.items():
            if SHOWN_BY[name] != page:
                continue
            bounds = (*(repr(float(bound)) for bound in METRICS[name].buckets), "+Inf")
            for bound, count in zip(bounds, held, strict=False):
                yield Sample(f"{name}_bucket", (*labels, ("le", bound)), count)
            yield Sample(f"{name}_sum", labels, held[-2])
            yield Sample(f"{name}_count", labels, held[-1])


def text(samples: Iterable[Sample]) -> str:
    """What Prometheus reads from an exporter."""
    return "".join(f"{sample.line()}\n" for sample in samples)


def _key(name: str, kind: catalogue.Kind, labels: dict[str, str]) -> tuple[str, Labels]:
    metric = METRICS[name]
    if metric.kind is not kind or sorted(labels) != sorted(metric.labels):
        raise ValueError(f"{name} is a {metric.kind} by {metric.labels}, not a {kind} by {tuple(labels)}")
    return name, tuple(labels.items())
