"""The filtered way from a box to the internet: a veth pair, a /30 of its own, and one nft table on the host.

What a box may reach is decided on the host, where nothing in the box can change it. Allowed is only what leaves by
a gateway of a default route: whatever the host reaches directly, or by a route of its own to somewhere, is the
supplier's network, even where its addresses are public. Should the host move to another network, the rules
keep everything back until `refresh_egress` writes them anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.adapters.box.namespaces import run_in
from orchestrator.adapters.box.records import BLOCKED_NETWORKS
from orchestrator.adapters.box.tools import BoxError, run_tool

INSIDE_INTERFACE = "egress0"

INTERFACE_PREFIX = "orch-"
"""With a box's name of ten characters the fifteen that the kernel allows; no other interface is named so."""

TABLE_PREFIX = "orch_"

FORWARDING_TABLE = "orchestrator_forwarding"
"""Remembers, in the kernel itself, on which interfaces forwarding was turned on for boxes."""

POOL = ipaddress.IPv4Network("198.19.240.0/20")
"""Where the /30s are taken: 1024 of them, seen by nobody but host and box. The overlay's address plan leaves
them out."""

LINK_PREFIX = 30

LOCK_DIR = "/run"
"""Locked, as a directory, while addresses are chosen and forwarding is settled: keepers do that side by side."""

LOCK_INTERVAL_S = 0.02
LOCK_LOOKS = 500
"""Ten seconds; others hold it for some hundredths of one."""

DEFAULT_PREFIX_MAX = 1
"""0.0.0.0/0, and the two halves 0.0.0.0/1 and 128.0.0.0/1 by which some tunnels take its place."""

CONF_DIR = Path("/proc/sys/net/ipv4/conf")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the rules need to know of the host's own network."""

    connected: tuple[ipaddress.IPv4Network, ...]
    """What the host reaches without a gateway, its own addresses included."""
    gateways: tuple[str, ...]
    """Next hops of the default routes."""
    gatewayless: tuple[str, ...]
    """Point-to-point interfaces that a default route leaves by."""
    uplinks: tuple[str, ...]
    """All interfaces that a default route leaves by."""


def host_interface(name: str) -> str:
    """Return the host's end of a box's link to the internet."""
    return INTERFACE_PREFIX + name


def table_name(name: str) -> str:
    """Return the nft table of a box."""
    return TABLE_PREFIX + name


def connect_egress(name: str, namespace_pid: int) -> None:
    """Give a box its filtered way out. Raises BoxError; what was made is removed by `disconnect_egress`."""
    interface = host_interface(name)
    with _locked():
        surroundings = read_surroundings()
        host, guest = _free_link()
        # The rules stand before the interface does.
        run_tool(["nft", "-f", "-"], host_rules(name, str(guest), surroundings))
        pair = ["type", "veth", "peer", "name", INSIDE_INTERFACE, "netns", str(namespace_pid)]
        run_tool(["ip", "link", "add", interface, *pair])
        run_tool(["ip", "addr", "add", f"{host}/{LINK_PREFIX}", "dev", interface])
        _turn_ipv6_off(interface)
        run_tool(["ip", "link", "set", interface, "up"])
        (CONF_DIR / interface / "forwarding").write_text("1")
        _settle_forwarding(surroundings)
    run_in(namespace_pid, ["nft", "-f", "-"], INSIDE_RULES)
    run_in(namespace_pid, ["sh", "-ec", inside_script(str(host), str(guest))])


def refresh_egress(name: str) -> None:
    """Write a box's rules anew, for the network that the host is in now."""
    with _locked():
        surroundings = read_surroundings()
        for interface, address in _addresses():
            if interface == host_interface(name):
                run_tool(["nft", "-f", "-"], host_rules(name, str(address.ip + 1), surroundings))
        _settle_forwarding(surroundings)


def disconnect_egress(name: str) -> None:
    """Remove a box's way out, as far as it is there; with the last one, put forwarding back as it was."""
    with _locked():
        interface = host_interface(name)
        for _ in range(LOCK_LOOKS):
            if not (CONF_DIR / interface).exists():
                break
            # It also goes by itself once the last process in the box is gone, and may be about to.
            with contextlib.suppress(BoxError):
                run_tool(["ip", "link", "delete", interface])
                break
            time.sleep(LOCK_INTERVAL_S)
        else:
            raise BoxError(f"interface {interface} cannot be removed; try `ip link delete {interface}`")
        if table_name(name) in _tables():
            run_tool(["nft", "delete", "table", "inet", table_name(name)])
        if FORWARDING_TABLE in _tables():
            _settle_forwarding(read_surroundings())


def host_rules(name: str, guest: str, surroundings: Surroundings) -> str:
    """Return the table of one box; pure.

    It replaces an older one in the same transaction. Our chains run before the host's own, which may still refuse
    what passes here.
    """
    table, interface = table_name(name), host_interface(name)
    blocked = ipaddress.collapse_addresses([*BLOCKED_NETWORKS, *surroundings.connected])
    ways = [f'oifname "{uplink}" accept' for uplink in surroundings.gatewayless]
    if surroundings.gateways:
        ways.append(f"rt ip nexthop {{ {', '.join(surroundings.gateways)} }} accept")
    return f"""
add table inet {table}
delete table inet {table}
table inet {table} {{
  chain to_host {{
    type filter hook input priority -150; policy accept;
    iifname "{interface}" drop
  }}
  chain from_host {{
    type filter hook output priority -150; policy accept;
    oifname "{interface}" ct state established,related accept
    oifname "{interface}" drop
  }}
  chain through_host {{
    type filter hook forward priority -150; policy accept;
    iifname "{interface}" jump from_box
    oifname "{interface}" ct state established,related accept
    oifname "{interface}" drop
  }}
  chain from_box {{
    meta nfproto != ipv4 drop
    ip saddr != {guest} drop
    ip daddr {{ {", ".join(map(str, blocked))} }} drop
    {"; ".join([*ways, "drop"])}
  }}
  chain leaving {{
    type nat hook postrouting priority 100; policy accept;
    ip saddr {guest} iifname "{interface}" masquerade
  }}
}}
"""


INSIDE_RULES = f"""
table inet orch {{
  chain arriving {{
    type filter hook input priority 0; policy accept;
    iifname "{INSIDE_INTERFACE}" ct state established,related accept
    iifname "{INSIDE_INTERFACE}" drop
  }}
  chain passing {{
    type filter hook forward priority 0; policy drop;
  }}
}}
"""
"""Ray listens on every address: nothing may come in by the way out. And a box is no router between its networks."""


def inside_script(host: str, guest: str) -> str:
    """Return what configures the box's end; pure."""
    return f"""
ip link set lo up
echo 0 > /proc/sys/net/ipv4/ip_forward
for conf in default {INSIDE_INTERFACE}; do
  if [ -e /proc/sys/net/ipv6/conf/$conf ]; then echo 1 > /proc/sys/net/ipv6/conf/$conf/disable_ipv6; fi
done
ip addr add {guest}/{LINK_PREFIX} dev {INSIDE_INTERFACE}
ip link set {INSIDE_INTERFACE} up
ip route add default via {host}
"""


def read_surroundings() -> Surroundings:
    """Look at the host's addresses and routes, boxes' own links left out."""
    connected = [address.network for name, address in _addresses() if not name.startswith(INTERFACE_PREFIX)]
    gateways: set[str] = set()
    gatewayless: set[str] = set()
    uplinks: set[str] = set()
    for route in _ask("-4", "route", "show", "table", "all"):
        if route.get("type", "unicast") != "unicast" or route.get("dev", "").startswith(INTERFACE_PREFIX):
            continue
        to = ipaddress.IPv4Network("0.0.0.0/0" if route["dst"] == "default" else route["dst"])
        for hop in route.get("nexthops", [route]):
            if to.prefixlen > DEFAULT_PREFIX_MAX:
                connected += [] if "gateway" in hop else [to]
                continue
            if "dev" not in hop:
                continue
            uplinks.add(hop["dev"])
            if "gateway" in hop:
                gateways.add(hop["gateway"])
            elif "via" not in hop:
                gatewayless.add(hop["dev"])
    return Surroundings(
        connected=tuple(ipaddress.collapse_addresses(connected)),
        gateways=tuple(sorted(gateways)),
        gatewayless=tuple(sorted(gatewayless)),
        uplinks=tuple(sorted(uplinks)),
    )


def _settle_forwarding(surroundings: Surroundings) -> None:
    """Forward for boxes and for nobody else.

    What answers a box arrives on an uplink, so the kernel must forward there too. On a machine that did not,
    our table drops what arrives there for anyone but a box, and remembers which uplinks these are. A machine that
    forwards for others by now, or did before, is left as it is.
    """
    remembered = _forwarded_uplinks()
    forwards_for_others = Path("/proc/sys/net/ipv4/ip_forward").read_text().strip() == "1"
    has_boxes = any(path.name.startswith(INTERFACE_PREFIX) for path in CONF_DIR.iterdir())
    if forwards_for_others or not has_boxes:
        if not forwards_for_others:
            for uplink in remembered:
                _forward_on(uplink, enabled=False)
        if FORWARDING_TABLE in _tables():
            run_tool(["nft", "delete", "table", "inet", FORWARDING_TABLE])
        return
    ours = [uplink for uplink in surroundings.uplinks if uplink in remembered or not _is_forwarding(uplink)]
    kept = sorted({*ours, *remembered})
    run_tool(["nft", "-f", "-"], forwarding_rules(kept))
    for uplink in kept:
        _forward_on(uplink, enabled=True)


def forwarding_rules(uplinks: Sequence[str]) -> str:
    """Return the table that keeps a machine from forwarding for others; pure."""
    names = ", ".join(f'"{uplink}"' for uplink in uplinks)
    elements = f"elements = {{ {names} }}" if uplinks else ""
    return f"""
add table inet {FORWARDING_TABLE}
delete table inet {FORWARDING_TABLE}
table inet {FORWARDING_TABLE} {{
  set uplinks {{
    type ifname
    {elements}
  }}
  chain passing {{
    type filter hook forward priority -160; policy accept;
    meta nfproto ipv4 iifname @uplinks oifname != "{INTERFACE_PREFIX}*" drop
  }}
}}
"""


def _forwarded_uplinks() -> set[str]:
    """Return the interfaces on which forwarding was turned on for boxes."""
    if FORWARDING_TABLE not in _tables():
        return set()
    listing = json.loads(run_tool(["nft", "-j", "list", "set", "inet", FORWARDING_TABLE, "uplinks"]))
    sets = [item["set"] for item in listing["nftables"] if "set" in item]
    return {name for found in sets for name in found.get("elem", [])}


def _forward_on(interface: str, *, enabled: bool) -> None:
    """Turn forwarding of what arrives on an interface on or off; it may be gone by now."""
    with contextlib.suppress(FileNotFoundError):
        (CONF_DIR / interface / "forwarding").write_text("1" if enabled else "0")


def _is_forwarding(interface: str) -> bool:
    """Say whether what arrives on an interface is forwarded."""
    try:
        return (CONF_DIR / interface / "forwarding").read_text().strip() == "1"
    except FileNotFoundError:
        return False


def _turn_ipv6_off(interface: str) -> None:
    """Leave an interface without IPv6, where the kernel has it at all."""
    with contextlib.suppress(FileNotFoundError):
        Path(f"/proc/sys/net/ipv6/conf/{interface}/disable_ipv6").write_text("1")


def _free_link() -> tuple[ipaddress.IPv4Address, ipaddress.IPv4Address]:
    """Return the host's and the box's address on a /30 that no interface here has."""
    taken = {address.network for _, address in _addresses()}
    for network in POOL.subnets(new_prefix=LINK_PREFIX):
        if not any(network.overlaps(other) for other in taken if other.prefixlen >= POOL.prefixlen):
            return network[1], network[2]
    raise BoxError(f"all networks of {POOL} are taken; destroy boxes that are no longer needed")


def _addresses() -> list[tuple[str, ipaddress.IPv4Interface]]:
    """Return every IPv4 address of the host with its interface."""
    found: list[tuple[str, ipaddress.IPv4Interface]] = []
    for interface in _ask("-4", "addr", "show"):
        for info in interface.get("addr_info", []):
            # On a point-to-point link the prefix is the other end's.
            ends = {info["local"], info.get("address", info["local"])}
            both = [ipaddress.IPv4Interface(f"{address}/{info['prefixlen']}") for address in ends]
            found += [(interface["ifname"], address) for address in both]
    return found


def _ask(*question: str) -> list[dict[str, Any]]:
    """Return iproute2's answer; it leaves out what it has nothing to say of, as empty objects."""
    answer = run_tool(["ip", "-j", *question])
    return [item for item in json.loads(answer or "[]") if item]


def _tables() -> set[str]:
    """Return the names of the nft tables of our family."""
    listing = json.loads(run_tool(["nft", "-j", "list", "tables", "inet"]))
    return {item["table"]["name"] for item in listing["nftables"] if "table" in item}


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    """Be the only one who changes what boxes share on this host."""
    descriptor = os.open(LOCK_DIR, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for _ in range(LOCK_LOOKS):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(LOCK_INTERVAL_S)
        else:
            raise BoxError(f"somebody holds the lock on {LOCK_DIR}; see `fuser {LOCK_DIR}`")
        yield
    finally:
        os.close(descriptor)
