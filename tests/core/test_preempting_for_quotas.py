"""Lower work gives way to a job that its tenant's quota of GPUs keeps waiting."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.core.jobs import Requirements
from orchestrator.core.tenancy.quotas import Quota
from tests.core.preemptions import POLICY, begin, busy, settle, submit, urgent, victims_of
from tests.core.worlds import World


def with_gpus_at_most(world: World, gpus: int) -> None:
    tenant_id = world.tenant("acme")
    world.state.put(replace(world.state.tenants[tenant_id], quota=Quota(gpus=gpus)))


def test_quota_of_gpus_that_lower_work_fills_is_given_to_the_higher_one_wherever_that_runs() -> None:
    world, (first, second) = busy(machines=2)
    world.worker(count=2, model="RTX3090")
    with_gpus_at_most(world, 2)
    high = urgent(world, Requirements(gpus=2, one_machine=True))
    made = world.plan()
    assert victims_of(made) == {first, second}, "neither runs where the job will"
    assert world.plan().preemptions == (), "what it waits for is on its way"
    world.live_on(POLICY.notice_ms)
    settle(world)
    world.plan()
    assert world.job(high).attempt_id is not None
    assert world.job(first).attempt_id is None, "the quota is full again"


def test_quota_of_gpus_asks_only_as_many_to_go_as_it_takes_and_those_with_least_to_lose() -> None:
    world, (first, *_) = busy(machines=2)
    world.worker()
    with_gpus_at_most(world, 3)
    third = begin(world)
    world.live_on(POLICY.run_ms_min)
    world.worker()
    made_for = urgent(world)
    made = world.plan()
    assert victims_of(made) == {third}
    assert world.job(made_for).message.startswith("waiting for 1 × GPU: an interruptible job gives way")
    assert world.job(first).attempt_id is not None


def test_quota_of_gpus_that_nobody_may_leave_keeps_the_job_waiting_in_the_quotas_words() -> None:
    world, _ = busy()
    world.worker()
    with_gpus_at_most(world, 1)
    equal = submit(world, priority=0)
    world.live_on(POLICY.wait_ms)
    assert world.plan().preemptions == ()
    assert "the quota of 1 GPUs at once leaves 0" in world.job(equal).message


def test_quota_of_a_month_has_nobody_give_way() -> None:
    world, _ = busy()
    tenant_id = world.tenant("acme")
    world.state.put(replace(world.state.tenants[tenant_id], quota=Quota(gpus=1, gpu_ms_per_month=1)))
    urgent(world)
    assert world.plan().preemptions == ()
