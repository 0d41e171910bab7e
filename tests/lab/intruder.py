"""Who tries every door of a lab's Ray nodes, with nothing in hand or with what he took from a member."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.adapters.ray_node import SHARED_DIR, TOKEN_FILE
from orchestrator.agent.grounds import OVERLAY_DIR
from orchestrator.agent.housing import AUTHORITIES_FILE, CERTIFICATE_FILE, KEY_FILE
from orchestrator.agent.ways import CONFIG_FILES
from tests.integration.network import Node
from tests.lab.network import LabNetwork
from tests.lab.scan import BATCH_PACKETS
from tests.polling import wait_until

SCAN = Path(__file__).with_name("scan.py")

STRANGER = "stranger"
"""A host of nobody's, beside the others: a lab with an intruder has one of this name."""

SCANNED_S = 120.0
"""Ten addresses take some 20 s on idle cores."""

CONNECTED_S = 60.0
"""A tunnel of nebula's comes up within a second or two on idle cores, by a relay too."""

INTERFACE = "rogue0"


@contextlib.contextmanager
def scanning(
    network: LabNetwork, place: str, addresses: Sequence[str], inside: Node | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A scan of all ports that goes on in a place, or with the network of a box there; the first address answers."""
    enter = () if inside is None else ("nsenter", f"--net=/proc/{inside.namespace_pid}/ns/net")
    command = [*enter, sys.executable, "-I", "-S", SCAN, *addresses]
    process = network.lab.popen(place, command, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def outcome(process: subprocess.Popen[bytes]) -> dict[str, set[int]]:
    """The open ports by address, once every packet has left."""
    seen: dict[str, Any] = json.loads(process.communicate(timeout=SCANNED_S)[0])
    assert {address: one["unsent"] for address, one in seen.items()} == dict.fromkeys(seen, 0)
    return {address: set(one["open"]) for address, one in seen.items()}


def closed(*addresses: str) -> dict[str, set[int]]:
    return {address: set() for address in addresses}


@dataclass(frozen=True)
class Loot:
    """What somebody with all rights on a supplier's machine took from a member's directory while it ran."""

    folder: Path
    token: str
    address: str


def steal(network: LabNetwork, node: Node) -> Loot:
    folder = network.folder / f"loot-{node.spec.member_id}"
    shutil.copytree(node.folder / OVERLAY_DIR, folder)
    return Loot(folder, (node.folder / SHARED_DIR / TOKEN_FILE).read_text(), node.spec.node_ip)


@contextlib.contextmanager
def intruding(network: LabNetwork, loot: Loot) -> Iterator[None]:
    """A nebula of the stranger's own with the stolen files, which forbids itself nothing."""
    config = json.loads((loot.folder / CONFIG_FILES["udp"]).read_text())
    files = {"ca": AUTHORITIES_FILE, "cert": CERTIFICATE_FILE, "key": KEY_FILE}
    config["pki"] |= {name: str(loot.folder / file) for name, file in files.items()}
    # With room for what the scan has on its way.
    config["tun"] |= {"dev": INTERFACE, "tx_queue": BATCH_PACKETS}
    everybody = [{"port": "any", "proto": "any", "host": "any"}]
    config["firewall"] = {"inbound": everybody, "outbound": everybody}
    path = loot.folder / "intruder.json"
    path.write_text(json.dumps(config))
    with (loot.folder / "intruder.log").open("ab") as log:
        process = network.lab.popen(STRANGER, ["nebula", "-config", path], stdout=log, stderr=log)
    try:
        wait_until(
            lambda: loot.address in network.lab.run(STRANGER, ["ip", "-4", "address"]).stdout,
            what="the intruder's interface",
            deadline_s=CONNECTED_S,
        )
        yield
    finally:
        process.kill()
        process.wait()


CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 2.0).close()"


def reaches(network: LabNetwork, address: str, port: int) -> bool:
    command = [sys.executable, "-I", "-c", CONNECT, address, str(port)]
    return network.lab.run(STRANGER, command, check=False).returncode == 0
