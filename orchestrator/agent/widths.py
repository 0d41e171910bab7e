"""What comes to one member from all others that bring devices, where its cluster's job asked for bandwidth.

Each member measures what it receives, so that for each pair both ends have a word, and nobody vouches for a line of its
own. Two measurements at once would share a line and make it look slow: a member asks, or is asked, one at a time.
Whoever is busy is tried again after pauses by chance, as two that ask each other would otherwise do so for ever.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import structlog

from orchestrator.adapters.probes.bandwidth import BandwidthPlan, Line, measure_bandwidth
from orchestrator.adapters.probes.records import Direction
from orchestrator.adapters.probes.wire import Instruments, ProbeFailed, Target
from orchestrator.api.v1 import worker_pb2

log = structlog.get_logger(__name__)

LIGHT: Final = BandwidthPlan(bytes=8 << 20, duration_ms=300)
"""Where nothing was asked for: a glance beside a starting Ray, gone before anybody misses it."""

ALL_MS: Final = 20_000
"""Of one member's line, for all it asks and is asked: a third of what a cluster waits for measurements."""

EACH_MS_MAX: Final = 1_500
"""TCP has found its rate over 80 ms within half a second; the rest shows it."""

OTHERS_MAX: Final = 255
"""Others of one member: a report of more is not read."""

BYTES_MAX: Final = 256 << 20
"""More than a second of 1 Gbit/s; wider lines show what they carry in less time."""

SURVEY_S: Final = 90.0
"""Longer than a cluster waits for it: beyond that somebody else was found."""

PAUSE_S: Final = 0.4
"""At most, before the next one is asked where one was busy: less than a measurement, and mostly half of this."""

Received = Callable[[Target, int], None]
"""From whom, and how many bits per second."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What the job asked of the ways between its machines."""

    every_pair: bool = False
    bits_per_s: int = 0

    @staticmethod
    def of(wanted: worker_pb2.DesiredMember) -> Needs:
        """As a member's worker is told."""
        return Needs(wanted.probe_needs.every_pair, wanted.probe_needs.bandwidth_bits_per_s)

    def plan(self, others: int) -> BandwidthPlan:
        """How long and how much each of so many others is measured, and the most that one may ask of this member."""
        if not self.bits_per_s:
            return LIGHT
        each_ms = min(EACH_MS_MAX, max(LIGHT.duration_ms, ALL_MS // max(1, 2 * others)))
        # Twice what was asked: a line that has more to give is done sooner.
        enough = 2 * self.bits_per_s // 8 * each_ms // 1000
        return BandwidthPlan(min(BYTES_MAX, max(LIGHT.bytes, enough)), each_ms)


@dataclass(frozen=True, slots=True)
class Receiver:
    """One member's part: ``line`` is what it lends to those who ask it, too."""

    key: bytes
    instruments: Instruments
    line: Line
    plan: BandwidthPlan

    async def measure_all(self, targets: Iterable[Target], received: Received) -> None:
        """From each in turn until all are known, or time is up. Nothing is said of who did not answer."""
        waiting = deque(targets)
        reason = "it is always busy"
        try:
            async with asyncio.timeout(SURVEY_S):
                while waiting:
                    target = waiting.popleft()
                    try:
                        received(target, await self.from_one(target))
                    except (OSError, ProbeFailed) as error:
                        reason = str(error)
                        waiting.append(target)
                        await asyncio.sleep(PAUSE_S * self.instruments.random_bytes(1)[0] / 255)
        except TimeoutError:
            log.info("bandwidth_not_measured", peers=len(waiting), reason=reason)

    async def from_one(self, target: Target) -> int:
        """Bits per second that come from one peer while nothing else is measured here. Raises OSError, ProbeFailed."""
        if not self.line.take(self):
            raise ProbeFailed(f"bandwidth with {target}: another member measures with this one")
        try:
            found = await measure_bandwidth(
                target, self.key, Direction.FROM_PEER, self.instruments, self.plan
            )
        finally:
            self.line.free(self)
        return found.bits_per_s
