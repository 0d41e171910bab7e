from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from orchestrator.core.ids import TenantId
from orchestrator.core.jobs import JobStatus
from tests.gateway.fake_jobs import OTHER_SECRET, SECRET, FakeJobs
from tests.gateway.jobs_contract import JobsPortContract, World


@dataclass
class FakeWorld:
    jobs: FakeJobs = field(default_factory=FakeJobs)
    secret: str = SECRET
    other_secret: str = OTHER_SECRET

    async def run(self, tenant_id: TenantId, submission_id: str) -> None:
        self.jobs.run(tenant_id, submission_id)

    async def write_log(self, tenant_id: TenantId, submission_id: str, data: bytes) -> None:
        self.jobs.write_log(tenant_id, submission_id, data)

    async def end(self, tenant_id: TenantId, submission_id: str, status: JobStatus, exit_code: int) -> None:
        self.jobs.end(tenant_id, submission_id, status, exit_code)


class TestFakeJobs(JobsPortContract):
    @pytest.fixture
    async def world(self) -> World:
        return FakeWorld()
