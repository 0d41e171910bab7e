"""What the owner asked of his machine: kept until the network has it, and a reclaim obeyed here in any case.

A wish is kept until the network acknowledges it: done, or refused for good. Until then it goes out again on each
session, which changes nothing where it had been heard after all.
"""

from __future__ import annotations

import asyncio
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
    """What is on disk: wishes to be heard, each with its kind, oldest first; reclaims in force by kind; wishes made."""

    pending: list[tuple[str, bytes]] = field(default_factory=list)
    reclaims: dict[str, Reclaim] = field(default_factory=dict)
    count: int = 0


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
        self._awaited: dict[int, asyncio.Future[str]] = {}
        """By number, what somebody waits to be told of a wish."""
        self.last_refusal = ""
        """What the network refused last, and why."""

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

    def make(self, wish: worker_pb2.OwnerWish, notice_ms: int) -> int:
        """Take a wish, durably, and return its number; what it means here holds at once. Raises OSError.

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
        numbered = worker_pb2.OwnerWish()
        numbered.CopyFrom(wish)
        numbered.number = self._kept.count + 1
        self._save(Kept([*pending, (kind, numbered.SerializeToString())], reclaims, numbered.number))
        self._changed.set()
        log.info("owner_wishes", kind=kind, notice_ms=notice_ms if kind in reclaims else None)
        return numbered.number

    async def answer(self, number: int, patience_s: float) -> str | None:
        """What the network says to a wish just made: empty where it is done, else why not; None: nothing yet."""
        awaited: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._awaited[number] = awaited
        try:
            async with asyncio.timeout(patience_s):
                return await awaited
        except TimeoutError:
            return None
        finally:
            del self._awaited[number]

    def _save(self, kept: Kept) -> None:
        write_whole(self._path, msgspec.json.encode(kept))
        self._kept = kept

    async def attend(self, channel: ControlChannel) -> None:
        """As Attendant.attend: send what waits, in order."""
        sent = 0
        while True:
            self._changed.clear()
            for kind, encoded in list(self._kept.pending):
                wish = self._as_sent(kind, encoded)
                if wish.number > sent:
                    await channel.send(worker_pb2.SessionRequest(owner_wish=wish))
                    sent = wish.number
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
        """As Attendant.take: forget what the network has heard."""
        if not message.HasField("wish_ack"):
            return
        number, refusal = message.wish_ack.number, message.wish_ack.refusal
        heard = [one for one in self._kept.pending if _number_of(one) == number]
        left = [one for one in self._kept.pending if one not in heard]
        if heard:
            try:
                self._save(Kept(left, self._kept.reclaims, self._kept.count))
            except OSError as error:
                # Said once more at the next session, which changes nothing.
                log.warning("wish_not_forgotten", reason=str(error))
            if refusal:
                kind = heard[0][0]
                self.last_refusal = f"{kind}: {refusal}"
                log.warning("wish_refused", kind=kind, reason=refusal)
        awaited = self._awaited.get(number)
        if awaited is not None and not awaited.done():
            awaited.set_result(refusal)


def _number_of(pending: tuple[str, bytes]) -> int:
    return worker_pb2.OwnerWish.FromString(pending[1]).number


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
