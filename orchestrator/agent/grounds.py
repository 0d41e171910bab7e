"""What a Ray node stands on: the bare machine, or a box with a network of its own.

Either starts the same command, says how the node is, and ends exactly what belongs to it. Only the keeper uses them:
they are its children that are judged here, and it is the one that collects them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

from orchestrator.adapters.box.box import Box
from orchestrator.adapters.box.network import refresh_egress
from orchestrator.adapters.box.records import BoxSpec, InitConfig
from orchestrator.adapters.box.tools import BoxError
from orchestrator.adapters.container.container import ContainerBox
from orchestrator.adapters.node_records import NodeSpec, Transport
from orchestrator.adapters.overlay.process import OverlayError, interface_name
from orchestrator.adapters.overlay.tunnels import NONE, Tunnels
from orchestrator.adapters.process_tree import PROC, ProcessesRemainError, end_descendants, parents, reap
from orchestrator.agent.ways import OverlayWay

OVERLAY_DIR = "overlay"
"""Below the member's directory: the files of its nebula."""

RAY_LOG_FILE = "ray-start.log"

BOX_LOG_FILE = "box.log"
"""What the launcher of a box says, and whatever in it writes to an output that it did not choose."""

REASON_CHARS = 600
"""The end of Ray's output that explains a failed start, short enough for a status message."""

RAYLET = "raylet"
"""The process that is the node; every role has one."""

VITAL_NAMES = ("gcs_server", RAYLET)
"""Ray processes without which the node is none; the dashboard is told apart by its script."""

DASHBOARD_SCRIPT = "dashboard/dashboard.py"

EGRESS_LOOKS = 240
"""Once a minute: a laptop that moved has no way out until then."""

REPORT_BYTES_MAX = 64 * 1024
"""The box's first process writes three lines; what a tenant's code wrote in its place is not read any further."""

ChildState = Literal["waiting", "starting", "up", "start_failed", "died"]


class Ground(Protocol):
    """What the keeper needs of either."""

    namespace_pid: int
    """A process in the node's own network; 0 where it is in the machine's."""

    @property
    def transport(self) -> Transport | Literal[""]:
        """How the node's overlay gets out of this machine; empty without one."""

    @property
    def tunnels(self) -> Tunnels:
        """The overlay's, to other members."""

    def advance(self) -> tuple[ChildState, str]:
        """Take the next step of the start that is possible, notice what has ended: (how it is, the detail)."""

    def end(self) -> str:
        """End every process and remove what the ground was made of; what could not be ended, in words."""


class Bare:
    """The machine itself: the node's processes are this one's descendants, and found by that."""

    namespace_pid = 0
    transport: Literal[""] = ""
    tunnels = NONE

    def __init__(
        self, member_dir: Path, spec: NodeSpec, command: Sequence[str], env: Mapping[str, str]
    ) -> None:
        self._log = member_dir / RAY_LOG_FILE
        self._spec = spec
        self._command = command
        self._env = env
        self._state: ChildState = "waiting"
        self._detail = ""
        self._start_pid = 0
        self._start_lock_fd = -1
        self._vital: dict[int, str] = {}

    def advance(self) -> tuple[ChildState, str]:
        """As Ground.advance."""
        for pid, code in reap().items():
            self._on_exit(pid, code)
        if self._state == "waiting" and self._take_start_turn():
            self._start()
        return self._state, self._detail

    def end(self) -> str:
        """As Ground.end."""
        try:
            end_descendants()
        except ProcessesRemainError as error:
            return str(error)
        finally:
            reap()
        return ""

    def _on_exit(self, pid: int, code: int) -> None:
        """Judge one ended process: the start command, a vital one, or one that may come and go."""
        if pid == self._start_pid and self._state == "starting":
            os.close(self._start_lock_fd)
            if code != 0:
                self._state, self._detail = "start_failed", f"exit {code}: {self._output()}"
                return
            self._vital = vital_children(os.getpid())
            if RAYLET not in self._vital.values():
                self._state, self._detail = "start_failed", f"no raylet stayed: {self._output()}"
                return
            self._state = "up"
        elif pid in self._vital:
            self._state, self._detail = "died", f"{self._vital[pid]} (exit {code})"

    def _take_start_turn(self) -> bool:
        """Lock the start of nodes that share this temp directory: two at once race for socket names."""
        if self._start_lock_fd < 0:
            lock = Path(self._spec.temp_dir) / "start.lock"
            self._start_lock_fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._start_lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _start(self) -> None:
        """Start Ray's own start command, its output in a file of ours."""
        with self._log.open("wb") as log:
            process = subprocess.Popen(
                self._command,
                env=dict(self._env),
                cwd=self._spec.temp_dir,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._start_pid, self._state = process.pid, "starting"
        # `reap` collects it, by pid; without this Popen would complain when it is collected
        process.returncode = 0

    def _output(self) -> str:
        """Return the end of what `ray start` printed, on one line."""
        return " ".join(self._log.read_text(errors="replace").split())[-REASON_CHARS:]


class Boxed:
    """A box: its first process starts the node and ends with it; nebula, outside, holds its way to the cluster."""

    def __init__(
        self,
        member_dir: Path,
        spec: NodeSpec,
        box: BoxSpec,
        command: Sequence[str],
        env: Mapping[str, str],
    ) -> None:
        self.namespace_pid = 0
        self._spec = spec
        self._log = member_dir / BOX_LOG_FILE
        self._box = box_of(spec, box)
        self._command = command
        self._env = env
        self._overlay = _way(member_dir, spec, box)
        self._looks = 0
        self._report_fd = -1
        self._heard = b""
        self._pid = 0
        self._state: ChildState = "waiting"
        self._detail = ""

    @property
    def transport(self) -> Transport | Literal[""]:
        """As Ground.transport."""
        return "" if self._overlay is None else self._overlay.transport

    @property
    def tunnels(self) -> Tunnels:
        """As Ground.tunnels."""
        return NONE if self._overlay is None else self._overlay.tunnels

    def advance(self) -> tuple[ChildState, str]:
        """As Ground.advance."""
        if self._state == "waiting":
            self._start()
        ended = reap().get(self._pid)
        self._listen()
        if ended is not None and self._state in ("starting", "up"):
            # It said why, if it could; the kernel ends it without a word where its memory is used up.
            state: ChildState = "start_failed" if self._state == "starting" else "died"
            self._state, self._detail = state, f"the box ended (exit {ended})"
        if self._state in ("starting", "up"):
            if self._overlay is not None:
                # What does not come up now is tried again; a keeper that ended would take the node with it.
                with contextlib.suppress(OverlayError, OSError):
                    self._overlay.tend(self.namespace_pid)
            self._tend_egress()
        return self._state, self._detail

    def end(self) -> str:
        """As Ground.end."""
        if self._overlay is not None:
            self._overlay.stop()
        if self._report_fd >= 0:
            os.close(self._report_fd)
            self._report_fd = -1
        try:
            self._box.destroy()
        except BoxError as error:
            return f"the box was not removed whole: {error}"
        finally:
            reap()
        return ""

    def _start(self) -> None:
        """Make the box, give it its network, and only then let it begin."""
        init = InitConfig(
            command=tuple(self._command),
            log_file=str(Path(self._spec.temp_dir) / RAY_LOG_FILE),
            vital_names=VITAL_NAMES,
            vital_scripts=((DASHBOARD_SCRIPT, "dashboard"),),
            required_names=(RAYLET,),
        )
        log_fd = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        report_fd = -1
        try:
            self._box.open()
            self._report_fd, report_fd = self._box.report_pipe()
            for folder in (self._env["HOME"], self._env["TMPDIR"]):
                _make_owned(Path(folder), self._box.spec.user_id)
            self._pid = self._box.launch_init(self._spec.interpreter, init, self._env, log_fd, report_fd)
            self.namespace_pid = self._box.namespace_pid
            self._box.connect()
            if self._overlay is not None:
                self._overlay.start(self.namespace_pid)
            self._box.release()
            self._state = "starting"
        except (OSError, ValueError, BoxError, OverlayError) as error:
            self._state, self._detail = "start_failed", f"the box could not be made: {error}"
        finally:
            if report_fd >= 0:
                os.close(report_fd)
            os.close(log_fd)

    def _listen(self) -> None:
        """Hear what the box's first process says."""
        with contextlib.suppress(BlockingIOError, OSError):
            self._heard += os.read(self._report_fd, REPORT_BYTES_MAX)
        *lines, self._heard = self._heard[:REPORT_BYTES_MAX].split(b"\n")
        for line in lines:
            state, detail = _reported(line)
            if state == "up" and self._state == "starting":
                self._state = "up"
            elif state and state != "up" and self._state in ("starting", "up"):
                self._state = "start_failed" if self._state == "starting" else "died"
                self._detail = detail

    def _tend_egress(self) -> None:
        """Have the way out follow the machine into another network; what it must not reach is there another, too."""
        self._looks += 1
        if self._looks % EGRESS_LOOKS == 0 and self._box.spec.egress == "internet":
            with contextlib.suppress(BoxError):
                refresh_egress(self._box.spec.name)


def box_of(spec: NodeSpec, box: BoxSpec) -> Box | ContainerBox:
    """The box of a node, made by bubblewrap or by podman; either is driven alike."""
    return Box(box) if spec.container is None else ContainerBox(box, spec.container)


def ground_of(member_dir: Path, spec: NodeSpec, command: Sequence[str], env: Mapping[str, str]) -> Ground:
    """The ground that a node was prepared for."""
    if spec.box is None:
        return Bare(member_dir, spec, command, env)
    return Boxed(member_dir, spec, spec.box, command, env)


def vital_children(keeper_pid: int) -> dict[int, str]:
    """Return pid → name of the orphans handed to this keeper whose death is the node's death."""
    found: dict[int, str] = {}
    for pid, parent in parents().items():
        if parent != keeper_pid:
            continue
        with contextlib.suppress(OSError):
            argv = (PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
            name = Path(argv[0]).name
            if name in VITAL_NAMES:
                found[pid] = name
            elif any(word.endswith(DASHBOARD_SCRIPT) for word in argv):
                found[pid] = "dashboard"
    return found


def _way(member_dir: Path, spec: NodeSpec, box: BoxSpec) -> OverlayWay | None:
    if not spec.overlay_address:
        return None
    return OverlayWay(
        member_dir / OVERLAY_DIR, interface=interface_name(box.name), address=spec.overlay_address
    )


def _make_owned(folder: Path, user_id: int) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    os.chown(folder, user_id, user_id, follow_symlinks=False)


def _reported(line: bytes) -> tuple[str, str]:
    """(state, detail) of one line; the tenant's own user wrote it, so it may be anything."""
    with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
        said = json.loads(line)
        return _plain(said["state"]), _plain(said["detail"])
    return "", ""


def _plain(value: object) -> str:
    """Short, and such as any file takes."""
    return str(value)[:REASON_CHARS].encode("utf-8", "replace").decode()
