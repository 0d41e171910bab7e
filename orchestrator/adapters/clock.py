"""The only place where the outside's time, randomness and ids come from."""

from __future__ import annotations

import secrets
import time
import uuid
from pathlib import Path

from orchestrator.core.ids import Now

BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")

RANDOM_BITS_LOW = 62
"""Of a UUID's last 64 bits, all but the two that name its variant."""


def boottime_ms() -> int:
    """Milliseconds since this machine started, counting sleep."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime_ns(clock) // 1_000_000


def steady_ns() -> int:
    """Nanoseconds since some moment, as fine as this machine can tell; for what is over in seconds."""
    return time.perf_counter_ns()


def boot_id() -> str:
    """What two readings share only on one running machine."""
    return BOOT_ID_FILE.read_text().strip() if BOOT_ID_FILE.exists() else f"node-{uuid.getnode():x}"


def new_id(prefix: str) -> str:
    """A prefixed UUIDv7: unique, and in order of time."""
    milliseconds = time.time_ns() // 1_000_000
    value = (milliseconds & (1 << 48) - 1) << 80
    value |= 0x7 << 76 | secrets.randbits(12) << 64
    value |= 0b10 << RANDOM_BITS_LOW | secrets.randbits(RANDOM_BITS_LOW)
    return f"{prefix}_{value:032x}"


def new_secret(prefix: str) -> str:
    """256 random bits as text, with a prefix by which a leaked one can be recognised."""
    return f"{prefix}_{secrets.token_urlsafe(32)}"


def random_bytes(count: int) -> bytes:
    """Bytes nobody can guess."""
    return secrets.token_bytes(count)


def jitter(base_s: float) -> float:
    """Between half and one and a half of ``base_s``, so that many who wait do not come back at once."""
    return base_s * (0.5 + secrets.randbelow(1000) / 1000)


class SystemClock:
    """Readings of the real clocks."""

    def __init__(self) -> None:
        self._boot_id = boot_id()

    def now(self) -> Now:
        """Wall clock, boot clock, and the boot they belong to."""
        return Now(time.time_ns() // 1_000_000, boottime_ms(), self._boot_id)

    def elapsed_s(self) -> float:
        """Seconds since some moment, as fine as this machine can tell."""
        return time.perf_counter()
