"""Nebula's configuration as text: JSON, which its YAML reader takes.

The timers are chosen for one promise: a path that broke (a relay killed, an address changed) is back within 20 s,
and soon enough that TCP's own growing pauses do not add to it. Measured with a relay that is killed and started
again half a second later: 7 s with these, 20 s with twice to three times as much.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MTU = 1300
"""Nebula's header and tag, a relay's second ones and UDP fit beside it into any path of 1500 bytes, PPPoE too."""

ALIVE_S = 1
"""A tunnel with outgoing and no incoming packets for this long is tested."""

DEAD_S = 2
"""A tested tunnel that stays silent for this long is given up. Far above any round trip; and where it was wrong,
the next packet makes the tunnel anew within two of them."""

REPORT_S = 2
"""Each host tells the lighthouses this often where it is, in a hundred bytes: one that came back empty knows soon."""

TRY_INTERVAL = "100ms"
"""Unit of the growing pause between tries of one handshake."""

TRIES = 10
"""With the growing pauses 5.5 s in all, then it starts afresh: never more than a second between two tries."""

PUNCH_DELAY = "1s"
"""Some NATs drop what comes back before their own packet has left."""

BLOCKLIST_MAX = 10_000
"""Certificates of all who left within one life; a network that blocks more should shorten that life."""

HOSTS_MAX = 16
"""Lighthouses and relays; each is told of every move."""

INTERFACE_CHARS_MAX = 15
"""The kernel's limit for an interface's name."""

EVERYWHERE = "0.0.0.0/0"
LOOPBACK_RANGE = "127.0.0.0/8"

_INTERFACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_GROUP = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_HOST = re.compile(r"[A-Za-z0-9.-]{1,253}")
_PORT_MAX = 65_535


@dataclass(frozen=True, slots=True)
class Files:
    """Where a host's certificate authorities (one PEM bundle), certificate and key lie."""

    authorities: Path
    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Landmark:
    """A host that others find: a lighthouse, a relay, or both; ``address`` is its overlay address.

    ``endpoints`` are HOST:PORT on the underlay, or the one of a local bridge.
    """

    address: str
    endpoints: tuple[str, ...]
    is_lighthouse: bool = True
    is_relay: bool = True


def node_config(
    files: Files,
    *,
    interface: str,
    group: str,
    landmarks: Sequence[Landmark],
    blocklist: Sequence[str] = (),
    listen_port: int = 0,
    hidden_interfaces: Sequence[str] = (),
    open_port: int = 0,
) -> str:
    """A member's: it speaks with its group and with nobody else. Raises ValueError.

    ``hidden_interfaces`` are patterns of names whose addresses are nobody's business, such as other boxes' links.
    With an ``open_port`` the group may reach that over UDP, and send pings, but nothing else.
    """
    if not _INTERFACE.fullmatch(interface):
        raise ValueError(
            f"interface is {interface!r}; use 1 to {INTERFACE_CHARS_MAX} letters, digits, hyphens"
        )
    if not _GROUP.fullmatch(group) or group == "any":
        raise ValueError(f"group is {group!r}; name the one group that this host belongs to")
    same_group = [{"port": "any", "proto": "any", "group": group}]
    lighthouses = [one.address for one in landmarks if one.is_lighthouse]
    if not lighthouses:
        raise ValueError("landmarks name no lighthouse; without one no peer is ever found")
    config = _common(files, blocklist, landmarks)
    config["lighthouse"] = {
        "am_lighthouse": False,
        "interval": REPORT_S,
        "hosts": lighthouses,
        **_allow_lists(landmarks, hidden_interfaces),
    }
    config["relay"] = {
        "am_relay": False,
        "use_relays": True,
        "relays": [one.address for one in landmarks if one.is_relay],
    }
    config["listen"] = {"host": "0.0.0.0", "port": _checked_port("listen_port", listen_port)}  # noqa: S104 - peers come from anywhere
    config["tun"] = {"disabled": False, "dev": interface, "mtu": MTU}
    inbound = same_group
    if _checked_port("open_port", open_port):
        inbound = [
            {"port": str(open_port), "proto": "udp", "group": group},
            {"port": "any", "proto": "icmp", "group": group},
        ]
    config["firewall"] = {"outbound": same_group, "inbound": inbound}
    return json.dumps(config, indent=1)


def lighthouse_config(
    files: Files,
    *,
    listen_port: int,
    listen_host: str = "0.0.0.0",  # noqa: S104 - members come from anywhere
    is_lighthouse: bool = True,
    is_relay: bool = True,
    others: Sequence[Landmark] = (),
    blocklist: Sequence[str] = (),
) -> str:
    """That of a landmark: it helps members to find and reach each other, and lets nobody in. Raises ValueError.

    A relay that is no lighthouse reports to ``others``, as everybody does.
    """
    if not 0 < listen_port <= _PORT_MAX:
        raise ValueError(f"listen_port is {listen_port}; a lighthouse needs a fixed one of 1 to {_PORT_MAX}")
    config = _common(files, blocklist, others)
    config["lighthouse"] = {
        "am_lighthouse": is_lighthouse,
        "interval": REPORT_S,
        "hosts": [] if is_lighthouse else [one.address for one in others if one.is_lighthouse],
    }
    config["relay"] = {"am_relay": is_relay, "use_relays": False}
    config["listen"] = {"host": listen_host, "port": listen_port}
    config["tun"] = {"disabled": True}
    config["firewall"] = {"outbound": [], "inbound": []}
    return json.dumps(config, indent=1)


def landmarks_of(config: Path) -> frozenset[str]:
    """Overlay addresses of the landmarks in a configuration that was made here. Raises OSError, ValueError."""
    return frozenset(json.loads(config.read_bytes())["static_host_map"])


def _common(files: Files, blocklist: Sequence[str], landmarks: Sequence[Landmark]) -> dict[str, object]:
    if len(blocklist) > BLOCKLIST_MAX:
        raise ValueError(f"blocklist has {len(blocklist)} entries; at most {BLOCKLIST_MAX} are allowed")
    for fingerprint in blocklist:
        if not _FINGERPRINT.fullmatch(fingerprint):
            raise ValueError(f"blocklist holds {fingerprint!r}; a fingerprint is 64 hexadecimal digits")
    if len(landmarks) > HOSTS_MAX:
        raise ValueError(f"landmarks has {len(landmarks)} entries; at most {HOSTS_MAX} are allowed")
    return {
        "pki": {
            "ca": str(files.authorities),
            "cert": str(files.certificate),
            "key": str(files.key),
            "blocklist": list(blocklist),
            "disconnect_invalid": True,
        },
        "static_host_map": {
            _checked_address(one.address): [_checked_endpoint(endpoint) for endpoint in one.endpoints]
            for one in landmarks
        },
        "punchy": {"punch": True, "respond": True, "delay": PUNCH_DELAY},
        "handshakes": {"try_interval": TRY_INTERVAL, "retries": TRIES},
        "timers": {"connection_alive_interval": ALIVE_S, "pending_deletion_interval": DEAD_S},
        "logging": {"level": "info", "format": "json"},
    }


def _allow_lists(landmarks: Sequence[Landmark], hidden_interfaces: Sequence[str]) -> dict[str, object]:
    """Whom to try where, and which addresses to report.

    Who came over a bridge is reported by the lighthouse at a loopback address: nobody else should knock there on
    his own machine. And who uses a bridge speaks and is spoken to through it alone: where UDP gets out but not in,
    nebula answers a handshake the way it came, and would never get to the relay.
    """
    endpoints = [endpoint for one in landmarks for endpoint in one.endpoints]
    is_bridged = any(_is_loopback(endpoint) for endpoint in endpoints)
    local: dict[str, object] = {EVERYWHERE: False} if is_bridged else {}
    if hidden_interfaces:
        local["interfaces"] = dict.fromkeys(hidden_interfaces, False)
    lists: dict[str, object] = {"remote_allow_list": {EVERYWHERE: not is_bridged, LOOPBACK_RANGE: is_bridged}}
    if local:
        lists["local_allow_list"] = local
    return lists


def _is_loopback(endpoint: str) -> bool:
    return endpoint.startswith("127.")


def _checked_address(address: str) -> str:
    try:
        return str(ipaddress.IPv4Address(address))
    except ValueError:
        raise ValueError(
            f"a landmark's address is {address!r}; give an overlay address without prefix"
        ) from None


def _checked_endpoint(endpoint: str) -> str:
    host, _, port = endpoint.rpartition(":")
    if not (_HOST.fullmatch(host) and port.isascii() and port.isdigit() and 0 < int(port) <= _PORT_MAX):
        raise ValueError(
            f"a landmark's endpoint is {endpoint!r}; give HOST:PORT with an IPv4 address or a name"
        )
    return endpoint


def _checked_port(what: str, port: int) -> int:
    if not 0 <= port <= _PORT_MAX:
        raise ValueError(f"{what} is {port}; use 0 for any free one, or 1 to {_PORT_MAX}")
    return port
