"""Jobs for the command line: a tenant's token sees its own, an operator's all."""

from __future__ import annotations

import heapq
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from orchestrator.api.v1 import common_pb2, jobs_pb2
from orchestrator.control.follow import PIECE_BYTES, follow, shown_attempt
from orchestrator.control.services import views
from orchestrator.control.services.access import Access
from orchestrator.control.services.reservations import ReservationActions
from orchestrator.control.services.scheduling import currency_of, explained, quote_message
from orchestrator.control.words import word
from orchestrator.core import messages as m
from orchestrator.core.decisions.operators import find_tenant
from orchestrator.core.errors import NAME_CHARACTERS_MAX, RefusalCode, RefusedError, invalid, not_found
from orchestrator.core.ids import JobId, TenantId
from orchestrator.core.queries.explain import explain
from orchestrator.core.queries.quote import quote
from orchestrator.core.requests import find_runtime, parse_conditions
from orchestrator.core.supply.catalogue import nearest
from orchestrator.core.supply.fleet import Token, TokenRole

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping

    import grpc.aio

    from orchestrator.control.logs import Logs
    from orchestrator.control.loop import Loop
    from orchestrator.core.jobs import Job
    from orchestrator.core.state import State

    Context = grpc.aio.ServicerContext[Any, Any]

PAGE_SIZE = 100
"""A screenful for those who do not ask for more."""

PAGE_SIZE_MAX = 1_000
"""Some megabytes with every attempt's members; more takes another page."""


class JobsServicer(ReservationActions):
    """Shows and stops jobs."""

    def __init__(
        self,
        loop: Loop,
        logs: Logs,
        access: Access,
        runtimes: Mapping[str, common_pb2.Runtime],
        new_id: Callable[[str], str],
    ) -> None:
        super().__init__(loop, access, new_id)
        self._runtimes = runtimes
        self._logs = logs

    async def ListJobs(  # noqa: N802 -- the proto's name
        self, request: jobs_pb2.ListJobsRequest, context: Context
    ) -> jobs_pb2.ListJobsResponse:
        """Newest first."""
        token = await self._access.tenant_or_operator(context)
        tenant = word("tenant_id", request.tenant_id, empty=True)
        before = word("before_job_id", request.before_job_id, empty=True)
        if request.page_size > PAGE_SIZE_MAX:
            raise invalid("page_size", f"page_size must be from 0 to {PAGE_SIZE_MAX}")
        size = request.page_size or PAGE_SIZE
        jobs = await self._loop.read(lambda state: _page(state, token, tenant, before, size))
        return jobs_pb2.ListJobsResponse(jobs=jobs)

    async def ListRuntimes(  # noqa: N802 -- the proto's name
        self,
        request: jobs_pb2.ListRuntimesRequest,  # noqa: ARG002 -- it asks for nothing in particular
        context: Context,
    ) -> jobs_pb2.ListRuntimesResponse:
        """The default first, without locks."""
        await self._access.tenant_or_operator(context)
        response = jobs_pb2.ListRuntimesResponse(runtimes=self._runtimes.values())
        for runtime in response.runtimes:
            runtime.ClearField("lock")
        return response

    async def GetRuntime(  # noqa: N802 -- the proto's name
        self, request: jobs_pb2.GetRuntimeRequest, context: Context
    ) -> jobs_pb2.GetRuntimeResponse:
        """One runtime with its lock, by what `orch.runtime` would name it."""
        await self._access.tenant_or_operator(context)
        named = word("name", request.name)
        offered = tuple((runtime.name, digest) for digest, runtime in self._runtimes.items())
        digest = find_runtime(offered, named)
        if digest is None and not offered:
            raise RefusedError(RefusalCode.NOT_FOUND, "this network offers no runtimes", "name")
        if digest is None:
            hint = nearest(named[:NAME_CHARACTERS_MAX], [name for name, _ in offered])
            message = f"no runtime named {named[:NAME_CHARACTERS_MAX]!r}: did you mean {hint!r}?"
            raise RefusedError(RefusalCode.NOT_FOUND, message, "name")
        return jobs_pb2.GetRuntimeResponse(runtime=self._runtimes[digest])

    async def GetJob(  # noqa: N802 -- the proto's name
        self, request: jobs_pb2.GetJobRequest, context: Context
    ) -> jobs_pb2.GetJobResponse:
        """One job with its attempts."""
        token = await self._access.tenant_or_operator(context)
        name = word("job", request.job)
        job = await self._loop.read(lambda state: views.job_message(state, find_job(state, token, name)))
        return jobs_pb2.GetJobResponse(job=job)

    async def ExplainJob(  # noqa: N802 -- the proto's name
        self, request: jobs_pb2.ExplainJobRequest, context: Context
    ) -> jobs_pb2.ExplainJobResponse:
        """Why a job waits, or runs where it runs."""
        token = await self._access.tenant_or_operator(context)
        name = word("job", request.job)

        def find(state: State) -> jobs_pb2.ExplainJobResponse:
            job = find_job(state, token, name)
            return explained(job, explain(state, job, state.time_ms(self._loop.now())))

        return await self._loop.read(find)

    async def GetQuote(  # noqa: N802 -- the proto's name
        self, request: jobs_pb2.GetQuoteRequest, context: Context
    ) -> jobs_pb2.GetQuoteResponse:
        """What machines would cost; nothing is held by it."""
        await self._access.tenant_or_operator(context)
        currency = currency_of(word("currency", request.currency, empty=True))

        def find(state: State) -> jobs_pb2.GetQuoteResponse:
            wanted = parse_conditions(request.metadata, 0, state.policies.jobs).requirements
            at_ms = state.time_ms(self._loop.now())
            made = quote(state, wanted, request.duration_ms, currency, at_ms)
            return jobs_pb2.GetQuoteResponse(quote=quote_message(made))

        return await self._loop.read(find)

    async def ReadJobLog(  # noqa: N802 -- the proto's name
        self, request: jobs_pb2.ReadJobLogRequest, context: Context
    ) -> AsyncIterator[jobs_pb2.ReadJobLogResponse]:
        """The log from offset on in the attempt that counts; with follow until the job has ended."""
        token = await self._access.tenant_or_operator(context)
        name = word("job", request.job)
        job = await self._loop.read(lambda state: find_job(state, token, name))
        if request.follow:
            async with aclosing(follow(self._loop, self._logs, job.job_id, request.offset)) as pieces:
                async for offset, data in pieces:
                    yield jobs_pb2.ReadJobLogResponse(offset=offset, data=data)
            return
        attempt_id, offset = shown_attempt(job), request.offset
        while attempt_id is not None and (data := await self._logs.read(attempt_id, offset, PIECE_BYTES)):
            yield jobs_pb2.ReadJobLogResponse(offset=offset, data=data)
            offset += len(data)

    async def StopJob(  # noqa: N802 -- the proto's name
        self, request: jobs_pb2.StopJobRequest, context: Context
    ) -> jobs_pb2.StopJobResponse:
        """Ends a job as soon as its driver can be stopped."""
        token = await self._access.tenant_or_operator(context)
        name = word("job", request.job)
        job = await self._loop.read(lambda state: find_job(state, token, name))
        committed = await self._loop.submit(m.StopJob(job.job_id))
        return jobs_pb2.StopJobResponse(stopped=committed.result is True)


def find_job(state: State, token: Token, name: str) -> Job:
    """The job that the token's bearer calls so; another tenant's does not exist for a tenant."""
    if token.role is TokenRole.TENANT:
        own = state.job_named(TenantId(token.subject_id), name)
        if own is None:
            raise not_found("job", name)
        return own
    by_id = state.jobs.get(JobId(name))
    if by_id is not None:
        return by_id
    named = [state.jobs_by_submission.get((tenant_id, name)) for tenant_id in state.tenants]
    found = [state.jobs[job_id] for job_id in named if job_id is not None]
    if not found:
        raise not_found("job", name)
    if len(found) > 1:
        message = f"{len(found)} tenants have a job {name!r}; give the job's id, as `orch job list` shows it"
        raise invalid("job", message)
    return found[0]


def _page(state: State, token: Token, tenant: str, before: str, size: int) -> list[jobs_pb2.Job]:
    jobs: Iterable[Job] = state.jobs.values()
    if token.role is TokenRole.TENANT:
        if tenant and tenant != token.subject_id:
            raise RefusedError(
                RefusalCode.FORBIDDEN, "this token sees its own tenant's jobs only", "tenant_id"
            )
        tenant = token.subject_id
    if tenant:
        tenant_id = find_tenant(state, tenant).tenant_id
        jobs = (state.jobs[job_id] for job_id in state.jobs_of.get(tenant_id, ()))
    if before:
        edge = _age(find_job(state, token, before))
        jobs = (job for job in jobs if _age(job) < edge)
    return [views.job_message(state, job) for job in heapq.nlargest(size, jobs, key=_age)]


def _age(job: Job) -> tuple[int, str]:
    return job.submitted_at_ms, job.job_id
