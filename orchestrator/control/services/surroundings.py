"""What an operator is shown that the state does not know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from orchestrator.control.measuring.measuring import Measuring
    from orchestrator.core.queries.health import Vitals


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where this control plane's doors are, and how its receipts are verified."""

    version: str
    gateway_url: str
    metrics_url: str
    receipt_public_key: bytes


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What an operator is shown of the process, which the state does not know."""

    addresses: Addresses
    vitals: Callable[[], Awaitable[Vitals]]
    measuring: Measuring
