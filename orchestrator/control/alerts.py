"""Telling owners: each alert to its worker's webhook, tried a few times, never in the way of anything else."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, NamedTuple, Protocol
from weakref import WeakValueDictionary

import structlog

from orchestrator.core import messages as m
from orchestrator.core.errors import RefusedError

if TYPE_CHECKING:
    from orchestrator.control.loop import Loop
    from orchestrator.core.ids import SupplierId, WorkerId
    from orchestrator.core.state import State

log = structlog.get_logger(__name__)

TRIES_MAX = 5
PAUSE_S = 2.0
"""Before the second try; it grows fourfold with each: the last comes some three minutes after the first."""

AT_ONCE_MAX = {True: 16, False: 16}
"""Posts under way, by whether an operator vouched for the owner: slow servers of strangers hold up strangers only."""


class Message(NamedTuple):
    """What is posted, and whether an operator vouched for whoever chose the URL."""

    url: str
    body: bytes
    """JSON."""
    vouched: bool


class WebhookDesk(Protocol):
    """Posts to an owner's URL. Raises OSError where it did not arrive, ValueError where it never will.

    Whoever is not ``vouched`` for is a stranger, whose URL leads into no private network, whatever is set.
    """

    async def post(self, url: str, body: bytes, *, vouched: bool) -> None: ...


class Alerts:
    """Delivers alerts beside the loop."""

    def __init__(self, loop: Loop, desk: WebhookDesk, pause_s: float = PAUSE_S) -> None:
        """``pause_s`` is waited before the second try."""
        self._loop = loop
        self._desk = desk
        self._pause_s = pause_s
        self._posting = {vouched: asyncio.Semaphore(limit) for vouched, limit in AT_ONCE_MAX.items()}
        self._turns: WeakValueDictionary[SupplierId, asyncio.Lock] = WeakValueDictionary()
        """One delivery at a time for each supplier, in the order in which they came."""
        self._waiting: dict[WorkerId, dict[m.DeliverAlert, None]] = {}
        self._under_way: dict[WorkerId, asyncio.Task[None]] = {}

    def deliver(self, effect: m.DeliverAlert) -> None:
        """Begin; one that waits or is under way is not begun again."""
        worker_id = effect.worker_id
        self._waiting.setdefault(worker_id, {})[effect] = None
        if worker_id not in self._under_way:
            self._under_way[worker_id] = asyncio.create_task(self._deliver_all(worker_id))

    async def close(self) -> None:
        """What is not delivered is found again at the next start."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _deliver_all(self, worker_id: WorkerId) -> None:
        """One after the other, so that an owner reads them in order."""
        waiting = self._waiting[worker_id]
        try:
            while waiting:
                effect = next(iter(waiting))
                await self._deliver(effect)
                del waiting[effect]
        except RefusedError as refusal:
            # Not settled, so it is found again.
            log.info("alerts_put_off", worker_id=worker_id, reason=refusal.message)
        finally:
            del self._waiting[worker_id], self._under_way[worker_id]

    async def _deliver(self, effect: m.DeliverAlert) -> None:
        worker = await self._loop.read(lambda state: state.workers.get(effect.worker_id))
        if worker is None:
            return  # a stranger who was forgotten meanwhile
        supplier_id = worker.supplier_id
        turn = self._turns.get(supplier_id)
        if turn is None:
            turn = self._turns[supplier_id] = asyncio.Lock()
        async with turn:
            found = await self._loop.read(lambda state: message_of(state, effect))
            if found is not None:
                await self._try(effect, found)
        await self._loop.submit(m.SettleAlert(effect.worker_id, effect.number))

    async def _try(self, effect: m.DeliverAlert, message: Message) -> None:
        for number in range(TRIES_MAX):
            if number:
                await asyncio.sleep(self._pause_s * 4 ** (number - 1))
            try:
                async with self._posting[message.vouched]:
                    await self._desk.post(message.url, message.body, vouched=message.vouched)
            except ValueError as error:
                log.warning("alert_undeliverable", worker_id=effect.worker_id, reason=str(error))
                return
            except OSError as error:
                log.info(
                    "alert_not_delivered", worker_id=effect.worker_id, tries=number + 1, reason=str(error)
                )
            else:
                return
        log.warning("alert_given_up", worker_id=effect.worker_id, number=effect.number)


def message_of(state: State, effect: m.DeliverAlert) -> Message | None:
    """An alert as its owner gets it; None where there is nothing to send, or nowhere."""
    worker = state.workers[effect.worker_id]
    alert = next((one for one in worker.alerts if one.number == effect.number), None)
    if alert is None or not worker.terms.webhook_url:
        return None
    said = {
        "network_id": state.control.network_id,
        "worker_id": worker.worker_id,
        "worker_name": worker.name,
        "number": alert.number,
        "kind": alert.kind.value,
        "text": alert.text,
        "at_unix_ms": alert.at_ms,
    }
    vouched = worker.supplier_id not in state.suppliers_unvouched
    return Message(worker.terms.webhook_url, json.dumps(said).encode(), vouched)
