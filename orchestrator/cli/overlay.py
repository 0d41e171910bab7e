"""What `orch serve` needs for the overlay, put together from its settings."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from orchestrator.adapters.files import make_folder
from orchestrator.adapters.https_identity import CertificateError, HttpsIdentity
from orchestrator.adapters.overlay.bridge import LOOPBACK
from orchestrator.adapters.overlay.certificates import Authority, new_key
from orchestrator.adapters.overlay.process import lighthouse_available
from orchestrator.adapters.peers import SERVER_NAME
from orchestrator.cli.errors import usage_error
from orchestrator.cli.gateway_tls import own_identity
from orchestrator.cli.output import note
from orchestrator.cli.serve_settings import EVERYWHERE, Address, listen_address
from orchestrator.control.beacon import OwnBeacon
from orchestrator.control.overlay import RESERVED_HOSTS, Beacon, Overlay
from orchestrator.core.clusters import ClusterPolicy

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator.adapters.authority import Authority as Tls
    from orchestrator.adapters.keys import Keys
    from orchestrator.cli.serve_settings import ServeSettings
    from orchestrator.control.loop import Clock

NONE = "none"

DEFAULT_PORT = 4242
"""Nebula's own."""

FOUNDED_S = 1_577_836_800
"""The authority's certificate is derived, so its dates are fixed: from 2020."""

ENDS_S = 4_102_444_800
"""To 2100. Its key is derived from the control plane's master secret and changes with that."""

FOLDER = "overlay"

BRIDGE_FILE = "bridge.pem"
"""Certificate and key that the bridge shows."""

AUTHORITY_NAME = "orchestrator-overlay"

EXTERNAL = re.compile(
    r"(?P<address>[0-9.]+)=(?P<endpoint>[^=,]+:[0-9]{1,5})(?:,(?P<bridge>[^=,]+:[0-9]{1,5}))?"
)


def listening_at(settings: ServeSettings, session: Address) -> Address | None:
    """Where the own beacon listens; None for none. Raises a usage error.

    Without a word about it there is one wherever workers come from elsewhere.
    """
    if settings.overlay_listen == NONE or settings.overlay_beacons:
        return None
    if not settings.overlay_listen:
        return None if session.loopback else Address(session.host, DEFAULT_PORT)
    return listen_address("overlay-listen", settings.overlay_listen)


@dataclass(frozen=True, slots=True)
class OverlayPlan:
    """What the settings come to; ``at`` is where the own beacon listens, None where others' are used."""

    network: ipaddress.IPv4Network
    beacons: tuple[Beacon, ...]
    at: Address | None

    @property
    def hosts_max(self) -> int:
        """Members that the network has addresses for."""
        return min(ClusterPolicy().overlay_hosts_max, self.network.num_addresses - RESERVED_HOSTS - 2)


def plan_overlay(settings: ServeSettings, session: Address) -> OverlayPlan | None:
    """The overlay that is asked for; None for none. Raises a usage error for settings that cannot work."""
    at = listening_at(settings, session)
    if at is None and not settings.overlay_beacons:
        return None
    if at is not None:
        fault = lighthouse_available()
        if fault and settings.overlay_listen:
            raise usage_error(f"--overlay-listen: {fault}")
        if fault:
            note(f"no overlay, so machines behind NATs serve alone: {fault}")
            return None
    network = overlay_network(settings.overlay_network)
    beacons = tuple(_external(text, network) for text in settings.overlay_beacons)
    if at is not None:
        beacons = (Beacon(own_address(network), _told(settings.overlay_address, at), ""),)
    bridge_at = bridge_listening_at(settings)
    if bridge_at is not None:
        # It carries to the first beacon: the own one, where there is one.
        first = replace(beacons[0], bridge=_told(settings.overlay_bridge_address, bridge_at))
        beacons = (first, *beacons[1:])
    return OverlayPlan(network, beacons, at)


def open_overlay(plan: OverlayPlan, keys: Keys) -> Overlay:
    """The overlay with its authority."""
    return Overlay(overlay_authority(keys), plan.network, plan.beacons, keys.bridge_token, keys.probe_key)


def overlay_authority(keys: Keys) -> Authority:
    """Who certifies every host of the overlay."""
    return Authority.create(keys.overlay_seed, AUTHORITY_NAME, FOUNDED_S, ENDS_S)


def bridge_listening_at(settings: ServeSettings) -> Address | None:
    """Where the bridge listens; None for none. Raises a usage error."""
    if settings.overlay_bridge_listen:
        return listen_address("overlay-bridge-listen", settings.overlay_bridge_listen)
    if settings.overlay_bridge_address:
        raise usage_error("--overlay-bridge-address goes with --overlay-bridge-listen: give both")
    return None


@dataclass(frozen=True, slots=True)
class Bridge:
    """The bridge to a beacon, for sites without UDP."""

    at: Address
    target: tuple[str, int]
    identity: HttpsIdentity


def open_bridge(
    settings: ServeSettings, plan: OverlayPlan | None, authority: Tls, folder: Path
) -> Bridge | None:
    """What the settings ask for. Blocking; raises a usage error."""
    at = bridge_listening_at(settings)
    if at is None:
        return None
    if plan is None:
        raise usage_error(
            "--overlay-bridge-listen: there is no overlay that it could lead to; give --overlay-listen as well"
        )
    if plan.at is not None:
        target = (LOOPBACK if plan.at.host in EVERYWHERE else plan.at.host, plan.at.port)
    else:
        host, _, port = plan.beacons[0].endpoint.rpartition(":")
        target = (host, int(port))
    try:
        make_folder(folder / FOLDER)
        identity = own_identity(authority, folder / FOLDER / BRIDGE_FILE, (SERVER_NAME,))
    except CertificateError as error:
        raise usage_error(f"--overlay-bridge-listen: {error}") from None
    return Bridge(at, target, identity)


def _told(wanted: str, at: Address) -> str:
    """HOST:PORT to tell machines; without a host the one by which they reach the control plane."""
    told = wanted or ("" if at.host in EVERYWHERE else at.host)
    return told if ":" in told else f"{told}:{at.port}"


def own_beacon(folder: Path, at: Address, overlay: Overlay, keys: Keys, clock: Clock) -> OwnBeacon:
    """The beacon that runs beside the control plane."""
    return OwnBeacon(
        folder / FOLDER,
        at.host,
        at.port,
        own_address(overlay.network),
        overlay,
        new_key(keys.overlay_beacon_key(own_address(overlay.network))),
        clock,
    )


def own_address(network: ipaddress.IPv4Network) -> str:
    """The own beacon's address in the overlay."""
    return str(network.network_address + 1)


def beacon_address(text: str, network: ipaddress.IPv4Network) -> str:
    """An address that no member is ever given. Raises a usage error."""
    first, last = network.network_address + 1, network.network_address + RESERVED_HOSTS - 1
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError:
        address = network.broadcast_address
    if not first <= address <= last:
        raise usage_error(
            f"--address: {text[:40]!r} is none of a beacon; in the overlay {network} give one of {first} to {last}"
        )
    return str(address)


def overlay_network(text: str) -> ipaddress.IPv4Network:
    """As --overlay-network has it. Raises a usage error."""
    try:
        network = ipaddress.IPv4Network(text)
    except ValueError as error:
        raise usage_error(f"--overlay-network: {error}; give one such as 198.18.0.0/15") from None
    if network.num_addresses < 4 * RESERVED_HOSTS:
        raise usage_error(f"--overlay-network: {network} is too small; give a /22 at least")
    return network


def _external(text: str, network: ipaddress.IPv4Network) -> Beacon:
    match = EXTERNAL.fullmatch(text)
    try:
        if match is not None and ipaddress.IPv4Address(match["address"]) in network:
            return Beacon(match["address"], match["endpoint"], match["bridge"] or "")
    except ValueError:
        pass
    raise usage_error(
        f"--overlay-beacon: OVERLAY-ADDRESS=HOST:PORT in {network} is expected, not {text[:80]!r};"
        " `orch authority beacon` makes the certificate that such a beacon needs"
    )
