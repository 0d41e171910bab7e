"""What the gateway needs from the control plane: one narrow Protocol, filled by the composition root."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from orchestrator.core.ids import TenantId
    from orchestrator.core.jobs import Job


@dataclass(frozen=True, slots=True)
class Submission:
    """The body of a submission with every type checked, before any meaning is read into it.

    ``runtime_env`` holds at most ``working_dir`` (a ``gcs://`` package URI), ``env_vars``, and ``pip`` or ``uv``.
    """

    entrypoint: str
    submission_id: str | None = None
    runtime_env: Mapping[str, object] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    entrypoint_num_cpus: float = 0.0
    entrypoint_num_gpus: float = 0.0
    entrypoint_memory_bytes: int = 0
    entrypoint_resources: Mapping[str, float] = field(default_factory=dict)


class JobsPort(Protocol):
    """Jobs of one tenant. Every method raises core's RefusedError with a sentence for the tenant."""

    async def authenticate(self, secret: str) -> TenantId:
        """The tenant of a bearer token; UNAUTHENTICATED or FORBIDDEN otherwise."""

    async def submit(self, tenant_id: TenantId, submission: Submission) -> Job:
        """Durable when it returns. The same submission_id with the same body returns the same job.

        INVALID where this tenant never uploaded its package; ALREADY_EXISTS where the id has another body;
        EXHAUSTED when the control plane cannot take more now.
        """

    async def job(self, tenant_id: TenantId, submission_id: str) -> Job:
        """NOT_FOUND where this tenant has no such job."""

    async def jobs(self, tenant_id: TenantId) -> list[Job]:
        """Every job of the tenant, oldest first."""

    async def stop(self, tenant_id: TenantId, submission_id: str) -> bool:
        """Whether there was anything to stop."""

    async def delete(self, tenant_id: TenantId, submission_id: str) -> None:
        """CONFLICT while the job has not ended."""

    def log(self, tenant_id: TenantId, submission_id: str) -> AsyncIterator[bytes]:
        """The log so far, of the attempt that counts, in pieces of at most 256 KiB."""

    def follow_log(self, tenant_id: TenantId, submission_id: str) -> AsyncIterator[bytes]:
        """The log from its first byte; ends only when the job has ended and its log is complete."""

    async def has_package(self, tenant_id: TenantId, uri: str) -> bool:
        """Whether this tenant uploaded the package."""

    async def put_package(self, tenant_id: TenantId, uri: str, chunks: AsyncIterator[bytes]) -> None:
        """Store the package durably; INVALID where it is no acceptable zip or too large.

        An error that ``chunks`` raises is passed on, and nothing is kept.
        """
