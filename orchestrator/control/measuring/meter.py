"""Where measurements go. Names are those of the metrics' catalogue, without what is before and after every one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping


class Meter(Protocol):
    """Counters, histograms and gauges by name. A name that nobody declared is a KeyError."""

    def add(self, name: str, amount: float = 1.0, labels: tuple[str, ...] = ()) -> None:
        """A counter grows; 0 shows it before anything has happened."""
        ...

    def advance(self, name: str, total: float, labels: tuple[str, ...] = ()) -> None:
        """A counter comes to what somebody else counts."""
        ...

    def observe(self, name: str, value: float, labels: tuple[str, ...] = ()) -> None:
        """A histogram takes one more."""
        ...

    def batch(self, commands: int, events: int, decide_s: float, commit_s: float, waited_s: float) -> None:
        """The loop finished a batch: often, so it comes in one call."""
        ...

    def show(self, name: str, series: Mapping[tuple[str, ...], float]) -> None:
        """All series of a gauge, by their labels."""
        ...
