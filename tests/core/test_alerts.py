"""What an owner is told without asking: once each, in order, and until it is delivered or given up."""

from __future__ import annotations

import pytest

from orchestrator.core import messages as m
from orchestrator.core.alerts import ALERTS_KEPT, UNSETTLED_MAX, Alert, AlertKind
from orchestrator.core.decide import effects_of, pending_effects
from orchestrator.core.ids import WorkerId
from orchestrator.core.supply.fleet import FleetPolicy
from orchestrator.core.supply.holds import HoldKind
from orchestrator.core.supply.terms import Terms
from tests.core.worlds import World

POLICY = FleetPolicy()
HOOK = Terms(webhook_url="https://owner.example/hook")


def told(terms: Terms = HOOK) -> tuple[World, WorkerId]:
    world = World()
    worker_id = world.worker()
    world.do(m.SetTerms(worker_id, terms))
    world.state.take_touched()
    return world, worker_id


def alerts(world: World, worker_id: WorkerId) -> list[tuple[int, AlertKind]]:
    return [(one.number, one.kind) for one in world.who(worker_id).alerts]


def lose(world: World, worker_id: WorkerId) -> None:
    world.live_on(POLICY.lost_after_ms + 10_000, silent=frozenset({worker_id}))


def test_owner_is_told_of_a_lost_worker_and_of_its_return() -> None:
    world, worker_id = told()
    lose(world, worker_id)
    name = world.who(worker_id).name
    (alert,) = world.who(worker_id).alerts
    assert (alert.kind, alert.settled) == (AlertKind.OFFLINE, False)
    assert alert.text.startswith(f"{name} was not heard for 80 s")
    world.do(m.ConnectWorker(worker_id, None))
    assert alerts(world, worker_id) == [(1, AlertKind.OFFLINE), (2, AlertKind.RETURNED)]


def test_owner_is_told_of_an_excused_loss_too_and_that_it_is_excused() -> None:
    world, worker_id = told()
    others = {world.worker() for _ in range(3)}
    world.live_on(POLICY.zone_window_ms + 60_000, silent=frozenset({worker_id, *others}))
    (alert,) = world.who(worker_id).alerts
    assert "held against nobody" in alert.text


def test_owner_is_not_told_of_a_return_from_a_short_silence() -> None:
    world, worker_id = told()
    world.live_on(POLICY.suspect_after_ms + 5_000, silent=frozenset({worker_id}))
    world.do(m.ConnectWorker(worker_id, None))
    assert world.who(worker_id).alerts == ()


@pytest.mark.parametrize(
    ("hold", "kind"),
    [
        (HoldKind.OPERATOR, AlertKind.CORDONED),
        (HoldKind.QUARANTINED, AlertKind.CORDONED),
        (HoldKind.CLONED, AlertKind.CORDONED),
        (HoldKind.REVOKED, AlertKind.CORDONED),
        (HoldKind.OUTDATED, AlertKind.OUTDATED),
        (HoldKind.OWNER, None),
        (HoldKind.SCHEDULE, None),
    ],
)
def test_owner_is_told_of_holds_that_are_not_his_own(hold: HoldKind, kind: AlertKind | None) -> None:
    world, worker_id = told()
    world.do(m.PlaceHold(worker_id, hold, "for a reason"))
    found = world.who(worker_id).alerts
    assert [one.kind for one in found] == ([] if kind is None else [kind])
    assert all("for a reason" in one.text for one in found)


def test_owner_is_told_once_of_a_hold_whose_words_change() -> None:
    world, worker_id = told()
    world.do(m.PlaceHold(worker_id, HoldKind.OPERATOR, "first"))
    world.forward(1_000)
    world.do(m.PlaceHold(worker_id, HoldKind.OPERATOR, "second"))
    assert alerts(world, worker_id) == [(1, AlertKind.CORDONED)]


def test_owner_is_told_of_a_failing_device_with_its_evidence() -> None:
    world, worker_id = told()
    device = world.who(worker_id).inventory.devices[0].device_id
    world.do(m.HoldDevice(worker_id, device, "XID 79: fallen off the bus"))
    (alert,) = world.who(worker_id).alerts
    assert alert.kind is AlertKind.CORDONED
    assert device in alert.text
    assert "XID 79" in alert.text


def test_owner_is_told_of_a_certificate_that_had_run_out() -> None:
    world, worker_id = told()
    world.do(m.RecoverWorker(worker_id, world.who(worker_id).tls_key_sha256))
    (alert,) = world.who(worker_id).alerts
    assert alert.kind is AlertKind.CERTIFICATE
    assert "4 more times soon" in alert.text


def test_alert_with_nowhere_to_go_is_settled_as_it_is_raised() -> None:
    world, worker_id = told(Terms())
    lose(world, worker_id)
    assert [one.settled for one in world.who(worker_id).alerts] == [True]
    assert not any(isinstance(one, m.DeliverAlert) for one in pending_effects(world.state))


def test_alert_is_delivered_until_it_is_settled() -> None:
    world, worker_id = told()
    lose(world, worker_id)
    due = m.DeliverAlert(worker_id, 1)
    assert due in effects_of(world.state, world.state.take_touched())
    assert due in pending_effects(world.state)
    world.do(m.SettleAlert(worker_id, 1))
    assert world.do(m.SettleAlert(worker_id, 1)).events == ()
    assert due not in effects_of(world.state, world.state.take_touched())
    assert due not in pending_effects(world.state)


def test_alerts_keep_their_numbers_when_older_ones_are_dropped() -> None:
    world, worker_id = told(Terms())
    for _ in range(ALERTS_KEPT + 3):
        world.forward(1_000)
        world.do(m.PlaceHold(worker_id, HoldKind.OPERATOR, "again"))
        world.do(m.LiftHold(worker_id, HoldKind.OPERATOR))
    kept = world.who(worker_id).alerts
    assert [one.number for one in kept] == list(range(4, ALERTS_KEPT + 4))
    assert isinstance(kept[0], Alert)


def test_alerts_that_wait_for_delivery_are_never_dropped_for_newer_ones() -> None:
    world, worker_id = told()

    def trouble(times: int) -> None:
        for _ in range(times):
            world.forward(1_000)
            world.do(m.PlaceHold(worker_id, HoldKind.OPERATOR, "again"))
            world.do(m.LiftHold(worker_id, HoldKind.OPERATOR))

    trouble(ALERTS_KEPT + 3)
    due = [one for one in pending_effects(world.state) if isinstance(one, m.DeliverAlert)]
    assert [one.number for one in due] == list(range(1, ALERTS_KEPT + 4))
    world.do(m.SetTerms(worker_id, HOOK))
    for number in range(1, ALERTS_KEPT + 3):
        world.do(m.SettleAlert(worker_id, number))
    kept = world.who(worker_id).alerts
    assert [one.number for one in kept if one.settled] == list(range(3, ALERTS_KEPT + 3))
    assert [one.number for one in kept if not one.settled] == [ALERTS_KEPT + 3]
    trouble(UNSETTLED_MAX + 5)
    waiting = [one.number for one in world.who(worker_id).alerts if not one.settled]
    assert len(waiting) == UNSETTLED_MAX
    assert waiting[-1] == world.who(worker_id).alert_count
