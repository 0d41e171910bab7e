"""Agreeing on reservations, their end, and the jobs that name one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.core import messages as m
from orchestrator.core.decisions.reservations import contradiction
from orchestrator.core.errors import RefusalCode, RefusedError
from orchestrator.core.ids import ReservationId
from orchestrator.core.instants import window_words
from orchestrator.core.jobs import JobStatus, Requirements
from orchestrator.core.policies import Policies
from orchestrator.core.queries.tenant_standing import tenant_standing
from orchestrator.core.supply.evidence import EvidenceClass
from orchestrator.core.supply.fleet import HardwareClass, Isolation
from orchestrator.core.tenancy.reservations import (
    ReservationPhase,
    ReservationPolicy,
)
from tests.core.booking import HOUR_MS, MINUTE_MS, again, reserve, submit_to
from tests.core.worlds import World, sha

POLICY = ReservationPolicy()
GPUS = {count: Requirements(gpus=count) for count in range(1, 17)}


def fleet(machines: int = 2, gpus: int = 8, policies: Policies | None = None) -> World:
    """Machines that cannot work together: no head host is there."""
    world = World(policies or Policies())
    for _ in range(machines):
        world.worker(count=gpus)
    return world


def refused(world: World, wanted: Requirements, **how: object) -> RefusedError:
    world.tenant(str(how.get("tenant", "acme")))
    before = world.state.version
    with pytest.raises(RefusedError) as caught:
        reserve(world, wanted, **how)  # type: ignore[arg-type]
    assert world.state.version == before
    return caught.value


# ------------------------------------------------------------ creating


def test_create_reservation_is_stored_and_the_same_request_again_is_the_same() -> None:
    world = fleet()
    one = reserve(world, GPUS[8], name="nightly", in_ms=HOUR_MS)
    assert (one.booked, one.used, one.until_ms - one.from_ms) == (True, False, HOUR_MS)
    version = world.state.version
    assert reserve(world, GPUS[8], name="nightly", in_ms=HOUR_MS) == one
    assert world.state.version == version
    found = refused(world, GPUS[4], name="nightly", in_ms=HOUR_MS)
    assert (found.code, found.field) == (RefusalCode.ALREADY_EXISTS, "name")
    assert reserve(world, GPUS[1], tenant="beta", name="nightly", in_ms=HOUR_MS).tenant_id != one.tenant_id


def test_create_reservation_request_id_repeats_its_answer_even_after_a_cancel() -> None:
    world = fleet()
    command = m.CreateReservation(
        ReservationId("rsv_a"),
        world.tenant(),
        "nightly",
        GPUS[1],
        world.at_ms,
        world.at_ms + HOUR_MS,
        "x",
        "req",
    )
    assert world.do(command).result == "rsv_a"
    world.do(m.CancelReservation(ReservationId("rsv_a")))
    again_it = replace(command, reservation_id=ReservationId("rsv_b"))
    assert world.do(again_it) == m.Decision((), "rsv_a")
    with pytest.raises(RefusedError, match="request_id"):
        world.do(replace(again_it, request_sha256="y"))


@pytest.mark.parametrize(
    ("in_ms", "length_ms", "field", "says"),
    [
        (-2 * MINUTE_MS, HOUR_MS, "from", "lies in the past"),
        (POLICY.ahead_ms_max + 1, HOUR_MS, "from", "more than 90d ahead"),
        (0, 9 * MINUTE_MS, "until", "9m is no length for a reservation: it is from 10m to 7d"),
        (0, POLICY.length_ms_max + HOUR_MS, "until", "169h is no length"),
        (0, -HOUR_MS, "until", "-1h is no length"),
    ],
)
def test_create_reservation_window_out_of_bounds_names_field_and_number(
    in_ms: int, length_ms: int, field: str, says: str
) -> None:
    found = refused(fleet(), GPUS[1], in_ms=in_ms, length_ms=length_ms)
    assert (found.code, found.field) == (RefusalCode.INVALID, field)
    assert says in found.message


def test_create_reservation_bounds_themselves_are_allowed() -> None:
    world = fleet()
    reserve(world, in_ms=-MINUTE_MS)
    reserve(world, in_ms=POLICY.ahead_ms_max, length_ms=POLICY.length_ms_max)
    reserve(world, length_ms=POLICY.length_ms_min)


@pytest.mark.parametrize("name", ["", "a/b", "x" * 64, "\n"])
def test_create_reservation_name_that_cannot_be_shown_is_refused(name: str) -> None:
    world = fleet()
    command = m.CreateReservation(
        ReservationId("rsv"), world.tenant(), name, GPUS[1], world.at_ms, world.at_ms + HOUR_MS, "x"
    )
    with pytest.raises(RefusedError, match="name"):
        world.do(command)


def test_create_reservation_too_many_of_a_tenant_or_of_all_says_how_many() -> None:
    policies = Policies(reservations=ReservationPolicy(of_tenant_max=2, in_all_max=3))
    world = fleet(policies=policies)
    one = reserve(world)
    reserve(world)
    assert "you have 2 reservations" in refused(world, GPUS[1]).message
    reserve(world, tenant="beta")
    assert "has 3 reservations" in refused(world, GPUS[1], tenant="beta").message
    world.do(m.CancelReservation(one.reservation_id))
    reserve(world)


def test_create_reservation_beyond_the_quota_names_it() -> None:
    world = fleet()
    limit = m.QuotaLimit
    world.do(m.SetTenant(world.tenant(), gpus=limit(6), gpu_ms_per_month=limit(10 * HOUR_MS)))
    assert "quota of 6 GPUs at once is less than the 8" in refused(world, GPUS[8]).message
    assert (
        "10 GPU-hours a month is less than the 12" in refused(world, GPUS[4], length_ms=3 * HOUR_MS).message
    )
    reserve(world, GPUS[4], in_ms=HOUR_MS)
    found = refused(world, GPUS[4], in_ms=HOUR_MS + MINUTE_MS)
    assert "leaves 2, as your other reservations of that time have 4, and 4 are asked for" in found.message
    reserve(world, GPUS[4], in_ms=2 * HOUR_MS)


# ------------------------------------------------------------ what can be promised


def test_create_reservation_more_than_there_is_names_the_numbers() -> None:
    world = fleet()
    found = refused(world, GPUS[9])
    assert found.code is RefusalCode.CONFLICT
    assert "16 fitting devices serve then, and no head slot for 9 of them" in found.message
    only = refused(world, Requirements(gpus=9, gpus_per_worker=9))
    assert "no head slot" in only.message
    other = refused(world, Requirements(gpus=2, gpu_model="H100"))
    assert "0 fitting devices serve then, at most 0 of them together, and 2 are asked for" in other.message


def test_create_reservation_beside_others_counts_what_they_have_at_that_time_only() -> None:
    world = fleet()
    reserve(world, GPUS[8], in_ms=10 * HOUR_MS)
    reserve(world, GPUS[8], in_ms=10 * HOUR_MS, tenant="beta")
    found = refused(world, GPUS[1], in_ms=10 * HOUR_MS + 59 * MINUTE_MS)
    assert "of 16 fitting devices 16 are promised to 2 others" in found.message
    assert "60 minutes before each begin" in found.message
    # Within the lead of the one, or it within the others' lead.
    assert "promised" in refused(world, GPUS[1], in_ms=12 * HOUR_MS - 1).message
    assert "promised" in refused(world, GPUS[1], in_ms=8 * HOUR_MS + 1).message
    reserve(world, GPUS[8], in_ms=12 * HOUR_MS)
    reserve(world, GPUS[8], in_ms=8 * HOUR_MS)


def test_create_reservation_in_a_gap_between_others_is_weighed_at_each_instant() -> None:
    world = fleet(machines=1)
    reserve(world, GPUS[5], in_ms=10 * HOUR_MS)
    reserve(world, GPUS[3], in_ms=14 * HOUR_MS)
    long = 8 * HOUR_MS
    assert "promised to 1 others" in refused(world, GPUS[4], in_ms=9 * HOUR_MS, length_ms=long).message
    reserve(world, GPUS[3], in_ms=9 * HOUR_MS, length_ms=long)


def test_create_reservation_machine_that_another_could_break_is_not_promised() -> None:
    """Whether the small one will lie on the large machine or the small is decided later."""
    world = World()
    world.worker(count=8)
    world.worker(count=2)
    reserve(world, GPUS[2])
    assert "and 8 cannot be promised beside them in every case" in refused(world, GPUS[8]).message
    reserve(world, GPUS[6])


def test_create_reservation_breaking_what_another_counts_on_is_refused() -> None:
    world = World()
    world.worker(count=8)
    world.worker(count=2)
    reserve(world, GPUS[7])
    assert "and 2 cannot be promised" not in refused(world, GPUS[2]).message
    assert "could not be sure of theirs any more with 2 of them gone" in refused(world, GPUS[2]).message
    reserve(world, GPUS[1])
    reserve(world, GPUS[2], in_ms=3 * HOUR_MS)


def test_create_reservation_other_model_does_not_compete() -> None:
    world = World()
    world.worker("RTX4090", 4)
    world.worker("RTX3060", 4)
    reserve(world, Requirements(gpus=4, gpu_model="RTX4090"))
    reserve(world, Requirements(gpus=4, gpu_model="RTX3060"))
    assert "promised to 2 others" in refused(world, GPUS[1]).message


def test_create_reservation_machine_of_one_place_is_broken_by_one_device() -> None:
    world = World()
    world.worker(count=4, slots=1)
    reserve(world, GPUS[1])
    assert "promised" in refused(world, GPUS[1]).message
    world.worker(count=4, slots=4)
    reserve(world, GPUS[3])


def test_create_reservation_gang_needs_one_ground_and_a_head_slot() -> None:
    world = World()
    for zone in ("home", "home", "attic"):
        world.worker(count=2, zone=zone)
    assert "no head slot for 4" in refused(world, GPUS[4]).message
    world.head_host(1)
    reserve(world, GPUS[4])
    assert "promised" in refused(world, Requirements(gpus=2, gpus_per_worker=1)).message
    five = refused(world, Requirements(gpus=5), in_ms=5 * HOUR_MS)
    assert "6 fitting devices serve then, at most 4 of them together, and 5 are asked for" in five.message
    reserve(world, GPUS[2], in_ms=5 * HOUR_MS)


def test_create_reservation_gangs_have_a_head_slot_each() -> None:
    world = World()
    for _ in range(4):
        world.worker(count=2)
    world.head_host(1)
    reserve(world, GPUS[4])
    assert "cannot be promised beside them" in refused(world, GPUS[4]).message
    world.head_host(1)
    reserve(world, GPUS[4])


def test_create_reservation_gang_each_machine_brings_whole_lots() -> None:
    world = World()
    world.head_host(1)
    world.worker(count=4)
    lots = Requirements(gpus=4, gpus_per_worker=2)
    assert "no head slot for 4 of them on several" in refused(world, lots).message
    world.worker(count=4)
    world.worker(count=4)
    reserve(world, lots, tenant="beta")
    reserve(world, GPUS[1])
    assert "any more" in refused(world, GPUS[1]).message


def test_create_reservation_lost_worker_does_not_count() -> None:
    world = fleet(machines=1)
    worker_id = next(iter(world.state.workers))
    world.do(m.DrainWorker(worker_id))
    assert "0 fitting devices serve then" in refused(world, GPUS[1]).message


# ------------------------------------------------------------ the end


def test_reservation_unused_ends_after_the_grace_and_used_with_its_window() -> None:
    world = fleet()
    idle = reserve(world, GPUS[1], in_ms=HOUR_MS)
    used = reserve(world, GPUS[1], in_ms=HOUR_MS)
    job_id = submit_to(world, used)
    world.live_on(HOUR_MS)
    world.plan()
    assert world.state.jobs[job_id].attempt_id is not None
    world.live_on(POLICY.claim_grace_ms - MINUTE_MS)
    assert again(world, idle).booked
    world.live_on(MINUTE_MS)
    assert (again(world, idle).phase, again(world, used).booked) == (ReservationPhase.UNUSED, True)
    assert again(world, used).used
    world.live_on(HOUR_MS - POLICY.claim_grace_ms)
    assert again(world, used).phase is ReservationPhase.OVER
    assert not world.state.jobs[job_id].status.terminal, "its job goes on"


def test_reservation_whose_jobs_wait_for_machines_is_not_unused() -> None:
    world = fleet(machines=1)
    one = reserve(world, GPUS[8], in_ms=0)
    submit_to(world, one, GPUS[8])
    world.live_on(POLICY.claim_grace_ms + MINUTE_MS)
    assert again(world, one).booked
    world.live_on(HOUR_MS)
    assert again(world, one).phase is ReservationPhase.OVER


def test_cancel_reservation_twice_changes_nothing_and_its_jobs_wait_as_any_others() -> None:
    world = fleet()
    one = reserve(world, GPUS[1], in_ms=HOUR_MS)
    first, second = world.submit(), submit_to(world, one)
    state = world.state
    assert "waiting for its reservation" in world.job(second).message
    assert state.jobs_before(state.jobs[second]) == 0
    assert world.do(m.CancelReservation(one.reservation_id)).result == ReservationPhase.CANCELLED
    version = state.version
    assert world.do(m.CancelReservation(one.reservation_id)).result == ReservationPhase.CANCELLED
    assert state.version == version
    assert [job_id for _, _, job_id in state.queues[world.tenant()]] == [first, second]
    assert "reservation" not in world.job(second).message
    world.plan()
    assert state.jobs[second].attempt_id is not None
    with pytest.raises(RefusedError, match="no reservation named 'rsv_gone'"):
        world.do(m.CancelReservation(ReservationId("rsv_gone")))


def test_create_and_cancel_without_end_keeps_only_the_newest_of_a_tenant() -> None:
    world = World(Policies(reservations=ReservationPolicy(ended_of_tenant_max=3)))
    world.worker()
    other = reserve(world, tenant="beta")
    world.do(m.CancelReservation(other.reservation_id))
    made = []
    for _ in range(6):
        made.append(reserve(world))
        world.do(m.CancelReservation(made[-1].reservation_id))
        world.forward(1)
    kept = set(world.state.reservations) - {other.reservation_id}
    assert kept == {one.reservation_id for one in made[-4:]}, "the last one had not ended when it was made"
    assert other.reservation_id in world.state.reservations


def test_reservation_ended_is_forgotten_after_a_month_and_its_name_is_free_at_once() -> None:
    world = fleet()
    one = reserve(world, name="nightly", in_ms=HOUR_MS)
    world.do(m.CancelReservation(one.reservation_id))
    other = reserve(world, name="nightly", in_ms=HOUR_MS)
    assert other.reservation_id != one.reservation_id
    world.do(m.CancelReservation(other.reservation_id))
    world.tick(POLICY.shown_ms - 1)
    assert len(world.state.reservations) == 2
    world.tick(1)
    assert world.state.reservations == {}
    assert world.state.bookings.due(1 << 60) == []


# ------------------------------------------------------------ jobs that name one


def test_submit_unknown_reservation_is_refused_with_the_nearest_of_its_own() -> None:
    world = fleet()
    with pytest.raises(RefusedError, match="'nightly': you have none"):
        submit_to(world, "nightly")
    reserve(world, name="nightly")
    theirs = reserve(world, name="theirs", tenant="beta")
    with pytest.raises(
        RefusedError, match="no reservation named 'nihgtly': did you mean 'nightly'"
    ) as caught:
        submit_to(world, "nihgtly")
    assert caught.value.field == "orch.reservation"
    for name in ("theirs", theirs.reservation_id):
        with pytest.raises(RefusedError, match="did you mean 'nightly'"):
            submit_to(world, name)


def test_submit_ended_reservation_says_that_it_has_ended() -> None:
    world = fleet()
    one = reserve(world)
    world.do(m.CancelReservation(one.reservation_id))
    with pytest.raises(RefusedError, match=r"has ended \(cancelled\) at 20"):
        submit_to(world, one.reservation_id)


def test_submit_repeated_after_the_end_is_still_the_same_job() -> None:
    world = fleet()
    one = reserve(world)
    job_id = submit_to(world, one)
    world.do(m.CancelReservation(one.reservation_id))
    job = world.state.jobs[job_id]
    request = replace(job.request, reservation_id=None)
    same = m.SubmitJob(
        job_id, job.tenant_id, job.submission_id, request, sha(job.submission_id[4:]), one.name
    )
    assert world.do(same) == m.Decision((), job_id)


def test_submit_by_id_is_the_same_as_by_name() -> None:
    world = fleet()
    one = reserve(world, name="nightly")
    job_id = submit_to(world, one.reservation_id)
    assert world.state.jobs[job_id].request.reservation_id == one.reservation_id


KEPT = Requirements(
    gpus=4,
    gpu_model="RTX4090",
    hardware_class=HardwareClass.CONSUMER,
    isolation=Isolation.BOX,
    min_compute_capability=809,
    region="eu",
    max_price=500_000,
    min_reliability_bp=9_000,
    max_rtt_ms=20,
    gpus_per_worker=2,
    min_bandwidth_mbps=100,
)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"gpus": 1, "gpu_model": None, "hardware_class": None, "region": "", "max_price": 0, "max_rtt_ms": 0},
        {"min_gpu_memory_gb": 24, "min_reliability_bp": 8_000, "gpus_per_worker": 1, "max_rtt_ms": 30},
        {"gpus": 2, "one_machine": True, "gpus_per_worker": 0, "isolation": Isolation.NONE},
        {"runtime": "a" * 64, "max_price": 600_000, "driver_cpus": 4},
    ],
)
def test_contradiction_weaker_requests_have_none(changed: dict[str, object]) -> None:
    assert contradiction(replace(KEPT, **changed), KEPT) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"gpus": 5}, "orch.gpus"),
        ({"gpus": 0}, "orch.gpus"),
        ({"gpu_model": "H100"}, "orch.gpu_model"),
        ({"hardware_class": HardwareClass.MINER}, "orch.hardware_class"),
        ({"region": "us"}, "orch.region"),
        ({"min_gpu_memory_gb": 25}, "orch.min_gpu_memory_gb"),
        ({"min_compute_capability": 900}, "orch.min_compute_capability"),
        ({"min_reliability_bp": 9_001}, "orch.min_reliability"),
        ({"min_bandwidth_mbps": 101}, "orch.min_bandwidth_mbps"),
        ({"min_evidence": EvidenceClass.T2}, "orch.evidence"),
        ({"isolation": Isolation.CONTAINER}, "orch.isolation"),
        ({"committed": True}, "orch.tier"),
        ({"max_price": 499_999}, "orch.max_price"),
        ({"max_rtt_ms": 19}, "orch.max_rtt_ms"),
        ({"gpus_per_worker": 4}, "orch.gpus_per_worker"),
        ({"one_machine": True}, "entrypoint_num_gpus"),
    ],
)
def test_contradiction_of_what_is_not_promised_names_the_key(changed: dict[str, object], key: str) -> None:
    fault = contradiction(replace(KEPT, **changed), KEPT)  # type: ignore[arg-type]
    assert fault is not None
    assert fault[0] == key


def test_contradiction_of_a_reservation_of_anything_names_what_is_asked() -> None:
    anything = Requirements(gpus=4)
    for asked in (KEPT, Requirements(max_price=1), Requirements(region="eu"), Requirements(runtime="a" * 64)):
        assert contradiction(asked, anything) is not None


def test_submit_contradiction_is_refused_in_words() -> None:
    world = fleet()
    one = reserve(world, GPUS[2], name="nightly")
    with pytest.raises(RefusedError) as caught:
        submit_to(world, one, GPUS[4])
    assert (
        caught.value.message
        == "orch.gpus=4 is more than there is in reservation 'nightly' of 2 × GPU together"
    )


# ------------------------------------------------------------ words


def test_window_words_leave_out_what_is_said_twice() -> None:
    day = 1_796_083_200_000
    assert window_words(day, day + HOUR_MS) == "from 2026-12-01 00:00 to 01:00 UTC"
    assert window_words(day, day + 25 * HOUR_MS) == "from 2026-12-01 00:00 to 2026-12-02 01:00 UTC"
    assert window_words(day + 1_000, day + HOUR_MS) == "from 2026-12-01 00:01 to 01:00 UTC"


def test_tenant_standing_counts_jobs_of_reservations() -> None:
    world = fleet()
    submit_to(world, reserve(world, in_ms=HOUR_MS))
    world.submit()
    tenant = world.state.tenants[world.tenant()]
    assert tenant_standing(world.state, tenant, world.at_ms).jobs_queued == 2


def test_reservation_job_stopped_while_it_waits_leaves_its_queue() -> None:
    world = fleet()
    one = reserve(world, in_ms=HOUR_MS)
    job_id = submit_to(world, one)
    world.do(m.StopJob(job_id))
    assert world.state.jobs[job_id].status is JobStatus.STOPPED
    assert world.state.bookings.queues == {}


def test_window_beyond_any_calendar_is_refused_in_words() -> None:
    world = fleet()
    far_ms = 253_402_300_770_000
    command = m.CreateReservation(
        ReservationId("rsv"), world.tenant(), "far", GPUS[1], far_ms, far_ms + HOUR_MS, "x"
    )
    with pytest.raises(RefusedError, match="ahead"):
        world.do(command)
