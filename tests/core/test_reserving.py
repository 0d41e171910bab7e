"""What a plan keeps for reservations, whom it lends that, and what others hear of it."""

from __future__ import annotations

import pytest

from orchestrator.core import messages as m
from orchestrator.core.clusters import ClusterPhase
from orchestrator.core.ids import JobId
from orchestrator.core.jobs import JobPolicy, Requirements
from orchestrator.core.market.pricing import Currency
from orchestrator.core.policies import Policies
from orchestrator.core.queries.explain import explain
from orchestrator.core.queries.queue import RESERVED_MISSES_MAX
from orchestrator.core.queries.quote import quote
from orchestrator.core.scheduling.draft import FORMING_ALLOWANCE_MS
from orchestrator.core.scheduling.reserving import opened
from orchestrator.core.supply.fleet import NEBULA, Isolation
from orchestrator.core.supply.holds import HoldKind
from orchestrator.core.tenancy.reservations import Reservation, ReservationPolicy
from tests.core.booking import HOUR_MS, MINUTE_MS, again, reserve, submit_to
from tests.core.fleets import let_go
from tests.core.preemptions import POLICIES, POLICY, begin, submit
from tests.core.worlds import World

LEAD_MS = ReservationPolicy().lead_ms
GPUS = {count: Requirements(gpus=count) for count in range(1, 17)}


def fleet(*gpus: int, policies: Policies | None = None) -> World:
    """Machines of so many devices, in a network without head hosts."""
    world = World(policies or Policies())
    for count in gpus:
        world.worker(count=count)
    return world


def free(world: World) -> int:
    """Devices that anybody can have."""
    return int(opened(world.state, world.at_ms).free.sum())


def runs(world: World, job_id: JobId) -> bool:
    return world.state.jobs[job_id].attempt_id is not None


def names_of(world: World, job_id: JobId) -> set[str]:
    return {world.state.workers[member.worker_id].name for member in world.members(job_id)}


# ------------------------------------------------------------ keeping


def test_reservation_is_kept_from_its_lead_until_its_end_and_not_before_or_after() -> None:
    world = fleet(8)
    one = reserve(world, GPUS[3], in_ms=2 * LEAD_MS)
    world.forward(LEAD_MS - 1)
    assert free(world) == 8
    world.forward(1)
    assert free(world) == 5
    world.forward(LEAD_MS + HOUR_MS - 1)
    assert free(world) == 5
    world.forward(1)
    assert free(world) == 8
    assert again(world, one).booked, "no tick came"


def test_reservation_cancelled_is_kept_no_longer() -> None:
    world = fleet(8)
    one = reserve(world, GPUS[3])
    assert free(world) == 5
    world.do(m.CancelReservation(one.reservation_id))
    assert free(world) == 8


def test_reservation_kept_is_what_its_jobs_do_not_hold_yet() -> None:
    world = fleet(8)
    one = reserve(world, GPUS[4])
    first = submit_to(world, one, GPUS[3])
    world.plan()
    assert runs(world, first)
    assert free(world) == 4
    second = submit_to(world, one, GPUS[1])
    world.plan()
    assert runs(world, second)
    assert free(world) == 4
    third = submit_to(world, one, GPUS[1])
    world.plan()
    assert not runs(world, third), "a reservation gave more than was promised"
    assert f"on the machines of its reservation {one.name!r}" in world.job(third).message
    let_go(world, first)
    world.plan()
    assert runs(world, third)


def test_reservation_takes_the_machine_with_most_free_and_leaves_it_when_another_is() -> None:
    world = fleet(2, 4)
    small = world.submit(Requirements(gpus=3))
    world.plan()
    assert runs(world, small)
    reserve(world, GPUS[2])
    draft = opened(world.state, world.at_ms)
    assert sorted(draft.booked.tolist()) == [0, 2]
    assert sorted(draft.free.tolist()) == [0, 1]


def test_reservations_share_a_machine() -> None:
    world = fleet(8)
    for count in (1, 2, 4):
        reserve(world, GPUS[count])
    assert free(world) == 1


def test_reservations_await_different_machines_where_all_are_held() -> None:
    world = fleet(4, 4)
    for _ in range(2):
        world.submit(GPUS[4])
    world.plan()
    for _ in range(2):
        reserve(world, GPUS[4])
    draft = opened(world.state, world.at_ms)
    assert (draft.booked.tolist(), draft.awaited.tolist()) == ([4, 4], [True, True])


def test_reservation_whose_job_holds_a_cordoned_machine_has_the_rest_kept_elsewhere() -> None:
    world = fleet(4, 4)
    one = reserve(world, GPUS[4])
    job_id = submit_to(world, one, GPUS[3])
    world.plan()
    (member,) = world.members(job_id)
    world.do(m.PlaceHold(member.worker_id, HoldKind.OPERATOR, "looked at"))
    draft = opened(world.state, world.at_ms)
    assert sorted(draft.booked.tolist()) == [0, 1]


def test_reservation_whose_job_is_beside_one_without_an_end_has_the_rest_kept_where_it_is_free() -> None:
    world = fleet(4, 4)
    world.submit(GPUS[3])
    world.plan()
    busy = set(world.state.members_on)
    (whole_id,) = (worker_id for worker_id in world.state.workers if worker_id not in busy)
    world.do(m.PlaceHold(whole_id, HoldKind.OPERATOR, "looked at"))
    one = reserve(world, GPUS[4])
    job_id = submit_to(world, one, GPUS[1])
    world.plan()
    assert runs(world, job_id)
    world.do(m.LiftHold(whole_id, HoldKind.OPERATOR))
    draft = opened(world.state, world.at_ms)
    assert sorted(draft.booked.tolist()) == [0, 3]
    assert not draft.awaited.any(), "what may never be let go is waited for"


def test_reservation_is_not_overtaken_by_entitled_jobs_or_others_turns() -> None:
    world = fleet(4, policies=Policies(jobs=JobPolicy(overtaken_max=0)))
    one = reserve(world, GPUS[3])
    large, small = world.submit(GPUS[4]), world.submit(GPUS[2])
    mine = submit_to(world, one, GPUS[3], tenant="acme")
    world.plan()
    assert (runs(world, mine), runs(world, large), runs(world, small)) == (True, False, False)


def test_reservation_does_not_come_before_its_tenants_quota() -> None:
    world = fleet(8)
    one = reserve(world, GPUS[4])
    world.do(m.SetTenant(world.tenant(), gpus=m.QuotaLimit(2)))
    job_id = submit_to(world, one, GPUS[3])
    world.plan()
    assert not runs(world, job_id)
    assert "the quota of 2 GPUs at once" in world.job(job_id).message
    fits = submit_to(world, one, GPUS[2])
    world.plan()
    assert runs(world, fits)


def test_reservation_job_before_its_window_waits_and_hears_when_it_begins() -> None:
    world = fleet(8)
    one = reserve(world, GPUS[4], name="nightly", in_ms=30 * MINUTE_MS)
    job_id = submit_to(world, one)
    made = world.plan()
    assert made.placements == ()
    assert world.job(job_id).message == f"waiting for its reservation 'nightly', {one.window}"
    found = explain(world.state, world.state.jobs[job_id], world.at_ms).wait
    assert found is not None
    assert found.reason == world.job(job_id).message
    assert "the first of the jobs of its reservation 'nightly'" in found.position
    world.forward(30 * MINUTE_MS)
    world.plan()
    assert runs(world, job_id)
    placed = explain(world.state, world.state.jobs[job_id], world.at_ms).placed
    assert placed is not None
    assert f"on machines of its reservation 'nightly', {one.window}" in placed.why


def test_reservation_job_after_the_end_runs_on_and_waits_as_any_other() -> None:
    world = fleet(2)
    one = reserve(world, GPUS[2])
    first, second = submit_to(world, one, GPUS[2]), submit_to(world, one, GPUS[2])
    world.plan()
    world.reports()
    world.start(first)
    world.live_on(HOUR_MS)
    assert not again(world, one).booked
    assert runs(world, first)
    let_go(world, first)
    world.plan()
    assert runs(world, second)
    assert world.cluster(second).reservation_id is None


def test_reservation_job_uses_only_what_is_kept_for_it() -> None:
    world = fleet(4, 4)
    blocker = world.submit(GPUS[4])
    world.plan()
    one = reserve(world, Requirements(gpus=4, gpus_per_worker=4))
    job_id = submit_to(world, one, GPUS[4])
    world.plan()
    assert names_of(world, job_id).isdisjoint(names_of(world, blocker))
    other = world.submit(GPUS[1])
    world.plan()
    assert not runs(world, other)


def test_reservation_worker_that_goes_is_replaced_by_another() -> None:
    world = fleet(4, 4)
    one = reserve(world, GPUS[4])
    draft = opened(world.state, world.at_ms)
    (row,) = draft.booked.nonzero()[0].tolist()
    world.do(m.DrainWorker(world.state.offers.worker_of(row)))
    draft = opened(world.state, world.at_ms)
    (other,) = draft.booked.nonzero()[0].tolist()
    assert other != row
    job_id = submit_to(world, one, GPUS[4])
    world.plan()
    assert runs(world, job_id)


def test_reservation_nothing_left_of_the_fleet_keeps_nothing_and_says_so() -> None:
    world = fleet(4)
    one = reserve(world, GPUS[4])
    job_id = submit_to(world, one, GPUS[4])
    world.do(m.DrainWorker(next(iter(world.state.workers))))
    world.plan()
    assert not opened(world.state, world.at_ms).booked.any()
    assert "0 of 0 fitting devices free, 4 needed" in world.job(job_id).message


# ------------------------------------------------------------ gangs


def ring(count: int, gpus: int = 2, *, heads: int = 1) -> World:
    """Machines that can work together."""
    world = World()
    for _ in range(count):
        world.worker(count=gpus)
    world.head_host(heads)
    return world


def test_reservation_gang_is_kept_on_one_ground_with_its_head_slot() -> None:
    world = ring(4)
    one = reserve(world, GPUS[4])
    draft = opened(world.state, world.at_ms)
    assert sorted(draft.booked.tolist()) == [0, 0, 0, 2, 2]
    assert free(world) == 4
    other = world.submit(GPUS[4])
    world.plan()
    assert not runs(world, other), "the only head slot is promised"
    job_id = submit_to(world, one, GPUS[4])
    world.plan()
    assert runs(world, job_id)
    assert len(world.members(job_id)) == 3


def test_reservation_gang_is_kept_on_free_machines_before_those_of_a_job_without_an_end() -> None:
    world = ring(5)
    world.submit(GPUS[1])
    world.plan()
    one = reserve(world, GPUS[8])
    draft = opened(world.state, world.at_ms)
    assert not draft.awaited.any()
    assert int(draft.booked.sum()) == 8
    job_id = submit_to(world, one, GPUS[8])
    world.plan()
    assert runs(world, job_id)


def test_reservation_gang_of_small_jobs_gives_its_head_slot_back() -> None:
    world = ring(2)
    one = reserve(world, GPUS[4])
    jobs = [submit_to(world, one, GPUS[2]) for _ in range(2)]
    world.plan()
    assert all(runs(world, job_id) for job_id in jobs)
    assert not opened(world.state, world.at_ms).heads


def test_reservation_gang_loses_a_member_before_ready_and_fills_it_with_what_is_kept() -> None:
    world = ring(3)
    one = reserve(world, GPUS[4])
    job_id = submit_to(world, one, GPUS[4])
    world.plan()
    lost = next(member for member in world.members(job_id) if member.device_ids)
    world.fail(lost)
    other = world.submit(GPUS[2])
    made = world.plan()
    assert [filling.cluster_id for filling in made.fillings] == [world.cluster(job_id).cluster_id]
    assert not runs(world, other)


def test_reservation_with_a_bound_has_its_pairs_measured_before_it_begins() -> None:
    world = World()
    for _ in range(3):
        world.worker(count=1, isolation=Isolation.BOX, overlay=NEBULA)
    world.head_host(1, isolation=Isolation.BOX, overlay=NEBULA)
    if not world.state.overlay_offered:
        pytest.fail("this network has no overlay")
    reserve(world, Requirements(gpus=2, max_rtt_ms=20, isolation=Isolation.BOX), in_ms=LEAD_MS)
    assert len(world.plan().pairs) > 0
    assert free(world) == 1


# ------------------------------------------------------------ lending


def test_reservation_lends_to_jobs_that_end_before_it_begins() -> None:
    world = fleet(2)
    one = reserve(world, GPUS[2], in_ms=LEAD_MS)
    long_ms = LEAD_MS - FORMING_ALLOWANCE_MS
    endless, long, short = (world.submit(time_limit_ms=limit_ms) for limit_ms in (0, long_ms + 1, long_ms))
    world.plan()
    assert [runs(world, job_id) for job_id in (endless, long, short)] == [False, False, True]
    assert f"2 fitting devices are reserved {one.window}" in world.job(endless).message
    world.forward(1)
    late = world.submit(time_limit_ms=long_ms)
    world.plan()
    assert not runs(world, late)


def test_reservation_has_what_a_borrower_left_back_for_the_rest_of_the_plan() -> None:
    world = fleet(2)
    reserve(world, GPUS[2], in_ms=LEAD_MS)
    short, endless = world.submit(time_limit_ms=MINUTE_MS), world.submit()
    world.plan()
    assert [runs(world, job_id) for job_id in (short, endless)] == [True, False]


def test_reservation_prefers_what_is_sure_to_be_free_by_its_begin() -> None:
    world = fleet(4, 4)
    endless = world.submit(GPUS[1])
    world.plan()
    limited = world.submit(GPUS[4], time_limit_ms=10 * MINUTE_MS)
    world.plan()
    assert runs(world, limited)
    reserve(world, GPUS[4], in_ms=30 * MINUTE_MS)
    draft = opened(world.state, world.at_ms)
    (row,) = draft.booked.nonzero()[0].tolist()
    assert world.state.workers[world.state.offers.worker_of(row)].name in names_of(world, limited)
    assert not names_of(world, limited) & names_of(world, endless)


def test_reservation_awaited_machine_is_not_given_by_way_of_a_warm_cluster() -> None:
    world = fleet(2)
    before = world.running(GPUS[2])
    world.finish(before)
    assert world.state.idle_clusters
    one = reserve(world, GPUS[2], tenant="beta", in_ms=10 * MINUTE_MS)
    job_id = world.submit(GPUS[2])
    world.plan()
    assert not runs(world, job_id)
    short = world.submit(GPUS[2], time_limit_ms=MINUTE_MS)
    world.plan()
    assert runs(world, short), "it ends before"
    world.start(short)
    world.finish(short)
    world.forward(10 * MINUTE_MS)
    mine = submit_to(world, one, GPUS[2], tenant="beta")
    assert len(world.plan().closings) == 1
    world.reports()
    world.plan()
    assert runs(world, mine)


def test_reservation_warm_cluster_serves_its_next_job_and_nobody_else() -> None:
    world = fleet(2)
    one = reserve(world, GPUS[2])
    first = submit_to(world, one, GPUS[2])
    world.plan()
    world.reports()
    world.start(first)
    warm = world.cluster(first)
    assert warm.reservation_id == one.reservation_id
    world.finish(first)
    other = world.submit(GPUS[2])
    stranger = world.submit(GPUS[2], tenant="beta")
    world.plan()
    assert not runs(world, other)
    assert not runs(world, stranger)
    assert world.state.clusters[warm.cluster_id].phase is ClusterPhase.READY, "it gave way"
    second = submit_to(world, one, GPUS[2])
    world.plan()
    assert world.cluster(second).cluster_id == warm.cluster_id


def test_reservation_warm_cluster_of_another_shape_gives_way_to_its_own_job() -> None:
    world = fleet(2)
    one = reserve(world, GPUS[2])
    first = submit_to(world, one, GPUS[2])
    world.plan()
    world.reports()
    world.start(first)
    world.finish(first)
    second = submit_to(world, one, GPUS[1])
    made = world.plan()
    assert len(made.closings) == 1
    world.reports()
    world.plan()
    assert runs(world, second)


# ------------------------------------------------------------ words and bounds


def test_waiting_job_hears_of_the_first_reservations_and_counts_the_rest() -> None:
    world = fleet(8)
    booked = [reserve(world, GPUS[2], in_ms=number * MINUTE_MS) for number in range(4)]
    job_id = world.submit()
    world.plan()
    said = world.job(job_id).message
    assert f"; 2 fitting devices are reserved {booked[0].window}, 2 fitting devices are reserved" in said
    assert said.endswith("4 by 2 more")


def test_waiting_job_that_reserved_machines_would_not_serve_hears_nothing_of_them() -> None:
    world = fleet(2)
    world.worker("RTX3060", 1)
    reserve(world, Requirements(gpus=2, gpu_model="RTX4090"))
    job_id = world.submit(Requirements(gpus=2, gpu_model="RTX3060"))
    world.plan()
    assert "reserved" not in world.job(job_id).message


def test_quote_counts_reserved_machines_as_gone() -> None:
    world = fleet(2)
    reserve(world, GPUS[2])
    found = quote(world.state, Requirements(gpu_model="RTX4090"), HOUR_MS, Currency.NATIVE, world.at_ms)
    assert not found.available_now
    assert any("reserved" in reason for reason in found.reasons)


def test_queue_of_a_reservation_is_not_walked_through_for_jobs_that_find_no_place() -> None:
    world = fleet(2)
    one = reserve(world, GPUS[2])
    hold = submit_to(world, one, GPUS[2])
    world.plan()
    assert runs(world, hold)
    for _ in range(3 * RESERVED_MISSES_MAX):
        submit_to(world, one, GPUS[1])
    made = world.plan()
    assert len(made.deferrals) == RESERVED_MISSES_MAX


def test_queue_of_a_coming_reservation_holds_nobody_of_its_tenant_back() -> None:
    world = fleet(2)
    one = reserve(world, GPUS[1], in_ms=10 * HOUR_MS)
    for _ in range(200):
        submit_to(world, one)
    job_id = world.submit()
    world.plan()
    assert runs(world, job_id)


def test_reservation_of_cpu_work_is_kept() -> None:
    world = World()
    world.worker("CPU", 1)
    one: Reservation = reserve(world, Requirements(gpus=0))
    other = world.submit(Requirements(gpus=0))
    mine = submit_to(world, one, Requirements(gpus=0))
    world.plan()
    assert (runs(world, other), runs(world, mine)) == (False, True)


def test_reservation_is_kept_where_no_job_for_which_others_give_way_takes_the_last_slot() -> None:
    world = World(POLICIES)
    world.worker("RTX4090", 2, slots=1)
    other = world.worker("RTX3060", 2)
    wanted = Requirements(gpu_model="RTX4090")
    begin(world, wanted)
    world.live_on(POLICY.run_ms_min)
    reserve(world, Requirements(), tenant="birch", in_ms=HOUR_MS // 2)
    submit(world, wanted, priority=1)
    world.live_on(POLICY.wait_ms)
    assert len(world.plan().preemptions) == 1
    assert [worker_id for worker_id, _, _ in world.plan().reserved] == [other]
