"""Workers' sessions: who is connected, what each was told last, and what each says.

Free of gRPC: a session is an iterator of requests and a function that sends, so the simulator uses the same code.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Any

import structlog

from orchestrator.api.v1 import standing_pb2, worker_pb2
from orchestrator.control import wire
from orchestrator.control.admission import (
    farewell_of,
    identify,
    overlay_key,
    statement_key,
    welcome_of,
)
from orchestrator.control.authority import certify, generation_of
from orchestrator.control.caches_wire import cached_from
from orchestrator.control.connected import Session, SessionObserver
from orchestrator.control.inventory_wire import inventory_from
from orchestrator.control.limits import Buckets, Limit
from orchestrator.control.standing_wire import standing_to
from orchestrator.control.statements import accept_statements
from orchestrator.control.wishes import clock_notice, faults_reported, wished
from orchestrator.core import messages as m
from orchestrator.core.decisions.fleet import check_admitted
from orchestrator.core.errors import RefusalCode, RefusedError, invalid
from orchestrator.core.ids import WorkerId

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from orchestrator.control.authority import Authority, Peer
    from orchestrator.control.desires import Desires
    from orchestrator.control.loop import Committed, Loop
    from orchestrator.control.paths import Paths
    from orchestrator.control.scrapes import Scrapes
    from orchestrator.core.state import State

    Send = Callable[[worker_pb2.SessionResponse], Awaitable[None]]

log = structlog.get_logger(__name__)

NONCE_BYTES = 32

HELLO_S = 10.0
"""A stranger who opens a stream and says nothing is not kept longer."""

VERSION_CHARACTERS_MAX = 40

TEMPORARY = (RefusalCode.UNAVAILABLE, RefusalCode.EXHAUSTED)
"""Refusals that say nothing about what was asked: whoever asks later may get it."""

OPENS = Limit(burst=20, interval_ms=3_000)
"""Sessions of one worker. An agent on a bad line comes back each few seconds; each opening is checked and written."""

CHANGES = Limit(burst=30, interval_ms=2_000)
"""What one worker may ask for that changes what is kept of it: an owner and his devices change their minds slower."""

TOO_MANY_OPENS = "this worker opens too many sessions; the next may come in a few seconds"
TOO_MANY_CHANGES = "this worker asks for too many changes; it is heard again in a few seconds"
RETIRED = "the authority that issued this session's certificate is retired; a recovery brings another"

PATIENCE_S = 0.2
"""Pause before a report is offered again to a full inbox."""


class Sessions:
    """All connected workers."""

    def __init__(
        self,
        loop: Loop,
        random_bytes: Callable[[int], bytes],
        desires: Desires,
        authority: Authority | None = None,
        observer: SessionObserver | None = None,
        closed: Callable[[WorkerId], None] | None = None,
        paths: Paths | None = None,
        scrapes: Scrapes | None = None,
    ) -> None:
        """Without an ``authority`` no certificate is renewed: where the network is simulated.

        ``closed`` is told of each worker that has no session any more. Without ``paths`` no way is measured, without
        ``scrapes`` no agent is asked what it shows.
        """
        self.paths = paths
        self._scrapes = scrapes
        self._loop = loop
        self._authority = authority
        self._observer = observer
        self._closed = closed
        self._opens = Buckets(OPENS)
        self._changes = Buckets(CHANGES)
        self._random_bytes = random_bytes
        self._desires = desires
        self._by_worker: dict[WorkerId, Session] = {}
        self._by_token: dict[str, WorkerId] = {}

    def is_connected(self, worker_id: WorkerId) -> bool:
        """Whether the worker has an open session."""
        return worker_id in self._by_worker

    @property
    def connected(self) -> frozenset[WorkerId]:
        """Workers with an open session."""
        return frozenset(self._by_worker)

    def certificate_not_after_ms(self, worker_id: WorkerId) -> int | None:
        """When the certificate of a connected worker runs out, by wall clock; None where that is not known."""
        session = self._by_worker.get(worker_id)
        return None if session is None or not session.not_after_ms else session.not_after_ms

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

    def shut_out(self, worker_id: WorkerId) -> None:
        """The effect ShutOut: end the worker's session, if it has one."""
        session = self._by_worker.get(worker_id)
        if session is not None:
            self._forget(session)
            session.ended.set()

    def cut_off(self, worker_id: WorkerId) -> None:
        """Count a session that was ended because the worker took none of its messages."""
        self._count("session", worker_id, RefusedError(RefusalCode.EXHAUSTED, "the worker takes no messages"))

    def reopen(self, worker_id: WorkerId) -> None:
        """Have a worker come anew, to be welcomed with what counts for it now."""
        session = self._by_worker.get(worker_id)
        if session is not None:
            session.ended.set()

    def behind(self, generation: int) -> frozenset[WorkerId]:
        """Connected workers whose certificate an older authority issued."""
        return frozenset(
            worker_id for worker_id, session in self._by_worker.items() if session.generation < generation
        )

    def end_behind(self, generation: int) -> None:
        """End the sessions of those: their certificates count no more."""
        for worker_id in self.behind(generation):
            session = self._by_worker[worker_id]
            session.farewell = RETIRED
            session.ended.set()

    def tell_all(self) -> None:
        """Tell every connected worker anew: of the newest authority, or of certificates that time replaced."""
        for session in self._by_worker.values():
            session.dirty.set()

    # ------------------------------------------------------------ one session

    async def serve(
        self,
        requests: AsyncIterator[worker_pb2.SessionRequest],
        send: Send,
        peer: Peer,
    ) -> None:
        """Serve one stream until either side ends it. ``peer`` is who the connection itself shows."""
        try:
            session, welcome = await self._admit(requests, send, peer)
        except RefusedError as refusal:
            retry = refusal.code in TEMPORARY or refusal.code is RefusalCode.INTERNAL
            self._count("session", peer.worker_id, refusal)
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
            if self.paths is not None and session.overlay_key:
                tasks.append(asyncio.create_task(self.paths.attend(session, send)))
            if self._scrapes is not None and session.answers_scrapes:
                tasks.append(asyncio.create_task(self._scrapes.attend(session, send)))
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            if ending in done:
                await self._explain_end(session, send)
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
        send: Send,
        peer: Peer,
    ) -> tuple[Session, worker_pb2.Welcome]:
        """The session and what it begins with. Nothing is awaited once it is known to others."""
        # By the connection's own word, which is proved, and before anything is sent or written.
        if not self._opens.take(peer.worker_id, self._loop.now().monotonic_ms):
            raise RefusedError(RefusalCode.EXHAUSTED, TOO_MANY_OPENS)
        generation = self._generation_of(peer)
        if self._authority is not None and not generation:
            # The connection is older than the retirement: at another handshake it would be refused.
            raise RefusedError(RefusalCode.UNAVAILABLE, RETIRED)
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
        worker_id = await self._loop.read(lambda state: identify(state, hello, nonce, peer))
        inventory = inventory_from(hello.inventory)
        await self._submit(m.PassTerm(hello.term))
        connecting = m.ConnectWorker(
            worker_id, inventory, hello.session_number, hello.agent_version[:VERSION_CHARACTERS_MAX]
        )
        connected = await self._submit(connecting)
        if connected.result is None:
            raise RefusedError(
                RefusalCode.FORBIDDEN, "the operator let this worker go; start it again to offer it anew"
            )
        if connected.result is False:
            await self._loop.read(lambda state: check_admitted(state.workers[worker_id]))
        token = self._random_bytes(NONCE_BYTES).hex()
        welcome = await self._loop.read(
            lambda state: welcome_of(state, worker_id, token, self._desires.runtimes)
        )
        session = Session(
            worker_id,
            hashlib.sha256(token.encode()).hexdigest(),
            peer.key_sha256,
            peer.not_after_ms,
            generation,
            clock_notice(hello.wall_ms, self._loop.now().wall_ms),
            overlay_key(hello.overlay_public_key),
            hello.answers_scrapes,
        )
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
            if self._closed is not None:
                self._closed(session.worker_id)
        self._by_token.pop(session.token, None)

    async def _tell(self, session: Session, send: Send) -> None:
        """Send the whole desired state whenever it may have changed."""
        while True:
            await session.dirty.wait()
            session.dirty.clear()
            desired = await self._loop.read(
                lambda state: self._desires.of(state, session.worker_id, self._loop.now())
            )
            await send(worker_pb2.SessionResponse(desired=desired))
            standing = await self._loop.read(lambda state: self._standing(state, session))
            told = standing.SerializeToString(deterministic=True)
            if told != session.standing:
                session.standing = told
                await send(worker_pb2.SessionResponse(standing=standing))
            if self._authority is not None and session.generation < self._authority.generation:
                # No chain: the new authorities to trust, and the wish that it ask for a certificate now.
                bundle = worker_pb2.Certificate(trust_bundle=self._authority.trust_bundle())
                await send(worker_pb2.SessionResponse(certificate=bundle))

    async def _hear(
        self,
        session: Session,
        requests: AsyncIterator[worker_pb2.SessionRequest],
        send: Send,
    ) -> None:
        async for request in requests:
            if not self._loop.heard(session.worker_id):
                await self._submit(m.ConnectWorker(session.worker_id, None))
            if self._expired(session):
                farewell = worker_pb2.Farewell(
                    reason="the certificate of this session has run out", retry=True
                )
                await send(worker_pb2.SessionResponse(farewell=farewell))
                return
            match request.WhichOneof("message"):
                case "heartbeat":
                    ack = worker_pb2.HeartbeatAck(sequence=request.heartbeat.sequence)
                    await send(worker_pb2.SessionResponse(heartbeat_ack=ack))
                case "observed":
                    await self._submit(wire.observed_from(session.worker_id, request.observed))
                    if await self._drained(session.worker_id, send):
                        return
                case "statements":
                    await self._accept(session.worker_id, request.statements.envelopes, send)
                    if await self._drained(session.worker_id, send):
                        return
                case "leaving":
                    # Also at its last stage: a worker that holds nothing has nothing to drain, and begins there.
                    await self._submit(m.DrainWorker(session.worker_id))
                    if await self._drained(session.worker_id, send):
                        return
                case "renew_certificate" | "owner_wish" | "fault_report" | "cached":
                    await self._change(session, request, send)
                case "probe_report":
                    if self.paths is not None:
                        self.paths.take(session.worker_id, request.probe_report)
                case "hello":
                    raise invalid("hello", "a session has one hello; open another session for another")
                case _:
                    # An agent may be newer than this: what is not known here does not end its session.
                    unknown = invalid("message", "this message is not known here; the agent may be newer")
                    self._count("message", session.worker_id, unknown)

    async def _change(
        self,
        session: Session,
        request: worker_pb2.SessionRequest,
        send: Send,
    ) -> None:
        """Messages that change what is kept of a worker: so many, and what comes beyond is not looked at.

        It is not acknowledged either, so an agent that means it says it again.
        """
        if not self._changes.take(session.worker_id, self._loop.now().monotonic_ms):
            refusal = RefusedError(RefusalCode.EXHAUSTED, TOO_MANY_CHANGES)
            self._count("change", session.worker_id, refusal)
        elif request.HasField("renew_certificate"):
            await self._renew(session, request.renew_certificate.tls_csr, send)
        elif request.HasField("owner_wish"):
            await self._grant(session, request.owner_wish, send)
        elif request.HasField("cached"):
            self._loop.cached(session.worker_id, cached_from(request.cached))
        else:
            await self._hold_devices(session.worker_id, request.fault_report, send)

    def _count(self, door: str, worker_id: WorkerId, refusal: RefusedError, count: int = 1) -> None:
        """One line and one number for what was refused, however much of it came in one message."""
        log.info("refused", door=door, worker_id=worker_id, reason=refusal.message, count=count)
        if self._observer is not None:
            self._observer.refused(door, refusal.code.value)

    async def _submit(self, command: m.Command) -> Committed:
        """Offer a command until there is room for it: what a worker says must not be lost to a busy minute."""
        while True:
            try:
                return await self._loop.submit(command)
            except RefusedError as refusal:
                if refusal.code is not RefusalCode.EXHAUSTED:
                    raise
            await asyncio.sleep(PATIENCE_S)

    async def _drained(self, worker_id: WorkerId, send: Send) -> bool:
        """Let a draining worker go once it holds nothing and has stated everything; whether it was."""
        farewell = await self._loop.read(lambda state: farewell_of(state, worker_id))
        if farewell is None:
            return False
        try:
            await self._submit(m.LeaveWorker(worker_id, told=True))
        except RefusedError:
            return False
        await send(worker_pb2.SessionResponse(farewell=farewell))
        return True

    # ------------------------------------------------------------ certificates

    def _generation_of(self, peer: Peer) -> int:
        return generation_of(self._authority, peer.certificate) if self._authority is not None else 0

    def _expired(self, session: Session) -> bool:
        return self._authority is not None and self._loop.now().wall_ms > session.not_after_ms

    async def _renew(
        self,
        session: Session,
        csr: bytes,
        send: Send,
    ) -> None:
        """The next certificate, for the same key under the same name."""
        authority = self._authority
        if authority is None:
            return
        try:
            generation, certificate = await certify(
                self._loop, self._submit, authority, session.worker_id, csr
            )
        except RefusedError as refusal:
            self._count("renewal", session.worker_id, refusal)
            return
        session.not_after_ms = certificate.not_after_unix_ms
        session.generation = generation
        await send(worker_pb2.SessionResponse(certificate=certificate))
        log.info("certificate_renewed", worker_id=session.worker_id)

    # ------------------------------------------------------------ what the owner wants

    async def _grant(
        self,
        session: Session,
        wish: worker_pb2.OwnerWish,
        send: Send,
    ) -> None:
        """Do what the owner asks of his own worker, and acknowledge it once it is durable, or refused for good.

        A refusal that says nothing of the wish ends the session: the agent says the wish again at the next.
        """
        said = ""
        try:
            for command in wished(session.worker_id, wish):
                await self._submit(command)
        except RefusedError as refusal:
            self._count("wish", session.worker_id, refusal)
            if refusal.code in TEMPORARY:
                raise
            session.standing = b""
            said = refusal.message
        session.dirty.set()
        if wish.number:
            ack = worker_pb2.WishAck(number=wish.number, refusal=said)
            await send(worker_pb2.SessionResponse(wish_ack=ack))

    async def _hold_devices(
        self,
        worker_id: WorkerId,
        report: worker_pb2.FaultReport,
        send: Send,
    ) -> None:
        """Cordon what fails; acknowledged as a wish is."""
        said = ""
        for command in faults_reported(worker_id, report):
            try:
                await self._submit(command)
            except RefusedError as refusal:
                self._count("fault", worker_id, refusal)
                if refusal.code in TEMPORARY:
                    raise
                said = refusal.message
        if report.number:
            ack = worker_pb2.FaultAck(number=report.number, refusal=said)
            await send(worker_pb2.SessionResponse(fault_ack=ack))

    def _standing(self, state: State, session: Session) -> standing_pb2.Standing:
        now = self._loop.now()
        standing = standing_to(state, state.workers[session.worker_id], state.time_ms(now))
        standing.clock_notice = session.clock_notice
        return standing

    async def _explain_end(self, session: Session, send: Send) -> None:
        """Why a session was ended from here; one that a newer session replaced has nobody left to tell."""
        worker = await self._loop.read(lambda state: state.workers.get(session.worker_id))
        hold = worker.shut_out if worker is not None else None
        if hold is not None:
            farewell = worker_pb2.Farewell(reason=hold.reason, retry=False)
            await send(worker_pb2.SessionResponse(farewell=farewell))
        elif self._by_worker.get(session.worker_id) is session:
            farewell = worker_pb2.Farewell(reason=session.farewell, retry=True)
            await send(worker_pb2.SessionResponse(farewell=farewell))

    # ------------------------------------------------------------ statements

    async def _accept(self, worker_id: WorkerId, envelopes: Sequence[bytes], send: Send) -> None:
        key = await self._loop.read(lambda state: statement_key(state, worker_id))
        refused = await accept_statements(worker_id, key, envelopes, self._submit, send)
        if refused:
            self._count("statements", worker_id, refused[0], len(refused))
