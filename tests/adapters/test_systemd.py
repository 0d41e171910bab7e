"""The unit by systemd's own judgement, and the commands that reach its manager."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from orchestrator.adapters.container.tiers import detect
from orchestrator.adapters.systemd import (
    BOX_CAPABILITIES,
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
from orchestrator.core.supply.fleet import Isolation

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


NOT_FOR_BOXES = (
    *(
        "BindPaths=",
        "BindReadOnlyPaths=",
        "Delegate=",
        "Device",
        "InaccessiblePaths=",
        "MountFlags=",
        "NoExecPaths=",
    ),
    *(
        "Private",
        "Protect",
        "ReadOnlyPaths=",
        "ReadWritePaths=",
        "RestrictNamespaces=",
        "Root",
        "TemporaryFileSystem=",
    ),
)
"""Settings that give a unit mounts, devices or control groups of its own."""


def unit(scope: Scope, *command: str, makes_boxes: bool = False) -> WorkerUnit:
    return WorkerUnit(
        scope=scope,
        command=command or ("/bin/true",),
        search_path="/opt/some where/bin:/usr/bin",
        stop_s=150,
        run_as="root" if makes_boxes else "daemon",
        makes_boxes=makes_boxes,
        gpu_preparation=("/bin/true", "-u"),
    )


def settings_of(wanted: WorkerUnit) -> list[str]:
    return [line for line in unit_text(wanted).splitlines() if line and not line.startswith("#")]


def judged(text: str, scope: Scope, folder: Path) -> tuple[int, str]:
    """What systemd itself has to say of a unit."""
    path = folder / "orch-worker.service"
    path.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", f"--{scope}", str(path)],
        env={**os.environ, "XDG_RUNTIME_DIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("scope", list(Scope))
@pytest.mark.parametrize(
    "argument", ["plain", "with blank", 'quo"te', "per%cent", "dol$HOME", "back\\slash", "it's"]
)
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed here")
def test_unit_text_systemd_itself_finds_nothing_to_say(tmp_path: Path, scope: Scope, argument: str) -> None:
    assert judged(unit_text(unit(scope, "/bin/true", "--config", argument)), scope, tmp_path) == (0, "")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed here")
def test_unit_text_for_boxes_systemd_itself_finds_nothing_to_say(tmp_path: Path) -> None:
    assert judged(unit_text(unit(Scope.SYSTEM, makes_boxes=True)), Scope.SYSTEM, tmp_path) == (0, "")


def test_unit_text_for_boxes_is_root_with_the_rights_of_boxes_and_no_other() -> None:
    lines = settings_of(unit(Scope.SYSTEM, makes_boxes=True))
    assert {"User=root", "KillMode=process", "NoNewPrivileges=yes", "RestrictSUIDSGID=yes"} <= set(lines)
    (rights,) = (line for line in lines if line.startswith("CapabilityBoundingSet="))
    assert rights == f"CapabilityBoundingSet={' '.join(BOX_CAPABILITIES)}"
    assert not {"CAP_SYS_MODULE", "CAP_SYS_BOOT", "CAP_SYS_RAWIO", "CAP_MKNOD", "CAP_BPF"} & set(
        BOX_CAPABILITIES
    )


def test_unit_text_for_boxes_has_the_machines_own_mounts_devices_and_control_groups() -> None:
    lines = settings_of(unit(Scope.SYSTEM, makes_boxes=True))
    assert [line for line in lines if line.startswith(NOT_FOR_BOXES)] == []


def test_unit_text_only_an_agent_without_boxes_has_read_only_programs_and_all_rights_of_its_user() -> None:
    lines = settings_of(unit(Scope.SYSTEM))
    assert {"User=daemon", "ProtectSystem=full", "NoNewPrivileges=yes"} <= set(lines)
    assert not [line for line in lines if line.startswith("CapabilityBoundingSet=")]


def test_unit_text_rights_for_boxes_are_enough_for_the_strongest_tier_here() -> None:
    found = detect()
    if found.tier == Isolation.NONE:
        pytest.skip(found.reason)
    kept = ",".join(("-all", *(f"+{name.removeprefix('CAP_').lower()}" for name in BOX_CAPABILITIES)))
    program = "from orchestrator.adapters.container.tiers import detect; print(detect())"
    done = subprocess.run(
        [
            *("setpriv", "--no-new-privs", f"--inh-caps={kept}", f"--bounding-set={kept}", "--"),
            *(sys.executable, "-c", program),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert f"tier={found.tier!r}" in done.stdout, done.stdout + done.stderr


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
