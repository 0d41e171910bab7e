"""Acting in a box's network namespace from outside, by a pid inside it: it has no name, so it ends with its processes."""

from __future__ import annotations

import ctypes
import os
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.adapters.box.tools import BoxError, run_tool

CLONE_NEWNET = 0x40000000
"""From linux/sched.h: the kind of namespace that setns is to expect."""


def run_in(namespace_pid: int, argv: Sequence[str], stdin: str = "") -> str:
    """Run one of the host's tools in the network namespace of a process; return its output."""
    return run_tool(["nsenter", f"--net=/proc/{namespace_pid}/ns/net", "--", *argv], stdin)


@dataclass(frozen=True, slots=True)
class NetworkIdentity:
    """What tells one network namespace from another, now and after its pid was given to someone else."""

    device: int
    inode: int


class SocketFactory:
    """Makes sockets in one box's network namespace. Holds nothing open: it never keeps a box's network alive.

    A socket stays in the namespace it was made in, so a thread that goes there, makes it and ends is enough.
    """

    def __init__(self, namespace_pid: int) -> None:
        """Remember the namespace of a process. Raises BoxError when there is no such process."""
        self._path = f"/proc/{namespace_pid}/ns/net"
        try:
            self._identity = _identity(Path(self._path).stat())
        except OSError as error:
            raise BoxError(f"no network namespace of process {namespace_pid}: {error.strerror}") from error

    def create(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """Make one socket there; takes well under a millisecond. Raises BoxError when the box is gone."""
        made: list[socket.socket | OSError] = []

        def visit() -> None:
            try:
                descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    if _identity(os.fstat(descriptor)) != self._identity:
                        raise ProcessLookupError("the process is another one now")
                    libc = ctypes.CDLL(None, use_errno=True)
                    if libc.setns(descriptor, CLONE_NEWNET) != 0:
                        raise OSError(ctypes.get_errno(), "setns failed")
                finally:
                    os.close(descriptor)
                made.append(socket.socket(family, kind | socket.SOCK_CLOEXEC))
            except OSError as error:
                made.append(error)

        # A thread of its own, which ends there: no way back could fail and leave a thread in the wrong network.
        thread = threading.Thread(target=visit, name="orch-box-socket")
        thread.start()
        thread.join()
        result = made[0]
        if isinstance(result, OSError):
            raise BoxError(f"no socket in the box's network: {result}") from result
        return result


def _identity(status: os.stat_result) -> NetworkIdentity:
    """Return what identifies the namespace whose file this is."""
    return NetworkIdentity(status.st_dev, status.st_ino)
