"""The first schema: one table of rows per kind of entity, and the event log."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "c0001"
down_revision = None
branch_labels = None
depends_on = None

ROW_TABLES = (
    "control",
    "requests",
    "suppliers",
    "tenants",
    "tokens",
    "workers",
    "clusters",
    "members",
    "jobs",
    "attempts",
    "leases",
    "statements",
    "receipts",
)


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "events",
        sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("type_version", sa.Integer, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
    for name in ROW_TABLES:
        op.create_table(
            name,
            sa.Column("id", sa.Text, primary_key=True),
            sa.Column("phase", sa.Text, nullable=False),
            sa.Column("body", sa.LargeBinary, nullable=False),
        )


def downgrade() -> None:
    """There is nothing before the first schema; a backup is the way back."""
    raise NotImplementedError("restore a backup instead")
