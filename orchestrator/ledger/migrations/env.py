"""Run by Alembic inside the connection and transaction that orchestrator.ledger.schema hands over."""

from __future__ import annotations

from alembic import context

from orchestrator.ledger.schema import VERSION_TABLE

context.configure(connection=context.config.attributes["connection"], version_table=VERSION_TABLE)
context.run_migrations()
