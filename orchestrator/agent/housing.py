"""Where a member lives on this machine: its runtime, its box, its key for the overlay."""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from orchestrator.adapters import clock
from orchestrator.adapters.box.gpus import GPUS_DIR, read_minors
from orchestrator.adapters.box.records import BoxSpec, Egress
from orchestrator.adapters.container import cdi, images, tiers
from orchestrator.adapters.container.records import ContainerSpec
from orchestrator.adapters.node_records import (
    NodeOrder,
    OverlayBeacon,
    OverlayEntry,
    Transport,
    write_atomically,
)
from orchestrator.adapters.overlay.bridge import LOOPBACK, BridgeConfig, write_config
from orchestrator.adapters.overlay.certificates import KEY_BYTES, new_key
from orchestrator.adapters.overlay.config import Files, Landmark, node_config
from orchestrator.adapters.overlay.process import interface_name
from orchestrator.adapters.peers import SERVER_NAME
from orchestrator.adapters.runtimes import Provisioned, RuntimeDigest
from orchestrator.agent.grounds import OVERLAY_DIR
from orchestrator.agent.runtimes import Runtimes
from orchestrator.agent.ways import BRIDGES_MAX, CONFIG_FILES, CREDENTIAL_FILE, bridge_file
from orchestrator.core.supply.evidence import bus_id

FIRST_USER_ID = 0x7000_0000
"""Above what Linux distributions, containers and systemd give out, below 2³¹."""

USER_IDS = 0x0FFD_0000
"""So many that two boxes of one machine have the same by chance once in millions of machines."""

NAME_SERVERS = ("9.9.9.9", "1.1.1.1")
"""Public resolvers: the supplier's own may know the names of his home."""

MEMORY_SHARE_PERCENT = 80
"""Of the machine's memory for all boxes together; the rest is its owner's."""

CPU_SHARE_PERCENT = 90
"""Of the machine's cores that one box may take: its owner, and the agent that has to be heard, keep a tenth."""

SHM_SHARE_PERCENT = 40
"""Of a box's memory that may lie in /dev/shm: Ray's own share for its objects is 30 %, and torch's loaders use it too."""

HEAD_MEMORY_BYTES = 3 * 1024**3
"""A head takes 0.9 GB and grows with its jobs' records; its driver takes the rest."""

SCRATCH_SHARE_PERCENT = 80
"""Of what is free on the disk when a member is prepared, for as many members as there are places."""

SCRATCH_BYTES_MAX = 200 * 1024**3
"""More than packages, checkpoints and spilled objects of one job; a sparse file takes only what is used."""

PIDS_MAX = 3072
"""Threads count: a Ray node has some 600, and its actors dozens each. A fork bomb of so many is a nuisance, no outage."""

PIDS_PER_GPU = 1024
"""A training process has a few hundred threads, and its loaders as many."""

AUTHORITIES_FILE = "authorities.pem"
CERTIFICATE_FILE = "certificate.pem"
KEY_FILE = "key.pem"

RAW_KEY_FILE = "key"
"""The same key as 32 bytes: what the public half is made from after a restart."""


@dataclass(frozen=True, slots=True)
class Room:
    """What all boxes of this machine share, and what they may reach. ``places`` is slots and head slots."""

    memory_bytes: int
    places: int
    cpus: int = 0
    """The machine's; 0: not told, and no box is limited."""
    egress: Egress = "internet"
    name_servers: tuple[str, ...] = NAME_SERVERS


@dataclass(slots=True)
class Housing:
    """Prepares boxed members. ``device_files`` names what each device is opened by."""

    room: Room
    runtimes: Runtimes
    device_files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    beacon_host: str = ""
    """Host of a beacon that names none: that of the control plane."""
    transport: Literal["auto"] | Transport = "auto"
    """How the overlay gets out: auto is UDP, and TLS where no beacon answers by that."""
    trust_file: Path = Path("trust.pem")
    """The network's authorities, which the beacons' bridges are known by."""

    def box(
        self,
        order: NodeOrder,
        member_dir: Path,
        shared_dir: Path,
        scratch_dir: Path,
        ready: Provisioned,
    ) -> BoxSpec:
        """The box of one member."""
        is_head = order.role == "head"
        free_bytes = shutil.disk_usage(scratch_dir.parent).free
        memory_bytes = self.room.memory_bytes * MEMORY_SHARE_PERCENT // 100 // self.room.places
        memory_bytes = min(memory_bytes, HEAD_MEMORY_BYTES) if is_head else memory_bytes
        return BoxSpec(
            name=box_name(member_dir),
            user_id=FIRST_USER_ID + int(box_name(member_dir), 16) % USER_IDS,
            scratch_dir=str(scratch_dir),
            scratch_bytes=min(
                SCRATCH_BYTES_MAX, free_bytes * SCRATCH_SHARE_PERCENT // 100 // self.room.places
            ),
            shared_dir=str(shared_dir),
            readonly_dirs=ready.readonly_dirs,
            memory_bytes=memory_bytes,
            pids_max=PIDS_MAX + PIDS_PER_GPU * order.gpus,
            cpus=max(1.0, self.room.cpus * CPU_SHARE_PERCENT / 100) if self.room.cpus else 0.0,
            shm_bytes=memory_bytes * SHM_SHARE_PERCENT // 100,
            devices=tuple(
                file for device_id in order.device_ids for file in self.device_files.get(device_id, ())
            ),
            egress=self.room.egress,
            name_servers=self.room.name_servers if self.room.egress == "internet" else (),
        )

    def container(self, order: NodeOrder) -> ContainerSpec | None:
        """How podman makes a member's box; None where bubblewrap does. Raises ValueError for what cannot be had."""
        if order.isolation != "container":
            if order.image:
                raise ValueError(f"isolation {order.isolation} has no images; one takes isolation container")
            return None
        trial = tiers.trial()
        if not trial.runtime:
            raise ValueError(f"isolation container cannot be given: {trial.reason}")
        graphics = [device_id for device_id in order.device_ids if device_id in self.device_files]
        described = cdi.described(graphics, cdi.descriptions())
        if order.image and graphics and not described:
            # The host's driver is no part of an image.
            raise ValueError(
                f"an image gets no GPU here, none is described; its owner runs {cdi.HOW_TO_DESCRIBE}"
            )
        return ContainerSpec(trial.runtime, order.image, described)

    async def image(self, order: NodeOrder) -> Provisioned:
        """The image of a member, fetched where it is not here yet, as what its node runs with.

        Raises ImageUnavailableError, ValueError.
        """
        container = await asyncio.to_thread(self.container, order)
        if container is None:
            raise ValueError("a member without a container has no image")
        found = await asyncio.to_thread(images.provide, order.image, container.runtime)
        digest = RuntimeDigest(order.image.rpartition(":")[2])
        return Provisioned(digest, Path(found.python), found.python_version, (), 0)

    def overlay_key(self, member_dir: Path) -> bytes:
        """The public half of a member's key for the overlay, which is made at the first asking."""
        return kept_key(member_dir / OVERLAY_DIR)

    def enter(self, member_dir: Path, entry: OverlayEntry, bridge_port: int) -> None:
        """Write what a member's nebula reads; the same again writes nothing. Raises ValueError, OSError.

        Bridges listen on the host at ``bridge_port`` and the next ones, which have to be the member's.
        """
        folder = member_dir / OVERLAY_DIR
        files = nebula_files(folder)
        bridged = [beacon for beacon in entry.beacons if beacon.bridge][:BRIDGES_MAX]
        landmarks = {
            "udp": [self._landmark(one) for one in entry.beacons],
            "tls": [
                Landmark(one.address, (f"{LOOPBACK}:{bridge_port + number}",))
                for number, one in enumerate(bridged)
            ],
        }
        texts = {files.authorities: entry.authorities, files.certificate: entry.certificate}
        if bridged:
            texts[folder / CREDENTIAL_FILE] = entry.bridge_token
        for number, one in enumerate(bridged):
            texts[folder / bridge_file(number)] = self._bridge(one, bridge_port + number, folder)
        # Last: the keeper takes the change of one for the sign that all are there.
        configs = {
            folder / CONFIG_FILES[transport]: node_config(
                files,
                interface=interface_name(box_name(member_dir)),
                group=entry.group,
                landmarks=landmarks[transport],
                blocklist=entry.blocked,
            )
            for transport in self._transports(folder, has_bridge=bool(bridged))
        }
        old = {path for path, text in {**texts, **configs}.items() if not _holds(path, text)}
        if not old:
            return
        for path, text in {**texts, **configs}.items():
            if path in old or path in configs:
                write_atomically(path, text.encode())

    def _transports(self, folder: Path, *, has_bridge: bool) -> list[Transport]:
        """The ways that are open, in the order of preference. Raises ValueError for none."""
        if self.transport == "tls" and not has_bridge:
            raise ValueError(
                "this agent reaches the overlay over TLS only, and the network has no bridge: ask its operator for"
                " `orch serve --overlay-bridge-listen`, or start the agent with --overlay-transport auto"
            )
        wanted: dict[Transport, bool] = {
            "udp": self.transport != "tls",
            "tls": self.transport != "udp" and has_bridge,
        }
        # What an agent with another setting wrote may be in use.
        kept = {one: (folder / CONFIG_FILES[one]).exists() for one in wanted}
        return [one for one in wanted if wanted[one] or (kept[one] and (one == "udp" or has_bridge))]

    def _landmark(self, beacon: OverlayBeacon) -> Landmark:
        host, _, port = beacon.endpoint.rpartition(":")
        return Landmark(beacon.address, (f"{host or self.beacon_host}:{port}",))

    def _bridge(self, beacon: OverlayBeacon, local_port: int, folder: Path) -> str:
        host, _, port = beacon.bridge.rpartition(":")
        return write_config(
            BridgeConfig(
                listen_port=local_port,
                server_host=host.strip("[]") or self.beacon_host,
                server_port=int(port),
                server_name=SERVER_NAME,
                authorities_path=str(self.trust_file),
                token_path=str(folder / CREDENTIAL_FILE),
            )
        )


def _holds(path: Path, text: str) -> bool:
    return path.exists() and path.read_text() == text


def nebula_files(folder: Path) -> Files:
    """Where a nebula's certificate, key and authorities lie below its folder."""
    return Files(folder / AUTHORITIES_FILE, folder / CERTIFICATE_FILE, folder / KEY_FILE)


def kept_key(folder: Path) -> bytes:
    """The public half of the overlay key in a folder; both are made at the first asking. Blocking."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / RAW_KEY_FILE
    if not path.exists():
        write_atomically(path, clock.random_bytes(KEY_BYTES))
    pair = new_key(path.read_bytes())
    write_atomically(folder / KEY_FILE, pair.private_pem.encode())
    return pair.public_bytes


def box_name(member_dir: Path) -> str:
    """A box's name: the same as long as the member is, and no other's on this machine."""
    return hashlib.sha256(str(member_dir.resolve()).encode()).hexdigest()[:10]


def bare_address(address: str) -> str:
    """An overlay address without its prefix length. Raises ValueError."""
    return str(ipaddress.IPv4Interface(address).ip)


def nvidia_files(pci_bus_ids: Mapping[str, str], gpus_dir: Path = GPUS_DIR) -> dict[str, tuple[str, ...]]:
    """Device id → its device file, by the minor number that the driver tells for the card at each bus id."""
    minors = read_minors(gpus_dir)
    return {
        device_id: (f"/dev/nvidia{minors[place]}",)
        for device_id, pci_bus_id in pci_bus_ids.items()
        if (place := bus_id(pci_bus_id)) in minors
    }
