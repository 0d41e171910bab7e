"""The agent's way to the control plane: gRPC over mutual TLS, outbound only, every failure a ConnectionError.

One channel carries everything: the session's stream, one stream for drivers' logs, one for measurements. It
pings, so that a link that died in silence is noticed; else a NAT that forgot us would look like a quiet peer.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, NoReturn, Protocol

import grpc
import grpc.aio

from orchestrator.adapters.node_records import RuntimeName
from orchestrator.adapters.peers import SERVER_NAME
from orchestrator.adapters.runtimes import Runtime
from orchestrator.adapters.trust import is_loopback
from orchestrator.agent.ports import LogChunk
from orchestrator.api.v1 import logs_pb2, telemetry_pb2, worker_pb2
from orchestrator.api.v1.logs_pb2_grpc import LogsServiceStub
from orchestrator.api.v1.telemetry_pb2_grpc import TelemetryServiceStub
from orchestrator.api.v1.worker_pb2_grpc import WorkerServiceStub

if TYPE_CHECKING:
    from orchestrator.api.v1.logs_pb2_grpc import LogsServiceAsyncStub
    from orchestrator.api.v1.telemetry_pb2_grpc import TelemetryServiceAsyncStub
    from orchestrator.api.v1.worker_pb2_grpc import WorkerServiceAsyncStub

    LogCall = grpc.aio.StreamStreamCall[logs_pb2.ShipLogsRequest, logs_pb2.ShipLogsResponse]
    SessionCall = grpc.aio.StreamStreamCall[worker_pb2.SessionRequest, worker_pb2.SessionResponse]
    ReportCall = grpc.aio.StreamUnaryCall[telemetry_pb2.ReportRequest, telemetry_pb2.ReportResponse]

KEEPALIVE_MS = 10_000
"""A ping after this long a silence, and as long for its answer: a third of a lease to notice a dead link."""

CONNECT_S = 10.0
"""From nothing to the session's first message: a few round trips, even where a lost packet is sent again."""

RECONNECT_MS_MAX = 5_000
"""gRPC would wait up to two minutes between its attempts; the agent's backoff decides, this only follows."""

ANSWER_S = 30.0
"""For a chunk of log to be stored, or a package's next part to arrive; longer means that the link is dead."""

ANSWER_PIECE_BYTES = 128 * 1024
"""Of one message of an answer to a scrape: half of what is taken."""

MESSAGE_BYTES_MAX = 16 << 20
"""A desired list of 64 members with long commands is far below; gRPC's 4 MiB might not be."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to connect, whom to trust there (PEM), and what to show: nothing where ``chain_pem`` is empty."""

    address: str
    trust_pem: bytes
    key_pem: bytes = field(default=b"", repr=False)
    chain_pem: bytes = b""


class Access(Protocol):
    """Who knows the endpoint of the next session, and is told how connecting went."""

    async def endpoint(self) -> Endpoint:
        """Raises ConnectionError, or RefusedForeverError where no certificate is to be had any more."""

    async def failed(self, reason: str) -> NoReturn:
        """There was no connection, for this reason of gRPC's. Raises ConnectionError with the owner's words."""

    def accepted(self) -> None:
        """The last endpoint was right."""


def open_channel(endpoint: Endpoint) -> grpc.aio.Channel:
    """Open a channel. gRPC connects when it is first used, and again whenever it has to."""
    options = [
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_MS),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 500),
        ("grpc.max_reconnect_backoff_ms", RECONNECT_MS_MAX),
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        ("grpc.enable_http_proxy", 0 if is_loopback(endpoint.address) else 1),
        ("grpc.ssl_target_name_override", SERVER_NAME),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    credentials = grpc.ssl_channel_credentials(
        endpoint.trust_pem, endpoint.key_pem or None, endpoint.chain_pem or None
    )
    return grpc.aio.secure_channel(endpoint.address, credentials, options=options)


class GrpcControlPlane:
    """The control plane as the agent's parts see it; nothing but ``open`` connects."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._opened: grpc.aio.Channel | None = None
        self._metadata: tuple[tuple[str, str], ...] = ()
        self._log_call: LogCall | None = None
        self._log_turn = asyncio.Lock()
        self._report_call: ReportCall | None = None

    async def open(self) -> GrpcSession:
        """Connect, with the newest certificate, and begin a session.

        Always on a connection of its own: what a session shows is looked at in the handshake and never again.
        """
        endpoint = await self._access.endpoint()
        await self.close()
        self._opened = open_channel(endpoint)
        worker: WorkerServiceAsyncStub = WorkerServiceStub(self._opened)
        call = worker.Session()
        try:
            first = await _first_message(call)
        except ConnectionError as error:
            await self._access.failed(str(error))
        self._access.accepted()
        return GrpcSession(call, first)

    @property
    def _channel(self) -> grpc.aio.Channel:
        if self._opened is None:
            raise ConnectionError("there has been no session yet")
        return self._opened

    def authorise(self, session_token: str) -> None:
        """Use this session's token from now on; streams opened with an older one end."""
        self._metadata = (("authorization", f"Bearer {session_token}"),)
        self._drop_streams()

    async def ship_log(self, chunk: LogChunk) -> tuple[int, bool]:
        """Send a chunk and wait until it is stored; chunks of all attempts take turns on one stream."""
        request = logs_pb2.ShipLogsRequest(
            attempt_id=chunk.attempt_id,
            member_id=chunk.member_id,
            offset=chunk.offset,
            data=chunk.data,
            final=chunk.final,
        )
        async with self._log_turn:
            call = self._log_call
            if call is None or call.done():
                logs: LogsServiceAsyncStub = LogsServiceStub(self._channel)
                call = self._log_call = logs.ShipLogs(metadata=self._metadata)
            try:
                response = await _exchange(call, request)
            except BaseException:
                # Question and answer may be out of step now: the next chunk begins on a new stream.
                call.cancel()
                if self._log_call is call:
                    self._log_call = None
                raise
        return response.acknowledged_offset, response.complete

    async def fetch_package(self, attempt_id: str, sha256: str, into: Path) -> None:
        """Fetch into a file beside ``into``, then rename: under its name a package is whole and right."""
        request = worker_pb2.FetchPackageRequest(attempt_id=attempt_id, sha256=sha256)
        into.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(prefix=".package-", dir=into.parent, delete=False) as file:
            try:
                digest = hashlib.sha256()
                with connection_errors():
                    async for data in self._parts(request):
                        digest.update(data)
                        file.write(data)
                await asyncio.to_thread(_keep, file, into, right=digest.hexdigest() == sha256)
            except BaseException:
                os.unlink(file.name)  # noqa: PTH108 - a moment, and it must happen while cancelled
                raise

    async def fetch_runtime(self, wanted: RuntimeName) -> Runtime:
        """A runtime that this agent does not bring along. Raises ConnectionError, ValueError where it is another one."""
        worker: WorkerServiceAsyncStub = WorkerServiceStub(self._channel)
        request = worker_pb2.FetchRuntimeRequest(digest=wanted.digest)
        with connection_errors():
            async with asyncio.timeout(ANSWER_S):
                answer = await worker.FetchRuntime(request, metadata=self._metadata)
        told = answer.runtime
        runtime = Runtime(told.name, told.python, told.ray_version, told.lock, tuple(told.packages))
        if runtime.digest != wanted.digest:
            raise ValueError(f"runtime {wanted.name} arrived as another one than its digest names")
        return runtime

    async def _parts(self, request: worker_pb2.FetchPackageRequest) -> AsyncIterator[bytes]:
        worker: WorkerServiceAsyncStub = WorkerServiceStub(self._channel)
        call = worker.FetchPackage(request, metadata=self._metadata)
        try:
            while True:
                async with asyncio.timeout(ANSWER_S):
                    part = await call.read()
                if not isinstance(part, worker_pb2.FetchPackageResponse):
                    return
                yield part.data
        finally:
            call.cancel()

    async def report(self, sample: telemetry_pb2.ReportRequest) -> None:
        """Send a measurement. Raises ConnectionError; a lost one is not worth sending again."""
        call = self._report_call
        if call is None or call.done():
            telemetry: TelemetryServiceAsyncStub = TelemetryServiceStub(self._channel)
            call = self._report_call = telemetry.Report(metadata=self._metadata)
        with connection_errors():
            async with asyncio.timeout(ANSWER_S):
                await call.write(sample)

    async def answer_scrape(self, number: int, packed_text: bytes, refusal: str = "") -> None:
        """As Answers.answer_scrape, on a call of its own."""
        telemetry: TelemetryServiceAsyncStub = TelemetryServiceStub(self._channel)
        with connection_errors():
            async with asyncio.timeout(ANSWER_S):
                pieces = _answer_pieces(number, packed_text, refusal)
                await telemetry.AnswerScrape(pieces, metadata=self._metadata)

    def _drop_streams(self) -> None:
        for call in (self._log_call, self._report_call):
            if call is not None:
                call.cancel()
        self._log_call = self._report_call = None

    async def close(self) -> None:
        """End every stream and the channel."""
        self._drop_streams()
        opened, self._opened = self._opened, None
        if opened is not None:
            await opened.close()


def _answer_pieces(
    number: int, packed_text: bytes, refusal: str
) -> Iterator[telemetry_pb2.AnswerScrapeRequest]:
    """An answer to a scrape in messages; the first says which, the last that it is whole."""
    for start in range(0, max(1, len(packed_text)), ANSWER_PIECE_BYTES):
        end = start + ANSWER_PIECE_BYTES
        yield telemetry_pb2.AnswerScrapeRequest(
            number=0 if start else number,
            refusal="" if start else refusal,
            data=packed_text[start:end],
            final=end >= len(packed_text),
        )


async def _first_message(call: SessionCall) -> worker_pb2.SessionResponse | None:
    """What the control plane begins with: only that shows that it has accepted the connection."""
    try:
        with connection_errors():
            try:
                async with asyncio.timeout(CONNECT_S):
                    return _session_message(await call.read())
            except TimeoutError:
                raise ConnectionError(f"no connection within {CONNECT_S:g} s") from None
    except ValueError as error:
        raise ConnectionError(str(error)) from error
    except BaseException:
        call.cancel()
        raise


def _session_message(message: object) -> worker_pb2.SessionResponse | None:
    return message if isinstance(message, worker_pb2.SessionResponse) else None


async def _exchange(call: LogCall, request: logs_pb2.ShipLogsRequest) -> logs_pb2.ShipLogsResponse:
    """One chunk and its answer."""
    with connection_errors():
        async with asyncio.timeout(ANSWER_S):
            await call.write(request)
            response = await call.read()
    if not isinstance(response, logs_pb2.ShipLogsResponse):
        raise ConnectionError("the control plane ended the stream of logs")
    if response.attempt_id != request.attempt_id:
        raise ConnectionError(f"the answer is about {response.attempt_id!r}, not {request.attempt_id!r}")
    return response


def _keep(file: IO[bytes], into: Path, *, right: bool) -> None:
    """Make a fetched file durable under its name."""
    if not right:
        raise ValueError(f"package {into.stem} arrived with other bytes than its hash names")
    file.flush()
    os.fsync(file.fileno())
    Path(file.name).replace(into)


class GrpcSession:
    """The session's stream; several tasks may send."""

    def __init__(self, call: SessionCall, first: worker_pb2.SessionResponse | None) -> None:
        self._call = call
        self._first = first
        self._turn = asyncio.Lock()

    async def send(self, message: worker_pb2.SessionRequest) -> None:
        """Send in the order of the calls: gRPC takes one message at a time."""
        async with self._turn:
            with connection_errors():
                await self._call.write(message)

    async def receive(self) -> worker_pb2.SessionResponse | None:
        """The next message; None once the control plane has ended the session in order."""
        if self._first is not None:
            first, self._first = self._first, None
            return first
        with connection_errors():
            return _session_message(await self._call.read())

    async def close(self) -> None:
        """End the stream; whoever waits on it gets a ConnectionError."""
        self._call.cancel()


@contextlib.contextmanager
def connection_errors() -> Iterator[None]:
    """Whatever gRPC says of a call that failed becomes a ConnectionError."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.PERMISSION_DENIED):
            # An answer, not a broken link: asking again will not change it.
            raise ValueError(said(error)) from error
        raise ConnectionError(said(error)) from error
    except TimeoutError as error:
        raise ConnectionError(f"no answer within {ANSWER_S:g} s") from error
    except (grpc.aio.BaseError, asyncio.InvalidStateError) as error:
        raise ConnectionError(f"the call is over: {error}") from error
    except asyncio.CancelledError:
        # gRPC raises this also where the call was cancelled and the task that waits on it was not.
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise ConnectionError("the call was ended on this side") from None


def said(error: grpc.aio.AioRpcError) -> str:
    """What the other side, or gRPC itself, gives as the reason."""
    details = (error.details() or "").strip()
    return details or error.code().name.lower().replace("_", " ")
