"""One container from its making to its last trace: what `Box` does, done by podman.

    podman create · podman init     everything is made, namespaces too, and the first process held before it begins
    …                               the overlay's interface and the egress come into its network by `namespace_pid`
    podman start                    it runs
    podman rm                       and what is ours goes as with a box

Unlike a box a container outlives the process that made it, by its monitor. So `init.py`, inside, ends everything when
nobody is left to read its reports, and `destroy` works from the spec alone.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from orchestrator.adapters.box import init
from orchestrator.adapters.box.box import find_parts
from orchestrator.adapters.box.cgroups import MOUNTS_FILE
from orchestrator.adapters.box.command import ENVIRONMENT_FILE, INIT_CONFIG_FILE, INIT_FILE, inside_files
from orchestrator.adapters.box.network import connect_egress, disconnect_egress
from orchestrator.adapters.box.records import BoxSpec, InitConfig
from orchestrator.adapters.box.scratch import create_scratch, remove_scratch
from orchestrator.adapters.box.tools import BoxError, attempt_all
from orchestrator.adapters.container.cgroups import ContainerCgroups
from orchestrator.adapters.container.command import (
    REPORT_PATH,
    Ground,
    Limits,
    container_name,
    create_arguments,
)
from orchestrator.adapters.container.podman import podman
from orchestrator.adapters.container.records import ContainerSpec
from orchestrator.adapters.container.syscalls import PROFILE_PATHS, profile

FOLDER_SUFFIX = ".d"
"""Beside the scratch: what podman reads of ours."""

ROOT_DIR = "root"
ENV_FILE = "environment"
SECCOMP_FILE = "seccomp.json"
REPORT_FILE = "report"

REPORT_MODE = 0o602
"""Root's, and only to be written inside: with a reader there nobody would notice that the keeper has none any more."""

OPEN_FILES_MAX = 1024 * 1024
"""What container engines give; the machine's own limit where that is less."""

ROOT_FOLDERS = ("dev", "etc", "home", "proc", "run", "sys", "tmp", "usr", "var")

WALKABLE = 0o755

INSIDE_FILE_MODE = 0o444


class ContainerBox:
    """The container that two specs describe, whether it is there or not. The interface is Box's."""

    def __init__(self, spec: BoxSpec, container: ContainerSpec) -> None:
        """Remember the specs; nothing is made yet."""
        self.spec = spec
        self._container = container
        self._name = container_name(spec)
        self._cgroups = ContainerCgroups(spec.name)
        self._folder = Path(spec.scratch_dir + FOLDER_SUFFIX)
        self._namespace_pid = 0

    @property
    def namespace_pid(self) -> int:
        """The host's pid of process 1 in the container; 0 when there is none."""
        if self._namespace_pid == 0:
            with contextlib.suppress(BoxError, ValueError):
                self._namespace_pid = self._states()[0]
        return self._namespace_pid

    def open(self) -> None:
        """Make the scratch and the folder of ours. Raises BoxError and leaves nothing behind when that fails."""
        create_scratch(self.spec)
        try:
            self._folder.mkdir(mode=0o700)
            os.mkfifo(self._folder / REPORT_FILE)
            (self._folder / REPORT_FILE).chmod(REPORT_MODE)
        except OSError as error:
            remove_scratch(self.spec)
            raise BoxError(
                f"{error.filename}: {error.strerror}; destroy the container that has it"
            ) from error

    def report_pipe(self) -> tuple[int, int]:
        """Two descriptors: reports are read from the first; the second is to be given to `launch_init`, then closed."""
        path = self._folder / REPORT_FILE
        read_fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        return read_fd, os.open(path, os.O_WRONLY | os.O_CLOEXEC)

    def launch(
        self, argv: Sequence[str], env: Mapping[str, str], cwd: str, log_fd: int, report_fd: int
    ) -> int:
        """As Box.launch; what is returned is the monitor's pid, a child of whoever is subreaper here."""
        del report_fd
        return self._launch(argv, env, cwd, log_fd, {})

    def launch_init(
        self, python: str, config: InitConfig, env: Mapping[str, str], log_fd: int, report_fd: int
    ) -> int:
        """As Box.launch_init; podman passes no descriptors on, so the reports' FIFO is named inside."""
        del report_fd
        told = msgspec.json.encode(replace(config, report_file=REPORT_PATH))
        files = {INIT_FILE: Path(init.__file__).read_bytes(), INIT_CONFIG_FILE: told}
        argv = [python, "-I", "-B", INIT_FILE, INIT_CONFIG_FILE]
        return self._launch(argv, env, self.spec.scratch_dir, log_fd, files)

    def connect(self) -> None:
        """As Box.connect."""
        if self.spec.egress == "internet":
            try:
                connect_egress(self.spec.name, self.namespace_pid)
            except BaseException:
                disconnect_egress(self.spec.name)
                raise

    def release(self) -> None:
        """Let the first process run. Raises BoxError when it is gone already."""
        self._podman("start", self._name)

    def wait(self) -> int:
        """Wait for its end and return the first process's exit code."""
        return int(self._podman("wait", self._name))

    def terminate(self) -> None:
        """As Box.terminate."""
        if self.namespace_pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.namespace_pid, signal.SIGTERM)

    def members(self) -> set[int]:
        """Return the live processes of the container by their pids on the host; the monitor is none of them."""
        return self._cgroups.members()

    def destroy(self) -> None:
        """As Box.destroy."""
        steps: tuple[Callable[[], object], ...] = (
            self._cgroups.kill_all,
            lambda: self._podman("rm", "--force", "--ignore", "--time=0", self._name),
            lambda: disconnect_egress(self.spec.name),
            lambda: remove_scratch(self.spec),
            lambda: _remove_folder(self._folder),
            self._cgroups.remove,
        )
        complaints = attempt_all(steps)
        self._namespace_pid = 0
        if complaints:
            raise BoxError(f"container {self._name} is not wholly gone: {'; '.join(complaints)}")

    def _podman(self, *arguments: str) -> str:
        return podman(self._container.runtime, arguments)

    def _states(self) -> tuple[int, int]:
        """The pids of process 1 and of the monitor."""
        told = self._podman(
            "inspect", "--type=container", "--format={{.State.Pid}} {{.State.ConmonPid}}", self._name
        )
        first, monitor = told.split()
        return int(first), int(monitor)

    def _launch(
        self, argv: Sequence[str], env: Mapping[str, str], cwd: str, log_fd: int, files: Mapping[str, bytes]
    ) -> int:
        """Write what podman reads, and have it make everything and hold the first process."""
        ground = self._ground(env, log_fd, files)
        self._podman(*create_arguments(self.spec, self._container, ground, argv, cwd))
        self._podman("init", self._name)
        self._namespace_pid, monitor = self._states()
        if not self._namespace_pid:
            raise BoxError("podman made the container, but no process is held in it")
        return monitor

    def _ground(self, env: Mapping[str, str], log_fd: int, files: Mapping[str, bytes]) -> Ground:
        """Lay out the folder and the root directory."""
        parts = find_parts(self.spec, ())
        has_image = bool(self._container.image)
        if not has_image:
            self._make_root(parts.links)
        env_file = self._folder / ENV_FILE
        env_file.write_text(environment_lines(env))
        env_file.chmod(0o600)
        contents = {**inside_files(self.spec, {}), **files}
        del contents[ENVIRONMENT_FILE]
        return Ground(
            root_dir=str(self._folder / ROOT_DIR),
            env_file=str(env_file),
            seccomp_file=write_profile(self._folder),
            log_file=_regular_file(log_fd),
            limits=_own_limits(),
            readonly=()
            if has_image
            else tuple(path for path in parts.readonly if not path.startswith("/sys/")),
            devices=parts.devices,
            files=tuple(
                (self._write_inside(number, content), path)
                for number, (path, content) in enumerate(contents.items())
            ),
            report_file=str(self._folder / REPORT_FILE),
        )

    def _make_root(self, links: Mapping[str, str]) -> None:
        """An empty root directory with the links of a merged /usr; it is the host's root's, and read-only inside."""
        root = self._folder / ROOT_DIR
        # In this order, and whatever the umask of a service says: the box's user has to walk there.
        for folder in (root, *(root / name for name in ROOT_FOLDERS)):
            folder.mkdir()
            folder.chmod(WALKABLE)
        for name, target in (*links.items(), ("/var/tmp", "/tmp"), ("/var/run", "/run")):  # noqa: S108 - the same
            (root / name.lstrip("/")).symlink_to(target)

    def _write_inside(self, number: int, content: bytes) -> str:
        path = self._folder / f"inside-{number}"
        path.write_bytes(content)
        path.chmod(INSIDE_FILE_MODE)
        return str(path)


def write_profile(folder: Path) -> str:
    """Write the list of system calls and return its path; empty where podman's is no file and it takes its own."""
    found = next((Path(path) for path in PROFILE_PATHS if Path(path).is_file()), None)
    if found is None:
        return ""
    path = folder / SECCOMP_FILE
    path.write_text(profile(found.read_text()))
    return str(path)


def environment_lines(env: Mapping[str, str]) -> str:
    """The environment as podman reads it from a file. Raises ValueError for what has no place on one line."""
    for name, value in env.items():
        if "\n" in value or "\0" in value or "=" in name or not name:
            raise ValueError(f"environment variable {name!r} cannot be given to a container: it spans lines")
    return "".join(f"{name}={value}\n" for name, value in env.items())


def _regular_file(descriptor: int) -> str:
    """The path behind a descriptor; empty where it is no file of the disk."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        return ""
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())


def _own_limits() -> Limits:
    """What this process may pass on. `RLIM_INFINITY` is no number that may be compared."""
    hard = {kind: resource.getrlimit(kind)[1] for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC)}
    bounded = {
        kind: OPEN_FILES_MAX if value == resource.RLIM_INFINITY else min(value, OPEN_FILES_MAX)
        for kind, value in hard.items()
    }
    return Limits(bounded[resource.RLIMIT_NOFILE], bounded[resource.RLIMIT_NPROC])


def _remove_folder(folder: Path) -> None:
    """Delete it, unless something is mounted below it still: what lies there would go too."""
    if any(line.split()[4].startswith(f"{folder}/") for line in MOUNTS_FILE.read_text().splitlines()):
        raise BoxError(f"something is mounted below {folder}; unmount it and delete the folder")
    shutil.rmtree(folder, ignore_errors=True)
