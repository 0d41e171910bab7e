"""What a tenant's quotas leave: money by receipts, what runs as committed, and jobs that begin only where it fits."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.core import messages as m
from orchestrator.core.decisions.operators import find_tenant
from orchestrator.core.ids import JobId, WorkerId
from orchestrator.core.jobs import JobPolicy, Requirements
from orchestrator.core.market.pricing import HOUR_MS
from orchestrator.core.metering import EPOCH_MS
from orchestrator.core.policies import Policies
from orchestrator.core.queries.allowance import standing_of
from orchestrator.core.queries.explain import explain
from orchestrator.core.supply.holds import HoldKind
from orchestrator.core.supply.terms import Ask, Terms
from orchestrator.core.tenancy.quotas import Standing
from tests.core.worlds import World, request, sha

CREDIT = 1_000_000
PRICE = 600_000
"""Of the machines here, per device and hour."""


def priced(world: World, price: int = PRICE, count: int = 1) -> WorkerId:
    worker_id = world.worker(count=count)
    world.do(m.SetTerms(worker_id, Terms(asks=(Ask("RTX4090", price),))))
    return worker_id


def spend(world: World, microcredits: int | None, tenant: str = "acme") -> None:
    world.tenant(tenant)
    world.do(m.SetTenant(tenant, microcredits_per_month=m.QuotaLimit(microcredits)))


def submit(world: World, hours: float = 0.0, gpus: int = 1, tenant: str = "acme") -> JobId:
    """A job that is stopped after so many hours; 0: nobody knows when it ends."""
    name = world.name("job")
    asked = replace(request(Requirements(gpus=gpus)), time_limit_ms=int(hours * HOUR_MS))
    made = world.do(m.SubmitJob(JobId(name), world.tenant(tenant), f"sub-{name}", asked, sha(name)))
    return JobId(str(made.result))


def standing(world: World, tenant: str = "acme") -> Standing:
    return standing_of(world.state, find_tenant(world.state, tenant), world.at_ms)


def money(world: World) -> tuple[int, int]:
    """Spent, and committed."""
    found = standing(world)
    return found.microcredits_spent, found.microcredits_committed


def started(world: World, job_id: JobId) -> JobId:
    """Planned, formed and running."""
    world.plan()
    world.reports()
    world.start(job_id)
    return job_id


def placed(world: World, job_id: JobId) -> bool:
    return world.state.jobs[job_id].attempt_id is not None


def to_the_hour(world: World) -> None:
    world.forward(EPOCH_MS - world.at_ms % EPOCH_MS)


# ------------------------------------------------------------ what is spent


def test_spending_is_what_receipts_say_and_what_has_none_yet_is_committed() -> None:
    world = World()
    priced(world)
    to_the_hour(world)
    job_id = started(world, submit(world))
    (lease,) = world.leases(job_id)
    world.forward(HOUR_MS + HOUR_MS // 2)
    assert money(world) == (0, PRICE + PRICE // 2)
    world.state_time(lease, HOUR_MS + HOUR_MS // 4)
    assert money(world) == (PRICE, PRICE // 2)
    world.finish(job_id)
    assert money(world) == (PRICE, PRICE // 2)
    # The worker states less than the record: what it never stated is not paid.
    world.state_time(lease, HOUR_MS + HOUR_MS // 3, final=True)
    assert money(world) == (PRICE + PRICE // 3, 0)


def test_spending_of_several_devices_for_odd_times_adds_up_without_a_rest() -> None:
    world = World()
    priced(world, 333_331, count=2)
    job_id = started(world, submit(world, gpus=2))
    (lease,) = world.leases(job_id)
    for until_ms in (1_234_567, 3_600_001, 5_000_003, 9_999_999):
        world.forward(3 * HOUR_MS)
        world.state_time(lease, until_ms)
    world.finish(job_id)
    world.state_time(lease, 10_000_019, final=True)
    assert len(world.receipts(lease.lease_id)) > 2
    assert money(world) == (2 * 333_331 * 10_000_019 // HOUR_MS, 0)


def test_spending_keeps_the_price_of_when_the_machines_were_placed() -> None:
    world = World()
    worker_id = priced(world)
    job_id = started(world, submit(world))
    world.do(m.SetTerms(worker_id, Terms(asks=(Ask("RTX4090", 9 * PRICE),))))
    world.forward(2 * HOUR_MS)
    assert money(world) == (0, 2 * PRICE)
    assert world.leases(job_id)[0].microcredits_per_hour == PRICE


def test_spending_of_a_month_past_is_not_of_this_one() -> None:
    world = World()
    priced(world)
    world.tenant()
    month_ms = standing(world).month.end_ms - world.at_ms
    world.forward(month_ms - 2 * HOUR_MS)
    job_id = started(world, submit(world))
    (lease,) = world.leases(job_id)
    world.forward(3 * HOUR_MS)
    assert money(world) == (0, PRICE)
    world.state_time(lease, 3 * HOUR_MS)
    assert money(world) == (PRICE, 0)


def test_spending_on_a_machine_that_is_mistrusted_ends_with_what_was_sealed() -> None:
    world = World()
    worker_id = priced(world)
    to_the_hour(world)
    job_id = started(world, submit(world))
    world.forward(2 * HOUR_MS)
    world.state_time(world.leases(job_id)[0], HOUR_MS)
    world.do(m.PlaceHold(worker_id, HoldKind.REVOKED, "caught"))
    assert money(world) == (PRICE, 0)


# ------------------------------------------------------------ who may begin


def test_quota_job_without_a_limit_begins_while_anything_is_left_and_then_waits() -> None:
    world = World()
    for _ in range(3):
        priced(world)
    spend(world, 1)
    first = started(world, submit(world))
    second = submit(world)
    world.plan()
    assert placed(world, second)
    world.forward(HOUR_MS)
    third = submit(world)
    assert world.plan().placements == ()
    said = world.job(third).message
    assert "the quota of 0.000001 credits a month leaves 0 of" in said
    assert "as 0 are spent and 0.6 committed" in said
    assert world.state.jobs[first].status == "RUNNING", "who runs is not stopped"
    world.state.waiting.clear()
    found = explain(world.state, world.state.jobs[third], world.at_ms)
    assert found.wait is not None
    assert found.wait.reason == said, "a query and a plan refuse in the same words"


def test_quota_job_with_a_limit_needs_all_of_what_it_may_spend() -> None:
    world = World()
    priced(world)
    spend(world, 2 * PRICE)
    long, short = submit(world, hours=2.01), submit(world, hours=2)
    world.plan()
    assert (placed(world, long), placed(world, short)) == (False, True)
    spend(world, 3 * PRICE)
    spend(world, 2 * PRICE, "beta")
    theirs = submit(world, hours=4, tenant="beta")
    priced(world)
    world.plan()
    said = world.job(theirs).message
    assert "the machines that would serve it cost 0.6 credits an hour" in said
    assert "leaves 0.3 an hour" in said.replace(" credits an hour: ", " an hour: ")
    spend(world, 4 * PRICE, "beta")
    world.plan()
    assert placed(world, theirs)


def test_quota_counts_jobs_of_the_same_plan_and_those_that_form_or_run() -> None:
    world = World()
    for _ in range(4):
        priced(world)
    spend(world, 3 * PRICE)
    jobs = [submit(world, hours=2) for _ in range(2)]
    world.plan()
    assert [placed(world, one) for one in jobs] == [True, False]
    assert money(world) == (0, 2 * PRICE)
    world.plan()
    world.reports()
    world.start(jobs[0])
    assert money(world) == (0, 2 * PRICE)
    world.forward(HOUR_MS)
    assert money(world) == (0, 2 * PRICE)
    world.plan()
    assert not placed(world, jobs[1])
    world.finish(jobs[0])
    world.state_time(world.leases(jobs[0])[0], HOUR_MS, final=True)
    world.plan()
    assert placed(world, jobs[1]), "what the first did not use is there for the second"


def test_quota_of_gpu_hours_counts_time_limits() -> None:
    world = World()
    for _ in range(2):
        priced(world)
    world.tenant()
    world.do(m.SetTenant("acme", gpu_ms_per_month=m.QuotaLimit(3 * HOUR_MS)))
    first, second = submit(world, hours=2), submit(world, hours=2)
    world.plan()
    assert (placed(world, first), placed(world, second)) == (True, False)
    assert "leaves 1 of" in world.job(second).message
    assert "0 are used and 2 committed, and 2 are asked for" in world.job(second).message
    started(world, first)
    world.forward(HOUR_MS)
    found = standing(world)
    assert (found.gpu_ms_used, found.gpu_ms_committed) == (HOUR_MS, HOUR_MS)


def test_quota_warm_cluster_that_is_too_dear_is_not_used() -> None:
    world = World()
    dear = priced(world, 10 * PRICE)
    first = started(world, submit(world))
    world.finish(first)
    priced(world)
    world.state_time(world.leases(first)[0], 0, final=True)
    spend(world, 2 * PRICE)
    job_id = submit(world, hours=2)
    world.plan()
    assert placed(world, job_id)
    assert world.members(job_id)[0].worker_id != dear


def test_quota_that_holds_a_job_back_lets_nobody_overtake_it() -> None:
    world = World(Policies(jobs=JobPolicy(overtaken_max=1)))
    for _ in range(2):
        priced(world)
    spend(world, PRICE)
    held = submit(world, hours=4)
    world.forward(1)
    other = submit(world, tenant="beta")
    world.plan()
    assert (placed(world, held), placed(world, other)) == (False, True)
    assert world.state.jobs[held].overtaken == 0
