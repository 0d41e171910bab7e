"""Who this agent is, on disk: its data directory, its statement key, and what the join told it."""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from orchestrator.adapters.files import make_folder, write_whole

AGENT_FILE = "agent.json"
"""Present once the agent has joined."""

KEY_FILE = "statement-key"
LOCK_FILE = "agent.lock"

KEY_BYTES = 32

OTHERS = 0o077
"""Permission bits by which anyone but the owner could read or change a file."""


class StartError(Exception):
    """The agent cannot start like this; the message is one line that says what to do."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What the control plane called this worker when it joined."""

    worker_id: str
    name: str
    supplier_id: str
    control_plane: str
    network_id: str


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


def load_key(data_dir: Path) -> Ed25519PrivateKey:
    """The key that signs statements, made at the first start; 0600. Raises StartError."""
    path = data_dir / KEY_FILE
    if not path.exists():
        if (data_dir / AGENT_FILE).exists():
            raise StartError(
                f"{path} is gone, and only it speaks for this worker; restore it, or remove {AGENT_FILE}"
                " beside it and join as a new worker"
            )
        write_whole(path, f"{Ed25519PrivateKey.generate().private_bytes_raw().hex()}\n".encode())
    if path.stat().st_mode & OTHERS:
        raise StartError(f"{path} can be read by others; run `chmod 600 {path}`")
    try:
        raw = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except ValueError:
        raw = b""
    if len(raw) != KEY_BYTES:
        raise StartError(f"{path} holds no key of {KEY_BYTES} bytes; restore it from a backup")
    return Ed25519PrivateKey.from_private_bytes(raw)


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
