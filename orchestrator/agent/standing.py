"""How the network sees this worker: kept for `orch worker status`, and told to its owner as it changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
from google.protobuf import json_format

from orchestrator.adapters.files import write_whole
from orchestrator.api.v1 import standing_pb2, worker_pb2

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from orchestrator.agent.ports import ControlChannel

log = structlog.get_logger(__name__)

STANDING_FILE = "standing.json"
"""The newest standing, as protobuf's JSON with the proto's own names."""

SAID_MAX = 1_000
"""Lines remembered so as not to be said twice; an owner has a handful."""


class StandingKeeper:
    """An attendant of every session; a line for the owner at each thing he has not been told by this process."""

    def __init__(self, data_dir: Path, say: Callable[[str], None]) -> None:
        self._path = data_dir / STANDING_FILE
        self._say = say
        self._said: dict[str, None] = {}
        self._newest = standing_pb2.Standing()

    @property
    def newest(self) -> standing_pb2.Standing:
        """What was told last; empty before the first session."""
        return self._newest

    async def attend(self, channel: ControlChannel) -> None:
        """Nothing is sent."""

    def take(self, message: worker_pb2.SessionResponse) -> None:
        """Keep a standing; other messages are not its business."""
        if not message.HasField("standing"):
            return
        standing = standing_pb2.Standing()
        standing.CopyFrom(message.standing)
        self._newest = standing
        text = json_format.MessageToJson(standing, preserving_proto_field_name=True)
        try:
            write_whole(self._path, text.encode() + b"\n")
        except OSError as error:
            # A full disk hides the standing from `orch worker status`; it is no reason to lose a session.
            log.warning("standing_not_kept", reason=str(error))
        for line in lines_of(standing):
            if line not in self._said:
                self._said[line] = None
                self._say(line)
        while len(self._said) > SAID_MAX:
            del self._said[next(iter(self._said))]


def lines_of(standing: standing_pb2.Standing) -> list[str]:
    """What an owner should know, a line each."""
    lines = [one for one in (standing.upgrade_notice, standing.clock_notice) if one]
    lines += [f"held ({hold.kind}): {hold.reason}" for hold in standing.holds]
    lines += [f"device {hold.device_id} is held: {hold.reason}" for hold in standing.device_holds]
    lines += [f"alert {alert.number} ({alert.kind}): {alert.text}" for alert in standing.alerts]
    return lines
