"""Files that are either wholly there or not there at all, whenever the power goes. Blocking."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from orchestrator.adapters.clock import random_bytes

OWNER_ONLY = 0o600
OWNER_ONLY_FOLDER = 0o700


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: a file's own flush does not."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """A folder of the owner's only, durable when this returns."""
    folder.mkdir(mode=OWNER_ONLY_FOLDER, parents=True, exist_ok=True)
    sync_folder(folder.parent)


def write_whole(path: Path, data: bytes) -> None:
    """Replace a file at once; only the owner reads it, and it is durable when this returns."""
    temporary = path.with_name(f".{random_bytes(8).hex()}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, OWNER_ONLY)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    sync_folder(path.parent)
