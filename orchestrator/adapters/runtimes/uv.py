"""uv as a child process: where it is, what it is told, and what its refusals mean for the machine's owner."""

from __future__ import annotations

import asyncio
import configparser
import contextlib
import os
import re
import shutil
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.adapters.runtimes.errors import RuntimeUnavailableError

HTTP_TIMEOUT_S = 180
"""Of one silent moment of a download: the slowest package (Ray) is 70 MB, and uv's own 30 s gives up on a slow line."""

_ALTERING = (
    *(
        "PYTHONHOME",
        "PYTHONPATH",
        "VIRTUAL_ENV",
        "CONDA_PREFIX",
        "UV_PYTHON",
        "UV_SYSTEM_PYTHON",
        "UV_TARGET",
    ),
    *("UV_PREFIX", "UV_CONSTRAINT", "UV_OVERRIDE", "UV_EXCLUDE", "UV_BUILD_CONSTRAINT", "UV_NO_BINARY"),
    *("UV_LINK_MODE", "UV_COMPILE_BYTECODE", "UV_WORKING_DIR", "UV_PROJECT", "UV_ENV_FILE", "UV_DRY_RUN"),
)
"""Variables that would make something else of a runtime than its lock says."""
_SECRETIVE = ("ORCH_", "RAY_")
"""Beginnings of the names that may hold our own tokens; uv needs none of them."""

_ADDRESS = re.compile(r"\S*://\S*")
_PACKAGE = re.compile(r"`([A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.!+_-]*)`")
_ERROR_CHARACTERS = 300
"""Of uv's own words where they are not known: enough for its first sentence."""

_REFUSED = ("401 Unauthorized", "403 Forbidden", "407 Proxy")
_DISK_FULL = ("No space left on device", "Disk quota exceeded", "os error 28)", "os error 122)")
_UNREACHABLE = (
    *(
        "error sending request",
        "dns error",
        "tcp connect error",
        "operation timed out",
        "network was disabled",
    ),
    *(
        "Failed to fetch",
        "Connection reset",
        "error decoding response body",
        "Request failed after",
        "timed out",
    ),
)
_NO_WHEEL = (
    "no usable wheels",
    "no wheels with a matching",
    "building from source is disabled",
    "has no wheels",
)
_UNKNOWN = ("there is no version of", "was not found in the package registry", "no versions of")


@dataclass(frozen=True, slots=True)
class Answer:
    """A run of uv that has ended; what it wrote may hold addresses and is shown to nobody."""

    code: int
    out: str
    err: str


@dataclass(frozen=True, slots=True)
class Uv:
    """The program and the whole environment it runs in."""

    command: tuple[str, ...]
    environment: Mapping[str, str]

    async def run(self, folder: Path, *arguments: str, **variables: str) -> Answer:
        """Run to its end in a folder. Cancelled, it takes uv and its children with it."""
        return await run_program(
            folder,
            (*self.command, *arguments),
            {**self.environment, **variables},
            "uv, which installs runtimes,",
        )


async def run_program(
    folder: Path, command: tuple[str, ...], environment: Mapping[str, str], what: str
) -> Answer:
    """Run a program to its end, as the leader of its own process group."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=folder,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise RuntimeUnavailableError(
            f"{what} cannot be started: {error.strerror}; install it anew"
        ) from None
    try:
        out, err = await process.communicate()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    return Answer(process.returncode or 0, out.decode("utf-8", "replace"), err.decode("utf-8", "replace"))


def find_uv() -> tuple[str, ...]:
    """The command of uv: the package's own beside this Python, else the first on PATH."""
    beside = Path(sys.executable).parent / "uv"
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("uv")
    if found is None:
        raise RuntimeUnavailableError(
            "uv, which installs runtimes, was not found; install it: pip install 'ray-gpu-orchestrator[agent]'"
        )
    return (found,)


def uv_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What uv is run with: this process's own, less what would alter a runtime, and pip's index where uv has none."""
    environment = {
        name: value
        for name, value in environ.items()
        if name not in _ALTERING and not name.startswith(_SECRETIVE)
    }
    environment.setdefault("UV_HTTP_TIMEOUT", str(HTTP_TIMEOUT_S))
    if not {"UV_DEFAULT_INDEX", "UV_INDEX_URL"} & environment.keys():
        index = environ.get("PIP_INDEX_URL") or _configured_index(environ)
        if index:
            environment["UV_DEFAULT_INDEX"] = index
    return environment


def _configured_index(environ: Mapping[str, str]) -> str | None:
    """Pip's index by its files, the last of which wins: a machine set up for pip is set up."""
    home = Path(environ.get("HOME") or "/nonexistent")
    files = [
        Path("/etc/pip.conf"),
        home / ".pip" / "pip.conf",
        Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "pip" / "pip.conf",
        Path(sys.prefix) / "pip.conf",
        Path(environ.get("PIP_CONFIG_FILE") or "/nonexistent"),
    ]
    settings = configparser.RawConfigParser(strict=False)
    for file in files:
        # What pip itself would not understand is no setting.
        with contextlib.suppress(configparser.Error, OSError, UnicodeDecodeError):
            settings.read(file, encoding="utf-8")
    return settings.get("global", "index-url", fallback=None)


def explained(answer: Answer, directory: Path) -> RuntimeUnavailableError:
    """What a failed run of uv means, in one sentence that says what to do."""
    said = answer.err
    package = _PACKAGE.search(said)
    name = package[1] if package else "a package"
    if any(mark in said for mark in _DISK_FULL):
        return disk_full(directory)
    if "Hash mismatch" in said:
        return RuntimeUnavailableError(
            f"the index hands out {name} with other bytes than the runtime's lock names; nothing of it was kept: "
            "use an index that serves the released files unchanged"
        )
    if any(mark in said for mark in _REFUSED):
        return RuntimeUnavailableError(
            "the package index refuses this machine; set UV_DEFAULT_INDEX (or PIP_INDEX_URL) with valid credentials"
        )
    if any(mark in said for mark in _UNREACHABLE):
        return RuntimeUnavailableError(
            "no package index can be reached; connect this machine, or set UV_DEFAULT_INDEX (or PIP_INDEX_URL) "
            "to an index that it reaches"
        )
    if any(mark in said for mark in _NO_WHEEL):
        return RuntimeUnavailableError(
            "the runtime holds a package that has no ready build for this machine, and nothing is built from source: "
            "choose another runtime"
        )
    if any(mark in said for mark in _UNKNOWN):
        return RuntimeUnavailableError(
            "the package index lacks a version that the runtime names; set UV_DEFAULT_INDEX to a complete one"
        )
    words = " ".join(_ADDRESS.sub("(an address)", said).split())[:_ERROR_CHARACTERS]
    return RuntimeUnavailableError(f"uv could not install the runtime (exit {answer.code}): {words}")


def disk_full(directory: Path) -> RuntimeUnavailableError:
    """The same words wherever it happens."""
    return RuntimeUnavailableError(
        f"no space is left for the runtime in {directory}, or for uv's cache; free some (a runtime takes about 1 GB) "
        "or move the folder"
    )
