"""What every JobsPort must do: the fake and the real control plane run these same tests.

A subclass overrides the fixture ``world``; the World moves jobs on in whatever way its control plane needs.
"""

from __future__ import annotations

import asyncio
import io
import zipfile
from collections.abc import AsyncIterator
from typing import Protocol

import pytest

from orchestrator.core.errors import RefusalCode, RefusedError
from orchestrator.core.ids import TenantId
from orchestrator.core.jobs import JobStatus
from orchestrator.gateway.ports import JobsPort, Submission

DEADLINE_S = 20.0
PIECE_BYTES_MAX = 256 * 1024
URI = "gcs://_ray_pkg_0123456789abcdef.zip"


class World(Protocol):
    """A control plane with two tenants, and hands to move their jobs on."""

    @property
    def jobs(self) -> JobsPort: ...
    @property
    def secret(self) -> str: ...
    @property
    def other_secret(self) -> str: ...
    async def run(self, tenant_id: TenantId, submission_id: str) -> None:
        """Until the job reads RUNNING."""

    async def write_log(self, tenant_id: TenantId, submission_id: str, data: bytes) -> None:
        """The driver prints this."""

    async def end(self, tenant_id: TenantId, submission_id: str, status: JobStatus, exit_code: int) -> None:
        """Until the job reads ``status`` and its log is complete."""


def zipped(text: str = "print('hello')") -> bytes:
    """A package as Ray's client packs it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.py", text)
    return buffer.getvalue()


async def pieces_of(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def broken_off(piece: bytes) -> AsyncIterator[bytes]:
    yield piece
    raise ConnectionResetError


def refused(code: RefusalCode) -> pytest.RaisesExc[RefusedError]:
    """A refusal with this code and a sentence."""
    return pytest.RaisesExc(RefusedError, check=lambda error: error.code is code and len(error.message) > 10)


class JobsPortContract:
    """Inherit, override ``world``."""

    @pytest.fixture
    async def world(self) -> World:
        raise NotImplementedError

    @pytest.fixture
    async def jobs(self, world: World) -> JobsPort:
        return world.jobs

    @pytest.fixture
    async def tenant(self, world: World) -> TenantId:
        return await world.jobs.authenticate(world.secret)

    @pytest.fixture
    async def other(self, world: World) -> TenantId:
        return await world.jobs.authenticate(world.other_secret)

    async def test_authenticate_two_tenants_are_told_apart(self, tenant: TenantId, other: TenantId) -> None:
        assert tenant != other

    async def test_authenticate_unknown_secret_is_forbidden_without_echo(self, jobs: JobsPort) -> None:
        with refused(RefusalCode.FORBIDDEN) as caught:
            await jobs.authenticate("orch_never-issued")
        assert "never-issued" not in caught.value.message

    async def test_submit_plain_reads_pending_with_a_reason(self, jobs: JobsPort, tenant: TenantId) -> None:
        job = await jobs.submit(tenant, Submission("python a.py", metadata={"team": "x"}))
        assert job.submission_id
        assert job.request.entrypoint == "python a.py"
        assert dict(job.request.metadata)["team"] == "x"
        found = await jobs.job(tenant, job.submission_id)
        assert (found.job_id, found.status) == (job.job_id, JobStatus.PENDING)
        assert found.message

    async def test_submit_without_id_twice_makes_two_jobs(self, jobs: JobsPort, tenant: TenantId) -> None:
        first = await jobs.submit(tenant, Submission("true"))
        second = await jobs.submit(tenant, Submission("true"))
        assert first.submission_id != second.submission_id
        assert [job.job_id for job in await jobs.jobs(tenant)] == [first.job_id, second.job_id]

    async def test_submit_same_id_and_body_is_the_same_job(self, jobs: JobsPort, tenant: TenantId) -> None:
        first = await jobs.submit(tenant, Submission("true", "mine"))
        again = await jobs.submit(tenant, Submission("true", "mine"))
        assert again.job_id == first.job_id
        assert len(await jobs.jobs(tenant)) == 1

    async def test_submit_same_id_other_body_is_refused(self, jobs: JobsPort, tenant: TenantId) -> None:
        first = await jobs.submit(tenant, Submission("true", "mine"))
        with refused(RefusalCode.ALREADY_EXISTS):
            await jobs.submit(tenant, Submission("false", "mine"))
        assert (await jobs.job(tenant, "mine")).job_id == first.job_id

    async def test_submit_same_id_of_two_tenants_are_two_jobs(
        self, jobs: JobsPort, tenant: TenantId, other: TenantId
    ) -> None:
        first = await jobs.submit(tenant, Submission("true", "mine"))
        second = await jobs.submit(other, Submission("false", "mine"))
        assert first.job_id != second.job_id

    async def test_submit_unknown_orch_key_is_invalid_with_the_nearest(
        self, jobs: JobsPort, tenant: TenantId
    ) -> None:
        with refused(RefusalCode.INVALID) as caught:
            await jobs.submit(tenant, Submission("true", metadata={"orch.gpu": "2"}))
        assert "orch.gpus" in caught.value.message
        assert await jobs.jobs(tenant) == []

    async def test_submit_package_never_uploaded_is_invalid(self, jobs: JobsPort, tenant: TenantId) -> None:
        with refused(RefusalCode.INVALID):
            await jobs.submit(tenant, Submission("true", runtime_env={"working_dir": URI}))

    async def test_submit_package_of_another_tenant_is_invalid(
        self, jobs: JobsPort, tenant: TenantId, other: TenantId
    ) -> None:
        await jobs.put_package(other, URI, pieces_of(zipped()))
        assert not await jobs.has_package(tenant, URI)
        with refused(RefusalCode.INVALID):
            await jobs.submit(tenant, Submission("true", runtime_env={"working_dir": URI}))

    async def test_submit_uploaded_package_is_taken(self, jobs: JobsPort, tenant: TenantId) -> None:
        data = zipped()
        await jobs.put_package(tenant, URI, pieces_of(data[:50], data[50:]))
        assert await jobs.has_package(tenant, URI)
        job = await jobs.submit(tenant, Submission("true", runtime_env={"working_dir": URI}))
        assert [(package.uri, package.size_bytes) for package in job.request.packages] == [(URI, len(data))]

    async def test_put_package_twice_is_no_error(self, jobs: JobsPort, tenant: TenantId) -> None:
        for _ in range(2):
            await jobs.put_package(tenant, URI, pieces_of(zipped()))
        assert await jobs.has_package(tenant, URI)

    async def test_put_package_no_zip_is_invalid_and_not_kept(self, jobs: JobsPort, tenant: TenantId) -> None:
        with refused(RefusalCode.INVALID):
            await jobs.put_package(tenant, URI, pieces_of(b"no zip at all"))
        assert not await jobs.has_package(tenant, URI)

    async def test_put_package_broken_off_passes_the_error_on_and_keeps_nothing(
        self, jobs: JobsPort, tenant: TenantId
    ) -> None:
        with pytest.raises(ConnectionResetError):
            await jobs.put_package(tenant, URI, broken_off(zipped()))
        assert not await jobs.has_package(tenant, URI)

    async def test_everything_of_another_tenant_is_not_found(
        self, jobs: JobsPort, tenant: TenantId, other: TenantId
    ) -> None:
        await jobs.submit(tenant, Submission("true", "mine"))
        with refused(RefusalCode.NOT_FOUND):
            await jobs.job(other, "mine")
        with refused(RefusalCode.NOT_FOUND):
            await jobs.stop(other, "mine")
        with refused(RefusalCode.NOT_FOUND):
            await jobs.delete(other, "mine")
        with refused(RefusalCode.NOT_FOUND):
            await anext(jobs.log(other, "mine"))
        with refused(RefusalCode.NOT_FOUND):
            await anext(jobs.follow_log(other, "mine"))
        assert await jobs.jobs(other) == []

    async def test_stop_queued_job_ends_it_stopped_once(self, jobs: JobsPort, tenant: TenantId) -> None:
        await jobs.submit(tenant, Submission("true", "mine"))
        assert await jobs.stop(tenant, "mine")
        assert (await jobs.job(tenant, "mine")).status is JobStatus.STOPPED
        assert not await jobs.stop(tenant, "mine")

    async def test_delete_before_the_end_conflicts_and_after_it_forgets(
        self, jobs: JobsPort, tenant: TenantId
    ) -> None:
        await jobs.submit(tenant, Submission("true", "mine"))
        with refused(RefusalCode.CONFLICT):
            await jobs.delete(tenant, "mine")
        await jobs.stop(tenant, "mine")
        await jobs.delete(tenant, "mine")
        with refused(RefusalCode.NOT_FOUND):
            await jobs.job(tenant, "mine")

    async def test_log_of_a_queued_job_is_empty(self, jobs: JobsPort, tenant: TenantId) -> None:
        await jobs.submit(tenant, Submission("true", "mine"))
        assert [piece async for piece in jobs.log(tenant, "mine")] == []

    async def test_follow_log_queued_then_run_gives_every_byte_and_ends_with_the_job(
        self, world: World, tenant: TenantId
    ) -> None:
        await world.jobs.submit(tenant, Submission("true", "mine"))

        async def follow() -> tuple[bytes, JobStatus]:
            data = b"".join([piece async for piece in world.jobs.follow_log(tenant, "mine")])
            return data, (await world.jobs.job(tenant, "mine")).status

        async with asyncio.timeout(DEADLINE_S):
            following = asyncio.create_task(follow())
            await world.run(tenant, "mine")
            await world.write_log(tenant, "mine", b"first\n")
            await world.write_log(tenant, "mine", b"second\n")
            assert not following.done()
            await world.end(tenant, "mine", JobStatus.SUCCEEDED, 0)
            assert await following == (b"first\nsecond\n", JobStatus.SUCCEEDED)
        assert b"".join([piece async for piece in world.jobs.log(tenant, "mine")]) == b"first\nsecond\n"

    async def test_log_large_comes_in_pieces_and_ends_though_the_job_runs(
        self, world: World, tenant: TenantId
    ) -> None:
        await world.jobs.submit(tenant, Submission("true", "mine"))
        await world.run(tenant, "mine")
        data = bytes(range(256)) * 4_000
        await world.write_log(tenant, "mine", data)
        async with asyncio.timeout(DEADLINE_S):
            pieces = [piece async for piece in world.jobs.log(tenant, "mine")]
        assert b"".join(pieces) == data
        assert max(len(piece) for piece in pieces) <= PIECE_BYTES_MAX

    async def test_follow_log_after_the_end_gives_the_whole_log(self, world: World, tenant: TenantId) -> None:
        await world.jobs.submit(tenant, Submission("false", "mine"))
        await world.run(tenant, "mine")
        await world.write_log(tenant, "mine", b"oh\xff\n")
        await world.end(tenant, "mine", JobStatus.FAILED, 3)
        async with asyncio.timeout(DEADLINE_S):
            assert b"".join([piece async for piece in world.jobs.follow_log(tenant, "mine")]) == b"oh\xff\n"
        job = await world.jobs.job(tenant, "mine")
        assert (job.status, job.driver_exit_code) == (JobStatus.FAILED, 3)
        assert job.started_at_ms is not None
        assert job.ended_at_ms is not None
        assert job.submitted_at_ms <= job.started_at_ms <= job.ended_at_ms

    async def test_follow_log_first_bytes_come_while_the_job_runs(
        self, world: World, tenant: TenantId
    ) -> None:
        await world.jobs.submit(tenant, Submission("true", "mine"))
        await world.run(tenant, "mine")
        await world.write_log(tenant, "mine", b"early\n")
        async with asyncio.timeout(DEADLINE_S):
            assert (await anext(world.jobs.follow_log(tenant, "mine"))).startswith(b"early")
