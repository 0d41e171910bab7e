"""Floods: strangers without number, connections that say nothing, agents that do not listen. Honest ones go on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import fields
from itertools import cycle
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from orchestrator.adapters import clock
from orchestrator.api.v1 import operator_pb2, worker_pb2
from orchestrator.control import sessions
from orchestrator.control.limits import KEYS_MAX, Buckets, Limit, site_of
from orchestrator.control.services import workers
from orchestrator.control.services.enrolment import EnrolLimits, EnrolServicer
from orchestrator.core.errors import RefusalCode, RefusedError
from orchestrator.core.policies import Policies
from orchestrator.core.supply.fleet import FleetPolicy
from tests.control import serving as real
from tests.control.agents import Agent, Served, agent_of, serving
from tests.control.floods import DeafAgent, answered, beat, begin, refusals, written
from tests.control.house import DEADLINE_S
from tests.control.test_enrolment import offered
from tests.polling import wait_until_async

SYBILS = 10_000
IDLE = 5_000
LIFTED = Limit(burst=1_000_000, interval_ms=1)
STREAMS = 256
"""Calls at once that one connection may have."""


class Caller:
    """A call's context as far as enrolment looks at it: where it comes from."""

    def __init__(self, number: int) -> None:
        self._number = number

    def peer(self) -> str:
        high, low = divmod(self._number, 256)
        return f"ipv4:100.{high // 256}.{high % 256}.{low}:40000"


def enrolment(served: Served, limits: EnrolLimits) -> EnrolServicer:
    """The door itself, without a network that would give every caller the same address."""
    house = served.house
    return EnrolServicer(
        house.plane.loop, house.authority, clock.new_id, clock.random_bytes, lambda: "", limits
    )


async def refused_joins(door: Any, requests: Iterable[worker_pb2.JoinRequest]) -> dict[RefusalCode, int]:
    """How often the door refused, by reason."""
    counts: dict[RefusalCode, int] = {}
    for number, request in enumerate(requests):
        try:
            await door.Join(request, Caller(number))
        except RefusedError as refusal:
            counts[refusal.code] = counts.get(refusal.code, 0) + 1
        # A network would let the others have their turn here.
        await asyncio.sleep(0)
    return counts


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    policies = Policies(fleet=FleetPolicy(open_enrolment=True, probation_max=20))
    async with serving(tmp_path, policies) as running:
        yield running


@pytest.fixture
async def honest(served: Served) -> AsyncIterator[Agent]:
    async with agent_of(served) as made:
        await made.join()
        await made.hello()
        yield made


# ---------------------------------------------------------------- strangers


async def test_sybil_joins_from_ten_thousand_sites_are_refused_before_they_cost_anything(
    served: Served, honest: Agent
) -> None:
    """Twenty a second in all: the rest is refused unread, so that agents and tokens are served meanwhile."""
    stranger = Agent(served, offer=offered("sybil")).join_request("")
    requests = []
    for _ in range(SYBILS):
        request = worker_pb2.JoinRequest()
        request.CopyFrom(stranger)
        request.statement_public_key = clock.random_bytes(32)
        requests.append(request)
    events, limits, done = written(served), EnrolLimits(), asyncio.Event()

    def flooding() -> Iterator[worker_pb2.JoinRequest]:
        """Ten thousand, and more for as long as the honest ones need."""
        for sent, request in enumerate(cycle(requests)):
            if sent >= SYBILS and done.is_set():
                return
            yield request

    began_ms = clock.boottime_ms()
    flood = asyncio.create_task(refused_joins(enrolment(served, limits), flooding()))
    await answered(honest, beats=30)
    async with agent_of(served, offer=offered("late")) as late:
        await late.join()
        assert (await late.hello()).HasField("welcome")
    assert not flood.done()
    done.set()
    counts = await flood
    took_ms = clock.boottime_ms() - began_ms
    assert sum(counts.values()) >= SYBILS
    # Those who were let as far as their proofs, which are wrong, and cost no write.
    let_in = sum(
        limit.burst + 1 + took_ms // limit.interval_ms
        for limit in (limits.strangers_in_all, limits.strangers_reserved)
    )
    assert counts[RefusalCode.INVALID] <= let_in
    assert written(served) - events < 20
    await answered(honest)


async def test_sybils_with_good_keys_fill_probation_and_no_more(served: Served, honest: Agent) -> None:
    limits = EnrolLimits(*[LIFTED] * len(fields(EnrolLimits)))
    requests = [Agent(served, offer=offered(f"sybil-{number}")).join_request("") for number in range(100)]
    before = await served.house.plane.loop.read(lambda state: len(state.workers))
    counts = await refused_joins(enrolment(served, limits), requests)
    assert counts == {RefusalCode.EXHAUSTED: 80}
    assert await served.house.plane.loop.read(lambda state: len(state.workers)) == before + 20
    async with agent_of(served, offer=offered("vouched")) as vouched:
        await vouched.join()
        assert (await vouched.hello()).HasField("welcome")
    await answered(honest)


async def test_sybil_joins_over_the_network_are_told_to_wait_and_counted(
    served: Served, honest: Agent
) -> None:
    """From one address: a few get through, and the rest costs one look at the address."""
    request = Agent(served, offer=offered("sybil")).join_request("")
    request.proof = b"x" * 64
    tried, at_once = 500, 50

    async def ask(number: int) -> grpc.StatusCode:
        mine = worker_pb2.JoinRequest()
        mine.CopyFrom(request)
        mine.statement_public_key = number.to_bytes(32, "big")
        try:
            await served.enrol.Join(mine)
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    events = written(served)
    codes: list[grpc.StatusCode] = []
    for first in range(0, tried, at_once):
        flood = asyncio.gather(*(ask(number) for number in range(first, first + at_once)))
        await answered(honest, beats=2)
        codes += await flood
    assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) >= tried - 10
    assert refusals(served, "Join", "exhausted") == codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert grpc.StatusCode.OK not in codes
    assert written(served) == events


def test_buckets_forget_the_longest_untouched_beyond_their_number() -> None:
    """A flood of keys costs the memory of KEYS_MAX and forgives one early; who keeps trying is not forgiven."""
    buckets = Buckets(Limit(burst=1, interval_ms=1_000_000))
    assert buckets.take("gone", 0)
    assert buckets.take("trying", 0)
    for number in range(KEYS_MAX):
        buckets.take(str(number), 1)
        if number % 1_000 == 0:
            assert not buckets.take("trying", 1)
    assert not buckets.take("trying", 1)
    assert buckets.take("gone", 1)


def test_buckets_of_many_sites_do_not_spend_each_others_tries() -> None:
    buckets = Buckets(Limit(burst=2, interval_ms=1_000))
    assert all(buckets.take(site_of(Caller(number).peer()), 0) for number in range(2_000) for _ in range(2))
    assert not any(buckets.take(site_of(Caller(number).peer()), 0) for number in range(2_000))
    assert buckets.take(site_of(Caller(7).peer()), 1_000)
    assert not buckets.take(site_of(Caller(7).peer()), 1_000)


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("ipv4:192.0.2.7:1", "ipv4:192.0.2.7:65000", True),
        ("ipv4:192.0.2.7:1", "ipv4:192.0.2.8:1", False),
        ("ipv6:%5B2001:db8:0:1::1%5D:1", "ipv6:%5B2001:db8:0:1:ffff::9%5D:2", True),
        ("ipv6:%5B2001:db8:0:1::1%5D:1", "ipv6:%5B2001:db8:0:2::1%5D:1", False),
        ("unix:/run/a", "unix:/run/b", True),
    ],
)
def test_site_is_one_subscriber_however_many_addresses(first: str, second: str, same: bool) -> None:
    assert (site_of(first) == site_of(second)) is same


# ---------------------------------------------------------------- agents that do not listen


async def test_agent_that_never_reads_is_cut_off_and_counted(
    served: Served, honest: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits for it is bounded, then its session ends; everybody else is served all the while."""
    monkeypatch.setattr(workers, "TAKEN_S", 1.0)
    deaf = DeafAgent(served, offer=offered("deaf"))
    await deaf.join()
    assert (await begin(deaf)).HasField("welcome")
    connected = served.house.plane.sessions.connected
    assert deaf.worker_id in connected

    async def shout() -> None:
        """Each is answered, and no answer is taken."""
        for sequence in range(1_000_000):
            await deaf.stream.write(beat(sequence))
            await asyncio.sleep(0)

    shouting = asyncio.create_task(shout())
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not refusals(served, "session", "exhausted"):
                await answered(honest, beats=5)
        await wait_until_async(
            lambda: deaf.worker_id not in served.house.plane.sessions.connected,
            what="the deaf agent's end",
            deadline_s=DEADLINE_S,
        )
    finally:
        shouting.cancel()
        await asyncio.gather(shouting, return_exceptions=True)
        await deaf.close()
    assert refusals(served, "session", "exhausted") == 1
    await answered(honest)


@pytest.fixture
def lifted_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if each call were another worker's: one worker's own limit would come first."""
    monkeypatch.setattr(sessions, "OPENS", LIFTED)


@pytest.mark.usefixtures("lifted_opens")
async def test_streams_of_one_connection_are_bounded(served: Served, honest: Agent) -> None:
    """More than its share of calls waits, and everybody else's are answered."""
    async with agent_of(served, offer=offered("greedy")) as greedy:
        await greedy.join()
        greedy.connect()
        streams = [greedy.stub.Session()]
        # With the first answer comes what a connection may have.
        await streams[0].read()
        streams += [greedy.stub.Session() for _ in range(STREAMS + 9)]
        reads = [asyncio.create_task(stream.read()) for stream in streams[1:]]
        await wait_until_async(
            lambda: sum(read.done() for read in reads) >= STREAMS - 1,
            what="the challenges",
            deadline_s=DEADLINE_S,
        )
        await answered(honest, beats=10)
        assert sum(read.done() for read in reads) == STREAMS - 1
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*reads, return_exceptions=True)
    await answered(honest)


# ---------------------------------------------------------------- connections that say nothing


class Idle(asyncio.Protocol):
    """A connection that says nothing more, and leaves when it is told to."""

    def __init__(self, ended: list[Idle]) -> None:
        self._ended = ended

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Every other one is in the middle of a handshake, for ever.
        if transport.get_extra_info("sockname")[1] % 2:
            assert isinstance(transport, asyncio.WriteTransport)
            transport.write(b"\x16\x03\x01\x02")

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended.append(self)


async def test_thousands_of_idle_connections_are_closed_and_nobody_else_notices(tmp_path: Path) -> None:
    """A real process, since handshakes that end by the thousand reach corners of TLS that no honest client does."""
    with real.serving(tmp_path / "data") as serve:
        host, _, port = serve.endpoints["grpc"].rpartition(":")

        def joined() -> str:
            """Somebody new comes in: another connection, another handshake."""
            fresh, metadata = serve.operator()
            status = fresh.GetStatus(operator_pb2.GetStatusRequest(), metadata=metadata, timeout=DEADLINE_S)
            return str(status.network_id)

        network_id = await asyncio.to_thread(joined)
        loop = asyncio.get_running_loop()
        ended: list[Idle] = []
        for _ in range(IDLE // 250):
            await asyncio.gather(
                *(loop.create_connection(lambda: Idle(ended), host, int(port)) for _ in range(250))
            )
        # Some may have been closed already: connecting them all takes as long as this machine needs.
        assert len(ended) < IDLE
        for _ in range(5):
            assert await asyncio.to_thread(joined) == network_id
        await wait_until_async(
            lambda: len(ended) == IDLE or serve.process.poll() is not None,
            what="the end of all idle connections",
            deadline_s=DEADLINE_S,
        )
        assert serve.process.poll() is None, "the control plane has died of idle connections"
        assert await asyncio.to_thread(joined) == network_id
