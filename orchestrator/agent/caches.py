"""What lies ready on this machine, told to the network: jobs are sent where they need not wait for it.

Looked for on the disk itself, which several agents and the machine's owner change, and told as each session begins and
whenever it has changed.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from orchestrator.adapters.box.tools import BoxError
from orchestrator.api.v1 import worker_pb2
from orchestrator.core.supply.caches import CACHED_MAX, CachedKind

if TYPE_CHECKING:
    from orchestrator.agent.ports import ControlChannel

log = structlog.get_logger(__name__)

LOOK_S = 30.0
"""A look takes some hundredths of a second, podman's most of it. What came less than this ago is not counted on yet: the
next job that wants it seldom comes sooner."""

PACKAGE = re.compile(r"([0-9a-f]{64})\.zip")


@dataclass(frozen=True, slots=True)
class Shelves:
    """Where this machine keeps things. Both calls may block, and raise OSError or BoxError."""

    packages_dir: Path
    runtimes: Callable[[], Iterable[str]]
    """Digests of the runtimes that are whole."""
    images: Callable[[], Iterable[str]]
    """NAME@sha256:… of the images that are here, the newest first."""

    def look(self) -> worker_pb2.CachedReport:
        """All of it, bounded; what cannot be read is not there. Blocking."""
        return worker_pb2.CachedReport(
            runtimes=_read(CachedKind.RUNTIME, self.runtimes),
            images=_read(CachedKind.IMAGE, self.images),
            packages=_read(CachedKind.PACKAGE, self._packages),
        )

    def _packages(self) -> list[str]:
        if not self.packages_dir.is_dir():
            return []
        files = [path for path in self.packages_dir.iterdir() if PACKAGE.fullmatch(path.name)]
        return [path.stem for path in sorted(files, key=lambda path: (-path.stat().st_mtime_ns, path.name))]


class CacheTeller:
    """An attendant of every session."""

    def __init__(self, look: Callable[[], worker_pb2.CachedReport], look_s: float = LOOK_S) -> None:
        self._look = look
        self._look_s = look_s

    async def attend(self, channel: ControlChannel) -> None:
        """Tell at once and after each change, until cancelled."""
        told: worker_pb2.CachedReport | None = None
        while True:
            found = await asyncio.to_thread(self._look)
            if found != told:
                await channel.send(worker_pb2.SessionRequest(cached=found))
                told = found
            await asyncio.sleep(self._look_s)

    def take(self, message: worker_pb2.SessionResponse) -> None:
        """Nothing that is said concerns this."""


def _read(kind: CachedKind, source: Callable[[], Iterable[str]]) -> list[str]:
    try:
        return list(source())[: CACHED_MAX[kind]]
    except (OSError, BoxError) as error:
        # Jobs run all the same, only perhaps elsewhere.
        log.info("cache_unread", kind=kind.value, reason=str(error))
        return []
