"""Answers to scrapes: only of what this agent has, only where its nodes are, and never at a session's cost."""

from __future__ import annotations

import asyncio
import gzip
import os
import re
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
import pytest

from orchestrator.adapters.box.records import BoxSpec
from orchestrator.adapters.metrics.catalogue import AGENT
from orchestrator.adapters.node_records import NodeSpec, NodeStatus
from orchestrator.agent.connection import ANSWER_PIECE_BYTES, GrpcControlPlane
from orchestrator.agent.exporter import AgentExporter
from orchestrator.agent.scraping import ORDERS_MAX, PORT, Scraping
from orchestrator.api.v1 import telemetry_pb2, worker_pb2
from tests.agent.fakes import DEADLINE_S, FakeChannel, settled
from tests.agent.scripted_server import ScriptedServer
from tests.agent.test_connection import FakeAccess
from tests.agent.test_daemon import Lab
from tests.polling import wait_until_async

NODE_IP = "127.0.0.2"
OWN = b"orchestrator_agent_sessions_total 1\n"


@dataclass
class FakeAnswers:
    """Where answers go, by number."""

    texts: dict[int, bytes] = field(default_factory=dict)
    refusals: dict[int, str] = field(default_factory=dict)
    error: Exception | None = None
    failed: int = 0
    held: asyncio.Event | None = None

    async def answer_scrape(self, number: int, packed_text: bytes, refusal: str = "") -> None:
        if self.held is not None:
            await self.held.wait()
        if self.error is not None:
            self.failed += 1
            raise self.error
        if refusal:
            self.refusals[number] = refusal
        else:
            self.texts[number] = gzip.decompress(packed_text)

    async def refused(self, number: int) -> str:
        await wait_until_async(
            lambda: number in self.refusals, what=f"refusal {number}", deadline_s=DEADLINE_S
        )
        return self.refusals[number]

    async def answered(self, number: int) -> bytes:
        await wait_until_async(lambda: number in self.texts, what=f"answer {number}", deadline_s=DEADLINE_S)
        return self.texts[number]


@dataclass
class Machine:
    """An agent's members, and the scraping of them in an open session."""

    answers: FakeAnswers = field(default_factory=FakeAnswers)
    nodes: dict[str, NodeStatus] = field(default_factory=dict)
    specs: dict[str, NodeSpec] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.scraping = Scraping(self.answers, lambda: OWN, lambda: self.nodes, self.specs.get)

    def order(self, number: int, member_id: str = "", deadline_ms: int = 5_000) -> None:
        order = telemetry_pb2.ScrapeOrder(number=number, member_id=member_id, deadline_ms=deadline_ms)
        self.scraping.take(worker_pb2.SessionResponse(scrape_order=order))


@pytest.fixture
async def machine() -> AsyncIterator[Machine]:
    made = Machine()
    attending = asyncio.create_task(made.scraping.attend(FakeChannel()))
    await settled()
    yield made
    assert not attending.done()
    attending.cancel()
    await asyncio.gather(attending, return_exceptions=True)


def spec(member_id: str, port: int, **known: object) -> NodeSpec:
    made = NodeSpec(member_id, "c-1", "solo", 1, 1, {}, NODE_IP, {PORT: port}, "host", 0)
    return replace(made, **known)  # type: ignore[arg-type]  # a test names fields as the record does


def listener() -> socket.socket:
    """Whoever gets here was led to the machine's own network."""
    return socket.create_server((NODE_IP, 0))


async def test_order_of_nobody_is_answered_by_the_agent_itself(machine: Machine) -> None:
    machine.order(7)
    assert await machine.answers.answered(7) == OWN


@pytest.mark.parametrize("member_id", ["m-unknown", "../../etc", "127.0.0.1:22", "m-0\n"])
async def test_order_of_a_member_that_is_not_here_is_refused(machine: Machine, member_id: str) -> None:
    machine.nodes["m-0"] = NodeStatus("up")
    machine.specs["m-0"] = spec("m-0", 1)
    machine.order(1, member_id)
    assert "no such Ray node" in await machine.answers.refused(1)


@pytest.mark.parametrize("phase", ["prepared", "starting", "failed", "stopped"])
async def test_order_of_a_node_that_is_not_up_reaches_nobody(machine: Machine, phase: str) -> None:
    with listener() as listening:
        listening.setblocking(False)
        machine.nodes["m-0"] = replace(NodeStatus("up"), phase=phase)  # type: ignore[arg-type]  # one of them
        machine.specs["m-0"] = spec("m-0", listening.getsockname()[1])
        machine.order(1, "m-0")
        assert "no such Ray node" in await machine.answers.refused(1)
        with pytest.raises(BlockingIOError):
            listening.accept()


@pytest.mark.parametrize(
    ("namespace_pid", "words"),
    [
        (0, "the box has no network yet"),
        pytest.param(os.getpid(), "the box is gone", id="another's"),
        (2**22 + 1, "no network namespace"),
    ],
)
async def test_order_of_a_boxed_node_without_its_box_never_reaches_the_machines_own_network(
    machine: Machine, namespace_pid: int, words: str
) -> None:
    """Before the box has a network, once its process number is another's, and once that is gone."""
    with listener() as listening:
        listening.setblocking(False)
        box = BoxSpec.__new__(BoxSpec)
        machine.nodes["m-0"] = NodeStatus("up", namespace_pid=namespace_pid)
        machine.specs["m-0"] = spec("m-0", listening.getsockname()[1], box=box)
        machine.order(1, "m-0")
        assert words in await machine.answers.refused(1)
        with pytest.raises(BlockingIOError):
            listening.accept()


async def test_order_past_its_deadline_is_given_up_and_the_next_is_answered(machine: Machine) -> None:
    machine.answers.held = asyncio.Event()
    for number in range(ORDERS_MAX):
        machine.order(number, deadline_ms=20)
    await settled()
    machine.order(99)
    machine.answers.held.set()
    assert await machine.answers.answered(99) == OWN


async def test_orders_beyond_the_bound_are_let_go(machine: Machine) -> None:
    machine.answers.held = asyncio.Event()
    for number in range(1, 3 * ORDERS_MAX + 1):
        machine.order(number)
    machine.answers.held.set()
    await machine.answers.answered(ORDERS_MAX)
    await settled()
    assert set(machine.answers.texts) == set(range(1, ORDERS_MAX + 1))


@pytest.mark.parametrize(
    "error",
    [ConnectionError("reset"), ValueError("scrape 1 is unknown"), RecursionError(), IndexError("of ours")],
)
async def test_answer_that_cannot_be_given_costs_nothing_else(machine: Machine, error: Exception) -> None:
    machine.answers.error = error
    machine.order(1)
    await wait_until_async(lambda: machine.answers.failed == 1, what="the failure", deadline_s=DEADLINE_S)
    machine.answers.error = None
    machine.order(2)
    assert await machine.answers.answered(2) == OWN


async def test_orders_of_an_earlier_session_are_forgotten() -> None:
    machine = Machine()
    machine.order(1)
    attending = asyncio.create_task(machine.scraping.attend(FakeChannel()))
    await settled()
    machine.order(2)
    assert await machine.answers.answered(2) == OWN
    assert set(machine.answers.texts) == {2}
    attending.cancel()
    await asyncio.gather(attending, return_exceptions=True)


# ---------------------------------------------------------------- the exporter


class Silent:
    """An agent that has just begun."""

    connected = False
    undelivered = 0
    sessions_begun = 0
    heartbeat_rtt_s: float | None = None
    nodes: dict[str, NodeStatus] = {}  # noqa: RUF012 -- nobody changes it


def test_exporter_before_any_session_shows_what_is_known(tmp_path: Path) -> None:
    text = AgentExporter(Silent(), "0.1.0", tmp_path / "gone").text().decode()
    assert 'orchestrator_agent_build_info{version="0.1.0"} 1.0' in text
    assert "orchestrator_agent_session_connected 0.0" in text
    assert "orchestrator_agent_heartbeat_rtt_seconds 0" not in text
    assert re.findall("^# TYPE orchestrator_(.*) ", text, re.MULTILINE) == [
        metric.name.removeprefix("orchestrator_") for metric in AGENT
    ]


# ---------------------------------------------------------------- the connection


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ScriptedServer]:
    made = ScriptedServer(tmp_path / "network")
    made.drains = True
    await made.start()
    yield made
    await made.stop()


async def test_answer_goes_in_messages_of_which_the_last_says_so(server: ScriptedServer) -> None:
    control = GrpcControlPlane(FakeAccess(server))
    await control.open()
    control.authorise("secret-1")
    data = bytes(range(256)) * (ANSWER_PIECE_BYTES // 100)
    await control.answer_scrape(7, data)
    await control.answer_scrape(8, b"", "no such node")
    whole, refused = server.scraped
    assert b"".join(piece.data for piece in whole) == data
    assert [piece.number for piece in whole] == [7, 0, 0]
    assert [piece.final for piece in whole] == [False, False, True]
    assert refused == [telemetry_pb2.AnswerScrapeRequest(number=8, refusal="no such node", final=True)]
    assert server.tokens_of("AnswerScrape") == ["Bearer secret-1"] * 2
    server.refuse = (grpc.StatusCode.NOT_FOUND, "scrape 9 is unknown")
    with pytest.raises(ValueError, match="unknown"):
        await control.answer_scrape(9, data)
    await control.close()


async def test_daemon_answers_a_scrape_of_itself(server: ScriptedServer, tmp_path: Path) -> None:
    order = telemetry_pb2.ScrapeOrder(number=3, deadline_ms=5_000)
    server.pushes.put_nowait(worker_pb2.SessionResponse(scrape_order=order))
    lab = Lab(server, tmp_path / "agent")
    daemon = lab.start(token=lab.token)
    try:
        await lab.connected(daemon)
        assert server.hellos[0].answers_scrapes
        await wait_until_async(lambda: bool(server.scraped), what="the answer", deadline_s=DEADLINE_S)
    finally:
        daemon.process.kill()
        daemon.process.wait()
    ((piece,),) = server.scraped
    text = gzip.decompress(piece.data).decode()
    assert piece.number == 3
    for metric in AGENT:
        assert f"# TYPE {metric.name} " in text
    assert "orchestrator_agent_session_connected 1.0" in text
