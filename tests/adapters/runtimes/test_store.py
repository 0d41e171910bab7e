"""Runtimes on this machine: built once and whole, or not there."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.adapters.runtimes import Runtime, RuntimeStore, RuntimeUnavailableError, Uv
from orchestrator.adapters.runtimes.interpreter import probe, supported_machine
from tests.adapters.runtimes.conftest import FAKE, MINOR, World
from tests.polling import wait_until, wait_until_async

BUILDER = """
import asyncio, os, sys
from pathlib import Path
from orchestrator.adapters.runtimes import Runtime, RuntimeStore, Uv
lock = sys.argv[4].encode()
uv = Uv((sys.executable, sys.argv[2]), dict(os.environ))
store = RuntimeStore(Path(sys.argv[1]), uv, python_downloads=False)
asyncio.run(store.provision(Runtime("small", sys.argv[3], "2.60.0", lock, ("ray",)), print))
"""


def everything(folder: Path) -> list[Path]:
    return [folder, *folder.rglob("*")]


def silent(_: str) -> None:
    """For those who do not want to know."""


async def test_provision_first_builds_and_second_finds(world: World, made: Callable[..., Runtime]) -> None:
    steps: list[str] = []
    store = world.store()
    assert store.find(made().digest) is None
    built = await store.provision(made(), steps.append)
    assert built.digest == made().digest
    assert built.readonly_dirs[0] == str(world.folder / built.digest)
    assert built.size_bytes > 1 << 20
    assert "installing 2 packages" in steps
    again: list[str] = []
    assert await store.provision(made(), again.append) == built == store.find(built.digest)
    assert (again, world.installations(), store.ready()) == ([], 1, (built.digest,))
    assert world.names() == [built.digest]


async def test_provision_command_of_a_package_runs_from_its_final_place(
    world: World, made: Callable[..., Runtime]
) -> None:
    built = await world.store().provision(made(), silent)
    process = await asyncio.create_subprocess_exec(
        str(built.python.parent / "ray"), stdout=asyncio.subprocess.PIPE, env={}
    )
    out, _ = await process.communicate()
    assert (process.returncode, out) == (0, b"2.60.0\n")


async def test_provision_any_umask_lets_everybody_read_and_nobody_write(
    world: World, made: Callable[..., Runtime]
) -> None:
    before = os.umask(0o077)
    try:
        built = await world.store().provision(made(), silent)
    finally:
        os.umask(before)
    assert world.folder.stat().st_mode & 0o777 == 0o755
    whole = everything(Path(built.readonly_dirs[0]))
    assert {one.stat().st_mode & 0o777 for one in whole if not one.is_symlink()} == {0o555, 0o444}
    assert built.python.stat().st_mode & 0o777 == 0o555


async def test_provision_two_at_once_build_once(world: World, made: Callable[..., Runtime]) -> None:
    steps: list[str] = []
    first, second = await asyncio.gather(
        world.store().provision(made(), silent), world.store().provision(made(), steps.append)
    )
    assert first == second
    assert world.installations() == 1
    assert steps == ["waiting for another agent that builds the same runtime"]


async def test_provision_cancelled_leaves_nothing_and_ends_uv(
    world: World, made: Callable[..., Runtime]
) -> None:
    task = asyncio.create_task(world.store(FAKE_UV_ENDS="never").provision(made(), silent))
    await wait_until_async(lambda: world.installations() == 1, what="the installation", deadline_s=60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    uv_pid = int(world.log.read_text())
    wait_until(lambda: not Path(f"/proc/{uv_pid}").exists(), what="the end of uv", deadline_s=60)
    assert world.names() == []


async def test_provision_builder_killed_the_next_starts_afresh(
    world: World, made: Callable[..., Runtime]
) -> None:
    killed = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", BUILDER, str(world.folder), str(FAKE), MINOR, made().lock.decode()),
        env={
            **os.environ,
            "FAKE_UV_LOG": str(world.log),
            "FAKE_UV_ENDS": "never",
            "FAKE_UV_PYTHONS": "",
        },
        cwd=Path(__file__).parents[3],
        stdout=asyncio.subprocess.DEVNULL,
    )
    await wait_until_async(lambda: world.installations() == 1, what="the installation", deadline_s=60)
    killed.kill()
    await killed.wait()
    os.kill(int(world.log.read_text()), signal.SIGKILL)
    left = world.names()
    assert len(left) == 1
    assert left[0].startswith(".building-")
    assert world.store().ready() == ()
    built = await world.store().provision(made(), silent)
    assert world.names() == [built.digest]


async def test_provision_refused_by_uv_says_so_and_leaves_nothing(
    world: World, made: Callable[..., Runtime]
) -> None:
    store = world.store(FAKE_UV_ENDS="badly", FAKE_UV_SAYS="cause: Hash mismatch for `thing==1.0`")
    with pytest.raises(RuntimeUnavailableError, match=r"thing==1\.0 with other bytes"):
        await store.provision(made(), silent)
    assert world.names() == []


async def test_provision_minor_that_nobody_has_says_what_to_install(
    world: World, made: Callable[..., Runtime]
) -> None:
    with pytest.raises(RuntimeUnavailableError, match=r"no Python 3\.99 .*apt install python3\.99"):
        await world.store().provision(made(python="3.99"), silent)
    assert world.installations() == 0
    assert world.names() == []


async def test_provision_other_ray_than_described_is_not_kept(
    world: World, made: Callable[..., Runtime]
) -> None:
    wanted = made()
    other = Runtime(wanted.name, wanted.python, "2.59.0", wanted.lock, wanted.packages)
    with pytest.raises(RuntimeUnavailableError, match=r"Ray 2\.59\.0 does not run on this machine"):
        await world.store().provision(other, silent)
    assert world.names() == []


async def test_provision_folder_that_is_a_file_says_so(world: World, made: Callable[..., Runtime]) -> None:
    world.folder.write_text("")
    with pytest.raises(RuntimeUnavailableError, match="cannot be written"):
        await world.store().provision(made(), silent)


async def test_find_half_a_runtime_or_a_strange_name_is_none(
    world: World, made: Callable[..., Runtime]
) -> None:
    (world.folder / made().digest / "bin").mkdir(parents=True)
    store = world.store()
    assert store.find(made().digest) is None
    assert store.ready() == ()
    built = await store.provision(made(), silent)
    assert store.ready() == (built.digest,)


async def test_collect_removes_what_is_not_kept_and_what_was_left(
    world: World, made: Callable[..., Runtime]
) -> None:
    store = world.store()
    kept, dropped = await store.provision(made("1.0"), silent), await store.provision(made("2.0"), silent)
    (world.folder / f".building-{dropped.digest}-0000" / "bin").mkdir(parents=True)
    await store.collect({kept.digest})
    assert store.ready() == (kept.digest,)
    assert world.names() == [kept.digest]


async def test_collect_leaves_what_is_being_built(world: World, made: Callable[..., Runtime]) -> None:
    task = asyncio.create_task(world.store(FAKE_UV_ENDS="never").provision(made(), silent))
    await wait_until_async(lambda: world.installations() == 1, what="the installation", deadline_s=60)
    await world.store().collect(set())
    assert [one for one in world.names() if one.startswith(f".building-{made().digest}")]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_collect_folder_that_never_was_is_no_error(world: World) -> None:
    await world.store().collect(set())
    assert not world.folder.exists()


async def test_probe_this_interpreter_tells_its_place_and_another_program_nothing() -> None:
    found = await probe(Path(sys.executable), dict(os.environ))
    assert found is not None
    assert found.version == sys.version_info[:3]
    assert found.prefix == Path(sys.base_prefix)
    assert await probe(Path("/bin/true"), {}) is None


def test_machine_others_than_locked_are_not_supported() -> None:
    assert supported_machine("Linux", "x86_64")
    assert supported_machine("Linux", "aarch64")
    assert not supported_machine("Linux", "armv7l")
    assert not supported_machine("Darwin", "arm64")


def test_store_uv_absent_is_one_sentence(tmp_path: Path, made: Callable[..., Runtime]) -> None:
    store = RuntimeStore(tmp_path / "runtimes", Uv((str(tmp_path / "none"),), {}), python_downloads=False)
    with pytest.raises(RuntimeUnavailableError, match="cannot be started"):
        asyncio.run(store.provision(made(python="3.99"), silent))
