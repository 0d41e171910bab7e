"""The real runtime, and a small world with a uv that only pretends."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.adapters.runtimes import Provisioned, Runtime, RuntimeStore, Uv, uv_environment
from tests.runtimes import default_runtime

FAKE = Path(__file__).with_name("fake_uv.py")
MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"


@dataclass(frozen=True, slots=True)
class World:
    """A store's folder and the log of what the fake uv installed."""

    folder: Path
    log: Path

    def store(self, **variables: str) -> RuntimeStore:
        own = str(Path(sys.base_prefix) / "bin" / f"python{MINOR}")
        told = {"FAKE_UV_LOG": str(self.log), "FAKE_UV_PYTHONS": own, **variables}
        uv = Uv((sys.executable, str(FAKE)), {**uv_environment(os.environ), **told})
        return RuntimeStore(self.folder, uv, python_downloads=False)

    def installations(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0

    def names(self) -> list[str]:
        """What lies in the folder, locks aside."""
        return sorted(one.name for one in self.folder.iterdir() if not one.name.endswith(".lock"))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "runtimes", tmp_path / "installed.log")


@pytest.fixture
def made() -> Callable[..., Runtime]:
    """A runtime as a lock might describe it."""

    def runtime(version: str = "1.0", python: str = MINOR) -> Runtime:
        lock = "".join(f"{name} --hash=sha256:{'0' * 64}\n" for name in ("ray==2.60.0", f"thing=={version}"))
        return Runtime("small", python, "2.60.0", lock.encode(), ("ray",))

    return runtime


@pytest.fixture
async def provisioned() -> Provisioned:
    """The default runtime, built by the first test of any run that asks."""
    return await default_runtime()
