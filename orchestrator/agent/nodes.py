"""The Ray nodes of one agent: one directory and one keeper each.

The agent says what should be; a keeper holds each node. All state lies in `data_dir/members/<member_id>`, so
an agent that restarts finds its nodes again (`discover`) and goes on. Every method may be called again with
the same arguments.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from orchestrator.adapters.clock import boot_id, boottime_ms
from orchestrator.adapters.node_records import (
    HEAD_OBJECT_STORE_BYTES,
    MEMBER_OBJECT_STORE_BYTES,
    HeadAddress,
    NodeSpec,
    NodeStatus,
    Prepared,
    Role,
    read_record,
    write_atomically,
    write_record,
)
from orchestrator.adapters.port_blocks import PortBlock, retake_port_block, take_port_block
from orchestrator.adapters.process_tree import descendants, marked_processes, sweep
from orchestrator.adapters.ray_node import NOTICE_FILE, SCRATCH_DIR
from orchestrator.agent.keeper import (
    DEADLINE_FILE,
    KEEPER_LOCK_FILE,
    KEEPER_LOG_FILE,
    REASON_CHARS,
    SPEC_FILE,
    STATUS_FILE,
    STOP_FILE,
    TOKEN_FILE,
    read_deadline_ms,
)

LOOPBACK_NODE_IP = "127.0.0.2"
"""Loopback, but not 127.0.0.1: Ray's drivers replace that one by the machine's outward address and miss the
head.
"""

MEMBER_ID_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
"""A member id is also a directory name and a Ray label value; 100 characters keep it within both."""

SOCKET_ROOT_CHARS_MAX = 36
"""A Unix socket path holds 107 characters, and Ray adds up to 71 below its temp directory."""

STOP_TIMEOUT_S = 20.0
"""A keeper needs its grace and the kernel's time to end some 50 processes; after that it is killed and swept.
"""

STOP_POLL_S = 0.05
"""A stop usually takes one to two seconds; looking 20 times a second adds nothing one would notice."""


@dataclass(slots=True)
class RayNodes:
    """Starts, watches and ends the Ray nodes of one agent."""

    data_dir: Path
    node_ip: str = LOOPBACK_NODE_IP
    lock_dir: Path | None = None
    head_object_store_bytes: int = HEAD_OBJECT_STORE_BYTES
    member_object_store_bytes: int = MEMBER_OBJECT_STORE_BYTES
    _blocks: dict[str, PortBlock] = field(default_factory=dict, init=False)

    async def prepare(
        self, member_id: str, cluster_id: str, role: Role, gpus: int, cpus: int, labels: Mapping[str, str]
    ) -> Prepared:
        """Reserve ports and a directory for a member; the same answer while the member exists.

        Raises ValueError when the member exists with other properties, NoPortBlockError when no ports are
        left.
        """
        spec = await asyncio.to_thread(self._prepare, member_id, cluster_id, role, gpus, cpus, dict(labels))
        return Prepared(ports=spec.ports, node_ip=spec.node_ip, host_id=spec.host_id)

    async def start(
        self, member_id: str, *, head: HeadAddress | None, cluster_token: str, deadline_boottime_ms: int
    ) -> None:
        """Start a prepared member's node in its own keeper; a member that was ever started is left alone.

        Raises KeyError for an unknown member, ValueError when a member's role and `head` contradict each
        other.
        """
        await asyncio.to_thread(self._start, member_id, head, cluster_token, deadline_boottime_ms)

    def observe(self, member_id: str) -> NodeStatus:
        """Return what is known of a member; ends what a dead keeper left behind."""
        member_dir = self._member_dir(member_id)
        spec = read_record(member_dir / SPEC_FILE, NodeSpec)
        if spec is None:
            return NodeStatus(phase="none")
        status = read_record(member_dir / STATUS_FILE, NodeStatus)
        if status is None:
            return NodeStatus(phase="prepared", node_ip=spec.node_ip)
        if status.phase not in ("starting", "up") or _keeper_lives(member_dir):
            return status
        # The keeper may have ended in the moment since its status was read.
        status = read_record(member_dir / STATUS_FILE, NodeStatus) or status
        return status if status.phase not in ("starting", "up") else _bury(member_dir, spec)

    def renew(self, member_id: str, deadline_boottime_ms: int) -> None:
        """Move a member's deadline; boot time past it ends the node.

        Raises KeyError when unknown, OSError where the deadline has passed: who slept through it is not revived, even
        where this agent woke before the node's keeper.
        """
        self._spec_of(member_id)
        passed_ms = boottime_ms() - read_deadline_ms(self._member_dir(member_id))
        if passed_ms >= 0:
            raise OSError(f"the deadline of {member_id} passed {passed_ms} ms ago")
        write_atomically(self._member_dir(member_id) / DEADLINE_FILE, f"{deadline_boottime_ms}\n".encode())

    def notify(self, member_id: str, notice: bytes) -> None:
        """Put a notice where the node's processes look for it; an empty one takes it away.

        Raises KeyError when unknown.
        """
        self._spec_of(member_id)
        path = self._member_dir(member_id) / NOTICE_FILE
        if notice:
            write_atomically(path, notice)
        else:
            path.unlink(missing_ok=True)

    def processes(self) -> set[int]:
        """Return the processes of all nodes, keepers included."""
        marked = {pid for member_id in self.discover() for pid in marked_processes(member_id)}
        roots = marked | {
            pid for member_id in self.discover() for pid in _keeper_pid(self._member_dir(member_id))
        }
        return roots | descendants(roots)

    async def stop(self, member_id: str) -> None:
        """End a member and remove every trace of it; returns when nothing is left."""
        member_dir = self._member_dir(member_id)
        if member_dir.exists():
            (member_dir / STOP_FILE).touch()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    while _keeper_lives(member_dir):  # noqa: ASYNC110 - another process; nothing to await
                        await asyncio.sleep(STOP_POLL_S)
            await asyncio.to_thread(_remove, member_dir, member_id)
        block = self._blocks.pop(member_id, None)
        if block is not None:
            block.release()

    def discover(self) -> tuple[str, ...]:
        """Return the members found on disk, sorted."""
        members = self.data_dir / "members"
        return tuple(sorted(entry.parent.name for entry in members.glob(f"*/{SPEC_FILE}")))

    def spec(self, member_id: str) -> NodeSpec | None:
        """Return what a member was prepared with; None when there is no such member."""
        return read_record(self._member_dir(member_id) / SPEC_FILE, NodeSpec)

    def _prepare(
        self, member_id: str, cluster_id: str, role: Role, gpus: int, cpus: int, labels: dict[str, str]
    ) -> NodeSpec:
        """Do what `prepare` says, in a thread; a failure leaves no directory that was not there before."""
        member_dir = self._member_dir(member_id)
        member_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            return self._reserve(member_dir, cluster_id, role, gpus, cpus, labels)
        except BaseException:
            # One that holds anything stays, and says so by refusing.
            with contextlib.suppress(OSError):
                member_dir.rmdir()
            raise

    def _reserve(
        self, member_dir: Path, cluster_id: str, role: Role, gpus: int, cpus: int, labels: dict[str, str]
    ) -> NodeSpec:
        """Find the member's spec, or take ports and write it."""
        member_id = member_dir.name
        spec = read_record(member_dir / SPEC_FILE, NodeSpec)
        wanted = (cluster_id, role, gpus, cpus, labels)
        if spec is not None:
            if wanted != (spec.cluster_id, spec.role, spec.gpus, spec.cpus, spec.labels):
                raise ValueError(
                    f"member_id {member_id} is already prepared with other properties; stop it first"
                )
            if member_id in self._blocks or (member_dir / STATUS_FILE).exists():
                return spec
        # Prepared by an agent that ended before the start: its lock went with it, so take the block again.
        block = retake_port_block(spec.block_index, self.lock_dir) if spec is not None else None
        block = block if block is not None else take_port_block(self.lock_dir)
        spec = NodeSpec(
            member_id=member_id,
            cluster_id=cluster_id,
            role=role,
            gpus=gpus,
            cpus=cpus,
            labels=labels,
            node_ip=self.node_ip,
            ports=block.ports(),
            host_id=boot_id(),
            block_index=block.index,
            object_store_memory_bytes=(
                self.head_object_store_bytes if role == "head" else self.member_object_store_bytes
            ),
        )
        try:
            write_record(member_dir / SPEC_FILE, spec)
        except BaseException:
            block.release()
            raise
        self._blocks[member_id] = block
        return spec

    def _start(
        self, member_id: str, head: HeadAddress | None, cluster_token: str, deadline_boottime_ms: int
    ) -> None:
        """Do what `start` says, in a thread."""
        spec = self._spec_of(member_id)
        member_dir = self._member_dir(member_id)
        if (member_dir / STATUS_FILE).exists():
            return
        if (head is None) == (spec.role == "member"):
            raise ValueError(
                f"head must be given for a member and only for it; member_id {member_id} has role {spec.role}"
            )
        if member_id not in self._blocks:
            spec = self._prepare(member_id, spec.cluster_id, spec.role, spec.gpus, spec.cpus, spec.labels)
        block = self._blocks[member_id]
        keeper_fd = _lock_keeper_file(member_dir)
        if keeper_fd is None:
            return
        try:
            spec = _placed(spec, head, member_dir)
            write_record(member_dir / SPEC_FILE, spec)
            write_atomically(member_dir / TOKEN_FILE, cluster_token.encode())
            write_atomically(member_dir / DEADLINE_FILE, f"{deadline_boottime_ms}\n".encode())
            starting = NodeStatus(phase="starting", node_ip=spec.node_ip, temp_dir=spec.temp_dir)
            write_record(member_dir / STATUS_FILE, starting)
            _launch_keeper(member_dir, keeper_fd, block.lock_fd)
        finally:
            os.close(keeper_fd)
        # The keeper holds the block now; while the agent held it too, the block would outlive the node.
        del self._blocks[member_id]
        block.release()

    def _member_dir(self, member_id: str) -> Path:
        """Return a member's directory; refuses ids that could lead elsewhere."""
        if not MEMBER_ID_PATTERN.fullmatch(member_id):
            raise ValueError(f"member_id {member_id!r} must match {MEMBER_ID_PATTERN.pattern}")
        return self.data_dir / "members" / member_id

    def _spec_of(self, member_id: str) -> NodeSpec:
        """Return a member's spec or say what is missing."""
        spec = self.spec(member_id)
        if spec is None:
            raise KeyError(f"member_id {member_id} is not prepared on this machine; call prepare first")
        return spec


def _placed(spec: NodeSpec, head: HeadAddress | None, member_dir: Path) -> NodeSpec:
    """Choose the node's temp directory and make it if it is the node's own.

    Nodes of one cluster on one machine share the head's: with separate ones Ray loses the driver's log.
    """
    shares_host = head is not None and head.host_id == spec.host_id
    if head is not None and shares_host and head.temp_dir and os.access(head.temp_dir, os.W_OK):
        return replace(spec, temp_dir=head.temp_dir, owns_temp_dir=False, head_gcs_address=head.gcs_address)
    temp_dir = _own_temp_dir(member_dir)
    temp_dir.mkdir(mode=0o700, exist_ok=True)
    status = temp_dir.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise PermissionError(f"temp directory {temp_dir} belongs to someone else; remove it or set TMPDIR")
    (temp_dir / SCRATCH_DIR).mkdir(mode=0o700, exist_ok=True)
    address = head.gcs_address if head is not None else ""
    return replace(spec, temp_dir=str(temp_dir), owns_temp_dir=True, head_gcs_address=address)


def _own_temp_dir(member_dir: Path) -> Path:
    """Return the temp directory a member would own: short, and always the same: a crash leaks none."""
    root = tempfile.gettempdir()
    name = "orch-" + hashlib.sha256(str(member_dir.resolve()).encode()).hexdigest()[:12]
    return Path(root if len(root) + 1 + len(name) <= SOCKET_ROOT_CHARS_MAX else "/tmp") / name  # noqa: S108


def _lock_keeper_file(member_dir: Path) -> int | None:
    """Take the lock that says a keeper lives; None when one does."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    lock_fd = os.open(member_dir / KEEPER_LOCK_FILE, flags, 0o600)
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock_fd)
        return None
    return lock_fd


def _keeper_lives(member_dir: Path) -> bool:
    """Report whether a keeper holds the member's lock."""
    if not (member_dir / KEEPER_LOCK_FILE).exists():
        return False
    lock_fd = _lock_keeper_file(member_dir)
    if lock_fd is None:
        return True
    os.close(lock_fd)
    return False


def _keeper_pid(member_dir: Path) -> set[int]:
    """Return who keeps the member's node, if anybody does."""
    if not _keeper_lives(member_dir):
        return set()
    with contextlib.suppress(OSError, ValueError):
        return {int((member_dir / KEEPER_LOCK_FILE).read_text())}
    return set()


def _launch_keeper(member_dir: Path, keeper_fd: int, port_fd: int) -> None:
    """Start a keeper, which detaches itself at once, and hand it both locks."""
    argv = [sys.executable, "-m", "orchestrator.agent.keeper", str(member_dir), str(keeper_fd), str(port_fd)]
    launched = subprocess.run(
        argv,
        pass_fds=(keeper_fd, port_fd),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if launched.returncode != 0:
        reason = launched.stderr.decode(errors="replace").strip()[-REASON_CHARS:]
        failed = NodeStatus(phase="failed", reason=f"the keeper did not start: {reason}")
        write_record(member_dir / STATUS_FILE, failed)


def _bury(member_dir: Path, spec: NodeSpec) -> NodeStatus:
    """End what a dead keeper left behind and record the failure."""
    sweep(spec.member_id)
    if spec.owns_temp_dir and spec.temp_dir:
        shutil.rmtree(spec.temp_dir, ignore_errors=True)
    log = member_dir / KEEPER_LOG_FILE
    said = " ".join(log.read_text(errors="replace").split())[-REASON_CHARS:] if log.exists() else ""
    reason = f"the keeper ended without a word{': ' + said if said else ''}"
    status = NodeStatus(phase="failed", reason=reason, node_ip=spec.node_ip, temp_dir=spec.temp_dir)
    write_record(member_dir / STATUS_FILE, status)
    return status


def _remove(member_dir: Path, member_id: str) -> None:
    """Kill a keeper that did not end, sweep, and remove the member's files."""
    if _keeper_lives(member_dir):
        for pid in _keeper_pid(member_dir):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    sweep(member_id)
    spec = read_record(member_dir / SPEC_FILE, NodeSpec)
    if spec is not None and spec.owns_temp_dir and spec.temp_dir:
        shutil.rmtree(spec.temp_dir, ignore_errors=True)
    shutil.rmtree(member_dir, ignore_errors=True)
