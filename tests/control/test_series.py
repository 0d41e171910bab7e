"""How many series one worker may bring, whatever it says of itself: what a hostile agent would fill Prometheus with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.adapters.metrics.catalogue import PER_WORKER
from orchestrator.adapters.metrics.worker_pages import page_text
from orchestrator.api.v1 import telemetry_pb2
from orchestrator.control.measuring.rows import PROFILES, Profile, Profiles
from orchestrator.control.services.workers import Sample
from orchestrator.core import messages as m
from orchestrator.core.ids import DeviceId, WorkerId
from orchestrator.core.supply.fleet import Inventory
from orchestrator.core.supply.terms import Terms
from tests.control.house import House, Puppet, house, inventory

SESSIONS = 30
DEVICES = 3
HOUR_MS = 3_600_000

ONE = Profile("attic", "europe", "", "0.1")


@pytest.fixture
async def built(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path) as one:
        yield one


async def series(built: House) -> set[str]:
    """Names with their labels."""
    text = page_text(await built.plane.worker_rows(0)).decode()
    return {line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")}


def of_session(number: int) -> Inventory:
    """The same machine, whose agent gives every device another id in each session."""
    offered = inventory(DEVICES)
    devices = tuple(
        replace(one, device_id=DeviceId(f"GPU-{number}-{index}")) for index, one in enumerate(offered.devices)
    )
    return replace(offered, devices=devices)


def measured(offered: Inventory) -> Sample:
    """As an agent sends it, in whatever order."""
    return Sample(
        0.5,
        1,
        tuple(
            telemetry_pb2.DeviceSample(device_id=one.device_id, ecc_uncorrected=index)
            for index, one in reversed(list(enumerate(offered.devices)))
        ),
    )


async def test_worker_that_is_another_in_each_session_brings_few_series(built: House) -> None:
    puppet = await Puppet.join(built)
    loop, samples = built.plane.loop, built.plane.telemetry.newest
    found: set[str] = set()
    for number in range(SESSIONS):
        offered = of_session(number)
        await loop.submit(m.ConnectWorker(puppet.worker_id, offered, number + 1, f"0.1.{number}"))
        await loop.submit(m.SetTerms(puppet.worker_id, Terms(regions=(f"region-{number}",))))
        samples[puppet.worker_id] = measured(offered)
        found |= await series(built)
    infos = {one for one in found if one.startswith("orchestrator_worker_info{")}
    # One that it began with, and those that it may bring after it.
    assert len(infos) == 1 + PROFILES.burst
    assert all('agent_version="0.1"' in one for one in infos)
    of_devices = sum("device" in metric.labels for metric in PER_WORKER)
    assert sum(one.startswith("orchestrator_device_") for one in found) == DEVICES * of_devices
    others = len(found) - len(infos) - DEVICES * of_devices
    assert others <= len(PER_WORKER) - of_devices - 1


async def test_device_is_named_by_its_number_in_the_inventory(built: House) -> None:
    puppet = await Puppet.join(built)
    offered = of_session(0)
    await built.plane.loop.submit(m.ConnectWorker(puppet.worker_id, offered, 1, "0.1.0"))
    built.plane.telemetry.newest[puppet.worker_id] = measured(offered)
    lines = page_text(await built.plane.worker_rows(0)).decode().splitlines()
    for number in range(DEVICES):
        labels = f'{{worker="{puppet.worker_id}",device="{number}"}}'
        assert f"orchestrator_device_ecc_uncorrected{labels} {number}" in lines


def test_profile_that_changes_for_ever_is_taken_up_once_an_hour() -> None:
    profiles, worker = Profiles(), WorkerId("wrk_1")
    seen = []
    for minute in range(24 * 60):
        now = ONE._replace(region=f"region-{minute}")
        seen.append(profiles.shown(worker, now, minute * 60_000))
    assert len(set(seen)) <= 1 + PROFILES.burst + 24


def test_profile_that_changes_seldom_is_shown_at_once_and_outlives_a_leaving() -> None:
    profiles, worker = Profiles(), WorkerId("wrk_1")
    for day in range(30):
        now = ONE._replace(group=str(day))
        assert profiles.shown(worker, now, day * 24 * HOUR_MS) == now
    assert profiles.shown(WorkerId("wrk_2"), ONE, 0) == ONE
    profiles.forget(worker)
    assert profiles.shown(worker, ONE, 30 * 24 * HOUR_MS) == ONE
