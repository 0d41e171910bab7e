"""What an agent says lies ready on its machine, checked on the way in."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from orchestrator.core.errors import invalid
from orchestrator.core.images import reference_fault
from orchestrator.core.supply.caches import CACHED_MAX, Cached, CachedKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.api.v1 import worker_pb2

DIGEST = re.compile(r"[0-9a-f]{64}")


def cached_from(wire: worker_pb2.CachedReport) -> Cached:
    """A report as core has it. Raises RefusedError; what no machine holds is not read any further."""
    return Cached(
        runtimes=_digests(CachedKind.RUNTIME, wire.runtimes),
        images=_images(wire.images),
        packages=_digests(CachedKind.PACKAGE, wire.packages),
    )


def _bounded(kind: CachedKind, names: Sequence[str]) -> tuple[str, ...]:
    if len(names) > CACHED_MAX[kind]:
        raise invalid(
            f"cached.{kind}s", f"{len(names)} {kind}s on one worker; send the newest {CACHED_MAX[kind]}"
        )
    return tuple(names)


def _digests(kind: CachedKind, names: Sequence[str]) -> tuple[str, ...]:
    for name in _bounded(kind, names):
        if DIGEST.fullmatch(name) is None:
            raise invalid(f"cached.{kind}s", f"{name[:80]!r} is no SHA-256 in lower-case hex")
    return tuple(names)


def _images(names: Sequence[str]) -> tuple[str, ...]:
    for name in _bounded(CachedKind.IMAGE, names):
        if fault := reference_fault(name):
            raise invalid("cached.images", fault)
    return tuple(names)
