"""The peer of P4: a bare SQLite database that is handed finished statements.

What is replayed is what the store really sent: its transactions are written once more, beside the clock, and each
statement is taken down on its way into the driver.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event

from orchestrator.adapters.store import SqlStore, Transaction

PRAGMAS = ("busy_timeout = 15000", "journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON")
"""As the store sets them."""

BEGIN = "BEGIN IMMEDIATE"

Statement = tuple[str, list[Any], bool]
"""SQL, its parameters, and whether they are those of many executions."""

Group = list[Statement]


def groups_of(database: Path, transactions: Sequence[Transaction]) -> list[Group]:
    """The statements of each transaction; writes them into ``database``, which must be as before the first."""
    groups: list[Group] = []

    def take_down(*call: Any) -> None:
        _connection, _cursor, sql, parameters, _context, many = call
        if not sql.startswith("BEGIN"):
            groups[-1].append((sql, list(parameters), many))

    store = SqlStore(f"sqlite:///{database}")
    event.listen(Engine, "before_cursor_execute", take_down)
    try:
        for transaction in transactions:
            groups.append([])
            store.write(transaction)
    finally:
        event.remove(Engine, "before_cursor_execute", take_down)
        store.close()
    return groups


@contextmanager
def opened(database: Path) -> Iterator[sqlite3.Connection]:
    """A connection as the store's are, without anything around it."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        for pragma in PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")
        yield connection


def write(connection: sqlite3.Connection, group: Group, added_s: float) -> float:
    """One durable transaction; the seconds it took, ``added_s`` included."""
    began_s = time.perf_counter()
    connection.execute(BEGIN)
    for sql, parameters, many in group:
        if many:
            connection.executemany(sql, parameters)
        else:
            connection.execute(sql, parameters)
    connection.execute("COMMIT")
    if added_s:
        time.sleep(added_s)
    return time.perf_counter() - began_s
