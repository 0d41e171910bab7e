"""Interpreters: found on this machine or downloaded by uv, and copied into a runtime.

A copy of the interpreter and its standard library finds itself by where it lies, so a runtime needs nothing of the
place it was copied from. One exception: an interpreter built with a shared library outside the system's folders goes
on loading that from there; the folder is then named, so that a box can bind it, and such interpreters come last.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.adapters.runtimes.errors import RuntimeUnavailableError
from orchestrator.adapters.runtimes.uv import Uv, run_program

DOWNLOAD_HTTP_TIMEOUT_S = 20
"""Of one silent moment while an interpreter is downloaded: there is another way, so less patience than for packages."""
DOWNLOAD_CONNECT_TIMEOUT_S = 5
"""A machine whose packets are dropped on the way out should know it soon."""

NOT_COPIED = frozenset(
    (
        # Packages are the lock's alone; the rest is the distribution's own, or of no use to a job.
        *("site-packages", "dist-packages", "sitecustomize.py", "usercustomize.py", "EXTERNALLY-MANAGED"),
        *("test", "idlelib", "turtledemo"),
    )
)
SYSTEM_FOLDERS = ("/lib", "/lib64", "/usr")
"""Where libraries belong to the system: every box has them."""

# Asks an interpreter about itself; the imports load what a runtime must be able to load.
_PROBE = """
import bz2, ctypes, hashlib, json, lzma, os, sqlite3, ssl, sys, sysconfig, zlib
loaded = {line.split(None, 5)[-1].strip() for line in open('/proc/self/maps') if '.so' in line}
print(json.dumps({
    'version': list(sys.version_info[:3]),
    'prefix': sys.base_prefix,
    'executable': os.path.realpath(sys.executable),
    'stdlib': sysconfig.get_path('stdlib'),
    'include': sysconfig.get_path('include'),
    'scripts': sysconfig.get_path('scripts'),
    'libraries': sorted(one for one in loaded if one.startswith('/')),
}))
"""


@dataclass(frozen=True, slots=True)
class Interpreter:
    """What an interpreter says of itself. ``outside`` are folders of libraries that a copy goes on needing."""

    executable: Path
    version: tuple[int, int, int]
    prefix: Path
    stdlib: Path
    include: Path
    scripts: Path
    outside: tuple[str, ...]

    @property
    def version_text(self) -> str:
        return ".".join(str(one) for one in self.version)


class Interpreters:
    """The interpreters of this machine, and where uv keeps those that it downloads for us."""

    def __init__(self, uv: Uv, folder: Path, *, downloads: bool) -> None:
        self._uv = uv
        self._folder = folder
        self._downloads = downloads and uv.environment.get("UV_PYTHON_DOWNLOADS") not in ("never", "manual")

    async def copied(self, minor: str, target: Path, progress: Callable[[str], None]) -> Interpreter:
        """Copy the best interpreter of exactly that minor version into a folder; the copy, tried. May be big: 40-120 MB.

        One that uv downloads comes first, because every machine can have the same; then those found here, complete
        ones before those that need a library from outside.
        """
        downloaded = await self._downloaded(minor, progress)
        found = [] if downloaded is None else [downloaded]
        if not found:
            progress(f"looking for Python {minor} on this machine")
            found = await self._installed(minor)
        for one in found:
            progress(f"copying Python {one.version_text}")
            await asyncio.to_thread(_copy, one, target)
            copy = await probe(target / "bin" / "python", self._uv.environment)
            if copy is not None and copy.prefix == target and copy.version == one.version:
                await self._compile(copy, target)
                return copy
            await asyncio.to_thread(shutil.rmtree, target)
        raise RuntimeUnavailableError(
            f"no Python {minor} was found on this machine and none could be downloaded; install one "
            f"(Debian, Ubuntu: apt install python{minor}), or let uv download it: uv python install {minor}"
        )

    async def _downloaded(self, minor: str, progress: Callable[[str], None]) -> Interpreter | None:
        """Uv's own, downloaded once for all runtimes of this store; None where that cannot be."""
        found = await self._managed(minor)
        if found is not None or not self._downloads:
            return found
        progress(f"downloading Python {minor}")
        await self._uv.run(
            self._folder.parent,
            *("python", "install", "--quiet", "--no-bin", minor),
            UV_PYTHON_INSTALL_DIR=str(self._folder),
            UV_HTTP_TIMEOUT=str(DOWNLOAD_HTTP_TIMEOUT_S),
            UV_HTTP_CONNECT_TIMEOUT=str(DOWNLOAD_CONNECT_TIMEOUT_S),
            UV_HTTP_RETRIES="1",
        )
        return await self._managed(minor)

    async def _managed(self, minor: str) -> Interpreter | None:
        if not self._folder.is_dir():
            return None
        answer = await self._uv.run(
            self._folder.parent,
            *("python", "find", "--quiet", "--managed-python", "--no-python-downloads", "--system", minor),
            UV_PYTHON_INSTALL_DIR=str(self._folder),
        )
        return await self._probed(Path(answer.out.strip()), minor) if answer.code == 0 else None

    async def _installed(self, minor: str) -> list[Interpreter]:
        """Each once, complete ones first, this process's own before others."""
        own = Path(sys.base_prefix) / "bin" / f"python{minor}"
        paths = [own, *await self._listed(minor)]
        probed = [await self._probed(path, minor) for path in dict.fromkeys(paths)]
        unique = {one.executable: one for one in probed if one is not None}
        return sorted(unique.values(), key=lambda one: bool(one.outside))

    async def _listed(self, minor: str) -> list[Path]:
        answer = await self._uv.run(
            self._folder.parent,
            *("python", "list", "--only-installed", "--output-format", "json", minor),
        )
        try:
            rows = json.loads(answer.out)
        except ValueError:
            return []
        return [
            Path(row["path"])
            for row in rows
            if row.get("implementation") == "cpython" and row.get("variant", "default") == "default"
        ]

    async def _probed(self, path: Path, minor: str) -> Interpreter | None:
        found = await probe(path, self._uv.environment)
        return found if found is not None and found.version_text.rpartition(".")[0] == minor else None

    async def _compile(self, copy: Interpreter, target: Path) -> None:
        """Bytecode of the standard library: a box cannot write any. What does not compile is no module of ours."""
        await run_program(
            target,
            (str(copy.executable), *["-I", "-m", "compileall", "-q", "-q", "-j", "0"], str(copy.stdlib)),
            self._uv.environment,
            f"Python {copy.version_text}",
        )


async def probe(path: Path, environment: Mapping[str, str]) -> Interpreter | None:
    """Ask an interpreter about itself; None where it does not run or lacks a part of the standard library."""
    try:
        answer = await run_program(Path("/"), (str(path), "-I", "-c", _PROBE), environment, str(path))
        said = json.loads(answer.out)
    except (RuntimeUnavailableError, ValueError):
        return None
    prefix, stdlib = Path(said["prefix"]), Path(said["stdlib"])
    if answer.code != 0 or not stdlib.is_relative_to(prefix):
        return None
    within = (*(Path(one) for one in SYSTEM_FOLDERS), stdlib)
    folders = {
        str(Path(one).parent)
        for one in said["libraries"]
        if not any(Path(one).is_relative_to(folder) for folder in within)
    }
    major, minor, patch = said["version"]
    return Interpreter(
        executable=Path(said["executable"]),
        version=(major, minor, patch),
        prefix=prefix,
        stdlib=stdlib,
        include=Path(said["include"]),
        scripts=Path(said["scripts"]),
        outside=tuple(sorted(folders)),
    )


def supported_machine(system: str, machine: str) -> bool:
    """Whether locks are made for it."""
    return system == "Linux" and machine in {"x86_64", "aarch64"}


def require_supported_machine() -> None:
    """Raises RuntimeUnavailableError where no lock has packages for this machine."""
    if not supported_machine(platform.system(), platform.machine()):
        raise RuntimeUnavailableError(
            f"runtimes exist for Linux on x86_64 and aarch64, and this is {platform.system()} on "
            f"{platform.machine()}; join with a Linux machine"
        )


def _copy(source: Interpreter, target: Path) -> None:
    """Executable, standard library and C headers (some packages compile while they run); no packages."""
    folder = target / "bin"
    folder.mkdir(parents=True)
    name = f"python{source.version[0]}.{source.version[1]}"
    shutil.copy2(source.executable, folder / name)
    for alias in ("python", "python3"):
        (folder / alias).symlink_to(name)
    stdlib = target / source.stdlib.relative_to(source.prefix)
    shutil.copytree(source.stdlib, stdlib, ignore=_left_out(source.stdlib), ignore_dangling_symlinks=True)
    if source.include.is_dir() and source.include.is_relative_to(source.prefix):
        include = target / source.include.relative_to(source.prefix)
        shutil.copytree(source.include, include, ignore_dangling_symlinks=True)
    # Debian's Python would put commands elsewhere than beside itself.
    scripts = target / source.scripts.relative_to(source.prefix)
    if scripts != folder:
        scripts.parent.mkdir(parents=True, exist_ok=True)
        scripts.symlink_to(os.path.relpath(folder, scripts.parent))


def _left_out(stdlib: Path) -> Callable[[str, list[str]], set[str]]:
    """What copytree leaves out: only at the top, where `test` is Python's own tests and `config-…` a static library."""

    def left_out(folder: str, names: list[str]) -> set[str]:
        if Path(folder) != stdlib:
            return set()
        return {name for name in names if name in NOT_COPIED or name.startswith("config-")}

    return left_out
