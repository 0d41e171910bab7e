"""Tenants: who submits jobs, how much of the fleet is theirs, and what they may hold."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from orchestrator.core.ids import TenantId
from orchestrator.core.tenancy.fairness import NOTHING, WEIGHT_DEFAULT, Amounts, Usage, amounts_of
from orchestrator.core.tenancy.quotas import NO_USE, UNLIMITED, MonthUse, Quota

if TYPE_CHECKING:
    from orchestrator.core.supply.fleet import Inventory

MIB = 1024**2


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who submits jobs."""

    tenant_id: TenantId
    name: str
    created_at_ms: int
    weight: int = WEIGHT_DEFAULT
    """Twice as much of it is twice the share of a fleet that everybody wants."""
    quota: Quota = UNLIMITED
    usage: Usage = Usage()
    """What it holds, and held lately."""
    month: MonthUse = NO_USE
    """What it used this month, by leases that have ended, and spent, by receipts."""


def held_by(inventory: Inventory, models: list[str]) -> Amounts:
    """What a tenant holds by devices of these models, with their place's part of the machine; a head is not his."""
    if not models:
        return NOTHING
    places = max(1, inventory.slots + inventory.head_slots)
    return _amounts_of(tuple(models), inventory.cpus // places, inventory.memory_bytes // places // MIB)


_amounts_of = lru_cache(maxsize=1024)(amounts_of)
"""Machines are alike by the thousand, and each that is given is reckoned more than once."""
