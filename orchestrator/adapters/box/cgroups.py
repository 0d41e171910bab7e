"""The limits of one box's memory, processes and processor time: cgroup v1 or v2, whichever the machine has.

Every box has a cgroup `orch/NAME` (in each v1 hierarchy that counts). All of its processes are in it from before
their first instruction to their end, so it also answers who belongs to a box, whoever started it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.adapters.box.records import BoxSpec
from orchestrator.adapters.box.tools import BoxError

PARENT = "orch"
MOUNTS_FILE = Path("/proc/self/mountinfo")
CONTROLLERS = ("memory", "pids", "cpu", "devices")
REQUIRED = ("memory", "pids")

CPU_PERIOD_US = 100_000
"""The kernel's own default; shorter ones only cost more switching."""

KILL_INTERVAL_S = 0.01
KILL_LOOKS = 1000
"""Ten seconds: a process that survives SIGKILL this long hangs in the kernel, and waiting longer would not help."""

COMMON_DEVICES = ("1:3", "1:5", "1:7", "1:8", "1:9", "5:0", "5:2", "136:*")
"""null, zero, full, random, urandom, tty, ptmx and the box's own terminals."""


@dataclass(frozen=True, slots=True)
class Hierarchies:
    """Where the machine's cgroups are mounted. `version` 0: nowhere usable."""

    version: int
    mounts: dict[str, Path]
    """Controller → mount point; under v2 they all share one."""


def find_hierarchies(mountinfo: str) -> Hierarchies:
    """Read where cgroups are mounted. v2 counts only where it is the whole of it; beside v1 it has no controllers."""
    version1: dict[str, Path] = {}
    version2: Path | None = None
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        mount_point = Path(before.split()[4].replace("\\040", " "))
        kind, _, options = after.split(" ", 2)
        if kind == "cgroup":
            for controller in CONTROLLERS:
                if controller in options.split()[-1].split(","):
                    version1.setdefault(controller, mount_point)
        elif kind == "cgroup2":
            version2 = mount_point
    if all(name in version1 for name in REQUIRED):
        return Hierarchies(1, version1)
    if version2 is not None:
        return Hierarchies(2, dict.fromkeys(("memory", "pids", "cpu"), version2))
    return Hierarchies(0, {})


class BoxCgroups:
    """The cgroups of one box, known by its name alone."""

    def __init__(self, name: str, hierarchies: Hierarchies | None = None) -> None:
        """Find where they are, or would be."""
        self._hierarchies = hierarchies or find_hierarchies(MOUNTS_FILE.read_text())
        self._dirs = {
            controller: mount / PARENT / name for controller, mount in self._hierarchies.mounts.items()
        }

    @property
    def shown_inside(self) -> tuple[tuple[str, str], ...]:
        """(directory on the host, where a process in the box looks for it)."""
        if self._hierarchies.version == 1:
            return tuple((str(self._dirs[name]), f"/sys/fs/cgroup/{name}") for name in self._made())
        return tuple((str(path), "/sys/fs/cgroup") for path in self._unique_dirs())

    @property
    def entry_files(self) -> tuple[Path, ...]:
        """The files in which a process writes its pid to enter."""
        return tuple(path / "cgroup.procs" for path in self._unique_dirs())

    def create(self, spec: BoxSpec, devices: Sequence[str]) -> None:
        """Make them, with their limits. Raises BoxError, in one sentence, where the machine does not let us."""
        if not self._hierarchies.version:
            raise BoxError("no cgroup file system is mounted; mount cgroup2 at /sys/fs/cgroup")
        try:
            if self._hierarchies.version == 1:
                self._create_v1(spec, devices)
            else:
                self._create_v2(spec)
        except OSError as error:
            self.remove()
            raise BoxError(
                f"cgroups cannot be set up: {error.filename}: {error.strerror}; run the agent as root on the host, "
                "outside of containers that mount cgroups read-only"
            ) from error

    def members(self) -> set[int]:
        """Return the live processes in the box, by their pids on the host."""
        found: set[int] = set()
        for entry in self.entry_files:
            # A cgroup that is being removed reads as ENODEV.
            with contextlib.suppress(OSError):
                found |= {int(line) for line in entry.read_text().split()}
        return found - {0}

    def kill_all(self) -> None:
        """Kill every process in the box, and return when none is left. Raises BoxError when some survive."""
        if not self.members():
            return
        if "pids" in self._dirs:
            # Nothing new is forked from here on: a fork bomb is caught up with.
            with contextlib.suppress(OSError):
                (self._dirs["pids"] / "pids.max").write_text("0")
        for _ in range(KILL_LOOKS):
            members = self.members()
            if not members:
                return
            for path in self._unique_dirs():
                with contextlib.suppress(OSError):
                    (path / "cgroup.kill").write_text("1")
            for pid in members:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(KILL_INTERVAL_S)
        raise BoxError(f"processes {sorted(self.members())} survived SIGKILL; they hang in the kernel")

    def remove(self) -> None:
        """Remove the empty cgroups, and their parent with the last of them."""
        for path in self._unique_dirs():
            for _ in range(KILL_LOOKS):
                try:
                    path.rmdir()
                except FileNotFoundError:
                    break
                except OSError:
                    # The last process has left the list of members, but is not wholly gone yet.
                    time.sleep(KILL_INTERVAL_S)
                else:
                    break
            else:
                raise BoxError(f"{path} cannot be removed; its processes are {sorted(self.members())}")
            with contextlib.suppress(OSError):
                path.parent.rmdir()

    def _unique_dirs(self) -> tuple[Path, ...]:
        """Return each directory once: v2, and joint v1 mounts, have several controllers in one."""
        return tuple(dict.fromkeys(path for path in self._dirs.values() if path.is_dir()))

    def _made(self) -> list[str]:
        """Return the controllers whose directory is there."""
        return [name for name, path in self._dirs.items() if path.is_dir()]

    def _create_v1(self, spec: BoxSpec, devices: Sequence[str]) -> None:
        """Make one directory in each hierarchy; swap, time and device limits where the kernel has them."""
        for name, path in self._dirs.items():
            if name in REQUIRED or os.access(path.parents[1], os.W_OK):
                _make_dir(path)
        _write(self._dirs["memory"] / "memory.limit_in_bytes", spec.memory_bytes)
        _write_if_there(self._dirs["memory"] / "memory.memsw.limit_in_bytes", spec.memory_bytes)
        _write(self._dirs["pids"] / "pids.max", spec.pids_max)
        if spec.cpus and "cpu" in self._dirs:
            _write(self._dirs["cpu"] / "cpu.cfs_period_us", CPU_PERIOD_US)
            _write(self._dirs["cpu"] / "cpu.cfs_quota_us", round(spec.cpus * CPU_PERIOD_US))
        if "devices" in self._made():
            _write(self._dirs["devices"] / "devices.deny", "a")
            for kind in (*(f"c {number} rw" for number in COMMON_DEVICES), *map(_device_rule, devices)):
                _write(self._dirs["devices"] / "devices.allow", kind)

    def _create_v2(self, spec: BoxSpec) -> None:
        """Hand the controllers down and set the limits. Devices: only what is in the box's /dev, and no mknod."""
        path = self._dirs["memory"]
        for above in (path.parents[1], path.parent):
            above.mkdir(exist_ok=True)
            offered = set((above / "cgroup.controllers").read_text().split())
            if not offered.issuperset(REQUIRED):
                raise BoxError(
                    f"{above} offers no {' and '.join(REQUIRED)} controllers; run the agent on the host"
                )
            wanted = offered & set(self._dirs) - set((above / "cgroup.subtree_control").read_text().split())
            if wanted:
                _write(above / "cgroup.subtree_control", " ".join(f"+{name}" for name in sorted(wanted)))
        _make_dir(path)
        _write(path / "memory.max", spec.memory_bytes)
        _write_if_there(path / "memory.swap.max", 0)
        _write(path / "pids.max", spec.pids_max)
        if spec.cpus:
            _write(path / "cpu.max", f"{round(spec.cpus * CPU_PERIOD_US)} {CPU_PERIOD_US}")


def _make_dir(path: Path) -> None:
    """Make a cgroup; the parent may vanish under our feet when another box, its last, is removed."""
    for last_try in (False, True):
        path.parent.mkdir(exist_ok=True)
        try:
            path.mkdir(exist_ok=True)
        except FileNotFoundError:
            if last_try:
                raise
        else:
            return


def _device_rule(path: str) -> str:
    """Return the rule that lets one device file be read and written, but no new one be made."""
    status = Path(path).stat()
    kind = "b" if stat.S_ISBLK(status.st_mode) else "c"
    return f"{kind} {os.major(status.st_rdev)}:{os.minor(status.st_rdev)} rw"


def _write(path: Path, value: object) -> None:
    """Set one of the kernel's knobs; its error names the file."""
    try:
        path.write_text(f"{value}\n")
    except OSError as error:
        # The kernel refuses at the write, where Python does not know the file's name.
        raise OSError(error.errno, error.strerror, str(path)) from error


def _write_if_there(path: Path, value: object) -> None:
    """Set a knob that some kernels do not have."""
    if path.exists():
        _write(path, value)
