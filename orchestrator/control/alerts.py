"""Telling owners: each alert to its worker's webhook, tried a few times, never in the way of anything else."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Protocol

import structlog

from orchestrator.core import messages as m

if TYPE_CHECKING:
    from orchestrator.control.loop import Loop
    from orchestrator.core.state import State

log = structlog.get_logger(__name__)

TRIES_MAX = 5
PAUSE_S = 2.0
"""Before the second try; it grows fourfold with each: the last comes some three minutes after the first."""

AT_ONCE_MAX = 16
"""Deliveries under way: an owner's slow server holds up at most a few others."""


class WebhookDesk(Protocol):
    """Posts to an owner's URL. Raises OSError where it did not arrive, ValueError where it never will."""

    async def post(self, url: str, body: bytes) -> None: ...


class Alerts:
    """Delivers alerts beside the loop."""

    def __init__(self, loop: Loop, desk: WebhookDesk) -> None:
        self._loop = loop
        self._desk = desk
        self._turn = asyncio.Semaphore(AT_ONCE_MAX)
        self._under_way: dict[m.DeliverAlert, asyncio.Task[None]] = {}

    def deliver(self, effect: m.DeliverAlert) -> None:
        """Begin; one that is under way is not begun again."""
        if effect not in self._under_way:
            task = asyncio.create_task(self._deliver(effect))
            self._under_way[effect] = task
            task.add_done_callback(lambda _: self._under_way.pop(effect, None))

    async def close(self) -> None:
        """What is not delivered is found again at the next start."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _deliver(self, effect: m.DeliverAlert) -> None:
        found = await self._loop.read(lambda state: message_of(state, effect))
        if found is not None:
            url, body = found
            async with self._turn:
                await self._try(effect, url, body)
        await self._loop.submit(m.SettleAlert(effect.worker_id, effect.number))

    async def _try(self, effect: m.DeliverAlert, url: str, body: bytes) -> None:
        for number in range(TRIES_MAX):
            if number:
                await asyncio.sleep(PAUSE_S * 4 ** (number - 1))
            try:
                await self._desk.post(url, body)
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


def message_of(state: State, effect: m.DeliverAlert) -> tuple[str, bytes] | None:
    """(URL, JSON body) of an alert; None where there is nothing to send, or nowhere."""
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
    return worker.terms.webhook_url, json.dumps(said).encode()
