"""Reservations in whole runs, under churn."""

from __future__ import annotations

import pytest

from orchestrator.core.tenancy.reservations import ReservationPhase
from orchestrator.sim.reserving import play

pytestmark = [pytest.mark.simulation, pytest.mark.timeout(600)]


@pytest.mark.parametrize("seed", range(4))
def test_simulation_reservation_under_churn_is_used_in_its_window(seed: int) -> None:
    booked = play(seed)
    one = booked.reservation
    assert all(job.status.terminal for job in booked.jobs)
    assert (one.phase, one.used) == (ReservationPhase.OVER, True)
    started = [job.started_at_ms for job in booked.jobs if job.started_at_ms is not None]
    assert started
    assert all(at_ms >= one.from_ms for at_ms in started)
    assert any(at_ms < one.until_ms for at_ms in started)
