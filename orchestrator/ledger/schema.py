"""Brings a database to this version's schema, in one transaction, and refuses one that is ahead of it."""

from __future__ import annotations

from pathlib import Path
from threading import Lock

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, func, select

from orchestrator.ledger.port import SchemaTooNew

# Its own name, so that the books may share a database with other tables.
VERSION_TABLE = "ledger_schema_version"

# Names the lock that upgraders of one PostgreSQL database take; any number that nothing else there uses.
ADVISORY_LOCK_ID = 0x6C656467_65720001

# Alembic keeps the migration that is running in module globals: two at once would mix up their connections.
_ALEMBIC = Lock()


def bring_up_to_date(connection: Connection) -> None:
    """Create or upgrade the tables within the caller's transaction. Raises SchemaTooNew.

    Upgraders queue: threads here, processes at SQLite's write transaction or PostgreSQL's advisory lock.
    """
    with _ALEMBIC:
        if connection.dialect.name == "postgresql":
            connection.execute(select(func.pg_advisory_xact_lock(ADVISORY_LOCK_ID)))
        _upgrade(connection)


def _upgrade(connection: Connection) -> None:
    config = Config()
    # The option is read through an interpolation in which a percent sign is special.
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    script = ScriptDirectory.from_config(config)
    known = {revision.revision for revision in script.walk_revisions()}
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    found = set(context.get_current_heads())
    if found - known:
        raise SchemaTooNew(
            f"the ledger's database has schema {', '.join(sorted(found - known))}, this version knows up to "
            f"{script.get_current_head()}: run the newer version, or restore a backup made before the upgrade"
        )
    if found != set(script.get_heads()):
        command.upgrade(config, "head")
