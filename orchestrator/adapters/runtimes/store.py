"""The runtimes of this machine: folders named by digest, each built once, whole or not there.

```
<directory>/                 0755, best on a path that everybody may walk (a box runs as somebody else)
    <digest>/                sealed: everybody reads, nobody writes; bin/python is the interpreter
    .<digest>.lock           held while that one is built or removed, by whichever agent shares the folder
    .building-<digest>-…/    being built; left behind only by a process that was killed, removed by the next
    .pythons/                interpreters that uv downloaded, the source of copies
```
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from orchestrator.adapters.clock import random_bytes
from orchestrator.adapters.files import sync_folder
from orchestrator.adapters.runtimes.catalogue import Runtime, RuntimeDigest
from orchestrator.adapters.runtimes.errors import RuntimeUnavailableError
from orchestrator.adapters.runtimes.interpreter import (
    Interpreter,
    Interpreters,
    require_supported_machine,
)
from orchestrator.adapters.runtimes.tree import EXECUTABLE, READABLE, remove, seal
from orchestrator.adapters.runtimes.uv import Uv, disk_full, explained, run_program

WORLD_READABLE = 0o755
MANIFEST = "runtime.json"
"""In each runtime's folder; written last, and what `find` believes."""
LOCK_POLL_S = 0.2
"""Between tries for a lock that another process holds: little beside a build."""

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Provisioned:
    """A runtime on this machine. A box must bind each of ``readonly_dirs`` at the same path, readable to its user."""

    digest: RuntimeDigest
    python: Path
    python_version: str
    readonly_dirs: tuple[str, ...]
    size_bytes: int


@dataclass(frozen=True, slots=True)
class _Manifest:
    python_version: str
    ray_version: str
    size_bytes: int
    outside: tuple[str, ...]


class RuntimeStore:
    """Provisions runtimes into a folder. Several agents may share it; each runtime is built by one of them."""

    def __init__(self, directory: Path, uv: Uv, *, python_downloads: bool = True) -> None:
        """Take a folder, made when needed; an absolute path, since runtimes name it. ``python_downloads`` lets uv
        fetch an interpreter; UV_PYTHON_DOWNLOADS=never in uv's environment forbids it too.
        """
        self._directory = Path(os.path.abspath(directory))  # noqa: PTH100 -- a link in it is the owner's choice and stays
        home = uv.environment.get("HOME")
        if "UV_CACHE_DIR" not in uv.environment and not (home and os.access(home, os.W_OK)):
            # A service may have no home.
            uv = Uv(uv.command, {**uv.environment, "UV_CACHE_DIR": str(self._directory / ".cache")})
        self._uv = uv
        self._interpreters = Interpreters(uv, self._directory / ".pythons", downloads=python_downloads)

    def find(self, digest: RuntimeDigest) -> Provisioned | None:
        """The runtime if it is here, whole, with everything it needs from outside. Blocking, one small file."""
        folder = self._directory / digest
        if _DIGEST.fullmatch(digest) is None:
            return None
        try:
            said = json.loads((folder / MANIFEST).read_bytes())
            manifest = _Manifest(**{**said, "outside": tuple(said["outside"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None
        if not all(os.path.isdir(one) for one in manifest.outside):  # noqa: PTH112 -- they are texts
            return None
        return Provisioned(
            digest=digest,
            python=folder / "bin" / "python",
            python_version=manifest.python_version,
            readonly_dirs=(str(folder), *manifest.outside),
            size_bytes=manifest.size_bytes,
        )

    def ready(self) -> tuple[RuntimeDigest, ...]:
        """Digests of the runtimes that are here, in order. Blocking."""
        if not self._directory.is_dir():
            return ()
        names = sorted(RuntimeDigest(one.name) for one in self._directory.iterdir())
        return tuple(name for name in names if self.find(name) is not None)

    async def provision(self, runtime: Runtime, progress: Callable[[str], None]) -> Provisioned:
        """The runtime, built now if it is not here; ``progress`` hears one short line per step.

        Raises RuntimeUnavailableError. Cancelled or killed at any point it leaves nothing that `find` would believe.
        """
        require_supported_machine()
        digest = runtime.digest
        try:
            if not self._directory.is_dir():
                self._directory.mkdir(parents=True, exist_ok=True)
                # Whatever the umask is: boxes run as somebody else.
                self._directory.chmod(WORLD_READABLE)
            found = self.find(digest)
            if found is not None:
                return found
            async with self._locked(digest, progress):
                found = self.find(digest)
                if found is None:
                    await self._build(runtime, progress)
                    found = self.find(digest)
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise disk_full(self._directory) from None
            raise RuntimeUnavailableError(
                f"the runtime cannot be written: {error.strerror} ({error.filename or self._directory}); "
                "give the agent a folder of its own"
            ) from None
        if found is None:
            raise RuntimeUnavailableError(
                f"the runtime vanished from {self._directory} while it was built; leave that folder to the agent"
            )
        return found

    async def collect(self, keep: set[RuntimeDigest]) -> None:
        """Remove every runtime that is not to be kept, and what killed builds left. Skips what is being built."""
        if not self._directory.is_dir():
            return
        for name in sorted(one.name for one in self._directory.iterdir()):
            digest = RuntimeDigest(name.removeprefix(".building-")[:64])
            if _DIGEST.fullmatch(digest) is None or name in keep:
                continue
            descriptor = _try_lock(self._lock_path(digest))
            if descriptor is None:
                continue
            try:
                await asyncio.to_thread(self._discard, self._directory / name, digest)
            finally:
                os.close(descriptor)

    # ---------------------------------------------------------------- building

    async def _build(self, runtime: Runtime, progress: Callable[[str], None]) -> None:
        """Build beside the place and rename: the one moment at which the runtime is there."""
        digest = runtime.digest
        final = self._directory / digest
        for leftover in (final, *self._directory.glob(f".building-{digest}-*")):
            await asyncio.to_thread(self._discard, leftover, digest)
        building = self._building(digest)
        try:
            python = await self._interpreters.copied(runtime.python, building, progress)
            await self._install(runtime, building, progress)
            progress("checking the runtime")
            await self._check(runtime, building)
            await asyncio.to_thread(self._finish, runtime, python, building, final)
        finally:
            await asyncio.shield(asyncio.to_thread(remove, building))

    async def _install(self, runtime: Runtime, building: Path, progress: Callable[[str], None]) -> None:
        """Exactly the lock, by its hashes, nothing built from source, and copies: uv's cache stays another matter."""
        progress(f"installing {len(runtime.locked)} packages")
        lock = building / "requirements.lock"
        lock.write_bytes(runtime.lock)
        answer = await self._uv.run(
            building,
            *("pip", "sync", "--quiet", "--no-progress", "--require-hashes", "--only-binary", ":all:"),
            *("--break-system-packages", "--compile-bytecode", "--link-mode", "copy"),
            *("--python", str(building / "bin" / "python"), str(lock)),
            UV_PYTHON_DOWNLOADS="never",
        )
        if answer.code != 0:
            raise explained(answer, self._directory)

    async def _check(self, runtime: Runtime, building: Path) -> None:
        """Ray loads, and is the one that was asked for: its library may need a newer system than this."""
        program = (str(building / "bin" / "python"), "-I", "-c", "import ray; print(ray.__version__)")
        answer = await run_program(building, program, self._uv.environment, "the runtime's Python")
        if answer.code != 0 or answer.out.strip() != runtime.ray_version:
            raise RuntimeUnavailableError(
                f"Ray {runtime.ray_version} does not run on this machine, which may be too old for it; "
                "upgrade the system, or choose another runtime"
            )

    def _finish(self, runtime: Runtime, python: Interpreter, building: Path, final: Path) -> None:
        """Name the final place where the building's was written, seal, make durable, rename. Blocking."""
        for file in (building / "bin").iterdir():
            if not file.is_symlink() and file.read_bytes()[:2] == b"#!":
                # Only the first lines name the interpreter; nothing else in a runtime knows where it lies.
                file.write_bytes(file.read_bytes().replace(os.fsencode(building), os.fsencode(final)))
        size_bytes = seal(building)
        building.chmod(WORLD_READABLE)
        file = building / MANIFEST
        manifest = _Manifest(python.version_text, runtime.ray_version, size_bytes, python.outside)
        file.write_text(json.dumps(asdict(manifest)), encoding="utf-8")
        file.chmod(READABLE)
        building.chmod(EXECUTABLE)
        # Tens of thousands of files: one flush of the machine is quicker than one of each.
        os.sync()
        building.rename(final)
        sync_folder(self._directory)

    def _discard(self, folder: Path, digest: RuntimeDigest) -> None:
        """Take a folder out of sight first, so that a half removed one is never found. Needs the lock. Blocking."""
        doomed = self._building(digest)
        with contextlib.suppress(FileNotFoundError):
            folder.rename(doomed)
        remove(doomed)

    def _building(self, digest: RuntimeDigest) -> Path:
        return self._directory / f".building-{digest}-{random_bytes(4).hex()}"

    def _lock_path(self, digest: RuntimeDigest) -> Path:
        return self._directory / f".{digest}.lock"

    @contextlib.asynccontextmanager
    async def _locked(self, digest: RuntimeDigest, progress: Callable[[str], None]) -> AsyncIterator[None]:
        """Hold the lock of one runtime; the kernel lets go of it with the process."""
        descriptor = _try_lock(self._lock_path(digest))
        if descriptor is None:
            progress("waiting for another agent that builds the same runtime")
        while descriptor is None:
            await asyncio.sleep(LOCK_POLL_S)
            descriptor = _try_lock(self._lock_path(digest))
        try:
            yield
        finally:
            os.close(descriptor)


def _try_lock(path: Path) -> int | None:
    """The descriptor that holds the lock, or None while another one does."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
