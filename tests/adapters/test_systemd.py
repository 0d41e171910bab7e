"""The unit by systemd's own judgement, and the commands that reach its manager."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from orchestrator.adapters.systemd import (
    NOT_FOUND,
    Done,
    Scope,
    Systemd,
    SystemdError,
    WorkerUnit,
    config_home,
    run_command,
    unit_dir,
    unit_text,
)

SHOWN = "LoadState=loaded\nActiveState=active\nSubState=running\nMainPID=4711\nUnitFileState=enabled\nResult=success\n"


class Manager:
    """Answers as systemctl does and remembers what it was asked."""

    def __init__(self, answers: dict[str, Done] | None = None) -> None:
        self.answers = answers or {}
        self.asked: list[str] = []

    def __call__(self, command: Sequence[str]) -> Done:
        self.asked.append(" ".join(command))
        verb = next(word for word in command[1:] if not word.startswith("-"))
        return self.answers.get(verb, Done(0, "", ""))


def unit(scope: Scope, *command: str) -> WorkerUnit:
    return WorkerUnit(
        scope=scope,
        command=command or ("/bin/true",),
        search_path="/opt/some where/bin:/usr/bin",
        stop_s=150,
        run_as="daemon",
        gpu_preparation=("/bin/true", "-u"),
    )


@pytest.mark.parametrize("scope", list(Scope))
@pytest.mark.parametrize(
    "argument", ["plain", "with blank", 'quo"te', "per%cent", "dol$HOME", "back\\slash", "it's"]
)
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed here")
def test_unit_text_systemd_itself_finds_nothing_to_say(tmp_path: Path, scope: Scope, argument: str) -> None:
    path = tmp_path / "orch-worker.service"
    path.write_text(unit_text(unit(scope, "/bin/true", "--config", argument)))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", f"--{scope}", str(path)],
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_unit_text_agent_alone_is_signalled_and_steps_aside_at_a_restart() -> None:
    lines = unit_text(unit(Scope.USER)).splitlines()
    assert {"KillMode=process", "RestartKillSignal=SIGHUP", "KillSignal=SIGTERM"} <= set(lines)
    assert {"OOMPolicy=continue", "RestartPreventExitStatus=0 1 2 130", "Restart=always"} <= set(lines)


def test_unit_text_what_belongs_to_the_machine_is_in_its_unit_only() -> None:
    system, user = (unit_text(unit(scope)).splitlines() for scope in (Scope.SYSTEM, Scope.USER))
    assert {"User=daemon", "WantedBy=multi-user.target", "ExecStartPre=+-/bin/true -u"} <= set(system)
    assert "WantedBy=default.target" in user
    assert not [line for line in user if line.startswith(("User=", "ExecStartPre=", "Protect"))]


def test_unit_text_view_of_devices_and_scratch_is_that_of_the_machine() -> None:
    for scope in Scope:
        settings = [line for line in unit_text(unit(scope)).splitlines() if not line.startswith("#")]
        assert not [
            line for line in settings if line.startswith(("Private", "ProtectHome", "RestrictNamespaces"))
        ]


def test_systemd_install_writes_reloads_enables_and_starts(tmp_path: Path) -> None:
    manager = Manager()
    systemd = Systemd(manager, Scope.USER, tmp_path / "systemd/user", "orch-worker.service")
    before = systemd.installed
    systemd.install("[Unit]\n")
    assert (before, systemd.installed) == (False, True)
    assert stat.S_IMODE(systemd.unit_file.stat().st_mode) == 0o644
    assert [path.name for path in systemd.unit_file.parent.iterdir()] == ["orch-worker.service"]
    assert manager.asked == [
        "systemctl --user daemon-reload",
        "systemctl --user enable orch-worker.service",
        "systemctl --user restart orch-worker.service",
    ]


def test_systemd_remove_forgets_the_unit(tmp_path: Path) -> None:
    manager = Manager({"reset-failed": Done(1, "", "Unit orch-worker.service not loaded.")})
    systemd = Systemd(manager, Scope.SYSTEM, tmp_path, "orch-worker.service")
    systemd.install("")
    systemd.stop()
    systemd.remove()
    assert not systemd.installed
    assert manager.asked[3:] == [
        "systemctl disable --now orch-worker.service",
        "systemctl daemon-reload",
        "systemctl reset-failed orch-worker.service",
    ]


def test_systemd_state_is_read_from_its_properties(tmp_path: Path) -> None:
    state = Systemd(Manager({"show": Done(0, SHOWN, "")}), Scope.USER, tmp_path, "u.service").state()
    assert (state.active, state.sub, state.enabled, state.main_pid) == ("active", "running", "enabled", 4711)


def test_systemd_state_unknown_answer_is_no_crash(tmp_path: Path) -> None:
    state = Systemd(
        Manager({"show": Done(0, "nonsense\nMainPID=x\n", "")}), Scope.USER, tmp_path, "u.service"
    ).state()
    assert (state.active, state.main_pid) == ("unknown", 0)


def test_systemd_refusal_names_the_command_and_its_words(tmp_path: Path) -> None:
    manager = Manager({"restart": Done(1, "", "Failed to restart u.service: Access denied\nmore\n")})
    systemd = Systemd(manager, Scope.SYSTEM, tmp_path, "u.service")
    with pytest.raises(SystemdError, match=r"`systemctl restart u\.service` failed: .*Access denied$"):
        systemd.restart()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Done(0, "running\n", ""), True),
        (Done(1, "degraded\n", ""), True),
        (Done(1, "offline\n", ""), False),
        (Done(1, "", "Failed to connect to bus: No medium found"), False),
        (Done(NOT_FOUND, "", "systemctl: not found"), False),
    ],
)
def test_systemd_available_only_where_a_manager_answers(tmp_path: Path, answer: Done, expected: bool) -> None:
    manager = Manager({"is-system-running": answer})
    assert Systemd(manager, Scope.USER, tmp_path, "u.service").available is expected


def test_run_command_program_that_is_not_there_is_an_answer() -> None:
    assert run_command(["no-such-program-anywhere"]) == Done(
        NOT_FOUND, "", "no-such-program-anywhere: not found"
    )


def test_run_command_keeps_code_and_both_outputs() -> None:
    assert run_command(["sh", "-c", "echo out; echo err >&2; exit 3"]) == Done(3, "out\n", "err\n")


def test_unit_dir_of_a_user_follows_the_configuration_home() -> None:
    home = config_home({"XDG_CONFIG_HOME": "/somewhere"})
    assert unit_dir(Scope.USER, home) == Path("/somewhere/systemd/user")
    assert unit_dir(Scope.SYSTEM, home) == Path("/etc/systemd/system")
    assert config_home({"XDG_CONFIG_HOME": "relative"}) == Path("~/.config").expanduser()
