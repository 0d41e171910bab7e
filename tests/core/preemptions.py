"""Worlds in which interruptible jobs run and others wait."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.core import messages as m
from orchestrator.core.ids import JobId
from orchestrator.core.jobs import Requirements
from orchestrator.core.policies import Policies
from orchestrator.core.preemption import PreemptionPolicy
from orchestrator.core.scheduling.placement import Plan
from tests.core.worlds import World, request, sha

POLICY = PreemptionPolicy(
    notice_ms=60_000,
    wait_ms=30_000,
    wait_for_share_ms=200_000,
    run_ms_min=100_000,
    protected_ms=600_000,
    per_hour_max=2,
)
POLICIES = Policies(preemption=POLICY)


def submit(
    world: World,
    wanted: Requirements | None = None,
    *,
    tenant: str = "acme",
    priority: int = 0,
    interruptible: bool = True,
    max_attempts: int = 3,
) -> JobId:
    tenant_id, name = world.tenant(tenant), world.name("job")
    asked = replace(
        request(wanted, priority=priority, max_attempts=max_attempts), interruptible=interruptible
    )
    return JobId(str(world.do(m.SubmitJob(JobId(name), tenant_id, f"sub-{name}", asked, sha(name))).result))


def run(world: World, job_id: JobId) -> JobId:
    """Place it, form its cluster, and let its driver begin."""
    world.plan()
    world.reports()
    world.start(job_id)
    return job_id


def begin(
    world: World, wanted: Requirements | None = None, *, tenant: str = "acme", priority: int = 0
) -> JobId:
    return run(world, submit(world, wanted, tenant=tenant, priority=priority))


def victims_of(made: Plan) -> set[JobId]:
    """Whose tries a plan has give way."""
    return {JobId(victim.attempt_id.rsplit("-", 1)[0]) for one in made.preemptions for victim in one.victims}


def settle(world: World) -> None:
    """Logs of all that has ended arrive, and the agents report."""
    world.reports()
    for attempt in list(world.state.attempts.values()):
        if attempt.ended_at_ms is not None and not attempt.log_complete:
            world.do(m.CompleteLog(attempt.attempt_id, 100))
    world.reports()


def busy(machines: int = 1, gpus: int = 1, policies: Policies = POLICIES) -> tuple[World, list[JobId]]:
    """Machines that are all in use by interruptible jobs of acme, which have run for long enough."""
    world = World(policies)
    world.head_host(4)
    for _ in range(machines):
        world.worker(count=gpus)
    jobs = [begin(world, Requirements(gpus=gpus)) for _ in range(machines)]
    world.live_on(POLICY.run_ms_min)
    return world, jobs


def urgent(world: World, wanted: Requirements | None = None, *, tenant: str = "acme") -> JobId:
    """A job of higher priority that has waited for as long as it has to."""
    job_id = submit(world, wanted, tenant=tenant, priority=5, interruptible=False)
    world.live_on(POLICY.wait_ms)
    return job_id
