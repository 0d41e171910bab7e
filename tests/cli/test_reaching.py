"""What an operator reads where the control plane does not answer as it should: one line, which says why."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local.ports import free_address
from orchestrator.adapters.authority import Authority
from orchestrator.adapters.clock import SystemClock
from orchestrator.cli import output
from orchestrator.cli.output import print_table
from tests.cli.conftest import Control, Orch
from tests.cli.control import ADMIN
from tests.cli.test_failures import process


@pytest.fixture
def strangers_ca(tmp_path: Path) -> Path:
    """The ca.pem of another network."""
    file = tmp_path / "strangers.pem"
    other = Authority(tmp_path / "other", now_ms=SystemClock().now().wall_ms, founded=False)
    file.write_bytes(other.trust_bundle())
    return file


@pytest.fixture
def talker() -> Iterator[str]:
    """A port at which something answers, and not with TLS."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                # Whoever asked may have gone meanwhile.
                with connection, contextlib.suppress(OSError):
                    connection.recv(1024)
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)


def test_another_networks_ca_real_process_is_named_in_one_line_without_any_other_words(
    control: Control, tmp_path: Path, strangers_ca: Path
) -> None:
    answer = process(
        tmp_path, "status", ORCH_URL=control.url, ORCH_TOKEN=ADMIN, ORCH_CA_FILE=str(strangers_ca)
    )
    said = answer.stderr.decode()
    assert (answer.returncode, answer.stdout, said.count("\n")) == (1, b"", 1)
    assert "certificate of another authority than ORCH_CA_FILE's" in said
    assert str(strangers_ca) in said


def test_what_speaks_no_tls_real_process_is_told_apart_from_nobody(talker: str, tmp_path: Path) -> None:
    answer = process(tmp_path, "status", ORCH_URL=talker, ORCH_TOKEN=ADMIN)
    said = answer.stderr.decode()
    assert (answer.returncode, said.count("\n")) == (1, 1)
    assert "does not speak TLS as a control plane does" in said
    assert "`orch serve --listen`" in said


@pytest.mark.parametrize("command", ["status", "top --once", "worker list", "job list"])
def test_nobody_there_is_said_alike_by_every_command(
    orch: Orch, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    address = free_address()
    monkeypatch.setenv("ORCH_URL", address)
    monkeypatch.setenv("ORCH_TOKEN", ADMIN)
    answer = orch(*command.split())
    expected = f"orch: cannot reach the control plane at {address}: is `orch serve` running? set ORCH_URL\n"
    assert (answer.code, answer.out, answer.err) == (1, "", expected)


def test_ca_file_that_holds_no_certificate_is_named(
    admin: Orch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text("orch_operator_0123")
    monkeypatch.setenv("ORCH_CA_FILE", str(file))
    answer = admin("status")
    assert answer.code == 2
    assert f"ORCH_CA_FILE: {file} holds no certificate" in answer.err
    assert "0123" not in answer.err


def test_table_narrow_keeps_the_first_column_whole_to_be_copied(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "PIPE_WIDTH", 80)
    name = "tok_01a208af83697c5d92694e704172232d"
    print_table(
        ("TOKEN", "ROLE", "SUBJECT", "CREATED", "EXPIRES"), [(name, *["2026-11-23 13:54:09Z"] * 4)], ""
    )
    assert name in capsys.readouterr().out
