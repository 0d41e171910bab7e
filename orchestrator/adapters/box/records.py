"""What one box is asked to be, and what its first program is told; both plain data that JSON can carry."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

Egress = Literal["internet", "none"]

NAME_PATTERN = re.compile(r"[a-z0-9]{1,10}")
"""Ten characters: with its prefix the name is an interface's name, of which the kernel allows fifteen."""

SCRATCH_PATH_BYTES_MAX = 36
"""A Unix socket's path has 107 bytes at most, and Ray's own are 71 longer than its temporary directory."""

SCRATCH_BYTES_MIN = 16 * 1024 * 1024
"""Below this the file system's own records leave no room worth having."""

PIDS_MIN = 16
"""The box's own launcher and first process, and a few that do something."""

MEMORY_BYTES_MIN = 32 * 1024 * 1024
"""What the launcher and a bare Python need to come up at all."""

USER_ID_MIN = 1000
"""Below are the machine's own users."""

BLOCKED_NETWORKS: tuple[ipaddress.IPv4Network, ...] = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "168.63.129.16/32",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)
"""What no box reaches through its egress: special-purpose ranges of the IANA registry (RFC 6890), the overlay's
own range (198.18.0.0/15), and the one cloud metadata address with a public look (168.63.129.16, Azure)."""


@dataclass(frozen=True, slots=True)
class BoxSpec:
    """One box; enough to make it and, after any crash, to remove every trace of it. Holds no secret."""

    name: str
    """Unique on this machine: names its cgroup, interface and nft table."""
    user_id: int
    """Host uid and gid of everything inside; of no other box and no user of the machine."""
    scratch_dir: str
    """Same path outside and inside; beside /dev/shm and the small /tmp, /run and /home all that can be written."""
    scratch_bytes: int
    shared_dir: str
    """Same path inside, where it can only be read; what is replaced in it from outside is seen at once."""
    readonly_dirs: tuple[str, ...]
    """Runtime and interpreter, at their own paths, wherever they lie."""
    memory_bytes: int
    """Memory, /dev/shm, /tmp and page cache together; swap gives no more."""
    pids_max: int
    """Processes and threads."""
    shm_bytes: int
    devices: tuple[str, ...] = ()
    """Device files, such as /dev/nvidia0; NVIDIA's control devices come along with the first GPU."""
    cpus: float = 0.0
    """Cores' worth of time; 0: no limit."""
    egress: Egress = "none"
    name_servers: tuple[str, ...] = ()
    """Public resolvers; only with egress."""

    def __post_init__(self) -> None:
        """Refuse what could not work, or would reach beyond the box."""
        if not NAME_PATTERN.fullmatch(self.name):
            raise ValueError(f"BoxSpec.name {self.name!r}: give 1 to 10 characters of a-z and 0-9")
        if self.user_id < USER_ID_MIN:
            raise ValueError(f"BoxSpec.user_id {self.user_id}: give an unused uid of at least {USER_ID_MIN}")
        if len(self.scratch_dir.encode()) > SCRATCH_PATH_BYTES_MAX:
            raise ValueError(
                f"BoxSpec.scratch_dir {self.scratch_dir!r}: choose a path of at most {SCRATCH_PATH_BYTES_MAX} bytes; "
                "Ray's sockets below it would be too long"
            )
        for field, least in (
            ("scratch_bytes", SCRATCH_BYTES_MIN),
            ("memory_bytes", MEMORY_BYTES_MIN),
            ("pids_max", PIDS_MIN),
            ("shm_bytes", 1),
            ("cpus", 0),
        ):
            if getattr(self, field) < least:
                raise ValueError(f"BoxSpec.{field} {getattr(self, field)}: give at least {least}")
        for field, paths in (
            ("scratch_dir", (self.scratch_dir,)),
            ("shared_dir", (self.shared_dir,)),
            ("readonly_dirs", self.readonly_dirs),
            ("devices", self.devices),
        ):
            for path in paths:
                _require_plain_path(f"BoxSpec.{field}", path)
        for device in self.devices:
            if not device.startswith("/dev/"):
                raise ValueError(f"BoxSpec.devices {device!r}: name a device file below /dev")
        for server in self.name_servers:
            _require_public(server)


@dataclass(frozen=True, slots=True)
class InitConfig:
    """What the first program in a box (`init.py`) is told; it reads it as JSON."""

    command: tuple[str, ...]
    """Starts everything and returns 0 once it is up, as `ray start` does."""
    log_file: str
    """Where the command's output goes, below the scratch: a file outside would escape its quota."""
    vital_names: tuple[str, ...] = ()
    """Programs, by the last part of argv[0], whose end is the box's end."""
    vital_scripts: tuple[tuple[str, str], ...] = ()
    """(end of an argument, name): the same for what only its script tells apart."""
    required_names: tuple[str, ...] = ()
    """Those of the vital that must run once the command has returned."""
    report_fd: int = -1
    """Where JSON lines go; filled in by `Box.launch_init`."""
    report_file: str = ""
    """A FIFO in its place, where no descriptor can be passed on."""


def _require_plain_path(field: str, path: str) -> None:
    """Refuse a path that is relative, or not written the one way that can be compared."""
    plain = PurePosixPath(path)
    if not plain.is_absolute() or ".." in plain.parts or str(plain) != path or "\0" in path or path == "/":
        raise ValueError(f"{field} {path!r}: give an absolute path without '..', doubled or closing slashes")


def _require_public(server: str) -> None:
    """Refuse a resolver that the box's own egress rules would drop."""
    try:
        address = ipaddress.IPv4Address(server)
    except ValueError as error:
        raise ValueError(f"BoxSpec.name_servers {server!r}: give an IPv4 address") from error
    for network in BLOCKED_NETWORKS:
        if address in network:
            raise ValueError(
                f"BoxSpec.name_servers {server}: no box may reach {network}; give a public resolver"
            )
