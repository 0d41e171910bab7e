"""What the owner asked of his machine: kept until the network has it, and a reclaim obeyed here in any case.

A wish counts as heard once the session it went out on has lived on for a while; else it goes out again on the next
one, which changes nothing where it had been heard after all.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
import structlog

from orchestrator.adapters.files import write_whole
from orchestrator.api.v1 import worker_pb2

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator.agent.ports import AgentClock, ControlChannel

log = structlog.get_logger(__name__)

WISHES_FILE = "wishes.json"

SETTLED_MS = 5_000
"""A session that died with the sending is noticed by its heartbeats within this; no answer to a wish is needed then."""

LOOK_S = 0.5
"""How late a wish may be taken for heard; nobody waits for that."""

REPLACES = {
    "cordon": frozenset({"cordon"}),
    "reclaim": frozenset({"reclaim"}),
    "busy": frozenset({"busy", "idle"}),
    "idle": frozenset({"busy", "idle"}),
    "uncordon": frozenset({"cordon", "reclaim", "busy", "idle", "uncordon"}),
    "terms": frozenset({"terms"}),
}
"""Wishes not yet heard that a newer one makes void, by its kind."""


@dataclass(frozen=True, slots=True)
class Reclaim:
    """The owner wants his machine: what runs here ends then, at the latest, on this machine's boot clock."""

    deadline_boottime_ms: int
    reason: str
    boot_id: str = ""


@dataclass(slots=True)
class Kept:
    """What is on disk: wishes to be heard, each with its kind, oldest first; reclaims in force by kind."""

    pending: list[tuple[str, bytes]] = field(default_factory=list)
    reclaims: dict[str, Reclaim] = field(default_factory=dict)


def kind_of(wish: worker_pb2.OwnerWish) -> str:
    """What a wish is about; empty for one that is not known here."""
    match wish.WhichOneof("wish"):
        case "reclaim":
            return "busy" if wish.reclaim.busy else "reclaim"
        case "uncordon":
            return "idle" if wish.uncordon.busy_only else "uncordon"
        case None:
            return ""
        case kind:
            return str(kind)


class Wishes:
    """The owner's wishes: an attendant of every session."""

    def __init__(self, data_dir: Path, clock: AgentClock) -> None:
        """Raises ValueError where the file cannot be read."""
        self._path = data_dir / WISHES_FILE
        self._clock = clock
        self._kept = _load(self._path)
        self._changed = asyncio.Event()

    @property
    def busy(self) -> bool:
        """Whether the machine was taken back because its owner uses it."""
        return "busy" in self._kept.reclaims

    @property
    def pending(self) -> list[str]:
        """Kinds of the wishes that the network has not heard yet."""
        return [kind for kind, _ in self._kept.pending]

    def reclaim(self) -> Reclaim | None:
        """The soonest reclaim in force. One from before a restart of the machine is over: nothing has survived."""
        boot_id = self._clock.boot_id()
        found = [
            one if one.boot_id == boot_id else Reclaim(0, one.reason, boot_id)
            for one in self._kept.reclaims.values()
        ]
        return min(found, key=lambda one: one.deadline_boottime_ms, default=None)

    def make(self, wish: worker_pb2.OwnerWish, notice_ms: int) -> None:
        """Take a wish, durably; what it means here holds at once. Raises OSError.

        ``notice_ms`` is what a reclaim gives to what runs.
        """
        kind = kind_of(wish)
        reclaims = dict(self._kept.reclaims)
        if kind in ("reclaim", "busy"):
            deadline_ms = self._clock.boottime_ms() + notice_ms
            reclaims[kind] = Reclaim(deadline_ms, wish.reclaim.reason, self._clock.boot_id())
        elif kind in ("uncordon", "idle"):
            reclaims = {} if kind == "uncordon" else {k: one for k, one in reclaims.items() if k != "busy"}
        pending = [one for one in self._kept.pending if one[0] not in REPLACES[kind]]
        self._save(Kept([*pending, (kind, wish.SerializeToString())], reclaims))
        self._changed.set()
        log.info("owner_wishes", kind=kind, notice_ms=notice_ms if kind in reclaims else None)

    def _save(self, kept: Kept) -> None:
        write_whole(self._path, msgspec.json.encode(kept))
        self._kept = kept

    async def attend(self, channel: ControlChannel) -> None:
        """As Attendant.attend: send what waits, and forget it once it has been heard."""
        sent_ms: dict[bytes, int] = {}
        while True:
            self._changed.clear()
            for kind, encoded in list(self._kept.pending):
                if encoded not in sent_ms:
                    await channel.send(worker_pb2.SessionRequest(owner_wish=self._as_sent(kind, encoded)))
                    sent_ms[encoded] = self._clock.boottime_ms()
            heard_ms = self._clock.boottime_ms() - SETTLED_MS
            left = [one for one in self._kept.pending if sent_ms.get(one[1], heard_ms + 1) > heard_ms]
            if left != self._kept.pending:
                self._save(Kept(left, self._kept.reclaims))
                sent_ms = {encoded: sent_ms[encoded] for _, encoded in left if encoded in sent_ms}
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._changed.wait()

    def _as_sent(self, kind: str, encoded: bytes) -> worker_pb2.OwnerWish:
        """A reclaim counts from when it was asked for, not from when it could be sent."""
        wish = worker_pb2.OwnerWish.FromString(encoded)
        reclaim = self._kept.reclaims.get(kind)
        if reclaim is not None:
            left_ms = reclaim.deadline_boottime_ms - self._clock.boottime_ms()
            wish.reclaim.notice_ms = max(1, left_ms if reclaim.boot_id == self._clock.boot_id() else 1)
        return wish

    def take(self, message: worker_pb2.SessionResponse) -> None:
        """Nothing is answered to a wish; the standing shows what came of it."""


def _load(path: Path) -> Kept:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Kept)
    except FileNotFoundError:
        return Kept()
    except msgspec.DecodeError as error:
        raise ValueError(
            f"{path} is damaged ({error}); remove it, and say again what you want with `orch worker cordon`,"
            " `reclaim` or `uncordon`"
        ) from None
