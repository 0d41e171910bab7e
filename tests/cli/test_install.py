"""The agent as a service: against programs that stand in for systemd's and remember what they were asked."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.adapters.host import Host, Wsl
from orchestrator.adapters.systemd import Done, Scope, Systemd
from orchestrator.cli.errors import CliError
from orchestrator.cli.service import (
    check_purge,
    install_version,
    require_manager,
)
from tests.cli.conftest import Control, Orch
from tests.cli.control import ADMIN

RUNNING = "ActiveState=active\nSubState=running\nUnitFileState=enabled\nMainPID=4711\nResult=success\n"
STOPPED = "ActiveState=inactive\nSubState=dead\nUnitFileState=disabled\nMainPID=0\nExecMainStatus={code}\n"
SECRET = f"made-up-join-secret.{'p' * 43}"

STAND_IN = """#!/bin/sh
echo "$(basename "$0") $*" >> "{folder}/asked"
case "$*" in
  *is-system-running*) cat "{folder}/manager" ;;
  *show-user*) cat "{folder}/linger" ;;
  *show*) cat "{folder}/unit" ;;
  *{refused}*) echo "Access denied" >&2; exit 4 ;;
  *--lines=*) echo "a line of the agent"; exit 3 ;;
esac
"""


@dataclass(frozen=True)
class Service:
    """systemd as the stand-ins play it, and the files of a user's service."""

    folder: Path
    config_home: Path

    @property
    def asked(self) -> list[str]:
        path = self.folder / "asked"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def unit_file(self) -> Path:
        return self.config_home / "systemd/user/orch-worker.service"

    @property
    def settings_file(self) -> Path:
        return self.config_home / "orch-worker/worker.toml"

    @property
    def token_file(self) -> Path:
        return self.config_home / "orch-worker/join-token"

    def says(self, **files: str) -> None:
        for name, text in files.items():
            (self.folder / name).write_text(text)

    def refuses(self, verb: str) -> None:
        for name in ("systemctl", "journalctl", "loginctl"):
            path = self.folder / name
            path.write_text(STAND_IN.format(folder=self.folder, refused=verb))
            path.chmod(0o755)


@pytest.fixture
def service(tmp_path: Path, clean_environment: Path, monkeypatch: pytest.MonkeyPatch) -> Service:
    folder = tmp_path / "programs"
    folder.mkdir()
    found = Service(folder, tmp_path / "config")
    found.says(manager="running\n", linger="no\n", unit=RUNNING)
    found.refuses("no-verb-of-systemd")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(found.config_home))
    return found


@pytest.fixture
def installed(service: Service, orch: Orch, monkeypatch: pytest.MonkeyPatch) -> Service:
    """With a service that was installed a moment ago."""
    monkeypatch.setenv("ORCH_JOIN_TOKEN", SECRET)
    answer = orch("worker", "install", "--user", "--no-gpus", "--name", "attic")
    assert answer.code == 0, answer.err
    monkeypatch.delenv("ORCH_JOIN_TOKEN")
    (service.folder / "asked").unlink()
    return service


def agent_directory(home: Path) -> Path:
    return home / ".orchestrator/agent"


def joined(home: Path) -> Path:
    directory = agent_directory(home)
    directory.mkdir(parents=True)
    known = {"worker_id": "wrk_1", "name": "attic", "supplier_id": "sup_1", "control_plane": "127.0.0.1:7443"}
    (directory / "agent.json").write_text(json.dumps(known))
    return directory


# ------------------------------------------------------------ install


def test_install_writes_settings_token_and_unit_and_starts(
    service: Service, orch: Orch, monkeypatch: pytest.MonkeyPatch, clean_environment: Path
) -> None:
    monkeypatch.setenv("ORCH_JOIN_TOKEN", SECRET)
    monkeypatch.setenv("ORCH_WORKER_ZONE", "home")
    arguments = (
        "--no-gpus",
        "--name",
        "attic",
        "--price",
        "CPU=0.5",
        "--schedule",
        "nights",
        "--timezone",
        "UTC",
    )
    answer = orch("worker", "install", "--user", *arguments, "--yes")
    assert answer.code == 0
    assert tomllib.loads(service.settings_file.read_text()) == {
        "control_plane": "127.0.0.1:7443",
        "data_dir": str(agent_directory(clean_environment)),
        "gpus": False,
        "name": "attic",
        "price": ["CPU=0.5"],
        "schedule": "nights",
        "timezone": "UTC",
        "token_file": str(service.token_file),
        "zone": "home",
    }
    assert service.token_file.read_text() == f"{SECRET}\n"
    assert [call for call in service.asked if "show" not in call and "is-system" not in call] == [
        "systemctl --user daemon-reload",
        "systemctl --user enable orch-worker.service",
        "systemctl --user restart orch-worker.service",
    ]
    assert "active (running), enabled, process 4711" in answer.out
    assert "What runs here" in answer.err


def test_install_secret_is_in_its_own_file_only(
    service: Service, installed: Service, tmp_path: Path, orch: Orch
) -> None:
    holders = [path for path in tmp_path.rglob("*") if path.is_file() and SECRET in path.read_text()]
    assert holders == [service.token_file]
    for path in (service.token_file, service.settings_file):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(service.token_file.parent.stat().st_mode) == 0o700


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed here")
def test_install_unit_that_was_written_is_one_to_systemd(installed: Service, tmp_path: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--user", str(installed.unit_file)],
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    orch = Path(sys.executable).with_name("orch")
    assert (
        f"ExecStart={orch} worker join --config {installed.settings_file} --yes"
        in installed.unit_file.read_text()
    )


def test_install_settings_are_accepted_by_join(installed: Service, orch: Orch) -> None:
    # The port is one where nobody listens: the last thing that can fail, after every check has passed.
    answer = orch(
        "worker", "join", "--config", str(installed.settings_file), "--yes", "--control-plane", "127.0.0.1:9"
    )
    assert "cannot reach the control plane at 127.0.0.1:9" in answer.err


def test_install_again_changes_settings_and_keeps_the_joined_machine(
    installed: Service, orch: Orch, clean_environment: Path
) -> None:
    joined(clean_environment)
    answer = orch("worker", "install", "--user", "--name", "cellar", "--output", "json")
    assert answer.code == 0
    shown = json.loads(answer.out)
    assert (shown["unit"], shown["scope"]) == ("orch-worker.service", "user")
    assert (shown["unit_file"], shown["config_file"]) == (
        str(installed.unit_file),
        str(installed.settings_file),
    )
    assert shown["state"]["main_pid"] == 4711
    assert tomllib.loads(installed.settings_file.read_text())["name"] == "cellar"
    assert "token_file" not in tomllib.loads(installed.settings_file.read_text())
    assert not installed.token_file.exists()


def test_install_print_shows_the_unit_and_changes_nothing(service: Service, orch: Orch) -> None:
    answer = orch("worker", "install", "--user", "--print", "--notice", "60s")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith("[Unit]\n")
    assert "TimeoutStopSec=180" in answer.out
    assert not service.config_home.exists()
    assert service.asked == []


@pytest.mark.parametrize(("linger", "hinted"), [("no\n", True), ("yes\n", False)])
def test_install_user_service_that_would_end_at_logout_says_so(
    service: Service, orch: Orch, monkeypatch: pytest.MonkeyPatch, linger: str, hinted: bool
) -> None:
    service.says(linger=linger)
    monkeypatch.setenv("ORCH_JOIN_TOKEN", SECRET)
    assert ("enable-linger" in orch("worker", "install", "--user").err) is hinted


def test_install_without_a_token_changes_nothing(service: Service, orch: Orch) -> None:
    answer = orch("worker", "install", "--user")
    assert answer.code == 2
    assert "orch token create --role supplier" in answer.err
    assert not service.config_home.exists()


def test_install_token_that_was_cut_short_is_refused_before_anything_is_written(
    service: Service, orch: Orch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCH_JOIN_TOKEN", SECRET[:-1])
    answer = orch("worker", "install", "--user")
    assert answer.code == 2
    assert "the join token is cut short" in answer.err
    assert SECRET[:8] not in answer.err
    assert not service.config_home.exists()


def test_install_without_systemd_says_what_to_do_instead(service: Service, orch: Orch) -> None:
    service.says(manager="offline\n")
    answer = orch("worker", "install", "--user")
    assert answer.code == 1
    assert "nohup" in answer.err
    assert "tmux" in answer.err
    assert not service.config_home.exists()


def test_install_refusal_of_systemd_is_one_line(
    service: Service, orch: Orch, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.refuses("enable")
    monkeypatch.setenv("ORCH_JOIN_TOKEN", SECRET)
    answer = orch("worker", "install", "--user")
    assert answer.code == 1
    assert (
        "`systemctl --user enable orch-worker.service` failed: Access denied" in answer.err.splitlines()[-1]
    )


def test_require_manager_wsl2_without_systemd_names_its_switch(tmp_path: Path) -> None:
    nowhere = Systemd(lambda command: Done(1, "offline\n", ""), Scope.USER, tmp_path, "u.service")
    host = Host(wsl=Wsl.WSL2, kernel="", user="ada", uid=1000, timezone="UTC")
    with pytest.raises(CliError, match=r"/etc/wsl\.conf.*wsl --shutdown"):
        require_manager(nowhere, host)


# ------------------------------------------------------------ status and logs


def test_status_shows_the_service_beside_the_agent(
    installed: Service, orch: Orch, clean_environment: Path
) -> None:
    joined(clean_environment)
    out = orch("worker", "status").out
    assert "wrk_1" in out
    assert "orch-worker.service (user): active (running), enabled, process 4711" in out


def test_status_agent_that_could_not_join_shows_its_exit(installed: Service, orch: Orch) -> None:
    installed.says(unit="ActiveState=failed\nSubState=failed\nMainPID=0\nExecMainStatus=2\n")
    answer = orch("worker", "status")
    assert answer.code == 0
    assert "failed (failed), last exit code 2" in answer.out
    assert "`orch worker logs` shows why" in answer.err


def test_status_manager_that_does_not_answer_is_a_remark(
    installed: Service, orch: Orch, clean_environment: Path
) -> None:
    joined(clean_environment)
    (installed.folder / "systemctl").write_text("#!/bin/sh\necho 'Failed to connect to bus' >&2; exit 1\n")
    answer = orch("worker", "status")
    assert answer.code == 0
    assert "wrk_1" in answer.out
    assert "installed, its state is unknown" in answer.out
    assert "Failed to connect to bus" in answer.err


def test_status_json_has_all_views(
    installed: Service, orch: Orch, control: Control, clean_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined(clean_environment)
    monkeypatch.setenv("ORCH_URL", control.url)
    monkeypatch.setenv("ORCH_TOKEN", ADMIN)
    shown = json.loads(orch("worker", "status", "-o", "json").out)
    assert set(shown) == {"agent", "live", "unit", "wsl", "network"}
    assert (shown["agent"]["worker_id"], shown["unit"]["active"]) == ("wrk_1", "active")


def test_status_without_service_and_agent_says_how_to_begin(service: Service, orch: Orch) -> None:
    answer = orch("worker", "status")
    assert answer.code == 2
    assert "`orch worker join`" in answer.err


def test_logs_are_those_of_the_unit_with_the_journals_own_code(installed: Service, orch: Orch) -> None:
    answer = orch("worker", "logs", "-n", "7")
    assert (answer.code, answer.out) == (3, "a line of the agent\n")
    orch("worker", "logs", "-f", "-o", "json")
    unit = "--user-unit=orch-worker.service"
    assert installed.asked == [
        f"journalctl {unit} --lines=7 --output=cat --no-pager",
        f"journalctl {unit} --lines=100 --output=json --no-pager --follow",
    ]


@pytest.mark.parametrize("command", ["logs", "upgrade", "uninstall"])
def test_command_without_a_service_names_install(service: Service, orch: Orch, command: str) -> None:
    answer = orch("worker", command, "--user")
    assert answer.code == 2
    assert "`orch worker install` does" in answer.err
    assert service.asked == []


# ------------------------------------------------------------ upgrade and uninstall


def test_upgrade_restarts_the_agent_and_nothing_else(installed: Service, orch: Orch) -> None:
    answer = orch("worker", "upgrade")
    assert answer.code == 0
    assert [call for call in installed.asked if "show" not in call] == [
        "systemctl --user restart orch-worker.service"
    ]
    assert "keepers and running nodes were not touched" in answer.err


@pytest.mark.parametrize("version", ["latest", "1.0; rm -rf /", "--pre", "../x", "1.0 ", ""])
def test_install_version_that_is_none_is_refused(version: str) -> None:
    with pytest.raises(CliError, match="--to: a version such as"):
        install_version(version)


def test_upgrade_to_a_bad_version_leaves_the_agent_alone(installed: Service, orch: Orch) -> None:
    assert orch("worker", "upgrade", "--to", "newest").code == 2
    assert installed.asked == []


def test_uninstall_drains_and_keeps_keys_and_state(
    installed: Service, orch: Orch, clean_environment: Path
) -> None:
    directory = joined(clean_environment)
    installed.says(unit=STOPPED.format(code=0))
    answer = orch("worker", "uninstall", "-o", "json")
    assert json.loads(answer.out) == {
        "unit": "orch-worker.service",
        "scope": "user",
        "removed": True,
        "purged": False,
    }
    assert [call for call in installed.asked if "show" not in call] == [
        "systemctl --user disable --now orch-worker.service",
        "systemctl --user daemon-reload",
        "systemctl --user reset-failed orch-worker.service",
    ]
    assert not installed.unit_file.exists()
    assert not installed.settings_file.parent.exists()
    assert (directory / "agent.json").exists()


def test_uninstall_no_drain_sends_the_first_of_two_signals(installed: Service, orch: Orch) -> None:
    assert orch("worker", "uninstall", "--no-drain").code == 0
    assert [call for call in installed.asked if "show" not in call][:2] == [
        "systemctl --user kill --kill-who=main --signal=SIGINT orch-worker.service",
        "systemctl --user disable --now orch-worker.service",
    ]


def test_uninstall_that_systemd_refuses_keeps_everything(installed: Service, orch: Orch) -> None:
    installed.refuses("disable")
    answer = orch("worker", "uninstall")
    assert answer.code == 1
    assert "Access denied" in answer.err
    assert installed.unit_file.exists()
    assert installed.settings_file.exists()


def test_uninstall_purge_removes_the_agents_directory_when_meant(
    installed: Service, orch: Orch, clean_environment: Path
) -> None:
    directory = joined(clean_environment)
    installed.says(unit=STOPPED.format(code=0))
    refused = orch("worker", "uninstall", "--purge")
    assert refused.code == 2
    assert "add --yes" in refused.err
    assert installed.asked == []
    assert orch("worker", "uninstall", "--purge", "--yes").code == 0
    assert not directory.exists()


def test_uninstall_purge_keeps_statements_that_nobody_has(
    installed: Service, orch: Orch, clean_environment: Path
) -> None:
    directory = joined(clean_environment)
    installed.says(unit=STOPPED.format(code=1))
    answer = orch("worker", "uninstall", "--purge", "--yes")
    assert answer.code == 1
    assert "`orch worker join` delivers them" in answer.err
    assert (directory / "agent.json").exists()


def test_uninstall_purge_needs_the_drain(installed: Service, orch: Orch) -> None:
    assert orch("worker", "uninstall", "--purge", "--no-drain", "--yes").code == 2
    assert installed.asked == []


def test_check_purge_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photographs").mkdir()
    with pytest.raises(CliError, match="does not look like an agent's directory"):
        check_purge(tmp_path)
    check_purge(tmp_path / "never-made")
