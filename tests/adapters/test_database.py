"""Databases by URL: what is refused at the door, and that a commit is on the disk when it returns."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import text

from orchestrator.adapters.database import DatabaseError, DatabaseUnavailableError, open_engine, unavailable


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("state.db", "not a SQLAlchemy URL"),
        ("", "not a SQLAlchemy URL"),
        ("sqlite://", "name a file"),
        ("sqlite:///:memory:", "name a file"),
    ],
)
def test_open_engine_unusable_url_is_refused_in_one_line(url: str, words: str) -> None:
    with pytest.raises(DatabaseError, match=words) as caught:
        open_engine(url)
    assert "\n" not in str(caught.value)


def test_open_engine_unusable_url_is_not_shown() -> None:
    with pytest.raises(DatabaseError) as caught:
        open_engine("postgresql//me:hunter2@db/x")
    assert "hunter2" not in str(caught.value)


def test_open_engine_sqlite_commits_are_flushed_to_the_disk(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path / 'state.db'}")
    with engine.connect() as connection:
        found = {
            name: connection.execute(text(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    engine.dispose()
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


def test_unavailable_database_error_is_one_line_with_the_place(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "state.db"
    engine = open_engine(f"sqlite:///{path}")
    with pytest.raises(DatabaseUnavailableError, match="unable to open") as caught, unavailable(engine):
        engine.connect()
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
