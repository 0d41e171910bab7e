"""What an operator sees of groups. Each of them is looked at in a read of its own, so that the loop goes on between."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from orchestrator.api.v1 import operator_pb2_grpc, scheduling_pb2
from orchestrator.control.inventory_wire import CLASS_NUMBERS
from orchestrator.core.queries.groups import Drawn, GroupStanding, drawn, group_standing, overview, picture

if TYPE_CHECKING:
    import grpc.aio

    from orchestrator.control.loop import Loop
    from orchestrator.core.nearness.grouping import GroupNumber

    Context = grpc.aio.ServicerContext[Any, Any]


class GroupViews(operator_pb2_grpc.OperatorServiceServicer):
    """The part of the operator's service that is about groups."""

    _loop: Loop

    async def ListGroups(  # noqa: N802 -- the proto's name
        self, request: scheduling_pb2.ListGroupsRequest, _context: Context
    ) -> scheduling_pb2.ListGroupsResponse:
        """Those of two workers or more, or all; the largest first."""
        everything = request.all
        found = await self._loop.read(lambda state: overview(state, everything=everything))
        standings = [await self._group(number) for number in found.numbers]
        return scheduling_pb2.ListGroupsResponse(
            groups=[_group_message(one) for one in standings if one is not None],
            groups_total=found.groups,
            workers_alone=found.alone,
            workers_measured=found.known,
            bound_ms=found.bound_ms,
        )

    async def GetGroupMap(  # noqa: N802 -- the proto's name
        self, _request: scheduling_pb2.GetGroupMapRequest, _context: Context
    ) -> scheduling_pb2.GetGroupMapResponse:
        """Worked out beside the loop, of what one read gave."""
        found = await self._loop.read(lambda state: overview(state, everything=True))
        chosen, distances_us = await self._loop.read(
            lambda state: drawn(state, state.time_ms(self._loop.now()))
        )
        places = await asyncio.to_thread(picture, distances_us)
        return scheduling_pb2.GetGroupMapResponse(
            points=[_point_message(one, place) for one, place in zip(chosen, places, strict=True)],
            workers_total=found.workers,
            workers_measured=found.known,
            bound_ms=found.bound_ms,
        )

    async def _group(self, number: GroupNumber) -> GroupStanding | None:
        """None where it is gone since it was listed."""
        return await self._loop.read(
            lambda state: group_standing(state, number, state.time_ms(self._loop.now()))
        )


def _group_message(one: GroupStanding) -> scheduling_pb2.Group:
    return scheduling_pb2.Group(
        number=one.number,
        hardware_class=CLASS_NUMBERS[one.kind.hardware_class],
        model=one.kind.model,
        operating_system=one.kind.operating_system,
        runtime=one.kind.runtime,
        reach=one.kind.reach,
        leader_id=one.members[0],
        leader_name=one.leader_name,
        worker_ids=one.members,
        devices=one.devices,
        devices_free=one.free,
        reach_us=one.reach_us,
        pairs=one.pairs,
        pairs_measured=one.pairs_measured,
        diameter_measured_us=one.measured_us,
        diameter_predicted_us=one.predicted_us,
    )


def _point_message(one: Drawn, place: tuple[float, float]) -> scheduling_pb2.GroupPoint:
    return scheduling_pb2.GroupPoint(
        worker_id=one.worker_id,
        worker_name=one.name,
        group_number=one.number,
        leader=one.leads,
        x_ms=place[0],
        y_ms=place[1],
        hardware_class=CLASS_NUMBERS[one.kind.hardware_class],
        model=one.kind.model,
        leader_us=one.away_us,
    )
