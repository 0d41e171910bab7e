from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncGenerator
from dataclasses import replace

import pytest

from orchestrator.adapters.probes.echo import (
    BURST,
    RATE_PER_S,
    SIZE_BYTES_MAX,
    SIZE_BYTES_MIN,
    SOURCES_MAX,
    EchoResponder,
    Path,
    PathPlan,
    measure_path,
)
from orchestrator.adapters.probes.wire import Target
from tests.adapters.probes.instruments import (
    KEY,
    LOOPBACK,
    OTHER_KEY,
    REAL,
    Mischief,
    Nonces,
    VirtualClock,
    closed_port,
    middleman,
    running,
    target_of,
    udp_socket,
)

QUICK = PathPlan(count=12, interval_ms=5, timeout_ms=10_000)
"""In time even where this process has to wait for a processor."""
IMPATIENT = replace(QUICK, timeout_ms=60)


class Exchange:
    """A path and a responder on one virtual clock; a datagram travels when the test says so."""

    def __init__(self, count: int, timeout_ms: int = 1000) -> None:
        self.clock = VirtualClock()
        self.path = Path(PathPlan(count=count, timeout_ms=timeout_ms), KEY, Nonces())
        with udp_socket() as sock:
            self.responder = EchoResponder(sock, KEY, self.clock)

    def ask(self) -> bytes:
        """The answer to the next question, sent now; still on its way."""
        nonce, question = self.path.question()
        self.path.asked(nonce, self.clock())
        answer = self.responder.answer(question, "10.0.0.1")
        assert answer is not None
        return answer

    def hear(self, answer: bytes, *, after_ms: float = 0) -> None:
        self.clock.pass_ms(after_ms)
        self.path.heard(answer, self.clock())


def test_path_known_round_trips_gives_exact_figures() -> None:
    exchange = Exchange(count=10)
    for rtt_ms in (10, 12, 11, 30, 10, 10, 14, 10, 50, 10):
        exchange.hear(exchange.ask(), after_ms=rtt_ms)
    found = exchange.path.measured("wrk_1")
    assert (found.sent, found.received) == (10, 10)
    assert (found.rtt_min_us, found.rtt_median_us, found.rtt_p90_us) == (10_000, 10_000, 30_000)
    assert found.jitter_us == (2 + 1 + 19 + 20 + 0 + 4 + 4 + 40 + 40) * 1000 // 9
    assert exchange.path.is_answered


def test_path_answers_out_of_order_count_for_their_own_questions() -> None:
    exchange = Exchange(count=2)
    first = exchange.ask()
    exchange.clock.pass_ms(10)
    exchange.hear(exchange.ask(), after_ms=5)
    exchange.hear(first)
    found = exchange.path.measured("wrk_1")
    assert (found.rtt_min_us, found.rtt_p90_us, found.jitter_us) == (5_000, 15_000, 10_000)


def test_path_answer_doubled_counts_once_and_with_its_first_time() -> None:
    exchange = Exchange(count=2)
    answer = exchange.ask()
    exchange.hear(answer, after_ms=3)
    exchange.hear(answer, after_ms=500)
    found = exchange.path.measured("wrk_1")
    assert (found.received, found.rtt_p90_us) == (1, 3_000)
    assert found.jitter_us is None


@pytest.mark.parametrize(("after_ms", "received"), [(100, 1), (100.1, 0)])
def test_path_answer_later_than_its_timeout_is_a_loss(after_ms: float, received: int) -> None:
    exchange = Exchange(count=1, timeout_ms=100)
    exchange.hear(exchange.ask(), after_ms=after_ms)
    assert exchange.path.measured("wrk_1").received == received


def test_path_answer_forged_damaged_or_reflected_is_not_believed() -> None:
    exchange = Exchange(count=1)
    nonce, question = exchange.path.question()
    exchange.path.asked(nonce, exchange.clock())
    answer = exchange.responder.answer(question, "10.0.0.1")
    assert answer is not None
    with udp_socket() as sock:
        stranger = EchoResponder(sock, OTHER_KEY, exchange.clock)
    other = Path(PathPlan(count=1), OTHER_KEY, Nonces())
    forged = stranger.answer(other.question()[1], "10.0.0.1")
    assert forged is not None
    for wrong in (question, forged, answer[:-1], answer + b"\0", answer[:-1] + bytes((answer[-1] ^ 1,)), b""):
        exchange.hear(wrong)
    assert exchange.path.measured("wrk_1").received == 0
    exchange.hear(answer)
    assert exchange.path.measured("wrk_1").received == 1


@pytest.mark.parametrize("size_bytes", [SIZE_BYTES_MIN, 64, SIZE_BYTES_MAX])
def test_responder_answer_is_as_long_as_the_question(size_bytes: int) -> None:
    exchange = Exchange(count=1)
    path = Path(PathPlan(count=1, size_bytes=size_bytes), KEY, Nonces())
    question = path.question()[1]
    answer = exchange.responder.answer(question, "10.0.0.1")
    assert answer is not None
    assert len(answer) == len(question) == size_bytes


def test_responder_stranger_gets_no_answer() -> None:
    exchange = Exchange(count=1)
    question = Path(PathPlan(count=1), OTHER_KEY, Nonces()).question()[1]
    for data in (question, b"", b"\0" * 64, question[:20], exchange.ask()):
        assert exchange.responder.answer(data, "10.0.0.1") is None


def test_responder_source_too_fast_is_held_to_its_rate_and_others_are_not() -> None:
    exchange = Exchange(count=1)
    question = exchange.path.question()[1]
    answered = [exchange.responder.answer(question, "10.0.0.1") is not None for _ in range(BURST + 10)]
    assert answered == [True] * BURST + [False] * 10
    assert exchange.responder.answer(question, "10.0.0.2") is not None
    exchange.clock.pass_ms(1000 * 3 / RATE_PER_S)
    answered = [exchange.responder.answer(question, "10.0.0.1") is not None for _ in range(5)]
    assert answered == [True, True, True, False, False]


def test_responder_forged_questions_spend_nothing_of_the_named_source() -> None:
    exchange = Exchange(count=1)
    forged = Path(PathPlan(count=1), OTHER_KEY, Nonces()).question()[1]
    for _ in range(2 * BURST):
        exchange.responder.answer(forged, "10.0.0.1")
    assert exchange.responder.answer(exchange.path.question()[1], "10.0.0.1") is not None


def test_responder_more_sources_than_it_remembers_forgets_the_oldest_only() -> None:
    exchange = Exchange(count=1)
    question = exchange.path.question()[1]
    for _ in range(BURST):
        exchange.responder.answer(question, "10.0.0.1")
    for number in range(SOURCES_MAX - 1):
        exchange.responder.answer(question, f"source {number}")
    assert exchange.responder.answer(question, "10.0.0.1") is None
    for number in range(SOURCES_MAX):
        exchange.responder.answer(question, f"another {number}")
    assert exchange.responder.answer(question, "10.0.0.1") is not None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("count", 0),
        ("count", 1001),
        ("interval_ms", 4),
        ("timeout_ms", 0),
        ("size_bytes", 40),
        ("size_bytes", 1201),
    ],
)
def test_plan_outside_its_bounds_is_refused_by_field(field: str, value: int) -> None:
    with pytest.raises(ValueError, match=field):
        replace(PathPlan(), **{field: value})


@contextlib.asynccontextmanager
async def responder_behind(mischief: Mischief) -> AsyncGenerator[Target]:
    with udp_socket() as sock:
        responder = EchoResponder(sock, KEY, time.perf_counter_ns)
        async with running(responder.run()), middleman(target_of(sock), mischief) as target:
            yield target


async def test_measure_path_over_loopback_gets_every_answer() -> None:
    async with responder_behind(lambda is_answer, number, data: [data]) as target:
        found = await measure_path(target, KEY, REAL, QUICK)
    assert (found.peer, found.sent, found.received) == ("peer", 12, 12)
    assert found.rtt_min_us is not None
    assert found.rtt_min_us > 0


async def test_measure_path_each_third_lost_on_either_way_reports_exactly_those() -> None:
    def lose(is_answer: bool, number: int, data: bytes) -> list[bytes]:
        return [] if number % 3 == 0 else [data]

    async with responder_behind(lose) as target:
        found = await measure_path(target, KEY, REAL, replace(QUICK, timeout_ms=1000))
    # Of 12 questions 8 arrive; of their 8 answers numbers 0, 3 and 6 do not.
    assert (found.sent, found.received) == (12, 5)


async def test_measure_path_doubled_swapped_and_forged_answers_count_each_once() -> None:
    held: list[bytes] = []

    def confuse(is_answer: bool, number: int, data: bytes) -> list[bytes]:
        if not is_answer:
            return [data, data]
        if number % 4 == 0:
            held.append(data)
            return [b"\xff" * len(data)]
        return [data, data, *(held.pop() for _ in range(len(held)))]

    async with responder_behind(confuse) as target:
        found = await measure_path(target, KEY, REAL, QUICK)
    assert (found.sent, found.received) == (12, 12)


@pytest.mark.parametrize("name", ["silent", "closed", "other key"])
async def test_measure_path_nobody_answers_is_a_result_with_everything_lost(name: str) -> None:
    with udp_socket() as sock:
        match name:
            case "silent":
                found = await measure_path(target_of(sock), KEY, REAL, IMPATIENT)
            case "closed":
                with closed_port() as port:
                    found = await measure_path(Target("peer", LOOPBACK, port), KEY, REAL, IMPATIENT)
            case _:
                async with running(EchoResponder(sock, OTHER_KEY, time.perf_counter_ns).run()):
                    found = await measure_path(target_of(sock), KEY, REAL, IMPATIENT)
    assert (found.sent, found.received) == (12, 0)
    assert found.rtt_min_us is found.rtt_median_us is found.rtt_p90_us is found.jitter_us is None


async def test_measure_path_without_a_route_is_a_result_with_everything_lost() -> None:
    class Unrouted(socket.socket):
        def connect(self, address: object) -> None:
            raise OSError(101, "Network is unreachable")

    instruments = replace(REAL, new_socket=Unrouted)
    found = await measure_path(Target("peer", LOOPBACK, 9), KEY, instruments, IMPATIENT)
    assert (found.sent, found.received) == (12, 0)


async def test_measure_path_sockets_come_from_the_factory_and_are_closed() -> None:
    made: list[socket.socket] = []

    def factory(family: socket.AddressFamily, kind: socket.SocketKind) -> socket.socket:
        made.append(socket.socket(family, kind))
        return made[-1]

    async with responder_behind(lambda is_answer, number, data: [data]) as target:
        await measure_path(target, KEY, replace(REAL, new_socket=factory), QUICK)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await measure_path(target, KEY, replace(REAL, new_socket=factory), QUICK)
    assert [sock.fileno() for sock in made] == [-1, -1]
