"""The peer of P4: a bare SQLite database that is handed finished bytes."""

from __future__ import annotations

import sqlite3
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy.dialects import sqlite

from orchestrator.adapters import codec
from orchestrator.adapters.store import events, rows

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from orchestrator.adapters.store import Transaction
    from orchestrator.core.state import Entity

PRAGMAS = ("busy_timeout = 15000", "journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON")
"""As the store sets them."""

INSERT_EVENT = "INSERT INTO events (version, at_ms, type, type_version, body) VALUES (?, ?, ?, ?, ?)"

Value = int | str | bytes


@dataclass(frozen=True, slots=True)
class Group:
    """One transaction, as statements and their parameters."""

    events: list[tuple[Value, ...]]
    upserts: list[tuple[str, list[tuple[Value, ...]]]]
    deletes: list[tuple[str, str]]


def group_of(transaction: Transaction) -> Group:
    """A recorded transaction in the form that needs no more work."""
    log: list[tuple[Value, ...]] = []
    for version, event in enumerate(transaction.events, start=transaction.base_version + 1):
        name = type(event).__name__
        log.append((version, transaction.at_ms, name, codec.event_version(name), codec.encode(event)))
    upserts: dict[str, list[tuple[Value, ...]]] = {}
    deletes: list[tuple[str, str]] = []
    for table, key, entity in transaction.rows:
        if entity is None:
            deletes.append((f"DELETE FROM {table} WHERE id = ?", key))  # noqa: S608 -- a table of ours
        else:
            upserts.setdefault(table, []).append((key, _phase(entity), codec.encode(entity)))
    return Group(log, [(UPSERTS[table], values) for table, values in upserts.items()], deletes)
