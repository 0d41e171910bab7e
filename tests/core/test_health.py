"""A broken device is told from a busy one, and from one whose job misbehaves."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.core.supply.health import (
    FATAL_XIDS,
    HOT_SAMPLES_MIN,
    HW_THERMAL,
    DeviceHistory,
    DeviceTelemetry,
    FaultKind,
    faults,
    is_hot,
    reason_names,
    remember,
)

WELL = DeviceTelemetry(
    uuid="GPU-1", pci_bus_id="0000:01:00.0", temperature_c=60, slowdown_c=93, ecc_uncorrected=0
)
HOT = replace(WELL, temperature_c=95, throttle_reasons=(HW_THERMAL,))


def kinds(sample: DeviceTelemetry, history: DeviceHistory | None = None) -> list[FaultKind]:
    return [fault.kind for fault in faults(sample, history or DeviceHistory())]


def test_faults_of_a_well_device_are_none() -> None:
    assert kinds(WELL) == []
    assert kinds(replace(WELL, throttle_reasons=("power_cap", "gpu_idle"))) == []


@pytest.mark.parametrize("xid", [48, 74, 79, 95, 119])
def test_faults_fatal_xid_is_named_with_its_meaning(xid: int) -> None:
    (fault,) = faults(replace(WELL, xids=(xid, xid)), DeviceHistory())
    assert fault.kind is FaultKind.XID
    assert fault.text == f"XID {xid}: {FATAL_XIDS[xid]}"


@pytest.mark.parametrize("xid", [13, 31, 43, 45, 63, 94, 99_999])
def test_faults_xid_that_a_job_can_raise_is_none(xid: int) -> None:
    assert kinds(replace(WELL, xids=(xid,))) == []


def test_faults_lost_device_says_nothing_else() -> None:
    (fault,) = faults(replace(HOT, lost=True, xids=(79,)), DeviceHistory(0, 99))
    assert fault.kind is FaultKind.LOST
    assert "0000:01:00.0" in fault.text


def test_faults_ecc_counts_only_what_is_new_since_the_last_look() -> None:
    assert kinds(replace(WELL, ecc_uncorrected=7)) == []
    history = remember(DeviceHistory(), replace(WELL, ecc_uncorrected=7))
    assert kinds(replace(WELL, ecc_uncorrected=7), history) == []
    assert kinds(replace(WELL, ecc_uncorrected=8), history) == [FaultKind.ECC]
    # A driver loaded anew counts from zero.
    assert kinds(replace(WELL, ecc_uncorrected=0), history) == []
    assert remember(history, replace(WELL, ecc_uncorrected=None)).ecc_uncorrected == 7


def test_faults_heat_must_last() -> None:
    history = DeviceHistory()
    for _ in range(HOT_SAMPLES_MIN - 1):
        assert kinds(HOT, history) == []
        history = remember(history, HOT)
    assert kinds(HOT, history) == [FaultKind.THERMAL]
    assert kinds(WELL, history) == []
    assert kinds(HOT, remember(history, WELL)) == []


def test_faults_heat_needs_the_hardwares_own_throttle_at_its_limit() -> None:
    assert is_hot(HOT)
    assert is_hot(replace(HOT, slowdown_c=None))
    assert is_hot(replace(HOT, slowdown_c=0))
    assert not is_hot(replace(HOT, temperature_c=92))
    assert not is_hot(replace(HOT, throttle_reasons=("sw_thermal",)))


def test_reason_names_of_unknown_bits_are_numbers() -> None:
    assert reason_names(0) == ()
    assert reason_names(0x44) == ("power_cap", "hw_thermal")
    assert reason_names(0x1000 | 0x1) == ("gpu_idle", "0x1000")
