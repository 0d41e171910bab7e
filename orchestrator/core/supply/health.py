"""What a GPU measures of itself, and the rules that tell a broken device from a busy or badly used one."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

HOT_SAMPLES_MIN = 4
"""Hot samples in a row that make a fault. At one in 15 s that is a minute: longer than a fan needs to follow a load."""

HW_THERMAL = "hw_thermal"
HW_POWER_BRAKE = "hw_power_brake"

THROTTLE_REASONS = {
    0x001: "gpu_idle",
    0x002: "application_clocks",
    0x004: "power_cap",
    0x008: "hw_slowdown",
    0x010: "sync_boost",
    0x020: "sw_thermal",
    0x040: HW_THERMAL,
    0x080: HW_POWER_BRAKE,
    0x100: "display_clock",
}
"""NVML's bits of what slows the clocks, by name."""

FATAL_XIDS = {
    38: "the driver's firmware failed",
    48: "a memory error that ECC could not correct",
    54: "its auxiliary power is not connected",
    61: "an internal controller stopped at a breakpoint",
    62: "an internal controller halted",
    64: "a bad memory row or page could not be taken out of use",
    74: "an NVLink failed",
    79: "it fell off the PCIe bus",
    92: "single-bit memory errors come at a high rate",
    95: "an uncontained memory error: what else was computed meanwhile may be wrong",
    110: "a security fault",
    119: "its system processor (GSP) does not answer",
    120: "its system processor (GSP) failed",
    121: "its link to the processor beside it (C2C) failed",
    136: "an NVLink could not be trained",
    140: "an unrecovered memory error",
    143: "it could not be initialised",
}
"""The driver's error codes that say the device or its link is bad, whatever runs on it.

Left out, because a job can raise them at will and a tenant must not be able to cordon a supplier's device: 13 (an
exception of the engine, such as an access out of bounds), 31 (a page fault of the MMU), 43 (a channel reset for an
error of its own), 45 (channels removed, a consequence of others), 68 and 69 (video and class errors), 109 (a time limit
of a context), 63 and 94 (a memory error that was contained: its job ends, the device goes on), 154 (says what to do
after others).
"""


class FaultKind(StrEnum):
    """In what way a device fails."""

    LOST = "lost"
    XID = "xid"
    ECC = "ecc"
    THERMAL = "thermal"


@dataclass(frozen=True, slots=True)
class Fault:
    """One failure, with its evidence in words for the owner."""

    kind: FaultKind
    text: str


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process on a GPU, by its host's pid; None where the driver does not say how much it uses."""

    pid: int
    memory_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceTelemetry:
    """One sample of one GPU. None: the device does not measure it."""

    uuid: str
    """Empty for a lost device where only its bus is known."""
    pci_bus_id: str
    lost: bool = False
    utilisation_percent: int | None = None
    memory_used_bytes: int | None = None
    memory_bytes: int | None = None
    power_mw: int | None = None
    power_limit_mw: int | None = None
    temperature_c: int | None = None
    slowdown_c: int | None = None
    """Where the hardware slows itself down."""
    ecc_corrected: int | None = None
    """Since the driver was loaded, as the next."""
    ecc_uncorrected: int | None = None
    throttle_reasons: tuple[str, ...] = ()
    processes: tuple[GpuProcess, ...] = ()
    xids: tuple[int, ...] = ()
    """Error codes since the sample before."""


@dataclass(frozen=True, slots=True)
class DeviceHistory:
    """What the rules must remember of one device from sample to sample."""

    ecc_uncorrected: int | None = None
    hot_samples: int = 0
    """In a row, up to now."""


def remember(history: DeviceHistory, sample: DeviceTelemetry) -> DeviceHistory:
    """The history after a sample. What the device did not tell keeps its last value."""
    counted = sample.ecc_uncorrected if sample.ecc_uncorrected is not None else history.ecc_uncorrected
    return DeviceHistory(counted, history.hot_samples + 1 if is_hot(sample) else 0)


def is_hot(sample: DeviceTelemetry) -> bool:
    """Slowed down by its own hardware for heat, and at the temperature where that begins, if it tells both."""
    if HW_THERMAL not in sample.throttle_reasons:
        return False
    if sample.temperature_c is None or not sample.slowdown_c:
        return True
    return sample.temperature_c >= sample.slowdown_c


def faults(sample: DeviceTelemetry, history: DeviceHistory) -> tuple[Fault, ...]:
    """What is broken, seen in one sample on top of the history before it. Empty for a healthy device."""
    if sample.lost:
        return (
            Fault(FaultKind.LOST, f"the GPU at {sample.pci_bus_id} fell off its bus and answers nothing"),
        )
    found = [
        Fault(FaultKind.XID, f"XID {xid}: {FATAL_XIDS[xid]}")
        for xid in dict.fromkeys(sample.xids)
        if xid in FATAL_XIDS
    ]
    # The first sample only sets the mark: what was counted before this agent looked may be long ago.
    if sample.ecc_uncorrected is not None and history.ecc_uncorrected is not None:
        more = sample.ecc_uncorrected - history.ecc_uncorrected
        if more > 0:
            text = f"{more} more memory errors that ECC could not correct, {sample.ecc_uncorrected} in all"
            found.append(Fault(FaultKind.ECC, text))
    hot_samples = remember(history, sample).hot_samples
    if hot_samples >= HOT_SAMPLES_MIN:
        found.append(Fault(FaultKind.THERMAL, _heat(sample, hot_samples)))
    return tuple(found)


def lost_fault(pci_bus_id: str) -> Fault:
    """The fault of a GPU that is gone."""
    return Fault(FaultKind.LOST, f"the GPU at {pci_bus_id} fell off its bus and answers nothing")


def _heat(sample: DeviceTelemetry, hot_samples: int) -> str:
    at = f" at {sample.temperature_c} °C" if sample.temperature_c is not None else ""
    limit = f" (its limit is {sample.slowdown_c} °C)" if sample.slowdown_c else ""
    return f"its hardware slows it down for heat{at}{limit}, {hot_samples} samples in a row"


def reason_names(mask: int) -> tuple[str, ...]:
    """NVML's bits by name, unknown ones as numbers."""
    known = [name for bit, name in THROTTLE_REASONS.items() if mask & bit]
    rest = mask & ~sum(THROTTLE_REASONS)
    return (*known, *([f"0x{rest:x}"] if rest else []))
