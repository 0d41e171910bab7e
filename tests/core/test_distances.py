"""A bound on round trips that nothing meets: what the tenant is told is near enough, and which bound would do."""

from __future__ import annotations

import zlib
from itertools import combinations

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from orchestrator.core.gangs.choosing import NoGang
from orchestrator.core.ids import JobId, WorkerId
from orchestrator.core.jobs import Pattern
from orchestrator.core.queries.explain import explain
from orchestrator.core.scheduling.distance import WIDENED_MAX, nearness_change
from orchestrator.core.scheduling.shortage import Change
from tests.core.test_assembling import fleet, tell, wanted, who
from tests.core.worlds import World

KEY = "orch.max_rtt_ms"


def said(world: World, job_id: JobId) -> str:
    """Its message without what it says of the head host."""
    return world.job(job_id).message.removesuffix("; workers left out: 1 offers no device")


def changes_of(world: World, job_id: JobId) -> tuple[Change, ...]:
    found = explain(world.state, world.state.jobs[job_id], world.at_ms)
    assert found.wait is not None
    return found.wait.changes


def test_waiting_says_how_much_is_near_enough_and_what_would_do() -> None:
    world, workers = fleet(4, gpus=4)
    apart = {3: 39, 2: 12, 1: 11}
    tell(
        world,
        {
            (workers[i], workers[j]): apart[3] if 3 in (i, j) else apart[j - i]
            for i, j in combinations(range(4), 2)
        },
    )
    job_id = world.submit(wanted(16))
    assert world.plan().pairs == ()
    assert said(world, job_id).endswith("; 12 of 16 GPUs within 20 ms; 39 ms would do")
    assert changes_of(world, job_id) == (Change(KEY, f"12 of 16 GPUs within 20 ms; {KEY}=39 would do"),)
    nearer = world.submit(wanted(16, 38), tenant="nearer")
    assert world.plan().placements == ()
    told = world.submit(wanted(16, 39), tenant="told")
    assert [one.job_id for one in world.plan().placements] == [told]
    assert world.job(nearer).attempt_id is None
    assert who(world, told) == set(workers)


def test_waiting_for_measurements_says_so_and_promises_nothing() -> None:
    world, _ = fleet(4)
    job_id = world.submit(wanted(3))
    assert world.plan().pairs
    assert said(world, job_id).endswith("the round trips between 3 machines are being measured")
    assert changes_of(world, job_id) == ()


def test_waiting_counts_devices_where_each_machine_brings_so_many() -> None:
    world, workers = fleet(3, gpus=2)
    tell(world, dict.fromkeys(combinations(workers, 2), 30))
    job_id = world.submit(wanted(6, gpus_per_worker=2))
    world.plan()
    assert said(world, job_id).endswith("2 of 6 GPUs within 20 ms; 30 ms would do")


def test_waiting_for_machines_that_never_answer_has_no_bound_that_would_do() -> None:
    world, workers = fleet(2)
    tell(world, dict.fromkeys(combinations(workers, 2), 10_000))
    job_id = world.submit(wanted(2))
    world.plan()
    assert said(world, job_id).endswith("1 of 2 GPUs within 20 ms")
    assert changes_of(world, job_id) == (
        Change(KEY, "1 of 2 GPUs within 20 ms; no bound that would do is known"),
    )


def test_waiting_where_machines_have_no_overlay_says_that_the_bound_is_in_the_way() -> None:
    world = World()
    world.head_host()
    for _ in range(3):
        world.worker()
    job_id = world.submit(wanted(3, isolation="none"))
    world.plan()
    assert "at most 1 of them in one class, runtime and overlay" in world.job(job_id).message
    assert changes_of(world, job_id) == (
        Change(KEY, f"without {KEY}: 3 fitting devices are free together, enough to start"),
    )
    unbounded = world.submit(wanted(3, 0, isolation="none"), tenant="unbounded")
    world.plan()
    assert world.job(unbounded).attempt_id is not None


def test_plan_looks_for_what_would_do_for_a_few_requests_only() -> None:
    world, workers = fleet(3)
    tell(world, dict.fromkeys(combinations(workers, 2), 40))
    jobs = [world.submit(wanted(3, bound), tenant=f"t{bound}") for bound in (10, 11, 12)]
    world.plan()
    told = [world.job(job_id).message for job_id in jobs]
    assert all("1 of 3 GPUs within" in message for message in told)
    assert sum("40 ms would do" in message for message in told) == WIDENED_MAX


def test_change_that_rests_on_predictions_says_so() -> None:
    found = NoGang(16, 12, 20_000, 40_000, would_do_measured=False)
    assert found.says == "12 of 16 GPUs within 20 ms; 40 ms would do, by what is predicted"
    assert nearness_change(found).says == (
        f"12 of 16 GPUs within 20 ms; {KEY}=40 would do, by what is predicted of the pairs that nobody measured"
    )


@given(
    st.integers(2, 9),
    st.integers(1, 3),
    st.integers(2, 8),
    st.sampled_from([5, 20, 60]),
    st.sampled_from(Pattern),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_bound_that_is_told_places_the_job_at_once_and_nothing_less_does(
    count: int, each: int, gpus: int, bound_ms: int, pattern: Pattern, seed: int
) -> None:
    """All pairs were measured, so what is told is certain: for so few machines the least whole milliseconds."""

    def distance(one: WorkerId, other: WorkerId) -> int:
        low, high = sorted((one, other))
        return 1 + zlib.crc32(f"{low} {high} {seed}".encode()) % 80

    def placed(bound: int) -> bool:
        world, workers = fleet(count, each)
        tell(world, {pair: distance(*pair) for pair in combinations(workers, 2)})
        job_id = world.submit(wanted(gpus, bound, pattern=pattern))
        world.plan()
        return world.job(job_id).attempt_id is not None

    world, workers = fleet(count, each)
    tell(world, {pair: distance(*pair) for pair in combinations(workers, 2)})
    job_id = world.submit(wanted(gpus, bound_ms, pattern=pattern))
    world.plan()
    assume(world.job(job_id).attempt_id is None and gpus <= count * each)
    (change,) = changes_of(world, job_id)
    within, _, told = change.says.partition(f"; {KEY}=")
    would_do = int(told.removesuffix(" would do"))
    assert f"{within}; {would_do} ms would do" in world.job(job_id).message
    assert would_do > bound_ms
    assert placed(would_do)
    assert not placed(would_do - 1)
    near = int(within.split()[0])
    assert 0 < near < gpus
    world, workers = fleet(count, each)
    tell(world, {pair: distance(*pair) for pair in combinations(workers, 2)})
    fewer = world.submit(wanted(near, bound_ms, pattern=pattern))
    world.plan()
    assert world.job(fewer).attempt_id is not None
