"""What an operator asks for at a glance, over real gRPC: the standing with its judgement, and what is on top."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from orchestrator.adapters.metrics.registry import Metrics
from orchestrator.api.v1 import common_pb2, operator_pb2, overview_pb2, telemetry_pb2, telemetry_pb2_grpc
from orchestrator.control.loop import INBOX_MAX
from orchestrator.control.measuring.measuring import Measuring
from orchestrator.control.vitals import VitalsReader
from orchestrator.core import messages as m
from orchestrator.core.ids import TenantId, WorkerId
from orchestrator.core.queries.health import WELL, Vitals
from orchestrator.core.queries.top import ROWS_MAX
from orchestrator.core.supply.holds import HoldKind
from tests.control.agents import Agent, Served, agent_of, refused, serving
from tests.control.looping import rigged, settle
from tests.polling import wait_for_answer

DEADLINE_S = 20.0
GPU_ID = "dev"


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path) as running:
        yield running


@pytest.fixture
async def agent(served: Served) -> AsyncIterator[Agent]:
    async with agent_of(served) as made:
        yield made


async def status_of(served: Served) -> operator_pb2.GetStatusResponse:
    return await served.operator.GetStatus(operator_pb2.GetStatusRequest(), metadata=served.admin)


async def top_of(served: Served, **asked: object) -> overview_pb2.GetTopResponse:
    request = overview_pb2.GetTopRequest(**asked)  # type: ignore[arg-type]  # as the test names them
    return await served.operator.GetTop(request, metadata=served.admin)


async def test_status_of_an_empty_network_is_well_and_says_what_comes_next(served: Served) -> None:
    answer = await status_of(served)
    assert answer.verdict == WELL
    assert [one.code for one in answer.findings] == ["no_workers"]
    assert "orch worker join" in answer.findings[0].action
    assert answer.loop.inbox_commands_max == INBOX_MAX
    assert answer.workers_by_liveness == {"live": 0, "suspect": 0, "lost": 0, "left": 0}


async def test_status_with_a_worker_counts_it_and_a_hold_of_all_is_not_well(
    served: Served, agent: Agent
) -> None:
    await agent.join()
    await agent.hello()
    answer = await status_of(served)
    assert (answer.verdict, list(answer.findings)) == (WELL, [])
    assert [(one.liveness, one.workers) for one in answer.workers] == [("live", 1)]
    assert (answer.workers_connected, answer.workers_placeable) == (1, 1)
    assert [(one.state, one.gpus) for one in answer.gpus] == [("free", answer.devices)]
    await served.house.plane.loop.submit(m.PlaceHold(WorkerId(agent.worker_id), HoldKind.OPERATOR, "repair"))
    answer = await status_of(served)
    assert (answer.verdict, answer.findings[0].code) == ("warning", "nothing_placeable")
    assert answer.workers_by_hold == {"operator": 1}
    assert {one.state for one in answer.gpus} == {"held"}


class Carrying:
    """A bridge that carries more than it should."""

    connections = 500
    connections_max = 512
    bridged = bytes_in = bytes_out = dropped_datagrams = 0


class Books:
    """A ledger that knows nothing of what was posted, and does not balance."""

    async def totals(self) -> tuple[int, int]:
        return 0, 7


async def test_status_carries_what_the_process_knows_of_itself(served: Served) -> None:
    served.house.plane.measuring.bridge = Carrying()
    answer = await status_of(served)
    assert (answer.verdict, [one.code for one in answer.findings]) == (
        "warning",
        ["relay_saturated", "no_workers"],
    )
    assert (answer.relay.connections, answer.relay.connections_max) == (500, 512)


async def test_vitals_tell_of_certificates_and_books(served: Served) -> None:
    plane = served.house.plane
    wall_ms = plane.loop.now().wall_ms
    reader = VitalsReader(plane.loop, lambda: {"gateway": wall_ms - 5_000}, plane.measuring, Books())
    vitals = await reader.read()
    assert vitals.certificates_ms["gateway"] <= -5_000
    assert (vitals.receipts_unaccounted, vitals.ledger_imbalance_microcredits) == (0, 7)


async def test_top_shows_what_an_agent_measured_and_where_it_serves(served: Served, agent: Agent) -> None:
    await agent.join()
    await agent.hello()
    before = await top_of(served)
    assert not before.workers[0].HasField("gpu_utilization_ratio")
    samples = [
        telemetry_pb2.DeviceSample(
            device_id=GPU_ID, utilization_ratio=ratio, temperature_celsius=heat, memory_used_bytes=1 << 30
        )
        for ratio, heat in ((0.25, 50), (0.75, 70))
    ]
    report = telemetry_pb2.ReportRequest(cpu_utilization_ratio=0.5, memory_used_bytes=5, devices=samples)
    stub = telemetry_pb2_grpc.TelemetryServiceStub(agent.channel)
    await stub.Report(iter((report,)), metadata=(("authorization", f"Bearer {agent.token}"),))
    (one,) = (await top_of(served)).workers
    assert (one.worker_id, one.liveness, one.connected) == (agent.worker_id, "live", True)
    assert (one.gpu_utilization_ratio, one.temperature_celsius) == (0.5, 70)
    assert (one.gpu_memory_used_bytes, one.cpu_utilization_ratio) == (2 << 30, 0.5)
    assert one.HasField("silence_ms")
    assert not one.HasField("uptime_ratio"), "of a newcomer no uptime is shown"
    assert not one.cluster_ids


async def test_top_filters_leave_who_is_asked_for(served: Served, agent: Agent) -> None:
    await agent.join()
    await agent.hello()
    (one,) = (await top_of(served)).workers
    other = common_pb2.HARDWARE_CLASS_MINER
    for asked in ({"supplier": "nobody"}, {"hardware_class": other}):
        answer = await top_of(served, **asked)
        assert (list(answer.workers), answer.workers_total) == ([], 0)
    for asked in ({"supplier": one.supplier_name}, {"hardware_class": one.hardware_class}):
        assert (await top_of(served, **asked)).workers_total == 1


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"rows_max": ROWS_MAX + 1}, "rows_max"),
        ({"sort": "colour"}, "sort"),
        ({"supplier": "\n"}, "supplier"),
    ],
)
async def test_top_bad_value_is_refused_by_field(
    served: Served, asked: dict[str, object], field: str
) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT, field):
        await top_of(served, **asked)


async def test_top_worker_that_leaves_is_gone(served: Served, agent: Agent) -> None:
    await agent.join()
    await agent.hello()
    await agent.close()
    worker_id = WorkerId(agent.worker_id)
    await served.house.plane.loop.submit(m.LeaveWorker(worker_id))

    async def gone() -> bool:
        return (await top_of(served)).workers_total == 0

    await wait_for_answer(gone, what="its leaving", deadline_s=DEADLINE_S)


async def test_vitals_lag_is_the_age_of_the_oldest_command_without_an_answer() -> None:
    async with rigged() as rig:
        measuring = Measuring(Metrics(), rig.clock)
        reader = VitalsReader(rig.loop, dict, measuring, None)
        assert await reader.read() == Vitals(inbox_commands_max=INBOX_MAX)
        rig.store.hold()
        first = asyncio.create_task(rig.loop.submit(m.CreateTenant(TenantId("ten_1"), "one")))
        await rig.store.busy.wait()
        rig.clock.monotonic_ms += 700
        second = asyncio.create_task(rig.loop.submit(m.CreateTenant(TenantId("ten_2"), "two")))
        await settle()
        late = await reader.read()
        assert (late.loop_lag_ms, late.inbox_commands) == (700, 1)
        rig.store.let_go()
        await asyncio.gather(first, second)
        again = await reader.read()
        assert (again.loop_lag_ms, again.inbox_commands) == (0, 0)
