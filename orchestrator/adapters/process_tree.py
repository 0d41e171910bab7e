"""Ending exactly the processes of one Ray node, and nothing else on the machine.

Ray's processes leave their parents, sessions and process groups, so neither a process group nor a parent's
death ends them. Two handles remain: a keeper that is their child subreaper sees every orphan become its own
child; and all of them inherit an environment variable that names their member, for when the keeper itself was
killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from orchestrator.adapters.ray_node import MEMBER_ID_ENV

PROC = Path("/proc")
PR_SET_CHILD_SUBREAPER = 36
"""From linux/prctl.h; ctypes has no names for it."""

TERM_GRACE_S = 1.0
"""Long enough for a driver to flush its output, short enough that a lapsed lease ends at once."""

POLL_INTERVAL_S = 0.02
"""Killed processes vanish within milliseconds; this is only how often we look."""

END_TIMEOUT_S = 10.0
"""A process that survives SIGKILL this long hangs in the kernel; waiting longer would not help."""


QUIET_LOOKS = 3
"""60 ms without a find; fork and exec take a millisecond, and a killed process starts nothing more."""


class ProcessesRemainError(RuntimeError):
    """Some processes survived SIGKILL; the message names their ids."""


def become_subreaper() -> None:
    """Make this process the one that orphaned descendants are handed to.

    Raises OSError where the kernel refuses.
    """
    if sys.platform != "linux":
        raise OSError(f"a child subreaper needs Linux, this is {sys.platform}")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


def parents() -> dict[int, int]:
    """Return pid → parent pid of every live process; zombies, which hold only an exit code, are left out."""
    parent_of, zombies = _scan()
    return {pid: parent for pid, parent in parent_of.items() if pid not in zombies}


def descendants(roots: set[int]) -> set[int]:
    """Return the live processes seen below `roots`, without them.

    A scan is no snapshot: what is forked or handed on meanwhile can be missed, so an empty answer proves
    nothing.
    """
    parent_of, zombies = _scan()
    children: dict[int, list[int]] = {}
    for pid, parent in parent_of.items():
        children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    frontier = list(roots)
    while frontier:
        for pid in children.get(frontier.pop(), ()):
            if pid not in found and pid not in roots:
                found.add(pid)
                frontier.append(pid)
    return found - zombies


def marked_processes(member_id: str) -> set[int]:
    """Return the processes of this user whose environment names `member_id`, this process excepted."""
    mark = f"{MEMBER_ID_ENV}={member_id}".encode()
    found: set[int] = set()
    for pid in parents():
        # Another user's environment cannot be read, and is none of ours.
        with contextlib.suppress(OSError):
            entry = PROC / str(pid)
            if entry.stat().st_uid == os.getuid() and mark in (entry / "environ").read_bytes().split(b"\0"):
                found.add(pid)
    return found - {os.getpid()}


def end_descendants(grace_s: float = TERM_GRACE_S) -> None:
    """End every process below this subreaper: SIGTERM, a short grace, then SIGKILL until none is left.

    The kernel says when that is: orphans become our children, so a subreaper without children has no
    descendants.
    """
    me = os.getpid()
    _end(lambda: descendants({me}), lambda _: not _has_children(), grace_s)


def sweep(member_id: str) -> int:
    """Kill all processes marked with `member_id` and those below them; return how many were met.

    Only marks are left to go by here, and one look can miss a process in the middle of fork or exec, so it is
    over when several looks in a row find nothing.
    """
    quiet_looks = 0

    def remaining() -> set[int]:
        marked = marked_processes(member_id)
        return marked | descendants(marked) if marked else set()

    def is_over(pids: set[int]) -> bool:
        nonlocal quiet_looks
        quiet_looks = 0 if pids else quiet_looks + 1
        return quiet_looks >= QUIET_LOOKS

    return _end(remaining, is_over, grace_s=0.0)


def reap() -> dict[int, int]:
    """Collect ended children without waiting; return pid → exit code (negative: the signal that ended it)."""
    ended: dict[int, int] = {}
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, wait_status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            ended[pid] = os.waitstatus_to_exitcode(wait_status)
    return ended


def _scan() -> tuple[dict[int, int], set[int]]:
    """Return pid → parent pid of all processes, and which of them are zombies.

    Zombies stay in the map: a child may have been read just before its parent died, and is found only through
    it.
    """
    parent_of: dict[int, int] = {}
    zombies: set[int] = set()
    for entry in PROC.iterdir():
        if not entry.name.isdigit():
            continue
        # Fields after the command's closing parenthesis: state, parent. The command may itself hold
        # parentheses.
        with contextlib.suppress(OSError, ValueError, IndexError):
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            parent_of[int(entry.name)] = int(parent)
            if state in "ZX":
                zombies.add(int(entry.name))
    return parent_of, zombies


def _has_children() -> bool:
    """Collect what has ended, then ask the kernel whether this process has any child at all."""
    reap()
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _end(remaining: Callable[[], set[int]], is_over: Callable[[set[int]], bool], grace_s: float) -> int:
    """Signal what `remaining` finds until `is_over`; return how many processes were met."""
    met: set[int] = set()
    grace_looks = round(grace_s / POLL_INTERVAL_S)
    for look in range(grace_looks + round(END_TIMEOUT_S / POLL_INTERVAL_S)):
        pids = remaining()
        if is_over(pids):
            return len(met)
        if look >= grace_looks:
            _signal_all(pids, signal.SIGKILL)
        else:
            _signal_all(pids - met, signal.SIGTERM)
        met |= pids
        time.sleep(POLL_INTERVAL_S)
    raise ProcessesRemainError(
        f"processes {sorted(remaining())} survived SIGKILL for {END_TIMEOUT_S:g} s; end them by hand"
    )


def _signal_all(pids: set[int], signum: signal.Signals) -> None:
    """Send a signal to each process that is still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signum)
