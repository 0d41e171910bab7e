"""The agent: one outbound session to the control plane, and behind it members, heads and the meter.

Everything it is told is a level, so a lost connection costs nothing but time: after each reconnection it is
told again and tells again. Nodes go on meanwhile, until their keepers' deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from orchestrator.agent.heads import HeadDuty
from orchestrator.agent.members import ROLES, Members
from orchestrator.agent.meter import Meter
from orchestrator.agent.notices import Notices
from orchestrator.agent.ports import RefusedForeverError
from orchestrator.agent.session import Greeter, Sessions, bid_farewell
from orchestrator.api.v1 import agent_pb2, common_pb2, worker_pb2

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from orchestrator.adapters.node_records import NodeStatus
    from orchestrator.agent.ports import (
        AgentClock,
        Attendant,
        ControlChannel,
        ControlPlane,
        HeadFactory,
        Journal,
        NodeDriver,
        Prober,
    )
    from orchestrator.agent.wishes import Reclaim

log = structlog.get_logger(__name__)

DRAIN_PATIENCE_MS = 20_000
"""A restart of the control plane takes seconds. Past this a leaving supplier is not kept waiting for it."""

RECLAIM_GRACE_MS = 2_000
"""After the end that a reclaim set: the network's own word to stop comes about then, and ends what runs in order."""

STATEMENTS_MAX = 500
"""Per message: some 800 bytes each, far below gRPC's 4 MiB even after a day without connection."""


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """Who this agent is, and how often it looks. ``network_id`` lets it state before its first session."""

    worker_id: str
    agent_version: str
    inventory: common_pb2.Inventory
    cache_dir: Path
    poll_s: float = 0.2
    network_id: str = ""
    overlay_public_key: bytes = b""
    """Of the worker's own certificate in the overlay; empty: it uses none."""


class Agent:
    """One worker's daemon, free of real parts: those come in through the ports."""

    def __init__(
        self,
        settings: AgentSettings,
        key: Ed25519PrivateKey,
        control: ControlPlane,
        driver: NodeDriver,
        heads: HeadFactory,
        journal: Journal,
        clock: AgentClock,
        attendants: Sequence[Attendant] = (),
    ) -> None:
        self._settings = settings
        self._control = control
        self._make_head = heads
        self._prober: Prober | None = None
        self._journal = journal
        self._clock = clock
        self._record = journal.load()
        greeter = Greeter(
            settings.worker_id,
            settings.agent_version,
            settings.inventory,
            key,
            journal,
            self._record,
            clock,
            settings.overlay_public_key,
        )
        self._sessions = Sessions(control, greeter, clock, self, attendants)
        gpu_ids = frozenset(
            device.device_id
            for device in settings.inventory.devices
            if device.kind == common_pb2.DEVICE_KIND_GPU
        )
        places = max(1, settings.inventory.slots + settings.inventory.head_slots)
        self._members = Members(driver, max(1, settings.inventory.cpus // places), gpu_ids)
        self._meter = Meter(journal, self._record, clock, key)
        self._meter.identify(settings.network_id, settings.worker_id)
        self._notices = Notices(driver, clock)
        self._reclaimed: Callable[[], Reclaim | None] = lambda: None
        self._shut = False
        """Taken back by its owner, and the notice he gave is over."""
        self._told: list[worker_pb2.DesiredMember] = []
        self._ended_here: frozenset[str] = frozenset()
        """Members that were ended by the owner's word: not begun again, however long the network still lists them."""
        self._duties: dict[str, HeadDuty] = {}
        self._wake = asyncio.Event()
        self._seen_version = 0
        self._ended_leases: list[worker_pb2.DesiredLease] = []
        self._taken_over = False
        """A desired list has been received by this process: until then nothing is ended."""
        self._welcome: worker_pb2.Welcome | None = None
        self._sent_report = b""
        self._draining = False
        self._patience = (clock.boottime_ms(), 0)
        """When leaving last got on, and the statements still to be delivered then."""
        self._abandoned = False
        self._left = asyncio.Event()
        self._heartbeat_rtt_s: float | None = None

    # ------------------------------------------------------------ life

    async def run(self) -> None:
        """Serve until ``drain`` has finished. Raises RefusedForeverError."""
        loops = [asyncio.create_task(self._work()), asyncio.create_task(self._state_regularly())]
        connecting = asyncio.create_task(self._stay_connected())
        leaving = asyncio.create_task(self._left.wait())
        try:
            done, _ = await asyncio.wait([*loops, connecting, leaving], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (*loops, connecting, leaving):
                task.cancel()
            await asyncio.gather(*loops, connecting, leaving, return_exceptions=True)
            await asyncio.gather(*(duty.close() for duty in self._duties.values()), return_exceptions=True)
            if self._prober is not None:
                await self._prober.close()
            await self._members.settle()

    def obey(self, reclaimed: Callable[[], Reclaim | None]) -> None:
        """Ask this, at every look, whether the owner has taken his machine back."""
        self._reclaimed = reclaimed

    def measure_with(self, prober: Prober) -> None:
        """Have this measure the ways between members; without it none of them may be in an overlay."""
        self._prober = prober

    def drain(self) -> None:
        """Give everything back: members end, last statements go out, then ``run`` returns.

        A control plane that cannot be reached for DRAIN_PATIENCE_MS is not waited for: members end by this
        agent's own decision, and statements that were not acknowledged stay in the journal.
        """
        self._draining = True
        self._patience = (self._clock.boottime_ms(), len(self._record.statements))
        self._sessions.hurry()
        self._wake.set()

    @property
    def abandoned(self) -> bool:
        """Whether a drain ended without the control plane."""
        return self._abandoned

    @property
    def undelivered(self) -> int:
        """Statements that wait for their acknowledgement."""
        return len(self._record.statements)

    # ------------------------------------------------------------ session

    async def _stay_connected(self) -> None:
        try:
            await self._sessions.run()
        except RefusedForeverError as error:
            if not self._draining:
                raise
            log.warning("refused_while_leaving", reason=str(error))
            self._abandon()
            await self._left.wait()

    async def begun(self, channel: ControlChannel, welcome: worker_pb2.Welcome) -> None:
        """As Listener.begun: tell everything again."""
        self._meter.identify(welcome.network_id, self._settings.worker_id)
        self._members.await_renewal()
        self._welcome = welcome
        self._sent_report = b""
        await self._send_statements(channel)
        self._wake.set()

    def acknowledged(self, sent_boottime_ms: int, welcome: worker_pb2.Welcome) -> None:
        """As Listener.acknowledged: nodes may run on from the sending, not from the answer."""
        self._heartbeat_rtt_s = (self._clock.boottime_ms() - sent_boottime_ms) / 1000
        self._meter.heartbeat_acknowledged()
        self._members.renew(sent_boottime_ms + welcome.lease_ttl_ms)

    def take(self, message: worker_pb2.SessionResponse) -> None:
        """As Listener.take."""
        match message.WhichOneof("message"):
            case "desired":
                self._take_desired(message.desired)
            case "statement_ack":
                self._meter.acknowledged(message.statement_ack.lease_id, message.statement_ack.sequence)
                self._wake.set()
            case "farewell":
                # One that comes before all is given back, say from a restart, does not let this agent go.
                if self._given_back and (self._draining or not message.farewell.retry):
                    log.info("let_go", reason=message.farewell.reason)
                    self._left.set()
                else:
                    bid_farewell(message.farewell)
            case _:
                pass

    def _take_desired(self, desired: worker_pb2.Desired) -> None:
        if desired.term < self._record.term:
            log.warning("stale_desired_refused", term=desired.term, known_term=self._record.term)
            return
        if self._abandoned:
            return
        if desired.term > self._record.term:
            self._record.term = desired.term
            self._journal.save(self._record)
        self._seen_version = desired.version
        self._taken_over = True
        self._told = list(desired.members)
        self._notices.take(self._told)
        self._want()
        self._ended_leases = list(desired.ended_leases)
        self._wake.set()

    def _want(self) -> None:
        """Want what the network wants, as far as the owner lets it."""
        self._ended_here &= {member.member_id for member in self._told}
        allowed = [member for member in self._told if member.member_id not in self._ended_here]
        self._members.want([] if self._shut else allowed)

    def _obey_owner(self) -> None:
        """Pass his reclaim on as a notice; once that is over, end what the network has not ended by then."""
        reclaim = None if self._abandoned else self._reclaimed()
        self._notices.obey(reclaim)
        now_ms = self._clock.boottime_ms()
        shut = reclaim is not None and now_ms >= reclaim.deadline_boottime_ms + RECLAIM_GRACE_MS
        if shut == self._shut:
            return
        self._shut = shut
        if shut:
            log.info("taken_back", members=sorted(self._members.statuses))
            self._ended_here |= frozenset(self._members.statuses) | frozenset(self._members.desired)
            # The owner's word needs nobody else's: also before the network has said what it wants here.
            self._taken_over = True
        self._want()

    # ------------------------------------------------------------ the owner's view

    @property
    def connected(self) -> bool:
        """Whether a session is open."""
        return self._sessions.channel is not None

    @property
    def last_error(self) -> str:
        """Why the last session ended, or none could be had."""
        return self._sessions.last_error

    @property
    def sessions_begun(self) -> int:
        """In all lives of this agent."""
        return self._record.sessions

    @property
    def heartbeat_rtt_s(self) -> float | None:
        """From the newest acknowledged heartbeat's sending to its answer; None before the first."""
        return self._heartbeat_rtt_s

    @property
    def nodes(self) -> Mapping[str, NodeStatus]:
        """How every member that is here was seen last."""
        return self._members.statuses

    def shown_members(self) -> list[agent_pb2.AgentMember]:
        """What is here of the network's, for the owner."""
        return [
            agent_pb2.AgentMember(
                member_id=member_id,
                phase=status.phase if member_id in self._members.desired else "stopping",
                device_ids=sorted(self._members.devices_of(member_id)),
                notice="; ".join(
                    f"goes in {-(-one.remaining_ms // 1000)} s: {one.reason}"
                    for one in self._notices.warned(member_id)
                    if one.member_id == member_id
                ),
            )
            for member_id, status in self._members.statuses.items()
        ]

    # ------------------------------------------------------------ work

    async def _work(self) -> None:
        """Observe, converge, count, report: whenever something changed, and regularly."""
        while True:
            self._members.observe()
            self._obey_owner()
            self._notices.write({one: status.phase for one, status in self._members.statuses.items()})
            if self._taken_over:
                # Counted first: a lease must be closed durably before the node it ran on is ended.
                if self._count():
                    self._meter.state(interim=False)
                    await self._try(self._send_statements)
                self._members.converge()
                await self._follow_heads()
                if self._prober is not None:
                    self._prober.follow(self._members.desired, self._members.statuses)
            await self._try(self._report)
            if self._draining:
                await self._try(self._leave)
                self._lose_patience()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.poll_s):
                    await self._wake.wait()
            self._wake.clear()

    def _count(self) -> bool:
        """Bring the meter to what the nodes are now; whether a lease ended by it."""
        ended = self._meter.follow(self._members.desired, self._members.running(), self._members.ended())
        return self._meter.close_unknown(self._ended_leases) or ended

    async def _try(self, action: Callable[[ControlChannel], Awaitable[None]]) -> None:
        """Run a sending action if there is a session; its loss is the session loop's business."""
        channel = self._sessions.channel
        if channel is None:
            return
        with contextlib.suppress(ConnectionError):
            await action(channel)

    async def _follow_heads(self) -> None:
        running = set(self._members.running())
        for member_id in [
            one for one in self._duties if one not in running or one not in self._members.desired
        ]:
            await self._duties.pop(member_id).close()
        for member_id in running:
            wanted = self._members.desired.get(member_id)
            if wanted is None or ROLES[wanted.role] == "member":
                continue
            duty = self._duties.get(member_id)
            if duty is None:
                client = self._make_head(self._members.statuses[member_id], wanted.cluster_token)
                duty = self._duties[member_id] = HeadDuty(
                    member_id,
                    client,
                    self._control,
                    self._settings.cache_dir,
                    self._wake.set,
                    self._settings.poll_s,
                )
            duty.want(list(wanted.attempts))
            duty.warn(self._notices.warned(member_id))

    async def _report(self, channel: ControlChannel) -> None:
        if not self._taken_over:
            return
        reports = self._members.report()
        for report in reports:
            duty = self._duties.get(report.member_id)
            if duty is not None:
                duty.complete(report)
            if self._prober is not None:
                self._prober.complete(report)
        observed = worker_pb2.Observed(seen_version=self._seen_version, members=reports)
        encoded = observed.SerializeToString(deterministic=True)
        if encoded != self._sent_report:
            await channel.send(worker_pb2.SessionRequest(observed=observed))
            self._sent_report = encoded

    async def _state_regularly(self) -> None:
        while True:
            interval_ms = self._welcome.statement_interval_ms if self._welcome is not None else 1_000
            await asyncio.sleep(max(100, interval_ms) / 1000)
            if self._welcome is not None and self._taken_over:
                # Looked at anew, because the work loop may be held up by a dead connection: no node, no time.
                # What is stated ends before the look: this process may be held up between that and its words.
                looked_ms = self._clock.boottime_ms()
                self._members.observe()
                self._count()
                until_ms = min(looked_ms, self._members.deadline_boottime_ms)
                self._meter.state(interim=True, until_boottime_ms=until_ms)
                await self._try(self._send_statements)

    async def _send_statements(self, channel: ControlChannel) -> None:
        pending = self._meter.pending()
        for start in range(0, len(pending), STATEMENTS_MAX):
            batch = worker_pb2.StatementBatch(envelopes=pending[start : start + STATEMENTS_MAX])
            await channel.send(worker_pb2.SessionRequest(statements=batch))

    @property
    def _given_back(self) -> bool:
        """No member is wanted or left here, and every statement is acknowledged."""
        return self._taken_over and not self._members.desired and self._members.empty and self._meter.idle

    async def _leave(self, channel: ControlChannel) -> None:
        stage = worker_pb2.LEAVING_STAGE_DONE if self._given_back else worker_pb2.LEAVING_STAGE_DRAIN
        await channel.send(worker_pb2.SessionRequest(leaving=worker_pb2.Leaving(stage=stage)))

    def _lose_patience(self) -> None:
        """Leave without the control plane where leaving has not got on for long."""
        if self._abandoned:
            if self._members.empty:
                self._left.set()
            return
        now_ms, undelivered = self._clock.boottime_ms(), len(self._record.statements)
        begun_ms, before = self._patience
        # While members are here and it is connected, how long that takes is the control plane's to say.
        its_turn = self._sessions.channel is not None and not self._members.empty
        if its_turn or undelivered != before:
            self._patience = (now_ms, undelivered)
        elif now_ms - begun_ms > DRAIN_PATIENCE_MS:
            log.warning("leaving_alone", undelivered=undelivered)
            self._abandon()

    def _abandon(self) -> None:
        """End the members by this agent's own decision; whatever it is told from now on changes nothing."""
        self._abandoned = True
        self._taken_over = True
        self._members.want([])
        self._wake.set()
