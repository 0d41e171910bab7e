"""The control plane's durable memory: rows of current state and the event log, written in one transaction.

Rows are for loading and for SQL; the log is for audit. Both come from the same events. Commits run on one thread of
their own, so that the loop can gather the next batch meanwhile.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    BigInteger,
    Column,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    delete,
    func,
    insert,
    select,
)
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from orchestrator.adapters import codec
from orchestrator.adapters.database import WRITES, SchemaUnusableError, migrate, open_engine, unavailable
from orchestrator.core.apply import apply
from orchestrator.core.entities import TABLES, Entity
from orchestrator.core.policies import Policies
from orchestrator.core.state import State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection, Engine

    from orchestrator.core import messages as m

MIGRATIONS = Path(__file__).parent / "migrations"
VERSION_TABLE = "control_schema_version"

POSITIONAL = {"sqlite": "qmark", "postgresql": "format"}
"""How each database's driver marks parameters that come as tuples."""

metadata = MetaData()

events = Table(
    "events",
    metadata,
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("type", Text, nullable=False),
    Column("type_version", Integer, nullable=False),
    Column("body", LargeBinary, nullable=False),
)

rows: dict[str, Table] = {
    name: Table(
        name,
        metadata,
        Column("id", Text, primary_key=True),
        Column("phase", Text, nullable=False),
        Column("body", LargeBinary, nullable=False),
    )
    for name in TABLES
}


@dataclass(frozen=True, slots=True)
class Transaction:
    """One batch: events with consecutive versions after ``base_version``, and the rows they changed."""

    base_version: int
    at_ms: int
    events: Sequence[m.Event]
    rows: Sequence[tuple[str, str, Entity | None]]
    """(table, key, entity); None deletes the row."""


class SqlStore:
    """Rows and log in a SQL database. ``commit`` is durable when it returns."""

    def __init__(self, url: str) -> None:
        """Open, and create or upgrade the tables. Raises DatabaseError."""
        self._engine: Engine = open_engine(url)
        try:
            migrate(self._engine, MIGRATIONS, VERSION_TABLE, metadata)
        except BaseException:
            self._engine.dispose()
            raise
        self._writer = self._engine.execution_options(**WRITES)
        # Compiled once, and handed to the driver with plain tuples: over a thousand rows a commit, what is done for
        # each of them is most of the work.
        self._insert_events = self._compiled(insert(events))
        self._upserts = {name: self._compiled(self._upsert(table)) for name, table in rows.items()}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")

    async def commit(self, transaction: Transaction) -> None:
        """Write a batch, all or nothing."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self.write, transaction)

    def write(self, transaction: Transaction) -> None:
        """What ``commit`` does on its thread."""
        with unavailable(self._engine), self._writer.begin() as connection:
            log = []
            for version, event in enumerate(transaction.events, start=transaction.base_version + 1):
                name = type(event).__name__
                row = (version, transaction.at_ms, name, codec.event_version(name), codec.encode(event))
                log.append(row)
            if log:
                connection.exec_driver_sql(self._insert_events, log)
            self._write_rows(connection, transaction)

    def _write_rows(self, connection: Connection, transaction: Transaction) -> None:
        written: dict[str, list[tuple[str, str, bytes]]] = {}
        for table, key, entity in transaction.rows:
            if entity is None:
                connection.execute(delete(rows[table]).where(rows[table].c.id == key))
            else:
                written.setdefault(table, []).append((key, _phase(entity), codec.encode(entity)))
        for table, values in written.items():
            connection.exec_driver_sql(self._upserts[table], values)

    def load(self, policies: Policies) -> State:
        """The state as its rows say. Raises DatabaseError."""
        state = State(policies)
        with unavailable(self._engine), self._engine.begin() as connection:
            for name, table in rows.items():
                for row in connection.execute(select(table.c.id, table.c.body).order_by(table.c.id)):
                    state.put(self._entity(name, row.id, row.body))
            state.version = connection.scalar(select(func.max(events.c.version))) or 0
            state.latest_ms = connection.scalar(select(func.max(events.c.at_ms))) or 0
        state.take_touched()
        return state

    def _entity(self, table: str, key: str, body: bytes) -> Entity:
        try:
            return codec.decode_entity(table, body)
        except codec.UnreadableError as error:
            raise SchemaUnusableError(
                f"{self._engine.url.render_as_string()}: row {key} of {table} cannot be read: {error}; a newer version"
                " has written it, or it is damaged: run the newer version, or restore a backup"
            ) from error

    def replay(self, policies: Policies) -> State:
        """The state as its log says: what audits and tests compare with ``load``."""
        state = State(policies)
        with unavailable(self._engine), self._engine.begin() as connection:
            for row in connection.execute(select(events).order_by(events.c.version)):
                apply(state, codec.decode_event(row.type, row.type_version, row.body), row.at_ms)
        state.take_touched()
        return state

    def close(self) -> None:
        """Finish the commit under way and give every connection back."""
        self._thread.shutdown(wait=True)
        self._engine.dispose()

    def _upsert(self, table: Table) -> Any:
        make = postgresql_insert if self._engine.dialect.name == "postgresql" else sqlite_insert
        statement = make(table)
        changed = {"phase": statement.excluded.phase, "body": statement.excluded.body}
        return statement.on_conflict_do_update(index_elements=[table.c.id], set_=changed)

    def _compiled(self, statement: Any) -> str:
        """The driver's text of an insertion whose parameters are the table's columns in their order."""
        dialect: Any = type(self._engine.dialect)
        marks = POSITIONAL[self._engine.dialect.name]
        return str(statement.compile(dialect=dialect(paramstyle=marks)))


def _phase(entity: Entity) -> str:
    """What one would filter a table by: a phase, status, liveness or role."""
    for name in ("phase", "status", "liveness", "role"):
        value = getattr(entity, name, None)
        if value is not None:
            return str(value)
    return ""
