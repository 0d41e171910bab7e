"""The agent against a control plane in memory: sessions, terms, statements and leaving."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from orchestrator.adapters.node_records import NodeStatus
from orchestrator.adapters.peers import SESSION_CONTEXT
from orchestrator.agent.agent import DRAIN_PATIENCE_MS, Agent, AgentSettings
from orchestrator.agent.journal import Record
from orchestrator.agent.ports import RefusedForeverError
from orchestrator.api.v1 import common_pb2, standing_pb2, worker_pb2
from tests.agent.fakes import (
    DEADLINE_S,
    TTL_MS,
    FakeAttendant,
    FakeChannel,
    FakeClock,
    FakeControl,
    FakeHead,
    FakeJournal,
    FakeNodes,
    desired_member,
    gpu,
    lease,
)
from tests.polling import wait_until_async


class FakeProber:
    """Has measured one way for each member that it is told to follow."""

    def __init__(self) -> None:
        self.followed: dict[str, str] = {}
        self.closed = False

    def follow(
        self, desired: Mapping[str, worker_pb2.DesiredMember], statuses: Mapping[str, NodeStatus]
    ) -> None:
        self.followed = {one: statuses[one].phase if one in statuses else "" for one in desired}

    def complete(self, report: worker_pb2.MemberObserved) -> None:
        if report.member_id in self.followed:
            report.paths.add(peer_id="m-9", sent=20, received=20)

    async def close(self) -> None:
        self.closed = True


KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
INVENTORY = common_pb2.Inventory(devices=[gpu("d0")], cpus=4, slots=1)


class Lab:
    """One machine whose agent may be restarted."""

    def __init__(self, cache_dir: Path) -> None:
        self.cache_dir = cache_dir
        self.control = FakeControl()
        self.nodes = FakeNodes()
        self.head = FakeHead()
        self.journal = FakeJournal()
        self.clock = FakeClock()
        self.attendants: tuple[FakeAttendant, ...] = ()
        self.agent: Agent
        self.running: asyncio.Task[None] | None = None

    def start(self, *, poll_s: float = 0.005) -> None:
        settings = AgentSettings("wk_1", "1", INVENTORY, self.cache_dir, poll_s=poll_s, network_id="net_1")
        self.agent = Agent(
            settings,
            KEY,
            self.control,
            self.nodes,
            lambda *_: self.head,
            self.journal,
            self.clock,
            attendants=self.attendants,
        )
        self.running = asyncio.create_task(self.agent.run())

    async def kill(self) -> None:
        assert self.running is not None
        self.running.cancel()
        with contextlib.suppress(asyncio.CancelledError, RefusedForeverError):
            await self.running

    async def finish(self) -> None:
        assert self.running is not None
        async with asyncio.timeout(DEADLINE_S):
            await self.running

    async def admitted(self, number: int = 1, term: int = 1) -> FakeChannel:
        channel = await self.control.session(number)
        await channel.admit(term)
        await channel.acknowledge_heartbeat()
        return channel

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        await wait_until_async(condition, what=what, deadline_s=DEADLINE_S)

    async def run_leased_node(self, channel: FakeChannel) -> None:
        """A member that is up, and a lease that is counted on it."""
        desire(channel, 1, desired_member("m-0", "d0"))
        await self.until(lambda: "m-0" in self.nodes.deadlines_ms, "the node's start")
        self.nodes.come_up("m-0")
        desire(channel, 2, desired_member("m-0", "d0", leases=[lease("l-1", "d0")]))
        await self.until(lambda: "l-1" in self.journal.load().leases, "the lease")


def desire(channel: FakeChannel, version: int, *members: worker_pb2.DesiredMember, term: int = 1) -> None:
    channel.answer(desired=worker_pb2.Desired(term=term, version=version, members=members))


def reports(channel: FakeChannel) -> list[worker_pb2.Observed]:
    return [message.observed for message in channel.of_kind("observed")]


def stages(channel: FakeChannel) -> list[int]:
    return [message.leaving.stage for message in channel.of_kind("leaving")]


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    made = Lab(tmp_path)
    made.start()
    yield made
    made.nodes.may_stop.set()
    await made.kill()


async def test_agent_hello_is_signed_over_the_nonce_and_its_id(lab: Lab) -> None:
    channel = await lab.control.session()
    hello = await channel.admit()
    KEY.public_key().verify(hello.signature, SESSION_CONTEXT + b"n" * 32 + b"wk_1")
    assert hello.inventory == INVENTORY
    await lab.until(lambda: lab.control.tokens == ["token-1"], "the session token")


async def test_agent_hello_tells_its_own_wall_clock(lab: Lab) -> None:
    channel = await lab.control.session()
    assert (await channel.admit()).wall_ms == lab.clock.wall_ms


async def test_agent_session_number_rises_with_each_session_and_over_restarts(lab: Lab) -> None:
    first = await lab.control.session(1)
    numbers = [(await first.admit()).session_number]
    first.cut()
    numbers.append((await (await lab.control.session(2)).admit()).session_number)
    await lab.kill()
    lab.start()
    numbers.append((await (await lab.control.session(3)).admit()).session_number)
    assert numbers == [1, 2, 3]


class FullDiskJournal(FakeJournal):
    """Saves nothing."""

    def save(self, record: Record) -> None:
        raise OSError("no space left on device")


async def test_agent_session_number_that_is_not_durable_is_not_said(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.journal = FullDiskJournal()
    lab.start()
    channel = await lab.control.session()
    channel.answer(challenge=worker_pb2.Challenge(nonce=b"n" * 32))
    with pytest.raises(OSError, match="no space left"):
        await lab.finish()
    assert channel.of_kind("hello") == []


async def test_agent_attendant_sends_in_each_session_and_its_end_leaves_the_session_open(lab: Lab) -> None:
    await lab.kill()
    wish = worker_pb2.SessionRequest(owner_wish=worker_pb2.OwnerWish(cordon=worker_pb2.Cordon(reason="tea")))
    lab.attendants = (FakeAttendant(wish), FakeAttendant())
    lab.start()
    number = len(lab.control.channels) + 1
    channel = await lab.admitted(number)
    await channel.await_kind("owner_wish")
    channel.answer(standing=standing_pb2.Standing(reliability_bp=9_000))
    seen = lab.attendants[1].seen
    await lab.until(lambda: len(seen) == 2, "the standing")
    assert [one.WhichOneof("message") for one in seen] == ["welcome", "standing"]
    assert (seen[0].welcome.network_id, seen[1].standing.reliability_bp) == ("net_1", 9_000)
    await channel.await_kind("heartbeat", 3)
    assert not channel.closed


async def test_agent_reports_what_its_prober_has_measured_and_ends_it(lab: Lab) -> None:
    prober = FakeProber()
    lab.agent.measure_with(prober)
    channel = await lab.admitted()
    desire(channel, 1, desired_member("m-0", "d0"))
    await lab.until(lambda: prober.followed == {"m-0": "starting"}, "the prober to be told")
    await lab.until(lambda: any(one.paths for report in reports(channel) for one in report.members), "a way")
    (member,) = reports(channel)[-1].members
    assert [path.peer_id for path in member.paths] == ["m-9"]
    desire(channel, 2)
    await lab.until(lambda: prober.followed == {}, "the prober to let go")
    await lab.kill()
    assert prober.closed


async def test_agent_acknowledged_heartbeat_renews_from_its_sending(lab: Lab) -> None:
    channel = await lab.control.session()
    await channel.admit()
    sent_ms = lab.clock.now_ms
    await channel.await_kind("heartbeat")
    lab.clock.now_ms += 5_000
    await channel.acknowledge_heartbeat()
    desire(channel, 1, desired_member("m-0", "d0"))
    await lab.until(lambda: "m-0" in lab.nodes.deadlines_ms, "the node's start")
    assert lab.nodes.deadlines_ms["m-0"] == sent_ms + TTL_MS


async def test_agent_list_arriving_twice_starts_a_node_once_and_is_reported_with_its_version(
    lab: Lab,
) -> None:
    channel = await lab.admitted()
    for version in (1, 2):
        desire(channel, version, desired_member("m-0", "d0"))
    await lab.until(lambda: "m-0" in lab.nodes.deadlines_ms, "the node's start")
    await lab.until(lambda: reports(channel)[-1].seen_version == 2, "version 2")
    assert lab.nodes.calls.count(("start", "m-0")) == 1


async def test_agent_list_of_a_lower_term_is_refused(lab: Lab) -> None:
    channel = await lab.admitted(term=3)
    desire(channel, 7, desired_member("m-0", "d0"), term=3)
    await lab.until(lambda: "m-0" in lab.nodes.deadlines_ms, "the node's start")
    desire(channel, 9, term=2)
    desire(channel, 8, desired_member("m-0", "d0"), term=3)
    await lab.until(lambda: reports(channel)[-1].seen_version == 8, "version 8")
    assert ("stop", "m-0") not in lab.nodes.calls


async def test_agent_control_plane_of_a_lower_term_is_left_even_after_a_restart(lab: Lab) -> None:
    channel = await lab.admitted(term=3)
    desire(channel, 1, term=3)
    await lab.until(lambda: lab.journal.load().term == 3, "the term")
    await lab.kill()
    lab.start()
    stale = await lab.control.session(2)
    assert (await stale.admit(term=2)).term == 3
    await lab.until(lambda: stale.closed, "the end of the stale session")
    assert lab.control.tokens == ["token-3"]


async def test_agent_reconnection_reports_again_and_resends_statements(lab: Lab) -> None:
    first = await lab.admitted()
    await lab.run_leased_node(first)
    lab.clock.now_ms += 1_000
    desire(first, 3, desired_member("m-0", "d0"))
    sent = (await first.await_kind("statements")).statements.envelopes
    first.cut()
    second = await lab.admitted(2, term=2)
    assert (await second.await_kind("statements")).statements.envelopes == sent
    second.answer(statement_ack=worker_pb2.StatementAck(lease_id="l-1", sequence=0))
    await lab.until(lambda: not lab.journal.load().statements, "the acknowledgement")
    assert (await second.await_kind("observed")).observed.members[0].member_id == "m-0"
    second.cut()
    third = await lab.admitted(3, term=3)
    await third.await_kind("observed")
    assert third.of_kind("statements") == []


async def test_agent_that_is_held_up_while_it_looks_states_no_time_after_its_look(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lab.run_leased_node(await lab.admitted())
    await lab.kill()
    # From now on it looks only when it is told something, and where it is about to state.
    lab.start(poll_s=3_600)
    channel = await lab.control.session(2)
    await channel.admit(statement_interval_ms=100)
    await channel.acknowledge_heartbeat()
    desire(channel, 3, desired_member("m-0", "d0", leases=[lease("l-1", "d0")]))
    await lab.until(lambda: any(one.seen_version == 3 for one in reports(channel)), "version 3")
    held_up_ms = 1_500
    behind_ms: set[int] = set()
    discover, save = lab.nodes.discover, lab.journal.save

    def slow_discover() -> Sequence[str]:
        lab.clock.now_ms += held_up_ms
        return discover()

    def seen_save(record: Record) -> None:
        for counted in record.leases.values():
            stated_until_ms = counted.started_boottime_ms + counted.stated_offset_ms
            if counted.stated_offset_ms:
                behind_ms.add(lab.clock.now_ms - stated_until_ms)
        save(record)

    monkeypatch.setattr(lab.nodes, "discover", slow_discover)
    monkeypatch.setattr(lab.journal, "save", seen_save)
    await channel.await_kind("statements")
    assert min(behind_ms) >= held_up_ms


async def test_agent_backlog_of_statements_goes_in_bounded_messages(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.agent.agent.STATEMENTS_MAX", 1)
    first = await lab.admitted()
    await lab.run_leased_node(first)
    desire(first, 3)
    await first.await_kind("statements")
    first.cut()
    record = lab.journal.load()
    assert len(record.statements) == 1
    record.statements.append(record.statements[0])
    lab.journal.save(record)
    await lab.kill()
    lab.start()
    after = await lab.admitted(len(lab.control.channels) + 1, term=2)
    await after.await_kind("statements", 2)
    assert [len(one.statements.envelopes) for one in after.of_kind("statements")[:2]] == [1, 1]


async def test_agent_silent_control_plane_is_left_and_called_again(lab: Lab) -> None:
    channel = await lab.control.session()
    await channel.admit(lease_ttl_ms=20)
    await lab.control.session(2)
    assert channel.closed


async def test_agent_that_cannot_send_heartbeats_does_not_keep_half_a_session(lab: Lab) -> None:
    channel = await lab.admitted()
    channel.broken = True
    await lab.control.session(2)
    assert channel.closed


async def test_agent_restart_ends_nothing_before_it_is_told(lab: Lab) -> None:
    channel = await lab.admitted()
    await lab.run_leased_node(channel)
    await lab.kill()
    lab.start()
    channel = await lab.admitted(2)
    await channel.await_kind("heartbeat", 3)
    assert ("stop", "m-0") not in lab.nodes.calls
    assert reports(channel) == []
    desire(channel, 3, desired_member("m-0", "d0", leases=[lease("l-1", "d0")]))
    up = (await channel.await_kind("observed")).observed.members[0]
    assert up.phase == worker_pb2.MEMBER_PHASE_UP
    assert lab.nodes.calls.count(("start", "m-0")) == 1


async def test_agent_member_waits_for_the_device_of_one_that_is_still_going(lab: Lab) -> None:
    channel = await lab.admitted()
    await lab.run_leased_node(channel)
    lab.nodes.may_stop.clear()
    desire(channel, 3, desired_member("m-1", "d0"))
    await lab.until(lambda: ("stop", "m-0") in lab.nodes.calls, "the stop")
    await lab.until(lambda: any(one.seen_version == 3 for one in reports(channel)), "version 3")
    assert ("prepare", "m-1") not in lab.nodes.calls
    lab.nodes.may_stop.set()
    await lab.until(lambda: "m-1" in lab.nodes.deadlines_ms, "the next node")


async def test_agent_refused_for_good_stops_with_the_reason(lab: Lab) -> None:
    channel = await lab.control.session()
    channel.answer(farewell=worker_pb2.Farewell(reason="no such worker", retry=False))
    with pytest.raises(RefusedForeverError, match="no such worker"):
        await lab.finish()


async def test_agent_farewell_that_allows_it_comes_back(lab: Lab) -> None:
    channel = await lab.admitted()
    channel.answer(farewell=worker_pb2.Farewell(reason="restarting", retry=True))
    await lab.control.session(2)


async def test_agent_drain_gives_back_then_waits_for_the_farewell(lab: Lab) -> None:
    channel = await lab.admitted()
    await lab.run_leased_node(channel)
    lab.agent.drain()
    await lab.until(lambda: worker_pb2.LEAVING_STAGE_DRAIN in stages(channel), "the drain")
    desire(channel, 3)
    await channel.await_kind("statements")
    await lab.until(lambda: not lab.nodes.nodes, "the node's end")
    assert worker_pb2.LEAVING_STAGE_DONE not in stages(channel)
    channel.answer(statement_ack=worker_pb2.StatementAck(lease_id="l-1", sequence=0))
    await lab.until(lambda: worker_pb2.LEAVING_STAGE_DONE in stages(channel), "done")
    assert lab.running is not None
    assert not lab.running.done()
    channel.answer(farewell=worker_pb2.Farewell(reason="left", retry=True))
    await lab.finish()
    assert (lab.agent.abandoned, lab.agent.undelivered) == (False, 0)


async def test_agent_farewell_of_a_restart_does_not_end_a_drain(lab: Lab) -> None:
    channel = await lab.admitted()
    await lab.run_leased_node(channel)
    lab.agent.drain()
    await channel.await_kind("leaving")
    channel.answer(farewell=worker_pb2.Farewell(reason="restarting", retry=True))
    second = await lab.admitted(2)
    assert (await second.await_kind("leaving")).leaving.stage == worker_pb2.LEAVING_STAGE_DRAIN
    assert "m-0" in lab.nodes.nodes


async def test_agent_drain_without_a_control_plane_stops_members_and_keeps_statements(lab: Lab) -> None:
    channel = await lab.admitted()
    await lab.run_leased_node(channel)
    lab.control.away = True
    channel.cut()
    lab.agent.drain()
    await lab.until(lambda: channel.closed, "the session's end")
    assert "m-0" in lab.nodes.nodes
    lab.clock.now_ms += DRAIN_PATIENCE_MS + 1
    await lab.finish()
    assert lab.nodes.nodes == {}
    assert (lab.agent.abandoned, lab.agent.undelivered) == (True, 1)
    assert [one.final for one in lab.journal.load().statements] == [True]


async def test_agent_run_again_after_a_lonely_drain_delivers_what_was_kept(lab: Lab) -> None:
    channel = await lab.admitted()
    await lab.run_leased_node(channel)
    lab.control.away = True
    channel.cut()
    lab.agent.drain()
    await lab.until(lambda: channel.closed, "the session's end")
    lab.clock.now_ms += DRAIN_PATIENCE_MS + 1
    await lab.finish()
    lab.control.away = False
    lab.start()
    again = await lab.admitted(2)
    await again.await_kind("statements")
    assert (await again.await_kind("hello")).hello.worker_id == "wk_1"


async def test_agent_refused_while_draining_still_gives_everything_back(lab: Lab) -> None:
    channel = await lab.admitted()
    await lab.run_leased_node(channel)
    lab.agent.drain()
    channel.cut()
    second = await lab.control.session(2)
    second.answer(farewell=worker_pb2.Farewell(reason="no such worker", retry=False))
    await lab.finish()
    assert lab.nodes.nodes == {}
    assert lab.agent.abandoned
