"""How this machine and its GPUs fare: measurements for the network, faults as they appear, the owner's own use.

Devices are looked at every few seconds; every third look is reported. A fault is reported until the network has heard
it, and again only once it has gone away and come back. Where the machine is offered while idle only, its owner's use
of it takes it back and offers it again.
"""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import psutil
import structlog
from google.protobuf.timestamp_pb2 import Timestamp

from orchestrator.adapters.devices import XidWatch, read_telemetry
from orchestrator.api.v1 import telemetry_pb2, worker_pb2
from orchestrator.core.idle import Change, UseHistory, judge
from orchestrator.core.supply.evidence import bus_id
from orchestrator.core.supply.health import DeviceHistory, DeviceTelemetry, Fault, FaultKind, faults, remember

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from orchestrator.agent.ports import AgentClock, ControlChannel
    from orchestrator.agent.wishes import Wishes
    from orchestrator.api.v1 import common_pb2
    from orchestrator.core.supply.terms import Terms

log = structlog.get_logger(__name__)

LOOK_S = 5.0
"""An error of the driver ends what runs on the device, so its device should not be given again for long."""

FAULTS_PER_REPORT = 64
"""As many as the network takes in one message."""

LOOKS_PER_REPORT = 3
"""A measurement every 15 s: as often as a monitor scrapes, and what the rule about heat counts in."""

BUSY_REASON = "its owner is using the GPU"


class DeviceSource(Protocol):
    """Where measurements of devices come from. Blocking; called from one thread."""

    def read(self) -> Sequence[DeviceTelemetry]:
        """One sample of each device, with the error codes since the last."""

    def close(self) -> None:
        """Give back what was held."""


class Nvml:
    """NVIDIA's GPUs; nothing where there are none."""

    def __init__(self) -> None:
        self._watch: XidWatch | None = None

    def read(self) -> Sequence[DeviceTelemetry]:
        """As DeviceSource.read."""
        if self._watch is None:
            self._watch = XidWatch()
        xids = self._watch.poll()
        samples = read_telemetry()
        # An error whose device is not told is one of the lost device, where only one is lost.
        lost = [sample.pci_bus_id for sample in samples if sample.lost]
        return [
            replace(
                sample,
                xids=tuple(
                    xid
                    for uuid, xid in xids
                    if uuid == sample.uuid or (not uuid and lost == [sample.pci_bus_id])
                ),
            )
            for sample in samples
        ]

    def close(self) -> None:
        """As DeviceSource.close."""
        if self._watch is not None:
            self._watch.close()


class Reporter(Protocol):
    """Where measurements go."""

    async def report(self, sample: telemetry_pb2.ReportRequest) -> None:
        """Raises ConnectionError; a lost one is not worth sending again."""


class FaultDesk:
    """Faults that the network should know: an attendant, which tells each session what no earlier one has heard."""

    def __init__(self) -> None:
        self._active: dict[tuple[str, str], Fault] = {}
        """By device and kind, what the last look found."""
        self._unheard: dict[tuple[str, str], tuple[int, Fault]] = {}
        """With the number of its appearance; kept though it goes away: an error of the driver shows only once."""
        self._appeared = 0
        self._changed = asyncio.Event()

    def note(self, device_id: str, found: Iterable[Fault], kept: frozenset[FaultKind] = frozenset()) -> None:
        """Take what a look has found; what it found before and not now has gone away, but for ``kept`` kinds."""
        new = {(device_id, fault.kind.value): fault for fault in found}
        for key in [one for one in self._active if one[0] == device_id and one not in new]:
            if self._active[key].kind not in kept:
                del self._active[key]
        for key, fault in new.items():
            if key not in self._active:
                self._appeared += 1
                self._active[key] = fault
                self._unheard.pop(key, None)
                self._unheard[key] = (self._appeared, fault)
                log.warning("device_fault", device_id=device_id, kind=key[1], text=fault.text)
                self._changed.set()

    async def attend(self, channel: ControlChannel) -> None:
        """As Attendant.attend."""
        told = 0
        while True:
            self._changed.clear()
            news = [(number, *key, fault) for key, (number, fault) in self._unheard.items() if number > told]
            for first in range(0, len(news), FAULTS_PER_REPORT):
                part = news[first : first + FAULTS_PER_REPORT]
                told = part[-1][0]
                faults = [
                    worker_pb2.DeviceFault(device_id=device_id, kind=kind, text=fault.text)
                    for _, device_id, kind, fault in part
                ]
                report = worker_pb2.FaultReport(faults=faults, number=told)
                await channel.send(worker_pb2.SessionRequest(fault_report=report))
            await self._changed.wait()

    def take(self, message: worker_pb2.SessionResponse) -> None:
        """As Attendant.take: what the network has heard is done with; what it makes of it is in the standing."""
        if not message.HasField("fault_ack"):
            return
        heard = message.fault_ack.number
        self._unheard = {key: one for key, one in self._unheard.items() if one[0] > heard}
        if message.fault_ack.refusal:
            log.warning("fault_refused", reason=message.fault_ack.refusal)


class Health:
    """Looks at this machine for as long as it runs."""

    def __init__(
        self,
        devices: Sequence[common_pb2.Device],
        source: DeviceSource,
        reporter: Reporter,
        desk: FaultDesk,
        wishes: Wishes,
        clock: AgentClock,
        processes: Callable[[], set[int]],
        tunnels: Callable[[], telemetry_pb2.TunnelCounts],
    ) -> None:
        """``processes`` are those of the network's nodes; every other one on a device is the owner's."""
        self._ids = _device_ids(devices)
        self._source = source
        self._reporter = reporter
        self._desk = desk
        self._wishes = wishes
        self._clock = clock
        self._processes = processes
        self._tunnels = tunnels
        self._histories: dict[str, DeviceHistory] = {}
        self._xids: dict[str, int] = {}
        self._use = UseHistory()
        self._looks = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="devices")

    async def run(self, terms: Callable[[], Terms]) -> None:
        """Look until cancelled. ``terms`` are the owner's, who may change them."""
        psutil.cpu_percent()
        try:
            while True:
                await asyncio.sleep(LOOK_S)
                try:
                    await self.look(terms())
                except OSError as error:
                    # Such as processes that end while they are read.
                    log.warning("look_failed", reason=str(error))
        finally:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._source.close)
            self._thread.shutdown(wait=False)

    async def look(self, terms: Terms) -> None:
        """One look at everything, and whatever follows from it."""
        self._looks += 1
        counted = self._looks % LOOKS_PER_REPORT == 0
        samples, ours = await self._read()
        self._judge_devices(samples, counted=counted)
        ratios = {device_id: owner_ratio(sample, ours) for device_id, sample in samples.items()}
        self._judge_use(max(ratios.values(), default=0.0), terms)
        if counted:
            with contextlib.suppress(ConnectionError):
                await self._reporter.report(self._measured(samples, ratios))

    async def _read(self) -> tuple[dict[str, DeviceTelemetry], set[int]]:
        """The devices that are offered, by id, and the processes of the network."""
        if not self._ids:
            return {}, set()
        loop = asyncio.get_running_loop()
        read = await loop.run_in_executor(self._thread, self._source.read)
        samples = {}
        for sample in read:
            device_id = self._ids.get(sample.uuid) or self._ids.get(bus_id(sample.pci_bus_id))
            if device_id:
                samples[device_id] = sample
        anybody = any(sample.processes for sample in read)
        ours = await loop.run_in_executor(self._thread, self._processes) if anybody else set()
        return samples, ours

    def _judge_devices(self, samples: Mapping[str, DeviceTelemetry], *, counted: bool) -> None:
        """Heat is counted in reports; everything else is judged at every look."""
        for device_id, sample in samples.items():
            history = self._histories.get(device_id, DeviceHistory())
            if counted:
                found = faults(sample, history)
                self._desk.note(device_id, found)
            else:
                found = faults(replace(sample, throttle_reasons=()), history)
                self._desk.note(device_id, found, kept=frozenset({FaultKind.THERMAL}))
            if counted:
                self._histories[device_id] = remember(history, sample)
            elif history.ecc_uncorrected is None:
                self._histories[device_id] = replace(history, ecc_uncorrected=sample.ecc_uncorrected)
            if sample.xids:
                self._xids[device_id] = sample.xids[-1]

    def _judge_use(self, ratio: float, terms: Terms) -> None:
        busy = self._wishes.busy
        if not terms.idle_only and not busy:
            self._use = UseHistory()
            return
        if not terms.idle_only:
            # The terms have changed: his use is no reason any more.
            self._wish(worker_pb2.OwnerWish(uncordon=worker_pb2.Uncordon(busy_only=True)), 0)
            return
        self._use, change = judge(self._use, ratio, self._clock.boottime_ms(), busy=busy)
        match change:
            case Change.RISEN:
                reclaim = worker_pb2.Reclaim(reason=BUSY_REASON, busy=True)
                self._wish(worker_pb2.OwnerWish(reclaim=reclaim), terms.notice_ms)
            case Change.FALLEN:
                self._wish(worker_pb2.OwnerWish(uncordon=worker_pb2.Uncordon(busy_only=True)), 0)
            case Change.NONE:
                pass

    def _wish(self, wish: worker_pb2.OwnerWish, notice_ms: int) -> None:
        try:
            self._wishes.make(wish, notice_ms)
        except OSError as error:
            # Tried again at the next look, which finds the same.
            log.warning("wish_not_kept", reason=str(error))

    def _measured(
        self, samples: Mapping[str, DeviceTelemetry], ratios: Mapping[str, float]
    ) -> telemetry_pb2.ReportRequest:
        sampled_at = Timestamp()
        sampled_at.FromMilliseconds(self._clock.now().wall_ms)
        return telemetry_pb2.ReportRequest(
            sampled_at=sampled_at,
            cpu_utilization_ratio=psutil.cpu_percent() / 100,
            memory_used_bytes=psutil.virtual_memory().used,
            devices=[
                device_sample(device_id, sample, ratios[device_id], self._xids.get(device_id, 0))
                for device_id, sample in samples.items()
            ],
            tunnels=self._tunnels(),
        )


def _device_ids(devices: Iterable[common_pb2.Device]) -> dict[str, str]:
    """Ids of the devices that can be measured, by UUID and by bus; simulated ones have neither."""
    known: dict[str, str] = {}
    for device in devices:
        if device.simulated:
            continue
        for name in (device.evidence.uuid, bus_id(device.evidence.pci_bus_id)):
            if name:
                known[name] = device.device_id
    return known


def owner_ratio(sample: DeviceTelemetry, ours: set[int]) -> float:
    """The owner's part of a device's use, 0 to 1.

    The driver tells the use of the whole device and the memory of each process, so the use is divided by memory, or
    by heads where that is not told.
    """
    if not sample.utilisation_percent or not sample.processes:
        return 0.0
    told = all(process.memory_bytes is not None for process in sample.processes)
    parts = {process.pid: (process.memory_bytes or 0) if told else 1 for process in sample.processes}
    whole = sum(parts.values())
    if not whole:
        parts = dict.fromkeys(parts, 1)
        whole = len(parts)
    owners = sum(part for pid, part in parts.items() if pid not in ours)
    return sample.utilisation_percent / 100 * owners / whole


def device_sample(
    device_id: str, sample: DeviceTelemetry, owner_utilization_ratio: float, last_xid: int
) -> telemetry_pb2.DeviceSample:
    """A sample as it is sent; what a device does not measure is zero, or absent where zero means something."""
    return telemetry_pb2.DeviceSample(
        device_id=device_id,
        utilization_ratio=(sample.utilisation_percent or 0) / 100,
        memory_used_bytes=sample.memory_used_bytes or 0,
        power_watts=(sample.power_mw or 0) / 1000,
        temperature_celsius=sample.temperature_c or 0,
        power_limit_watts=(sample.power_limit_mw or 0) / 1000,
        ecc_uncorrected=sample.ecc_uncorrected,
        ecc_corrected=sample.ecc_corrected,
        last_xid=last_xid,
        throttle_reasons=sample.throttle_reasons,
        owner_utilization_ratio=owner_utilization_ratio,
    )
