"""One session after another: connect, greet, beat and hear, and come back after each loss.

What a session is *for* is its listener's business. Attendants take part beside it, such as whoever keeps the
certificate valid: each may send for as long as the session lives, and sees every message.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Protocol

import structlog

from orchestrator.adapters.peers import session_claim
from orchestrator.agent.ports import RefusedForeverError
from orchestrator.api.v1 import common_pb2, worker_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from orchestrator.agent.journal import Record
    from orchestrator.agent.ports import AgentClock, Attendant, ControlChannel, ControlPlane, Journal

log = structlog.get_logger(__name__)

BACKOFF_S = 0.5
BACKOFF_S_MAX = 30.0
"""An outage of minutes must not end in everybody calling at once; jitter spreads what is left."""

LEAVING_BACKOFF_S_MAX = 2.0
"""Whoever wants to leave should not wait out a long backoff first."""

HANDSHAKE_S = 10.0
"""A control plane that takes longer is as good as not there."""

OPEN_S = 60.0
"""To connect; that may take a recovery first, whose answer must not be lost, because it is counted."""


class Greeter:
    """Says who this worker is at the beginning of a session."""

    def __init__(
        self,
        worker_id: str,
        agent_version: str,
        inventory: common_pb2.Inventory,
        key: Ed25519PrivateKey,
        journal: Journal,
        record: Record,
        clock: AgentClock,
        overlay_public_key: bytes = b"",
    ) -> None:
        self.worker_id = worker_id
        self._overlay_public_key = overlay_public_key
        self._agent_version = agent_version
        self._inventory = inventory
        self._key = key
        self._journal = journal
        self._record = record
        self._clock = clock

    async def greet(self, channel: ControlChannel) -> worker_pb2.Welcome:
        """Answer the challenge. Raises ConnectionError or RefusedForeverError."""
        nonce = (await _expect(channel, "challenge")).challenge.nonce
        # Counted durably before it is said: a number said twice is what gives a copy of this machine's files away.
        self._record.sessions += 1
        self._journal.save(self._record)
        hello = worker_pb2.Hello(
            worker_id=self.worker_id,
            signature=self._key.sign(session_claim(nonce, self.worker_id)),
            inventory=self._inventory,
            agent_version=self._agent_version,
            term=self._record.term,
            session_number=self._record.sessions,
            wall_ms=self._clock.now().wall_ms,
            overlay_public_key=self._overlay_public_key,
            answers_scrapes=True,
        )
        await channel.send(worker_pb2.SessionRequest(hello=hello))
        welcome = (await _expect(channel, "welcome")).welcome
        if welcome.term < self._record.term:
            raise ConnectionError(f"control plane of term {welcome.term} is behind {self._record.term}")
        return welcome


async def _expect(channel: ControlChannel, kind: str) -> worker_pb2.SessionResponse:
    message = await channel.receive()
    if message is None:
        raise ConnectionError("the control plane ended the session")
    if message.HasField("farewell"):
        bid_farewell(message.farewell)
    if message.WhichOneof("message") != kind:
        raise ConnectionError(f"expected {kind}, got {message.WhichOneof('message')}")
    return message


def bid_farewell(farewell: worker_pb2.Farewell) -> None:
    """End the session as the control plane says: for now, or for good."""
    if not farewell.retry:
        raise RefusedForeverError(farewell.reason)
    raise ConnectionError(farewell.reason)


class Listener(Protocol):
    """Whom the sessions are held for."""

    async def begun(self, channel: ControlChannel, welcome: worker_pb2.Welcome) -> None:
        """A session is open; whatever earlier ones were told may be unknown to it."""

    def acknowledged(self, sent_boottime_ms: int, welcome: worker_pb2.Welcome) -> None:
        """A heartbeat that was sent then has been answered."""

    def take(self, message: worker_pb2.SessionResponse) -> None:
        """Any message but an answered heartbeat. May raise what ends the session."""


class Sessions:
    """Holds a session whenever one can be had."""

    def __init__(
        self,
        control: ControlPlane,
        greeter: Greeter,
        clock: AgentClock,
        listener: Listener,
        attendants: Sequence[Attendant],
    ) -> None:
        self._control = control
        self._greeter = greeter
        self._clock = clock
        self._listener = listener
        self._attendants = tuple(attendants)
        self._sent_boottime_ms: dict[int, int] = {}
        self._failures = 0
        """Of connecting, in a row."""
        self._hurry = asyncio.Event()
        self._backoff_s_max = BACKOFF_S_MAX
        self.last_error = ""
        """Why the last session ended, or none could be had."""
        self.channel: ControlChannel | None = None
        """Of the session that is open now."""

    def hurry(self) -> None:
        """Wait no longer than a moment between sessions from now on, nor in the present pause."""
        self._backoff_s_max = LEAVING_BACKOFF_S_MAX
        self._hurry.set()

    async def run(self) -> None:
        """Stay connected. Raises RefusedForeverError; ends only so, or cancelled."""
        while True:
            try:
                await self._session()
            except (ConnectionError, TimeoutError) as error:
                self._failures += 1
                reason = self.last_error = str(error) or type(error).__name__
                log.info("session_lost", reason=reason, failures=self._failures)
            pause_s = self._clock.jitter(min(self._backoff_s_max, BACKOFF_S * 2 ** min(self._failures, 10)))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._hurry.wait()
            self._hurry.clear()

    async def _session(self) -> None:
        async with asyncio.timeout(OPEN_S):
            channel = await self._control.open()
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                welcome = await self._greeter.greet(channel)
            self._control.authorise(welcome.session_token)
            self._failures = 0
            self._sent_boottime_ms.clear()
            self.channel = channel
            log.info("session_open", worker_id=self._greeter.worker_id, term=welcome.term)
            for attendant in self._attendants:
                attendant.take(worker_pb2.SessionResponse(welcome=welcome))
            await self._listener.begun(channel, welcome)
            await self._converse(channel, welcome)
        finally:
            self.channel = None
            await channel.close()

    async def _converse(self, channel: ControlChannel, welcome: worker_pb2.Welcome) -> None:
        """Beat and hear until either ends: half a session keeps no node alive. An attendant may end earlier."""
        vital = {
            asyncio.create_task(self._beat(channel, welcome)),
            asyncio.create_task(self._hear(channel, welcome)),
        }
        tasks = vital | {asyncio.create_task(attendant.attend(channel)) for attendant in self._attendants}
        waiting = tasks
        try:
            while vital <= waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _beat(self, channel: ControlChannel, welcome: worker_pb2.Welcome) -> None:
        sequence = 0
        while True:
            sequence += 1
            self._sent_boottime_ms[sequence] = self._clock.boottime_ms()
            heartbeat = worker_pb2.Heartbeat(sequence=sequence)
            await channel.send(worker_pb2.SessionRequest(heartbeat=heartbeat))
            await asyncio.sleep(welcome.heartbeat_interval_ms / 1000)

    async def _hear(self, channel: ControlChannel, welcome: worker_pb2.Welcome) -> None:
        """Take messages. Silence for half a lease, though heartbeats are answered, is a connection lost."""
        while True:
            async with asyncio.timeout(welcome.lease_ttl_ms / 2_000):
                message = await channel.receive()
            if message is None:
                return
            if message.HasField("heartbeat_ack"):
                sent_ms = self._sent_boottime_ms.pop(message.heartbeat_ack.sequence, None)
                if sent_ms is not None:
                    self._listener.acknowledged(sent_ms, welcome)
                continue
            for attendant in self._attendants:
                attendant.take(message)
            self._listener.take(message)
