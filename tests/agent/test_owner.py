"""The owner's socket: who may speak, what is answered, and a reclaim that needs no network."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from orchestrator.agent.agent import RECLAIM_GRACE_MS, Agent, AgentSettings
from orchestrator.agent.owner import (
    SOCKET_PATH_BYTES_MAX,
    About,
    OwnerService,
    known_socket,
    listening,
    socket_path,
)
from orchestrator.agent.wishes import Wishes
from orchestrator.api.v1 import agent_pb2, common_pb2, standing_pb2, terms_pb2, worker_pb2
from orchestrator.api.v1.agent_pb2_grpc import AgentServiceStub
from tests.agent.fakes import (
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

if TYPE_CHECKING:
    from orchestrator.api.v1.agent_pb2_grpc import AgentServiceAsyncStub

TERMS_NOTICE_MS = 45_000


class Machine:
    """An agent with its socket, its network played by the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock, self.nodes, self.control = FakeClock(), FakeNodes(), FakeControl()
        self.journal, self.head = FakeJournal(), FakeHead()
        self.wishes = Wishes(folder, self.clock)
        settings = AgentSettings(
            worker_id="wrk_1",
            agent_version="1.2.3",
            inventory=common_pb2.Inventory(devices=[gpu("gpu-1"), gpu("gpu-2")], cpus=2, slots=2),
            cache_dir=folder,
            poll_s=0.01,
            network_id="net_1",
        )
        self.agent = Agent(
            settings,
            Ed25519PrivateKey.generate(),
            self.control,
            self.nodes,
            lambda _status, _token: self.head,
            self.journal,
            self.clock,
            (self.wishes,),
        )
        self.agent.obey(self.wishes.reclaim)
        about = About(
            worker_id="wrk_1",
            name="attic",
            agent_version="1.2.3",
            standing=lambda: standing_pb2.Standing(reliability_bp=9_000),
            notice_ms=lambda: TERMS_NOTICE_MS,
            not_after_ms=lambda: 5,
            isolation="box",
            overlay="none",
            remarks=("serves one-machine clusters only",),
            runtimes=lambda: [agent_pb2.AgentRuntime(name="default", state="building")],
        )
        self.service = OwnerService(about, self.agent, self.wishes, self.clock, ack_s=0.05)

    async def run_member(self, channel: FakeChannel) -> None:
        """One member that runs a lease, as the network wants it."""
        await channel.admit()
        await channel.acknowledge_heartbeat()
        self.desire(channel, desired_member("m1", "gpu-1", leases=[lease("l1", "gpu-1")]))
        await self.until(lambda: ("start", "m1") in self.nodes.calls, "m1 to start")
        self.nodes.come_up("m1")
        await self.until(lambda: "l1" in self.journal.load().leases, "the lease to be counted")

    def desire(self, channel: FakeChannel, *members: worker_pb2.DesiredMember, version: int = 1) -> None:
        channel.answer(desired=worker_pb2.Desired(term=1, version=version, members=members))

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        await wait_until_async(condition, what=what, deadline_s=60)


@asynccontextmanager
async def running(machine: Machine) -> AsyncIterator[AgentServiceAsyncStub]:
    """The agent at work, and a client of its socket."""
    work = asyncio.create_task(machine.agent.run())
    try:
        async with (
            listening(machine.folder, machine.service) as path,
            grpc.aio.insecure_channel(f"unix:{path}") as channel,
        ):
            yield AgentServiceStub(channel)
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)


def reclaim(notice_ms: int = 0, **fields: bool) -> agent_pb2.AskRequest:
    wish = worker_pb2.OwnerWish(reclaim=worker_pb2.Reclaim(reason="mine", notice_ms=notice_ms, **fields))
    return agent_pb2.AskRequest(wish=wish)


async def asked(agent: AgentServiceAsyncStub, request: agent_pb2.AskRequest) -> agent_pb2.AskResponse:
    return await agent.Ask(request)


UNCORDON = agent_pb2.AskRequest(wish=worker_pb2.OwnerWish(uncordon=worker_pb2.Uncordon()))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


async def test_get_agent_shows_who_it_is_and_why_it_is_not_connected(machine: Machine) -> None:
    machine.control.away = True
    async with running(machine) as agent:
        await machine.until(lambda: machine.agent.last_error != "", "a try to connect")
        shown = await agent.GetAgent(agent_pb2.GetAgentRequest())
    assert (shown.worker_id, shown.name, shown.agent_version) == ("wrk_1", "attic", "1.2.3")
    assert (shown.connected, shown.last_error) == (False, "connection refused")
    assert (shown.standing.reliability_bp, shown.certificate_not_after_unix_ms) == (9_000, 5)
    assert (shown.isolation, shown.overlay) == ("box", "none")
    assert list(shown.remarks) == ["serves one-machine clusters only"]
    assert [(one.name, one.state) for one in shown.runtimes] == [("default", "building")]


async def test_reclaim_reaches_the_network_and_the_jobs_at_once(machine: Machine) -> None:
    async with running(machine) as agent:
        channel = await machine.control.session()
        await machine.run_member(channel)
        answer = await agent.Ask(reclaim(notice_ms=20_000))
        assert answer.sent
        assert "1 member(s) end in 20 s" in answer.message
        wish = (await channel.await_kind("owner_wish")).owner_wish
        assert (wish.reclaim.notice_ms, wish.reclaim.reason) == (20_000, "mine")
        await machine.until(lambda: "m1" in machine.nodes.notices, "the notice file")
        shown = await agent.GetAgent(agent_pb2.GetAgentRequest())
        assert (shown.members[0].member_id, list(shown.members[0].device_ids)) == ("m1", ["gpu-1"])
        assert shown.members[0].notice == "goes in 20 s: mine"
        assert "m1" in machine.nodes.nodes


async def test_reclaim_without_the_network_ends_the_member_and_keeps_its_statement(machine: Machine) -> None:
    async with running(machine) as agent:
        channel = await machine.control.session()
        await machine.run_member(channel)
        machine.control.away = True
        channel.cut()
        await machine.until(lambda: not machine.agent.connected, "the session to end")
        answer = await agent.Ask(reclaim())
        assert not answer.sent
        assert "end in 45 s" in answer.message
        await machine.until(lambda: "m1" in machine.nodes.notices, "the notice file")
        machine.clock.now_ms += TERMS_NOTICE_MS
        assert "m1" in machine.nodes.nodes
        machine.clock.now_ms += RECLAIM_GRACE_MS
        await machine.until(lambda: "m1" not in machine.nodes.nodes, "m1 to be ended")
        record = machine.journal.load()
        assert [(one.lease_id, one.final) for one in record.statements] == [("l1", True)]
        shown = await agent.GetAgent(agent_pb2.GetAgentRequest())
        assert "given back" in shown.under_way


async def test_member_that_was_taken_back_is_not_begun_again_by_a_stale_list(machine: Machine) -> None:
    async with running(machine) as agent:
        channel = await machine.control.session()
        await machine.run_member(channel)
        await agent.Ask(reclaim(notice_ms=1_000))
        machine.clock.now_ms += 1_000 + RECLAIM_GRACE_MS
        await machine.until(lambda: "m1" not in machine.nodes.nodes, "m1 to be ended")
        machine.desire(channel, desired_member("m1", "gpu-1"), desired_member("m2", "gpu-2"), version=2)
        reports = len(channel.of_kind("observed"))
        machine.desire(channel, desired_member("m1", "gpu-1"), desired_member("m2", "gpu-2"), version=3)
        await channel.await_kind("observed", reports + 1)
        assert not machine.nodes.nodes
        await agent.Ask(UNCORDON)
        await machine.until(lambda: "m2" in machine.nodes.nodes, "m2, which was never ended")
        assert "m1" not in machine.nodes.nodes


async def test_ask_waits_for_the_networks_word_and_tells_a_refusal(machine: Machine) -> None:
    about = About(
        "wrk_1", "attic", "1", lambda: None, lambda: TERMS_NOTICE_MS, lambda: 0, lambda: "none came"
    )
    machine.service = OwnerService(about, machine.agent, machine.wishes, machine.clock)
    async with running(machine) as agent:
        channel = await machine.control.session()
        await channel.admit()
        await machine.until(lambda: machine.agent.connected, "a session")
        for refusal in ("", "this worker was shut out"):
            seen = len(channel.of_kind("owner_wish"))
            asking = asyncio.ensure_future(asked(agent, UNCORDON))
            wish = (await channel.await_kind("owner_wish", seen + 1)).owner_wish
            assert not asking.done()
            channel.answer(wish_ack=worker_pb2.WishAck(number=wish.number, refusal=refusal))
            answer = await asking
            assert (answer.sent, answer.refusal) == (True, refusal)
            assert answer.message == (
                f"the network refuses: {refusal}" if refusal else "the machine is offered again"
            )
        shown = await agent.GetAgent(agent_pb2.GetAgentRequest())
        assert shown.last_refusal == "uncordon: this worker was shut out"
        assert shown.certificate_notice == "none came"


async def test_ask_that_the_network_does_not_answer_says_so_and_is_kept(machine: Machine) -> None:
    async with running(machine) as agent:
        channel = await machine.control.session()
        await channel.admit()
        await machine.until(lambda: machine.agent.connected, "a session")
        answer = await agent.Ask(UNCORDON)
    assert (answer.sent, answer.refusal) == (True, "")
    assert "has not confirmed it yet" in answer.message
    assert machine.wishes.pending == ["uncordon"]


async def test_reclaim_outlives_the_agent_and_ends_what_it_finds(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.wishes.make(reclaim().wish, 1_000)
    again = Machine(tmp_path)
    again.clock.now_ms = machine.clock.now_ms + 1_000 + RECLAIM_GRACE_MS
    again.nodes.come_up("m1")
    again.control.away = True
    async with running(again):
        await again.until(lambda: not again.nodes.nodes, "what an earlier agent left to be ended")


async def test_uncordon_before_the_end_leaves_what_runs_alone(machine: Machine) -> None:
    async with running(machine) as agent:
        channel = await machine.control.session()
        await machine.run_member(channel)
        await agent.Ask(reclaim(notice_ms=60_000))
        await machine.until(lambda: "m1" in machine.nodes.notices, "the notice file")
        await agent.Ask(UNCORDON)
        await machine.until(lambda: "m1" not in machine.nodes.notices, "the notice to be taken back")
        machine.clock.now_ms += 60_000 + RECLAIM_GRACE_MS
        await channel.await_kind("heartbeat", len(channel.of_kind("heartbeat")) + 2)
        assert "m1" in machine.nodes.nodes


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (worker_pb2.OwnerWish(), "does not know such a wish"),
        (reclaim(busy=True).wish, "agent's own to say"),
        (reclaim(notice_ms=86_400_000).wish, "notice_ms: at most 3600000 ms"),
        (worker_pb2.OwnerWish(cordon=worker_pb2.Cordon(reason="a\nb")), "reason: one line"),
        (worker_pb2.OwnerWish(cordon=worker_pb2.Cordon(reason="a" * 201)), "reason: one line"),
        (worker_pb2.OwnerWish(terms=terms_pb2.Terms(committed=True, notice_ms=5)), "a committed worker"),
    ],
)
async def test_wish_that_nobody_can_mean_is_refused_with_its_field(
    machine: Machine, wish: worker_pb2.OwnerWish, words: str
) -> None:
    async with running(machine) as agent:
        with pytest.raises(grpc.aio.AioRpcError, match=words) as refused:
            await agent.Ask(agent_pb2.AskRequest(wish=wish))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert machine.wishes.pending == []


async def test_socket_is_the_owners_only_replaces_a_stale_one_and_goes(machine: Machine) -> None:
    path = socket_path(machine.folder)
    path.write_text("stale")
    async with running(machine) as agent:
        assert path.stat().st_mode & 0o777 == 0o600
        assert known_socket(machine.folder) == path
        await agent.GetAgent(agent_pb2.GetAgentRequest())
    assert not path.exists()


async def test_socket_of_a_long_path_is_short_private_and_noted(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * SOCKET_PATH_BYTES_MAX)
    folder.mkdir()
    machine = Machine(folder)
    async with running(machine) as agent:
        path = known_socket(folder)
        assert len(str(path)) <= SOCKET_PATH_BYTES_MAX
        assert path.parent.stat().st_mode & 0o777 == 0o700
        assert (await agent.GetAgent(agent_pb2.GetAgentRequest())).worker_id == "wrk_1"
    path.parent.rmdir()
