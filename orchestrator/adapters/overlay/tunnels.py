"""Which of a nebula's tunnels lead straight to their peers, and which through a relay: by what its log says.

Nebula 1.6 says at level info of each handshake from where its packet came, which is nowhere (`udpAddr` is null) where a
relay brought it; that a relayed tunnel found a direct way, as a host that roamed; and that a tunnel has ended. It has no
other word on this but in a shell of its own, which would be one more way in.
"""

from __future__ import annotations

import contextlib
import json
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

TUNNELS_MAX = 512
"""A cluster has 256 members at most; past it the one longest unheard of is forgotten."""

READ_BYTES_MAX = 256 * 1024
"""In memory at once: some six hundred lines."""

HANDSHAKE = "Handshake message received"
ROAMED = "Host roamed to new udp ip/port."
STATUS = "Tunnel status"
CLOSED = "tearing down"
"""As the peer says goodbye, or its certificate counts no more."""


@dataclass(frozen=True, slots=True)
class Tunnels:
    """How many there are."""

    direct: int = 0
    relayed: int = 0


NONE = Tunnels()


class TunnelLog:
    """Follows the log of one start of nebula, which begins with an empty file."""

    def __init__(self, log: Path, landmarks: Collection[str]) -> None:
        """``landmarks`` are overlay addresses of lighthouses and relays: tunnels to these are no members'."""
        self._log = log
        self._landmarks = frozenset(landmarks)
        self._relayed: OrderedDict[str, bool] = OrderedDict()
        """By the peer's overlay address."""
        self._offset = 0
        self._rest = b""

    def leave_out(self, landmarks: Collection[str]) -> None:
        """There are other landmarks now."""
        self._landmarks = frozenset(landmarks)
        for peer in self._landmarks & self._relayed.keys():
            del self._relayed[peer]

    def look(self) -> Tunnels:
        """Read on; what there is now. Call it before the log is trimmed. Raises no error."""
        with contextlib.suppress(OSError):
            size_bytes = self._log.stat().st_size
            if size_bytes < self._offset:
                # It was trimmed: nebula writes on from its beginning.
                self._offset, self._rest = 0, b""
            # To its end, as the caller trims it then.
            while size_bytes > self._offset and self._read_on():
                pass
        relayed = sum(self._relayed.values())
        return Tunnels(len(self._relayed) - relayed, relayed)

    def _read_on(self) -> bool:
        """Whether there was more."""
        with self._log.open("rb") as file:
            file.seek(self._offset)
            read = file.read(READ_BYTES_MAX)
        self._offset += len(read)
        *lines, self._rest = (self._rest + read).split(b"\n")
        for line in lines:
            self._take(line)
        return bool(read)

    def _take(self, line: bytes) -> None:
        if b'"vpnIp"' not in line:
            return
        try:
            said = json.loads(line)
        except ValueError:
            return
        if not isinstance(said, dict):
            return
        peer, message = said.get("vpnIp"), said.get("msg")
        if not (isinstance(peer, str) and isinstance(message, str)) or peer in self._landmarks:
            return
        if message == HANDSHAKE:
            self._put(peer, relayed=said.get("udpAddr") is None)
        elif message == ROAMED and peer in self._relayed:
            self._put(peer, relayed=said.get("newAddr") is None)
        elif CLOSED in message or (message == STATUS and _is_dead(said.get("tunnelCheck"))):
            self._relayed.pop(peer, None)

    def _put(self, peer: str, *, relayed: bool) -> None:
        self._relayed[peer] = relayed
        self._relayed.move_to_end(peer)
        if len(self._relayed) > TUNNELS_MAX:
            self._relayed.popitem(last=False)


def _is_dead(check: object) -> bool:
    return isinstance(check, dict) and check.get("state") == "dead"
