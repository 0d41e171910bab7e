"""Who this agent is, on disk: its data directory, its two keys, and what the join told it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from orchestrator.adapters.files import make_folder, write_whole
from orchestrator.adapters.peers import key_from_pem, key_to_pem, new_tls_key

AGENT_FILE = "agent.json"
"""Present once the agent has joined."""

KEY_FILE = "statement-key"
TLS_KEY_FILE = "tls-key.pem"
LOCK_FILE = "agent.lock"

KEY_BYTES = 32

OTHERS = 0o077
"""Permission bits by which anyone but the owner could read or change a file."""


class StartError(Exception):
    """The agent cannot start like this; the message is one line that says what to do."""


@dataclass(frozen=True, slots=True)
class Keys:
    """What only this worker holds: one key that signs statements, one that TLS is spoken with."""

    statement: Ed25519PrivateKey
    tls: ec.EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True)
class Received:
    """When the present certificate came, by clocks that may be compared with later.

    ``renew_boottime_ms`` is half its life after it came, and means something during ``boot_id`` only.
    ``proved``: a session was opened with it, so that it is known to be accepted.
    """

    renew_after_unix_ms: int
    boot_id: str
    renew_boottime_ms: int
    proved: bool


@dataclass(frozen=True, slots=True)
class Identity:
    """What the control plane called this worker when it joined, and where its sessions are held.

    ``session_address`` without a host means that of ``control_plane``; ``ca_pin`` is that of the newest CA known.
    """

    worker_id: str
    name: str
    supplier_id: str
    control_plane: str
    network_id: str
    session_address: str
    ca_pin: str
    certificate: Received

    @property
    def session_endpoint(self) -> str:
        """HOST:PORT of the session listener."""
        host, _, port = self.session_address.rpartition(":")
        return f"{host or self.control_plane.rpartition(':')[0]}:{port}"


def take_data_dir(data_dir: Path) -> int:
    """Make the directory and lock it for this process; the descriptor holds the lock. Raises StartError."""
    try:
        make_folder(data_dir)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        lock_fd = os.open(data_dir / LOCK_FILE, flags, 0o600)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StartError(
            f"cannot write to the data directory {data_dir}: {reason}; choose another with --data-dir"
        ) from None
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock_fd)
        raise StartError(
            f"another agent runs on {data_dir}; stop it, or give this one its own --data-dir"
        ) from None
    return lock_fd


def load_keys(data_dir: Path) -> Keys:
    """Both keys, made at the first start and durable when this returns; 0600. Raises StartError."""
    return Keys(_statement_key(data_dir), _tls_key(data_dir))


def _statement_key(data_dir: Path) -> Ed25519PrivateKey:
    path = data_dir / KEY_FILE
    data = _secret(path, _new_statement_key)
    try:
        raw = bytes.fromhex(data.decode("ascii").strip())
    except ValueError:
        raw = b""
    if len(raw) != KEY_BYTES:
        raise StartError(f"{path} holds no key of {KEY_BYTES} bytes; restore it from a backup")
    return Ed25519PrivateKey.from_private_bytes(raw)


def _new_statement_key() -> bytes:
    return f"{Ed25519PrivateKey.generate().private_bytes_raw().hex()}\n".encode()


def _tls_key(data_dir: Path) -> ec.EllipticCurvePrivateKey:
    path = data_dir / TLS_KEY_FILE
    try:
        return key_from_pem(_secret(path, lambda: key_to_pem(new_tls_key())))
    except ValueError as error:
        raise StartError(f"{path} holds {error}; restore it from a backup") from None


def _secret(path: Path, make: Callable[[], bytes]) -> bytes:
    """A secret file of the owner's only, made unless this worker has joined with another before."""
    if not path.exists():
        if (path.parent / AGENT_FILE).exists():
            raise StartError(
                f"{path} is gone, and only it speaks for this worker; restore it, or remove {AGENT_FILE}"
                " beside it and join as a new worker"
            )
        write_whole(path, make())
    if path.stat().st_mode & OTHERS:
        raise StartError(f"{path} can be read by others; run `chmod 600 {path}`")
    return path.read_bytes()


def load_identity(data_dir: Path) -> Identity | None:
    """What an earlier join wrote; None before there was one. Raises StartError."""
    path = data_dir / AGENT_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Identity)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise StartError(
            f"{path} is damaged ({error}); restore it, or remove it and join again with a new token"
        ) from None


def save_identity(data_dir: Path, identity: Identity) -> None:
    """Durable when it returns."""
    write_whole(data_dir / AGENT_FILE, msgspec.json.format(msgspec.json.encode(identity), indent=1) + b"\n")
