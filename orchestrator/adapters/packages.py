"""Tenants' packages on disk: bytes under their SHA-256, found by (tenant, URI). Whatever is seen is whole."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from orchestrator.adapters.clock import random_bytes
from orchestrator.adapters.files import OWNER_ONLY, make_folder, sync_folder, write_whole
from orchestrator.adapters.zips import check_zip

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

T = TypeVar("T")

CHUNK_BYTES = 256 * 1024
"""Large enough that a package is few messages, far below gRPC's bound on one."""

THREADS = 4
"""Uploads and downloads at once that wait for the disk; more of them share these."""

SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
TENANT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}", re.ASCII)


@dataclass(frozen=True, slots=True)
class StoredPackage:
    """What is known of one upload."""

    uri: str
    sha256: str
    size_bytes: int


class PackageStore:
    """A folder with ``blobs`` by hash, ``index`` by tenant, and ``incoming`` for what is not whole yet."""

    def __init__(self, folder: Path) -> None:
        """Blocking: makes the folders, and sweeps away uploads that the last process did not finish."""
        self._blobs = folder / "blobs"
        self._index = folder / "index"
        self._incoming = folder / "incoming"
        for part in (folder, self._blobs, self._index, self._incoming):
            make_folder(part)
        for left in self._incoming.iterdir():
            left.unlink()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="packages")

    async def put(self, tenant_id: str, uri: str, chunks: AsyncIterator[bytes]) -> StoredPackage:
        """Keep an upload, durably. Raises ValueError with a sentence where it is no acceptable zip.

        An error of ``chunks`` is passed on, and nothing is kept.
        """
        temporary = self._incoming / random_bytes(16).hex()
        digest = hashlib.sha256()
        size_bytes = 0
        file = await self._on_thread(lambda: _create(temporary))
        try:
            async for chunk in chunks:
                await self._on_thread(partial(_absorb, file, digest, chunk))
                size_bytes += len(chunk)
            stored = StoredPackage(uri, digest.hexdigest(), size_bytes)
            await self._on_thread(lambda: self._keep(tenant_id, stored, file, temporary))
        finally:
            await self._on_thread(lambda: _discard(file, temporary))
        return stored

    async def find(self, tenant_id: str, uri: str) -> StoredPackage | None:
        """What this tenant uploaded under a URI; None where it did not."""
        return await self._on_thread(lambda: self._look_up(tenant_id, uri))

    async def open(self, sha256: str) -> AsyncIterator[bytes]:
        """The bytes with that hash, in pieces. Raises FileNotFoundError where there are none."""
        if not SHA256.fullmatch(sha256):
            raise FileNotFoundError("no package with this hash is kept here")
        path = self._blobs / sha256
        file = await self._on_thread(lambda: path.open("rb"))
        try:
            while chunk := await self._on_thread(lambda: file.read(CHUNK_BYTES)):
                yield chunk
        finally:
            file.close()

    def close(self) -> None:
        """Finish what is under way."""
        self._threads.shutdown(wait=True)

    async def _on_thread(self, work: Callable[[], T]) -> T:
        """Wait for the thread even when cancelled: what follows may close the file that it is using."""
        working = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            await asyncio.wait([working])
            raise

    def _keep(self, tenant_id: str, stored: StoredPackage, file: BinaryIO, temporary: Path) -> None:
        """Bytes first, then the entry that names them: an entry never points at nothing."""
        file.flush()
        check_zip(temporary)
        os.fsync(file.fileno())
        temporary.replace(self._blobs / stored.sha256)
        sync_folder(self._blobs)
        entry = self._entry(tenant_id, stored.uri)
        make_folder(entry.parent)
        body = {"uri": stored.uri, "sha256": stored.sha256, "size_bytes": stored.size_bytes}
        write_whole(entry, json.dumps(body).encode())

    def _look_up(self, tenant_id: str, uri: str) -> StoredPackage | None:
        try:
            body = json.loads(self._entry(tenant_id, uri).read_bytes())
        except FileNotFoundError:
            return None
        return StoredPackage(body["uri"], body["sha256"], body["size_bytes"])

    def _entry(self, tenant_id: str, uri: str) -> Path:
        if not TENANT_ID.fullmatch(tenant_id):
            raise ValueError(f"{tenant_id[:80]!r} is no tenant's id")
        return self._index / tenant_id / hashlib.sha256(uri.encode()).hexdigest()


def _create(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, OWNER_ONLY), "w+b")


def _absorb(file: BinaryIO, digest: hashlib._Hash, data: bytes) -> None:
    digest.update(data)
    file.write(data)


def _discard(file: BinaryIO, temporary: Path) -> None:
    with contextlib.suppress(OSError):
        file.close()
    temporary.unlink(missing_ok=True)
