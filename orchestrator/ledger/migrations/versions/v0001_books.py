"""The first books: accounts, transfers with their receipts, entries."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the tables and the one row that orders postings."""
    books = op.create_table(
        "ledger_books",
        sa.Column("name", sa.String(16), primary_key=True),
        sa.Column("last_position", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(books, [{"name": "transfers", "last_position": 0}])
    op.create_table(
        "ledger_accounts",
        sa.Column("account_id", sa.Text, primary_key=True),
        sa.Column("owner", sa.Text, nullable=False),
    )
    op.create_index("ledger_accounts_by_owner", "ledger_accounts", ["owner"])
    op.create_table(
        "ledger_transfers",
        sa.Column("position", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("transfer_id", sa.Text, nullable=False, unique=True),
        sa.Column("receipt_id", sa.Text, nullable=False, unique=True),
        sa.Column("debit_account_id", sa.Text, sa.ForeignKey("ledger_accounts.account_id"), nullable=False),
        sa.Column("credit_account_id", sa.Text, sa.ForeignKey("ledger_accounts.account_id"), nullable=False),
        sa.Column("asset", sa.Text, nullable=False),
        sa.Column("amount", sa.BigInteger, nullable=False),
        sa.Column("payload_sha256", sa.String(64), nullable=False),
        sa.Column("envelope", sa.LargeBinary, nullable=False),
        sa.CheckConstraint("amount > 0", name="ledger_transfers_amount_positive"),
    )
    op.create_table(
        "ledger_entries",
        sa.Column("position", sa.BigInteger, sa.ForeignKey("ledger_transfers.position"), primary_key=True),
        sa.Column("account_id", sa.Text, sa.ForeignKey("ledger_accounts.account_id"), primary_key=True),
        sa.Column("asset", sa.Text, nullable=False),
        sa.Column("debit", sa.BigInteger, nullable=False),
        sa.Column("credit", sa.BigInteger, nullable=False),
        sa.CheckConstraint("debit >= 0 AND credit >= 0", name="ledger_entries_not_negative"),
    )
    op.create_index("ledger_entries_by_account", "ledger_entries", ["account_id", "asset"])
