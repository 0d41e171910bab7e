"""Jobs as tenants have them: what the gateway asks of the control plane."""

from __future__ import annotations

import hashlib
import json
from contextlib import aclosing
from typing import TYPE_CHECKING, Protocol

from orchestrator.control.follow import PIECE_BYTES, follow, shown_attempt
from orchestrator.control.secrets import digest_of
from orchestrator.core import messages as m
from orchestrator.core.decisions.operators import authenticate
from orchestrator.core.errors import RefusalCode, RefusedError, invalid, not_found
from orchestrator.core.ids import JobId, TenantId
from orchestrator.core.jobs import Job, JobRequest, Package
from orchestrator.core.requests import for_driver, parse_conditions
from orchestrator.core.supply.fleet import Isolation, TokenRole

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping

    from orchestrator.adapters.packages import PackageStore
    from orchestrator.control.logs import Logs
    from orchestrator.control.loop import Loop
    from orchestrator.core.state import State

SUBMISSION_CHARACTERS = 16
"""As many as Ray's own client puts behind ``raysubmit_``."""

WORKING_DIR = "runtime_env['working_dir']"


class SubmissionLike(Protocol):
    """A submission whose types are checked; its meaning is read here."""

    @property
    def entrypoint(self) -> str: ...
    @property
    def submission_id(self) -> str | None: ...
    @property
    def runtime_env(self) -> Mapping[str, object]: ...
    @property
    def metadata(self) -> Mapping[str, str]: ...
    @property
    def entrypoint_num_cpus(self) -> float: ...
    @property
    def entrypoint_num_gpus(self) -> float: ...
    @property
    def entrypoint_memory_bytes(self) -> int: ...
    @property
    def entrypoint_resources(self) -> Mapping[str, float]: ...


class ControlJobs:
    """Jobs of one tenant at a time. Every method raises RefusedError with a sentence for the tenant."""

    def __init__(self, loop: Loop, logs: Logs, packages: PackageStore, new_id: Callable[[str], str]) -> None:
        self._loop = loop
        self._logs = logs
        self._packages = packages
        self._new_id = new_id

    async def authenticate(self, secret: str) -> TenantId:
        """The tenant of a bearer token; FORBIDDEN where it is none.

        To Ray's own clients a 401 is a token that is missing, and a 403 one that does not count.
        """
        digest = digest_of(secret)
        try:
            token = await self._loop.read(
                lambda state: authenticate(state, digest, state.time_ms(self._loop.now()))
            )
        except RefusedError as refusal:
            if refusal.code is RefusalCode.UNAUTHENTICATED:
                raise RefusedError(RefusalCode.FORBIDDEN, refusal.message) from None
            raise
        if token.role is not TokenRole.TENANT:
            message = f"this token's role is {token.role.value}, which submits no jobs; ask the operator for a tenant's"
            raise RefusedError(RefusalCode.FORBIDDEN, message)
        return TenantId(token.subject_id)

    async def submit(self, tenant_id: TenantId, submission: SubmissionLike) -> Job:
        """Durable when it returns; repeating it returns the same job."""
        packages = await self._resolve(tenant_id, submission.runtime_env)
        policy = await self._loop.read(lambda state: state.policies.jobs)
        if len(submission.entrypoint.encode("utf-8", "replace")) > policy.entrypoint_bytes_max:
            message = f"entrypoint is longer than {policy.entrypoint_bytes_max} bytes; put it into a script"
            raise invalid("entrypoint", message)
        asked = parse_conditions(submission.metadata, submission.entrypoint_num_gpus, policy)
        requirements = for_driver(
            asked.requirements,
            num_cpus=submission.entrypoint_num_cpus,
            num_gpus=submission.entrypoint_num_gpus,
            memory_bytes=submission.entrypoint_memory_bytes,
            resources=submission.entrypoint_resources,
        )
        if requirements.isolation is Isolation.NONE:
            _refuse_installs(submission.runtime_env)
        environment = _canonical(submission.runtime_env)
        for field, text in (("runtime_env", environment), ("metadata", _canonical(submission.metadata))):
            if len(text.encode("utf-8", "replace")) > policy.environment_bytes_max:
                message = f"{field} is longer than {policy.environment_bytes_max} bytes; put it into the working_dir"
                raise invalid(field, message)
        request = JobRequest(
            entrypoint=submission.entrypoint,
            runtime_env_json=environment,
            metadata=tuple(sorted(submission.metadata.items())),
            packages=packages,
            requirements=requirements,
            priority=asked.priority,
            max_attempts=asked.max_attempts,
            entrypoint_num_cpus=submission.entrypoint_num_cpus,
            entrypoint_num_gpus=submission.entrypoint_num_gpus,
            entrypoint_memory_bytes=submission.entrypoint_memory_bytes,
            entrypoint_resources=tuple(sorted(submission.entrypoint_resources.items())),
            time_limit_ms=asked.time_limit_ms,
            interruptible=asked.interruptible,
        )
        job_id = JobId(self._new_id("job"))
        # The tail of a fresh id is random, so the name is as unguessable as Ray's own.
        named = submission.submission_id or f"raysubmit_{job_id[-SUBMISSION_CHARACTERS:]}"
        command = m.SubmitJob(
            job_id, tenant_id, named, request, request_sha256(submission, packages), asked.reservation
        )
        committed = await self._loop.submit(command)
        return await self._loop.read(lambda state: _job(state, tenant_id, str(committed.result)))

    async def job(self, tenant_id: TenantId, submission_id: str) -> Job:
        """NOT_FOUND where this tenant has no such job."""
        return await self._loop.read(lambda state: _job(state, tenant_id, submission_id))

    async def jobs(self, tenant_id: TenantId) -> list[Job]:
        """Every job of the tenant, oldest first."""
        return await self._loop.read(
            lambda state: [state.shown(state.jobs[job_id]) for job_id in state.jobs_of.get(tenant_id, ())]
        )

    async def stop(self, tenant_id: TenantId, submission_id: str) -> bool:
        """Whether there was anything to stop."""
        job = await self.job(tenant_id, submission_id)
        return (await self._loop.submit(m.StopJob(job.job_id))).result is True

    async def delete(self, tenant_id: TenantId, submission_id: str) -> None:
        """CONFLICT while the job has not ended."""
        job = await self.job(tenant_id, submission_id)
        await self._loop.submit(m.DeleteJob(job.job_id))

    async def log(self, tenant_id: TenantId, submission_id: str) -> AsyncGenerator[bytes, None]:
        """The log so far, of the attempt that counts, in pieces of at most PIECE_BYTES."""
        attempt_id = shown_attempt(await self.job(tenant_id, submission_id))
        if attempt_id is None:
            return
        # A driver that prints faster than the tenant reads would never let it end.
        offset, end = 0, self._logs.size_bytes(attempt_id)
        while data := await self._logs.read(attempt_id, offset, min(PIECE_BYTES, end - offset)):
            yield data
            offset += len(data)

    async def follow_log(self, tenant_id: TenantId, submission_id: str) -> AsyncGenerator[bytes, None]:
        """The log from its first byte; ends only when the job has ended and its log is complete."""
        job = await self.job(tenant_id, submission_id)
        async with aclosing(follow(self._loop, self._logs, job.job_id)) as pieces:
            async for _, data in pieces:
                yield data

    async def has_package(self, tenant_id: TenantId, uri: str) -> bool:
        """Whether this tenant uploaded the package."""
        return await self._packages.find(tenant_id, uri) is not None

    async def put_package(self, tenant_id: TenantId, uri: str, chunks: AsyncIterator[bytes]) -> None:
        """Store the package durably; INVALID where it is no acceptable zip."""
        try:
            await self._packages.put(tenant_id, uri, chunks)
        except ValueError as error:
            raise invalid("package", str(error)) from None

    async def _resolve(self, tenant_id: TenantId, runtime_env: Mapping[str, object]) -> tuple[Package, ...]:
        uri = runtime_env.get("working_dir")
        if uri is None:
            return ()
        stored = await self._packages.find(tenant_id, uri) if isinstance(uri, str) else None
        if stored is None:
            message = (
                f"{WORKING_DIR} names a package that was never uploaded with this token; upload it first"
            )
            raise invalid(WORKING_DIR, message)
        return (Package(stored.uri, stored.sha256, stored.size_bytes),)


def _refuse_installs(runtime_env: Mapping[str, object]) -> None:
    """Without a box a job's environment would be the machine owner's own, and what it installs would stay there."""
    for installer in ("pip", "uv"):
        if installer in runtime_env:
            field = f"runtime_env['{installer}']"
            message = (
                f"{field} needs a box: with orch.isolation=none it would install into the owner's own Python"
            )
            raise invalid(field, f"{message}; leave orch.isolation out")


def request_sha256(submission: SubmissionLike, packages: tuple[Package, ...]) -> str:
    """What two submissions of one name must share: the tenant's own words, and the bytes they point at."""
    words = {
        "entrypoint": submission.entrypoint,
        "runtime_env": dict(submission.runtime_env),
        "metadata": dict(submission.metadata),
        "packages": [[package.uri, package.sha256] for package in packages],
        "entrypoint_num_cpus": submission.entrypoint_num_cpus,
        "entrypoint_num_gpus": submission.entrypoint_num_gpus,
        "entrypoint_memory_bytes": submission.entrypoint_memory_bytes,
        "entrypoint_resources": dict(submission.entrypoint_resources),
    }
    return hashlib.sha256(_canonical(words).encode()).hexdigest()


def _canonical(value: Mapping[str, object]) -> str:
    return json.dumps(dict(value), sort_keys=True, separators=(",", ":"))


def _job(state: State, tenant_id: TenantId, name: str) -> Job:
    job = state.job_named(tenant_id, name)
    if job is None:
        raise not_found("job", name)
    return state.shown(job)
