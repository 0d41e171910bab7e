"""systemd as it is on the machine: one unit, written, started, asked after and removed. Blocking.

Every call is a run of `systemctl`, `journalctl` or `loginctl`, so that nothing is assumed about the bus; the runner
is handed in.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

UNIT_MODE = 0o644
"""Everybody may read a unit; it holds no secret."""

SYSTEM_UNIT_DIR = Path("/etc/systemd/system")
USER_UNIT_DIR = Path("systemd/user")
"""Below the user's configuration directory."""

NOT_FOUND = 127
"""What a shell answers for a program that is not there."""

COMMAND_TIMEOUT_S = 600.0
"""Longer than the longest stop that a unit of ours may take, which is what `systemctl stop` waits for."""

RUNNING_STATES = frozenset({"initializing", "starting", "running", "degraded", "maintenance", "stopping"})
"""What `systemctl is-system-running` says where a manager answers at all; it exits with 1 for most of them."""

BOX_CAPABILITIES = (
    # Namespaces, mounts, the scratch's loop device, control groups, system call filters.
    "CAP_SYS_ADMIN",
    # Interfaces, routes, firewall rules.
    "CAP_NET_ADMIN",
    # A box's first program becomes the box's own user, and every right is taken from it for good.
    "CAP_SETUID",
    "CAP_SETGID",
    "CAP_SETPCAP",
    # The scratch, /proc and the logs of users who are not root: made, given, read, removed.
    "CAP_CHOWN",
    "CAP_FOWNER",
    "CAP_DAC_OVERRIDE",
    # Their processes: ended; their namespaces entered, of which a container's are opened by the second, and mounts by
    # the third.
    "CAP_KILL",
    "CAP_SYS_PTRACE",
    "CAP_SYS_CHROOT",
)
"""What an agent that makes boxes or containers takes of root's rights: no kernel modules, clock, raw devices or reboot.

Found by leaving out one after the other. Without CAP_SETPCAP boxes would start, and keep rights that they must not have.
"""

PROPERTIES = ("LoadState", "ActiveState", "SubState", "UnitFileState", "MainPID", "Result", "ExecMainStatus")


class Scope(StrEnum):
    """Whose manager runs the unit."""

    USER = "user"
    SYSTEM = "system"


@dataclass(frozen=True, slots=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str


Run = Callable[[Sequence[str]], Done]


class SystemdError(Exception):
    """systemd refused; the message is its own line with the command that it answers."""


@dataclass(frozen=True, slots=True)
class UnitState:
    """A unit as its manager sees it. ``exit_code`` is that of the last main process that ended."""

    active: str
    sub: str
    enabled: str
    main_pid: int
    result: str
    exit_code: int


class Systemd:
    """One unit under one manager. Methods raise SystemdError."""

    def __init__(self, run: Run, scope: Scope, unit_dir: Path, unit: str) -> None:
        self._run = run
        self.scope = scope
        self.unit = unit
        self.unit_file = unit_dir / unit

    @property
    def available(self) -> bool:
        """Whether this manager runs at all."""
        return self._run(self._command("is-system-running")).out.strip() in RUNNING_STATES

    @property
    def installed(self) -> bool:
        """Whether the unit was written here."""
        return self.unit_file.is_file()

    def state(self) -> UnitState:
        """What the manager knows of the unit."""
        answer = self._checked("show", f"--property={','.join(PROPERTIES)}", self.unit)
        values = dict(line.split("=", 1) for line in answer.splitlines() if "=" in line)
        return UnitState(
            active=values.get("ActiveState", "unknown"),
            sub=values.get("SubState", ""),
            enabled=values.get("UnitFileState", ""),
            main_pid=_number(values.get("MainPID", "")),
            result=values.get("Result", ""),
            exit_code=_number(values.get("ExecMainStatus", "")),
        )

    def install(self, text: str) -> None:
        """Write the unit and start it, now and whenever the manager starts; one that runs takes the new text."""
        self.unit_file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.unit_file.with_suffix(".new")
        temporary.write_text(text, encoding="utf-8")
        temporary.chmod(UNIT_MODE)
        temporary.replace(self.unit_file)
        self._checked("daemon-reload")
        self._checked("enable", self.unit)
        self._checked("restart", self.unit)

    def restart(self) -> None:
        """End the main process by the unit's restart signal and start it again."""
        self._checked("restart", self.unit)

    def kill(self, signal: str) -> None:
        """Send a signal to the main process only."""
        self._checked("kill", "--kill-who=main", f"--signal={signal}", self.unit)

    def stop(self) -> None:
        """Stop the unit, wait until it has stopped, and start it no more."""
        self._checked("disable", "--now", self.unit)

    def remove(self) -> None:
        """Forget the unit."""
        self.unit_file.unlink(missing_ok=True)
        self._checked("daemon-reload")
        # Of a unit that failed the manager keeps the failure; where there is none, this is refused, rightly.
        self._run(self._command("reset-failed", self.unit))

    def journal(self, lines: int, *, follow: bool, as_json: bool) -> list[str]:
        """The command that shows what the unit wrote."""
        by = "--user-unit" if self.scope is Scope.USER else "--unit"
        shown = "json" if as_json else "cat"
        command = ["journalctl", f"{by}={self.unit}", f"--lines={lines}", f"--output={shown}", "--no-pager"]
        return [*command, "--follow"] if follow else command

    def _command(self, *arguments: str) -> list[str]:
        scope = ["--user"] if self.scope is Scope.USER else []
        return ["systemctl", *scope, *arguments]

    def _checked(self, *arguments: str) -> str:
        command = self._command(*arguments)
        done = self._run(command)
        if done.code != 0:
            said = (done.err.strip() or done.out.strip() or f"exit code {done.code}").splitlines()[0]
            raise SystemdError(f"`{' '.join(command)}` failed: {said}")
        return done.out


def run_command(command: Sequence[str]) -> Done:
    """Run to the end; what a program that is not there, or that hangs, would say is put in its place."""
    try:
        done = subprocess.run(
            list(command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError:
        return Done(NOT_FOUND, "", f"{command[0]}: not found")
    except subprocess.TimeoutExpired:
        return Done(NOT_FOUND, "", f"no answer within {COMMAND_TIMEOUT_S:.0f} s")
    return Done(done.returncode, done.stdout, done.stderr)


def unit_dir(scope: Scope, config_home: Path) -> Path:
    """Where the manager looks for units that were installed by hand."""
    return SYSTEM_UNIT_DIR if scope is Scope.SYSTEM else config_home / USER_UNIT_DIR


def config_home(environ: Mapping[str, str]) -> Path:
    """Where this user's programs keep their settings."""
    given = environ.get("XDG_CONFIG_HOME", "")
    return Path(given) if Path(given).is_absolute() else Path("~/.config").expanduser()


def lingers(run: Run, user: str) -> bool:
    """Whether the user's manager, and what it runs, outlives the user's last session."""
    return run(["loginctl", "show-user", user, "--property=Linger", "--value"]).out.strip() == "yes"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerUnit:
    """What goes into the agent's unit. ``run_as`` is a user's name, for a system unit only.

    ``makes_boxes`` is for a system unit whose user is root: jobs run in boxes, never as that user.
    ``gpu_preparation`` is a program that makes the GPUs' device files, run with full rights before the agent; empty
    for none.
    """

    scope: Scope
    command: tuple[str, ...]
    search_path: str
    stop_s: int
    run_as: str = ""
    makes_boxes: bool = False
    gpu_preparation: tuple[str, ...] = ()


def unit_text(unit: WorkerUnit) -> str:
    """The unit, each line that is not obvious with its reason."""
    system = unit.scope is Scope.SYSTEM
    lines = [
        "[Unit]",
        "Description=Agent that offers this machine to a GPU network",
        *(("Wants=network-online.target", "After=network-online.target") if system else ()),
        "# The agent waits for the network by itself; a start is never refused for having been tried too often.",
        "StartLimitIntervalSec=0",
        "",
        "[Service]",
        "Type=exec",
        *((f"User={unit.run_as}",) if system else ()),
        *((f"ExecStartPre=+-{_words(unit.gpu_preparation)}",) if system and unit.gpu_preparation else ()),
        f"ExecStart={_words(unit.command)}",
        f"Environment={_quoted(f'PATH={unit.search_path}')}",
        "# Only the agent is signalled: keepers hold the Ray nodes and outlive a restart or an upgrade of it.",
        "KillMode=process",
        "# A restart makes the agent step aside; a stop drains the machine, as Ctrl-C does.",
        "RestartKillSignal=SIGHUP",
        "KillSignal=SIGTERM",
        f"TimeoutStopSec={unit.stop_s}",
        "# An agent that was killed comes back. One that left when asked to (0), was refused for good (1) or cannot",
        "# start like this (2), and one that was interrupted twice (130), stay down until somebody looks.",
        "Restart=always",
        "RestartPreventExitStatus=0 1 2 130",
        "RestartSec=10",
        "# A job that is killed for its memory must not take the agent and the other jobs with it.",
        "OOMPolicy=continue",
        "# Ray opens a connection per process and starts threads by the hundred.",
        "LimitNOFILE=65536",
        "TasksMax=infinity",
        "UMask=0077",
        *(_SYSTEM_SETTINGS if system else ()),
        *(_BOX_SETTINGS if system and unit.makes_boxes else _BARE_SETTINGS),
        *(_FILES_READ_ONLY if system and not unit.makes_boxes else ()),
        "",
        "[Install]",
        f"WantedBy={'multi-user.target' if system else 'default.target'}",
    ]
    return "\n".join(lines) + "\n"


_SYSTEM_SETTINGS = ("RestrictSUIDSGID=yes", "RestrictRealtime=yes", "LockPersonality=yes")

_FILES_READ_ONLY = (
    "# /usr, /boot and /etc are read-only for the agent and for every job.",
    "ProtectSystem=full",
)

_BARE_SETTINGS = (
    "# Jobs run under this user: none of them may become another by sudo or any setuid program.",
    "NoNewPrivileges=yes",
    "# Not PrivateTmp or PrivateDevices, and no narrower view of files or namespaces: nodes that outlive a restart",
    "# must see the /tmp of the agent that follows, and jobs need the GPUs' device files.",
)

_BOX_SETTINGS = (
    "# The agent is root to make boxes, and has no more of root's rights than that takes. No job is root: each box",
    "# has a user of its own, to whom nothing else on this machine belongs.",
    f"CapabilityBoundingSet={' '.join(BOX_CAPABILITIES)}",
    "NoNewPrivileges=yes",
    "# No Protect…, Private… or Read…Paths setting: each of them gives every start a view of mounts of its own, and an",
    "# agent that is started again would not see the scratch of boxes whose keepers outlived it.",
    "# Not Delegate: boxes have control groups of their own beside all units, so that their limits outlive a restart,",
    "# and this unit's group holds agent and keepers only. No DeviceAllow: the first one would deny all other devices",
    "# than those named, and the agent needs /dev/net/tun, loop devices and each GPU's files, of whatever driver. What a",
    "# box may open is decided for each box.",
)


def _words(words: Sequence[str]) -> str:
    """A command line: here, and only here, systemd also expands ``$``."""
    return " ".join(_quoted(word.replace("$", "$$")) for word in words)


def _quoted(text: str) -> str:
    """One word of a unit's line, whatever it holds: systemd expands ``%`` and splits at blanks."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"' if any(character in " \"'\\;" for character in text) else escaped


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0
