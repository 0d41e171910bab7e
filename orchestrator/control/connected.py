"""One connected worker, as its session keeps it, and who counts what sessions refuse."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from orchestrator.core.ids import WorkerId


class SessionObserver(Protocol):
    """Where refusals are counted."""

    def refused(self, door: str, code: str) -> None: ...


@dataclass(slots=True)
class Session:
    """One connected worker."""

    worker_id: WorkerId
    token: str
    key_sha256: str
    not_after_ms: int
    """Wall clock: when the newest certificate that was given to it runs out."""
    generation: int
    """Of the authority that issued that certificate; 0: not known."""
    clock_notice: str = ""
    overlay_key: bytes = b""
    """Public, of its own certificate in the overlay; empty where it uses none."""
    answers_scrapes: bool = False
    standing: bytes = b""
    """As it was told last."""
    farewell: str = "the network has new rules for this worker"
    """Why it has to come anew, where it was ended from here."""
    dirty: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
