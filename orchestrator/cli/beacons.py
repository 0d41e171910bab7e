"""A lighthouse and relay on a machine of the operator's own: the directory that its nebula runs on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.adapters.clock import SystemClock
from orchestrator.adapters.files import make_folder, write_whole
from orchestrator.adapters.overlay.certificates import SKEW_MS, new_key
from orchestrator.adapters.overlay.config import Files, lighthouse_config
from orchestrator.cli.overlay import beacon_address, overlay_authority
from orchestrator.control.beacon import BEACON_LIFE_MS, beacon_certificate

if TYPE_CHECKING:
    from ipaddress import IPv4Network

    from orchestrator.adapters.keys import Keys

MS_PER_S = 1000

FILES = Files(Path("authorities.pem"), Path("certificate.pem"), Path("key.pem"))
"""Relative, as the directory is made for another machine: nebula starts in it."""

CONFIG_FILE = "config.json"


@dataclass(frozen=True, slots=True)
class MadeBeacon:
    """What was written, and how to run it."""

    folder: Path
    address: str
    not_after_s: int
    command: str


def write(keys: Keys, network: IPv4Network, address: str, listen_port: int, out: Path) -> MadeBeacon:
    """Write the directory; the same beacon's again keeps its key. Raises a usage error, OSError."""
    address = beacon_address(address, network)
    folder = out.expanduser().absolute()
    authority = overlay_authority(keys)
    key = new_key(keys.overlay_beacon_key(address))
    now_ms = SystemClock().now().wall_ms
    not_after_s = (now_ms + BEACON_LIFE_MS) // MS_PER_S
    window_s = ((now_ms - SKEW_MS) // MS_PER_S, not_after_s)
    certificate = beacon_certificate(authority, network, address, key, window_s)
    make_folder(folder)
    texts = {
        FILES.key: key.private_pem,
        FILES.certificate: certificate.pem,
        FILES.authorities: authority.certificate_pem,
        Path(CONFIG_FILE): lighthouse_config(FILES, listen_port=listen_port),
    }
    for name, text in texts.items():
        write_whole(folder / name, text.encode())
    return MadeBeacon(folder, address, not_after_s, f"cd {folder} && nebula -config {CONFIG_FILE}")
