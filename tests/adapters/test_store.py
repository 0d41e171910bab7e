"""The store on a real file: whole batches or nothing, nothing acknowledged is lost, whatever ends the process."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from random import Random
from threading import Timer

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine
from sqlalchemy.exc import IntegrityError

from orchestrator.adapters.database import (
    DatabaseUnavailableError,
    SchemaTooNewError,
    SchemaUnusableError,
)
from orchestrator.adapters.store import VERSION_TABLE, SqlStore, metadata
from orchestrator.core.policies import Policies
from orchestrator.core.state import State
from tests.adapters.crashing_writer import batch_size, tenant_batch
from tests.properties.stories import Story

KILLS = 8
BATCHES_MAX = 12
"""What a life brings at most before it is in danger, however slow the disk is."""
DANGER_S_MAX = 0.05
"""Some batches fit into it: kills fall into every part of a commit."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "50% state.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqlStore]:
    opened = SqlStore(f"sqlite:///{path}")
    yield opened
    opened.close()


def test_store_commit_is_there_when_it_returns(store: SqlStore, path: Path) -> None:
    asyncio.run(store.commit(tenant_batch(0, 3)))
    with sqlite3.connect(path) as database:
        assert database.execute("SELECT max(version), count(*) FROM events").fetchone() == (3, 3)
    database.close()


def test_store_empty_database_loads_an_empty_state(store: SqlStore) -> None:
    state = store.load(Policies())
    assert (state.version, state.latest_ms, state.rows()) == (0, 0, State(Policies()).rows())


def test_store_reopened_has_what_was_written(store: SqlStore, path: Path) -> None:
    store.write(tenant_batch(0, 4))
    again = SqlStore(f"sqlite:///{path}")
    assert again.load(Policies()).rows() == store.load(Policies()).rows()
    again.close()


def test_store_removed_entities_are_gone_from_rows_and_kept_in_the_log(store: SqlStore) -> None:
    story = Story()
    for number in range(3):
        story.step("repeat", number)
    story.step("beat", 6)
    for transaction in story.transactions:
        store.write(transaction)
    assert any(entity is None for one in story.transactions for _, _, entity in one.rows)
    assert store.load(Policies()).requests == {} == store.replay(Policies()).requests


def test_store_version_written_before_is_refused_and_changes_nothing(store: SqlStore) -> None:
    """What keeps a second control plane on the same database from writing history twice."""
    store.write(tenant_batch(0, 4))
    before = store.load(Policies()).rows()
    with pytest.raises(IntegrityError):
        store.write(tenant_batch(3, 2))
    assert store.load(Policies()).rows() == before


def test_store_batch_that_fails_half_way_leaves_nothing(store: SqlStore) -> None:
    batch = tenant_batch(0, 4)
    torn = replace(batch, rows=[*batch.rows, ("tenants", "x", object())])  # type: ignore[list-item]
    with pytest.raises(TypeError):
        store.write(torn)
    assert store.load(Policies()).version == 0
    assert store.load(Policies()).tenants == {}


def test_store_newer_schema_is_refused_in_one_line_and_left_alone(store: SqlStore, path: Path) -> None:
    store.write(tenant_batch(0, 2))
    with sqlite3.connect(path) as database:
        database.execute(f"UPDATE {VERSION_TABLE} SET version_num = 'c9999'")
    database.close()
    with pytest.raises(SchemaTooNewError, match="c9999") as caught:
        SqlStore(f"sqlite:///{path}")
    assert "\n" not in str(caught.value)
    assert "run the newer version" in str(caught.value)
    assert store.load(Policies()).version == 2


SPOILT: dict[str, tuple[tuple[str, ...], str]] = {
    # what is wrong: by which statements, and what is said of it
    "another program's": (
        (f"DROP TABLE {VERSION_TABLE}", "DROP TABLE reservations"),
        "already exists; it is another program's database, or was copied or restored in part",
    ),
    "restored without a table": (("DROP TABLE jobs",), "table jobs is missing"),
    "restored with another table": (
        ("DROP TABLE jobs", "CREATE TABLE jobs (id TEXT PRIMARY KEY, body BLOB)"),
        "column phase of table jobs is missing",
    ),
    "half upgraded": (
        (f"UPDATE {VERSION_TABLE} SET version_num = 'c0001'",),
        "table reservations already exists",
    ),
    "upgraded twice": ((f"INSERT INTO {VERSION_TABLE} VALUES ('c0001')",), "copied or restored in part"),
    "without a version": (
        (f"DROP TABLE {VERSION_TABLE}", f"CREATE TABLE {VERSION_TABLE} (x TEXT)"),
        "no such column",
    ),
}


def dumped(path: Path, *statements: str) -> list[str]:
    """Everything in a database, after statements of somebody else."""
    with closing(sqlite3.connect(path)) as database:
        for statement in statements:
            database.execute(statement)
        database.commit()
        return list(database.iterdump())


@pytest.mark.parametrize("what", SPOILT)
def test_store_of_other_tables_is_refused_in_one_line_and_left_alone(
    store: SqlStore, path: Path, what: str
) -> None:
    statements, expected = SPOILT[what]
    store.write(tenant_batch(0, 2))
    before = dumped(path, *statements)
    with pytest.raises(SchemaUnusableError, match=expected) as caught:
        SqlStore(f"sqlite:///{path}")
    assert "\n" not in str(caught.value)
    assert "state.db" in str(caught.value)
    assert dumped(path) == before


def test_store_row_of_a_newer_version_is_refused_in_one_line_that_names_it(
    store: SqlStore, path: Path
) -> None:
    store.write(tenant_batch(0, 2))
    body = '{"tenant_id":"ten_9","name":7}'
    dumped(path, f"INSERT INTO tenants VALUES ('ten_9', '', CAST('{body}' AS BLOB))")
    with pytest.raises(SchemaUnusableError, match="row ten_9 of tenants cannot be read") as caught:
        store.load(Policies())
    assert "\n" not in str(caught.value)
    assert "run the newer version" in str(caught.value)


def test_store_that_others_write_to_is_waited_for_and_not_taken_for_foreign(
    store: SqlStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.adapters.database.BUSY_TIMEOUT_MS", 50)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(DatabaseUnavailableError, match="locked"):
            SqlStore(f"sqlite:///{path}")


def test_store_directory_that_is_none_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DatabaseUnavailableError) as caught:
        SqlStore(f"sqlite:///{tmp_path / 'file' / 'state.db'}")
    assert "\n" not in str(caught.value)


def test_store_file_that_is_no_database_is_refused_in_one_line(path: Path) -> None:
    path.write_bytes(b"this is no database" * 500)
    with pytest.raises(DatabaseUnavailableError, match="not a database") as caught:
        SqlStore(f"sqlite:///{path}")
    assert "\n" not in str(caught.value)


def test_store_database_that_cannot_be_written_is_one_line(store: SqlStore, path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute(
            "CREATE TRIGGER full BEFORE INSERT ON events BEGIN SELECT RAISE(FAIL, 'disk full'); END"
        )
    database.close()
    with pytest.raises((DatabaseUnavailableError, IntegrityError), match="disk full"):
        store.write(tenant_batch(0, 1))
    assert store.load(Policies()).version == 0


def test_store_migrations_make_the_tables_that_the_code_uses(store: SqlStore, path: Path) -> None:
    engine = create_engine(f"sqlite:///{path}")
    options = {"include_name": lambda name, kind, _: not (kind == "table" and name == VERSION_TABLE)}
    with engine.connect() as connection:
        difference = compare_metadata(MigrationContext.configure(connection, opts=options), metadata)
    engine.dispose()
    assert difference == []


@pytest.fixture
def nursery(path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.adapters.crashing_writer", str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def one_life(nursery: subprocess.Popen[str], batches: int, danger_s: float) -> int:
    """Let a writer write so many batches, kill it soon after, and return the last version it said was durable."""
    assert nursery.stdin is not None
    assert nursery.stdout is not None
    nursery.stdin.write("\n")
    _, pid, version = nursery.stdout.readline().split()
    acknowledged = int(version)
    for _ in range(batches):
        acknowledged = int(nursery.stdout.readline())
    killer = Timer(danger_s, os.kill, (int(pid), signal.SIGKILL))
    killer.start()
    while (line := nursery.stdout.readline()) not in ("dead\n", ""):
        acknowledged = int(line)
    killer.join()
    return acknowledged


def test_store_killed_at_any_moment_has_every_acknowledged_batch_and_no_torn_one(
    path: Path, nursery: subprocess.Popen[str]
) -> None:
    random = Random(4)
    before = 0
    for _ in range(KILLS):
        acknowledged = one_life(nursery, random.randint(0, BATCHES_MAX), random.random() * DANGER_S_MAX)
        store = SqlStore(f"sqlite:///{path}")
        loaded, replayed = store.load(Policies()), store.replay(Policies())
        store.close()
        assert loaded.version >= acknowledged >= before
        assert loaded.rows() == replayed.rows()
        assert loaded.version == replayed.version
        whole = 0
        while whole < loaded.version:
            whole += batch_size(whole)
        assert whole == loaded.version, "half of a batch is there"
        before = loaded.version
    assert before > KILLS
