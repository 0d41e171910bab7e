"""NVIDIA's GPUs through NVML. Each call may fail on its own: what one GPU does not tell stays empty, the rest is read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from orchestrator.adapters.devices.procfs import ROOT, read_procfs
from orchestrator.adapters.devices.reading import GpuReading, tidy
from orchestrator.core.supply.evidence import DeviceEvidence, DeviceVendor, Sighting, Source, bus_id
from orchestrator.core.supply.health import DeviceTelemetry, GpuProcess, lost_fault, reason_names

T = TypeVar("T")

Handle = Any
"""NVML's own; the binding ships no types."""

NVLINKS_MAX = 36
"""Links that NVML numbers on one GPU; the A100 has twelve, the H100 eighteen."""

MIG_INSTANCES_MAX = 8
"""One more than any GPU can be cut into."""

XIDS_MAX = 1_024
"""Taken from the driver in one look; a GPU that raises more is broken by the first of them."""


class _Lost(Exception):
    """The GPU is gone: no further question to it is worth its time."""


@contextlib.contextmanager
def _nvml() -> Iterator[ModuleType | None]:
    """The binding, initialised; None where there is no binding, no library, no driver or no GPU."""
    try:
        import pynvml  # noqa: PLC0415 - absent on machines without the agent extra, which have no GPU to offer
    except ImportError:
        yield None
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _ask(nvml: ModuleType, question: Callable[[], T]) -> T | None:
    """An answer, or None where the device has none. Raises _Lost where the device is gone."""
    try:
        return question()
    except nvml.NVMLError_GpuIsLost:
        raise _Lost from None
    except (nvml.NVMLError, UnicodeDecodeError):
        return None


def _number(nvml: ModuleType, name: str, handle: Handle, *rest: int) -> int | None:
    """A number of a device, by the name of NVML's function."""
    answer = _ask(nvml, partial(getattr(nvml, name), handle, *rest))
    return None if answer is None else int(answer)


def _handles(nvml: ModuleType) -> list[tuple[int, Handle | None]]:
    """Each index with its handle; None for a GPU that is lost. One that may not be used is left out."""
    found: list[tuple[int, Handle | None]] = []
    for index in range(_ask(nvml, nvml.nvmlDeviceGetCount) or 0):
        try:
            found.append((index, nvml.nvmlDeviceGetHandleByIndex(index)))
        except nvml.NVMLError_GpuIsLost:
            found.append((index, None))
        except nvml.NVMLError:
            continue
    return found


def _bus(nvml: ModuleType, handle: Handle) -> str:
    """Where a GPU is plugged in; empty where it does not say. The driver may know it of a lost one too."""
    try:
        return bus_id(str(nvml.nvmlDeviceGetPciInfo(handle).busId))
    except (nvml.NVMLError, UnicodeDecodeError):
        return ""


def _uuid(nvml: ModuleType, handle: Handle) -> str:
    try:
        return tidy(str(nvml.nvmlDeviceGetUUID(handle)))
    except (nvml.NVMLError, UnicodeDecodeError):
        return ""


# ---------------------------------------------------------------- evidence


def read_nvidia(root: Path = ROOT) -> GpuReading:
    """The GPUs that NVML lists, each beside what procfs under ``root`` says at the same bus. Only reads."""
    procfs = {sighting.pci_bus_id: sighting for sighting in read_procfs(root)}
    gpus: list[DeviceEvidence] = []
    lost: list[tuple[int, str]] = []
    with _nvml() as nvml:
        if nvml is None:
            return GpuReading()
        driver = tidy(str(_ask(nvml, nvml.nvmlSystemGetDriverVersion) or ""))
        for index, handle in _handles(nvml):
            if handle is None:
                lost.append((index, ""))
                continue
            bus = _bus(nvml, handle)
            try:
                evidence = _evidence(nvml, handle, bus, driver, procfs.get(bus))
            except _Lost:
                lost.append((index, bus))
                continue
            if evidence is not None:
                gpus.append(evidence)
    gone = _identify_lost(lost, [one.pci_bus_id for one in gpus], procfs)
    buses = tuple(one.pci_bus_id for one in gone)
    return GpuReading(tuple(gpus), tuple(lost_fault(bus) for bus in buses), buses)


def _identify_lost(
    lost: Sequence[tuple[int, str]], seen: Sequence[str], procfs: Mapping[str, Sighting]
) -> list[Sighting]:
    """Which GPUs are lost. One without even a handle is the one that the kernel lists and NVML does not."""
    known = {*seen, *(bus for _, bus in lost)}
    rest = [bus for bus in procfs if bus not in known]
    unnamed = sum(1 for _, bus in lost if not bus)
    certain = iter(rest if len(rest) == unnamed else [])
    buses = [bus or next(certain, f"index {index}") for index, bus in lost]
    return [procfs.get(bus, Sighting(Source.PROCFS, pci_bus_id=bus)) for bus in buses]


def _evidence(
    nvml: ModuleType, handle: Handle, bus: str, driver: str, procfs: Sighting | None
) -> DeviceEvidence | None:
    """All of one GPU; None where it does not even tell its UUID, so that nothing could be held to it."""
    uuid = tidy(str(_ask(nvml, partial(nvml.nvmlDeviceGetUUID, handle)) or ""))
    if not uuid:
        return None
    name = tidy(str(_ask(nvml, partial(nvml.nvmlDeviceGetName, handle)) or ""))
    memory = _ask(nvml, partial(nvml.nvmlDeviceGetMemoryInfo, handle))
    capability = _ask(nvml, partial(nvml.nvmlDeviceGetCudaComputeCapability, handle))
    mig = _ask(nvml, partial(nvml.nvmlDeviceGetMigMode, handle))
    ecc = _ask(nvml, partial(nvml.nvmlDeviceGetEccMode, handle))
    links, peers = _nvlinks(nvml, handle)
    mig_enabled = None if mig is None else bool(mig[0])
    own = Sighting(Source.NVML, uuid, name, bus)
    return DeviceEvidence(
        vendor=DeviceVendor.NVIDIA,
        model=name,
        memory_bytes=int(memory.total) if memory is not None else 0,
        uuid=uuid,
        pci_bus_id=bus,
        pcie_generation=_number(nvml, "nvmlDeviceGetCurrPcieLinkGeneration", handle),
        pcie_generation_max=_number(nvml, "nvmlDeviceGetMaxPcieLinkGeneration", handle),
        pcie_width=_number(nvml, "nvmlDeviceGetCurrPcieLinkWidth", handle),
        pcie_width_max=_number(nvml, "nvmlDeviceGetMaxPcieLinkWidth", handle),
        nvlink_links=links,
        nvlink_peers=peers,
        compute_capability="" if capability is None else f"{capability[0]}.{capability[1]}",
        driver_version=driver,
        mig_enabled=mig_enabled,
        mig_profiles=_mig_profiles(nvml, handle) if mig_enabled else (),
        power_limit_mw=_number(nvml, "nvmlDeviceGetPowerManagementLimit", handle),
        ecc_enabled=None if ecc is None else bool(ecc[0]),
        sightings=(own,) if procfs is None else (own, procfs),
    )


def _nvlinks(nvml: ModuleType, handle: Handle) -> tuple[int | None, int | None]:
    """Active links, and how many different devices they lead to; None where the GPU has no NVLink."""
    active = 0
    told = False
    peers: set[str] = set()
    for link in range(NVLINKS_MAX):
        state = _number(nvml, "nvmlDeviceGetNvLinkState", handle, link)
        if state is None:
            continue
        told = True
        if not state:
            continue
        active += 1
        remote = _ask(nvml, partial(nvml.nvmlDeviceGetNvLinkRemotePciInfo, handle, link))
        if remote is not None:
            peers.add(bus_id(str(remote.busId)))
    return (active, len(peers)) if told else (None, None)


def _mig_profiles(nvml: ModuleType, handle: Handle) -> tuple[str, ...]:
    """The profile of each instance, such as ``1g.10gb``: the last word of its name."""
    count = _number(nvml, "nvmlDeviceGetMaxMigDeviceCount", handle) or 0
    profiles = []
    for index in range(min(count, MIG_INSTANCES_MAX)):
        instance = _ask(nvml, partial(nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, index))
        name = None if instance is None else _ask(nvml, partial(nvml.nvmlDeviceGetName, instance))
        if name:
            profiles.append(tidy(str(name)).split()[-1])
    return tuple(profiles)


# ---------------------------------------------------------------- telemetry


def read_telemetry(root: Path = ROOT) -> tuple[DeviceTelemetry, ...]:
    """One sample of each GPU, lost ones last; empty where there is no NVML. Only reads."""
    samples: list[DeviceTelemetry] = []
    lost: list[tuple[int, str]] = []
    with _nvml() as nvml:
        if nvml is None:
            return ()
        for index, handle in _handles(nvml):
            if handle is None:
                lost.append((index, ""))
                continue
            bus = _bus(nvml, handle)
            try:
                samples.append(_sample(nvml, handle, bus))
            except _Lost:
                lost.append((index, bus))
    if lost:
        procfs = {sighting.pci_bus_id: sighting for sighting in read_procfs(root)}
        gone = _identify_lost(lost, [one.pci_bus_id for one in samples], procfs)
        samples += [DeviceTelemetry(uuid=one.uuid, pci_bus_id=one.pci_bus_id, lost=True) for one in gone]
    return tuple(samples)


def _sample(nvml: ModuleType, handle: Handle, bus: str) -> DeviceTelemetry:
    utilisation = _ask(nvml, partial(nvml.nvmlDeviceGetUtilizationRates, handle))
    memory = _ask(nvml, partial(nvml.nvmlDeviceGetMemoryInfo, handle))
    ecc = "nvmlDeviceGetTotalEccErrors"
    return DeviceTelemetry(
        uuid=_uuid(nvml, handle),
        pci_bus_id=bus,
        utilisation_percent=None if utilisation is None else int(utilisation.gpu),
        memory_used_bytes=None if memory is None else int(memory.used),
        memory_bytes=None if memory is None else int(memory.total),
        power_mw=_number(nvml, "nvmlDeviceGetPowerUsage", handle),
        power_limit_mw=_number(nvml, "nvmlDeviceGetPowerManagementLimit", handle),
        temperature_c=_number(nvml, "nvmlDeviceGetTemperature", handle, nvml.NVML_TEMPERATURE_GPU),
        slowdown_c=_number(
            nvml, "nvmlDeviceGetTemperatureThreshold", handle, nvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
        ),
        ecc_corrected=_number(
            nvml, ecc, handle, nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED, nvml.NVML_VOLATILE_ECC
        ),
        ecc_uncorrected=_number(
            nvml, ecc, handle, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
        ),
        throttle_reasons=_throttle_reasons(nvml, handle),
        processes=_processes(nvml, handle),
    )


def _throttle_reasons(nvml: ModuleType, handle: Handle) -> tuple[str, ...]:
    mask = _number(nvml, "nvmlDeviceGetCurrentClocksEventReasons", handle)
    if mask is None:
        # The name of drivers before 535.
        mask = _number(nvml, "nvmlDeviceGetCurrentClocksThrottleReasons", handle)
    return reason_names(mask or 0)


def _processes(nvml: ModuleType, handle: Handle) -> tuple[GpuProcess, ...]:
    """Who computes or draws on the GPU, each process once, in order of pids."""
    used: dict[int, int | None] = {}
    for name in ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses"):
        for process in _ask(nvml, partial(getattr(nvml, name), handle)) or ():
            memory = process.usedGpuMemory
            known = used.get(process.pid)
            used[process.pid] = known if memory is None else max(int(memory), known or 0)
    return tuple(GpuProcess(pid, used[pid]) for pid in sorted(used))


class XidWatch:
    """The driver's error codes as they come. Holds NVML open until it is closed; use it from one thread."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._nvml = self._stack.enter_context(_nvml())
        self._events: Any = None
        if self._nvml is not None:
            self._watch(self._nvml)

    def _watch(self, nvml: ModuleType) -> None:
        try:
            self._events = nvml.nvmlEventSetCreate()
        except nvml.NVMLError:
            return
        for _, handle in _handles(nvml):
            if handle is not None:
                # Some GPUs, and all of WSL's, have no events; the others are watched all the same.
                with contextlib.suppress(nvml.NVMLError):
                    nvml.nvmlDeviceRegisterEvents(handle, nvml.nvmlEventTypeXidCriticalError, self._events)

    def poll(self) -> tuple[tuple[str, int], ...]:
        """(UUID, XID) of each error since the last look, without waiting; the UUID is empty where it is not told."""
        if self._nvml is None or self._events is None:
            return ()
        nvml = self._nvml
        found: list[tuple[str, int]] = []
        while len(found) < XIDS_MAX:
            try:
                event = nvml.nvmlEventSetWait_v2(self._events, 0)
            except nvml.NVMLError:
                # Mostly the timeout: nothing more. A lost GPU shows in the telemetry.
                break
            if event.eventType == nvml.nvmlEventTypeXidCriticalError:
                found.append((_uuid(nvml, event.device), int(event.eventData)))
        return tuple(found)

    def close(self) -> None:
        """Give the driver's resources back; further looks find nothing."""
        if self._nvml is not None and self._events is not None:
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlEventSetFree(self._events)
        self._events = None
        self._nvml = None
        self._stack.close()
