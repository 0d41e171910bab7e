"""Reservations over any fleet: never more than there is, nothing twice, and there when their time comes."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.errors import RefusedError
from orchestrator.core.ids import JobId
from orchestrator.core.jobs import Requirements
from orchestrator.core.scheduling.draft import FORMING_ALLOWANCE_MS
from orchestrator.core.scheduling.reserving import opened
from orchestrator.core.supply.fleet import HardwareClass
from orchestrator.core.tenancy.reservations import Reservation, ReservationPolicy
from tests.core.booking import HOUR_MS, MINUTE_MS, again, reserve, submit_to
from tests.core.fleets import let_go, placed_jobs
from tests.core.worlds import START_WALL_MS, World
from tests.properties.stories import check_held
from tests.properties.test_plan import check_fits, make

LEAD_MS = ReservationPolicy().lead_ms
LIMIT_MINUTES_MAX = (LEAD_MS - FORMING_ALLOWANCE_MS) // MINUTE_MS
"""Work that was placed before machines were kept is over when they are wanted."""

KINDS = (
    ("RTX4090", HardwareClass.CONSUMER),
    ("RTX4090", HardwareClass.CONSUMER),
    ("RTX3060", HardwareClass.CONSUMER),
    ("RTX4090", HardwareClass.MINER),
    ("CPU", HardwareClass.CPU),
)
MACHINES = st.lists(
    st.tuples(
        st.sampled_from(KINDS), st.integers(1, 4), st.integers(1, 4), st.sampled_from(["home", "attic"])
    ),
    min_size=1,
    max_size=6,
)
HEADS = st.lists(st.tuples(st.integers(1, 2), st.sampled_from(["home", "attic"])), max_size=2)
LOTS = st.tuples(st.integers(1, 3), st.integers(1, 2)).map(
    lambda drawn: Requirements(gpus=drawn[0] * drawn[1], gpus_per_worker=drawn[0])
)
WANTED = (
    st.builds(
        Requirements,
        gpus=st.integers(1, 6),
        gpu_model=st.sampled_from([None, None, "RTX4090", "RTX3060"]),
        hardware_class=st.sampled_from([None, None, HardwareClass.CONSUMER]),
    )
    | LOTS
    | st.just(Requirements(gpus=0))
)
WINDOWS = st.tuples(WANTED, st.integers(0, 360), st.integers(10, 300))
"""What, minutes from now to its begin, and for how many."""


def fleet_of(
    machines: list[tuple[tuple[str, HardwareClass], int, int, str]], heads: list[tuple[int, str]]
) -> World:
    world = World()
    for (model, hardware_class), count, slots, zone in machines:
        world.worker(model, count, hardware_class=hardware_class, slots=slots, zone=zone)
    for slots, zone in heads:
        world.head_host(slots, zone=zone)
    return world


def agreed(world: World, asked: list[tuple[Requirements, int, int]], ahead_ms: int = 0) -> list[Reservation]:
    """Those of them that are promised."""
    found = []
    for number, (wanted, in_minutes, minutes) in enumerate(asked):
        in_ms, length_ms = ahead_ms + in_minutes * MINUTE_MS, minutes * MINUTE_MS
        with suppress(RefusedError):
            made = reserve(world, wanted, tenant=f"t{number % 3}", in_ms=in_ms, length_ms=length_ms)
            found.append(made)
    return found


@given(MACHINES, HEADS, st.lists(WINDOWS, min_size=1, max_size=10))
@settings(max_examples=120)
def test_promised_is_never_more_than_there_is(
    machines: list[tuple[tuple[str, HardwareClass], int, int, str]],
    heads: list[tuple[int, str]],
    asked: list[tuple[Requirements, int, int]],
) -> None:
    """On a fleet that nobody uses, everything promised is kept whole at each instant, and nothing of it twice."""
    world = fleet_of(machines, heads)
    booked = agreed(world, asked)
    instants = {one.from_ms - LEAD_MS for one in booked} | {one.from_ms for one in booked}
    before = int(opened(world.state, START_WALL_MS - 10 * HOUR_MS).free.sum())
    for at_ms in sorted(instants):
        there = [one for one in booked if one.from_ms - LEAD_MS <= at_ms < one.until_ms]
        draft = opened(world.state, at_ms)
        count = sum(one.requirements.device_count for one in there)
        assert (draft.free >= 0).all()
        assert int(draft.booked.sum()) == count, "something promised was not kept"
        assert int(draft.free.sum()) == before - count
        assert not draft.awaited.any()
        assert all(given <= world.state.head_hosts[host] for host, given in draft.heads.items())


@given(MACHINES, HEADS, st.lists(WINDOWS, min_size=1, max_size=4), st.lists(WANTED, max_size=6), st.data())
@settings(max_examples=60)
def test_plan_with_reservations_gives_nothing_twice_and_applied_again_changes_nothing(
    machines: list[tuple[tuple[str, HardwareClass], int, int, str]],
    heads: list[tuple[int, str]],
    asked: list[tuple[Requirements, int, int]],
    queue: list[Requirements],
    data: st.DataObject,
) -> None:
    world = fleet_of(machines, heads)
    booked = agreed(world, asked)
    for wanted in queue:
        world.submit(wanted, tenant="t0", time_limit_ms=data.draw(st.sampled_from([0, 20, 200])) * MINUTE_MS)
    for one in booked:
        tenant = world.state.tenants[one.tenant_id].name
        submit_to(world, one, one.requirements, tenant=tenant)
        submit_to(world, one, one.requirements, tenant=tenant)
    for minutes in (0, 30, 60, 200):
        world.forward(minutes * MINUTE_MS)
        made = make(world.state, world)
        assert made == make(world.state, world), "the same view has two plans"
        check_fits(world, made)
        world.apply(made)
        check_held(world.state)
        check_used(world, booked)
        again_made = make(world.state, world)
        assert (again_made.placements, again_made.reuses) == ((), ()), "the first plan left out what fits"
        done = placed_jobs(world)
        if done:
            let_go(world, data.draw(st.sampled_from(done)))


def check_used(world: World, booked: list[Reservation]) -> None:
    """No reservation's jobs hold more than was promised, or anything before it began."""
    for one in booked:
        jobs = [world.state.jobs[job_id] for job_id in placed_jobs(world)]
        own = [job for job in jobs if job.request.reservation_id == one.reservation_id]
        held = sum(job.request.requirements.device_count for job in own)
        if again(world, one).booked:
            assert held <= one.requirements.device_count
            assert not own or one.from_ms <= world.at_ms


@dataclass
class Yard:
    """A fleet on which nothing runs without a limit, and everybody lives."""

    world: World
    ends_ms: dict[JobId, int] = field(default_factory=dict)
    """When each job that runs will have ended; its limit allows for no more."""

    def plan(self, spent_percent: int) -> None:
        self.world.plan()
        for job_id in placed_jobs(self.world):
            limit_ms = self.world.state.jobs[job_id].request.time_limit_ms
            takes_ms = (FORMING_ALLOWANCE_MS + limit_ms) * spent_percent // 100
            self.ends_ms.setdefault(job_id, self.world.at_ms + takes_ms)

    def until(self, at_ms: int) -> None:
        """Time passes, and jobs end."""
        self.world.forward(at_ms - self.world.at_ms)
        for job_id in placed_jobs(self.world):
            if self.ends_ms[job_id] <= at_ms:
                let_go(self.world, job_id)


STEPS = st.lists(
    st.tuples(st.integers(4, 15), st.integers(1, LIMIT_MINUTES_MAX), st.integers(1, 4), st.integers(1, 100)),
    min_size=1,
    max_size=20,
)
"""Minutes that pass, the limit of the next job in minutes, its GPUs, and how much of its time it takes in percent."""


@given(MACHINES, HEADS, st.lists(WINDOWS, min_size=1, max_size=3), STEPS)
@settings(max_examples=30)
def test_reserved_machines_are_there_at_the_begin_if_all_work_has_limits(
    machines: list[tuple[tuple[str, HardwareClass], int, int, str]],
    heads: list[tuple[int, str]],
    asked: list[tuple[Requirements, int, int]],
    steps: list[tuple[int, int, int, int]],
) -> None:
    world = fleet_of(machines, heads)
    yard = Yard(world)
    # Agreed on before the lead, as nobody can promise what is given away already.
    booked = sorted(agreed(world, asked, ahead_ms=LEAD_MS), key=lambda one: (one.from_ms, one.created_at_ms))
    for one in booked:
        turn = 0
        while world.at_ms < one.from_ms:
            minutes, limit, gpus, spent = steps[turn % len(steps)]
            turn += 1
            world.submit(Requirements(gpus=gpus), tenant="small", time_limit_ms=limit * MINUTE_MS)
            yard.plan(spent)
            yard.until(min(one.from_ms, world.at_ms + minutes * MINUTE_MS))
        tenant = world.state.tenants[one.tenant_id].name
        job_id = submit_to(world, one, one.requirements, tenant=tenant, time_limit_ms=MINUTE_MS)
        yard.plan(100)
        assert world.state.jobs[job_id].attempt_id is not None, world.job(job_id).message
