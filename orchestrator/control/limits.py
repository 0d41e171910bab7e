"""How often somebody may try: token buckets by key, in memory, forgotten when they are full again."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from dataclasses import dataclass

KEYS_MAX = 50_000
"""Buckets kept at once; past it the one longest untouched is dropped, which only forgives its owner early."""

V6 = 6
SITE_BITS = (32, 64)
"""Of IPv4 and of IPv6. One subscriber has at least so much of the address space: more addresses are no more people."""

NEIGHBOURHOOD_BITS = (24, 48)
"""What one customer of a hoster gets at most for the asking, or a street's households share."""

REGION_BITS = (16, 32)
"""About one provider: whoever has several of these is no single hand any more."""


@dataclass(frozen=True, slots=True)
class Limit:
    """``burst`` at once, then one each ``interval_ms``."""

    burst: int
    interval_ms: int


class Buckets:
    """One bucket a key, all of one limit."""

    def __init__(self, limit: Limit) -> None:
        self._limit = limit
        self._levels: OrderedDict[str, tuple[int, int]] = OrderedDict()
        """Key → (tries used in units of interval_ms, when that was)."""

    def take(self, key: str, now_ms: int) -> bool:
        """Use one try; False where none is left."""
        full_ms = self._limit.burst * self._limit.interval_ms
        used_ms, at_ms = self._levels.pop(key, (0, now_ms))
        used_ms = max(0, used_ms - (now_ms - at_ms))
        allowed = used_ms + self._limit.interval_ms <= full_ms
        self._levels[key] = (used_ms + self._limit.interval_ms if allowed else used_ms, now_ms)
        if len(self._levels) > KEYS_MAX:
            self._levels.popitem(last=False)
        return allowed


def site_of(peer: str) -> str:
    """What of a gRPC peer such as ``ipv4:192.0.2.7:5301`` stands for one subscriber."""
    return _network(peer, SITE_BITS)


def neighbourhood_of(peer: str) -> str:
    """The subscriber and those beside him."""
    return _network(peer, NEIGHBOURHOOD_BITS)


def region_of(peer: str) -> str:
    """All that one provider has there."""
    return _network(peer, REGION_BITS)


def _network(peer: str, bits: tuple[int, int]) -> str:
    kind, _, rest = peer.partition(":")
    host = rest.rpartition(":")[0].replace("%5B", "").replace("%5D", "").strip("[]")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return kind
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        # A listener of both families shows IPv4 so: without this all of IPv4 would be one site.
        address = address.ipv4_mapped
    return str(ipaddress.ip_network((address, bits[address.version == V6]), strict=False))
