"""The control plane's secrets: files of the owner's only in its data directory, made before its network is."""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from orchestrator.adapters.clock import new_secret, random_bytes
from orchestrator.adapters.files import make_folder, write_whole

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RECEIPT_KEY_FILE = "receipt-key"
MASTER_FILE = "master-secret"
ADMIN_FILE = "admin-token"

KEY_BYTES = 32
ADMIN_PREFIX = "orch_operator"
OTHERS = 0o077
"""Permission bits by which anyone but the owner could read or change a file."""

FILE_BYTES_MAX = 4096
"""Several times what any of these files holds."""


class KeyFileError(Exception):
    """A secret's file cannot be used as it is; the text says what to do, never what it holds."""


class Keys:
    """The secrets of one control plane."""

    def __init__(self, folder: Path, *, founded: bool) -> None:
        """Load, or make what is missing. Blocking; raises KeyFileError or OSError.

        Once its network is ``founded``, receipts are verified and tokens derived with the keys that there are:
        another key would make all of them worthless, so a missing one is refused.
        """
        make_folder(folder)
        self.folder = folder
        self._founded = founded
        self.receipt_key = Ed25519PrivateKey.from_private_bytes(self._raw(RECEIPT_KEY_FILE))
        """Signs receipts; its public half is what everybody verifies them with."""
        self._master = self._raw(MASTER_FILE)
        text = self._load(ADMIN_FILE, lambda: new_secret(ADMIN_PREFIX))
        self.admin_token = text
        """What `orch` on this machine shows to be the operator, as it stands in the file."""

    def cluster_token(self, cluster_id: str) -> str:
        """The token of one Ray cluster: derived, so that it need not be stored and survives a restart."""
        return self._derived(f"cluster/{cluster_id}")

    def token_secret(self, prefix: str, request_id: str) -> str:
        """The secret of a token that was asked for with ``request_id``: the same for the same request."""
        return f"{prefix}_{self._derived(f'token/{prefix}/{request_id}')}"

    def bridge_token(self, member_id: str) -> str:
        """What a member shows at a bridge of the overlay; derived, as a cluster's token is."""
        return f"{member_id}.{self._derived(f'overlay/bridge/{member_id}')}"

    @property
    def overlay_seed(self) -> bytes:
        """What the overlay's authority is made of."""
        return bytes.fromhex(self._derived("overlay/authority"))

    @property
    def probe_key(self) -> bytes:
        """What all workers prove their questions and answers by when they measure the ways between them."""
        return bytes.fromhex(self._derived("overlay/probes"))

    def overlay_beacon_key(self, address: str) -> bytes:
        """The private key of the beacon at an address of the overlay, as raw bytes."""
        return bytes.fromhex(self._derived(f"overlay/beacon/{address}"))

    def renew_admin_token(self) -> None:
        """Replace an admin token that does not count any more."""
        self.keep_admin_token(new_secret(ADMIN_PREFIX))

    def keep_admin_token(self, text: str) -> None:
        """Have the file hold this from now on; the same again writes nothing. Blocking; raises OSError."""
        if text != self.admin_token:
            write_whole(self.folder / ADMIN_FILE, f"{text}\n".encode())
            self.admin_token = text

    def _derived(self, name: str) -> str:
        return hmac.new(self._master, name.encode(), hashlib.sha256).hexdigest()

    def _raw(self, name: str) -> bytes:
        path = self.folder / name
        if self._founded and not path.exists():
            raise KeyFileError(
                f"{path} is missing, and the network in the database depends on it; restore it from a backup,"
                " or name the --data-dir that has it"
            )
        text = self._load(name, lambda: random_bytes(KEY_BYTES).hex())
        try:
            key = bytes.fromhex(text)
        except ValueError:
            key = b""
        if len(key) != KEY_BYTES:
            raise KeyFileError(f"{path} holds no key of {KEY_BYTES} bytes; restore it from a backup")
        return key

    def _load(self, name: str, make: Callable[[], str]) -> str:
        path = self.folder / name
        if not path.exists():
            write_whole(path, f"{make()}\n".encode())
        if path.stat().st_mode & OTHERS:
            raise KeyFileError(f"{path} can be read by others; run `chmod 600 {path}`")
        with path.open("rb") as file:
            text = file.read(FILE_BYTES_MAX).decode("ascii", "replace").strip()
        if not text:
            raise KeyFileError(f"{path} is empty; restore it from a backup")
        return text
