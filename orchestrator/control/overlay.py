"""Who is a member of the overlay, at which address, under which certificate: derived each time, never stored.

A certificate is a pure function of who has it and of the window of time that it is asked for in, so the same one can be
written again after a restart, and the fingerprints of those who were expelled are known without a list of what was
issued.
"""

from __future__ import annotations

import asyncio
import hmac
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orchestrator.adapters.overlay.certificates import next_window_ms, window
from orchestrator.api.v1 import overlay_pb2
from orchestrator.core.clusters import WANTED
from orchestrator.core.errors import RefusalCode, RefusedError
from orchestrator.core.ids import MemberId

if TYPE_CHECKING:
    from collections.abc import Callable
    from ipaddress import IPv4Network

    from orchestrator.adapters.overlay.certificates import Authority
    from orchestrator.control.loop import Clock, Loop
    from orchestrator.core.clusters import Cluster, Member, OverlayIdentity
    from orchestrator.core.state import State
    from orchestrator.core.supply.fleet import Worker

CERTIFICATE_LIFE_MS = 4 * 3_600_000
"""Of a member's certificate: renewed at half of it, so a control plane may be away for two hours."""

WORKER_LIFE_MS = 24 * 3_600_000
"""Of a worker's own certificate, which opens nothing but the door where ways are measured."""

RESERVED_HOSTS = 256
"""The first addresses of the network are the beacons'."""

LOOK_S = 60.0
"""How late new certificates may go out; the old ones count for half a life more."""

GROUP_PREFIX = "cluster-"

WORKERS_GROUP = "workers"


@dataclass(frozen=True, slots=True)
class Beacon:
    """A lighthouse that relays too. ``endpoint`` and ``bridge`` are HOST:PORT over UDP and over TLS."""

    address: str
    endpoint: str
    bridge: str


@dataclass(frozen=True, slots=True)
class Overlay:
    """The overlay of one network: its authority, its address plan, its beacons."""

    authority: Authority
    network: IPv4Network
    beacons: tuple[Beacon, ...]
    bridge_token: Callable[[str], str]
    """What a member shows at a bridge, by its id: derived, so that none is stored."""
    probe_key: bytes = field(repr=False)
    """Workers prove questions and answers by it when they measure the ways between them."""

    def membership(self, member: Member, cluster: Cluster, wall_ms: int) -> overlay_pb2.OverlayMembership:
        """What one member is told; the certificate only once it has shown its key."""
        identity = member.overlay_identity
        certificate = "" if identity is None else self._certificate(cluster, identity, wall_ms)
        return overlay_pb2.OverlayMembership(
            address=self._address(member.overlay_host),
            certificate=certificate.encode(),
            authorities=self.authority.certificate_pem.encode(),
            group=group_of(cluster),
            beacons=self._beacons(),
            blocked=self._blocked(cluster, wall_ms),
            bridge_token=self.bridge_token(member.member_id)
            if any(one.bridge for one in self.beacons)
            else "",
        )

    def own_membership(self, worker: Worker, key: bytes, wall_ms: int) -> overlay_pb2.OverlayMembership:
        """What a worker is told for itself, of no cluster: it can measure and be measured, and nothing else."""
        not_before_s, not_after_s = window(wall_ms, WORKER_LIFE_MS)
        address = self._address(worker.overlay_host)
        issued = self.authority.issue(
            worker.worker_id, address, [WORKERS_GROUP], key, not_before_s, not_after_s
        )
        return overlay_pb2.OverlayMembership(
            address=address,
            certificate=issued.pem.encode(),
            authorities=self.authority.certificate_pem.encode(),
            group=WORKERS_GROUP,
            beacons=self._beacons(),
        )

    def _beacons(self) -> list[overlay_pb2.OverlayBeacon]:
        return [
            overlay_pb2.OverlayBeacon(address=one.address, endpoint=one.endpoint, bridge=one.bridge)
            for one in self.beacons
        ]

    def bearer(self, token: str) -> str:
        """Whose token at a bridge this is, by its words alone; empty for one that we did not derive."""
        member_id = token.rpartition(".")[0]
        return member_id if hmac.compare_digest(self.bridge_token(member_id), token) else ""

    def bare_address(self, host: int) -> str:
        """A member's address without prefix length. Raises RefusedError beyond the network."""
        if host + RESERVED_HOSTS >= self.network.num_addresses - 1:
            raise RefusedError(RefusalCode.EXHAUSTED, f"the overlay {self.network} has no address for {host}")
        return str(self.network.network_address + RESERVED_HOSTS + host)

    def _address(self, host: int) -> str:
        return f"{self.bare_address(host)}/{self.network.prefixlen}"

    def _certificate(self, cluster: Cluster, identity: OverlayIdentity, wall_ms: int) -> str:
        """PEM of the one to have now."""
        not_before_s, not_after_s = window(wall_ms, CERTIFICATE_LIFE_MS)
        return self.authority.issue(*self._subject(cluster, identity), not_before_s, not_after_s).pem

    def _blocked(self, cluster: Cluster, wall_ms: int) -> list[str]:
        """Fingerprints of all that those who were expelled may still hold."""
        return sorted(
            fingerprint
            for expelled in cluster.expelled
            for fingerprint in self.authority.fingerprints(
                *self._subject(cluster, expelled), wall_ms, CERTIFICATE_LIFE_MS
            )
        )

    def _subject(self, cluster: Cluster, identity: OverlayIdentity) -> tuple[str, str, list[str], bytes]:
        """Name, address, groups and key of a certificate."""
        address = self._address(identity.host)
        return identity.name, address, [group_of(cluster)], bytes.fromhex(identity.key)


def group_of(cluster: Cluster) -> str:
    """The group whose members reach each other."""
    return f"{GROUP_PREFIX}{cluster.cluster_id}"


async def retell(clock: Clock, tell_all: Callable[[], None]) -> None:
    """Tell every worker anew whenever the certificates that count are other ones."""
    due_ms = next_window_ms(clock.now().wall_ms, CERTIFICATE_LIFE_MS)
    while True:
        await asyncio.sleep(LOOK_S)
        now_ms = clock.now().wall_ms
        if now_ms >= due_ms:
            due_ms = next_window_ms(now_ms, CERTIFICATE_LIFE_MS)
            tell_all()


async def bridge_owner(overlay: Overlay, loop: Loop, token: str) -> str | None:
    """The worker that may use a bridge with this token now: that of a member which is wanted; None for nobody."""
    member_id = MemberId(overlay.bearer(token))

    def owner(state: State) -> str | None:
        member = state.members.get(member_id)
        return member.worker_id if member is not None and member.phase in WANTED else None

    try:
        return await loop.read(owner) if member_id else None
    except RefusedError:
        return None  # The control plane stops; who is wanted then comes back.
