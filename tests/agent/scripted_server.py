"""Real grpc.aio servers on loopback, over TLS, that play the control plane's side by a script."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from orchestrator.api.v1 import logs_pb2, telemetry_pb2, worker_pb2
from orchestrator.api.v1.logs_pb2_grpc import LogsServiceServicer, add_LogsServiceServicer_to_server
from orchestrator.api.v1.telemetry_pb2_grpc import (
    TelemetryServiceServicer,
    add_TelemetryServiceServicer_to_server,
)
from orchestrator.api.v1.worker_pb2_grpc import (
    EnrolServiceServicer,
    WorkerServiceServicer,
    add_EnrolServiceServicer_to_server,
    add_WorkerServiceServicer_to_server,
)
from tests.tls import TestNetwork

Context = grpc.aio.ServicerContext[Any, Any]

PART_BYTES = 600


class ScriptedServer(
    EnrolServiceServicer, WorkerServiceServicer, LogsServiceServicer, TelemetryServiceServicer
):
    """Every service an agent calls. What it does is set by plain attributes; what it saw is kept in others.

    ``address`` is where to enrol; sessions are held at ``session_address``, over mutual TLS.
    """

    def __init__(self, folder: Path) -> None:
        self.network = TestNetwork(folder)
        self.refuse: tuple[grpc.StatusCode, str] | None = None
        self.recovery_refusal: tuple[grpc.StatusCode, str] | None = None
        self.trust_shown = b""
        """Authorities to show instead of its own."""
        self.mute = False
        self.confused = False
        self.package = b""
        self.break_after: int | None = None
        self.drains = False
        """Play a session to its end: welcome, an empty list, and a farewell once all is given back."""
        self.farewell = ""
        """Refuse every hello for good, with these words."""
        self.calls: list[tuple[str, str]] = []
        self.stored: dict[str, bytes] = {}
        self.samples: list[telemetry_pb2.ReportRequest] = []
        self.scraped: list[list[telemetry_pb2.AnswerScrapeRequest]] = []
        """The messages of each answer to a scrape."""
        self.joins: list[worker_pb2.JoinRequest] = []
        self.recoveries: list[worker_pb2.RecoverRequest] = []
        self.renewals: list[worker_pb2.RenewCertificate] = []
        self.leavings: list[int] = []
        self.wishes: list[worker_pb2.OwnerWish] = []
        self.cached: list[worker_pb2.CachedReport] = []
        self.shown: list[bytes] = []
        """The certificate (PEM) of each session."""
        self.join_certificate: dict[str, Any] = {}
        """How the certificate of a join differs from a good one, as TestNetwork.certificate takes it."""
        self.pushes: asyncio.Queue[worker_pb2.SessionResponse] = asyncio.Queue()
        """Sent in a session as soon as its welcome is out."""
        self.hellos: list[worker_pb2.Hello] = []
        self.address = ""
        self.session_address = ""
        self._servers: tuple[grpc.aio.Server, ...] = ()

    async def start(self) -> None:
        enrolment, sessions = self._servers = (grpc.aio.server(), grpc.aio.server())
        add_EnrolServiceServicer_to_server(self, enrolment)
        add_WorkerServiceServicer_to_server(self, sessions)
        add_LogsServiceServicer_to_server(self, sessions)
        add_TelemetryServiceServicer_to_server(self, sessions)
        self.address = self.network.add_port(enrolment, mutual=False)
        self.session_address = self.network.add_port(sessions, mutual=True)
        for server in self._servers:
            await server.start()

    async def stop(self) -> None:
        for server in self._servers:
            await server.stop(None)

    def tokens_of(self, method: str) -> list[str]:
        return [token for name, token in self.calls if name == method]

    async def _enter(self, method: str, context: Context) -> None:
        metadata = {key: str(value) for key, value in context.invocation_metadata() or ()}
        self.calls.append((method, metadata.get("authorization", "")))
        if self.refuse is not None:
            await context.abort(*self.refuse)

    async def Join(  # noqa: N802 - the proto names it
        self, request: worker_pb2.JoinRequest, context: Context
    ) -> worker_pb2.JoinResponse:
        await self._enter("Join", context)
        self.joins.append(request)
        return worker_pb2.JoinResponse(
            worker_id="wk_1",
            supplier_id="sup_1",
            network_id="net_1",
            certificate=self.network.certificate(request.tls_csr, **self.join_certificate),
            session_address=f":{self.session_address.rpartition(':')[2]}",
        )

    async def GetTrust(  # noqa: N802 - the proto names it
        self, request: worker_pb2.GetTrustRequest, context: Context
    ) -> worker_pb2.GetTrustResponse:
        self.calls.append(("GetTrust", ""))
        bundle = self.trust_shown or self.network.authority.trust_bundle()
        return worker_pb2.GetTrustResponse(trust_bundle=bundle)

    async def GetRecoveryNonce(  # noqa: N802 - the proto names it
        self, request: worker_pb2.GetRecoveryNonceRequest, context: Context
    ) -> worker_pb2.GetRecoveryNonceResponse:
        await self._enter("GetRecoveryNonce", context)
        return worker_pb2.GetRecoveryNonceResponse(nonce=b"fresh")

    async def Recover(  # noqa: N802 - the proto names it
        self, request: worker_pb2.RecoverRequest, context: Context
    ) -> worker_pb2.RecoverResponse:
        await self._enter("Recover", context)
        if self.recovery_refusal is not None:
            await context.abort(*self.recovery_refusal)
        self.recoveries.append(request)
        return worker_pb2.RecoverResponse(
            certificate=self.network.certificate(request.tls_csr), recoveries_left=4
        )

    async def Session(  # noqa: N802 - the proto names it
        self, request_iterator: AsyncIterator[worker_pb2.SessionRequest], context: Context
    ) -> AsyncIterator[worker_pb2.SessionResponse]:
        await self._enter("Session", context)
        self.shown += context.auth_context()["x509_pem_cert"]
        yield worker_pb2.SessionResponse(challenge=worker_pb2.Challenge(nonce=b"nonce"))
        async for request in request_iterator:
            if request.HasField("leaving"):
                self.leavings.append(request.leaving.stage)
            match request.WhichOneof("message"):
                case "hello" if self.farewell:
                    farewell = worker_pb2.Farewell(reason=self.farewell, retry=False)
                    yield worker_pb2.SessionResponse(farewell=farewell)
                    return
                case "hello":
                    self.hellos.append(request.hello)
                    welcome = worker_pb2.Welcome(
                        term=1,
                        heartbeat_interval_ms=50,
                        lease_ttl_ms=60_000,
                        statement_interval_ms=60_000,
                        session_token="secret-1",
                        network_id="net_1",
                    )
                    yield worker_pb2.SessionResponse(welcome=welcome)
                    yield worker_pb2.SessionResponse(desired=worker_pb2.Desired(term=1, version=1))
                    while not self.pushes.empty():
                        yield self.pushes.get_nowait()
                case "owner_wish":
                    self.wishes.append(request.owner_wish)
                    heard = worker_pb2.WishAck(number=request.owner_wish.number)
                    yield worker_pb2.SessionResponse(wish_ack=heard)
                case "cached":
                    self.cached.append(request.cached)
                case "renew_certificate":
                    self.renewals.append(request.renew_certificate)
                    certificate = self.network.certificate(request.renew_certificate.tls_csr)
                    yield worker_pb2.SessionResponse(certificate=certificate)
                case "heartbeat":
                    ack = worker_pb2.HeartbeatAck(sequence=request.heartbeat.sequence)
                    yield worker_pb2.SessionResponse(heartbeat_ack=ack)
                case "leaving" if not self.drains:
                    return
                case "leaving" if request.leaving.stage == worker_pb2.LEAVING_STAGE_DONE:
                    yield worker_pb2.SessionResponse(farewell=worker_pb2.Farewell(reason="left", retry=True))
                    return
                case _:
                    pass

    async def FetchPackage(  # noqa: N802 - the proto names it
        self, request: worker_pb2.FetchPackageRequest, context: Context
    ) -> AsyncIterator[worker_pb2.FetchPackageResponse]:
        await self._enter("FetchPackage", context)
        for number, start in enumerate(range(0, len(self.package), PART_BYTES)):
            if number == self.break_after:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "it broke off")
            yield worker_pb2.FetchPackageResponse(data=self.package[start : start + PART_BYTES])

    async def FetchRuntime(  # noqa: N802 - the proto names it
        self, request: worker_pb2.FetchRuntimeRequest, context: Context
    ) -> worker_pb2.FetchRuntimeResponse:
        await self._enter("FetchRuntime", context)
        await context.abort(grpc.StatusCode.NOT_FOUND, "no runtimes here")

    async def ShipLogs(  # noqa: N802 - the proto names it
        self, request_iterator: AsyncIterator[logs_pb2.ShipLogsRequest], context: Context
    ) -> AsyncIterator[logs_pb2.ShipLogsResponse]:
        await self._enter("ShipLogs", context)
        async for request in request_iterator:
            if self.mute:
                await asyncio.Event().wait()
            kept = self.stored.get(request.attempt_id, b"")[: request.offset] + request.data
            self.stored[request.attempt_id] = kept
            yield logs_pb2.ShipLogsResponse(
                attempt_id="a-other" if self.confused else request.attempt_id,
                acknowledged_offset=len(kept),
                complete=request.final,
            )

    async def Report(  # noqa: N802 - the proto names it
        self, request_iterator: AsyncIterator[telemetry_pb2.ReportRequest], context: Context
    ) -> telemetry_pb2.ReportResponse:
        await self._enter("Report", context)
        async for request in request_iterator:
            self.samples.append(request)
        return telemetry_pb2.ReportResponse(samples=len(self.samples))

    async def AnswerScrape(  # noqa: N802 - the proto names it
        self, request_iterator: AsyncIterator[telemetry_pb2.AnswerScrapeRequest], context: Context
    ) -> telemetry_pb2.AnswerScrapeResponse:
        await self._enter("AnswerScrape", context)
        self.scraped.append([request async for request in request_iterator])
        return telemetry_pb2.AnswerScrapeResponse()
