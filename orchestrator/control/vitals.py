"""What the state does not know of its own process, for the judgement whether the network is well."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.control.loop import INBOX_MAX
from orchestrator.core.queries.health import Vitals

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from orchestrator.control.loop import Loop
    from orchestrator.control.measuring.measuring import Books, Measuring


class VitalsReader:
    """Reads them when it is asked."""

    def __init__(
        self,
        loop: Loop,
        certificates: Callable[[], Mapping[str, int]],
        measuring: Measuring,
        books: Books | None,
    ) -> None:
        """``certificates`` says when each of the network's own runs out, by wall clock in ms."""
        self._loop = loop
        self._certificates = certificates
        self._measuring = measuring
        self._books = books

    async def read(self) -> Vitals:
        """As of now."""
        unaccounted, imbalance = await self._measuring.compared(self._loop, self._books) or (0, 0)
        now, waiting, bridge = self._loop.now(), self._loop.waiting(), self._measuring.bridge
        lag_ms = 0 if waiting.oldest_ms is None else now.monotonic_ms - waiting.oldest_ms
        return Vitals(
            inbox_commands=waiting.commands,
            inbox_commands_max=INBOX_MAX,
            loop_lag_ms=max(0, lag_ms),
            plan_lag_ms=self._measuring.plan_lag_ms,
            receipts_unaccounted=unaccounted,
            ledger_imbalance_microcredits=imbalance,
            certificates_ms={name: at_ms - now.wall_ms for name, at_ms in self._certificates().items()},
            relay_connections=0 if bridge is None else bridge.connections,
            relay_connections_max=0 if bridge is None else bridge.connections_max,
        )
