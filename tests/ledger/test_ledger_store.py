"""The books in a real database: once each, in any order, by any number of posters."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from threading import Barrier

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.schema import CreateTable

from orchestrator.ledger.core import book
from orchestrator.ledger.port import ConflictingReceipt, LedgerUnavailable, RefusedArgument, SchemaTooNew
from orchestrator.ledger.store import VERSION_TABLE, LedgerStore, open_store
from orchestrator.ledger.tables import metadata
from orchestrator.receipts.ids import sha256_hex
from orchestrator.receipts.receipt import Receipt
from tests.ledger.books import add_up
from tests.receipts.samples import make_receipt, sign_receipt

RACERS = 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "50% ledger.db"


@pytest.fixture
def store(path: Path) -> Iterator[LedgerStore]:
    opened = open_store(f"sqlite:///{path}")
    yield opened
    opened.close()


def post(store: LedgerStore, receipt: Receipt) -> bool:
    return store.post(book(receipt), sign_receipt(receipt), sha256_hex(receipt.payload()))


def many(count: int) -> list[Receipt]:
    """Receipts of three suppliers in two classes, all different."""
    return [
        make_receipt(
            sequence=n,
            supplier_id=f"sup_{n % 3}",
            hardware_class=("consumer", "miner")[n % 2],
            device_ids=tuple(f"GPU-{d}" for d in range(1 + n % 4)),
        )
        for n in range(count)
    ]


@pytest.mark.parametrize("seed", [1, 2])
def test_post_thousand_shuffled_postings_give_the_same_books(store: LedgerStore, seed: int) -> None:
    receipts = many(100)
    expected = add_up(book(receipt) for receipt in receipts)
    postings = receipts * 10
    Random(seed).shuffle(postings)
    booked = [post(store, receipt) for receipt in postings]
    assert sum(booked) == len(receipts)
    assert store.balances("") == expected
    assert add_up(store.transfers("", 1000)) == expected
    assert store.totals()[1] == 0


def test_post_racing_posters_of_one_receipt_book_it_once(path: Path, store: LedgerStore) -> None:
    receipt = make_receipt()
    others = [open_store(f"sqlite:///{path}") for _ in range(3)]
    stores = [store, *others]
    together = Barrier(RACERS)

    def race(number: int) -> bool:
        together.wait()
        return post(stores[number % len(stores)], receipt)

    with ThreadPoolExecutor(RACERS) as threads:
        booked = list(threads.map(race, range(RACERS)))
    assert sum(booked) == 1
    assert store.balances("") == add_up([book(receipt)])
    for other in others:
        other.close()


def test_post_racing_posters_of_many_receipts_keep_one_order(path: Path, store: LedgerStore) -> None:
    receipts = many(RACERS * 3)
    other = open_store(f"sqlite:///{path}")

    def race(number: int) -> list[bool]:
        order = list(receipts)
        Random(number).shuffle(order)
        return [post((store, other)[number % 2], receipt) for receipt in order]

    with ThreadPoolExecutor(RACERS) as threads:
        booked = [one for each in threads.map(race, range(RACERS)) for one in each]
    assert sum(booked) == len(receipts)
    assert store.balances("") == add_up(book(receipt) for receipt in receipts)
    with sqlite3.connect(path) as connection:
        positions = connection.execute("SELECT position FROM ledger_transfers ORDER BY position").fetchall()
    connection.close()
    assert [position for (position,) in positions] == list(range(1, len(receipts) + 1))
    other.close()


def test_open_store_racing_openers_of_a_new_file_agree(path: Path) -> None:
    together = Barrier(4)

    def race(_number: int) -> LedgerStore:
        together.wait()
        return open_store(f"sqlite:///{path}")

    with ThreadPoolExecutor(4) as threads:
        stores = list(threads.map(race, range(4)))
    assert [post(store, make_receipt()) for store in stores] == [True, False, False, False]
    for store in stores:
        store.close()


def test_post_other_receipt_under_the_same_id_is_refused(store: LedgerStore) -> None:
    first = make_receipt()
    other = make_receipt(supplier_id="sup_thief")
    assert first.receipt_id == other.receipt_id
    post(store, first)
    with pytest.raises(ConflictingReceipt, match=first.receipt_id):
        post(store, other)
    assert store.balances("") == add_up([book(first)])
    assert store.envelope(first.receipt_id) == sign_receipt(first)
    assert not post(store, first)


def test_totals_of_damaged_books_do_not_add_up(path: Path, store: LedgerStore) -> None:
    assert store.totals() == (0, 0)
    for receipt in many(5):
        post(store, receipt)
    assert store.totals() == (5, 0)
    with sqlite3.connect(path) as connection:
        connection.execute(
            "UPDATE ledger_entries SET credit = credit + 3"
            " WHERE rowid = (SELECT min(rowid) FROM ledger_entries WHERE credit > 0)"
        )
    connection.close()
    assert store.totals() == (5, -3)


def test_open_store_again_finds_what_was_posted(path: Path) -> None:
    receipts = many(5)
    before = open_store(f"sqlite:///{path}")
    for receipt in receipts:
        post(before, receipt)
    before.close()
    after = open_store(f"sqlite:///{path}")
    assert after.balances("") == add_up(book(receipt) for receipt in receipts)
    assert [t.receipt_id for t in after.transfers("", 10)] == [receipt.receipt_id for receipt in receipts]
    assert [after.envelope(r.receipt_id) for r in receipts] == [sign_receipt(r) for r in receipts]
    assert after.envelope("rct_none") is None
    after.close()


def test_open_store_sqlite_uses_a_write_ahead_log(path: Path, store: LedgerStore) -> None:
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_open_store_newer_schema_is_refused_and_left_alone(path: Path, store: LedgerStore) -> None:
    post(store, make_receipt())
    store.close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(SchemaTooNew, match="9999") as caught:
        open_store(f"sqlite:///{path}")
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before


def test_open_store_that_lacks_a_table_is_refused_in_one_line(path: Path, store: LedgerStore) -> None:
    store.close()
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE ledger_entries")
    connection.close()
    with pytest.raises(LedgerUnavailable, match="table ledger_entries is missing") as caught:
        open_store(f"sqlite:///{path}")
    assert "restore a backup" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_migrations_result_equals_the_tables(path: Path, store: LedgerStore) -> None:
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def test_tables_compile_for_postgresql() -> None:
    dialect = make_url("postgresql+psycopg://").get_dialect()()
    compiled = [str(CreateTable(table).compile(dialect=dialect)) for table in metadata.sorted_tables]
    assert len(compiled) == 4
    assert any("BYTEA" in statement for statement in compiled)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "not a url", ""])
def test_open_store_unusable_url_is_refused(url: str) -> None:
    with pytest.raises(RefusedArgument) as caught:
        open_store(url)
    assert caught.value.field == "ledger_url"


def test_open_store_missing_folder_says_where(tmp_path: Path) -> None:
    with pytest.raises(LedgerUnavailable) as caught:
        open_store(f"sqlite:///{tmp_path}/absent/ledger.db")
    assert "absent/ledger.db" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_open_store_no_database_file_is_unavailable(path: Path) -> None:
    path.write_bytes(b"this is not a database, and never was one" * 100)
    with pytest.raises(LedgerUnavailable):
        open_store(f"sqlite:///{path}")


def test_transfers_after_unknown_one_is_refused(store: LedgerStore) -> None:
    with pytest.raises(RefusedArgument) as caught:
        store.transfers("trf_none", 10)
    assert caught.value.field == "after_transfer_id"
