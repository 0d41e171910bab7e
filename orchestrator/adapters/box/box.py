"""One box from its making to its last trace.

    box = Box(spec)
    box.open()                                          scratch and cgroups
    box.launch_init(python, config, env, log_fd, report_fd)     made, and held before its first instruction
    box.connect()                                       filtered egress, where the policy gives any
    …                                                   the overlay's interface is moved in by `namespace_pid`
    box.release()                                       it runs
    Box(spec).destroy()                                 from the spec alone, by anyone, after any crash

Blocking, and meant for a small process that lives as long as the box: when the *thread* that called `launch` ends,
the kernel ends the box.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from orchestrator.adapters.box import init
from orchestrator.adapters.box.cgroups import BoxCgroups
from orchestrator.adapters.box.command import (
    ETC_PATHS,
    INIT_CONFIG_FILE,
    INIT_FILE,
    NVIDIA_GPU,
    SYS_PATHS,
    Descriptors,
    HostParts,
    become_user,
    bubblewrap_options,
    control_devices,
    inside_files,
)
from orchestrator.adapters.box.gpus import read_minors
from orchestrator.adapters.box.network import connect_egress, disconnect_egress
from orchestrator.adapters.box.records import BoxSpec, InitConfig
from orchestrator.adapters.box.scratch import create_scratch, remove_scratch
from orchestrator.adapters.box.seccomp import program
from orchestrator.adapters.box.tools import ADMIN_PATH, BoxError, attempt_all, tool_environment

TOP_LEVEL_NAMES = ("/bin", "/lib", "/lib32", "/lib64", "/libx32", "/sbin")
"""Links into /usr on most systems, directories on some."""

ENTER_CGROUPS = 'set -e; while [ "$1" != -- ]; do echo $$ > "$1"; shift; done; shift; exec "$@"'
"""The launcher enters the box's cgroups before it becomes bubblewrap: nothing in the box was ever outside of them."""

BUBBLEWRAP_PID = 1
FIRST_PID = 2
"""Inside: bubblewrap is process 1, and the first it starts is what was launched."""

SYS_DEVICES = Path("/sys/bus/pci/devices")
INFO_BYTES_MAX = 65536
"""Bubblewrap's description of what it made: some hundred bytes."""


class Box:
    """The box that a spec describes, whether it is there or not."""

    def __init__(self, spec: BoxSpec) -> None:
        """Remember the spec; nothing is made yet."""
        self.spec = spec
        self._cgroups = BoxCgroups(spec.name)
        self._block_fd = -1
        self._namespace_pid = 0

    @property
    def namespace_pid(self) -> int:
        """The host's pid of process 1 in the box, which is bubblewrap's; 0 when there is none.

        A Box that did not launch it finds it among the members.
        """
        if self._namespace_pid == 0:
            self._namespace_pid = self._member_with_inner_pid(BUBBLEWRAP_PID)
        return self._namespace_pid

    @property
    def first_pid(self) -> int:
        """The host's pid of the program that was launched; 0 before `release`, and when it has ended."""
        return self._member_with_inner_pid(FIRST_PID)

    def open(self) -> None:
        """Make the scratch and the cgroups. Raises BoxError and leaves nothing behind when that fails."""
        create_scratch(self.spec)
        try:
            self._cgroups.create(self.spec, _all_devices(self.spec))
        except BaseException:
            remove_scratch(self.spec)
            raise

    def report_pipe(self) -> tuple[int, int]:
        """Two descriptors: reports are read from the first; the second is to be given to `launch_init`, then closed."""
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(read_fd, False)
        return read_fd, write_fd

    def launch(
        self, argv: Sequence[str], env: Mapping[str, str], cwd: str, log_fd: int, report_fd: int
    ) -> int:
        """Make the box around `argv`, held before its first instruction; return the launcher's pid.

        The launcher is this process's child, to be collected by it, and ends when the box does. `log_fd` is the
        output of everything in the box that does not choose another, `report_fd` is open inside under its number.
        Raises BoxError when the box could not be made; what there is then is the caller's to destroy.
        """
        return self._launch(argv, env, cwd, (log_fd, report_fd), {})

    def launch_init(
        self, python: str, config: InitConfig, env: Mapping[str, str], log_fd: int, report_fd: int
    ) -> int:
        """Launch `init.py` with an interpreter found inside, and the command that it is told to start."""
        told = msgspec.json.encode(replace(config, report_fd=report_fd))
        files = {INIT_FILE: Path(init.__file__).read_bytes(), INIT_CONFIG_FILE: told}
        argv = [python, "-I", "-B", INIT_FILE, INIT_CONFIG_FILE]
        return self._launch(argv, env, self.spec.scratch_dir, (log_fd, report_fd), files)

    def connect(self) -> None:
        """Give the box what way out its policy allows; to be called before `release`."""
        if self.spec.egress == "internet":
            try:
                connect_egress(self.spec.name, self.namespace_pid)
            except BaseException:
                disconnect_egress(self.spec.name)
                raise

    def release(self) -> None:
        """Let the first process run."""
        if self._block_fd >= 0:
            os.write(self._block_fd, b"1")
            os.close(self._block_fd)
            self._block_fd = -1

    def terminate(self) -> None:
        """Ask what was launched to end, and with it the box; `init.py` gives the others a second.

        It runs tenants' code beside it and may not follow: `destroy` does not ask.
        """
        pid = self.first_pid
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def members(self) -> set[int]:
        """Return the live processes of the box, the launcher's included, by their pids on the host."""
        return self._cgroups.members()

    def destroy(self) -> None:
        """Kill everything in the box and remove every trace of it; good at any time, any number of times.

        Each step is tried whatever became of the others. Raises BoxError naming what is left.
        """
        steps: tuple[Callable[[], None], ...] = (
            self._cgroups.kill_all,
            lambda: disconnect_egress(self.spec.name),
            lambda: remove_scratch(self.spec),
            self._cgroups.remove,
        )
        complaints = attempt_all(steps)
        if self._block_fd >= 0:
            os.close(self._block_fd)
            self._block_fd = -1
        self._namespace_pid = 0
        if complaints:
            raise BoxError(f"box {self.spec.name} is not wholly gone: {'; '.join(complaints)}")

    def _member_with_inner_pid(self, inner_pid: int) -> int:
        """Return the member that has this pid inside; 0 when none has."""
        return next((pid for pid in sorted(self.members()) if _inner_pid(pid) == inner_pid), 0)

    def _launch(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: str,
        log_and_report: tuple[int, int],
        files: Mapping[str, bytes],
    ) -> int:
        """Start bubblewrap with all it reads in memory, so that no option and no content shows on the host."""
        parts = find_parts(self.spec, self._cgroups.shown_inside)
        log_fd, report_fd = log_and_report
        info_read, info_write = os.pipe2(os.O_CLOEXEC)
        block_read, self._block_fd = os.pipe2(os.O_CLOEXEC)
        with contextlib.ExitStack() as ours_no_longer:

            def passed(descriptor: int) -> int:
                ours_no_longer.callback(os.close, descriptor)
                return descriptor

            contents = {**inside_files(self.spec, env), **files}
            fds = Descriptors(
                seccomp=passed(_in_memory(program(platform.machine()))),
                info=passed(info_write),
                block=passed(block_read),
                files={path: passed(_in_memory(content)) for path, content in contents.items()},
            )
            options = "".join(f"{option}\0" for option in bubblewrap_options(self.spec, parts, fds))
            options_fd = passed(_in_memory(options.encode()))
            enter = ["/bin/sh", "-c", ENTER_CGROUPS, "orch-box", *map(str, self._cgroups.entry_files), "--"]
            process = subprocess.Popen(
                [*enter, "bwrap", "--args", str(options_fd), "--", *become_user(self.spec, parts, cwd, argv)],
                pass_fds=[fds.seccomp, fds.info, fds.block, options_fd, report_fd, *fds.files.values()],
                env=tool_environment(),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log_fd,
                stderr=log_fd,
            )
            # Whoever called us collects its children by pid; without this Popen would complain when it is freed.
            process.returncode = 0
        self._namespace_pid = _read_child_pid(info_read)
        if self._namespace_pid == 0:
            os.waitpid(process.pid, 0)
            raise BoxError("bubblewrap could not make the box; its reason stands at the end of the box's log")
        return process.pid


def find_parts(spec: BoxSpec, cgroups: tuple[tuple[str, str], ...]) -> HostParts:
    """Look on this host for what goes into a box's root directory. Raises BoxError for what must be there."""
    if sys.platform != "linux":
        raise BoxError(f"a box needs Linux, this is {sys.platform}")
    setpriv = shutil.which("setpriv", path=ADMIN_PATH)
    if setpriv is None:
        raise BoxError("setpriv is missing; install util-linux")
    for path in (*spec.readonly_dirs, spec.shared_dir, spec.scratch_dir, *spec.devices):
        if not Path(path).exists():
            raise BoxError(f"{path} of the box's spec does not exist on this machine")
    links = {name: str(Path(name).readlink()) for name in TOP_LEVEL_NAMES if Path(name).is_symlink()}
    folders = [name for name in TOP_LEVEL_NAMES if name not in links and Path(name).is_dir()]
    readonly = ["/usr", *folders, *(path for path in (*ETC_PATHS, *SYS_PATHS) if Path(path).exists())]
    return HostParts(
        links=links,
        readonly=tuple(readonly),
        devices=_all_devices(spec),
        cgroups=cgroups,
        gpu_sys_dirs=_gpu_sys_dirs(spec.devices),
        setpriv=setpriv,
    )


def _all_devices(spec: BoxSpec) -> tuple[str, ...]:
    """Return the assigned device files and the control devices that come along, as far as they exist."""
    wanted = (*spec.devices, *(path for path in control_devices(spec.devices) if Path(path).exists()))
    return tuple(dict.fromkeys(wanted))


def _gpu_sys_dirs(devices: Sequence[str]) -> tuple[str, ...]:
    """Return where sysfs describes the assigned NVIDIA GPUs; the driver says which minor number is which."""
    assigned = {path.removeprefix("/dev/nvidia") for path in devices if NVIDIA_GPU.fullmatch(path)}
    minors = read_minors() if assigned else {}
    folders = (SYS_DEVICES / place for place, minor in minors.items() if minor in assigned)
    return tuple(str(folder.resolve()) for folder in folders if folder.exists())


def _inner_pid(pid: int) -> int:
    """Return a process's pid in the PID namespace below ours; 0 when it is in ours, or gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            # The pids in each namespace, from ours to its own.
            if line.startswith("NSpid:"):
                pids = line.split()[1:]
                return int(pids[-1]) if len(pids) > 1 else 0
    return 0


def _in_memory(content: bytes) -> int:
    """Return a descriptor from which `content` can be read, and which is no file anywhere."""
    descriptor = os.memfd_create("orch-box")
    os.write(descriptor, content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _read_child_pid(info_fd: int) -> int:
    """Return the pid that bubblewrap tells of, 0 when it ended without; closes the descriptor."""
    told = b""
    with os.fdopen(info_fd, "rb", buffering=0) as pipe:
        while len(told) < INFO_BYTES_MAX:
            piece = pipe.read(4096)
            told += piece
            if not piece or b"}" in told:
                break
    try:
        return int(json.loads(told)["child-pid"])
    except (ValueError, KeyError):
        return 0
