"""What agents say lies ready, on the wire: taken over, replaced, and refused by field where no machine can have it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from orchestrator.api.v1 import worker_pb2
from orchestrator.control.caches_wire import cached_from
from orchestrator.core.errors import RefusalCode, RefusedError
from orchestrator.core.ids import WorkerId
from orchestrator.core.supply.caches import CACHED_MAX, Cached, CachedKind
from tests.control.agents import Agent, Served, agent_of, refused, serving
from tests.control.floods import answered, begin, refusals, written
from tests.core.worlds import sha

RUNTIME, PACKAGE = sha("runtime"), sha("package")
IMAGE = f"quay.io/team/image@sha256:{sha('image')}"


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path) as running:
        yield running


@pytest.fixture
async def agent(served: Served) -> AsyncIterator[Agent]:
    async with agent_of(served) as made:
        await made.join()
        await begin(made)
        yield made


async def tell(agent: Agent, report: worker_pb2.CachedReport) -> None:
    await agent.stream.write(worker_pb2.SessionRequest(cached=report))


async def knows(served: Served, agent: Agent, kind: CachedKind, name: str) -> bool:
    worker_id = WorkerId(agent.worker_id)
    return await served.house.plane.loop.read(lambda state: state.caches.has(worker_id, kind, (name,)))


def test_report_is_read_as_it_was_said() -> None:
    wire = worker_pb2.CachedReport(runtimes=[RUNTIME], images=[IMAGE], packages=[PACKAGE])
    assert cached_from(wire) == Cached((RUNTIME,), (IMAGE,), (PACKAGE,))
    assert cached_from(worker_pb2.CachedReport()) == Cached()


BAD = {
    "runtime that is none": (worker_pb2.CachedReport(runtimes=["default"]), "cached.runtimes", "no SHA-256"),
    "upper case": (worker_pb2.CachedReport(packages=[PACKAGE.upper()]), "cached.packages", "lower-case"),
    "package with an escape": (
        worker_pb2.CachedReport(packages=["\x1b[2J"]),
        "cached.packages",
        "no SHA-256",
    ),
    "image by tag": (
        worker_pb2.CachedReport(images=["quay.io/team/image:1"]),
        "cached.images",
        "by its digest",
    ),
    "text of 1 MB": (worker_pb2.CachedReport(runtimes=["a" * 1_000_000]), "cached.runtimes", "no SHA-256"),
    **{
        f"too many {kind}s": (
            worker_pb2.CachedReport(**{f"{kind}s": ["x"] * (most + 1)}),
            f"cached.{kind}s",
            f"{most + 1} {kind}s on one worker",
        )
        for kind, most in CACHED_MAX.items()
    },
}


@pytest.mark.parametrize("case", BAD)
def test_report_that_no_machine_can_make_is_refused_by_field(case: str) -> None:
    report, field, words = BAD[case]
    with pytest.raises(RefusedError, match=words) as raised:
        cached_from(report)
    assert (raised.value.code, raised.value.field) == (RefusalCode.INVALID, field)
    assert len(raised.value.message) < 400


async def test_session_keeps_what_its_worker_said_last_and_writes_nothing(
    served: Served, agent: Agent
) -> None:
    await answered(agent)
    events = written(served)
    await tell(agent, worker_pb2.CachedReport(runtimes=[RUNTIME], images=[IMAGE], packages=[PACKAGE]))
    await answered(agent)
    assert await knows(served, agent, CachedKind.RUNTIME, RUNTIME)
    assert await knows(served, agent, CachedKind.IMAGE, IMAGE)
    assert await knows(served, agent, CachedKind.PACKAGE, PACKAGE)
    await tell(agent, worker_pb2.CachedReport(runtimes=[RUNTIME]))
    await answered(agent)
    assert await knows(served, agent, CachedKind.RUNTIME, RUNTIME)
    assert not await knows(served, agent, CachedKind.PACKAGE, PACKAGE)
    assert written(served) == events, "a measurement is no event"


async def test_session_of_an_agent_that_says_nothing_of_it_goes_on(served: Served, agent: Agent) -> None:
    await answered(agent, 2)
    assert not await knows(served, agent, CachedKind.RUNTIME, RUNTIME)
    assert agent.worker_id in served.house.plane.sessions.connected


async def test_session_with_a_report_that_no_machine_can_make_ends_alone(
    served: Served, agent: Agent
) -> None:
    await tell(agent, worker_pb2.CachedReport(runtimes=["default"]))
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "cached.runtimes", "no SHA-256"):
        await agent.expect("farewell")
    assert refusals(served, "Session", "invalid") == 1
    assert (await begin(agent)).HasField("welcome")
