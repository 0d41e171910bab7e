"""The tables of the books as queries see them; migrations create them, a test holds both equal."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData()

# One row, whose update every posting begins with: it orders postings, on any database, without gaps.
books = Table(
    "ledger_books",
    metadata,
    Column("name", String(16), primary_key=True),
    Column("last_position", BigInteger, nullable=False),
)

accounts = Table(
    "ledger_accounts",
    metadata,
    Column("account_id", Text, primary_key=True),
    Column("owner", Text, nullable=False),
    Index("ledger_accounts_by_owner", "owner"),
)

# `payload_sha256` tells the same receipt from another one under its id; `envelope` is exactly what was
# signed.
transfers = Table(
    "ledger_transfers",
    metadata,
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("transfer_id", Text, nullable=False, unique=True),
    Column("receipt_id", Text, nullable=False, unique=True),
    Column("debit_account_id", Text, ForeignKey("ledger_accounts.account_id"), nullable=False),
    Column("credit_account_id", Text, ForeignKey("ledger_accounts.account_id"), nullable=False),
    Column("asset", Text, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("payload_sha256", String(64), nullable=False),
    Column("envelope", LargeBinary, nullable=False),
    CheckConstraint("amount > 0", name="ledger_transfers_amount_positive"),
)

# Two per transfer: one debit and one credit, the other column zero.
entries = Table(
    "ledger_entries",
    metadata,
    Column("position", BigInteger, ForeignKey("ledger_transfers.position"), primary_key=True),
    Column("account_id", Text, ForeignKey("ledger_accounts.account_id"), primary_key=True),
    Column("asset", Text, nullable=False),
    Column("debit", BigInteger, nullable=False),
    Column("credit", BigInteger, nullable=False),
    CheckConstraint("debit >= 0 AND credit >= 0", name="ledger_entries_not_negative"),
    Index("ledger_entries_by_account", "account_id", "asset"),
)
