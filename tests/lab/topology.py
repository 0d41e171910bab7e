"""What a lab looks like: its hosts, how each stands behind its router, and the addresses they get. Pure."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal, get_args

Nat = Literal["none", "cone", "symmetric", "udp-blocked"]
"""none: a public address of its own. cone: one outer port for all destinations, filtered by address and port.
symmetric: another outer port for each destination. udp-blocked: like cone, but only TCP passes."""

HOST_NAME = re.compile(r"[a-z][a-z0-9]{0,11}")
"""With the two characters before it, a port's name stays within the kernel's 15; no dash, as `-r` marks a router."""

CORE = "core"
"""The place where all public sides meet."""

HOSTS_MAX = 200
"""Each host takes one address of the public /24, whose last one is the core's own."""

PUBLIC_NETWORK = "203.0.113"
CORE_IP = f"{PUBLIC_NETWORK}.254"
METADATA_IP = "169.254.169.254"
"""Where clouds answer with a machine's credentials; here each router (the core, for a public host) has it."""


@dataclass(frozen=True, slots=True)
class LinkQuality:
    """A host's way to the core. The delay is what it adds to a round trip; loss and rate hold for each way."""

    delay_ms: float = 0
    loss_percent: float = 0
    rate_mbit: float = 0
    """0: as fast as this machine can."""

    def __post_init__(self) -> None:
        if self.delay_ms < 0:
            raise ValueError(f"delay_ms is {self.delay_ms:g}; give 0 or more")
        if not 0 <= self.loss_percent <= 100:
            raise ValueError(f"loss_percent is {self.loss_percent:g}; give 0 to 100")
        if self.rate_mbit < 0:
            raise ValueError(f"rate_mbit is {self.rate_mbit:g}; give 0 for no limit, or more")


@dataclass(frozen=True, slots=True)
class LabHost:
    """One host, and its link to the core."""

    name: str
    nat: Nat = "none"
    delay_ms: float = 0
    loss_percent: float = 0
    rate_mbit: float = 0

    def __post_init__(self) -> None:
        if not HOST_NAME.fullmatch(self.name) or self.name == CORE:
            raise ValueError(
                f"name {self.name!r}: give 1 to 12 of a-z and 0-9, a letter first, other than {CORE!r}"
            )
        if self.nat not in get_args(Nat):
            raise ValueError(f"nat of {self.name} is {self.nat!r}; give one of {', '.join(get_args(Nat))}")
        _ = self.link

    @property
    def link(self) -> LinkQuality:
        return LinkQuality(self.delay_ms, self.loss_percent, self.rate_mbit)


@dataclass(frozen=True, slots=True)
class Site:
    """A host with its place in the address plan; `number` counts from 1."""

    host: LabHost
    number: int

    @property
    def has_router(self) -> bool:
        return self.host.nat != "none"

    @property
    def router(self) -> str:
        """The place one hop out: the host's own router, or the core for a public host."""
        return f"{self.host.name}-r" if self.has_router else CORE

    @property
    def edge(self) -> str:
        """The place that holds the public address."""
        return self.router if self.has_router else self.host.name

    @property
    def edge_interface(self) -> str:
        return "wan0" if self.has_router else "eth0"

    @property
    def core_port(self) -> str:
        return f"p-{self.host.name}"

    @property
    def public_ip(self) -> str:
        return f"{PUBLIC_NETWORK}.{self.number}"

    @property
    def address(self) -> str:
        """What the host itself believes its address to be."""
        return f"10.{self.number}.0.2" if self.has_router else self.public_ip

    @property
    def lan_ip(self) -> str:
        """The router's address on the private side."""
        return self._private(1)

    @property
    def lan_device_ip(self) -> str:
        """Another machine of the same home, pretended by the router."""
        return self._private(9)

    def _private(self, last: int) -> str:
        if not self.has_router:
            raise ValueError(f"{self.host.name} has a public address of its own and no LAN; give it a NAT")
        return f"10.{self.number}.0.{last}"


def plan(hosts: Sequence[LabHost]) -> tuple[Site, ...]:
    """Give each host its number; names must differ."""
    names = [host.name for host in hosts]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"name given twice: {', '.join(twice)}")
    if not 1 <= len(hosts) <= HOSTS_MAX:
        raise ValueError(f"a lab has 1 to {HOSTS_MAX} hosts, not {len(hosts)}")
    return tuple(Site(host, number) for number, host in enumerate(hosts, start=1))


def parse_table(text: str) -> tuple[LabHost, ...]:
    """Read `[[host]]` tables of TOML whose keys are LabHost's fields."""
    document = tomllib.loads(text)
    rows = document.pop("host", [])
    if document:
        raise ValueError(f"unknown: {', '.join(document)}; a table of hosts has [[host]] only")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise TypeError("host: write each host as a table of its own, under [[host]]")
    return tuple(_parse_host(row) for row in rows)


def _parse_host(row: Mapping[str, object]) -> LabHost:
    known = {field.name: field for field in fields(LabHost)}
    if unknown := sorted(set(row) - set(known)):
        raise ValueError(f"host has unknown {', '.join(unknown)}; it takes {', '.join(known)}")
    if "name" not in row:
        raise ValueError("host without a name")
    for key, value in row.items():
        wanted = str if key in {"name", "nat"} else (int, float)
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise TypeError(f"{key} of host {row['name']} is {value!r}: a value of another kind is needed")
    return LabHost(**row)  # type: ignore[arg-type]  # names and kinds were checked just above


def core_script(sites: Sequence[Site]) -> str:
    """Shell lines, run inside the core's namespace, that join all links in one bridge."""
    lines = (
        *_basics(forwarding=False),
        # The machine's own firewall hooks have no business with frames that cross this bridge.
        "if [ -e /proc/sys/net/bridge ]; then echo 0 >/proc/sys/net/bridge/bridge-nf-call-iptables; fi",
        "ip link add br0 type bridge mcast_snooping 0",
        f"ip address add {CORE_IP}/24 dev br0",
        f"ip address add {METADATA_IP}/32 dev lo",
        "ip link set br0 up",
        *(f"ip link set {site.core_port} master br0 txqueuelen {QUEUE_FRAMES} up" for site in sites),
    )
    return "\n".join(lines)


QUEUE_FRAMES = 4000
"""A burst of a window of 5 MB waits in the interface while the link's process is busy, instead of being lost."""


def router_script(site: Site, host_namespace: str) -> str:
    """Shell lines, run inside the router's namespace: both its sides and its translation of addresses."""
    return "\n".join(
        (
            *_basics(forwarding=True),
            *_public_side(site),
            f"ip link add lan0 type veth peer name eth0 netns {host_namespace}",
            f"ip address add {site.lan_ip}/24 dev lan0",
            f"ip address add {site.lan_device_ip}/32 dev lan0",
            f"ip address add {METADATA_IP}/32 dev lo",
            "ip link set lan0 up",
            "nft -f - <<'END'",
            firewall(site.host.nat),
            "END",
        )
    )


def host_script(site: Site) -> str:
    """Shell lines, run inside the host's namespace once its router stands."""
    if not site.has_router:
        return "\n".join((*_basics(forwarding=False), *_public_side(site)))
    return "\n".join(
        (
            *_basics(forwarding=False),
            f"ip address add {site.address}/24 dev eth0",
            "ip link set eth0 up",
            f"ip route add default via {site.lan_ip}",
        )
    )


def firewall(nat: Nat) -> str:
    """A home router in nftables.

    What comes in unasked is dropped, never refused: a refusal would leave a trace in the table of connections,
    which then gives the host's own attempt towards that peer another port, and no hole would ever open.
    """
    blocked = "meta l4proto udp drop" if nat == "udp-blocked" else ""
    # Plain masquerade keeps the source port, whatever the destination.
    flags = " random,fully-random" if nat == "symmetric" else ""
    return f"""table ip home {{
  chain arriving {{
    type filter hook input priority 0; policy accept;
    iifname "wan0" ct state established,related accept
    iifname "wan0" drop
  }}
  chain passing {{
    type filter hook forward priority 0; policy drop;
    {blocked}
    ct state established,related accept
    iifname "lan0" accept
  }}
  chain leaving {{
    type nat hook postrouting priority 100;
    oifname "wan0" masquerade{flags}
  }}
}}"""


def _basics(*, forwarding: bool) -> tuple[str, ...]:
    return (
        # Said in both cases: a new namespace starts with what the machine itself has set.
        f"echo {int(forwarding)} >/proc/sys/net/ipv4/ip_forward",
        "if [ -e /proc/sys/net/ipv6 ]; then",
        "  echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6",
        "  echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6",
        "fi",
        "ip link set lo up",
    )


def _public_side(site: Site) -> tuple[str, ...]:
    return (
        f"ip address add {site.public_ip}/24 dev {site.edge_interface}",
        f"ip link set {site.edge_interface} txqueuelen {QUEUE_FRAMES} up",
        f"ip route add default via {CORE_IP}",
    )
