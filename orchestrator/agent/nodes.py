"""The Ray nodes of one agent: one directory and one keeper each.

The agent says what should be; a keeper holds each node. All state lies in `data_dir/members/<member_id>`, so
an agent that restarts finds its nodes again (`discover`) and goes on. Every method may be called again with
the same arguments.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import stat
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

from orchestrator.adapters import ray_start
from orchestrator.adapters.clock import boot_id, boottime_ms
from orchestrator.adapters.node_records import (
    HEAD_OBJECT_STORE_BYTES,
    MEMBER_OBJECT_STORE_BYTES,
    HeadAddress,
    NodeOrder,
    NodeSpec,
    NodeStatus,
    OverlayEntry,
    Prepared,
    read_record,
    write_atomically,
    write_record,
)
from orchestrator.adapters.port_blocks import PortBlock, retake_port_block, take_port_block
from orchestrator.adapters.process_tree import descendants, marked_processes
from orchestrator.adapters.ray_node import NOTICE_FILE, SCRATCH_DIR, SHARED_DIR, START_SCRIPT, TOKEN_FILE
from orchestrator.adapters.runtimes import Provisioned
from orchestrator.agent.housing import Housing, bare_address
from orchestrator.agent.keeper import (
    DEADLINE_FILE,
    SPEC_FILE,
    STATUS_FILE,
    STOP_FILE,
    read_deadline_ms,
)
from orchestrator.agent.keepers import bury, keeper_lives, keeper_pid, launch_keeper, lock_keeper_file, remove

LOOPBACK_NODE_IP = "127.0.0.2"
"""Loopback, but not 127.0.0.1: Ray's drivers replace that one by the machine's outward address and miss the
head.
"""

MEMBER_ID_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
"""A member id is also a directory name and a Ray label value; 100 characters keep it within both."""

READABLE = 0o644
"""Of files that the box's user reads; the directory above the shared one is the agent's alone."""

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
    housing: Housing | None = None
    """Without it every member is bare."""
    _blocks: dict[str, PortBlock] = field(default_factory=dict, init=False)
    _provisioning: set[str] = field(default_factory=set, init=False)

    async def prepare(self, order: NodeOrder) -> Prepared:
        """Reserve ports and a directory for a member; the same answer while the member exists.

        A boxed one's runtime is built first, which may take minutes. Raises ValueError when the member exists with
        other properties, or cannot be housed here, NoPortBlockError when no ports are left.
        """
        ready = None
        if order.isolation != "none":
            ready = await self._provision(order)
        spec = await asyncio.to_thread(self._prepare, order, ready)
        key = b""
        if self.housing is not None and spec.overlay_address:
            key = await asyncio.to_thread(self.housing.overlay_key, self._member_dir(order.member_id))
        return Prepared(spec.ports, spec.node_ip, spec.host_id, key)

    async def _provision(self, order: NodeOrder) -> Provisioned:
        """The runtime of a boxed member, which is shown as provisioning meanwhile."""
        if self.housing is None:
            raise ValueError(f"this agent has no boxes; isolation {order.isolation} cannot be given")
        self._provisioning.add(order.member_id)
        try:
            if order.image:
                return await self.housing.image(order)
            if order.runtime is None:
                raise ValueError("a boxed member needs a runtime, and the control plane named none")
            return await self.housing.runtimes.provision(order.runtime)
        finally:
            self._provisioning.discard(order.member_id)

    async def start(
        self,
        member_id: str,
        *,
        head: HeadAddress | None,
        cluster_token: str,
        deadline_boottime_ms: int,
        overlay: OverlayEntry | None = None,
    ) -> None:
        """Start a prepared member's node in its own keeper; a member that was ever started is left alone.

        Raises KeyError for an unknown member, ValueError when a member's role and `head` contradict each
        other.
        """
        await asyncio.to_thread(self._start, member_id, head, cluster_token, deadline_boottime_ms, overlay)

    def enter_overlay(self, member_id: str, overlay: OverlayEntry) -> None:
        """As NodeDriver.enter_overlay. Raises KeyError when unknown, ValueError, OSError."""
        spec = self._spec_of(member_id)
        if self.housing is not None:
            self.housing.enter(self._member_dir(member_id), overlay, spec.bridge_port)

    def observe(self, member_id: str) -> NodeStatus:
        """Return what is known of a member; ends what a dead keeper left behind."""
        member_dir = self._member_dir(member_id)
        spec = read_record(member_dir / SPEC_FILE, NodeSpec)
        if spec is None:
            return NodeStatus(phase="provisioning" if member_id in self._provisioning else "none")
        status = read_record(member_dir / STATUS_FILE, NodeStatus)
        if status is None:
            return NodeStatus(phase="prepared", node_ip=spec.node_ip)
        if status.phase not in ("starting", "up") or keeper_lives(member_dir):
            return status
        # The keeper may have ended in the moment since its status was read.
        status = read_record(member_dir / STATUS_FILE, NodeStatus) or status
        return status if status.phase not in ("starting", "up") else bury(member_dir, spec)

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
        path = self._member_dir(member_id) / SHARED_DIR / NOTICE_FILE
        if notice:
            # It may come before the start, which is what makes the directory.
            path.parent.mkdir(mode=0o755, exist_ok=True)
            write_atomically(path, notice, READABLE)
        else:
            path.unlink(missing_ok=True)

    def processes(self) -> set[int]:
        """Return the processes of all nodes, keepers included."""
        marked = {pid for member_id in self.discover() for pid in marked_processes(member_id)}
        roots = marked | {
            pid for member_id in self.discover() for pid in keeper_pid(self._member_dir(member_id))
        }
        return roots | descendants(roots)

    async def stop(self, member_id: str) -> None:
        """End a member and remove every trace of it; returns when nothing is left."""
        member_dir = self._member_dir(member_id)
        if member_dir.exists():
            (member_dir / STOP_FILE).touch()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    while keeper_lives(member_dir):  # noqa: ASYNC110 - another process; nothing to await
                        await asyncio.sleep(STOP_POLL_S)
            await asyncio.to_thread(remove, member_dir, member_id)
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

    def _prepare(self, order: NodeOrder, ready: Provisioned | None) -> NodeSpec:
        """Do what `prepare` says, in a thread; a failure leaves no directory that was not there before."""
        member_dir = self._member_dir(order.member_id)
        member_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            return self._reserve(member_dir, order, ready)
        except BaseException:
            # One that holds anything stays, and says so by refusing.
            with contextlib.suppress(OSError):
                member_dir.rmdir()
            raise

    def _reserve(self, member_dir: Path, order: NodeOrder, ready: Provisioned | None) -> NodeSpec:
        """Find the member's spec, or take ports and write it."""
        member_id = order.member_id
        spec = read_record(member_dir / SPEC_FILE, NodeSpec)
        if spec is not None:
            if not _answers(spec, order):
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
            cluster_id=order.cluster_id,
            role=order.role,
            gpus=order.gpus,
            cpus=order.cpus,
            labels=order.labels,
            node_ip=self.node_ip,
            ports=block.ports(),
            host_id=boot_id(),
            block_index=block.index,
            object_store_memory_bytes=(
                self.head_object_store_bytes if order.role == "head" else self.member_object_store_bytes
            ),
        )
        try:
            spec = self._housed(spec, order, member_dir, ready)
            write_record(member_dir / SPEC_FILE, spec)
        except BaseException:
            block.release()
            raise
        self._blocks[member_id] = block
        return spec

    def _housed(
        self, spec: NodeSpec, order: NodeOrder, member_dir: Path, ready: Provisioned | None
    ) -> NodeSpec:
        """A boxed member's spec: its own network, runtime and scratch."""
        if self.housing is None or ready is None:
            return spec
        scratch_dir = _own_temp_dir(member_dir)
        box = self.housing.box(order, member_dir, member_dir / SHARED_DIR, scratch_dir, ready)
        store_bytes = spec.object_store_memory_bytes if order.role == "head" else box.shm_bytes * 3 // 4
        return replace(
            spec,
            object_store_memory_bytes=store_bytes,
            node_ip=bare_address(order.overlay_address) if order.overlay_address else spec.node_ip,
            # Its network is nobody else's: no other node of the machine shares its head's directory.
            host_id=f"{spec.host_id}/{spec.member_id}",
            temp_dir=str(scratch_dir),
            interpreter=str(ready.python),
            box=box,
            container=self.housing.container(order),
            overlay_address=order.overlay_address,
        )

    def _start(
        self,
        member_id: str,
        head: HeadAddress | None,
        cluster_token: str,
        deadline_boottime_ms: int,
        overlay: OverlayEntry | None,
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
        if (overlay is None) != (not spec.overlay_address):
            raise ValueError(f"member_id {member_id} was prepared for another network than it is started in")
        if member_id not in self._blocks:
            spec = self._retaken(spec)
        block = self._blocks[member_id]
        keeper_fd = lock_keeper_file(member_dir)
        if keeper_fd is None:
            return
        try:
            spec = _placed(spec, head, member_dir)
            write_record(member_dir / SPEC_FILE, spec)
            _share(member_dir / SHARED_DIR, cluster_token, 0 if spec.box is None else spec.box.user_id)
            if overlay is not None and self.housing is not None:
                self.housing.enter(member_dir, overlay, spec.bridge_port)
            write_atomically(member_dir / DEADLINE_FILE, f"{deadline_boottime_ms}\n".encode())
            starting = NodeStatus(phase="starting", node_ip=spec.node_ip, temp_dir=spec.temp_dir)
            write_record(member_dir / STATUS_FILE, starting)
            launch_keeper(member_dir, keeper_fd, block.lock_fd)
        finally:
            os.close(keeper_fd)
        # The keeper holds the block now; while the agent held it too, the block would outlive the node.
        del self._blocks[member_id]
        block.release()

    def _retaken(self, spec: NodeSpec) -> NodeSpec:
        """A member that was prepared by an agent that ended since: its lock went with it, its ports may be others."""
        block = retake_port_block(spec.block_index, self.lock_dir)
        if block is None:
            if spec.box is not None:
                raise ValueError(
                    f"member_id {spec.member_id} lost its place here; it has to be prepared anew"
                )
            block = take_port_block(self.lock_dir)
            spec = replace(spec, ports=block.ports(), block_index=block.index)
        self._blocks[spec.member_id] = block
        return spec

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
    if spec.box is not None:
        # The box makes it, with the size it may have.
        return replace(spec, head_gcs_address=head.gcs_address if head is not None else "")
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


def _answers(spec: NodeSpec, order: NodeOrder) -> bool:
    """Whether a member is as it was asked for."""
    return (
        (order.cluster_id, order.role, order.gpus, order.cpus, order.labels)
        == (spec.cluster_id, spec.role, spec.gpus, spec.cpus, spec.labels)
        and (order.isolation == "none") == (spec.box is None)
        and (order.isolation == "container") == (spec.container is not None)
        and order.image == (spec.container.image if spec.container is not None else "")
        and order.overlay_address == spec.overlay_address
    )


def _share(shared_dir: Path, cluster_token: str, user_id: int) -> None:
    """Put into a member's shared directory what its node has to read; ``user_id`` 0 for the agent's own."""
    shared_dir.mkdir(mode=0o755, exist_ok=True)
    shared_dir.chmod(0o755)
    write_atomically(shared_dir / START_SCRIPT, Path(ray_start.__file__).read_bytes(), READABLE)
    token = shared_dir / TOKEN_FILE
    write_atomically(token, cluster_token.encode())
    if user_id:
        os.chown(token, user_id, user_id)
