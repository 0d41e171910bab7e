"""The control plane's own beacon: a nebula of its own that helps members to find each other, and relays for them.

It is a member of no cluster: its group is no cluster's, it has no interface, and it lets nobody in.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from orchestrator.adapters.files import make_folder, write_whole
from orchestrator.adapters.overlay.certificates import next_window_ms, window
from orchestrator.adapters.overlay.config import Files, lighthouse_config
from orchestrator.adapters.overlay.process import NebulaLighthouse

if TYPE_CHECKING:
    from ipaddress import IPv4Network
    from pathlib import Path

    from orchestrator.adapters.overlay.certificates import Authority, KeyPair, MemberCertificate
    from orchestrator.control.loop import Clock
    from orchestrator.control.overlay import Overlay

BEACON_LIFE_MS = 30 * 24 * 3_600_000
"""Of its certificate: it is the control plane's own, and renewed at half of that."""

BEACON_GROUP = "beacon"

TEND_S = 1.0
"""How soon a beacon that died is noticed; members find each other without it for longer."""

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class OwnBeacon:
    """Files below ``folder``, and the process. ``host`` and ``port`` are where it listens, over UDP."""

    folder: Path
    host: str
    port: int
    address: str
    overlay: Overlay
    key: KeyPair
    clock: Clock
    _nebula: NebulaLighthouse = field(init=False)
    _due_ms: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._nebula = NebulaLighthouse(self.folder / "config.json", self.folder / "nebula.log")

    def start(self) -> None:
        """Write its files and start it. Blocking, milliseconds; raises OverlayError, OSError."""
        make_folder(self.folder)
        self._write()
        self._nebula.start(self.clock.now().monotonic_ms)

    async def run(self) -> None:
        """Keep it up, and its certificate fresh, until cancelled."""
        starts = self._nebula.starts
        while True:
            await asyncio.sleep(TEND_S)
            now = self.clock.now()
            fault = self._nebula.fault()
            self._nebula.tend(now.monotonic_ms)
            if self._nebula.starts != starts:
                starts = self._nebula.starts
                log.warning("beacon_restarted", reason=fault)
            if now.wall_ms >= self._due_ms:
                self._write()
                self._nebula.reload()

    def stop(self) -> None:
        """End it. Blocking, seconds at most."""
        self._nebula.stop()

    def _write(self) -> None:
        now_ms = self.clock.now().wall_ms
        authority: Authority = self.overlay.authority
        files = Files(
            self.folder / "authorities.pem", self.folder / "certificate.pem", self.folder / "key.pem"
        )
        not_before_s, not_after_s = window(now_ms, BEACON_LIFE_MS)
        certificate = beacon_certificate(
            authority, self.overlay.network, self.address, self.key, (not_before_s, not_after_s)
        )
        write_whole(files.authorities, authority.certificate_pem.encode())
        write_whole(files.certificate, certificate.pem.encode())
        write_whole(files.key, self.key.private_pem.encode())
        config = lighthouse_config(files, listen_port=self.port, listen_host=self.host)
        write_whole(self.folder / "config.json", config.encode())
        self._due_ms = next_window_ms(now_ms, BEACON_LIFE_MS)


def beacon_certificate(
    authority: Authority, network: IPv4Network, address: str, key: KeyPair, window_s: tuple[int, int]
) -> MemberCertificate:
    """Any beacon's, ours or another: of a group of its own, whose hosts nobody lets in."""
    return authority.issue(
        f"beacon-{address}", f"{address}/{network.prefixlen}", [BEACON_GROUP], key.public_bytes, *window_s
    )
