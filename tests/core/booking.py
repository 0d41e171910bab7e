"""Reservations and their jobs in a world."""

from __future__ import annotations

from orchestrator.core import messages as m
from orchestrator.core.ids import JobId, ReservationId
from orchestrator.core.jobs import Requirements
from orchestrator.core.tenancy.reservations import Reservation
from tests.core.worlds import World, request, sha

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS


def reserve(
    world: World,
    wanted: Requirements | None = None,
    *,
    tenant: str = "acme",
    name: str = "",
    in_ms: int = 0,
    length_ms: int = HOUR_MS,
) -> Reservation:
    """Machines for a window that begins so long from now; raises RefusedError."""
    fresh = world.name("rsv")
    asked = wanted or Requirements()
    from_ms = world.at_ms + in_ms
    content = sha(f"{asked} {from_ms} {length_ms}")
    command = m.CreateReservation(
        ReservationId(fresh),
        world.tenant(tenant),
        name or fresh,
        asked,
        from_ms,
        from_ms + length_ms,
        content,
    )
    return world.state.reservations[ReservationId(str(world.do(command).result))]


def submit_to(
    world: World,
    reservation: Reservation | str,
    wanted: Requirements | None = None,
    *,
    tenant: str = "acme",
    time_limit_ms: int = 0,
) -> JobId:
    """A job that names the reservation."""
    named = reservation if isinstance(reservation, str) else reservation.name
    name = world.name("job")
    asked = request(wanted, time_limit_ms=time_limit_ms)
    command = m.SubmitJob(JobId(name), world.tenant(tenant), f"sub-{name}", asked, sha(name), named)
    return JobId(str(world.do(command).result))


def again(world: World, one: Reservation) -> Reservation:
    """As it is now."""
    return world.state.reservations[one.reservation_id]
