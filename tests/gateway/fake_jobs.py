"""The control plane as the gateway sees it, in memory, with hands for a test to move jobs on."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import zipfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

from orchestrator.core.errors import RefusalCode, RefusedError, invalid, not_found
from orchestrator.core.ids import JobId, TenantId
from orchestrator.core.jobs import Job, JobPolicy, JobRequest, JobStatus, Package
from orchestrator.core.requests import parse_conditions
from orchestrator.gateway.ports import Submission

TENANT = TenantId("ten_one")
OTHER_TENANT = TenantId("ten_two")
SECRET = "orch_secret-of-one"
OTHER_SECRET = "orch_secret-of-two"
QUEUED = "queued: 1 GPU wanted, none free"
STEP_MS = 1_000
PIECE_BYTES = 64 * 1024


@dataclass
class Record:
    """One job, its log, and an event that is set and replaced at each change."""

    job: Job
    log: bytearray = field(default_factory=bytearray)
    failure: Exception | None = None
    log_lost: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    followers: int = 0

    def touch(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class FakeJobs:
    """A JobsPort that keeps everything in memory."""

    def __init__(self) -> None:
        self.records: dict[tuple[TenantId, str], Record] = {}
        self.packages: dict[tuple[TenantId, str], bytes] = {}
        self.refuse_submit: Exception | None = None
        self._tenants = {SECRET: TENANT, OTHER_SECRET: OTHER_TENANT}
        self._now_ms = 1_700_000_000_000

    # What the gateway calls.

    async def authenticate(self, secret: str) -> TenantId:
        tenant_id = self._tenants.get(secret)
        if tenant_id is None:
            raise RefusedError(RefusalCode.FORBIDDEN, "this token is not known or was revoked")
        return tenant_id

    async def submit(self, tenant_id: TenantId, submission: Submission) -> Job:
        if self.refuse_submit is not None:
            raise self.refuse_submit
        request = self._request(tenant_id, submission)
        digest = hashlib.sha256(repr(request).encode()).hexdigest()
        submission_id = submission.submission_id or f"raysubmit_{len(self.records):016d}"
        known = self.records.get((tenant_id, submission_id))
        if known is not None:
            if known.job.request_sha256 != digest:
                message = f"{submission_id!r} was submitted before with another body; choose another id"
                raise RefusedError(RefusalCode.ALREADY_EXISTS, message, "submission_id")
            return known.job
        job = Job(
            job_id=JobId(f"job_{len(self.records)}"),
            tenant_id=tenant_id,
            submission_id=submission_id,
            request_sha256=digest,
            request=request,
            status=JobStatus.PENDING,
            message=QUEUED,
            submitted_at_ms=self._tick_ms(),
            started_at_ms=None,
            ended_at_ms=None,
            attempts=0,
            starts=0,
            attempt_id=None,
            not_before_ms=0,
            stop_requested=False,
            driver_exit_code=None,
            avoid=(),
            formation_failures=0,
        )
        self.records[tenant_id, submission_id] = Record(job)
        return job

    async def job(self, tenant_id: TenantId, submission_id: str) -> Job:
        return self.record(tenant_id, submission_id).job

    async def jobs(self, tenant_id: TenantId) -> list[Job]:
        return [record.job for (owner, _), record in self.records.items() if owner == tenant_id]

    async def stop(self, tenant_id: TenantId, submission_id: str) -> bool:
        if self.record(tenant_id, submission_id).job.status.terminal:
            return False
        self.end(tenant_id, submission_id, JobStatus.STOPPED)
        return True

    async def delete(self, tenant_id: TenantId, submission_id: str) -> None:
        if not self.record(tenant_id, submission_id).job.status.terminal:
            message = f"{submission_id!r} has not ended; stop it first"
            raise RefusedError(RefusalCode.CONFLICT, message)
        self.records.pop((tenant_id, submission_id)).touch()

    async def log(self, tenant_id: TenantId, submission_id: str) -> AsyncIterator[bytes]:
        record = self.record(tenant_id, submission_id)
        for start in range(0, len(record.log), PIECE_BYTES):
            if record.failure is not None and start:
                raise record.failure
            yield bytes(record.log[start : start + PIECE_BYTES])

    async def follow_log(self, tenant_id: TenantId, submission_id: str) -> AsyncIterator[bytes]:
        record = self.record(tenant_id, submission_id)
        record.followers += 1
        offset = 0
        try:
            while True:
                if record.failure is not None:
                    raise record.failure
                if offset < len(record.log):
                    piece = bytes(record.log[offset:])
                    offset += len(piece)
                    yield piece
                elif record.job.status.terminal or record.log_lost:
                    return
                else:
                    await record.changed.wait()
        finally:
            record.followers -= 1

    async def has_package(self, tenant_id: TenantId, uri: str) -> bool:
        return (tenant_id, uri) in self.packages

    async def put_package(self, tenant_id: TenantId, uri: str, chunks: AsyncIterator[bytes]) -> None:
        data = b"".join([chunk async for chunk in chunks])
        if not zipfile.is_zipfile(io.BytesIO(data)):
            raise invalid("package", f"{uri} is no zip file")
        self.packages[tenant_id, uri] = data

    # What a test does to the world behind.

    def record(self, tenant_id: TenantId, submission_id: str) -> Record:
        record = self.records.get((tenant_id, submission_id))
        if record is None:
            raise not_found("job", submission_id)
        return record

    def run(self, tenant_id: TenantId, submission_id: str) -> None:
        record = self.record(tenant_id, submission_id)
        record.job = replace(
            record.job, status=JobStatus.RUNNING, message="running", started_at_ms=self._tick_ms()
        )
        record.touch()

    def write_log(self, tenant_id: TenantId, submission_id: str, data: bytes) -> None:
        record = self.record(tenant_id, submission_id)
        record.log += data
        record.touch()

    def end(
        self, tenant_id: TenantId, submission_id: str, status: JobStatus, exit_code: int | None = None
    ) -> None:
        record = self.record(tenant_id, submission_id)
        record.job = replace(
            record.job,
            status=status,
            message=f"ended as {status}",
            ended_at_ms=self._tick_ms(),
            driver_exit_code=exit_code,
        )
        record.touch()

    def break_log(self, tenant_id: TenantId, submission_id: str, failure: Exception) -> None:
        record = self.record(tenant_id, submission_id)
        record.failure = failure
        record.touch()

    def lose_log(self, tenant_id: TenantId, submission_id: str) -> None:
        """A control plane at fault: the log ends though the job runs on."""
        record = self.record(tenant_id, submission_id)
        record.log_lost = True
        record.touch()

    def _request(self, tenant_id: TenantId, submission: Submission) -> JobRequest:
        asked = parse_conditions(submission.metadata, submission.entrypoint_num_gpus, JobPolicy())
        uri = submission.runtime_env.get("working_dir")
        packages: tuple[Package, ...] = ()
        if isinstance(uri, str):
            data = self.packages.get((tenant_id, uri))
            if data is None:
                raise invalid(
                    "runtime_env['working_dir']", f"package {uri} was not uploaded; upload it first"
                )
            packages = (Package(uri, hashlib.sha256(data).hexdigest(), len(data)),)
        return JobRequest(
            entrypoint=submission.entrypoint,
            runtime_env_json=json.dumps(submission.runtime_env),
            metadata=tuple(sorted(submission.metadata.items())),
            packages=packages,
            requirements=asked.requirements,
            priority=asked.priority,
            max_attempts=asked.max_attempts,
            entrypoint_num_cpus=submission.entrypoint_num_cpus,
            entrypoint_num_gpus=submission.entrypoint_num_gpus,
            entrypoint_memory_bytes=submission.entrypoint_memory_bytes,
            entrypoint_resources=tuple(sorted(submission.entrypoint_resources.items())),
            time_limit_ms=asked.time_limit_ms,
            interruptible=asked.interruptible,
        )

    def _tick_ms(self) -> int:
        self._now_ms += STEP_MS
        return self._now_ms
