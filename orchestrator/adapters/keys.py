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


ADMIN_CHARACTERS_MIN = 32
"""Of a token that was not made here: as many as 128 random bits take in hex, which nobody guesses."""

PIN_MARK = "."
"""What stands behind it names the authority, and is no part of the secret: `orch_operator_<secret>.<pin>`."""


class KeyFileError(Exception):
    """A secret's file cannot be used as it is; the text says what to do, never what it holds."""


def _require_private(path: Path) -> None:
    if path.stat().st_mode & OTHERS:
        raise KeyFileError(f"{path} can be read by others; run `chmod 600 {path}`")


def one_word(data: bytes, name: str) -> str:
    """A token out of its file, read up to one byte more than FILE_BYTES_MAX; empty where it holds none.

    Raises KeyFileError, with the file's ``name`` and never with what it holds, for what fits no header.
    """
    text = data.decode("ascii", "replace").strip()
    if len(data) > FILE_BYTES_MAX or not text.isascii() or not text.isprintable() or " " in text:
        raise KeyFileError(
            f"{name} holds something else than one word of visible ASCII characters; put the token alone there"
        )
    return text


class AdminTokenFile:
    """One token. Whoever exchanges it in the file needs no restart: it is read again and again."""

    def __init__(self, folder: Path, brought: Path | None = None) -> None:
        """Read it, or make what is missing. Blocking; raises KeyFileError or OSError.

        ``brought`` is the operator's own file: it is only read, and none is kept in ``folder``.
        """
        self.brought = brought is not None
        """Whether another than this program writes the file."""
        self._path = brought or folder / ADMIN_FILE
        self._named = "--admin-token-file: " if self.brought else ""
        if not self.brought and not self._path.exists():
            write_whole(self._path, f"{new_secret(ADMIN_PREFIX)}\n".encode())
        self.text = self.read()
        """As it was taken last."""

    def read(self) -> str:
        """What the file holds now. Blocking; raises KeyFileError, which never says what it holds."""
        try:
            if not self.brought:
                _require_private(self._path)
            with self._path.open("rb") as file:
                data = file.read(FILE_BYTES_MAX + 1)
        except OSError as error:
            reason = (error.strerror or "cannot be read").lower()
            raise KeyFileError(f"{self._named}cannot read {self._path}: {reason}") from None
        text = one_word(data, f"{self._named}{self._path}")
        if not text:
            raise KeyFileError(f"{self._named}{self._path} is empty; put the operator's token there")
        if len(text.partition(PIN_MARK)[0]) < ADMIN_CHARACTERS_MIN:
            raise KeyFileError(
                f"{self._named}{self._path} holds a token that could be guessed: at least {ADMIN_CHARACTERS_MIN}"
                " characters before any dot are needed; `openssl rand -hex 32` makes one"
            )
        return text

    def take(self, text: str) -> None:
        """What the file holds is the token from now on."""
        self.text = text

    def renew(self) -> None:
        """Replace a token that does not count any more. Blocking; raises KeyFileError where it is not ours to replace."""
        if self.brought:
            raise KeyFileError(
                "--admin-token-file: the token in it was revoked or has expired; put a new one there"
            )
        self.keep(new_secret(ADMIN_PREFIX))

    def keep(self, text: str) -> None:
        """Have our own file hold this from now on; the same again writes nothing. Blocking; raises OSError."""
        if text != self.text and not self.brought:
            write_whole(self._path, f"{text}\n".encode())
            self.text = text


class Keys:
    """The secrets of one control plane."""

    def __init__(self, folder: Path, *, founded: bool, admin_file: Path | None = None) -> None:
        """Load, or make what is missing. Blocking; raises KeyFileError or OSError.

        ``admin_file`` is where the operator keeps his own token; without it one is made in ``folder``.
        Once its network is ``founded``, receipts are verified and tokens derived with the keys that there are:
        another key would make all of them worthless, so a missing one is refused.
        """
        make_folder(folder)
        self.folder = folder
        self._founded = founded
        self.receipt_key = Ed25519PrivateKey.from_private_bytes(self._raw(RECEIPT_KEY_FILE))
        """Signs receipts; its public half is what everybody verifies them with."""
        self._master = self._raw(MASTER_FILE)
        self.admin = AdminTokenFile(folder, admin_file)

    @property
    def admin_token(self) -> str:
        """What `orch` on this machine shows to be the operator, as it was taken from the file."""
        return self.admin.text

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
        _require_private(path)
        with path.open("rb") as file:
            text = file.read(FILE_BYTES_MAX).decode("ascii", "replace").strip()
        if not text:
            raise KeyFileError(f"{path} is empty; restore it from a backup")
        return text
