"""Commands and events about reservations."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.core.ids import ReservationId, TenantId
from orchestrator.core.jobs import Requirements
from orchestrator.core.tenancy.reservations import Reservation, ReservationPhase


@dataclass(frozen=True, slots=True)
class CreateReservation:
    """``reservation_id`` is used only where the reservation is new. ``request_id`` empty: the name alone guards it."""

    reservation_id: ReservationId
    tenant_id: TenantId
    name: str
    requirements: Requirements
    from_ms: int
    until_ms: int
    request_sha256: str
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class CancelReservation:
    """Nothing is kept for it any more."""

    reservation_id: ReservationId


@dataclass(frozen=True, slots=True)
class ReservationCreated:
    """Machines will be kept."""

    reservation: Reservation


@dataclass(frozen=True, slots=True)
class ReservationEnded:
    """Nothing is kept any more, and its jobs are as any others; ``phase`` says why."""

    reservation_id: ReservationId
    phase: ReservationPhase


@dataclass(frozen=True, slots=True)
class ReservationForgotten:
    """It ended so long ago that nobody asks."""

    reservation_id: ReservationId


ReservationCommand = CreateReservation | CancelReservation
ReservationEvent = ReservationCreated | ReservationEnded | ReservationForgotten
