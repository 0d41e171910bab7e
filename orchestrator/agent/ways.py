"""How a member's nebula gets out of this machine: over UDP, or where a site lets none out over TLS, by bridges.

The agent writes into the member's overlay folder what may be used; the keeper uses it, and decides where both may:

    config.json    nebula's over UDP, where that is allowed
    bridged.json   nebula's over the bridges, where that is
    bridge-N.json  the bridge to the N-th beacon that has one, with bridge-token beside it

Nebula says at level info when a handshake of its own was answered, and the first to be asked are the beacons: where none
answers in the first seconds, no datagram gets there and back. It is decided once, at the start of the member.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from orchestrator.adapters.clock import boottime_ms
from orchestrator.adapters.node_records import Transport
from orchestrator.adapters.overlay.config import MTU, landmarks_of
from orchestrator.adapters.overlay.process import BridgeChild, NebulaNode, OverlayError, is_answered
from orchestrator.adapters.overlay.tunnels import NONE, TunnelLog

CONFIG_FILES: dict[Transport, str] = {"udp": "config.json", "tls": "bridged.json"}
"""Each is written after all the others whenever any of them changes: that it is younger says that all are there."""

LOG_FILE = "nebula.log"
CREDENTIAL_FILE = "bridge-token"
"""What opens the bridges, for the agent's own user only."""

BRIDGES_MAX = 8
"""As many as there are beacons worth having; each has a process, and a port of the member's block."""

PATIENCE_MS = 6_000
"""Nebula's first round of tries takes 5.5 s; a beacon that can be reached answers within one round trip."""

RESTART_PAUSE_MS = 5_000
"""Before a nebula that died is started again: what ends it at once would else do so each quarter of a second."""


def bridge_file(number: int) -> str:
    """The configuration of one bridge, counted from 0."""
    return f"bridge-{number}.json"


class OverlayWay:
    """One member's nebula and its bridges, kept up by calls of `tend`."""

    def __init__(self, folder: Path, *, interface: str, address: str) -> None:
        """``interface`` as in the configurations, ``address`` as in the certificate, with its prefix length."""
        self._folder = folder
        self._log = folder / LOG_FILE
        self._nodes = {
            transport: NebulaNode(folder / name, self._log, interface=interface, address=address, mtu=MTU)
            for transport, name in CONFIG_FILES.items()
        }
        self.transport: Transport = "udp"
        """What it uses now."""
        self._bridges: dict[Path, tuple[int, BridgeChild]] = {}
        self._config_ns = 0
        self._tunnels = TunnelLog(self._log, ())
        self.tunnels = NONE
        """To other members, as they are now."""
        self._undecided = False
        self._decide_at_ms = 0
        self._restart_at_ms = 0

    def start(self, namespace_pid: int) -> None:
        """Have the interface up in the network of this process when it returns. Raises OverlayError, OSError.

        The thread that calls this and `tend` has to live on: all children end with it.
        """
        present = [transport for transport, name in CONFIG_FILES.items() if (self._folder / name).exists()]
        if not present:
            raise OverlayError(f"{self._folder} has no configuration of nebula; the agent writes it")
        self._undecided = len(present) > 1
        self._decide_at_ms = boottime_ms() + PATIENCE_MS
        self._begin(present[0], namespace_pid)

    def tend(self, namespace_pid: int) -> None:
        """Take over what the agent wrote anew, start again what died, and change the way where nobody answers."""
        if self._undecided and is_answered(self._log):
            self._undecided = False
        if self._undecided and boottime_ms() >= self._decide_at_ms:
            self._undecided = False
            self._fall_back(namespace_pid)
        self._tend_bridges()
        node = self._nodes[self.transport]
        written_ns = self._written_ns()
        if written_ns != self._config_ns:
            node.reload()
            self._tunnels.leave_out(landmarks_of(self._folder / CONFIG_FILES[self.transport]))
            # Last: what failed is done again.
            self._config_ns = written_ns
        if node.alive():
            self.tunnels = self._tunnels.look()
            node.trim_log()
            self._restart_at_ms = boottime_ms() + RESTART_PAUSE_MS
        elif boottime_ms() >= self._restart_at_ms:
            self._restart_at_ms = boottime_ms() + RESTART_PAUSE_MS
            with contextlib.suppress(OverlayError):
                self._start(node, namespace_pid)

    def stop(self) -> None:
        """End nebula and the bridges."""
        for node in self._nodes.values():
            node.stop()
        for _, bridge in self._bridges.values():
            bridge.stop()
        self._bridges.clear()

    def _begin(self, transport: Transport, namespace_pid: int) -> None:
        self.transport = transport
        # Bridges first: nebula's first tries should find them.
        self._tend_bridges()
        self._config_ns = self._written_ns()
        self._start(self._nodes[transport], namespace_pid)

    def _start(self, node: NebulaNode, namespace_pid: int) -> None:
        self._tunnels = TunnelLog(self._log, landmarks_of(self._folder / CONFIG_FILES[self.transport]))
        node.start(namespace_pid)

    def _fall_back(self, namespace_pid: int) -> None:
        sys.stderr.write(
            f"no beacon of the overlay answered over UDP within {PATIENCE_MS // 1000} s: over TLS from now on\n"
        )
        sys.stderr.flush()
        self._nodes["udp"].stop()
        # Where it does not come up, `tend` tries again.
        with contextlib.suppress(OverlayError):
            self._begin("tls", namespace_pid)

    def _tend_bridges(self) -> None:
        """Keep up one for each configuration that is there; one whose configuration changed begins anew."""
        if self.transport != "tls":
            return
        now_ms = boottime_ms()
        for path in (self._folder / bridge_file(number) for number in range(BRIDGES_MAX)):
            written_ns = path.stat().st_mtime_ns if path.exists() else 0
            known_ns, bridge = self._bridges.get(path, (0, None))
            if bridge is not None and known_ns != written_ns:
                del self._bridges[path]
                bridge.stop()
                bridge = None
            if bridge is not None:
                bridge.tend(now_ms)
            elif written_ns:
                started = BridgeChild(path, path.with_suffix(".log"))
                self._bridges[path] = (written_ns, started)
                started.start(now_ms)

    def _written_ns(self) -> int:
        with contextlib.suppress(FileNotFoundError):
            return (self._folder / CONFIG_FILES[self.transport]).stat().st_mtime_ns
        return 0
