"""The books in a database: SQLite in a file by default, PostgreSQL by another URL. Blocking; call it on a
thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, func, insert, select, update

from orchestrator.adapters.database import (
    WRITES,
    DatabaseUnavailableError,
    InvalidUrlError,
    SchemaTooNewError,
    SchemaUnusableError,
    migrate,
    open_engine,
    unavailable,
)
from orchestrator.ledger.core import AccountId, Asset, Balance, Transfer, TransferId, account_owner
from orchestrator.ledger.port import ConflictingReceipt, LedgerUnavailable, RefusedArgument, SchemaTooNew
from orchestrator.ledger.tables import accounts, books, entries, metadata, transfers

MIGRATIONS = Path(__file__).parent / "migrations"
# Its own name, so that the books may share a database with other tables.
VERSION_TABLE = "ledger_schema_version"

_BOOK_NAME = "transfers"


class LedgerStore:
    """Accounts, transfers and entries, written together or not at all."""

    def __init__(self, engine: Engine) -> None:
        """Use ``open_store``, which also brings the schema up to date."""
        self._engine = engine
        self._writer = engine.execution_options(**WRITES)

    def post(self, transfer: Transfer, envelope: bytes, payload_sha256: str) -> bool:
        """Book a transfer with the receipt it comes from; False if it already was. Durable once this returns.

        Raises ConflictingReceipt if another payload stands under the receipt's id, or LedgerUnavailable.
        """
        with _as_ledger_errors(), unavailable(self._engine), self._writer.begin() as connection:
            # Taking this row first makes posters queue, so what is read below cannot change before the
            # commit. (SQLite has no row locks; there BEGIN IMMEDIATE has queued them already.)
            last: int = connection.execute(
                select(books.c.last_position).where(books.c.name == _BOOK_NAME).with_for_update()
            ).scalar_one()
            stored = connection.scalar(
                select(transfers.c.payload_sha256).where(transfers.c.receipt_id == transfer.receipt_id)
            )
            if stored is None:
                _insert(connection, last + 1, transfer, envelope, payload_sha256)
                return True
        if stored != payload_sha256:
            raise ConflictingReceipt(
                f"receipt_id: another receipt is booked as {transfer.receipt_id}; it stays"
            )
        return False

    def balances(self, owner: str) -> tuple[Balance, ...]:
        """Sums by account and asset, of one owner or, if empty, of all. Raises LedgerUnavailable."""
        query = select(
            entries.c.account_id, entries.c.asset, func.sum(entries.c.debit), func.sum(entries.c.credit)
        ).group_by(entries.c.account_id, entries.c.asset)
        if owner:
            query = query.join_from(entries, accounts).where(accounts.c.owner == owner)
        with _as_ledger_errors(), unavailable(self._engine), self._engine.connect() as connection:
            rows = connection.execute(query).all()
        # Sorted here, because databases collate text differently; PostgreSQL sums to a decimal.
        return tuple(
            sorted(
                Balance(AccountId(account_id), Asset(asset), int(debits), int(credits_))
                for account_id, asset, debits, credits_ in rows
            )
        )

    def totals(self) -> tuple[int, int]:
        """(transfers booked, debits less credits over all entries): the second is 0, or the books are damaged.

        A walk over all entries. Raises LedgerUnavailable.
        """
        with _as_ledger_errors(), unavailable(self._engine), self._engine.connect() as connection:
            booked = connection.scalar(select(func.count()).select_from(transfers))
            debits, credits_ = connection.execute(
                select(func.sum(entries.c.debit), func.sum(entries.c.credit))
            ).one()
        return int(booked or 0), int(debits or 0) - int(credits_ or 0)

    def transfers(self, after: str, page_size: int) -> tuple[Transfer, ...]:
        """Those booked after the named one, oldest first. Raises RefusedArgument or LedgerUnavailable."""
        with _as_ledger_errors(), unavailable(self._engine), self._engine.connect() as connection:
            position = 0
            if after:
                found = connection.scalar(
                    select(transfers.c.position).where(transfers.c.transfer_id == after)
                )
                if found is None:
                    raise RefusedArgument("after_transfer_id", f"no transfer {after} is in these books")
                position = found
            query = (
                select(
                    transfers.c.transfer_id,
                    transfers.c.receipt_id,
                    transfers.c.debit_account_id,
                    transfers.c.credit_account_id,
                    transfers.c.asset,
                    transfers.c.amount,
                )
                .where(transfers.c.position > position)
                .order_by(transfers.c.position)
                .limit(page_size)
            )
            rows = connection.execute(query).all()
        return tuple(
            Transfer(
                TransferId(transfer_id), receipt_id, AccountId(debit), AccountId(credit), Asset(asset), amount
            )
            for transfer_id, receipt_id, debit, credit, asset, amount in rows
        )

    def envelope(self, receipt_id: str) -> bytes | None:
        """The exact envelope a receipt was booked from, if it was. Raises LedgerUnavailable."""
        query = select(transfers.c.envelope).where(transfers.c.receipt_id == receipt_id)
        with _as_ledger_errors(), unavailable(self._engine), self._engine.connect() as connection:
            found: bytes | None = connection.scalar(query)
        return found

    def close(self) -> None:
        """Give every connection back."""
        self._engine.dispose()


def open_store(url: str) -> LedgerStore:
    """Open the books at a SQLAlchemy URL such as ``sqlite:////var/lib/orch/ledger.db``, made or upgraded as
    needed.

    Raises RefusedArgument for a URL that cannot hold books, SchemaTooNew, or LedgerUnavailable.
    """
    with _as_ledger_errors():
        engine = open_engine(url)
        try:
            migrate(engine, MIGRATIONS, VERSION_TABLE, metadata)
        except BaseException:
            engine.dispose()
            raise
    return LedgerStore(engine)


def _insert(
    connection: Connection, position: int, transfer: Transfer, envelope: bytes, payload_sha256: str
) -> None:
    connection.execute(update(books).where(books.c.name == _BOOK_NAME).values(last_position=position))
    for account_id in (transfer.debit_account_id, transfer.credit_account_id):
        if connection.scalar(select(accounts.c.owner).where(accounts.c.account_id == account_id)) is None:
            connection.execute(
                insert(accounts).values(account_id=account_id, owner=account_owner(account_id))
            )
    connection.execute(
        insert(transfers).values(
            position=position,
            transfer_id=transfer.transfer_id,
            receipt_id=transfer.receipt_id,
            debit_account_id=transfer.debit_account_id,
            credit_account_id=transfer.credit_account_id,
            asset=transfer.asset,
            amount=transfer.amount,
            payload_sha256=payload_sha256,
            envelope=envelope,
        )
    )
    shared = {"position": position, "asset": transfer.asset}
    connection.execute(
        insert(entries),
        [
            {**shared, "account_id": transfer.debit_account_id, "debit": transfer.amount, "credit": 0},
            {**shared, "account_id": transfer.credit_account_id, "debit": 0, "credit": transfer.amount},
        ],
    )


@contextmanager
def _as_ledger_errors() -> Iterator[None]:
    """What the database adapter says, in the words of the books' callers."""
    try:
        yield
    except InvalidUrlError as error:
        raise RefusedArgument("ledger_url", str(error)) from None
    except SchemaTooNewError as error:
        raise SchemaTooNew(str(error)) from None
    except (DatabaseUnavailableError, SchemaUnusableError) as error:
        raise LedgerUnavailable(f"ledger database {error}") from error
