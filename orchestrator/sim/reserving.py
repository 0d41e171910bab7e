"""A whole run with a reservation in it: machines crash and come back, the control plane dies, promises are kept."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from orchestrator.core import messages as m
from orchestrator.core.errors import RefusedError
from orchestrator.core.ids import JobId, ReservationId
from orchestrator.core.jobs import JobRequest, Requirements
from orchestrator.core.tenancy.reservations import ReservationPolicy
from orchestrator.sim import checks
from orchestrator.sim.virtual import run_virtual
from orchestrator.sim.workload import TENANTS
from orchestrator.sim.world import FLEET, POLICIES, World

if TYPE_CHECKING:
    from orchestrator.core.jobs import Job
    from orchestrator.core.tenancy.reservations import Reservation

TENANT = TENANTS[0]
RESERVATION = ReservationId("rsv_1")
NAME = "nightly"
WANTED = Requirements(gpus=4, gpu_model="H100")
"""All of two machines, which small jobs like, too."""

IN_MS, LENGTH_MS = 40_000, 200_000
"""It begins while the faults last and ends after them."""

JOBS = 3

BOOKING = replace(
    POLICIES,
    reservations=ReservationPolicy(lead_ms=30_000, claim_grace_ms=60_000, length_ms_min=10_000),
)

FAULT_S_MAX = 130
"""The longest fault that may still be under way when no new ones come."""


@dataclass(frozen=True, slots=True)
class Booked:
    """What became of the reservation and its jobs."""

    reservation: Reservation
    jobs: tuple[Job, ...]


async def _control_ms(world: World) -> int:
    """Control time, from whichever process lives."""
    while True:
        control = world.control
        if control is not None:
            try:
                state = await control.loop.read(lambda state: state)
                return state.time_ms(control.loop.now())
            except RefusedError:
                pass
        await asyncio.sleep(0.5)


async def _book(world: World) -> None:
    """Ask until enough machines are there to be promised, and then submit jobs for them."""
    while True:
        from_ms = await _control_ms(world) + IN_MS
        until_ms = from_ms + LENGTH_MS
        command = m.CreateReservation(RESERVATION, TENANT, NAME, WANTED, from_ms, until_ms, f"{from_ms}")
        try:
            await world.submit(command)
            break
        except RefusedError:
            await asyncio.sleep(2)
    for number in range(JOBS):
        asked = JobRequest("python train.py", "{}", (), (), replace(WANTED, gpus=2))
        job_id = JobId(f"job_booked_{number}")
        await world.submit(m.SubmitJob(job_id, TENANT, f"booked-{number}", asked, f"{number}", NAME))
        world.acknowledged[f"booked-{number}"] = job_id


async def _play(seed: int) -> Booked:
    world = World(seed, BOOKING)
    await world.start_control()
    for tenant_id in TENANTS:
        await world.submit(m.CreateTenant(tenant_id, f"acme of {tenant_id}", tenant_id))
    for kind in FLEET:
        await world.add_worker(*kind)
    watching = world.processes.spawn("world", world.watch())
    others = world.processes.spawn("world", world.tenants())
    booking = world.processes.spawn("world", _book(world))
    await world.faults()
    await others
    await booking
    await asyncio.sleep(FAULT_S_MAX)
    world.heal()
    finishing = world.processes.spawn("world", world.until_done())
    await asyncio.wait((finishing, watching), return_when=asyncio.FIRST_COMPLETED)
    if watching.done():
        watching.result()
    state = finishing.result()
    checks.check_store(world.outside.store, BOOKING, state)
    checks.check_jobs(state, world.acknowledged, world.ray)
    checks.check_gangs(world.ray, state)
    jobs = tuple(state.jobs[JobId(f"job_booked_{number}")] for number in range(JOBS))
    return Booked(state.reservations[RESERVATION], jobs)


def play(seed: int) -> Booked:
    """One whole run in virtual time. Raises ViolationError where an invariant does not hold."""
    return run_virtual(_play(seed))
