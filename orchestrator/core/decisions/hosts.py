"""Numbers in the overlay's address plan, of members and of workers themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.core.errors import RefusalCode, RefusedError

if TYPE_CHECKING:
    from orchestrator.core.state import State


class Hosts:
    """Gives numbers out, rising, so that a freed one is not soon another's."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._newest = state.control.overlay_host
        self._given: set[int] = set()

    def take(self) -> int:
        """The next number that nobody has."""
        hosts_max = self._state.policies.clusters.overlay_hosts_max
        for _ in range(hosts_max):
            self._newest = self._newest % hosts_max + 1
            if self._newest not in self._state.overlay_hosts and self._newest not in self._given:
                self._given.add(self._newest)
                return self._newest
        raise RefusedError(RefusalCode.EXHAUSTED, "every address of the overlay is taken")
