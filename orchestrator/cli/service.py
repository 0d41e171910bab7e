"""The agent as a systemd service: which unit, whose, with which files."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import pwd
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.adapters.files import OWNER_ONLY_FOLDER, write_whole
from orchestrator.adapters.host import Host, Wsl
from orchestrator.adapters.systemd import (
    Scope,
    Systemd,
    SystemdError,
    UnitState,
    WorkerUnit,
    config_home,
    lingers,
    run_command,
    unit_dir,
    unit_text,
)
from orchestrator.agent.identity import LOCK_FILE, StartError, take_data_dir
from orchestrator.agent.joining import parse_join_token
from orchestrator.cli.errors import EXIT_REFUSED, CliError, usage_error
from orchestrator.cli.join import ROOT
from orchestrator.cli.output import OutputFormat, note, print_fields, print_lines
from orchestrator.cli.settings import AGENT_FILE
from orchestrator.core.supply.fleet import Isolation

UNIT = "orch-worker.service"
SYSTEM_CONFIG_DIR = Path("/etc/orch-worker")
USER_CONFIG_DIR = "orch-worker"
SETTINGS_FILE = "worker.toml"
TOKEN_FILE = "join-token"  # noqa: S105 - a file name

SYSTEM_FOLDER = 0o755
"""The settings' folder is root's, so that nobody can put a link in the way; the files in it are the agent's."""

STOP_MARGIN_S = 120
"""Beside the notice to jobs: nodes end, last statements go out, a control plane that is away is waited for."""

PACKAGE = "ray-gpu-orchestrator"
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEVICE_FILES_TOOL = "nvidia-modprobe"
MS_PER_S = 1000

_VERSION = re.compile(r"[0-9]+(\.[0-9]+)*((a|b|rc|\.post|\.dev)[0-9]+)*")


@dataclass(frozen=True, slots=True)
class Owner:
    """The user as whom the agent runs, and with isolation none the jobs too."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The service's files, their owner, and whether it is there to make boxes."""

    scope: Scope
    owner: Owner
    config_dir: Path
    makes_boxes: bool = False

    @property
    def config_file(self) -> Path:
        """The settings."""
        return self.config_dir / SETTINGS_FILE

    @property
    def token_file(self) -> Path:
        """The join token, which neither a unit nor a list of processes may show."""
        return self.config_dir / TOKEN_FILE

    def unit_text(self, notice_ms: int) -> str:
        """The unit that runs the agent on this plan's settings."""
        orch = Path(sys.executable).with_name("orch")
        program = (str(orch),) if orch.is_file() else (sys.executable, "-m", "orchestrator.cli.main")
        tool = shutil.which(DEVICE_FILES_TOOL, path=SYSTEM_PATH)
        return unit_text(
            WorkerUnit(
                scope=self.scope,
                command=(*program, "worker", "join", "--config", str(self.config_file), "--yes"),
                search_path=f"{Path(sys.executable).parent}:{SYSTEM_PATH}",
                stop_s=notice_ms // MS_PER_S + STOP_MARGIN_S,
                run_as=self.owner.name,
                makes_boxes=self.makes_boxes,
                gpu_preparation=(tool, "-c", "0", "-u") if tool else (),
            )
        )

    def write(self, settings: str, secret: str | None) -> None:
        """Put the settings, and the token where there is one, where only the agent's user reads them."""
        mode = SYSTEM_FOLDER if self.scope is Scope.SYSTEM else OWNER_ONLY_FOLDER
        self.config_dir.mkdir(mode=mode, parents=True, exist_ok=True)
        self._write_file(self.config_file, settings)
        if secret is None:
            self.token_file.unlink(missing_ok=True)
        else:
            self._write_file(self.token_file, f"{secret}\n")

    def _write_file(self, path: Path, text: str) -> None:
        write_whole(path, text.encode())
        if self.scope is Scope.SYSTEM:
            os.chown(path, self.owner.uid, self.owner.gid)


def owner_of(scope: Scope, run_as: str, isolation: str, environ: Mapping[str, str]) -> Owner:
    """As whom it will run: root where it makes boxes, as only root can. Raises a usage error.

    Where jobs run as the agent's user, with isolation none, root is never chosen for anybody.
    """
    if scope is Scope.USER:
        if run_as:
            raise usage_error("--run-as: only with --system; a user's own service runs as that user")
        return _owner(pwd.getpwuid(os.getuid()))
    name = run_as or (environ.get("SUDO_USER", "") if isolation == Isolation.NONE else ROOT)
    if not name:
        raise usage_error(
            "--run-as: with --isolation none say as which user agent and jobs run, such as one made by"
            " `useradd --create-home orch`; root would give every job the whole machine"
        )
    try:
        return _owner(pwd.getpwnam(name))
    except KeyError:
        raise usage_error(
            f"--run-as: this machine has no user {name[:80]!r}; make it with `useradd --create-home`"
        ) from None


def _owner(entry: pwd.struct_passwd) -> Owner:
    return Owner(entry.pw_name, entry.pw_uid, entry.pw_gid)


def plan_of(scope: Scope, owner: Owner, isolation: str) -> Plan:
    """Where a scope keeps its settings, and what its agent is for."""
    makes_boxes = scope is Scope.SYSTEM and owner.uid == 0 and isolation != Isolation.NONE
    return Plan(scope, owner, _config_dir(scope), makes_boxes)


def manager_of(scope: Scope) -> Systemd:
    """The manager of one scope, and our unit under it."""
    return Systemd(run_command, scope, unit_dir(scope, config_home(os.environ)), UNIT)


def require_manager(manager: Systemd, host: Host) -> None:
    """Raise CliError, with what to do instead, where no such manager runs or it is not ours to command."""
    require_right(manager, "install")
    if manager.available:
        return
    if manager.scope is Scope.USER and manager_of(Scope.SYSTEM).available:
        raise CliError(
            f"systemd runs no services for {host.user} in this session: log in directly instead of by `su`, or"
            " install for the machine with `sudo orch worker install --system`"
        )
    if host.wsl is Wsl.WSL2:
        raise CliError(
            "systemd does not run in this WSL2 guest: add the lines `[boot]` and `systemd=true` to /etc/wsl.conf,"
            " run `wsl --shutdown` in Windows and install again; or run `nohup orch worker join … &` yourself"
        )
    raise CliError(
        "systemd does not run here, so nothing was installed: keep the agent running yourself, with"
        " `nohup orch worker join … >agent.log 2>&1 &` or inside `tmux`, or by this machine's own service manager"
    )


def require_right(manager: Systemd, verb: str) -> None:
    """Raise a usage error where the machine's services are not the caller's to change."""
    if manager.scope is Scope.SYSTEM and os.geteuid() != 0:
        raise usage_error(f"--system: takes root: run `sudo {sys.argv[0]} worker {verb}`, or use --user")


def found_manager(system: bool | None) -> Systemd | None:
    """The manager that has our unit; None where none has."""
    wanted = tuple(Scope) if system is None else (Scope.SYSTEM if system else Scope.USER,)
    found = [manager for manager in map(manager_of, wanted) if manager.installed]
    if len(found) > 1:
        # Root looks after the machine, everybody else after what is theirs.
        return next(one for one in found if (one.scope is Scope.SYSTEM) == (os.geteuid() == 0))
    return found[0] if found else None


def installed_manager(system: bool | None) -> Systemd:
    """The same; raises a usage error where none has."""
    found = found_manager(system)
    if found is None:
        raise usage_error(
            "no agent is installed as a service here; `orch worker install` does, with the flags of `orch worker join`"
        )
    return found


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turn what systemd says into a failure of ours."""
    try:
        yield
    except SystemdError as error:
        raise CliError(f"{error}; `orch worker logs` may say why") from None


def data_dir_of(scope: Scope, default: Path) -> Path:
    """The data directory that the installed service was given."""
    path = _config_dir(scope) / SETTINGS_FILE
    try:
        value = tomllib.loads(path.read_text(encoding="utf-8")).get("data_dir")
    except FileNotFoundError:
        return default
    except PermissionError:
        raise usage_error(
            f"{path} is readable by the agent's user only: use sudo, or name --data-dir"
        ) from None
    except ValueError as error:
        raise CliError(f"{path} is no TOML: {error}; install again") from None
    return Path(value) if isinstance(value, str) else default


def _config_dir(scope: Scope) -> Path:
    return SYSTEM_CONFIG_DIR if scope is Scope.SYSTEM else config_home(os.environ) / USER_CONFIG_DIR


def install_version(version: str) -> None:
    """Bring this very environment to a version. Raises CliError where pip cannot, with what can."""
    if not _VERSION.fullmatch(version):
        raise usage_error(f"--to: a version such as 0.2.0 is expected, not {version[:80]!r}")
    requirement = f"{PACKAGE}[agent]=={version}"
    if importlib.util.find_spec("pip") is None:
        raise CliError(
            f"this environment has no pip: run `uv pip install --python {sys.executable} '{requirement}'`,"
            " then `orch worker upgrade` without --to"
        )
    command = [sys.executable, "-m", "pip", "install", "--upgrade", requirement]
    # What pip says goes where remarks go.
    if subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False).returncode != 0:
        raise CliError(f"pip could not install {requirement}; the agent was left as it is")


def hurry(manager: Systemd) -> None:
    """Send the agent the first of two interrupts; one that does not run needs none."""
    if manager.state().main_pid:
        manager.kill("SIGINT")


def remove(manager: Systemd) -> None:
    """Forget the unit and its settings; the agent's own directory stays."""
    manager.remove()
    folder = _config_dir(manager.scope)
    for name in (SETTINGS_FILE, TOKEN_FILE):
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        # Somebody else's file in it keeps it.
        folder.rmdir()


def check_purge(directory: Path) -> None:
    """Raise CliError for a directory that is no agent's: a slip in a setting must not cost a home."""
    if directory.exists() and not ((directory / LOCK_FILE).exists() or (directory / AGENT_FILE).exists()):
        raise CliError(f"--purge: {directory} does not look like an agent's directory; remove it by hand")


def purge(directory: Path, left_with: int) -> None:
    """Remove an agent's directory, unless it still holds what is owed to its owner."""
    if left_with == EXIT_REFUSED:
        raise CliError(
            f"the service is removed, but its agent left with statements that nobody has: {directory} was kept;"
            " `orch worker join` delivers them; or remove it by hand"
        )
    if not directory.exists():
        return
    try:
        lock_fd = take_data_dir(directory)
    except StartError as error:
        raise CliError(f"--purge: {error}") from None
    try:
        shutil.rmtree(directory)
    finally:
        os.close(lock_fd)


def check_secret(secret: str | None, data_dir: Path) -> None:
    """Raise a usage error for a token that was cut short: better here than in a log that nobody reads."""
    if secret is None or (data_dir / AGENT_FILE).exists():
        return
    try:
        parse_join_token(secret)
    except StartError as error:
        raise usage_error(str(error)) from None


def state_or_note(manager: Systemd) -> UnitState | None:
    """The unit as it is now; None, with a remark, where its manager does not answer in this session."""
    try:
        return manager.state()
    except SystemdError as error:
        note(str(error))
        return None


def state_text(manager: Systemd, state: UnitState | None) -> str:
    """`orch-worker.service (user): active (running), enabled, process 4711`."""
    if state is None:
        return f"{manager.unit} ({manager.scope}): installed, its state is unknown"
    parts = [f"{state.active} ({state.sub})" if state.sub else state.active]
    parts += [state.enabled] if state.enabled else []
    parts += [f"process {state.main_pid}"] if state.main_pid else []
    parts += [f"last exit code {state.exit_code}"] if not state.main_pid and state.exit_code else []
    return f"{manager.unit} ({manager.scope}): {', '.join(parts)}"


def report(manager: Systemd, state: UnitState, output: OutputFormat, **more: str) -> None:
    """Print the unit as it is now."""
    if output is OutputFormat.JSON:
        value = {"unit": manager.unit, "scope": manager.scope.value, "unit_file": str(manager.unit_file)}
        print_lines([json.dumps({**value, **more, "state": dataclasses.asdict(state)})])
        return
    fields = {"service": state_text(manager, state), "unit file": str(manager.unit_file)}
    print_fields({**fields, **{name.replace("_", " "): value for name, value in more.items()}})


def hints(manager: Systemd, owner: Owner, isolation: str, program: Path) -> list[str]:
    """What somebody who has just installed should know. ``program`` is a file of what the service runs."""
    known = ["`orch worker logs -f` shows how it joins, `orch worker status` how it is"]
    if isolation != Isolation.NONE and owner.uid != 0:
        known.append(
            f"boxes take root, and the agent runs as {owner.name}, so no job comes here: install it with"
            " `sudo orch worker install --system`, or consent with --isolation none"
        )
    changer = program.stat().st_uid
    if owner.uid == 0 and changer != 0:
        known.append(
            f"the service runs {program} as root, and the user with uid {changer} can change that file: install the"
            " package where only root writes, such as in /opt"
        )
    if manager.scope is Scope.USER and not lingers(run_command, owner.name):
        known.append(
            f"it ends when {owner.name} logs out, and its nodes with it: `loginctl enable-linger {owner.name}` keeps"
            " it running"
        )
    return known
