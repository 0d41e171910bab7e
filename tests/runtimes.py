"""The default runtime, provisioned once for every test that needs one and for the next run of the tests."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path

from orchestrator.adapters.runtimes import Provisioned, RuntimeStore, Uv, bundled, find_uv, uv_environment

ROOT = Path(__file__).resolve().parent.parent
FOLDER_VARIABLE = "ORCH_TEST_RUNTIMES"
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


def unprivileged() -> list[str]:
    """What makes a command run as somebody who owns nothing: nothing where we are nobody ourselves."""
    if os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    assert setpriv is not None, "setpriv is missing; apt install util-linux"
    return [setpriv, f"--reuid={UNPRIVILEGED_ID}", f"--regid={UNPRIVILEGED_ID}", "--clear-groups"]
