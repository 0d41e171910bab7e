"""One device, one paid worker: who owns it, who is quarantined for it, and how that ends."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.core import messages as m
from orchestrator.core.entities import TABLES
from orchestrator.core.errors import RefusalCode, RefusedError
from orchestrator.core.ids import DeviceId, WorkerId
from orchestrator.core.state import State
from orchestrator.core.supply.fleet import Inventory, Liveness
from orchestrator.core.supply.holds import HoldKind
from tests.core.worlds import World, inventory


def quarantined(world: World, worker_id: WorkerId) -> bool:
    return world.who(worker_id).hold(HoldKind.QUARANTINED) is not None


def reloaded(world: World) -> State:
    """The state as a store would load it: each table in the order of its keys."""
    rows, state = world.state.rows(), State(world.policies)
    for table in TABLES:
        for key in sorted(rows[table]):
            state.put(rows[table][key])
    state.version, state.latest_ms = world.state.version, world.state.latest_ms
    state.take_touched()
    return state


def leave(world: World, worker_id: WorkerId) -> None:
    world.do(m.DrainWorker(worker_id))
    world.do(m.LeaveWorker(worker_id, told=True))


def test_worker_that_returns_after_its_device_went_to_another_is_quarantined() -> None:
    world, offer = World(), inventory(name="gpu")
    first = world.join(offer, "north")
    leave(world, first)
    second = world.join(offer, "south")
    world.do(m.ConnectWorker(first, offer, 1, "0.2.0"))
    assert (quarantined(world, first), quarantined(world, second)) == (True, False)
    world.running()
    world.submit()
    assert world.plan().empty
    assert {lease.worker_id for lease in world.state.leases.values()} == {second}


def test_device_in_other_spelling_is_the_same_device() -> None:
    world, offer = World(), inventory(name="gpu-abc")
    world.join(offer, "north")
    shouted = DeviceId(offer.devices[0].device_id.upper())
    other = world.join(replace(offer, devices=(replace(offer.devices[0], device_id=shouted),)), "south")
    assert quarantined(world, other)


def with_more(offer: Inventory, more: Inventory) -> Inventory:
    return replace(offer, devices=offer.devices + more.devices)


def test_owner_stays_the_owner_when_a_worker_of_a_lesser_id_names_its_device_and_all_is_loaded_again() -> (
    None
):
    world, own, wanted = World(), inventory(name="own"), inventory(name="gpu")
    thief = world.join(own, "north")
    victim = world.join(wanted, "south")
    world.do(m.ConnectWorker(thief, with_more(own, wanted), 1, "0.2.0"))
    world.state = reloaded(world)
    assert world.state.claims.owner(wanted.devices[0].device_id) == victim
    world.do(m.ConnectWorker(victim, replace(wanted, memory_bytes=wanted.memory_bytes + 1), 1, "0.2.0"))
    assert (quarantined(world, thief), quarantined(world, victim)) == (True, False)


@pytest.mark.parametrize("how", ["leave", "revoke", "inventory"])
def test_quarantine_ends_by_itself_when_the_owner_gives_the_device_up(how: str) -> None:
    world, offer = World(), inventory(name="gpu")
    owner, other = world.join(offer, "north"), world.join(offer, "south")
    assert quarantined(world, other)
    assert owner in world.who(other).holds[0].reason
    if how == "leave":
        leave(world, owner)
    elif how == "revoke":
        world.do(m.PlaceHold(owner, HoldKind.REVOKED, "a liar"))
    else:
        world.do(m.ConnectWorker(owner, inventory(name="another")))
    assert not quarantined(world, other)
    assert world.who(other).placeable


def test_revoked_owner_that_is_readmitted_comes_after_who_has_the_device_now() -> None:
    world, offer = World(), inventory(name="gpu")
    owner, other = world.join(offer, "north"), world.join(offer, "south")
    world.do(m.PlaceHold(owner, HoldKind.REVOKED, "a liar"))
    world.forward(1)
    world.do(m.LiftHold(owner, HoldKind.REVOKED))
    assert (quarantined(world, owner), quarantined(world, other)) == (True, False)


def test_quarantine_is_not_lifted_while_another_has_the_device() -> None:
    world, offer = World(), inventory(name="gpu")
    owner, other = world.join(offer, "north"), world.join(offer, "south")
    with pytest.raises(RefusedError, match=f"orch worker leave {owner}") as refusal:
        world.do(m.LiftHold(other, HoldKind.QUARANTINED))
    assert refusal.value.code is RefusalCode.CONFLICT


@pytest.mark.parametrize("first", [True, False])
def test_machine_that_is_set_up_anew_takes_over_from_its_lost_self(first: bool) -> None:
    """Whether it joins before or after the old one is given up for lost."""
    world, offer = World(), inventory(name="gpu")
    old = world.join(offer)
    if first:
        world.live_on(200_000, silent=frozenset({old}))
    new = world.join(offer)
    assert quarantined(world, new) is not first
    world.live_on(200_000, silent=frozenset({old}))
    assert world.who(old).liveness is Liveness.LEFT
    assert world.who(new).placeable
    world.do(m.ConnectWorker(old, offer, 1, "0.2.0"))
    assert (quarantined(world, old), quarantined(world, new)) == (True, False)


def test_machine_with_new_keys_takes_over_from_the_copied_ones() -> None:
    world, offer = World(), inventory(name="gpu")
    old = world.join(offer)
    world.do(m.ConnectWorker(old, None, 1, "0.2.0"))
    world.do(m.ConnectWorker(old, None, 1, "0.2.0"))
    assert world.who(old).hold(HoldKind.CLONED) is not None
    new = world.join(offer)
    assert (world.who(old).liveness, world.who(new).placeable) == (Liveness.LEFT, True)


def test_another_supplier_takes_over_from_nobody() -> None:
    world, offer = World(), inventory(name="gpu")
    old = world.join(offer, "north")
    world.live_on(200_000, silent=frozenset({old}))
    assert quarantined(world, world.join(offer, "south"))
    assert world.who(old).liveness is Liveness.LOST


def test_cleared_copy_cannot_join_a_second_time_with_its_token() -> None:
    world = World()
    asked = world.joining(inventory(name="gpu"))
    worker_id = WorkerId(str(world.do(asked).result))
    for _ in range(2):
        world.do(m.ConnectWorker(worker_id, None, 1, "0.2.0"))
    world.do(m.LiftHold(worker_id, HoldKind.CLONED))
    with pytest.raises(RefusedError) as refusal:
        world.do(asked)
    assert refusal.value.code is RefusalCode.ALREADY_EXISTS


@pytest.mark.parametrize("kind", [HoldKind.QUARANTINED, HoldKind.CLONED, HoldKind.REVOKED])
def test_mistrust_pays_what_was_billed_and_nothing_that_is_said_later(kind: HoldKind) -> None:
    world = World()
    worker_id = world.worker()
    job_id = world.running()
    world.live_on(60_000)
    (lease,) = world.leases(job_id)
    world.state_time(lease, 40_000)
    world.do(m.PlaceHold(worker_id, kind, "a copy"))
    world.state_time(lease, 60_000, final=True)
    world.tick(1)
    (lease,) = world.leases(job_id)
    assert (lease.settled, lease.billed_offset_ms, lease.disputed_ms) == (True, 40_000, 20_000)
    assert sum(receipt.billed_ms for receipt in world.receipts(lease.lease_id)) == 40_000


def test_device_holds_of_cards_that_are_gone_are_bounded() -> None:
    world = World()
    worker_id = world.worker()
    for number in range(1, 8):
        offer = inventory(name=f"r{number}", count=20)
        world.do(m.ConnectWorker(worker_id, offer, number, "0.2.0"))
        for device in offer.devices:
            world.do(m.HoldDevice(worker_id, device.device_id, "hot"))
    assert len(world.who(worker_id).device_holds) == 20 + 16
