"""`orch serve` that cannot use what it finds: one line, exit code 2, nothing changed, and never ready meanwhile."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from deploy.local.ports import free_ports
from orchestrator.api.v1 import operator_pb2
from tests.control.serving import START_S, command, environment, refusal, serving
from tests.polling import wait_until

SECRET = "hunter2"


def edited(path: Path, *statements: str) -> None:
    """Change a database as somebody else would."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        for statement in statements:
            database.execute(statement)
        database.commit()


def content(path: Path) -> list[str]:
    """Everything in a database, as text."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        return list(database.iterdump())


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory that a control plane has used and left."""
    folder = tmp_path_factory.mktemp("network") / "data"
    with serving(folder) as serve:
        assert serve.interrupt() == 0
    return folder


@pytest.fixture
def folder(used: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoilt."""
    subprocess.run(["cp", "-a", str(used), str(tmp_path / "data")], check=True)
    return tmp_path / "data"


SPOILT: dict[str, tuple[str, tuple[str, ...], str]] = {
    # what is wrong: in which database, by which statements, and what is said of it
    "half upgraded": (
        "control.db",
        ("UPDATE control_schema_version SET version_num = 'c0001'",),
        "table reservations already exists; it is another program's database, or was copied",
    ),
    "with a ledger of a newer version": (
        "ledger.db",
        ("UPDATE ledger_schema_version SET version_num = 'v9999'",),
        "run the newer version, or restore a backup",
    ),
    "with a ledger that lacks its books": (
        "ledger.db",
        ("DROP TABLE ledger_entries",),
        "table ledger_entries is missing",
    ),
}


@pytest.mark.parametrize("what", SPOILT)
def test_serve_database_that_is_spoilt_is_one_line_and_is_left_as_it_is(folder: Path, what: str) -> None:
    name, statements, expected = SPOILT[what]
    edited(folder / name, *statements)
    before = content(folder / name)
    said = refusal(folder)
    assert expected in said
    assert name in said
    assert content(folder / name) == before


@pytest.mark.parametrize("path", ["/proc/sys", "/dev/null/data"])
def test_serve_data_dir_that_cannot_be_written_is_one_line(path: str) -> None:
    assert f"--data-dir: cannot use {path}" in refusal(Path(path))


@pytest.mark.parametrize(
    ("flag", "text", "expected"),
    [
        ("--database-url-file", f"mysql://me:{SECRET}@db/x", "must begin with"),
        ("--admin-token-file", SECRET, "could be guessed"),
        ("--metrics-token-file", "", "is empty"),
        ("--metrics-token-file", f"{SECRET}\n{SECRET}\n", "something else than one word"),
        ("--config", f"database_uri = '{SECRET}'", "did you mean database_url?"),
    ],
)
def test_serve_file_that_does_not_do_is_one_line_without_what_it_holds(
    tmp_path: Path, flag: str, text: str, expected: str
) -> None:
    path = tmp_path / "given"
    path.write_text(text)
    said = refusal(tmp_path / "data", flag, str(path))
    assert expected in said
    assert SECRET not in said
    assert flag == "--config" or (flag in said and str(path) in said)


def ready_at(port: int) -> int:
    """The status of the readiness page; 0 where nobody listens."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=START_S) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def refused(process: subprocess.Popen[str], port: int, answers: list[int]) -> str:
    """The one line with which a control plane ends that was never ready; its readiness is added to the answers."""

    def ended() -> bool:
        answers.append(ready_at(port))
        return process.poll() is not None

    wait_until(ended, what="the end", deadline_s=START_S)
    _, said = process.communicate(timeout=START_S)
    assert process.returncode == 2
    assert len(said.splitlines()) == 1
    assert set(answers) <= {0, 503}
    return said


def test_serve_with_a_secret_that_cannot_be_read_is_never_ready(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    given = ("--admin-token-file", str(tmp_path), "--metrics", f"127.0.0.1:{port}")
    answers: list[int] = []
    process = subprocess.Popen(
        command(tmp_path / "data", *given), env=environment(), stderr=subprocess.PIPE, text=True
    )

    said = refused(process, port, answers)
    assert "--admin-token-file" in said


def test_serve_is_not_ready_while_it_finds_a_newer_schema(folder: Path) -> None:
    edited(folder / "control.db", "UPDATE control_schema_version SET version_num = 'c9999'")
    (port,) = free_ports(1)
    answers: list[int] = []
    with contextlib.closing(sqlite3.connect(folder / "control.db", isolation_level=None)) as other:
        # As long as somebody else writes there, the newcomer waits before it has read the version.
        other.execute("BEGIN IMMEDIATE")
        process = subprocess.Popen(
            command(folder, "--metrics", f"127.0.0.1:{port}"),
            env=environment(),
            stderr=subprocess.PIPE,
            text=True,
        )

        def asked() -> bool:
            answers.append(ready_at(port))
            return 503 in answers or process.poll() is not None

        wait_until(asked, what="an answer about readiness", deadline_s=START_S)
        other.execute("ROLLBACK")

    said = refused(process, port, answers)
    assert "run the newer version" in said
    assert 503 in answers


def test_serve_with_secrets_by_file_serves_and_keeps_them_to_itself(tmp_path: Path) -> None:
    url, token = tmp_path / "url", tmp_path / "token"
    url.write_text(f"sqlite:///{tmp_path / 'elsewhere.db'}\n")
    token.write_text("0123456789abcdef" * 2)
    flags = ("--database-url-file", str(url), "--admin-token-file", str(token))
    folder = tmp_path / "data"
    for _ in range(2):
        with serving(folder, *flags) as serve:
            assert serve.endpoints["admin_token_file"] == str(token)
            assert (tmp_path / "elsewhere.db").exists()
            assert not (folder / "control.db").exists()
            assert not (folder / "admin-token").exists()
            orch = [os.fspath(Path(command(folder)[0])), "-m", "orchestrator.cli.main", "status"]
            known = {"ORCH_URL": serve.endpoints["grpc"], "ORCH_CA_FILE": serve.endpoints["ca_file"]}
            asked = subprocess.run(
                orch,
                env=environment() | known | {"ORCH_TOKEN_FILE": str(token)},
                capture_output=True,
                text=True,
                timeout=START_S,
                check=False,
            )
            assert (asked.returncode, asked.stderr) == (0, "")
            assert serve.interrupt() == 0
            assert "0123456789abcdef" not in serve.log.read_text()
    assert token.read_text() == "0123456789abcdef" * 2


def test_serve_with_an_admin_token_that_was_revoked_says_whose_it_is_to_replace(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("0123456789abcdef" * 2)
    flags = ("--admin-token-file", str(token))
    with serving(tmp_path / "data", *flags) as serve:
        (tmp_path / "data" / "admin-token").write_text(token.read_text())
        stub, metadata = serve.operator()
        (known,) = stub.ListTokens(operator_pb2.ListTokensRequest(), metadata=metadata).tokens
        stub.RevokeToken(operator_pb2.RevokeTokenRequest(token_id=known.token_id), metadata=metadata)
        assert serve.interrupt() == 0
    said = refusal(tmp_path / "data", *flags)
    assert "--admin-token-file: the token in it was revoked or has expired" in said
