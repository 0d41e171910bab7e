"""Which members are about to go, and when: jobs read it in a file beside their node, Ray is told by the head's duty.

The file is named by ORCH_NOTICE_FILE in the environment of a node and so of every driver, task and actor there. It
holds the notices of the whole cluster, because a job's driver runs on another machine than most of its work. Whose
process runs on a member that goes finds its own ORCH_MEMBER_ID in it. While nothing goes there is no file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from orchestrator.agent.ports import AgentClock, NodeDriver
    from orchestrator.agent.wishes import Reclaim
    from orchestrator.api.v1 import worker_pb2

log = structlog.get_logger(__name__)

WRITABLE = ("prepared", "starting", "up")
"""Phases of a member that has a directory and may have a job."""


OWN_REASON = "taken back by its owner"


@dataclass(frozen=True, slots=True)
class Going:
    """A member that goes, and when at the latest, on this machine's boot clock."""

    member_id: str
    deadline_boottime_ms: int
    reason: str


@dataclass(frozen=True, slots=True)
class Warned:
    """What Ray is told of a member that goes."""

    member_id: str
    remaining_ms: int
    reason: str


class Notices:
    """Keeps the earliest end of each member ever heard of, and the files in step with that."""

    def __init__(self, driver: NodeDriver, clock: AgentClock) -> None:
        self._driver = driver
        self._clock = clock
        self._told: dict[str, dict[str, Going]] = {}
        """By local member: what the network says of its cluster."""
        self._own: Reclaim | None = None
        self._written: dict[str, frozenset[Going]] = {}

    def take(self, members: Iterable[worker_pb2.DesiredMember]) -> None:
        """Hear what the network says. A delayed or repeated word never moves an end to later."""
        now_ms = self._clock.boottime_ms()
        known = {going.member_id: going for told in self._told.values() for going in told.values()}
        self._told = {
            member.member_id: {
                notice.member_id: _earliest(
                    Going(notice.member_id, now_ms + notice.remaining_ms, notice.reason),
                    known.get(notice.member_id),
                )
                for notice in member.notices
            }
            for member in members
        }

    def obey(self, own: Reclaim | None) -> None:
        """Every member of this machine goes by its owner's word, or by his no more; what the network says stays."""
        self._own = own

    def of(self, member_id: str) -> list[Going]:
        """All that go of the cluster of a local member, as far as this machine knows, by member."""
        going = dict(self._told.get(member_id, {}))
        if self._own is not None:
            own = Going(member_id, self._own.deadline_boottime_ms, self._own.reason or OWN_REASON)
            going[member_id] = _earliest(own, going.get(member_id))
        return [going[one] for one in sorted(going)]

    def warned(self, member_id: str) -> list[Warned]:
        """The same with the time that is left now."""
        now_ms = self._clock.boottime_ms()
        return [
            Warned(one.member_id, max(0, one.deadline_boottime_ms - now_ms), one.reason)
            for one in self.of(member_id)
        ]

    def write(self, phases: dict[str, str]) -> None:
        """Bring the file of each local member to what is known; ``phases`` says what each is."""
        for member_id in [one for one in self._written if one not in phases]:
            del self._written[member_id]
        for member_id, phase in phases.items():
            going = self.of(member_id)
            wanted = frozenset(going)
            if phase not in WRITABLE or wanted == self._written.get(member_id, frozenset()):
                continue
            try:
                self._driver.notify(member_id, self._content(going) if going else b"")
            except (KeyError, OSError) as error:
                # A full disk, or a member that went a moment ago: tried again at the next look.
                log.warning("notice_not_written", member_id=member_id, reason=str(error))
                continue
            self._written[member_id] = wanted
            log.info("notice_written", member_id=member_id, going=[one.member_id for one in going])

    def _content(self, going: Sequence[Going]) -> bytes:
        now_ms, wall_ms = self._clock.boottime_ms(), self._clock.now().wall_ms
        notices = []
        for one in going:
            remaining_ms = max(0, one.deadline_boottime_ms - now_ms)
            notices.append(
                {
                    "member_id": one.member_id,
                    "remaining_ms_at_write": remaining_ms,
                    "deadline_unix_ms": wall_ms + remaining_ms,
                    "reason": one.reason,
                }
            )
        return json.dumps({"notices": notices}).encode() + b"\n"


def _earliest(new: Going, known: Going | None) -> Going:
    return new if known is None or new.deadline_boottime_ms < known.deadline_boottime_ms else known
