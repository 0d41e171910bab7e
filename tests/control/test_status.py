"""The network at a glance."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.control.services.operator_overview import STATUS_REMARKS_MAX, status_message
from orchestrator.control.services.surroundings import Addresses
from orchestrator.core import messages as m
from orchestrator.core.ids import WorkerId
from orchestrator.core.queries.health import Vitals
from orchestrator.core.queries.overview import overview
from tests.core.worlds import World, inventory

NOWHERE = Addresses(version="1", gateway_url="", metrics_url="", receipt_public_key=b"")


def said(world: World) -> list[tuple[str, int]]:
    answer = status_message(
        world.state, NOWHERE, overview(world.state, (), (), world.at_ms), Vitals(), world.at_ms
    )
    return [(remark.text, remark.workers) for remark in answer.remarks]


def join(world: World, *remarks: str) -> WorkerId:
    return world.join(replace(inventory(name=f"m{world.count}"), remarks=remarks))


def test_status_message_remarks_are_counted_by_worker_and_the_commonest_comes_first() -> None:
    world = World()
    join(world, "no tun", "no tun")
    join(world)
    join(world, "old kernel", "no bwrap")
    join(world, "old kernel")
    assert said(world) == [("old kernel", 2), ("no bwrap", 1), ("no tun", 1)]


def test_status_message_remarks_of_workers_that_left_are_gone() -> None:
    world = World()
    join(world, "stays")
    world.do(m.LeaveWorker(join(world, "goes")))
    assert said(world) == [("stays", 1)]


def test_status_message_remarks_that_somebody_makes_up_are_bounded() -> None:
    world = World()
    for number in range(STATUS_REMARKS_MAX):
        join(world, f"a{number}", f"b{number}")
    join(world, "z")
    join(world, "z")
    found = said(world)
    assert len(found) == STATUS_REMARKS_MAX
    assert found[0] == ("z", 2)
