"""Reservations for the command line: a tenant's token makes and sees its own, an operator's any tenant's."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from orchestrator.api.v1 import jobs_pb2_grpc, reservations_pb2
from orchestrator.control.wire import timestamp
from orchestrator.control.words import word
from orchestrator.core import messages as m
from orchestrator.core.decisions.operators import find_tenant
from orchestrator.core.decisions.reservations import find_booked
from orchestrator.core.errors import RefusalCode, RefusedError, invalid, not_found
from orchestrator.core.ids import ReservationId, TenantId
from orchestrator.core.requests import parse_conditions
from orchestrator.core.scheduling.filters import describe
from orchestrator.core.supply.fleet import TokenRole

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import grpc.aio
    from google.protobuf.timestamp_pb2 import Timestamp

    from orchestrator.control.loop import Loop
    from orchestrator.control.services.access import Access
    from orchestrator.core.jobs import JobPolicy, Requirements
    from orchestrator.core.state import State
    from orchestrator.core.supply.fleet import Token
    from orchestrator.core.tenancy.reservations import Reservation

    Context = grpc.aio.ServicerContext[Any, Any]

OF_JOBS = ("orch.priority", "orch.max_attempts", "orch.time_limit", "orch.reservation")
"""Keys that say nothing of machines."""

SECONDS_MAX = 1 << 40
"""Far beyond any calendar: what is refused by its date still has one."""


class ReservationActions(jobs_pb2_grpc.JobsServiceServicer):
    """The part of the jobs service that is about reservations."""

    def __init__(self, loop: Loop, access: Access, new_id: Callable[[str], str]) -> None:
        self._loop = loop
        self._access = access
        self._new_id = new_id

    async def CreateReservation(  # noqa: N802 -- the proto's name
        self, request: reservations_pb2.CreateReservationRequest, context: Context
    ) -> reservations_pb2.CreateReservationResponse:
        """Promised when it returns; repeating it returns the same reservation."""
        token = await self._access.tenant_or_operator(context)
        request_id = word("request_id", request.request_id, empty=True)
        asked_tenant = word("tenant", request.tenant, empty=True)
        if not asked_tenant and token.role is not TokenRole.TENANT:
            raise invalid(
                "tenant", "tenant is missing: an operator says for whom machines are kept (--tenant)"
            )
        from_ms, until_ms = _ms("begins_at", request.begins_at), _ms("ends_at", request.ends_at)

        def read(state: State) -> tuple[TenantId | None, Requirements]:
            wanted = _requirements(request.metadata, state.policies.jobs)
            return _tenant(state, token, asked_tenant), wanted

        tenant_id, wanted = await self._loop.read(read)
        command = m.CreateReservation(
            reservation_id=ReservationId(self._new_id("rsv")),
            tenant_id=tenant_id or TenantId(token.subject_id),
            name=request.name,
            requirements=wanted,
            from_ms=from_ms,
            until_ms=until_ms,
            request_sha256=_content(request.metadata, from_ms, until_ms),
            request_id=request_id,
        )
        made = ReservationId(str((await self._loop.submit(command)).result))
        found = await self._loop.read(lambda state: _message(state, state.reservations[made]))
        return reservations_pb2.CreateReservationResponse(reservation=found)

    async def ListReservations(  # noqa: N802 -- the proto's name
        self, request: reservations_pb2.ListReservationsRequest, context: Context
    ) -> reservations_pb2.ListReservationsResponse:
        """In the order in which they begin."""
        token = await self._access.tenant_or_operator(context)
        tenant = word("tenant", request.tenant, empty=True)

        def find(state: State) -> list[reservations_pb2.Reservation]:
            tenant_id = _tenant(state, token, tenant)
            found = [
                one
                for one in state.reservations.values()
                if (request.ended or one.booked) and tenant_id in (None, one.tenant_id)
            ]
            found.sort(key=lambda one: (one.from_ms, one.created_at_ms, one.reservation_id))
            return [_message(state, one) for one in found]

        return reservations_pb2.ListReservationsResponse(reservations=await self._loop.read(find))

    async def GetReservation(  # noqa: N802 -- the proto's name
        self, request: reservations_pb2.GetReservationRequest, context: Context
    ) -> reservations_pb2.GetReservationResponse:
        """One of them."""
        token = await self._access.tenant_or_operator(context)
        name = word("reservation", request.reservation)
        found = await self._loop.read(lambda state: _message(state, _find(state, token, name)))
        return reservations_pb2.GetReservationResponse(reservation=found)

    async def CancelReservation(  # noqa: N802 -- the proto's name
        self, request: reservations_pb2.CancelReservationRequest, context: Context
    ) -> reservations_pb2.CancelReservationResponse:
        """Nothing is kept for it any more; repeating it changes nothing."""
        token = await self._access.tenant_or_operator(context)
        name = word("reservation", request.reservation)
        one = await self._loop.read(lambda state: _find(state, token, name))
        await self._loop.submit(m.CancelReservation(one.reservation_id))
        found = await self._loop.read(
            lambda state: _message(state, state.reservations.get(one.reservation_id, one))
        )
        return reservations_pb2.CancelReservationResponse(reservation=found)


def _requirements(metadata: Mapping[str, str], policy: JobPolicy) -> Requirements:
    for key in OF_JOBS:
        if key in metadata:
            raise invalid(key, f"{key} is said of a job and not of machines; leave it out of the reservation")
    asked = parse_conditions(metadata, 0, policy)
    if asked.interruptible:
        raise invalid(
            "orch.tier", "orch.tier=interruptible is said of a job and not of machines; leave it out"
        )
    return asked.requirements


def _content(metadata: Mapping[str, str], from_ms: int, until_ms: int) -> str:
    """What two requests of one name must share."""
    words = json.dumps([sorted(metadata.items()), from_ms, until_ms], separators=(",", ":"))
    return hashlib.sha256(words.encode()).hexdigest()


def _ms(field: str, value: Timestamp) -> int:
    if not 0 < value.seconds < SECONDS_MAX:
        raise invalid(field, f"{field} is no time after 1970")
    return value.seconds * 1000 + value.nanos // 1_000_000


def _tenant(state: State, token: Token, named: str) -> TenantId | None:
    """Whose reservations are meant; None for everybody's."""
    if token.role is TokenRole.TENANT:
        own = TenantId(token.subject_id)
        if named and named not in (own, state.tenants[own].name):
            raise RefusedError(
                RefusalCode.FORBIDDEN, "this token is for its own tenant's reservations only", "tenant"
            )
        return own
    return find_tenant(state, named).tenant_id if named else None


def _find(state: State, token: Token, name: str) -> Reservation:
    """What the token's bearer calls so; another tenant's does not exist for a tenant.

    A name is that of the one which has not ended, or else of the one that was made last.
    """
    own = TenantId(token.subject_id) if token.role is TokenRole.TENANT else None
    seen = [one for one in state.reservations.values() if own in (None, one.tenant_id)]
    found: dict[TenantId, Reservation] = {}
    for one in sorted(seen, key=lambda one: (one.booked, one.created_at_ms, one.reservation_id)):
        if one.reservation_id == name:
            return one
        if one.name == name:
            found[one.tenant_id] = one
    if not found:
        if own is not None:
            return find_booked(state, own, name)
        raise not_found("reservation", name)
    if len(found) > 1:
        message = (
            f"{len(found)} tenants have a reservation {name!r}; give its id, as `orch reserve list` shows it"
        )
        raise invalid("reservation", message)
    return next(iter(found.values()))


def _message(state: State, one: Reservation) -> reservations_pb2.Reservation:
    held = sum(
        len(state.members[member_id].device_ids)
        for cluster_id in state.bookings.clusters.get(one.reservation_id, ())
        for member_id in state.members_of.get(cluster_id, ())
    )
    return reservations_pb2.Reservation(
        reservation_id=one.reservation_id,
        tenant_id=one.tenant_id,
        name=one.name,
        wanted=describe(one.requirements),
        begins_at=timestamp(one.from_ms),
        ends_at=timestamp(one.until_ms),
        created_at=timestamp(one.created_at_ms),
        phase=one.phase.value,
        ended_at=timestamp(one.ended_at_ms),
        used=one.used,
        devices=one.requirements.device_count,
        devices_held=held,
        jobs_waiting=len(state.bookings.queues.get(one.reservation_id, ())),
    )
