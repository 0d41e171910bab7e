"""Every number an operator may turn, handed in when the state is made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orchestrator.core.clusters import ClusterPolicy
from orchestrator.core.jobs import JobPolicy
from orchestrator.core.market import pricing
from orchestrator.core.market.pricing import AutoAsk, CloudMedian, PricePolicy, auto_asks
from orchestrator.core.metering import MeteringPolicy
from orchestrator.core.nearness.grouping import GroupPolicy
from orchestrator.core.preemption import PreemptionPolicy
from orchestrator.core.supply.fleet import FleetPolicy
from orchestrator.core.tenancy import fairness
from orchestrator.core.tenancy.fairness import FairnessPolicy
from orchestrator.core.tenancy.reservations import ReservationPolicy

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Policies:
    """Every number an operator may turn, handed in; not part of the stored state."""

    fleet: FleetPolicy = FleetPolicy()
    clusters: ClusterPolicy = ClusterPolicy()
    jobs: JobPolicy = JobPolicy()
    metering: MeteringPolicy = MeteringPolicy()
    fairness: FairnessPolicy = FairnessPolicy()
    groups: GroupPolicy = GroupPolicy()
    preemption: PreemptionPolicy = PreemptionPolicy()
    reservations: ReservationPolicy = ReservationPolicy()
    market: Mapping[str, AutoAsk] = field(default_factory=lambda: auto_asks({}, PricePolicy()))
    """What each model costs where its owner leaves that to the market."""
    medians: Mapping[str, CloudMedian] = field(default_factory=dict)
    """What clouds ask, by model: quotes are compared with it, and the market follows it."""
    prices: PricePolicy = PricePolicy()
    """Fees, and how far below the clouds the market stays."""

    def __post_init__(self) -> None:
        """Raises RefusedError, which names the number that nobody can mean."""
        fairness.check_policy(self.fairness)
        pricing.check_policy(self.prices)
