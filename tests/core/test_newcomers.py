"""Strangers: what they may carry, what they must show, and when they are forgotten."""

from __future__ import annotations

import pytest

from orchestrator.core import messages as m
from orchestrator.core.errors import RefusalCode, RefusedError
from orchestrator.core.ids import SupplierId, TokenId, WorkerId
from orchestrator.core.jobs import Requirements
from orchestrator.core.policies import Policies
from orchestrator.core.supply.evidence import EvidenceClass
from orchestrator.core.supply.fleet import FleetPolicy, Inventory, Liveness, TokenRole
from orchestrator.core.supply.holds import HoldKind
from tests.core.worlds import World, inventory, sha

HOUR_MS = 3_600_000
OPEN = Policies(fleet=FleetPolicy(open_enrolment=True, probation_max=3))


def stranger(world: World, offer: Inventory | None = None, *, connected: bool = False) -> WorkerId:
    name = world.name("wkr")
    supplier_id = SupplierId(f"sup-{name}")
    joining = m.JoinWorker(
        WorkerId(name), "", name, sha(name), offer or inventory(name=name), supplier_id=supplier_id
    )
    worker_id = WorkerId(str(world.do(joining).result))
    if connected:
        world.do(m.ConnectWorker(worker_id, None))
    return worker_id


def test_stranger_with_head_slots_is_told_what_they_take() -> None:
    world = World(OPEN)
    with pytest.raises(RefusedError, match="--head-host") as refusal:
        stranger(world, inventory("CPU", 0, head_slots=64))
    assert refusal.value.field == "inventory.head_slots"


def test_worker_whose_token_says_nothing_of_heads_cannot_offer_them_later() -> None:
    world = World()
    ours, mine = world.head_host(2), world.worker()
    other = world.worker()
    with pytest.raises(RefusedError, match="--head-host"):
        world.do(m.ConnectWorker(mine, inventory("RTX4090", 1, head_slots=64, name="m0")))
    world.submit(Requirements(gpus=2))
    assert [one.head_host for one in world.plan().placements] == [ours]
    assert mine != other


def test_token_of_a_tenant_makes_no_head_host() -> None:
    world = World()
    world.tenant("acme")
    command = m.CreateToken(
        TokenId("t"), TokenRole.TENANT, "acme", sha("s"), 1_000, SupplierId(""), head_host=True
    )
    with pytest.raises(RefusedError) as refusal:
        world.do(command)
    assert refusal.value.field == "head_host"


def test_strangers_that_never_come_are_forgotten_and_make_room() -> None:
    world = World(OPEN)
    gone = [stranger(world) for _ in range(3)]
    with pytest.raises(RefusedError) as refusal:
        stranger(world)
    assert refusal.value.code is RefusalCode.EXHAUSTED
    world.tick(HOUR_MS - 1)
    assert set(gone) == set(world.state.workers)
    world.tick(1)
    assert (world.state.workers, world.state.suppliers) == ({}, {})
    stranger(world)


def test_stranger_on_probation_that_stays_away_for_a_day_is_forgotten() -> None:
    world = World(OPEN)
    worker_id, other = stranger(world, connected=True), world.worker()
    world.live_on(200_000, silent=frozenset({worker_id}))
    assert world.who(worker_id).liveness is Liveness.LOST
    world.tick(24 * HOUR_MS)
    assert list(world.state.workers) == [other]
    assert world.state.claims.owners().keys() == {
        one.device_id.casefold() for one in world.who(other).inventory.devices
    }
    world.live_on(60_000)
    assert stranger(world, connected=True) in world.state.workers


def test_probation_does_not_end_without_evidence_and_says_what_is_missing() -> None:
    world = World(OPEN)
    worker_id = stranger(world, connected=True)
    world.live_on(HOUR_MS + 60_000, step_ms=20_000)
    hold = world.who(worker_id).hold(HoldKind.PROBATION)
    assert hold is not None
    assert "evidence T2" in hold.reason
    assert "simulated" in hold.reason
    world.do(m.LiftHold(worker_id, HoldKind.PROBATION))
    assert world.who(worker_id).placeable


def test_probation_that_asks_for_no_evidence_ends_with_its_time() -> None:
    fleet = FleetPolicy(open_enrolment=True, probation_evidence=EvidenceClass.T0)
    world = World(Policies(fleet=fleet))
    worker_id = stranger(world, connected=True)
    world.live_on(HOUR_MS, step_ms=20_000)
    assert world.who(worker_id).placeable
