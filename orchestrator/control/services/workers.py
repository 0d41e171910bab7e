"""What agents call: joining, their session, packages, logs, measurements."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any, NamedTuple

from orchestrator.api.v1 import (
    common_pb2,
    logs_pb2,
    logs_pb2_grpc,
    telemetry_pb2,
    telemetry_pb2_grpc,
    worker_pb2,
    worker_pb2_grpc,
)
from orchestrator.control.services.access import Access
from orchestrator.control.words import word
from orchestrator.core.errors import RefusalCode, RefusedError, invalid, not_found
from orchestrator.core.ids import AttemptId, WorkerId

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    import grpc.aio

    from orchestrator.adapters.packages import PackageStore
    from orchestrator.control.logs import Logs
    from orchestrator.control.loop import Loop
    from orchestrator.control.scrapes import Scrapes
    from orchestrator.control.sessions import Sessions
    from orchestrator.core.state import State

    Context = grpc.aio.ServicerContext[Any, Any]

TAKEN_S = 30.0
"""An agent that takes no message for this long has died on an open connection, or means harm."""

DEVICE_SAMPLES_MAX = 64
"""As many as a worker may have devices."""

TUNNELS_PER_MEMBER_MAX = 512
"""In a cluster of 256 at most; as many again for those that were replaced."""

TUNNELS_MAX = 64 * TUNNELS_PER_MEMBER_MAX
"""Of a worker with a member for each of 64 devices."""

SAMPLE_BYTES_MAX = 64 * 1024
"""The newest of every worker stays in memory; one device takes about 200 bytes."""


class WorkerServicer(worker_pb2_grpc.WorkerServiceServicer):
    """The control stream, and packages for the agents beside a head."""

    def __init__(
        self,
        loop: Loop,
        sessions: Sessions,
        access: Access,
        packages: PackageStore,
        runtimes: Mapping[str, common_pb2.Runtime],
    ) -> None:
        self._loop = loop
        self._runtimes = runtimes
        self._sessions = sessions
        self._access = access
        self._packages = packages

    async def Session(  # type: ignore[override]  # noqa: N802 -- writes by itself, which the stubs do not know
        self, request_iterator: AsyncIterator[worker_pb2.SessionRequest], context: Context
    ) -> None:
        """One stream: what the session sends waits its turn, and then until the network takes it.

        Whoever takes nothing is cut off by ending the call in the middle: no status would reach him either.
        """
        peer = self._access.peer(context)
        turn = asyncio.Lock()
        clock = asyncio.get_running_loop().time
        async with asyncio.timeout(None) as patience:

            async def send(message: worker_pb2.SessionResponse) -> None:
                async with turn:
                    patience.reschedule(clock() + TAKEN_S)
                    await context.write(message)
                    patience.reschedule(None)

            try:
                await self._sessions.serve(request_iterator, send, peer)
            finally:
                if patience.expired():
                    self._sessions.cut_off(peer.worker_id)

    async def FetchPackage(  # noqa: N802 -- the proto's name
        self, request: worker_pb2.FetchPackageRequest, context: Context
    ) -> AsyncIterator[worker_pb2.FetchPackageResponse]:
        """Only to a worker of the attempt's cluster, and only what the attempt's job names."""
        worker_id = self._access.worker(context)
        attempt_id = AttemptId(word("attempt_id", request.attempt_id))
        sha256 = word("sha256", request.sha256)
        await self._loop.read(lambda state: _check_package(state, worker_id, attempt_id, sha256))
        pieces = self._packages.open(sha256)
        try:
            async for data in pieces:
                yield worker_pb2.FetchPackageResponse(data=data)
        except FileNotFoundError:
            raise not_found("package", sha256) from None
        finally:
            if isinstance(pieces, AsyncGenerator):
                await pieces.aclose()

    async def FetchRuntime(  # noqa: N802 -- the proto's name
        self, request: worker_pb2.FetchRuntimeRequest, context: Context
    ) -> worker_pb2.FetchRuntimeResponse:
        """Any worker's: it may be asked for each of them."""
        self._access.worker(context)
        digest = word("digest", request.digest)
        if digest not in self._runtimes:
            raise not_found("runtime", digest)
        return worker_pb2.FetchRuntimeResponse(runtime=self._runtimes[digest])


def _check_package(state: State, worker_id: WorkerId, attempt_id: AttemptId, sha256: str) -> None:
    attempt = state.attempts.get(attempt_id)
    job = state.jobs.get(attempt.job_id) if attempt is not None else None
    if attempt is None or job is None:
        raise not_found("attempt", attempt_id)
    members = state.cluster_members(state.clusters[attempt.cluster_id])
    if worker_id not in {member.worker_id for member in members}:
        raise RefusedError(RefusalCode.FORBIDDEN, "this worker has no part in the attempt", "attempt_id")
    if sha256 not in {package.sha256 for package in job.request.packages}:
        raise not_found("package", sha256)


class LogsServicer(logs_pb2_grpc.LogsServiceServicer):
    """Takes drivers' logs."""

    def __init__(self, logs: Logs, access: Access) -> None:
        self._logs = logs
        self._access = access

    async def ShipLogs(  # noqa: N802 -- the proto's name
        self, request_iterator: AsyncIterator[logs_pb2.ShipLogsRequest], context: Context
    ) -> AsyncIterator[logs_pb2.ShipLogsResponse]:
        """Every chunk is answered once it is durable."""
        worker_id = self._access.worker(context)
        async for chunk in request_iterator:
            attempt_id = AttemptId(word("attempt_id", chunk.attempt_id))
            stored, complete = await self._logs.ship(
                worker_id, attempt_id, chunk.offset, chunk.data, final=chunk.final
            )
            yield logs_pb2.ShipLogsResponse(
                attempt_id=attempt_id, acknowledged_offset=stored, complete=complete
            )


NO_TUNNELS = telemetry_pb2.TunnelCounts()


class Sample(NamedTuple):
    """The newest measurement of a worker."""

    cpu_utilization_ratio: float
    memory_used_bytes: int
    devices: tuple[telemetry_pb2.DeviceSample, ...] = ()
    tunnels: telemetry_pb2.TunnelCounts = NO_TUNNELS


UNMEASURED = Sample(0.0, 0)
"""Of a worker that has sent none yet."""


class TelemetryServicer(telemetry_pb2_grpc.TelemetryServiceServicer):
    """Keeps the newest sample of each worker in memory: measurements are never stored."""

    def __init__(self, access: Access, scrapes: Scrapes) -> None:
        self._access = access
        self._scrapes = scrapes
        self.newest: dict[WorkerId, Sample] = {}

    async def AnswerScrape(  # noqa: N802 -- the proto's name
        self, request_iterator: AsyncIterator[telemetry_pb2.AnswerScrapeRequest], context: Context
    ) -> telemetry_pb2.AnswerScrapeResponse:
        """Only what this worker was asked for."""
        await self._scrapes.take(self._access.worker(context), request_iterator)
        return telemetry_pb2.AnswerScrapeResponse()

    def forget(self, worker_id: WorkerId) -> None:
        """Of a worker without a session nobody knows what its devices do."""
        self.newest.pop(worker_id, None)

    async def Report(  # noqa: N802 -- the proto's name
        self, request_iterator: AsyncIterator[telemetry_pb2.ReportRequest], context: Context
    ) -> telemetry_pb2.ReportResponse:
        """One stream for as long as the worker measures."""
        worker_id = self._access.worker(context)
        samples = 0
        async for sample in request_iterator:
            if not 0 <= sample.cpu_utilization_ratio <= 1:
                raise invalid("cpu_utilization_ratio", "cpu_utilization_ratio must be from 0 to 1")
            if sample.ByteSize() > SAMPLE_BYTES_MAX:
                raise invalid("devices", f"a sample has at most {SAMPLE_BYTES_MAX} bytes")
            if len(sample.devices) > DEVICE_SAMPLES_MAX:
                raise invalid("devices", f"devices has more than {DEVICE_SAMPLES_MAX} samples")
            tunnels = sample.tunnels
            if tunnels.direct + tunnels.relayed + tunnels.bridged > TUNNELS_MAX:
                raise invalid("tunnels", f"one worker has at most {TUNNELS_MAX} tunnels")
            # Again, because the session may have ended meanwhile: what comes after that is nobody's.
            if not self._access.connected(worker_id):
                raise RefusedError(RefusalCode.UNAUTHENTICATED, "the session has ended; open another one")
            self.newest[worker_id] = Sample(
                sample.cpu_utilization_ratio,
                sample.memory_used_bytes,
                tuple(sample.devices),
                tunnels if sample.HasField("tunnels") else NO_TUNNELS,
            )
            samples += 1
        return telemetry_pb2.ReportResponse(samples=samples)
