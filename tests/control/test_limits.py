"""How often somebody may try: by worker, by address and what is beside it, and what is kept for those who come late."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from orchestrator.adapters import clock
from orchestrator.api.v1 import (
    operator_pb2,
    telemetry_pb2,
    telemetry_pb2_grpc,
    terms_pb2,
    worker_pb2,
)
from orchestrator.control.limits import Limit, neighbourhood_of, region_of, site_of
from orchestrator.control.services.enrolment import EnrolLimits, EnrolServicer
from orchestrator.control.sessions import CHANGES, OPENS
from orchestrator.core.errors import RefusalCode, RefusedError
from orchestrator.core.policies import Policies
from orchestrator.core.supply.fleet import FleetPolicy, TokenRole
from tests.control.agents import Agent, Served, agent_of, bearer, refused, serving
from tests.control.floods import answered, refusals, written
from tests.control.house import DEADLINE_S
from tests.control.test_enrolment import offered
from tests.polling import wait_until_async

LIFTED = Limit(burst=1_000_000, interval_ms=1)
HOUR_MS = 3_600_000


class Caller:
    """A call's context as far as enrolment looks at it: where it comes from."""

    def __init__(self, peer: str) -> None:
        self._peer = peer

    def peer(self) -> str:
        return self._peer


def v6(number: int, prefix: str = "2001:db8") -> str:
    """One site a number, 65,536 of them to a neighbourhood."""
    return f"ipv6:%5B{prefix}:{number >> 16:x}:{number & 0xFFFF:x}::1%5D:40000"


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    policies = Policies(fleet=FleetPolicy(open_enrolment=True))
    async with serving(tmp_path, policies) as running:
        yield running


@pytest.fixture
async def agent(served: Served) -> AsyncIterator[Agent]:
    async with agent_of(served) as made:
        await made.join()
        await made.hello()
        yield made


def door(served: Served, limits: EnrolLimits) -> Any:
    house = served.house
    return EnrolServicer(
        house.plane.loop, house.authority, clock.new_id, clock.random_bytes, lambda: "", limits
    )


async def stranger(enrolment: Any, served: Served, peer: str) -> str:
    """What a stranger at an address is told whose proof is wrong: how far it was let."""
    request = Agent(served, offer=offered("stranger")).join_request("")
    request.proof = b"x" * 64
    with pytest.raises(RefusedError) as caught:
        await enrolment.Join(request, Caller(peer))
    return "let in" if caught.value.code is RefusalCode.INVALID else caught.value.message


# ---------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("peer", "site", "neighbourhood", "region"),
    [
        ("ipv4:192.0.2.7:5301", "192.0.2.7/32", "192.0.2.0/24", "192.0.0.0/16"),
        ("ipv6:%5B2001:db8:1:2::7%5D:5301", "2001:db8:1:2::/64", "2001:db8:1::/48", "2001:db8::/32"),
        ("ipv6:%5B::ffff:192.0.2.7%5D:5301", "192.0.2.7/32", "192.0.2.0/24", "192.0.0.0/16"),
        ("unix:", "unix", "unix", "unix"),
    ],
)
def test_address_stands_for_a_site_its_neighbourhood_and_its_region(
    peer: str, site: str, neighbourhood: str, region: str
) -> None:
    assert (site_of(peer), neighbourhood_of(peer), region_of(peer)) == (site, neighbourhood, region)


async def test_strangers_of_one_neighbourhood_share_a_limit(served: Served) -> None:
    enrolment = door(served, EnrolLimits(strangers_of_neighbourhood=Limit(4, HOUR_MS)))
    told = [await stranger(enrolment, served, v6(number)) for number in range(6)]
    assert told[:4] == ["let in"] * 4
    assert all("beside this one" in one for one in told[4:])
    assert await stranger(enrolment, served, "ipv4:192.0.2.7:5301") == "let in"


async def test_strangers_of_one_provider_leave_a_reserve_for_everybody_else(served: Served) -> None:
    """A whole /32, which has 65,536 neighbourhoods: it uses up what is for all, and the others still come."""
    limits = EnrolLimits(
        strangers_in_all=Limit(10, HOUR_MS),
        strangers_of_region_new=Limit(3, HOUR_MS),
        strangers_reserved=Limit(5, HOUR_MS),
    )
    enrolment = door(served, limits)
    flood = [await stranger(enrolment, served, v6(number << 16)) for number in range(40)]
    assert flood.count("let in") == 10
    assert all("too many joins without a token" in one for one in flood[10:])
    late = [await stranger(enrolment, served, f"ipv4:198.{number}.0.7:1") for number in range(6)]
    assert late[:5] == ["let in"] * 5
    assert late[5] != "let in"


# ---------------------------------------------------------------- tokens


async def test_join_with_a_token_that_does_not_count_costs_no_arithmetic_and_no_write(served: Served) -> None:
    """Neither its keys nor its proof are looked at: the token is told of first."""
    spent = await served.house.token(TokenRole.SUPPLIER, "anna")
    async with agent_of(served) as first:
        await first.join(spent)
    events = written(served)
    for token, words in (("orch_supplier_guess", "not known"), (spent, "used")):
        request = Agent(served, offer=offered("other")).join_request(token)
        request.tls_csr = request.proof = b"x"
        with refused(grpc.StatusCode.UNAUTHENTICATED, words):
            await served.enrol.Join(request)
    assert written(served) == events
    assert refusals(served, "Join", "unauthenticated") == 2


async def test_join_with_unknown_tokens_is_limited_in_all_and_good_ones_are_not(served: Served) -> None:
    enrolment = door(served, EnrolLimits(joins=LIFTED, unknown_tokens=Limit(3, HOUR_MS)))
    codes = []
    for number in range(6):
        request = Agent(served, offer=offered("other")).join_request(f"orch_supplier_guess{number}")
        with pytest.raises(RefusedError) as caught:
            await enrolment.Join(request, Caller(v6(number)))
        codes.append(caught.value.code)
    assert codes == [RefusalCode.UNAUTHENTICATED] * 3 + [RefusalCode.EXHAUSTED] * 3
    good = await served.house.token(TokenRole.SUPPLIER, "anna")
    request = Agent(served, offer=offered("good")).join_request(good)
    assert (await enrolment.Join(request, Caller(v6(9)))).worker_id
    # The answer was lost: the same again is no unknown token, though it is spent.
    assert (await enrolment.Join(request, Caller(v6(9)))).worker_id


# ---------------------------------------------------------------- one worker


async def test_sessions_of_one_worker_are_limited_and_others_open_theirs(
    served: Served, agent: Agent
) -> None:
    async with agent_of(served, offer=offered("other")) as other:
        await other.join()
        answers = []
        for _ in range(OPENS.burst + 2):
            stream = agent.stub.Session()
            first = await stream.read()
            assert isinstance(first, worker_pb2.SessionResponse)
            answers.append(first)
            stream.cancel()
        farewell = answers[-1].farewell
        assert (farewell.retry, "too many sessions" in farewell.reason) == (True, True)
        assert refusals(served, "session", "exhausted") >= 1
        assert (await other.hello()).HasField("welcome")
    await answered(agent)


async def test_changes_of_one_worker_are_limited_and_its_session_goes_on(
    served: Served, agent: Agent
) -> None:
    """Each would be an event; heartbeats are answered whatever else is said."""
    before = written(served)
    for number in range(CHANGES.burst * 4):
        terms = terms_pb2.Terms(regions=[f"r{number}"])
        wish = worker_pb2.OwnerWish(terms=terms)
        await agent.stream.write(worker_pb2.SessionRequest(owner_wish=wish))
    await answered(agent)
    assert written(served) - before < CHANGES.burst * 2
    assert refusals(served, "change", "exhausted") >= CHANGES.burst * 2


async def test_measurements_of_a_worker_are_dropped_with_its_session(served: Served, agent: Agent) -> None:
    newest = served.house.plane.telemetry.newest
    telemetry = telemetry_pb2_grpc.TelemetryServiceStub(agent.channel)
    call = telemetry.Report(metadata=bearer(agent.token))
    sample = telemetry_pb2.ReportRequest(cpu_utilization_ratio=0.5)
    await call.write(sample)
    await wait_until_async(lambda: bool(newest), what="a sample", deadline_s=DEADLINE_S)
    agent.stream.cancel()
    await wait_until_async(lambda: not newest, what="nothing kept", deadline_s=DEADLINE_S)
    # What the same stream goes on to say is nobody's any more.
    with refused(grpc.StatusCode.UNAUTHENTICATED, "session"):
        await call.write(sample)
        async with asyncio.timeout(DEADLINE_S):
            await call
    assert not newest


# ---------------------------------------------------------------- webhooks


def alerted(served: Served, count: int) -> bool:
    return len(served.house.owners.told) == count


async def test_alert_says_whether_an_operator_vouched_for_its_owner(served: Served, agent: Agent) -> None:
    async with agent_of(served, offer=offered("stranger")) as unknown:
        for one, token in ((agent, None), (unknown, "")):
            terms = terms_pb2.Terms(webhook_url="https://owner.example/hook")
            if token is not None:
                await one.join(token)
                await one.hello()
            await one.stream.write(worker_pb2.SessionRequest(owner_wish=worker_pb2.OwnerWish(terms=terms)))
            await answered(one)
            cordon = operator_pb2.CordonWorkerRequest(worker=one.worker_id, reason="a look at it")
            await served.operator.CordonWorker(cordon, metadata=served.admin)
            await wait_until_async(
                partial(alerted, served, 1 if token is None else 2), what="the alert", deadline_s=DEADLINE_S
            )
    assert served.house.owners.vouched == [True, False]
