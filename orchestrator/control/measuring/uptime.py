"""How long each worker should have been up and was: exactly, from the instants of committed transitions.

A worker is expected from its joining to its leaving, and up while its lease is live. Nothing is sampled: between two
transitions the time that has passed is known to the millisecond whenever somebody asks. A restart begins at zero, as
counters do; and so does a worker: Prometheus takes the first value of a series for where it began, so the first that
it is shown has to be zero, or what came before would be missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from orchestrator.core.supply.fleet import Liveness

if TYPE_CHECKING:
    from orchestrator.core.ids import WorkerId
    from orchestrator.core.supply.fleet import Worker


NEW_MS = 30_000
"""A worker is shown at zero for so long after it joined: twice the time between two scrapes."""


class Uptime(NamedTuple):
    """Of one worker as one class of hardware, in milliseconds."""

    supplier: str
    hardware_class: str
    expected_ms: int
    up_ms: int


@dataclass(slots=True)
class _Clock:
    """What was counted up to ``at_ms``, and what counts since."""

    supplier: str
    hardware_class: str
    expected: bool
    up: bool
    at_ms: int
    shown_from_ms: int
    """Before that nothing of it is shown but zeros."""
    expected_ms: int = 0
    up_ms: int = 0

    def advance(self, at_ms: int) -> None:
        passed_ms = max(0, at_ms - self.at_ms)
        self.expected_ms += passed_ms * self.expected
        self.up_ms += passed_ms * self.up
        self.at_ms = max(self.at_ms, at_ms)


class Uptimes:
    """Of all workers that are there. Times are control time."""

    def __init__(self) -> None:
        self._clocks: dict[WorkerId, _Clock] = {}

    def put(self, worker: Worker, at_ms: int, *, known: bool = False) -> None:
        """A worker as it is from ``at_ms``; as nothing about it but this matters, most changes are none.

        ``known``: its series is nothing new, but begins again with this process.
        """
        kind = worker.inventory.hardware_class.value
        expected, up = worker.liveness is not Liveness.LEFT, worker.liveness is Liveness.LIVE
        clock = self._clocks.get(worker.worker_id)
        if clock is not None and (clock.hardware_class == kind or not expected):
            if (clock.expected, clock.up) != (expected, up):
                clock.advance(at_ms)
                clock.expected, clock.up = expected, up
        elif expected:
            # Another class is another series: what was counted as the one before stays with that.
            shown_from_ms = at_ms if known else at_ms + NEW_MS
            self._clocks[worker.worker_id] = _Clock(
                worker.supplier_id, kind, expected, up, at_ms, shown_from_ms
            )

    def stop(self, worker_id: WorkerId, at_ms: int) -> None:
        """A worker is not known any more: it is not expected from then on."""
        clock = self._clocks.get(worker_id)
        if clock is not None:
            clock.advance(at_ms)
            clock.expected = clock.up = False

    def forget(self, worker_id: WorkerId) -> None:
        """Nobody asks for it any more."""
        self._clocks.pop(worker_id, None)

    def of(self, worker_id: WorkerId, at_ms: int) -> Uptime | None:
        """Up to this instant; None for a stranger."""
        clock = self._clocks.get(worker_id)
        if clock is None:
            return None
        if at_ms < clock.shown_from_ms:
            return Uptime(clock.supplier, clock.hardware_class, 0, 0)
        passed_ms = max(0, at_ms - clock.at_ms)
        return Uptime(
            clock.supplier,
            clock.hardware_class,
            clock.expected_ms + passed_ms * clock.expected,
            clock.up_ms + passed_ms * clock.up,
        )
