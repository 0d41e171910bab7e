"""The runtimes of a machine: one build at a time, the default before any job, and what its owner hears of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from orchestrator.adapters.node_records import RuntimeName
from orchestrator.adapters.runtimes import Provisioned, Runtime, RuntimeDigest, RuntimeUnavailableError
from orchestrator.agent.runtimes import Runtimes, WarmUp
from orchestrator.api.v1 import common_pb2, worker_pb2
from tests.agent.fakes import DEADLINE_S, FakeClock
from tests.polling import wait_until_async

LOCK = f"ray==2.60.0 --hash=sha256:{'ab' * 32}\nnumpy==2.4.1 --hash=sha256:{'cd' * 32}\n".encode()
DEFAULT = Runtime("default", "3.11", "2.60.0", LOCK, ("ray[default]==2.60.0",))
OTHER = Runtime("other", "3.12", "2.60.0", LOCK, ("ray[default]==2.60.0",))


def named(runtime: Runtime) -> RuntimeName:
    return RuntimeName(runtime.name, runtime.digest)


class FakeStore:
    """Builds once it is let, and fails with the next error that it was given."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.built: dict[RuntimeDigest, Provisioned] = {}
        self.begun: list[str] = []
        self.errors: list[Exception] = []
        self.let = asyncio.Event()
        self.let.set()

    def find(self, digest: RuntimeDigest) -> Provisioned | None:
        return self.built.get(digest)

    def ready(self) -> tuple[RuntimeDigest, ...]:
        return tuple(self.built)

    async def provision(self, runtime: Runtime, progress: Callable[[str], None]) -> Provisioned:
        self.begun.append(runtime.name)
        progress("copying Python 3.11.9")
        await self.let.wait()
        if self.errors:
            raise self.errors.pop(0)
        self.clock.now_ms += 21_400
        made = Provisioned(runtime.digest, Path("/r/bin/python"), "3.11.9", ("/r",), 1)
        return self.built.setdefault(runtime.digest, made)


class Machine:
    """An agent's runtimes with all they touch."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.store = FakeStore(self.clock)
        self.said: list[str] = []
        self.offered: dict[str, Runtime] = {}
        self.runtimes = Runtimes(
            self.store, {DEFAULT.digest: DEFAULT}, self._fetch, self.said.append, self.clock
        )
        self.warm_up = WarmUp(self.runtimes, self.clock)

    async def _fetch(self, wanted: RuntimeName) -> Runtime:
        if wanted.digest not in self.offered:
            raise ConnectionError("there is no session")
        return self.offered[wanted.digest]

    def welcome(self, runtime: Runtime) -> None:
        told = common_pb2.Runtime(name=runtime.name, digest=runtime.digest)
        self.warm_up.take(
            worker_pb2.SessionResponse(welcome=worker_pb2.Welcome(term=1, default_runtime=told))
        )

    def states(self) -> dict[str, tuple[str, str]]:
        return {one.name: (one.state, one.detail) for one in self.runtimes.shown()}

    async def until(self, name: str, state: str) -> None:
        await wait_until_async(
            lambda: self.states().get(name, ("", ""))[0] == state,
            what=f"{name} to be {state}",
            deadline_s=DEADLINE_S,
        )


@pytest.fixture
def machine() -> Machine:
    return Machine()


@asynccontextmanager
async def warming(machine: Machine) -> AsyncIterator[None]:
    task = asyncio.create_task(machine.warm_up.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_provision_says_what_is_built_and_how_long_it_took(machine: Machine) -> None:
    made = await machine.runtimes.provision(named(DEFAULT))
    assert made.digest == DEFAULT.digest
    assert machine.said == [
        "building runtime default: Python and 2 packages",
        "runtime default is ready in 21 s",
    ]
    assert machine.states() == {"default": ("ready", "")}


async def test_provision_of_what_is_there_is_silent(machine: Machine) -> None:
    await machine.runtimes.provision(named(DEFAULT))
    machine.said.clear()
    await machine.runtimes.provision(named(DEFAULT))
    assert (machine.said, machine.store.begun) == ([], ["default"])


async def test_provision_by_two_members_at_once_builds_once(machine: Machine) -> None:
    machine.store.let.clear()
    async with asyncio.TaskGroup() as group:
        both = [group.create_task(machine.runtimes.provision(named(DEFAULT))) for _ in range(2)]
        await machine.until("default", "building")
        assert machine.states()["default"] == ("building", "copying Python 3.11.9")
        machine.store.let.set()
    assert [task.result().digest for task in both] == [DEFAULT.digest] * 2
    assert machine.store.begun == ["default"]


async def test_provision_cancelled_lets_the_next_one_build(machine: Machine) -> None:
    machine.store.let.clear()
    first = asyncio.create_task(machine.runtimes.provision(named(DEFAULT)))
    await machine.until("default", "building")
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert machine.states() == {"default": ("failed", "stopped halfway")}
    machine.store.let.set()
    await machine.runtimes.provision(named(DEFAULT))
    assert machine.states() == {"default": ("ready", "")}


async def test_provision_of_a_strange_runtime_asks_the_network(machine: Machine) -> None:
    with pytest.raises(ConnectionError, match="no session"):
        await machine.runtimes.provision(named(OTHER))
    assert machine.states() == {"other": ("failed", "there is no session")}
    machine.offered[OTHER.digest] = OTHER
    assert (await machine.runtimes.provision(named(OTHER))).digest == OTHER.digest


async def test_warm_up_builds_the_default_of_the_welcome(machine: Machine) -> None:
    async with warming(machine):
        machine.warm_up.take(worker_pb2.SessionResponse(welcome=worker_pb2.Welcome(term=1)))
        machine.welcome(DEFAULT)
        await machine.until("default", "ready")
    assert machine.store.begun == ["default"]


async def test_warm_up_that_fails_is_tried_again_and_told_once_for_each_reason(machine: Machine) -> None:
    unreachable = RuntimeUnavailableError("no package index can be reached")
    machine.store.errors = [unreachable, unreachable, RuntimeUnavailableError("the disk is full")]
    async with warming(machine):
        machine.welcome(DEFAULT)
        await machine.until("default", "ready")
    assert machine.store.begun == ["default"] * 4
    assert machine.said == [
        "building runtime default: Python and 2 packages",
        "runtime default cannot be built, and is tried again: no package index can be reached",
        "runtime default cannot be built, and is tried again: the disk is full",
        "runtime default is ready in 21 s",
    ]


async def test_warm_up_another_default_of_a_later_session_is_built_too(machine: Machine) -> None:
    machine.offered[OTHER.digest] = OTHER
    async with warming(machine):
        machine.welcome(DEFAULT)
        await machine.until("default", "ready")
        machine.welcome(DEFAULT)
        machine.welcome(OTHER)
        await machine.until("other", "ready")
    assert machine.store.begun == ["default", "other"]


async def test_member_and_warm_up_share_one_build(machine: Machine) -> None:
    machine.store.let.clear()
    async with warming(machine):
        machine.welcome(DEFAULT)
        await machine.until("default", "building")
        member = asyncio.create_task(machine.runtimes.provision(named(DEFAULT)))
        machine.store.let.set()
        await member
        await machine.until("default", "ready")
    assert machine.store.begun == ["default"]
