"""What probes found. Each record is made only of figures that a network could really have shown."""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass
from typing import Final, Literal, get_args

US_PER_S: Final = 1_000_000

PEER_CHARACTERS_MAX: Final = 128
"""A peer is named by an id or an address; ours have 36 characters, a scoped IPv6 address under 60."""

DATAGRAMS_MAX: Final = 1000
"""Losses of one in a thousand show; at the shortest interval that is five seconds of one probe."""

RTT_US_MAX: Final = 60 * US_PER_S
"""No probe waits that long for one answer, so a longer round trip was not measured but made up."""

DURATION_US_MAX: Final = 3600 * US_PER_S
"""No probe runs for an hour; its deadline is minutes at most."""

BYTES_MAX: Final = 1 << 40
"""More than any probe moves in an hour at 1 Gbit/s twice over; keeps every figure inside 64 bits."""

BITS_PER_S_MAX: Final = 10**13
"""Ten Tbit/s, above any link and any GPU interconnect of today: a higher rate is a fault of the clock."""

RANKS_MIN: Final = 2
RANKS_MAX: Final = 64
"""One rank has no ring; 64 machines is far above any cluster that is formed, and all sums stay exact."""


LINE_CHARACTERS_MAX: Final = 4096
"""One line of JSON of five figures or one sentence; a box is a tenant's ground, so it is bounded."""

ReduceMethod = Literal["ring", "gloo", "nccl"]
"""Which all-reduce was run: ours over TCP, or torch's over TCP or over GPUs."""

_MEASURED_FIELDS = frozenset(("method", "ranks", "bytes", "duration_us", "bus_bits_per_s"))


class Direction(enum.Enum):
    """Which way a bandwidth probe's bytes went."""

    TO_PEER = "to_peer"
    FROM_PEER = "from_peer"


@dataclass(frozen=True, slots=True)
class PathMeasured:
    """Round trips to one peer. Without an answer there are no times; jitter needs two answers."""

    peer: str
    sent: int
    received: int
    rtt_min_us: int | None
    rtt_median_us: int | None
    rtt_p90_us: int | None
    jitter_us: int | None

    def __post_init__(self) -> None:
        _check_peer(self.peer)
        _check("sent", self.sent, 1, DATAGRAMS_MAX)
        _check("received", self.received, 0, self.sent)
        _check_present("rtt_min_us", self.rtt_min_us, present=self.received > 0)
        _check_present("rtt_median_us", self.rtt_median_us, present=self.received > 0)
        _check_present("rtt_p90_us", self.rtt_p90_us, present=self.received > 0)
        _check_present("jitter_us", self.jitter_us, present=self.received > 1)
        if self.rtt_min_us is None or self.rtt_median_us is None or self.rtt_p90_us is None:
            return
        _check("rtt_min_us", self.rtt_min_us, 0, RTT_US_MAX)
        _check("rtt_median_us", self.rtt_median_us, self.rtt_min_us, RTT_US_MAX)
        _check("rtt_p90_us", self.rtt_p90_us, self.rtt_median_us, RTT_US_MAX)
        if self.jitter_us is not None:
            _check("jitter_us", self.jitter_us, 0, RTT_US_MAX)


@dataclass(frozen=True, slots=True)
class BandwidthMeasured:
    """What one TCP stream carried to or from one peer."""

    peer: str
    direction: Direction
    bytes: int
    duration_us: int

    def __post_init__(self) -> None:
        _check_peer(self.peer)
        _check("bytes", self.bytes, 1, BYTES_MAX)
        _check("duration_us", self.duration_us, 1, DURATION_US_MAX)
        _check("bits_per_s", self.bits_per_s, 0, BITS_PER_S_MAX)

    @property
    def bits_per_s(self) -> int:
        """Payload bits per second, rounded down."""
        return self.bytes * 8 * US_PER_S // self.duration_us


@dataclass(frozen=True, slots=True)
class ReduceMeasured:
    """One all-reduce of ``bytes`` among ``ranks``; the time is that of the slowest rank."""

    ranks: int
    bytes: int
    duration_us: int
    method: ReduceMethod

    def __post_init__(self) -> None:
        _check("ranks", self.ranks, RANKS_MIN, RANKS_MAX)
        _check("bytes", self.bytes, 1, BYTES_MAX)
        _check("duration_us", self.duration_us, 1, DURATION_US_MAX)
        if self.method not in get_args(ReduceMethod):
            raise ValueError(f"method is {self.method!r:.40}; known are {', '.join(get_args(ReduceMethod))}")
        _check("bus_bits_per_s", self.bus_bits_per_s, 0, BITS_PER_S_MAX)

    @property
    def bus_bits_per_s(self) -> int:
        """Bus bandwidth as NVIDIA's nccl-tests define it: bytes / time × 2(n-1)/n, here in bits."""
        return self.bytes * 8 * US_PER_S * 2 * (self.ranks - 1) // (self.ranks * self.duration_us)


def read_reduce_line(line: str) -> ReduceMeasured:
    """What ``gloo.py`` printed; ValueError, with its own words if it failed, for anything but a measurement."""
    if len(line) > LINE_CHARACTERS_MAX:
        raise ValueError(
            f"the all-reduce printed {len(line)} characters; at most {LINE_CHARACTERS_MAX} are read"
        )
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("the all-reduce printed no JSON; see the standard error of its process") from None
    if isinstance(found, dict) and set(found) == {"error"}:
        raise ValueError(f"the all-reduce failed: {found['error']!r:.500}")
    if not isinstance(found, dict) or set(found) != _MEASURED_FIELDS:
        raise ValueError(f"the all-reduce printed other fields than {', '.join(sorted(_MEASURED_FIELDS))}")
    measured = ReduceMeasured(
        ranks=found["ranks"], bytes=found["bytes"], duration_us=found["duration_us"], method=found["method"]
    )
    if found["bus_bits_per_s"] != measured.bus_bits_per_s:
        raise ValueError("bus_bits_per_s does not follow from bytes, duration_us and ranks")
    return measured


def _check(field: str, value: int, low: int, high: int) -> None:
    """ValueError unless ``value`` is a whole number from ``low`` to ``high``."""
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{field} is {value!r:.40}; a probe finds a whole number from {low} to {high}")


def _check_present(field: str, value: int | None, *, present: bool) -> None:
    if (value is not None) != present:
        raise ValueError(f"{field} is {value!r:.40}, which does not go with the number of answers received")


def _check_peer(peer: str) -> None:
    if not 0 < len(peer) <= PEER_CHARACTERS_MAX or not peer.isprintable():
        raise ValueError(f"peer must have 1 to {PEER_CHARACTERS_MAX} printable characters")
