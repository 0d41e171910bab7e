"""Fixed blocks of ports for Ray nodes, taken machine-wide by file lock.

Ray binds a dozen ports per node and workers take one each, so every node gets a whole block with named places
in it. A block is held by an flock on a file: the kernel releases it when the last process that inherited the
descriptor is gone, so a block lives exactly as long as its node even when the agent that took it does not.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

# Ephemeral ports start at 32768 on Linux; staying below means the kernel never hands one of ours to a
# connection.
PORT_CEILING = 32768
# High enough to stay clear of the well-known services of a workstation and of Ray's own defaults (6379, 8265,
# 10001).
FIRST_PORT = 20000
# A dozen named ports and one per worker process; 128 leaves room for 100 workers on one node.
BLOCK_PORTS = 128
BLOCK_COUNT = (PORT_CEILING - FIRST_PORT) // BLOCK_PORTS

# Offsets inside a block. Workers take the rest, so each name here must stay below WORKER_PORT_OFFSET.
NAMED_OFFSETS = {
    "gcs": 0,
    "dashboard": 1,
    "ray_client_server": 2,
    "dashboard_metric": 3,
    "node_manager": 4,
    "object_manager": 5,
    "runtime_env_agent": 6,
    "dashboard_agent_grpc": 7,
    "dashboard_agent_listen": 8,
    "metrics_export": 9,
}
WORKER_PORT_OFFSET = 28

# Every user of the machine must be able to take blocks, nobody may remove another's lock file: world-
# writable, sticky.
LOCK_DIR_MODE = 0o1777
# Lock files carry no data; another user must be able to open one to test it.
LOCK_FILE_MODE = 0o666


class NoPortBlockError(RuntimeError):
    """Every block of this machine is taken or has a port in use."""


@dataclass(frozen=True, slots=True)
class PortBlock:
    """One locked block: `lock_fd` holds it and may be inherited by the process the block is for."""

    index: int
    first_port: int
    lock_fd: int

    def ports(self) -> dict[str, int]:
        """Return the named ports, with `worker_min` and `worker_max` (inclusive)."""
        return ports_of_block(self.index)

    def release(self) -> None:
        """Let go of this process's hold; the block stays taken while an heir holds the same descriptor."""
        os.close(self.lock_fd)


def default_lock_dir() -> Path:
    """Return the directory every agent of this machine must share."""
    return Path(tempfile.gettempdir()) / "orch-ports"


def ports_of_block(index: int) -> dict[str, int]:
    """Return the named ports of block `index`."""
    if not 0 <= index < BLOCK_COUNT:
        raise ValueError(f"port block index must be in 0..{BLOCK_COUNT - 1}, got {index}")
    first = FIRST_PORT + index * BLOCK_PORTS
    named = {name: first + offset for name, offset in NAMED_OFFSETS.items()}
    return named | {"worker_min": first + WORKER_PORT_OFFSET, "worker_max": first + BLOCK_PORTS - 1}


def take_port_block(lock_dir: Path | None = None) -> PortBlock:
    """Lock the first block that nobody holds and whose ports all bind.

    Raises NoPortBlockError when none is left, PermissionError when the lock directory cannot be trusted.
    """
    directory = _lock_directory(lock_dir if lock_dir is not None else default_lock_dir())
    for index in range(BLOCK_COUNT):
        lock_fd = _try_lock(directory, index)
        if lock_fd is None:
            continue
        first = FIRST_PORT + index * BLOCK_PORTS
        if all(_port_is_free(port) for port in range(first, first + BLOCK_PORTS)):
            return PortBlock(index=index, first_port=first, lock_fd=lock_fd)
        os.close(lock_fd)
    raise NoPortBlockError(
        f"no free port block between {FIRST_PORT} and {PORT_CEILING} "
        f"({BLOCK_COUNT} blocks, locks in {directory}); stop a Ray node or whatever listens there"
    )


def retake_port_block(index: int, lock_dir: Path | None = None) -> PortBlock | None:
    """Lock block `index` again if nobody holds it; None while its former holder still lives."""
    first = ports_of_block(index)["gcs"]
    lock_fd = _try_lock(_lock_directory(lock_dir if lock_dir is not None else default_lock_dir()), index)
    return None if lock_fd is None else PortBlock(index=index, first_port=first, lock_fd=lock_fd)


def _lock_directory(directory: Path) -> Path:
    """Make the lock directory; refuse a link, which could lead our lock files elsewhere."""
    try:
        directory.mkdir(mode=LOCK_DIR_MODE)
    except FileExistsError:
        pass
    else:
        directory.chmod(LOCK_DIR_MODE)  # mkdir's mode is cut by the umask
    if not stat.S_ISDIR(directory.lstat().st_mode):
        raise PermissionError(
            f"port lock directory {directory} is not a directory; remove it or choose another"
        )
    return directory


def _try_lock(directory: Path, index: int) -> int | None:
    """Open and flock the file of one block; None when another holds it."""
    path = directory / f"block-{index}.lock"
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        # Not O_CREAT on an existing file: in a sticky directory the kernel may refuse that on another user's
        # file.
        lock_fd = os.open(path, flags)
    except FileNotFoundError:
        try:
            lock_fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, LOCK_FILE_MODE)
        except FileExistsError:
            lock_fd = os.open(path, flags)
        else:
            os.fchmod(lock_fd, LOCK_FILE_MODE)
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock_fd)
        return None
    return lock_fd


def _port_is_free(port: int) -> bool:
    """Report whether `port` can be bound on every address (some of Ray's servers bind all interfaces)."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # Ports of a node that just ended linger in TIME_WAIT; Ray binds them all the same, so must the probe.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
        return True
