"""Owners' webhooks: who waits for whom, and what an owner hears of silence and of certificates, end to end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from orchestrator.control.alerts import TRIES_MAX, Alerts
from orchestrator.core import messages as m
from orchestrator.core.alerts import AlertKind
from orchestrator.core.decide import pending_effects
from orchestrator.core.ids import SupplierId, TokenId, WorkerId
from orchestrator.core.supply.fleet import FleetPolicy, TokenRole
from orchestrator.core.supply.holds import HoldKind
from orchestrator.core.supply.terms import Terms
from tests.control.looping import Rig, rigged
from tests.core.worlds import inventory, sha
from tests.polling import wait_until_async

POLICY = FleetPolicy()
DEADLINE_S = 60.0
DEAD = 16
"""As many as may be posted to at once."""


@dataclass
class Desk:
    """Owners' servers: those whose URL says so take nothing, by an error or by never answering."""

    told: list[tuple[str, dict[str, object]]] = field(default_factory=list)
    tries: dict[str, int] = field(default_factory=dict)
    posting: dict[str, int] = field(default_factory=dict)
    most: dict[str, int] = field(default_factory=dict)
    """By host, the most posts that were under way at once."""

    async def post(self, url: str, body: bytes, *, vouched: bool) -> None:
        assert vouched
        host = url.split("/")[2]
        self.tries[url] = self.tries.get(url, 0) + 1
        self.posting[host] = self.posting.get(host, 0) + 1
        self.most[host] = max(self.most.get(host, 0), self.posting[host])
        try:
            await asyncio.sleep(0)
            if "dead" in host:
                raise OSError("connection refused")
        finally:
            self.posting[host] -= 1
        self.told.append((url, json.loads(body)))

    def kinds(self) -> list[object]:
        return [said["kind"] for _, said in self.told]


async def join(rig: Rig, number: int, supplier: str, webhook_url: str) -> WorkerId:
    """A live worker whose owner wants to be told."""
    worker_id, digest = WorkerId(f"wk_{number}"), sha(f"token {number}")
    name = SupplierId(f"sup_{number}")
    await rig.loop.submit(
        m.CreateToken(TokenId(f"tok_{number}"), TokenRole.SUPPLIER, supplier, digest, 10**9, name)
    )
    offer = inventory("RTX4090", 1, name=f"m{number}")
    await rig.loop.submit(m.JoinWorker(worker_id, digest, f"worker-{number}", sha(f"key {number}"), offer))
    await rig.loop.submit(m.ConnectWorker(worker_id, None))
    await rig.loop.submit(m.SetTerms(worker_id, Terms(webhook_url=webhook_url)))
    return worker_id


async def trouble(rig: Rig, worker_id: WorkerId) -> None:
    await rig.loop.submit(m.PlaceHold(worker_id, HoldKind.OPERATOR, "looks odd"))
    await rig.loop.submit(m.LiftHold(worker_id, HoldKind.OPERATOR))


async def deliver_all(rig: Rig, alerts: Alerts) -> None:
    """As the effects do, again and again."""
    for effect in await rig.loop.read(pending_effects):
        if isinstance(effect, m.DeliverAlert):
            alerts.deliver(effect)


@asynccontextmanager
async def delivering(rig: Rig, pause_s: float) -> AsyncIterator[tuple[Alerts, Desk]]:
    desk = Desk()
    alerts = Alerts(rig.loop, desk, pause_s)
    try:
        yield alerts, desk
    finally:
        await alerts.close()


async def until(condition: Callable[[], bool], what: str) -> None:
    await wait_until_async(condition, what=what, deadline_s=DEADLINE_S)


async def test_alerts_sixteen_dead_webhooks_keep_nobody_else_waiting() -> None:
    async with rigged() as rig, delivering(rig, pause_s=3_600.0) as (alerts, desk):
        for number in range(DEAD):
            worker_id = await join(rig, number, f"s{number}", f"https://dead-{number}.example/{number}")
            await trouble(rig, worker_id)
        await deliver_all(rig, alerts)
        await until(lambda: len(desk.tries) == DEAD, "a first try at every dead one")
        living = await join(rig, DEAD, "living", "https://living.example/hook")
        await trouble(rig, living)
        await deliver_all(rig, alerts)
        await until(lambda: bool(desk.told), "the living one to be told")
        assert [url for url, _ in desk.told] == ["https://living.example/hook"]
        await until(
            lambda: all(one.settled for one in rig.state.workers[living].alerts), "its alert to be settled"
        )
        assert not rig.state.workers[WorkerId("wk_0")].alerts[0].settled


async def test_alerts_of_one_supplier_go_out_one_at_a_time_and_in_order() -> None:
    async with rigged() as rig, delivering(rig, pause_s=0.0) as (alerts, desk):
        workers = [await join(rig, n, "rigs", f"https://rigs.example/{n}") for n in range(4)]
        for _ in range(3):
            for worker_id in workers:
                await trouble(rig, worker_id)
        await deliver_all(rig, alerts)
        await deliver_all(rig, alerts)
        await until(lambda: len(desk.told) == 12, "all to be told")
        assert desk.most == {"rigs.example": 1}
        for number in range(4):
            said = [one["number"] for url, one in desk.told if url.endswith(f"/{number}")]
            assert said == [1, 2, 3]
        await until(lambda: not rig.state.alerting, "all to be settled")


async def test_alert_that_never_arrives_is_given_up_after_a_few_tries() -> None:
    async with rigged() as rig, delivering(rig, pause_s=0.0) as (alerts, desk):
        worker_id = await join(rig, 1, "s1", "https://dead.example/hook")
        await trouble(rig, worker_id)
        await deliver_all(rig, alerts)
        await until(lambda: not rig.state.alerting, "the alert to be given up")
        assert desk.tries == {"https://dead.example/hook": TRIES_MAX}
        assert desk.told == []


@pytest.mark.parametrize(
    "order", [(AlertKind.OFFLINE, AlertKind.RETURNED), (AlertKind.CERTIFICATE, AlertKind.OFFLINE)]
)
async def test_owner_hears_of_being_offline_of_the_return_and_of_his_certificate(
    order: tuple[AlertKind, ...],
) -> None:
    async with rigged() as rig, delivering(rig, pause_s=0.0) as (alerts, desk):
        worker_id = await join(rig, 1, "s1", "https://one.example/hook")
        for kind in order:
            match kind:
                case AlertKind.OFFLINE:
                    for _ in range(2):
                        rig.clock.monotonic_ms += POLICY.lost_after_ms + 1_000
                        await rig.loop.submit(m.Tick())
                case AlertKind.RETURNED:
                    await rig.loop.submit(m.ConnectWorker(worker_id, None))
                case _:
                    key = rig.state.workers[worker_id].tls_key_sha256
                    await rig.loop.submit(m.RecoverWorker(worker_id, key))
            await deliver_all(rig, alerts)
            # Before the clock jumps: what waits in the inbox meanwhile is sent back as too late.
            await until(lambda: not rig.state.alerting, "the alert to be delivered and settled")
        assert desk.kinds() == [kind.value for kind in order]
        assert all(said["worker_id"] == worker_id for _, said in desk.told)
