"""The books in a database: SQLite in a file by default, PostgreSQL by another URL. Blocking; call it on a
thread.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, create_engine, event, func, insert, select, update
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import ConnectionPoolEntry

from orchestrator.ledger.core import AccountId, Asset, Balance, Transfer, TransferId, account_owner
from orchestrator.ledger.port import ConflictingReceipt, LedgerUnavailable, RefusedArgument
from orchestrator.ledger.schema import bring_up_to_date
from orchestrator.ledger.tables import accounts, books, entries, transfers

# A posting takes about 5 ms on a slow disk; twenty that queue up, and a checkpoint, finish well within this.
BUSY_TIMEOUT_MS = 15_000
# Each connection serves one thread; more threads than this wait their turn.
CONNECTIONS_MAX = 8

# Whoever opens a new file waits at most once for each other opener; one process is usual.
OPENERS_MAX = 100

# The low byte of SQLite's error codes; the rest only says more about it.
_PRIMARY_CODE = 0xFF
_BOOK_NAME = "transfers"
_WRITES = {"ledger_writes": True}


class LedgerStore:
    """Accounts, transfers and entries, written together or not at all."""

    def __init__(self, engine: Engine) -> None:
        """Use ``open_store``, which also brings the schema up to date."""
        self._engine = engine
        self._writer = engine.execution_options(**_WRITES)

    def post(self, transfer: Transfer, envelope: bytes, payload_sha256: str) -> bool:
        """Book a transfer with the receipt it comes from; False if it already was. Durable once this returns.

        Raises ConflictingReceipt if another payload stands under the receipt's id, or LedgerUnavailable.
        """
        with _unavailable(self._engine), self._writer.begin() as connection:
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
        with _unavailable(self._engine), self._engine.connect() as connection:
            rows = connection.execute(query).all()
        # Sorted here, because databases collate text differently; PostgreSQL sums to a decimal.
        return tuple(
            sorted(
                Balance(AccountId(account_id), Asset(asset), int(debits), int(credits_))
                for account_id, asset, debits, credits_ in rows
            )
        )

    def transfers(self, after: str, page_size: int) -> tuple[Transfer, ...]:
        """Those booked after the named one, oldest first. Raises RefusedArgument or LedgerUnavailable."""
        with _unavailable(self._engine), self._engine.connect() as connection:
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
        with _unavailable(self._engine), self._engine.connect() as connection:
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
    engine = _engine(_checked_url(url))
    try:
        with _unavailable(engine), engine.execution_options(**_WRITES).begin() as connection:
            bring_up_to_date(connection)
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


def _checked_url(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        # Not shown: a URL may hold a password.
        raise RefusedArgument(
            "ledger_url", "not a SQLAlchemy URL such as sqlite:////path/ledger.db"
        ) from None
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise RefusedArgument("ledger_url", "books in memory would differ per connection; name a file")
    return parsed


def _engine(url: URL) -> Engine:
    engine = create_engine(url, pool_size=CONNECTIONS_MAX, max_overflow=0)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


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
            if error.sqlite_errorcode & _PRIMARY_CODE != sqlite3.SQLITE_BUSY:
                raise
        else:
            return
        # Here it does wait: for whoever is in the way.
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("COMMIT")


def _begin_sqlite(connection: Connection) -> None:
    """Writers queue at the start, where waiting is possible; a reader that becomes a writer would fail
    instead.
    """
    writes = connection.get_execution_options().get("ledger_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def _unavailable(engine: Engine) -> Iterator[None]:
    """Turn what the database cannot do now into LedgerUnavailable, in one line and without a password."""
    try:
        yield
    except IntegrityError:
        raise
    except (DBAPIError, PoolTimeoutError) as error:
        # Drivers may answer in several lines.
        reason = " ".join(str(error.orig if isinstance(error, DBAPIError) else error).split())
        raise LedgerUnavailable(f"ledger database {engine.url.render_as_string()}: {reason}") from error
