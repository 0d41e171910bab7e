"""What is known of one Ray node, kept in its member's directory: written by agent and keeper, read by either."""

from __future__ import annotations

import contextlib
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from orchestrator.adapters.box.records import BoxSpec
from orchestrator.adapters.container.records import ContainerSpec

T = TypeVar("T")

Role = Literal["head", "member", "solo"]
Isolation = Literal["none", "box", "container"]
Transport = Literal["udp", "tls"]
Phase = Literal["none", "provisioning", "prepared", "starting", "up", "failed", "stopped"]

# A head and a CPU-only driver move little data; Ray refuses less than 75 MiB.
HEAD_OBJECT_STORE_BYTES = 100 * 1024 * 1024
# Ray's default is 30 % of the machine per node, which several nodes on one machine cannot all have.
MEMBER_OBJECT_STORE_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """All that starting one Ray node needs; written to the member's directory, holds no secret."""

    member_id: str
    cluster_id: str
    role: Role
    gpus: int
    cpus: int
    labels: dict[str, str]
    node_ip: str
    ports: dict[str, int]
    host_id: str
    block_index: int
    temp_dir: str = ""
    owns_temp_dir: bool = True
    head_gcs_address: str = ""
    object_store_memory_bytes: int = MEMBER_OBJECT_STORE_BYTES
    interpreter: str = ""
    """The runtime's Python; empty: the agent's own."""
    box: BoxSpec | None = None
    container: ContainerSpec | None = None
    """The box is a container of podman's."""
    overlay_address: str = ""
    """With its prefix length; empty: the node is in no overlay."""

    @property
    def bridge_port(self) -> int:
        """The first port on the host's side that a boxed node may use: its own sockets are in its box."""
        return self.ports["worker_min"]

    @property
    def is_head(self) -> bool:
        """Whether this node carries the cluster's GCS and dashboard."""
        return self.role != "member"

    @property
    def gcs_address(self) -> str:
        """`host:port` of the GCS this node runs or joins."""
        return f"{self.node_ip}:{self.ports['gcs']}" if self.is_head else self.head_gcs_address

    @property
    def dashboard_url(self) -> str:
        """Base URL of Ray's HTTP API; empty on a plain member."""
        return f"http://{self.node_ip}:{self.ports['dashboard']}" if self.is_head else ""


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """What is observed of one Ray node; `reason` explains failed and stopped."""

    phase: Phase
    reason: str = ""
    gcs_address: str = ""
    dashboard_url: str = ""
    node_ip: str = ""
    session_dir: str = ""
    temp_dir: str = ""
    ended_boottime_ms: int = 0
    """When the node ended; 0 while it runs, or where its keeper did not live to see it."""
    namespace_pid: int = 0
    """A process in the node's own network, once that is connected; 0: the node is in the machine's."""
    interpreter: str = ""
    """The Python that has the node's Ray; empty: the agent's own."""
    overlay_transport: Transport | Literal[""] = ""
    """How its nebula gets out; empty: it has none, or is not up."""
    tunnels_direct: int = 0
    """Of its nebula, to other members."""
    tunnels_relayed: int = 0


def read_record(path: Path, kind: type[T]) -> T | None:
    """Read a NodeSpec or NodeStatus; None when there is none. Raises ValueError when it is damaged."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.DecodeError as error:
        raise ValueError(
            f"{path} does not hold a {kind.__name__}: {error}; remove {path.parent} to start over"
        ) from error


def write_record(path: Path, record: NodeSpec | NodeStatus) -> None:
    """Replace a record's file atomically."""
    write_atomically(path, msgspec.json.format(msgspec.json.encode(record), indent=1))


def write_atomically(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Replace `path` so that a reader sees the old or the new content, never a part."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()
        raise


@dataclass(frozen=True, slots=True)
class HeadAddress:
    """Where a member finds its head; `host_id` and `temp_dir` tell whether both share a machine."""

    gcs_address: str
    host_id: str
    temp_dir: str


@dataclass(frozen=True, slots=True)
class NodeOrder:
    """What is asked for: one member's node, and how it is kept apart."""

    member_id: str
    cluster_id: str
    role: Role
    gpus: int
    cpus: int
    labels: dict[str, str] = field(default_factory=dict)
    device_ids: tuple[str, ...] = ()
    isolation: Isolation = "none"
    runtime: RuntimeName | None = None
    image: str = ""
    """The image in place of the runtime, as NAME@sha256:…; only with isolation container."""
    overlay_address: str = ""
    """With its prefix length; empty: no overlay."""


@dataclass(frozen=True, slots=True)
class RuntimeName:
    """A runtime as the control plane names it."""

    name: str
    digest: str


@dataclass(frozen=True, slots=True)
class OverlayEntry:
    """How a member gets into the overlay: PEM texts, and whom it speaks to."""

    address: str
    certificate: str
    authorities: str
    group: str
    beacons: tuple[OverlayBeacon, ...]
    blocked: tuple[str, ...]
    bridge_token: str = field(default="", repr=False)
    """A secret, which opens the beacons' bridges; empty where there are none."""


@dataclass(frozen=True, slots=True)
class OverlayBeacon:
    """Where members find each other: its overlay address, and HOST:PORT over UDP and over TLS."""

    address: str
    endpoint: str
    bridge: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a member has reserved on this machine."""

    ports: dict[str, int]
    node_ip: str
    host_id: str
    overlay_public_key: bytes = b""
