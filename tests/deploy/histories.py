"""Made-up months of workers of which the truth is known: what their counters showed, and what their uptime was."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

MINUTE_S, HOUR_S, DAY_S = 60.0, 3_600.0, 86_400.0

FOREVER_S = 400 * DAY_S

Spans = tuple[tuple[float, float], ...]
"""(from, to) in seconds, rising, none touching the next."""


class Counter:
    """Seconds within some spans, as a function of time."""

    def __init__(self, spans: Spans) -> None:
        self._at_s = np.array([0.0, *(edge for span in spans for edge in span), FOREVER_S])
        grown = [0.0]
        for begin_s, end_s in spans:
            grown += [grown[-1], grown[-1] + end_s - begin_s]
        self._grown_s = np.array([*grown, grown[-1]])

    def at(self, at_s: float) -> float:
        return float(np.interp(at_s, self._at_s, self._grown_s))


@dataclass(frozen=True, slots=True)
class History:
    """One worker: when it was expected, and when its lease was live."""

    worker: str
    supplier: str
    hardware_class: str
    expected: Spans
    up: Spans

    @property
    def labels(self) -> str:
        return f'worker="{self.worker}",supplier="{self.supplier}",hardware_class="{self.hardware_class}"'


@dataclass(frozen=True, slots=True)
class Watched:
    """How all of them were seen."""

    runs: Spans
    """When the control plane ran. Its counters begin at zero with each run, and nobody counts between."""
    paused: Spans
    """When Prometheus did not ask."""
    fine_from_s: float
    """From here it asks every 15 s, before every minute."""
    until_s: float
    phase_s: float = 7.0
    """The first scrape."""

    def scrapes(self) -> Iterator[float]:
        at_s = self.phase_s
        while at_s <= self.until_s:
            if not any(begin_s <= at_s < end_s for begin_s, end_s in self.paused):
                yield at_s
            at_s += 15.0 if at_s >= self.fine_from_s else MINUTE_S


def common(one: Spans, other: Spans) -> Spans:
    """Time within both."""
    both = ((max(a, c), min(b, d)) for a, b in one for c, d in other)
    return tuple(sorted((begin_s, end_s) for begin_s, end_s in both if begin_s < end_s))


def open_metrics(histories: list[History], watched: Watched, start_s: int) -> Iterator[str]:
    """What Prometheus was shown, as text that promtool imports; time 0 is ``start_s``.

    Every other run of the control plane has another address, as a pod may have.
    """
    scrapes = list(watched.scrapes())
    for metric in ("expected", "up"):
        name = f"orchestrator_worker_{metric}_seconds"
        yield f"# TYPE {name} counter\n"
        for history in histories:
            counter = Counter(common(history.expected if metric == "expected" else history.up, watched.runs))
            for number, (begin_s, end_s) in enumerate(watched.runs):
                labels = f'{{job="orchestrator-workers",instance="10.0.0.{number // 2 % 2}:9464",{history.labels}}}'
                yield from (
                    f"{name}_total{labels} {counter.at(at_s) - counter.at(begin_s):.3f} {start_s + at_s:.3f}\n"
                    for at_s in scrapes
                    if begin_s <= at_s < end_s and shown(history, at_s)
                )
    yield "# EOF\n"


def shown(history: History, at_s: float) -> bool:
    """From its joining to its leaving."""
    return any(begin_s <= at_s < end_s for begin_s, end_s in history.expected)


def seconds(history: History, watched: Watched, from_s: float, to_s: float) -> tuple[float, float]:
    """(expected, up) within a window, of the time in which somebody counted."""
    of_expected, of_up = (Counter(common(spans, watched.runs)) for spans in (history.expected, history.up))
    return of_expected.at(to_s) - of_expected.at(from_s), of_up.at(to_s) - of_up.at(from_s)


def flapping(begin_s: float, end_s: float, up_s: float, down_s: float, seed: int) -> Spans:
    """Up and down by chance, these long on average."""
    drawn, spans, at_s = random.Random(seed), [], begin_s
    while at_s < end_s:
        until_s = min(end_s, at_s + drawn.expovariate(1 / up_s))
        spans.append((at_s, until_s))
        at_s = until_s + 1.0 + drawn.expovariate(1 / down_s)
    return tuple(spans)
