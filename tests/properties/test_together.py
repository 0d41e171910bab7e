"""Everything that makes somebody wait, at once: reservations, promises, preemption, quotas, priorities, limits, reclaims.

Each is tested alone elsewhere; here they meet on the same few machines.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core import messages as m
from orchestrator.core.errors import RefusedError
from orchestrator.core.ids import JobId
from orchestrator.core.jobs import JobPolicy, Requirements
from orchestrator.core.policies import Policies
from orchestrator.core.queries.explain import explain
from orchestrator.core.queries.queue import Queue
from orchestrator.core.scheduling.placement import Budget, Plan
from orchestrator.core.scheduling.plan import plan
from orchestrator.core.state import State
from orchestrator.core.supply.holds import HoldKind
from orchestrator.core.tenancy.quotas import Quota
from orchestrator.sim.checks import check_nominations, check_promises
from tests.core.booking import HOUR_MS, reserve
from tests.core.fleets import let_go, placed_jobs
from tests.core.preemptions import POLICY, settle
from tests.core.worlds import World, request, sha
from tests.properties.stories import check_held
from tests.properties.test_scheduling import check_together

QUICK = replace(
    POLICY, wait_ms=1_000, wait_for_share_ms=10_000, run_ms_min=1_000, protected_ms=5_000, per_hour_max=100
)
POLICIES = Policies(jobs=JobPolicy(overtaken_max=1), preemption=QUICK)
TENANTS = ("acme", "birch", "cedar", "delta")
WANTED = (
    Requirements(),
    Requirements(gpus=2),
    Requirements(gpus=3),
    Requirements(gpus=2, one_machine=True),
    Requirements(gpus=4, gpus_per_worker=2),
    Requirements(gpus=2, gpus_per_worker=1),
)
STEPS = (
    *("submit",) * 5, *("end", "wait") * 3, *("book", "start", "settle") * 2,
    "reserve", "reclaim", "lift", "quota",
)  # fmt: skip
STEPS_EACH = 40


def fleet_of(chance: Random) -> World:
    world = World(POLICIES)
    world.head_host(chance.randint(1, 3))
    for _ in range(chance.randint(1, 4)):
        model = chance.choice(("RTX4090", "RTX4090", "RTX3090"))
        world.worker(model, chance.randint(1, 4), slots=chance.choice((None, None, 1, 2)))
    return world


def step(world: World, chance: Random, kind: str) -> None:
    """Something happens; what is refused changes nothing."""
    wanted = chance.choice(WANTED)
    match kind:
        case "submit" | "book":
            submit(world, chance, wanted, booked=kind == "book")
        case "reserve":
            in_ms = chance.choice((0, HOUR_MS // 2, HOUR_MS, 3 * HOUR_MS))
            length_ms = chance.choice((HOUR_MS, 3 * HOUR_MS))
            reserve(world, wanted, tenant=chance.choice(TENANTS), in_ms=in_ms, length_ms=length_ms)
        case "end":
            if placed := placed_jobs(world):
                let_go(world, chance.choice(placed))
        case "start":
            world.reports()
            for job_id in placed_jobs(world):
                if world.cluster(job_id).phase == "ready" and world.attempt(job_id).started_at_ms is None:
                    world.start(job_id)
        case "settle":
            settle(world)
        case "wait":
            world.live_on(chance.choice((2_000, 30_000, 120_000, 700_000)), step_ms=20_000)
        case "reclaim":
            worker_id = chance.choice(list(world.state.workers))
            notice_ms = chance.choice((0, 60_000))
            world.do(m.ReclaimWorker(worker_id, HoldKind.RECLAIMED, "mine", notice_ms))
        case "lift":
            for worker_id in list(world.state.workers):
                world.do(m.LiftHold(worker_id, HoldKind.RECLAIMED))
        case "quota":
            tenant = world.state.tenants[world.tenant(chance.choice(TENANTS))]
            world.state.put(replace(tenant, quota=Quota(gpus=chance.choice((None, 2, 4)))))


def submit(world: World, chance: Random, wanted: Requirements, *, booked: bool) -> None:
    tenant, name, reservation = chance.choice(TENANTS), world.name("job"), ""
    if booked:
        known = list(world.state.bookings.booked.values())
        if not known:
            return
        one = chance.choice(known)
        tenant, reservation = world.state.tenants[one.tenant_id].name, one.name
    limit_ms = chance.choice((0, 0, 600_000, HOUR_MS, 5 * HOUR_MS))
    asked = request(wanted, priority=chance.randint(0, 3), time_limit_ms=limit_ms)
    asked = replace(asked, interruptible=chance.random() < 0.6)
    tenant_id = world.tenant(tenant)
    world.do(m.SubmitJob(JobId(name), tenant_id, f"sub-{name}", asked, sha(name), reservation))


def check_plan(state: State, made: Plan) -> None:
    """Nothing is given that somebody else has, nobody gives way who did not say so, and no reservation is broken into."""
    check_together(state, made)
    nominated = {
        (worker_id, one): job_id
        for job_id, nomination in state.watched.nominated.items()
        if nomination.until_ms > state.latest_ms
        for worker_id, device_ids in nomination.devices
        for one in device_ids
    }
    ordered = Counter(
        (share.worker_id, one)
        for order in made.preemptions
        for share in order.shares
        for one in share.device_ids
    )
    assert all(count == 1 for count in ordered.values()), "two jobs are promised what one frees"
    assert not nominated.keys() & ordered.keys(), "what is kept for one job is promised to another"
    for order in made.preemptions:
        for victim in order.victims:
            attempt = state.attempts[victim.attempt_id]
            assert state.jobs[attempt.job_id].request.interruptible
            cluster = state.clusters[attempt.cluster_id]
            assert state.bookings.of(cluster.reservation_id) is None, "a reservation's machines give way"
    for cluster_id in made.closings:
        assert cluster_id not in state.attempt_in, "a cluster closes under a job"


@given(st.integers(0, 2**32))
@settings(max_examples=40)
def test_together_nothing_is_given_twice_and_every_plan_is_settled_and_the_same_again(seed: int) -> None:
    chance = Random(seed)
    world = fleet_of(chance)
    for _ in range(STEPS_EACH):
        try:
            step(world, chance, chance.choice(STEPS))
        except RefusedError:
            continue
        made = plan(world.state, Queue(world.state, world.at_ms), world.at_ms, Budget())
        assert made == plan(world.state, Queue(world.state, world.at_ms), world.at_ms, Budget())
        check_plan(world.state, made)
        world.apply(made)
        check_held(world.state)
        check_nominations(world.state)
        check_promises(world.state)
        again = plan(world.state, Queue(world.state, world.at_ms), world.at_ms, Budget())
        assert not again.preemptions or again.preemptions != made.preemptions, "the same order twice"
        assert again.empty or not made.fruitless, "there is more to do though nothing changed"
    for job in list(world.state.jobs.values()):
        if not job.status.terminal:
            explain(world.state, job, world.at_ms)
