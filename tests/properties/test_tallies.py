"""Whatever becomes of workers and members, in whatever order: what is counted as they change is what a count finds.

Changes are put into the state as they are, also those that no decision makes: a device that its worker no longer has
while a member holds it, a member that changes its devices, a worker that is another class of machine from now on.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import count

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.clusters import Member, MemberPhase
from orchestrator.core.ids import DeviceId, MemberId, WorkerId
from orchestrator.core.state import State
from orchestrator.core.supply.fleet import Device, DeviceKind, HardwareClass, Liveness, Worker
from orchestrator.core.supply.holds import DeviceHold, Hold, HoldKind
from orchestrator.sim.checks import check_tallies
from tests.core.worlds import World
from tests.properties.stories import BOOKED_STEPS, LEAVING_STEPS, STEPS, Story

DEVICES = 4
"""Of a worker at most: enough for several members, of which one has several."""

CHANGES = st.lists(
    st.tuples(
        st.sampled_from(
            (
                *("member", "phase") * 4,
                "devices",
                *("liveness", "class", "inventory", "draining", "hold", "hold device", "reliability"),
            )
        ),
        st.integers(0, 10**6),
    ),
    min_size=5,
    max_size=60,
)


def a_world() -> tuple[State, Member, list[WorkerId]]:
    """Two workers, and a member to make others of."""
    world = World()
    workers = [world.worker(count=DEVICES), world.worker(model="RTX3060", count=DEVICES)]
    world.submit()
    world.plan()
    (member,) = (one for one in world.state.members.values() if one.device_ids)
    return world.state, member, workers


def of_nobody(
    state: State, worker: Worker, number: int, but_of: MemberId | None = None
) -> tuple[DeviceId, ...]:
    """Some devices that no other member has, one that its worker lacks among them."""
    taken = {
        device_id
        for member_id in state.members_on.get(worker.worker_id, ())
        if member_id != but_of
        for device_id in state.members[member_id].device_ids
    }
    there = [device.device_id for device in worker.inventory.devices]
    choice = [one for one in (*there, DeviceId(f"{worker.worker_id}-gone")) if one not in taken]
    return tuple(one for position, one in enumerate(choice) if number >> position & 1)


def inventory_of(worker: Worker, number: int) -> tuple[Device, ...]:
    """Some of what it can have, of one model or another, and perhaps no GPU."""
    return tuple(
        Device(
            DeviceId(f"{worker.worker_id}-{position}"),
            DeviceKind.CPU if number >> position + 8 & 1 else DeviceKind.GPU,
            ("RTX4090", "H100")[number >> position + 4 & 1],
            1,
            simulated=True,
        )
        for position in range(DEVICES)
        if number >> position & 1
    )


def changed(worker: Worker, kind: str, number: int) -> Worker:
    """The worker as it is after a change of this kind."""
    match kind:
        case "liveness":
            return replace(worker, liveness=tuple(Liveness)[number % len(Liveness)])
        case "class":
            chosen = tuple(HardwareClass)[number % len(HardwareClass)]
            return replace(worker, inventory=replace(worker.inventory, hardware_class=chosen))
        case "inventory":
            return replace(worker, inventory=replace(worker.inventory, devices=inventory_of(worker, number)))
        case "draining":
            return replace(worker, draining=not worker.draining)
        case "hold":
            hold = Hold(tuple(HoldKind)[number % len(HoldKind)], "a test's", 0)
            return replace(worker, holds=() if worker.holds else (hold,))
        case "hold device":
            held = [one.device_id for one in worker.inventory.devices[: number % (DEVICES + 1)]]
            return replace(worker, device_holds=tuple(DeviceHold(one, "a test's", 0) for one in held))
    return replace(worker, recoveries=worker.recoveries + 1)


@given(CHANGES)
@settings(max_examples=300)
def test_tallies_after_each_change_are_what_a_count_of_all_finds(changes: list[tuple[str, int]]) -> None:
    state, pattern, workers = a_world()
    names = count()
    check_tallies(state)
    for kind, number in changes:
        worker = state.workers[workers[number % 2]]
        members = [state.members[one] for one in state.members_on.get(worker.worker_id, ())]
        member = members[number % len(members)] if members else None
        match kind:
            case "member":
                state.put(
                    replace(
                        pattern,
                        member_id=MemberId(f"mem_{next(names)}"),
                        worker_id=worker.worker_id,
                        device_ids=of_nobody(state, worker, number // 2),
                        phase=tuple(MemberPhase)[number % len(MemberPhase)],
                        overlay_host=number % 3,
                    )
                )
            case "phase" if member is not None:
                state.put(replace(member, phase=tuple(MemberPhase)[number % len(MemberPhase)]))
            case "devices" if member is not None:
                mine = of_nobody(state, worker, number // 2, member.member_id)
                state.put(replace(member, device_ids=mine))
            case "phase" | "devices":
                continue
            case _:
                state.put(changed(worker, kind, number // 2))
        check_tallies(state)


@given(STEPS | BOOKED_STEPS | LEAVING_STEPS)
@settings(max_examples=100)
def test_tallies_after_each_step_of_a_story_are_what_a_count_of_all_finds(
    steps: list[tuple[str, int]],
) -> None:
    story = Story().busy()
    for kind, number in steps:
        story.step(kind, number)
        check_tallies(story.world.state)
