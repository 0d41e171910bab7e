"""What an agent must not forget: terms and sessions so far, leases it counts, statements to deliver."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from orchestrator.adapters.files import write_whole

if TYPE_CHECKING:
    from pathlib import Path

RECORD_FILE = "journal.json"


@dataclass(slots=True)
class CountedLease:
    """A lease as this worker counts it, on its boot clock."""

    lease_id: str
    attempt_id: str
    job_id: str
    member_id: str
    device_ids: tuple[str, ...]
    boot_id: str
    started_boottime_ms: int
    ended_offset_ms: int | None = None
    next_sequence: int = 0
    stated_offset_ms: int = 0
    final_stated: bool = False


@dataclass(slots=True)
class PendingStatement:
    """A signed statement that the control plane has not acknowledged."""

    lease_id: str
    sequence: int
    envelope: bytes
    final: bool


@dataclass(slots=True)
class Record:
    """The whole journal."""

    term: int = 0
    sessions: int = 0
    """Begun by this worker, each counted before its hello."""
    leases: dict[str, CountedLease] = field(default_factory=dict)
    statements: list[PendingStatement] = field(default_factory=list)


class FileJournal:
    """The journal as one file, replaced as a whole: it is small, and half of it must never be read."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / RECORD_FILE

    def load(self) -> Record:
        """The journal as last saved, or an empty one. Raises ValueError where it cannot be read."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Record)
        except FileNotFoundError:
            return Record()
        except msgspec.DecodeError as error:
            raise ValueError(
                f"{self._path} is damaged ({error}); remove it, which loses the statements in it, and ask the"
                " operator to readmit this worker: without its count of sessions it looks like a cloned machine"
            ) from None

    def save(self, record: Record) -> None:
        """Durable when it returns."""
        write_whole(self._path, msgspec.json.encode(record))
