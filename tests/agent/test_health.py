"""Looking at a machine: what is measured, which faults are told when, and whose use it is."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest

from orchestrator.agent.health import FAULTS_PER_REPORT, LOOKS_PER_REPORT, FaultDesk, Health, owner_ratio
from orchestrator.agent.wishes import Wishes
from orchestrator.api.v1 import common_pb2, telemetry_pb2, worker_pb2
from orchestrator.core.idle import BUSY_SAMPLES_MIN, IDLE_MS_MIN
from orchestrator.core.supply.health import HOT_SAMPLES_MIN, DeviceTelemetry, Fault, FaultKind, GpuProcess
from orchestrator.core.supply.terms import Terms
from tests.agent.fakes import FakeChannel, FakeClock, gpu, settled

UUID = "GPU-1"
OURS, OWNERS = 100, 200
GIB = 1 << 30


class ScriptedSource:
    """A device that shows what a test says."""

    def __init__(self) -> None:
        self.samples: list[DeviceTelemetry] = [healthy()]
        self.looks = 0

    def read(self) -> Sequence[DeviceTelemetry]:
        self.looks += 1
        return list(self.samples)

    def close(self) -> None:
        pass


class Received:
    def __init__(self) -> None:
        self.samples: list[telemetry_pb2.ReportRequest] = []
        self.away = False

    async def report(self, sample: telemetry_pb2.ReportRequest) -> None:
        if self.away:
            raise ConnectionError("there has been no session yet")
        self.samples.append(sample)


def healthy(**known: object) -> DeviceTelemetry:
    sample = DeviceTelemetry(uuid=UUID, pci_bus_id="0000:01:00.0", temperature_c=50, ecc_uncorrected=3)
    return dataclasses.replace(sample, **known)  # type: ignore[arg-type]  # a test names fields as they are


def used(percent: int, *pids: int) -> DeviceTelemetry:
    return healthy(utilisation_percent=percent, processes=tuple(GpuProcess(pid, GIB) for pid in pids))


def device() -> common_pb2.Device:
    evidence = common_pb2.DeviceEvidence(uuid=UUID, pci_bus_id="00000000:01:00.0")
    return common_pb2.Device(device_id="dev-1", kind=common_pb2.DEVICE_KIND_GPU, evidence=evidence)


def tunnels() -> telemetry_pb2.TunnelCounts:
    return telemetry_pb2.TunnelCounts(direct=2, relayed=1)


class Bench:
    """One machine with one GPU, looked at when a test says so."""

    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock()
        self.source, self.received, self.desk = ScriptedSource(), Received(), FaultDesk()
        self.wishes = Wishes(folder, self.clock)
        self.health = Health(
            [device()],
            self.source,
            self.received,
            self.desk,
            self.wishes,
            self.clock,
            lambda: {OURS},
            tunnels,
        )
        self.terms = Terms(notice_ms=7_000)

    async def look(self, *samples: DeviceTelemetry, times: int = 1, step_ms: int = 5_000) -> None:
        self.source.samples = list(samples)
        for _ in range(times):
            self.clock.now_ms += step_ms
            await self.health.look(self.terms)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def told(channel: FakeChannel) -> list[tuple[str, str]]:
    reports = [message.fault_report for message in channel.of_kind("fault_report")]
    return [(fault.device_id, fault.kind) for report in reports for fault in report.faults]


async def test_every_third_look_is_reported_with_all_that_is_known(bench: Bench) -> None:
    sample = healthy(
        utilisation_percent=80,
        power_mw=210_500,
        power_limit_mw=300_000,
        ecc_corrected=0,
        throttle_reasons=("power_cap",),
        xids=(13,),
    )
    await bench.look(sample)
    await bench.look(dataclasses.replace(sample, xids=()), times=LOOKS_PER_REPORT * 2 - 1)
    assert len(bench.received.samples) == 2
    shown = bench.received.samples[1].devices[0]
    assert (shown.device_id, shown.utilization_ratio, shown.power_watts) == ("dev-1", 0.8, 210.5)
    assert (shown.power_limit_watts, shown.last_xid) == (300.0, 13)
    assert (shown.HasField("ecc_corrected"), shown.ecc_corrected, shown.ecc_uncorrected) == (True, 0, 3)
    assert list(shown.throttle_reasons) == ["power_cap"]
    assert bench.received.samples[1].tunnels == tunnels()


async def test_report_that_cannot_be_sent_is_dropped(bench: Bench) -> None:
    bench.received.away = True
    await bench.look(healthy(), times=LOOKS_PER_REPORT)
    bench.received.away = False
    await bench.look(healthy(), times=LOOKS_PER_REPORT)
    assert len(bench.received.samples) == 1


async def test_device_that_does_not_count_errors_sends_no_count(bench: Bench) -> None:
    await bench.look(healthy(ecc_uncorrected=None), times=LOOKS_PER_REPORT)
    assert not bench.received.samples[0].devices[0].HasField("ecc_uncorrected")


async def test_simulated_devices_are_not_measured(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    simulated = gpu("sim-1")
    simulated.simulated = True
    health = Health(
        [simulated], bench.source, bench.received, bench.desk, bench.wishes, bench.clock, set, tunnels
    )
    for _ in range(LOOKS_PER_REPORT):
        await health.look(bench.terms)
    assert bench.source.looks == 0
    assert not bench.received.samples[0].devices
    assert bench.received.samples[0].memory_used_bytes > 0


async def test_fault_is_told_once_and_again_when_it_comes_back(bench: Bench) -> None:
    channel = FakeChannel()
    task = asyncio.create_task(bench.desk.attend(channel))
    try:
        gone = healthy(lost=True, uuid="")
        for sample, expected in ((healthy(), 0), (gone, 1), (gone, 1), (healthy(), 1), (gone, 2)):
            await bench.look(sample)
            await settled()
            assert told(channel) == [("dev-1", "lost")] * expected
    finally:
        task.cancel()


async def one_session(desk: FaultDesk) -> FakeChannel:
    """What a session is told that ends at once."""
    channel = FakeChannel()
    task = asyncio.create_task(desk.attend(channel))
    await settled()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return channel


async def test_fault_is_told_at_each_session_until_it_is_acknowledged(bench: Bench) -> None:
    bench.desk.note("dev-1", [Fault(FaultKind.LOST, "gone")])
    assert told(await one_session(bench.desk)) == [("dev-1", "lost")]
    channel = await one_session(bench.desk)
    assert told(channel) == [("dev-1", "lost")]
    number = channel.of_kind("fault_report")[0].fault_report.number
    bench.desk.note("dev-2", [Fault(FaultKind.XID, "79")])
    bench.desk.take(worker_pb2.SessionResponse(fault_ack=worker_pb2.FaultAck(number=number)))
    assert told(await one_session(bench.desk)) == [("dev-2", "xid")]


async def test_fault_that_went_away_before_the_network_heard_of_it_is_told_all_the_same(bench: Bench) -> None:
    await bench.look(healthy(xids=(79,)))
    await bench.look(healthy(), times=3)
    assert told(await one_session(bench.desk)) == [("dev-1", "xid")]


async def test_faults_of_many_devices_are_told_in_messages_that_the_network_takes_whole(bench: Bench) -> None:
    for number in range(FAULTS_PER_REPORT + 6):
        bench.desk.note(f"dev-{number}", [Fault(FaultKind.LOST, "gone")])
    reports = [one.fault_report for one in (await one_session(bench.desk)).of_kind("fault_report")]
    assert [len(report.faults) for report in reports] == [FAULTS_PER_REPORT, 6]
    assert reports[0].number < reports[1].number


async def test_driver_error_that_only_a_device_causes_is_a_fault_at_the_very_look(bench: Bench) -> None:
    channel = FakeChannel()
    task = asyncio.create_task(bench.desk.attend(channel))
    try:
        await bench.look(healthy(xids=(31,)))
        await settled()
        assert told(channel) == []
        await bench.look(healthy(xids=(79,)))
        await settled()
        assert told(channel) == [("dev-1", "xid")]
    finally:
        task.cancel()


async def test_heat_is_counted_in_reports_and_memory_errors_from_the_first_look(bench: Bench) -> None:
    channel = FakeChannel()
    task = asyncio.create_task(bench.desk.attend(channel))
    hot = healthy(throttle_reasons=("hw_thermal",), temperature_c=95, slowdown_c=90)
    try:
        await bench.look(hot, times=LOOKS_PER_REPORT * HOT_SAMPLES_MIN - 1)
        await settled()
        assert told(channel) == []
        await bench.look(hot, times=LOOKS_PER_REPORT * 2 + 1)
        await settled()
        assert told(channel) == [("dev-1", "thermal")]
        await bench.look(healthy(ecc_uncorrected=4))
        await settled()
        assert told(channel)[1:] == [("dev-1", "ecc")]
    finally:
        task.cancel()


@pytest.mark.parametrize(
    ("sample", "ratio"),
    [
        (used(90), 0.0),
        (used(90, OURS), 0.0),
        (used(90, OWNERS), 0.9),
        (used(80, OURS, OWNERS), 0.4),
        (used(0, OWNERS), 0.0),
        (
            healthy(utilisation_percent=100, processes=(GpuProcess(OURS, 3 * GIB), GpuProcess(OWNERS, GIB))),
            0.25,
        ),
        (
            healthy(utilisation_percent=100, processes=(GpuProcess(OURS, 3 * GIB), GpuProcess(OWNERS, None))),
            0.5,
        ),
        (healthy(utilisation_percent=60, processes=(GpuProcess(OWNERS, 0),)), 0.6),
    ],
)
def test_owners_part_of_a_use_follows_memory_or_heads(sample: DeviceTelemetry, ratio: float) -> None:
    assert owner_ratio(sample, {OURS}) == pytest.approx(ratio)


async def test_idle_only_machine_is_taken_back_and_offered_again(bench: Bench) -> None:
    bench.terms = Terms(idle_only=True, notice_ms=7_000)
    await bench.look(used(90, OWNERS), times=BUSY_SAMPLES_MIN)
    reclaim = bench.wishes.reclaim()
    assert (bench.wishes.busy, bench.wishes.pending) == (True, ["busy"])
    assert reclaim is not None
    assert reclaim.deadline_boottime_ms == bench.clock.now_ms + 7_000
    await bench.look(used(90, OWNERS), times=10)
    assert bench.wishes.reclaim() == reclaim
    await bench.look(healthy(), times=IDLE_MS_MIN // 5_000 + 1)
    assert (bench.wishes.busy, bench.wishes.pending) == (False, ["idle"])


async def test_use_of_a_machine_that_is_always_offered_changes_nothing(bench: Bench) -> None:
    await bench.look(used(100, OWNERS), times=BUSY_SAMPLES_MIN * 4)
    assert (bench.wishes.busy, bench.wishes.pending) == (False, [])


async def test_tenants_use_does_not_take_the_machine_back(bench: Bench) -> None:
    bench.terms = Terms(idle_only=True)
    await bench.look(used(100, OURS), times=BUSY_SAMPLES_MIN * 4)
    assert not bench.wishes.busy


async def test_busy_machine_whose_terms_change_is_offered_again(bench: Bench) -> None:
    bench.terms = Terms(idle_only=True)
    await bench.look(used(90, OWNERS), times=BUSY_SAMPLES_MIN)
    bench.terms = Terms()
    await bench.look(used(90, OWNERS))
    assert (bench.wishes.busy, bench.wishes.pending) == (False, ["idle"])
