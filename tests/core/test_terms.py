"""The owner's terms at work: hours and longest leases end what runs, with notice, and keep late work away."""

from __future__ import annotations

import pytest

from orchestrator.core import messages as m
from orchestrator.core.clusters import ClusterPhase, MemberNotice
from orchestrator.core.ids import WorkerId
from orchestrator.core.jobs import JobStatus, Requirements
from orchestrator.core.scheduling.filters import OPEN_MS_MIN
from orchestrator.core.supply.holds import HoldKind
from orchestrator.core.supply.terms import MINUTE_MS, MONDAY_MS, WEEK_MINUTES, WEEK_MS, Terms, WeekWindow
from tests.core.worlds import World

HOUR = 60


def minute_of(world: World) -> int:
    """The minute of the week that has begun."""
    return ((world.at_ms - MONDAY_MS) % WEEK_MS) // MINUTE_MS


def window(world: World, begins: int, ends: int) -> WeekWindow:
    """A window from and to so many minutes from now."""
    now = minute_of(world)
    return WeekWindow((now + begins) % WEEK_MINUTES, (now + ends) % WEEK_MINUTES)


def on_the_minute(world: World) -> None:
    """Let the clock show a whole minute, so that windows begin and end when they say."""
    world.forward(-world.at_ms % MINUTE_MS)


def set_schedule(world: World, worker_id: WorkerId, *windows: WeekWindow, notice_ms: int = 30_000) -> None:
    world.do(m.SetTerms(worker_id, Terms(schedule=windows, notice_ms=notice_ms)))


@pytest.mark.parametrize(
    "spans", [((-1, 2 * HOUR),), ((-1, HOUR), (HOUR, 2 * HOUR)), ((2 * HOUR, 2 * HOUR),)]
)
def test_schedule_inside_a_window_is_no_reason_against_a_worker(spans: tuple[tuple[int, int], ...]) -> None:
    world = World()
    worker_id = world.worker()
    set_schedule(world, worker_id, *(window(world, *span) for span in spans))
    world.tick()
    assert world.who(worker_id).holds == ()
    world.submit()
    assert len(world.plan().placements) == 1


def test_schedule_holds_a_worker_outside_its_windows_and_lifts_the_hold_in_them() -> None:
    world = World()
    on_the_minute(world)
    worker_id = world.worker()
    set_schedule(world, worker_id, window(world, 20, 60), window(world, 90, 100))
    seen = []
    for _ in range(24):
        world.live_on(5 * MINUTE_MS, step_ms=10_000)
        seen.append(world.who(worker_id).hold(HoldKind.SCHEDULE) is None)
    at_minutes = [5 * (index + 1) for index, is_open in enumerate(seen) if is_open]
    assert at_minutes == [20, 25, 30, 35, 40, 45, 50, 55, 90, 95]


def test_schedule_taken_out_of_the_terms_lifts_its_hold() -> None:
    world = World()
    worker_id = world.worker()
    set_schedule(world, worker_id, window(world, 60, 120))
    world.tick(1_000)
    assert world.who(worker_id).hold(HoldKind.SCHEDULE) is not None
    world.do(m.SetTerms(worker_id, Terms()))
    world.tick(1_000)
    assert world.who(worker_id).placeable


def test_schedule_ends_a_running_job_with_the_window_and_with_notice() -> None:
    world = World()
    on_the_minute(world)
    worker_id = world.worker()
    end_ms = world.at_ms + 20 * MINUTE_MS
    set_schedule(world, worker_id, window(world, -60, 20), notice_ms=90_000)
    job_id = world.running()
    world.live_on(20 * MINUTE_MS - 90_000 - 1_000, step_ms=1_000)
    assert world.members(job_id)[0].notice is None
    world.live_on(1_000)
    assert world.members(job_id)[0].notice == MemberNotice(end_ms, "the hours that its owner offers end")
    world.live_on(89_000, step_ms=1_000)
    assert world.job(job_id).status is JobStatus.RUNNING
    world.live_on(1_000)
    assert (world.job(job_id).status, world.job(job_id).preemptions) == (JobStatus.PENDING, 1)
    assert world.who(worker_id).hold(HoldKind.SCHEDULE) is not None
    assert world.leases(job_id)[0].ended_ms == end_ms


def test_schedule_closes_a_warm_cluster_when_its_notice_is_due() -> None:
    world = World()
    on_the_minute(world)
    worker_id = world.worker()
    set_schedule(world, worker_id, window(world, -60, 20))
    job_id = world.running()
    world.live_on(19 * MINUTE_MS)
    world.finish(job_id)
    assert world.cluster(job_id).phase is ClusterPhase.READY
    world.live_on(30_000)
    assert world.cluster(job_id).phase is ClusterPhase.CLOSING


def test_schedule_that_changes_moves_no_member_that_runs() -> None:
    world = World()
    worker_id = world.worker()
    job_id = world.running()
    set_schedule(world, worker_id, window(world, 60, 120))
    world.live_on(10 * MINUTE_MS)
    assert world.who(worker_id).hold(HoldKind.SCHEDULE) is not None
    assert world.job(job_id).status is JobStatus.RUNNING


@pytest.mark.parametrize(
    ("ends", "notice_ms", "placed"), [(9, 30_000, 0), (11, 30_000, 1), (50, 1_800_000, 0)]
)
def test_schedule_that_ends_soon_gets_no_new_job(ends: int, notice_ms: int, placed: int) -> None:
    assert OPEN_MS_MIN == 10 * MINUTE_MS
    world = World()
    worker_id = world.worker()
    set_schedule(world, worker_id, window(world, -60, ends), notice_ms=notice_ms)
    job_id = world.submit()
    assert len(world.plan().placements) == placed
    if not placed:
        assert "1 closing soon by its owner's schedule" in world.job(job_id).message


def test_schedule_that_ends_soon_gets_no_gangs_head() -> None:
    world = World()
    for _ in range(2):
        world.worker()
    set_schedule(world, world.head_host(), window(world, -60, 5))
    world.submit(Requirements(gpus=2))
    assert world.plan().placements == ()
    lasting = world.head_host(1)
    assert [one.head_host for one in world.plan().placements] == [lasting]


def test_schedule_that_ends_soon_keeps_a_job_off_a_warm_cluster() -> None:
    world = World()
    for _ in range(2):
        world.worker()
    head = world.head_host()
    job_id = world.running(Requirements(gpus=2))
    world.finish(job_id)
    set_schedule(world, head, window(world, -60, 5))
    world.submit(Requirements(gpus=2))
    assert world.plan().empty


def test_schedule_that_ended_while_nobody_looked_still_gives_the_least_notice() -> None:
    world = World()
    worker_id = world.worker()
    set_schedule(world, worker_id, window(world, -60, 20))
    job_id = world.running()
    world.forward(30 * MINUTE_MS)
    world.do(m.StartControl("net_test"))
    world.do(m.Tick())
    notice = world.members(job_id)[0].notice
    assert notice is not None
    assert notice.deadline_ms == world.at_ms + world.policies.fleet.notice_ms_min


def test_lease_of_the_longest_length_ends_with_notice() -> None:
    world = World()
    worker_id = world.worker()
    world.do(m.SetTerms(worker_id, Terms(lease_max_ms=600_000, notice_ms=60_000)))
    job_id = world.ready()
    world.live_on(300_000)
    world.start(job_id)
    begun_ms = world.at_ms
    world.live_on(539_000, step_ms=1_000)
    assert world.members(job_id)[0].notice is None
    world.live_on(1_000)
    notice = world.members(job_id)[0].notice
    assert notice == MemberNotice(begun_ms + 600_000, "the longest lease that its owner allows is over")
    world.live_on(60_000, step_ms=1_000)
    (lease,) = world.leases(job_id)
    assert lease.ended_ms == begun_ms + 600_000
    assert world.who(worker_id).placeable
    world.reports()
    world.plan()
    assert world.members(job_id)[0].worker_id == worker_id, "the next lease may be the same machine's"


def test_lease_of_a_warm_clusters_next_job_is_counted_from_its_own_start() -> None:
    world = World()
    worker_id = world.worker()
    world.do(m.SetTerms(worker_id, Terms(lease_max_ms=600_000, notice_ms=60_000)))
    first = world.running()
    world.live_on(500_000)
    world.finish(first)
    second = world.submit()
    world.plan()
    world.start(second)
    world.live_on(500_000)
    assert world.job(second).status is JobStatus.RUNNING
    assert world.members(second)[0].notice is None
