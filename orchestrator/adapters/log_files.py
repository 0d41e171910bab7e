"""Drivers' logs on disk: one file per attempt, which only ever grows without a gap."""

from __future__ import annotations

import asyncio
import os
import re
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from orchestrator.adapters.files import OWNER_ONLY, make_folder, sync_folder

if TYPE_CHECKING:
    from pathlib import Path
from weakref import WeakValueDictionary

ATTEMPT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}", re.ASCII)
"""What an attempt may be called: it is a file name here, and must lead nowhere else."""

THREADS = 4
"""Each write waits for the disk; a few at once keep one slow flush from holding up every log."""


class LogFiles:
    """Bytes by attempt, in ``folder``. One writer at a time for each attempt, whoever calls."""

    def __init__(self, folder: Path) -> None:
        """Blocking: makes the folder and looks at what is in it."""
        make_folder(folder)
        self._folder = folder
        self._sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="logs")

    def size_bytes(self, attempt_id: str) -> int:
        """Bytes that are durable."""
        return self._sizes.get(attempt_id, 0)

    async def append(self, attempt_id: str, offset: int, data: bytes) -> int:
        """Store what is new of [offset, offset + len(data)): the size without a gap afterwards.

        What is stored already is passed over; bytes beyond a gap are not stored. Raises ValueError for a name
        that is none, OSError where the disk cannot take them.
        """
        path = self._path(attempt_id)
        # Held weakly: whoever waits for it keeps it, and the last one lets it go.
        lock = self._locks.get(attempt_id) or asyncio.Lock()
        self._locks[attempt_id] = lock
        async with lock:
            size = self.size_bytes(attempt_id)
            if 0 <= offset <= size < offset + len(data):
                fresh = data[size - offset :]
                await self._on_thread(path, size, fresh)
                size += len(fresh)
                self._sizes[attempt_id] = size
        return size

    async def read(self, attempt_id: str, offset: int, size_max: int) -> bytes:
        """Durable bytes from ``offset`` on, at most ``size_max``; empty where there are none."""
        size = min(size_max, self.size_bytes(attempt_id) - offset)
        if size <= 0 or offset < 0:
            return b""
        path = self._path(attempt_id)
        return await asyncio.get_running_loop().run_in_executor(self._threads, _read, path, offset, size)

    def close(self) -> None:
        """Finish the writes under way."""
        self._threads.shutdown(wait=True)

    async def _on_thread(self, path: Path, size: int, data: bytes) -> None:
        writing = asyncio.get_running_loop().run_in_executor(self._threads, _write, path, size, data)
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            # The thread goes on; the next writer of this file must not begin before it has ended.
            await asyncio.wait([writing])
            raise

    def _path(self, attempt_id: str) -> Path:
        if not ATTEMPT_ID.fullmatch(attempt_id):
            raise ValueError(f"{attempt_id[:80]!r} is no attempt's name")
        return self._folder / attempt_id


def _write(path: Path, size: int, data: bytes) -> None:
    """Write at the known end: what a broken-off write left behind it is overwritten."""
    new = not path.exists()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, OWNER_ONLY)
    try:
        view, position = memoryview(data), size
        while view:
            written = os.pwrite(descriptor, view, position)
            view, position = view[written:], position + written
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)
    if new:
        sync_folder(path.parent)


def _read(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)
