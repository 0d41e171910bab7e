"""What goes wrong becomes one line that says what to do next, and the right exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from deploy.local.ports import free_address
from orchestrator.cli.main import described
from orchestrator.core.errors import RefusalCode, RefusedError, invalid
from tests.cli.conftest import Control, Orch
from tests.cli.control import ADMIN, LOG, TENANT
from tests.polling import wait_until

ORCH = str(Path(sys.executable).with_name("orch"))


def process(home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """The installed command in a process of its own."""
    return subprocess.run(
        [ORCH, *arguments],
        env=own_environment(home, **environment),
        capture_output=True,
        check=False,
        timeout=60,
    )


def own_environment(home: Path, **environment: str) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name == "ORCH_CA_FILE" or not name.startswith("ORCH_")
    }
    return {**kept, "HOME": str(home), **environment}


def test_unreachable_control_plane_real_process_says_so_in_one_line(tmp_path: Path) -> None:
    address = free_address()
    answer = process(tmp_path, "status", ORCH_URL=address, ORCH_TOKEN=ADMIN)
    expected = f"orch: cannot reach the control plane at {address}: is `orch serve` running? set ORCH_URL\n"
    assert (answer.returncode, answer.stdout, answer.stderr.decode()) == (1, b"", expected)


def test_missing_token_real_process_exits_with_two(tmp_path: Path) -> None:
    answer = process(tmp_path, "status")
    assert answer.returncode == 2
    assert answer.stderr.startswith(b"orch: no token: set ORCH_TOKEN")
    assert answer.stderr.count(b"\n") == 1


def test_unknown_command_real_process_exits_with_two_in_one_line(tmp_path: Path) -> None:
    answer = process(tmp_path, "worker", "liste")
    assert answer.returncode == 2
    assert b"orch worker --help" in answer.stderr
    assert answer.stderr.count(b"\n") == 1


def test_debug_real_process_shows_the_traceback_without_the_token(tmp_path: Path) -> None:
    answer = process(tmp_path, "status", ORCH_URL=free_address(), ORCH_TOKEN=ADMIN, ORCH_DEBUG="1")
    assert b"Traceback" in answer.stderr
    assert ADMIN.encode() not in answer.stderr


def test_job_logs_real_process_prints_the_job_s_bytes_unchanged(control: Control, tmp_path: Path) -> None:
    answer = process(tmp_path, "job", "logs", "job_1", ORCH_URL=control.url, ORCH_TOKEN=TENANT)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, LOG, b"")


def test_interrupt_real_process_following_a_log_exits_with_130(control: Control, tmp_path: Path) -> None:
    ended = threading.Event()
    control.jobs.hold = lambda: assert_set(ended)
    command = subprocess.Popen(
        [ORCH, "job", "logs", "job_1", "--follow"],
        env=own_environment(tmp_path, ORCH_URL=control.url, ORCH_TOKEN=ADMIN),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert command.stdout is not None
    assert command.stdout.read(len(LOG)) == LOG
    command.send_signal(signal.SIGINT)
    try:
        wait_until(lambda: command.poll() is not None, what="the command's end", deadline_s=60)
    finally:
        command.kill()
        ended.set()
        _, errors = command.communicate()
    assert (command.returncode, errors) == (130, b"")


def assert_set(ended: threading.Event) -> None:
    assert ended.wait(60)


def test_closed_pipe_real_process_ends_without_a_traceback(control: Control, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        answer = subprocess.run(
            [ORCH, "status"],
            env=own_environment(tmp_path, ORCH_URL=control.url, ORCH_TOKEN=ADMIN),
            stdout=writer,
            stderr=subprocess.PIPE,
            check=False,
            timeout=60,
        )
    finally:
        os.close(writer)
    assert (answer.returncode, answer.stderr) == (1, b"")


def test_wrong_token_is_refused_with_what_to_set(admin: Orch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCH_TOKEN", "wrong-token-value")
    answer = admin("status")
    assert answer.code == 1
    assert "does not accept this token" in answer.err
    assert "ORCH_TOKEN" in answer.err
    assert "wrong-token-value" not in answer.err


def test_tenant_token_at_operator_s_command_says_which_token(
    admin: Orch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCH_TOKEN", TENANT)
    assert admin("job", "list").code == 0
    answer = admin("worker", "list")
    assert answer.code == 1
    assert "operator's token" in answer.err


def test_refusal_of_the_server_is_shown_as_it_says(admin: Orch) -> None:
    answer = admin("job", "show", "job_9")
    assert (answer.code, answer.err) == (1, "orch: no job 'job_9'; list them to see the right name\n")
    assert admin("tenant", "create", "taken").code == 1


def test_token_file_is_read_when_no_token_is_set(
    admin: Orch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "token"
    path.write_text(ADMIN + "\n")
    monkeypatch.delenv("ORCH_TOKEN")
    monkeypatch.setenv("ORCH_TOKEN_FILE", str(path))
    assert admin("status").code == 0


def test_admin_token_of_this_machine_is_the_default(
    admin: Orch, monkeypatch: pytest.MonkeyPatch, clean_environment: Path
) -> None:
    monkeypatch.delenv("ORCH_TOKEN")
    (clean_environment / ".orchestrator").mkdir()
    (clean_environment / ".orchestrator" / "admin-token").write_text(ADMIN)
    assert admin("status").code == 0


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:7443", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:70000", "a b:1"]
)
def test_bad_url_is_a_usage_error_that_names_it(
    orch: Orch, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("ORCH_URL", url)
    monkeypatch.setenv("ORCH_TOKEN", ADMIN)
    answer = orch("status")
    assert answer.code == 2
    assert answer.err.startswith("orch: ORCH_URL: HOST:PORT")


@pytest.mark.parametrize("token", ["two words", "ümlaut", "line\nbreak", "x" * 5000])
def test_bad_token_is_a_usage_error_that_does_not_show_it(
    orch: Orch, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("ORCH_TOKEN", token)
    answer = orch("status")
    assert answer.code == 2
    assert token not in answer.err


def test_absent_token_file_is_a_usage_error_that_names_it(
    orch: Orch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ORCH_TOKEN_FILE", str(tmp_path / "nowhere"))
    answer = orch("status")
    assert answer.code == 2
    assert "nowhere: no such file" in answer.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (invalid("name", "name: is empty"), 2),
        (RefusedError(RefusalCode.CONFLICT, "in use"), 1),
        (PermissionError(13, "Permission denied", "/data"), 2),
        (ValueError("odd"), 1),
    ],
)
def test_described_every_kind_of_failure_has_its_code(error: Exception, code: int) -> None:
    message, found = described(error)
    assert found == code
    assert message
