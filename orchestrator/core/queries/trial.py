"""What a plan would make of one need alone, without applying anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.core.scheduling.placement import Budget
from orchestrator.core.scheduling.plan import plan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.core.scheduling.placement import JobNeed, Need, PlacementView, Served


@dataclass(slots=True)
class _Only:
    """The one need, and what became of it."""

    need: JobNeed
    outcome: Served = None

    def __iter__(self) -> Iterator[Need]:
        yield self.need

    def settled(self, _need: Need, outcome: Served) -> None:
        self.outcome = outcome


def tried(view: PlacementView, need: JobNeed, at_ms: int) -> Served:
    """As if nobody else waited but those whom machines are promised to.

    A Placement or Reuse where it could start now, else a Deferral with the reason.
    """
    only = _Only(need)
    plan(view, only, at_ms, Budget())
    return only.outcome
