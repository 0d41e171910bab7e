"""The cgroups of one container: `orch/NAME` in every hierarchy, as a box's, and below it what podman makes.

The limits are podman's own, on its part; these are for knowing who belongs to it and for ending all of them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from orchestrator.adapters.box.cgroups import KILL_INTERVAL_S, KILL_LOOKS, MOUNTS_FILE, PARENT
from orchestrator.adapters.box.tools import BoxError


def cgroup_parent(name: str) -> str:
    """The path, below each hierarchy's root, that podman is given."""
    return f"/{PARENT}/{name}"


def cgroup_mounts(mountinfo: str) -> tuple[Path, ...]:
    """Where hierarchies of either version are mounted: podman enters every one."""
    found: list[Path] = []
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        if after.split(" ", 1)[0] in ("cgroup", "cgroup2"):
            found.append(Path(before.split()[4].replace("\\040", " ")))
    return tuple(dict.fromkeys(found))


class ContainerCgroups:
    """The cgroups of one container, known by its name alone."""

    def __init__(self, name: str, mounts: tuple[Path, ...] | None = None) -> None:
        """Find where they would be."""
        mounts = cgroup_mounts(MOUNTS_FILE.read_text()) if mounts is None else mounts
        self.folders = tuple(mount / PARENT / name for mount in mounts)

    def members(self) -> set[int]:
        """Return the live processes of the container, by their pids on the host."""
        found: set[int] = set()
        for path in self.folders:
            for entry in path.rglob("cgroup.procs") if path.is_dir() else ():
                # A cgroup that is being removed reads as ENODEV.
                with contextlib.suppress(OSError):
                    found |= {int(line) for line in entry.read_text().split()}
        return found - {0}

    def kill_all(self) -> None:
        """Kill every process, and return when none is left. Raises BoxError when some survive."""
        for path in self.folders:
            limit = path / "pids.max"
            if limit.exists():
                # Nothing new is forked from here on: a fork bomb is caught up with.
                with contextlib.suppress(OSError):
                    limit.write_text("0")
        for _ in range(KILL_LOOKS):
            members = self.members()
            if not members:
                return
            for pid in members:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(KILL_INTERVAL_S)
        raise BoxError(f"processes {sorted(self.members())} survived SIGKILL; they hang in the kernel")

    def remove(self) -> None:
        """Remove the empty cgroups from the innermost outwards, and their parent with the last of them."""
        for path in self.folders:
            if not path.is_dir():
                continue
            for folder in (*sorted((one for one in path.rglob("*") if one.is_dir()), reverse=True), path):
                _remove(folder)
            with contextlib.suppress(OSError):
                path.parent.rmdir()


def _remove(folder: Path) -> None:
    for _ in range(KILL_LOOKS):
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            # The last process has left the list of members, but is not wholly gone yet.
            time.sleep(KILL_INTERVAL_S)
        else:
            return
    raise BoxError(f"{folder} cannot be removed")
