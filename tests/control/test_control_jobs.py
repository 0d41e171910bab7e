from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.control.jobs_port import ControlJobs
from orchestrator.core import messages as m
from orchestrator.core.errors import RefusalCode
from orchestrator.core.ids import AttemptId, TenantId
from orchestrator.core.jobs import JobStatus, Outcome
from orchestrator.core.supply.fleet import TokenRole
from orchestrator.gateway.ports import Submission
from tests.control.house import DEADLINE_S, House, Puppet, house
from tests.gateway.jobs_contract import JobsPortContract, World, refused

OUTCOMES = {JobStatus.SUCCEEDED: Outcome.SUCCEEDED, JobStatus.FAILED: Outcome.FAILED}


@dataclass
class ControlWorld:
    """The contract's hands, on the real control plane."""

    house: House
    puppet: Puppet
    secret: str
    other_secret: str

    @property
    def jobs(self) -> ControlJobs:
        return self.house.plane.jobs

    async def run(self, tenant_id: TenantId, submission_id: str) -> None:
        job = await self.jobs.job(tenant_id, submission_id)
        await self.puppet.until(lambda state: state.jobs[job.job_id].status is JobStatus.RUNNING)

    async def write_log(self, tenant_id: TenantId, submission_id: str, data: bytes) -> None:
        attempt_id = await self.attempt(tenant_id, submission_id)
        size = self.house.plane.logs.size_bytes(attempt_id)
        stored = await self.house.plane.logs.ship(self.puppet.worker_id, attempt_id, size, data, final=False)
        assert stored == (size + len(data), False)

    async def end(self, tenant_id: TenantId, submission_id: str, status: JobStatus, exit_code: int) -> None:
        attempt_id = await self.attempt(tenant_id, submission_id)
        self.puppet.ended[attempt_id] = (OUTCOMES[status], exit_code)
        await self.puppet.until(lambda state: state.jobs[state.attempts[attempt_id].job_id].status == status)
        size = self.house.plane.logs.size_bytes(attempt_id)
        stored = await self.house.plane.logs.ship(self.puppet.worker_id, attempt_id, size, b"", final=True)
        assert stored == (size, True)

    async def attempt(self, tenant_id: TenantId, submission_id: str) -> AttemptId:
        job = await self.jobs.job(tenant_id, submission_id)
        assert job.attempt_id is not None
        return job.attempt_id


@pytest.fixture
async def real(tmp_path: Path) -> AsyncIterator[ControlWorld]:
    async with house(tmp_path) as built:
        _, secret = await built.tenant("one")
        _, other = await built.tenant("two")
        yield ControlWorld(built, await Puppet.join(built), secret, other)


class TestControlJobs(JobsPortContract):
    @pytest.fixture
    async def world(self, real: ControlWorld) -> World:
        return real


async def test_authenticate_operator_token_is_forbidden(real: ControlWorld) -> None:
    with refused(RefusalCode.FORBIDDEN) as caught:
        await real.jobs.authenticate(await real.house.token(TokenRole.OPERATOR, ""))
    assert "role is operator" in caught.value.message


async def test_authenticate_revoked_token_is_forbidden(real: ControlWorld) -> None:
    token_id = await real.house.plane.loop.read(
        lambda state: next(one.token_id for one in state.tokens.values() if one.role is TokenRole.TENANT)
    )
    await real.house.plane.loop.submit(m.RevokeToken(token_id))
    with refused(RefusalCode.FORBIDDEN):
        await real.jobs.authenticate(real.secret)


async def test_submit_entrypoint_too_long_is_invalid_by_name(real: ControlWorld) -> None:
    tenant = await real.jobs.authenticate(real.secret)
    with refused(RefusalCode.INVALID) as caught:
        await real.jobs.submit(tenant, Submission("x" * 70_000))
    assert caught.value.field == "entrypoint"


@pytest.mark.parametrize("installer", ["pip", "uv"])
async def test_submit_install_without_a_box_is_refused(real: ControlWorld, installer: str) -> None:
    """It would go into the Python of the machine's owner, and stay there."""
    tenant = await real.jobs.authenticate(real.secret)
    runtime_env = {installer: {"packages": ["tiny"]}}
    for isolation in ("none", "NONE "):
        with refused(RefusalCode.INVALID) as caught:
            await real.jobs.submit(
                tenant,
                Submission("true", runtime_env=runtime_env, metadata={"orch.isolation": isolation}),
            )
        assert caught.value.field == f"runtime_env['{installer}']"
        assert "needs a box" in caught.value.message
    boxed = await real.jobs.submit(tenant, Submission("true", runtime_env=runtime_env))
    assert json.loads(boxed.request.runtime_env_json) == runtime_env


async def test_follow_log_tried_again_goes_on_with_the_new_attempt(real: ControlWorld) -> None:
    """The ground fails under a running job: the tail stays open and goes on with the next try."""
    tenant = await real.jobs.authenticate(real.secret)
    submitted = await real.jobs.submit(tenant, Submission("true", "mine"))
    await real.run(tenant, "mine")
    first = await real.attempt(tenant, "mine")
    pieces: list[bytes] = []

    async def follow() -> None:
        pieces.extend([piece async for piece in real.jobs.follow_log(tenant, "mine")])

    async with asyncio.timeout(DEADLINE_S):
        following = asyncio.create_task(follow())
        await real.write_log(tenant, "mine", b"first try\n")
        real.puppet.ended[first] = (Outcome.GROUND, 0)
        await real.puppet.until(lambda state: state.jobs[submitted.job_id].starts == 2)
        assert not following.done()
        await real.write_log(tenant, "mine", b"second try\n")
        await real.end(tenant, "mine", JobStatus.SUCCEEDED, 0)
        await following
    assert b"".join(pieces) == b"first try\nsecond try\n"


async def test_follow_log_nobody_is_watched_for_once_it_ends_or_is_left(real: ControlWorld) -> None:
    tenant = await real.jobs.authenticate(real.secret)
    logs = real.house.plane.logs
    await real.jobs.submit(tenant, Submission("true", "mine"))
    await real.run(tenant, "mine")
    await real.write_log(tenant, "mine", b"one\n")
    async with asyncio.timeout(DEADLINE_S):
        async with aclosing(real.jobs.follow_log(tenant, "mine")) as left:
            assert await anext(left) == b"one\n"
            assert logs.watched == {await real.attempt(tenant, "mine")}
        assert not logs.watched
        await real.end(tenant, "mine", JobStatus.SUCCEEDED, 0)
        assert [piece async for piece in real.jobs.follow_log(tenant, "mine")] == [b"one\n"]
    assert not logs.watched


async def test_restart_everything_acknowledged_is_there(tmp_path: Path) -> None:
    async with house(tmp_path) as built:
        tenant, _ = await built.tenant("one")
        job = await built.plane.jobs.submit(tenant, Submission("true", "mine"))
        term = await built.plane.loop.read(lambda state: state.control.term)
        admin = built.keys.admin_token
    async with house(tmp_path) as again:
        assert (await again.plane.jobs.job(tenant, "mine")).job_id == job.job_id
        assert await again.plane.loop.read(lambda state: state.control.term) == term + 1
        assert again.keys.admin_token == admin
        operators = await again.plane.loop.read(
            lambda state: [one for one in state.tokens.values() if one.role is TokenRole.OPERATOR]
        )
        assert len(operators) == 1


async def test_revoked_admin_token_is_replaced_at_the_next_start(tmp_path: Path) -> None:
    async with house(tmp_path) as built:
        (token_id,) = await built.plane.loop.read(lambda state: list(state.tokens.values()))
        await built.plane.loop.submit(m.RevokeToken(token_id.token_id))
        admin = built.keys.admin_token
    async with house(tmp_path) as again:
        assert again.keys.admin_token != admin
        assert (tmp_path / "admin-token").read_text().strip() == again.keys.admin_token


async def test_metrics_job_that_ran_is_counted_with_its_queue_time(real: ControlWorld) -> None:
    tenant = await real.jobs.authenticate(real.secret)
    await real.jobs.submit(tenant, Submission("true", "mine"))
    await real.run(tenant, "mine")
    await real.house.plane.measure()
    text = real.house.metrics.text().decode()
    assert 'orchestrator_jobs{status="RUNNING"} 1.0' in text
    assert "orchestrator_job_queue_seconds_count 1.0" in text
    assert 'orchestrator_clusters{phase="ready"} 1.0' in text
