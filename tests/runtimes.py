"""Runtimes, provisioned once for every test that needs one and for the next run of the tests.

The default one, and ``torch``: an operator's own, which has torch beside what the default has.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.adapters.runtimes import (
    Provisioned,
    Runtime,
    RuntimeStore,
    Uv,
    bundled,
    find_uv,
    load_directory,
    uv_environment,
)
from orchestrator.adapters.runtimes.catalogue import DATA, DEFAULT_NAME

ROOT = Path(__file__).resolve().parent.parent
FOLDER_VARIABLE = "ORCH_TEST_RUNTIMES"
LINKS_VARIABLES = ("UV_FIND_LINKS", "PIP_FIND_LINKS")
"""Where wheels lie that no index has: torch for processors alone is such a one."""

CATALOGUE = "catalogue"
"""The folder of an operator's own runtimes, beside those that are built."""

TORCH_NAME = "torch"
RESOLVED_S = 120.0
"""Of uv over a slow line; a second or two where it has the index in its cache."""

_TORCH_WHEEL = re.compile(r"torch-(?P<version>[^-]+)-cp311-.*\.whl")

UNPRIVILEGED_ID = 61_234
"""Of a user who owns nothing here."""


def real_uv() -> Uv:
    """The project's own uv, which every `make` target installs."""
    own = ROOT / ".venv" / "tools" / "bin" / "uv"
    return Uv((str(own),) if own.exists() else find_uv(), uv_environment(os.environ))


def everybody_may_walk(path: Path) -> bool:
    return all(one.stat().st_mode & stat.S_IXOTH for one in (path, *path.parents) if one.exists())


def shared_folder() -> Path:
    """ORCH_TEST_RUNTIMES; else beside the environment, if a box's user could get there; else among temporary files."""
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        return Path(named)
    beside = ROOT / ".venv" / "runtimes"
    if everybody_may_walk(beside.parent):
        return beside
    folder = Path(tempfile.gettempdir()) / f"orch-test-runtimes-{os.geteuid()}"
    folder.mkdir(mode=0o755, exist_ok=True)
    assert folder.stat().st_uid == os.geteuid(), f"{folder} is somebody else's; set {FOLDER_VARIABLE}"
    return folder


def shared_store() -> RuntimeStore:
    """A store that outlives the run; runtimes in it are told apart by digest. Downloads no interpreter."""
    return RuntimeStore(shared_folder(), real_uv(), python_downloads=False)


async def default_runtime() -> Provisioned:
    """The default runtime: at once where an earlier test has built it, else some 15 seconds."""
    return await shared_store().provision(bundled()[0], lambda _: None)


def torch_catalogue() -> Path:
    """An operator's folder that holds the runtime ``torch``, resolved once; the test is skipped where none can be had."""
    folder = shared_folder() / CATALOGUE
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    description, lock = folder / f"{TORCH_NAME}.toml", folder / f"{TORCH_NAME}.lock"
    default = bundled()[0]
    assert default.name == DEFAULT_NAME
    text = _described(replace(default, packages=(*default.packages, _torch_requirement())))
    if not lock.exists() or not description.exists() or description.read_text() != text:
        _resolve(text, description, lock)
    return folder


async def torch_runtime() -> Provisioned:
    """The runtime of `torch_catalogue`: at once where an earlier test has built it, else a minute and 1 GB."""
    (runtime,) = load_directory(torch_catalogue())
    store = RuntimeStore(shared_folder(), _linked(real_uv()), python_downloads=False)
    return await store.provision(runtime, lambda _: None)


def _find_links() -> list[str]:
    """What the environment names, to pip or to uv."""
    named = next((os.environ[name] for name in LINKS_VARIABLES if os.environ.get(name)), "")
    return named.replace(",", " ").split()


def _linked(uv: Uv) -> Uv:
    """Told of the links in its own words, whichever variable named them."""
    return Uv(uv.command, {**uv.environment, "UV_FIND_LINKS": ",".join(_find_links())})


def _torch_requirement() -> str:
    """The torch that lies in a folder of links: an index may have a newer one, which would be preferred."""
    folders = [Path(link) for link in _find_links() if Path(link).is_dir()]
    names = sorted(wheel.name for folder in folders for wheel in folder.glob("torch-*.whl"))
    versions = [found["version"] for name in names if (found := _TORCH_WHEEL.fullmatch(name))]
    return f"torch=={versions[-1]}" if versions else "torch"


def _described(runtime: Runtime) -> str:
    """A runtime's TOML; JSON's strings and lists are TOML's too."""
    fields = {"python": runtime.python, "ray": runtime.ray_version, "packages": list(runtime.packages)}
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in fields.items())


def _resolve(text: str, description: Path, lock: Path) -> None:
    """Lock what a description asks for, all else as the default runtime has it; both files, or neither is new."""
    uv = _linked(real_uv())
    command = [*uv.command, "pip", "compile", "--quiet", "--generate-hashes", "--no-header", "--no-annotate"]
    command += ["--only-binary", ":all:", "--python-version", bundled()[0].python]
    command += ["--constraint", str(DATA / f"{DEFAULT_NAME}.lock"), "-"]
    asked = "\n".join(json.loads(text.splitlines()[-1].partition("=")[2]))
    done = subprocess.run(
        command,
        env=uv.environment,
        input=asked,
        capture_output=True,
        text=True,
        check=False,
        timeout=RESOLVED_S,
    )
    needed = (
        f"set {LINKS_VARIABLES[0]} to a folder with a wheel of torch for processors alone and CPython 3.11"
    )
    if done.returncode != 0:
        pytest.skip(f"no runtime with torch can be resolved; {needed}: {done.stderr[-300:]}")
    if "\nnvidia-" in done.stdout:
        pytest.skip(f"torch comes with several GB for GPUs from this machine's index; {needed}")
    lock.write_text(done.stdout)
    # Last: it is what says that the lock is of these packages.
    description.write_text(text)


def unprivileged() -> list[str]:
    """What makes a command run as somebody who owns nothing: nothing where we are nobody ourselves."""
    if os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    assert setpriv is not None, "setpriv is missing; apt install util-linux"
    return [setpriv, f"--reuid={UNPRIVILEGED_ID}", f"--regid={UNPRIVILEGED_ID}", "--clear-groups"]
