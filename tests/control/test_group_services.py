"""Groups as a real loop keeps them of what workers report, and as operators, and nobody else, see them."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace
from math import hypot
from pathlib import Path

import grpc
import pytest

from orchestrator.adapters import clock
from orchestrator.api.v1 import common_pb2, scheduling_pb2
from orchestrator.core import messages as m
from orchestrator.core.ids import WorkerId
from orchestrator.core.nearness.grouping import GroupPolicy
from orchestrator.core.policies import Policies
from orchestrator.core.supply.fleet import NEBULA, TokenRole
from tests.control.agents import Served, bearer, refused, serving
from tests.control.house import inventory

NEAR_US, FAR_US = 3_000, 70_000


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path, Policies()) as running:
        yield running


async def joined(served: Served, name: str, devices: int = 1) -> WorkerId:
    """A live worker in the overlay."""
    loop = served.house.plane.loop
    secret = await served.house.token(TokenRole.SUPPLIER, "anna")
    worker_id = WorkerId(clock.new_id("wrk"))
    offer = replace(inventory(devices, worker_id), overlay=NEBULA)
    key = clock.random_bytes(32).hex()
    await loop.submit(m.JoinWorker(worker_id, hashlib.sha256(secret.encode()).hexdigest(), name, key, offer))
    await loop.submit(m.ConnectWorker(worker_id, None))
    return worker_id


def measured(served: Served, *workers: WorkerId, rtt_us: int = NEAR_US) -> None:
    """All of these report all others."""
    for one in workers:
        served.house.plane.loop.measured(one, [(other, rtt_us) for other in workers if other != one])


async def listed(served: Served, *, everything: bool = False) -> scheduling_pb2.ListGroupsResponse:
    request = scheduling_pb2.ListGroupsRequest(all=everything)
    return await served.operator.ListGroups(request, metadata=served.admin)


async def test_list_groups_shows_what_the_reports_of_workers_made(served: Served) -> None:
    near = [await joined(served, f"attic-{number}", devices=2) for number in range(3)]
    far = await joined(served, "moon")
    measured(served, *near)
    measured(served, near[0], far, rtt_us=FAR_US)
    answer = await listed(served)
    (group,) = answer.groups
    assert (answer.groups_total, answer.workers_alone, answer.workers_measured, answer.bound_ms) == (
        1,
        1,
        4,
        20,
    )
    assert set(group.worker_ids) == set(near)
    assert group.worker_ids[0] == group.leader_id
    assert group.leader_name.startswith("attic-")
    assert (group.model, group.hardware_class) == ("RTX4090", common_pb2.HARDWARE_CLASS_CONSUMER)
    assert (group.operating_system, group.devices, group.devices_free) == ("linux", 6, 6)
    assert (group.pairs, group.pairs_measured, group.diameter_measured_us) == (3, 3, NEAR_US)
    assert not group.HasField("diameter_predicted_us")
    assert group.reach_us == NEAR_US
    every = await listed(served, everything=True)
    assert [len(one.worker_ids) for one in every.groups] == [3, 1]
    assert not every.groups[1].HasField("diameter_measured_us")


async def test_list_groups_counts_what_is_cordoned_as_not_free_and_forgets_who_left(served: Served) -> None:
    near = [await joined(served, f"attic-{number}") for number in range(3)]
    measured(served, *near)
    loop = served.house.plane.loop
    await loop.submit(m.DrainWorker(near[0], dismiss=False))
    (group,) = (await listed(served)).groups
    assert (group.devices, group.devices_free) == (3, 2)
    await loop.submit(m.LeaveWorker(near[0]))
    (group,) = (await listed(served)).groups
    assert set(group.worker_ids) == set(near[1:])


async def test_list_groups_predicts_pairs_that_nobody_measured(served: Served) -> None:
    one, middle, other = [await joined(served, f"attic-{number}") for number in range(3)]
    measured(served, one, middle)
    measured(served, other, middle)
    (group,) = (await listed(served)).groups
    assert (group.pairs, group.pairs_measured) == (3, 2)
    assert group.diameter_predicted_us == 2 * NEAR_US


async def test_groups_of_a_network_that_measured_nothing_are_empty(served: Served) -> None:
    await joined(served, "attic")
    answer = await listed(served)
    assert (list(answer.groups), answer.workers_alone, answer.workers_measured) == ([], 1, 0)
    picture = await served.operator.GetGroupMap(scheduling_pb2.GetGroupMapRequest(), metadata=served.admin)
    assert (list(picture.points), picture.workers_total) == ([], 1)


async def test_group_map_lays_out_who_was_measured_as_far_apart_as_they_are(served: Served) -> None:
    near = [await joined(served, f"attic-{number}") for number in range(2)]
    far = await joined(served, "moon")
    await joined(served, "silent")
    measured(served, *near)
    for one in near:
        measured(served, one, far, rtt_us=FAR_US)
    found = await served.operator.GetGroupMap(scheduling_pb2.GetGroupMapRequest(), metadata=served.admin)
    points = {point.worker_id: point for point in found.points}
    assert set(points) == {*near, far}
    assert found.workers_total == 4

    def apart_ms(one: str, other: str) -> float:
        return hypot(points[one].x_ms - points[other].x_ms, points[one].y_ms - points[other].y_ms)

    assert apart_ms(*near) == pytest.approx(3, abs=0.1)
    assert apart_ms(near[0], far) == pytest.approx(70, abs=1)
    assert points[near[0]].group_number == points[near[1]].group_number != points[far].group_number
    assert {points[one].leader for one in near} == {True, False}
    assert points[far].worker_name == "moon"


async def test_groups_are_the_operators_alone(served: Served) -> None:
    _, secret = await served.house.tenant("acme")
    with refused(grpc.StatusCode.PERMISSION_DENIED):
        await served.operator.ListGroups(scheduling_pb2.ListGroupsRequest(), metadata=bearer(secret))
    with refused(grpc.StatusCode.UNAUTHENTICATED):
        await served.operator.GetGroupMap(scheduling_pb2.GetGroupMapRequest())


async def test_bound_of_groups_is_the_operators_to_turn(tmp_path: Path) -> None:
    async with serving(tmp_path, Policies(groups=GroupPolicy(group_bound_ms=5))) as served:
        near = [await joined(served, f"attic-{number}") for number in range(2)]
        measured(served, *near)
        answer = await listed(served)
        assert (list(answer.groups), answer.bound_ms, answer.workers_alone) == ([], 5, 2)
