"""Workers' sessions: who is connected, what each was told last, and what each says.

Free of gRPC: a session is an iterator of requests and a function that sends, so the simulator uses the same code.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import structlog
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from orchestrator.api.v1 import worker_pb2
from orchestrator.control import wire
from orchestrator.core import messages as m
from orchestrator.core.desired import desired_members, ended_leases
from orchestrator.core.errors import RefusalCode, RefusedError, invalid
from orchestrator.core.ids import LeaseId, WorkerId
from orchestrator.receipts import dsse, ids
from orchestrator.receipts.statement import PAYLOAD_TYPE, parse_statement

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from orchestrator.control.loop import Committed, Loop
    from orchestrator.core.state import State

log = structlog.get_logger(__name__)

SESSION_CONTEXT = b"orchestrator-session-v1"
"""The agent signs this, the nonce and its worker id; the prefix makes the signature useless elsewhere."""

NONCE_BYTES = 32

HELLO_S = 10.0
"""A stranger who opens a stream and says nothing is not kept longer."""

STATEMENTS_MAX = 10_000
"""More in one message than a worker could gather in a week of holding all its slots."""

PATIENCE_S = 0.2
"""Pause before a report is offered again to a full inbox."""


@dataclass(slots=True)
class Session:
    """One connected worker."""

    worker_id: WorkerId
    token: str
    dirty: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class Sessions:
    """All connected workers."""

    def __init__(
        self,
        loop: Loop,
        random_bytes: Callable[[int], bytes],
        cluster_token: Callable[[str], str],
        log_sizes: Callable[[list[str]], dict[str, int]],
    ) -> None:
        self._loop = loop
        self._random_bytes = random_bytes
        self._cluster_token = cluster_token
        self._log_sizes = log_sizes
        self._by_worker: dict[WorkerId, Session] = {}
        self._by_token: dict[str, WorkerId] = {}

    @property
    def connected(self) -> frozenset[WorkerId]:
        """Workers with an open session."""
        return frozenset(self._by_worker)

    def worker_of(self, token: str) -> WorkerId:
        """The worker behind a session token; raises RefusedError."""
        worker_id = self._by_token.get(hashlib.sha256(token.encode()).hexdigest())
        if worker_id is None:
            raise RefusedError(
                RefusalCode.UNAUTHENTICATED, "this session token is not valid; open a session first"
            )
        return worker_id

    def sync(self, worker_id: WorkerId) -> None:
        """The effect SyncWorker: send the worker its desired state, if it is connected; else it asks on arrival."""
        session = self._by_worker.get(worker_id)
        if session is not None:
            session.dirty.set()

    # ------------------------------------------------------------ one session

    async def serve(
        self,
        requests: AsyncIterator[worker_pb2.SessionRequest],
        send: Callable[[worker_pb2.SessionResponse], Awaitable[None]],
    ) -> None:
        """Serve one stream until either side ends it."""
        try:
            session, welcome = await self._admit(requests, send)
        except RefusedError as refusal:
            retry = refusal.code in (RefusalCode.UNAVAILABLE, RefusalCode.EXHAUSTED)
            log.info("session_refused", reason=refusal.message)
            await send(
                worker_pb2.SessionResponse(farewell=worker_pb2.Farewell(reason=refusal.message, retry=retry))
            )
            return
        tasks: list[asyncio.Task[Any]] = []
        try:
            await send(worker_pb2.SessionResponse(welcome=welcome))
            session.dirty.set()
            telling = asyncio.create_task(self._tell(session, send))
            hearing = asyncio.create_task(self._hear(session, requests, send))
            ending = asyncio.create_task(session.ended.wait())
            tasks += (telling, hearing, ending)
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            # Before any wait, which another cancellation would cut short.
            self._forget(session)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            log.info("session_closed", worker_id=session.worker_id)

    async def _admit(
        self,
        requests: AsyncIterator[worker_pb2.SessionRequest],
        send: Callable[[worker_pb2.SessionResponse], Awaitable[None]],
    ) -> tuple[Session, worker_pb2.Welcome]:
        """The session and what it begins with. Nothing is awaited once it is known to others."""
        nonce = self._random_bytes(NONCE_BYTES)
        await send(worker_pb2.SessionResponse(challenge=worker_pb2.Challenge(nonce=nonce)))
        try:
            async with asyncio.timeout(HELLO_S):
                first = await anext(requests, None)
        except TimeoutError:
            raise RefusedError(RefusalCode.UNAVAILABLE, "no hello came in time; open a new session") from None
        if first is None or first.WhichOneof("message") != "hello":
            raise RefusedError(RefusalCode.UNAUTHENTICATED, "a session begins with hello")
        hello = first.hello
        worker_id = WorkerId(hello.worker_id)
        key = await self._loop.read(lambda state: _statement_key(state, worker_id))
        try:
            Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(
                hello.signature, SESSION_CONTEXT + nonce + worker_id.encode()
            )
        except (InvalidSignature, ValueError):
            raise RefusedError(
                RefusalCode.UNAUTHENTICATED, f"hello is not signed by {worker_id}'s key"
            ) from None
        inventory = wire.inventory_from(hello.inventory)
        await self._submit(m.PassTerm(hello.term))
        connected = await self._submit(m.ConnectWorker(worker_id, inventory))
        if connected.result is None:
            raise RefusedError(
                RefusalCode.FORBIDDEN, "the operator let this worker go; start it again to offer it anew"
            )
        token = self._random_bytes(NONCE_BYTES).hex()
        welcome = await self._loop.read(lambda state: _welcome(state, worker_id, token))
        session = Session(worker_id, hashlib.sha256(token.encode()).hexdigest())
        old = self._by_worker.get(worker_id)
        if old is not None:
            # The newer connection is the agent's own idea of itself; the older one is a dead link it left behind.
            self._forget(old)
            old.ended.set()
        self._by_worker[worker_id] = session
        self._by_token[session.token] = worker_id
        log.info("session_opened", worker_id=worker_id, agent_version=hello.agent_version[:40])
        return session, welcome

    def _forget(self, session: Session) -> None:
        if self._by_worker.get(session.worker_id) is session:
            del self._by_worker[session.worker_id]
        self._by_token.pop(session.token, None)

    async def _tell(
        self, session: Session, send: Callable[[worker_pb2.SessionResponse], Awaitable[None]]
    ) -> None:
        """Send the whole desired state whenever it may have changed."""
        while True:
            await session.dirty.wait()
            session.dirty.clear()
            desired = await self._loop.read(lambda state: self._desired(state, session.worker_id))
            await send(worker_pb2.SessionResponse(desired=desired))

    def _desired(self, state: State, worker_id: WorkerId) -> worker_pb2.Desired:
        wanted = desired_members(state, worker_id)
        sizes = self._log_sizes([one.attempt.attempt_id for member in wanted for one in member.attempts])
        members = [
            wire.desired_member_to(member, self._cluster_token(member.member.cluster_id), sizes)
            for member in wanted
        ]
        ended = [wire.lease_to(lease) for lease in ended_leases(state, worker_id)]
        return worker_pb2.Desired(
            term=state.control.term, version=state.version, members=members, ended_leases=ended
        )

    async def _hear(
        self,
        session: Session,
        requests: AsyncIterator[worker_pb2.SessionRequest],
        send: Callable[[worker_pb2.SessionResponse], Awaitable[None]],
    ) -> None:
        async for request in requests:
            if not self._loop.heard(session.worker_id):
                await self._submit(m.ConnectWorker(session.worker_id, None))
            match request.WhichOneof("message"):
                case "heartbeat":
                    ack = worker_pb2.HeartbeatAck(sequence=request.heartbeat.sequence)
                    await send(worker_pb2.SessionResponse(heartbeat_ack=ack))
                case "observed":
                    await self._submit(wire.observed_from(session.worker_id, request.observed))
                    if await self._drained(session.worker_id, send):
                        return
                case "statements":
                    await self._accept(session.worker_id, list(request.statements.envelopes), send)
                    if await self._drained(session.worker_id, send):
                        return
                case "leaving":
                    # Also at its last stage: a worker that holds nothing has nothing to drain, and begins there.
                    await self._submit(m.DrainWorker(session.worker_id))
                    if await self._drained(session.worker_id, send):
                        return
                case other:
                    log.warning("unexpected_request", worker_id=session.worker_id, kind=other)

    async def _submit(self, command: m.Command) -> Committed:
        """Offer a command until there is room for it: what a worker says must not be lost to a busy minute."""
        while True:
            try:
                return await self._loop.submit(command)
            except RefusedError as refusal:
                if refusal.code is not RefusalCode.EXHAUSTED:
                    raise
            await asyncio.sleep(PATIENCE_S)

    async def _drained(
        self, worker_id: WorkerId, send: Callable[[worker_pb2.SessionResponse], Awaitable[None]]
    ) -> bool:
        """Let a draining worker go once it holds nothing and has stated everything; whether it was."""
        farewell = await self._loop.read(lambda state: _farewell(state, worker_id))
        if farewell is None:
            return False
        try:
            await self._submit(m.LeaveWorker(worker_id, told=True))
        except RefusedError:
            return False
        await send(worker_pb2.SessionResponse(farewell=farewell))
        return True

    # ------------------------------------------------------------ statements

    async def _accept(
        self,
        worker_id: WorkerId,
        envelopes: list[bytes],
        send: Callable[[worker_pb2.SessionResponse], Awaitable[None]],
    ) -> None:
        key = await self._loop.read(lambda state: _statement_key(state, worker_id))
        for envelope in envelopes[:STATEMENTS_MAX]:
            try:
                command = statement_command(worker_id, key, envelope)
                committed = await self._submit(command)
            except RefusedError as refusal:
                log.warning("statement_refused", worker_id=worker_id, reason=refusal.message)
                continue
            sequence = committed.result
            if isinstance(sequence, int) and sequence >= command.sequence:
                ack = worker_pb2.StatementAck(lease_id=command.lease_id, sequence=sequence)
                await send(worker_pb2.SessionResponse(statement_ack=ack))


def statement_command(worker_id: WorkerId, key: str, envelope: bytes) -> m.AcceptStatement:
    """Verify a statement's signature and read it. Raises RefusedError."""
    public_key = bytes.fromhex(key)
    try:
        payload = dsse.open_envelope(envelope, PAYLOAD_TYPE, {ids.key_id(public_key): public_key})
        statement = parse_statement(payload)
    except ValueError as error:
        raise invalid("statements", f"not a statement of this worker: {error}") from None
    if statement.worker_id != worker_id:
        raise invalid("statements.worker_id", "a worker states only about itself")
    return m.AcceptStatement(
        worker_id=worker_id,
        lease_id=LeaseId(statement.lease_id),
        subject=(statement.network_id, statement.member_id, statement.job_id, statement.attempt_id),
        sequence=statement.sequence,
        start_offset_ms=statement.start_offset_ms,
        end_offset_ms=statement.end_offset_ms,
        final=statement.final,
        device_ids=statement.device_ids,
        heartbeats_acknowledged=statement.heartbeats_acknowledged,
        payload_sha256=ids.sha256_hex(payload),
        envelope=envelope,
    )


def _statement_key(state: State, worker_id: WorkerId) -> str:
    worker = state.workers.get(worker_id)
    if worker is None:
        raise RefusedError(
            RefusalCode.UNAUTHENTICATED, f"no worker {worker_id[:80]!r} is registered; join first"
        )
    return worker.statement_key


def _welcome(state: State, worker_id: WorkerId, token: str) -> worker_pb2.Welcome:
    policies = state.policies
    return worker_pb2.Welcome(
        term=state.control.term,
        heartbeat_interval_ms=policies.fleet.heartbeat_interval_ms,
        lease_ttl_ms=policies.fleet.lease_ttl_ms,
        statement_interval_ms=policies.metering.statement_interval_ms,
        session_token=token,
        supplier_id=state.workers[worker_id].supplier_id,
        network_id=state.control.network_id,
    )


def _farewell(state: State, worker_id: WorkerId) -> worker_pb2.Farewell | None:
    """Goodbye to a worker that is draining and done; None for any other."""
    worker = state.workers[worker_id]
    busy = state.members_on.get(worker_id) or state.unsettled_on.get(worker_id)
    if not worker.draining or busy:
        return None
    if worker.dismissed:
        return worker_pb2.Farewell(reason="the operator let this worker go", retry=False)
    return worker_pb2.Farewell(reason="left; thank you for the hours", retry=True)
