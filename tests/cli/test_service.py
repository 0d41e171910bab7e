"""The machine's service: as whom the agent runs, in which unit, and what its owner is told."""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path

import pytest

from orchestrator.adapters.systemd import Done, Scope, Systemd
from orchestrator.cli.errors import CliError
from orchestrator.cli.service import Owner, Plan, hints, owner_of, plan_of
from tests.cli.conftest import Orch


def test_owner_of_system_service_without_isolation_is_never_root_by_itself() -> None:
    with pytest.raises(CliError, match=r"--run-as: .*root would give every job the whole machine"):
        owner_of(Scope.SYSTEM, "", "none", {})


@pytest.mark.parametrize("isolation", ["auto", "box", "container"])
def test_owner_of_system_service_that_makes_boxes_is_root_or_who_is_named(isolation: str) -> None:
    assert owner_of(Scope.SYSTEM, "", isolation, {"SUDO_USER": "daemon"}).uid == 0
    assert owner_of(Scope.SYSTEM, "daemon", isolation, {}).name == "daemon"


def test_owner_of_system_service_without_isolation_is_named_or_who_called_sudo() -> None:
    daemon = pwd.getpwnam("daemon")
    assert owner_of(Scope.SYSTEM, "", "none", {"SUDO_USER": "daemon"}) == Owner(
        "daemon", daemon.pw_uid, daemon.pw_gid
    )
    assert owner_of(Scope.SYSTEM, "root", "none", {"SUDO_USER": "daemon"}).uid == 0
    with pytest.raises(CliError, match="no user 'nobody-at-all'"):
        owner_of(Scope.SYSTEM, "nobody-at-all", "none", {})


def test_owner_of_user_service_is_the_user() -> None:
    assert owner_of(Scope.USER, "", "auto", {"SUDO_USER": "daemon"}).uid == os.getuid()
    with pytest.raises(CliError, match="only with --system"):
        owner_of(Scope.USER, "daemon", "auto", {})


@pytest.mark.parametrize(
    ("scope", "uid", "isolation", "made"),
    [
        (Scope.SYSTEM, 0, "auto", True),
        (Scope.SYSTEM, 0, "none", False),
        (Scope.SYSTEM, 1, "auto", False),
        (Scope.USER, 0, "auto", False),
    ],
)
def test_plan_of_unit_is_one_for_boxes_where_root_makes_them(
    scope: Scope, uid: int, isolation: str, made: bool
) -> None:
    text = plan_of(scope, Owner("somebody", uid, uid), isolation).unit_text(30_000)
    assert ("CapabilityBoundingSet=" in text) is made


def test_install_print_for_the_machine_is_root_unless_jobs_would_be(
    orch: Orch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUDO_USER", "daemon")
    assert "User=root\n" in orch("worker", "install", "--system", "--print").out
    assert "User=daemon\n" in orch("worker", "install", "--system", "--print", "--isolation", "none").out
    monkeypatch.delenv("SUDO_USER")
    refused = orch("worker", "install", "--system", "--print", "--isolation", "none")
    assert refused.code == 2
    assert "--run-as" in refused.err


@pytest.mark.parametrize(
    ("uid", "isolation", "hinted"), [(1, "auto", True), (1, "none", False), (0, "auto", False)]
)
def test_hints_agent_that_can_make_no_boxes_is_told(
    tmp_path: Path, uid: int, isolation: str, hinted: bool
) -> None:
    manager = Systemd(lambda command: Done(0, "", ""), Scope.SYSTEM, tmp_path, "u.service")
    found = hints(manager, Owner("ada", uid, uid), isolation, Path("/"))
    assert any("boxes take root, and the agent runs as ada" in hint for hint in found) is hinted


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away: run as root")
def test_hints_roots_program_that_somebody_else_can_change_is_named(tmp_path: Path) -> None:
    manager = Systemd(lambda command: Done(0, "", ""), Scope.SYSTEM, tmp_path, "u.service")
    program = tmp_path / "machine.py"
    program.touch()
    assert len(hints(manager, Owner("root", 0, 0), "auto", program)) == 1
    os.chown(program, 1, 1)
    assert (
        "the user with uid 1 can change that file" in hints(manager, Owner("root", 0, 0), "auto", program)[-1]
    )


def test_plan_of_the_machine_keeps_files_of_the_agents_user_in_a_folder_of_another(tmp_path: Path) -> None:
    me = pwd.getpwuid(os.getuid())
    plan = Plan(Scope.SYSTEM, Owner(me.pw_name, me.pw_uid, me.pw_gid), tmp_path / "orch-worker")
    plan.write("slots = 1\n", "made-up-secret")
    assert stat.S_IMODE(plan.config_dir.stat().st_mode) == 0o755
    for path in (plan.config_file, plan.token_file):
        assert (path.stat().st_uid, stat.S_IMODE(path.stat().st_mode)) == (me.pw_uid, 0o600)
    assert f"User={me.pw_name}" in plan.unit_text(30_000)
    plan.write("slots = 1\n", None)
    assert not plan.token_file.exists()
