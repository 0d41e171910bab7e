"""Databases by URL: SQLite in a file by default, PostgreSQL by another URL; schema by Alembic. Blocking."""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, event, func, inspect, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import MetaData
    from sqlalchemy.pool import ConnectionPoolEntry

BUSY_TIMEOUT_MS = 15_000
"""A commit takes milliseconds; twenty that queue up behind a checkpoint finish well within this."""

CONNECTIONS_MAX = 8
"""Each connection serves one thread; more threads than this wait their turn."""

OPENERS_MAX = 100
"""Whoever opens a new file waits at most once for each other opener; one process is usual."""

PRIMARY_CODE = 0xFF
"""The low byte of SQLite's error codes; the rest only says more about it."""

ADVISORY_LOCK_ID = 0x6F726368_65720001
"""Names the lock that upgraders of one PostgreSQL database take; any number that nothing else there uses."""

NOT_OURS = "it is another program's database, or was copied or restored in part; name another one, or restore a backup"

_ALEMBIC = Lock()
"""Alembic keeps the migration that is running in module globals: two at once would mix up their connections."""

WRITES = {"orchestrator_writes": True}
"""Execution option of a transaction that will write."""


class DatabaseError(Exception):
    """A database cannot be used as it is; the text says what to do."""


class InvalidUrlError(DatabaseError):
    """The URL cannot name a durable database."""


class SchemaTooNewError(DatabaseError):
    """The database was last used by a newer version, which this one cannot read."""


class SchemaUnusableError(DatabaseError):
    """The tables are not what their version says: another program's, or a copy or backup that lacks a part."""


class DatabaseUnavailableError(DatabaseError):
    """The database cannot be reached or written now."""


def open_engine(url: str) -> Engine:
    """An engine whose commits are durable when they return. Raises DatabaseError for an unusable URL."""
    engine = create_engine(_checked_url(url), pool_size=CONNECTIONS_MAX, max_overflow=0)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def migrate(engine: Engine, migrations: Path, version_table: str, tables: MetaData) -> None:
    """Create or upgrade the ``tables`` in one transaction. Raises SchemaTooNewError for those that are ahead of this
    version, SchemaUnusableError for those that are none of any version's; nothing is changed then.

    ``version_table`` lets several schemas share one database. Upgraders queue: threads here, processes at SQLite's
    write transaction or PostgreSQL's advisory lock.
    """
    with _ALEMBIC, unavailable(engine), engine.execution_options(**WRITES).begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(select(func.pg_advisory_xact_lock(ADVISORY_LOCK_ID)))
        with _unusable(engine):
            _upgrade(connection, migrations, version_table)
            _check_tables(connection, tables)


@contextmanager
def _unusable(engine: Engine) -> Iterator[None]:
    """Statements that do not fit the tables mean that these are not ours, or not all of them."""
    try:
        yield
    except (DBAPIError, CommandError) as error:
        if isinstance(error, DBAPIError) and not _misfit(error):
            raise
        reason = " ".join(str(error.orig if isinstance(error, DBAPIError) else error).split())
        raise SchemaUnusableError(f"{engine.url.render_as_string()}: {reason}; {NOT_OURS}") from error


def _misfit(error: DBAPIError) -> bool:
    """Whether a database refuses a statement for what tables there are, and not for the state it is in itself."""
    if isinstance(error.orig, sqlite3.OperationalError):
        return error.orig.sqlite_errorcode & PRIMARY_CODE == sqlite3.SQLITE_ERROR
    return isinstance(error, ProgrammingError)


def _check_tables(connection: Connection, tables: MetaData) -> None:
    found = inspect(connection)
    names = set(found.get_table_names())
    for table in tables.sorted_tables:
        lacking = {column.name for column in table.columns}
        if table.name in names:
            lacking -= {column["name"] for column in found.get_columns(table.name)}
        if lacking:
            what = (
                f"column {min(lacking)} of table {table.name}"
                if table.name in names
                else f"table {table.name}"
            )
            raise SchemaUnusableError(
                f"{connection.engine.url.render_as_string()}: {what} is missing; {NOT_OURS}"
            )


def _upgrade(connection: Connection, migrations: Path, version_table: str) -> None:
    config = Config()
    # The option is read through an interpolation in which a percent sign is special.
    config.set_main_option("script_location", str(migrations).replace("%", "%%"))
    config.attributes["connection"] = connection
    config.attributes["version_table"] = version_table
    script = ScriptDirectory.from_config(config)
    known = {revision.revision for revision in script.walk_revisions()}
    context = MigrationContext.configure(connection, opts={"version_table": version_table})
    found = set(context.get_current_heads())
    if found - known:
        raise SchemaTooNewError(
            f"{connection.engine.url.render_as_string()} has schema {', '.join(sorted(found - known))}, this version"
            f" knows up to {script.get_current_head()}: run the newer version, or restore a backup made before it"
        )
    if found != set(script.get_heads()):
        command.upgrade(config, "head")


@contextmanager
def unavailable(engine: Engine) -> Iterator[None]:
    """Turn what the database cannot do now into one line without a password; a broken constraint is a bug."""
    try:
        yield
    except IntegrityError:
        raise
    except (DBAPIError, PoolTimeoutError) as error:
        # Drivers may answer in several lines.
        reason = " ".join(str(error.orig if isinstance(error, DBAPIError) else error).split())
        raise DatabaseUnavailableError(f"{engine.url.render_as_string()}: {reason}") from error


def _checked_url(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        # Not shown: a URL may hold a password.
        raise InvalidUrlError("not a SQLAlchemy URL such as sqlite:////path/state.db") from None
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise InvalidUrlError("a database in memory is another one for each connection; name a file")
    return parsed


def _set_up_sqlite(connection: sqlite3.Connection, _entry: ConnectionPoolEntry) -> None:
    # The driver would begin transactions by itself, but not before DDL; _begin_sqlite does so always.
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    _use_write_ahead_log(connection)
    # In WAL mode anything less may lose the last commits at a power cut, and those were acknowledged.
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    """SQLite does not wait by itself here, so several openers of a new file would fail each other."""
    for _ in range(OPENERS_MAX):
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & PRIMARY_CODE != sqlite3.SQLITE_BUSY:
                raise
        else:
            return
        # Here it does wait: for whoever is in the way.
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("COMMIT")


def _begin_sqlite(connection: Connection) -> None:
    """Writers queue at the start, where waiting is possible; a reader that becomes a writer would fail instead."""
    writes = connection.get_execution_options().get("orchestrator_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
