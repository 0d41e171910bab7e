"""What an agent says of its disk: the truth of real folders, bounded, at once and when it has changed."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from pathlib import Path

import pytest

from orchestrator.adapters.box.tools import BoxError
from orchestrator.adapters.runtimes import RuntimeStore, Uv
from orchestrator.agent.caches import CacheTeller, Shelves
from orchestrator.api.v1 import worker_pb2
from orchestrator.core.supply.caches import CACHED_MAX, CachedKind
from tests.agent.fakes import DEADLINE_S, FakeChannel
from tests.polling import wait_until_async

IMAGE = f"quay.io/team/image@sha256:{hashlib.sha256(b'image').hexdigest()}"
PACKAGES_MAX = CACHED_MAX[CachedKind.PACKAGE]


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class Disk:
    """A machine's folders, as agents leave them."""

    def __init__(self, folder: Path) -> None:
        self.packages = folder / "packages"
        self.runtimes = folder / "runtimes"
        self.images: list[str] = []
        self.broken: Exception | None = None
        store = RuntimeStore(self.runtimes, Uv(("uv",), {"UV_CACHE_DIR": str(folder)}))
        self.shelves = Shelves(self.packages, store.ready, self._images)

    def _images(self) -> list[str]:
        if self.broken is not None:
            raise self.broken
        return self.images

    def package(self, name: str, second: int = 0) -> str:
        self.packages.mkdir(exist_ok=True)
        path = self.packages / f"{sha(name)}.zip"
        path.write_bytes(b"bytes")
        os.utime(path, (second, second))
        return sha(name)

    def runtime(self, name: str, outside: str = "/") -> str:
        (self.runtimes / sha(name)).mkdir(parents=True)
        manifest = {
            "python_version": "3.11.9",
            "ray_version": "2.60.0",
            "size_bytes": 1,
            "outside": [outside],
        }
        (self.runtimes / sha(name) / "runtime.json").write_text(json.dumps(manifest))
        return sha(name)


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


def test_look_at_an_empty_machine_finds_nothing(disk: Disk) -> None:
    assert disk.shelves.look() == worker_pb2.CachedReport()


def test_look_finds_what_is_whole_and_nothing_else(disk: Disk) -> None:
    ready = sorted(disk.runtime(name) for name in ("one", "two"))
    disk.runtime("interpreter gone", outside="/nowhere/python")
    (disk.runtimes / sha("half built")).mkdir()
    (disk.runtimes / f".building-{sha('third')}-00").mkdir()
    old, new = disk.package("old", 1), disk.package("new", 2)
    (disk.packages / ".package-half").write_bytes(b"half")
    (disk.packages / "notes.zip").write_bytes(b"whose?")
    disk.images = [IMAGE]
    assert disk.shelves.look() == worker_pb2.CachedReport(runtimes=ready, images=[IMAGE], packages=[new, old])


def test_look_at_many_packages_names_the_newest(disk: Disk) -> None:
    packages = [disk.package(str(number), number) for number in range(PACKAGES_MAX + 3)]
    assert list(disk.shelves.look().packages) == packages[:2:-1]


@pytest.mark.parametrize("error", [BoxError("podman is not installed"), PermissionError("no")])
def test_look_at_what_cannot_be_read_finds_the_rest(disk: Disk, error: Exception) -> None:
    package = disk.package("one")
    disk.broken = error
    assert disk.shelves.look() == worker_pb2.CachedReport(packages=[package])


async def test_teller_tells_at_once_in_each_session_and_then_what_changes(disk: Disk) -> None:
    package = disk.package("one")
    looks: list[None] = []

    def look() -> worker_pb2.CachedReport:
        looks.append(None)
        return disk.shelves.look()

    teller = CacheTeller(look, look_s=0.001)
    for _ in range(2):
        channel = FakeChannel()
        attending = asyncio.create_task(teller.attend(channel))
        told = await channel.await_kind("cached")
        assert list(told.cached.packages)[-1] == package
        looks.clear()
        await wait_until_async(lambda: len(looks) > 4, what="some looks", deadline_s=DEADLINE_S)
        assert len(channel.of_kind("cached")) == 1, "nothing has changed"
        attending.cancel()
    attending = asyncio.create_task(teller.attend(channel := FakeChannel()))
    await channel.await_kind("cached")
    other = disk.package("two", 5)
    assert list((await channel.await_kind("cached", 2)).cached.packages) == [other, package]
    (disk.packages / f"{package}.zip").unlink()
    assert list((await channel.await_kind("cached", 3)).cached.packages) == [other]
    attending.cancel()
