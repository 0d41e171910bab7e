"""Bad input at the enrol and session doors: a clear answer, a number that moves, and nobody else disturbed."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from orchestrator.adapters import clock, peers
from orchestrator.adapters.authority import Authority
from orchestrator.adapters.peers import JOIN_CONTEXT
from orchestrator.api.v1 import (
    common_pb2,
    operator_pb2,
    overlay_pb2,
    telemetry_pb2,
    telemetry_pb2_grpc,
    terms_pb2,
    worker_pb2,
)
from orchestrator.control.services import workers
from orchestrator.core.supply.fleet import TokenRole
from tests.control.agents import OPTIONS, Agent, Served, agent_of, bearer, refused, serving
from tests.control.floods import WORDS_MAX, Change, answered, beat, begin, refusals, written
from tests.control.house import DEADLINE_S
from tests.control.test_enrolment import offered
from tests.receipts.samples import make_statement, sign_statement

MEGABYTE = 1_000_000
DAY_MS = 24 * 3_600_000
Status = grpc.StatusCode


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path) as running:
        yield running


@pytest.fixture
async def honest(served: Served) -> AsyncIterator[Agent]:
    """Whom nothing here may disturb."""
    async with agent_of(served) as made:
        await made.join()
        await made.hello()
        yield made
        await answered(made)
        assert made.worker_id in served.house.plane.sessions.connected


@pytest.fixture
async def hostile(served: Served, honest: Agent) -> AsyncIterator[Agent]:
    """A registered worker that may say anything; it has no session yet."""
    async with agent_of(served, offer=offered("hostile")) as made:
        await made.join()
        yield made


def devices(count: int, text: str = "") -> list[common_pb2.Device]:
    return [
        common_pb2.Device(device_id=f"d{number}{text}", kind=common_pb2.DEVICE_KIND_GPU, model="RTX4090")
        for number in range(count)
    ]


# ---------------------------------------------------------------- joining

BAD_JOINS: dict[str, tuple[Callable[[worker_pb2.JoinRequest], Any], str]] = {
    "token of 1 MB": (lambda r: setattr(r, "join_token", "x" * MEGABYTE), "join_token is no token of ours"),
    "name of 1 MB": (lambda r: setattr(r, "worker_name", "x" * MEGABYTE), "worker_name"),
    "name with an escape": (lambda r: setattr(r, "worker_name", "\x1b[2J"), "worker_name"),
    "key of 1 MB": (
        lambda r: setattr(r, "statement_public_key", b"x" * MEGABYTE),
        "statement_public_key must be",
    ),
    "proof of 1 MB": (lambda r: setattr(r, "proof", b"x" * MEGABYTE), "proof is not"),
    "request of 1 MB": (lambda r: setattr(r, "tls_csr", b"x" * MEGABYTE), "tls_csr: the certificate request"),
    "request cut off": (lambda r: setattr(r, "tls_csr", r.tls_csr[:-20]), "tls_csr"),
    "inventory of 10 MB": (
        lambda r: setattr(r.inventory, "zone", "x" * 10 * MEGABYTE),
        "inventory: 10000",
    ),
    "1,000 GPUs": (lambda r: r.inventory.devices.extend(devices(999)), "1000 devices on one machine"),
    "device id of 200 kB": (
        lambda r: r.inventory.devices.extend(devices(1, "x" * 200_000)),
        "device_id",
    ),
    "model of 200 kB": (
        lambda r: setattr(r.inventory.devices[0], "model", "x" * 200_000),
        "unknown model",
    ),
    "region of 1 MB": (lambda r: r.terms.regions.append("x" * MEGABYTE), "terms.regions"),
    "webhook of 1 MB": (
        lambda r: setattr(r.terms, "webhook_url", "https://" + "x" * MEGABYTE),
        "terms.webhook_url",
    ),
    "100,000 prices": (
        lambda r: r.terms.asks.extend([terms_pb2.Ask(model="RTX4090")] * 100_000),
        "terms.asks",
    ),
}


def signed(agent: Agent, request: worker_pb2.JoinRequest) -> worker_pb2.JoinRequest:
    """The proof that belongs to a changed request."""
    token = hashlib.sha256(request.join_token.encode()).digest()
    request.proof = agent.key.sign(JOIN_CONTEXT + token + hashlib.sha256(request.tls_csr).digest())
    return request


@pytest.mark.parametrize("case", BAD_JOINS)
async def test_join_with_bad_input_is_refused_in_words_and_spends_nothing(
    served: Served, honest: Agent, case: str
) -> None:
    change, words = BAD_JOINS[case]
    token = await served.house.token(TokenRole.SUPPLIER, "anna")
    before, events = refusals(served, "Join", "invalid"), written(served)
    async with agent_of(served, offer=offered("new")) as joiner:
        request = joiner.join_request(token)
        change(request)
        if "proof" not in case:
            signed(joiner, request)
        with refused(Status.INVALID_ARGUMENT, words) as caught:
            await served.enrol.Join(request)
        assert len(caught.value.details() or "") < WORDS_MAX
        assert refusals(served, "Join", "invalid") == before + 1
        assert written(served) == events
        await answered(honest)
        await joiner.join(token)


async def test_join_beyond_any_message_is_refused_unread(served: Served, honest: Agent) -> None:
    request = honest.join_request("t")
    request.inventory.zone = "x" * 17 * MEGABYTE
    with refused(Status.RESOURCE_EXHAUSTED, "larger than max"):
        await served.enrol.Join(request)


async def test_join_with_worthless_tokens_is_counted(served: Served, honest: Agent) -> None:
    house = served.house
    good = await house.token(TokenRole.SUPPLIER, "anna")
    async with agent_of(served, offer=offered("new")) as joiner:
        await joiner.join(good)
    expired = await house.token(TokenRole.SUPPLIER, "anna", ttl_ms=1)
    foreign = clock.new_secret("orch_supplier")
    events = written(served)
    cases = ((good, "used"), (good[:-3], "not known"), (foreign, "not known"), (expired, "expired"))
    for token, words in cases:
        with refused(Status.UNAUTHENTICATED, words, "new one"):
            await Agent(served, offer=offered("other")).join(token)
    assert refusals(served, "Join", "unauthenticated") == len(cases)
    assert written(served) == events


async def test_device_of_another_worker_is_counted(served: Served, honest: Agent) -> None:
    async with agent_of(served) as later:
        await later.join()
        await served.house.plane.measure()
        held = served.house.metrics.registry.get_sample_value
        assert held("orchestrator_worker_holds", {"kind": "quarantined"}) == 1
        request = operator_pb2.GetWorkerRequest(worker=later.worker_id)
        answer = await served.operator.GetWorker(request, metadata=served.admin)
        (hold,) = answer.worker.standing.holds
        assert honest.worker_id in hold.reason
        assert honest.offer.devices[0].device_id in hold.reason


# ---------------------------------------------------------------- certificates


async def test_session_with_a_certificate_of_a_wrong_authority_finds_no_way_in(
    served: Served, hostile: Agent, tmp_path: Path
) -> None:
    """TLS ends it before there is a call: nothing of ours hears of it."""
    now_ms = clock.SystemClock().now().wall_ms
    folder = tmp_path / "other"
    folder.mkdir()
    other = Authority(folder, now_ms=now_ms, founded=False)
    name = peers.spiffe_id(served.house.plane.loop.network_id, "sup_x", hostile.worker_id)
    forged = other.issue_worker(peers.make_csr(hostile.tls_key), name, now_ms, DAY_MS)
    hostile.certificate = worker_pb2.Certificate(chain=forged.chain_pem)
    call: Any = hostile.connect().unary_unary("/orchestrator.api.v1.WorkerService/Session")
    with refused(Status.UNAVAILABLE):
        await call(b"", timeout=DEADLINE_S)
    trusting = grpc.ssl_channel_credentials(other.trust_bundle())
    async with grpc.aio.secure_channel(served.address, trusting, options=OPTIONS) as channel:
        asked: Any = channel.unary_unary("/orchestrator.api.v1.EnrolService/GetTrust")
        with refused(Status.UNAVAILABLE):
            await asked(b"", timeout=DEADLINE_S)


async def test_session_with_a_certificate_of_another_network_is_refused(
    served: Served, hostile: Agent
) -> None:
    name = peers.spiffe_id("net_other", "sup_x", hostile.worker_id)
    now_ms = clock.SystemClock().now().wall_ms
    issued = served.house.authority.issue_worker(peers.make_csr(hostile.tls_key), name, now_ms, DAY_MS)
    hostile.certificate = worker_pb2.Certificate(chain=issued.chain_pem)
    hostile.connect()
    stream = hostile.stub.Session()
    with refused(Status.UNAUTHENTICATED, "another network", "net_other"):
        await stream.read()
    assert refusals(served, "Session", "unauthenticated") == 1


@pytest.mark.parametrize(("off_ms", "way"), [(3 * DAY_MS, "ahead"), (-3 * DAY_MS, "behind")])
async def test_clock_off_by_days_is_told_and_changes_nothing_else(
    served: Served, hostile: Agent, off_ms: int, way: str
) -> None:
    now_ms = clock.SystemClock().now().wall_ms
    # A machine whose clock is behind accepts the certificate that it was just given.
    assert peers.certificate_times(hostile.certificate.chain)[0] <= now_ms - 3_600_000 + 60_000
    answer = await begin(hostile, lambda hello: setattr(hello, "wall_ms", now_ms + off_ms))
    assert answer.HasField("welcome")
    async with asyncio.timeout(DEADLINE_S):
        standing = (await hostile.expect("standing")).standing
    assert way in standing.clock_notice
    assert "set it" in standing.clock_notice
    assert not standing.holds
    await answered(hostile)
    hostile_again = await begin(hostile, lambda hello: setattr(hello, "wall_ms", now_ms))
    assert hostile_again.HasField("welcome")
    async with asyncio.timeout(DEADLINE_S):
        assert not (await hostile.expect("standing")).standing.clock_notice


# ---------------------------------------------------------------- hello

BAD_HELLOS: dict[str, tuple[Change, str, str]] = {
    "no version": (lambda h: setattr(h, "agent_version", ""), "invalid", "is no version"),
    "garbage version": (lambda h: setattr(h, "agent_version", "tomorrow"), "invalid", "is no version"),
    "version with an escape": (lambda h: setattr(h, "agent_version", "0.1.\x1b[2J"), "invalid", "printable"),
    "version of 1 MB": (lambda h: setattr(h, "agent_version", "9.0." + "x" * MEGABYTE), "invalid", "200"),
    "future version": (lambda h: setattr(h, "agent_version", "9.0.0"), "unavailable", "install agent"),
    "term of the future": (lambda h: setattr(h, "term", 1 << 60), "invalid", "too far above"),
    "inventory of 10 MB": (
        lambda h: setattr(h.inventory, "overlay", "x" * 10 * MEGABYTE),
        "invalid",
        "no machine's takes more",
    ),
    "1,000 GPUs": (lambda h: h.inventory.devices.extend(devices(999)), "invalid", "1000 devices"),
    "name of 1 MB": (
        lambda h: setattr(h, "worker_id", "x" * MEGABYTE),
        "forbidden",
        "speaks only for itself",
    ),
    "uncounted session": (lambda h: setattr(h, "session_number", 0), "invalid", "install a newer one"),
    "no signature": (lambda h: setattr(h, "signature", b""), "unauthenticated", "not signed"),
    "signature of 1 MB": (
        lambda h: setattr(h, "signature", b"x" * MEGABYTE),
        "unauthenticated",
        "not signed",
    ),
}


@pytest.mark.parametrize("case", BAD_HELLOS)
async def test_hello_with_bad_input_is_refused_in_words_and_changes_nothing(
    served: Served, honest: Agent, hostile: Agent, case: str
) -> None:
    change, code, words = BAD_HELLOS[case]
    before, events = refusals(served, "session", code), written(served)
    answer = await begin(hostile, change)
    assert answer.WhichOneof("message") == "farewell"
    assert words in answer.farewell.reason
    assert len(answer.farewell.reason) < WORDS_MAX
    assert answer.farewell.retry == (code == "unavailable")
    assert refusals(served, "session", code) == before + 1
    assert written(served) == events
    await answered(honest)
    assert (await begin(hostile)).HasField("welcome")


async def test_session_that_speaks_before_hello_is_refused(served: Served, hostile: Agent) -> None:
    hostile.connect()
    stream = hostile.stub.Session()
    first = await stream.read()
    assert isinstance(first, worker_pb2.SessionResponse)
    assert first.HasField("challenge")
    await stream.write(beat())
    answer = await stream.read()
    assert isinstance(answer, worker_pb2.SessionResponse)
    assert "begins with hello" in answer.farewell.reason
    assert refusals(served, "session", "unauthenticated") == 1
    assert hostile.worker_id not in served.house.plane.sessions.connected


async def test_session_that_says_nothing_is_ended(
    served: Served, hostile: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.control.sessions.HELLO_S", 0.1)
    hostile.connect()
    stream = hostile.stub.Session()
    async with asyncio.timeout(DEADLINE_S):
        await stream.read()
        answer = await stream.read()
        assert isinstance(answer, worker_pb2.SessionResponse)
        assert "no hello came in time" in answer.farewell.reason
        assert await stream.read() is grpc.aio.EOF
    assert refusals(served, "session", "unavailable") == 1


async def test_hello_twice_ends_the_session(served: Served, honest: Agent, hostile: Agent) -> None:
    await begin(hostile)
    await hostile.stream.write(worker_pb2.SessionRequest(hello=worker_pb2.Hello()))
    with refused(Status.INVALID_ARGUMENT, "one hello"):
        await hostile.expect("farewell")
    assert refusals(served, "Session", "invalid") == 1
    assert (await begin(hostile)).HasField("welcome")


# ---------------------------------------------------------------- in a session


async def test_message_of_a_newer_agent_is_counted_and_the_session_goes_on(
    served: Served, hostile: Agent
) -> None:
    await begin(hostile)
    await hostile.stream.write(b"\x9a\x06\x00")
    await answered(hostile)
    assert refusals(served, "message", "invalid") == 1


async def test_malformed_message_ends_its_session_alone(
    served: Served, honest: Agent, hostile: Agent
) -> None:
    await begin(hostile)
    await answered(hostile)
    await hostile.stream.write(b"\xff\xff\xff\xff")
    with refused(Status.INVALID_ARGUMENT, "no message of this call"):
        await hostile.expect("farewell")
    assert refusals(served, "Session", "invalid") == 1
    await answered(honest)
    assert (await begin(hostile)).HasField("welcome")


async def test_report_of_unknown_members_and_fences_means_nothing(
    served: Served, honest: Agent, hostile: Agent
) -> None:
    await begin(hostile)
    await answered(hostile)
    events = written(served)
    member = worker_pb2.MemberObserved(
        member_id="mem_nobody",
        fence=common_pb2.Fence(term=1 << 60, generation=99),
        phase=worker_pb2.MEMBER_PHASE_UP,
        address=worker_pb2.NodeAddress(node_ip="x" * MEGABYTE),
    )
    observed = worker_pb2.Observed(seen_version=1 << 60, members=[member])
    await hostile.stream.write(worker_pb2.SessionRequest(observed=observed))
    await answered(hostile)
    assert written(served) == events


BAD_REPORTS = {
    "members": (worker_pb2.Observed(members=[worker_pb2.MemberObserved()] * 257), "257 members"),
    "nodes": (
        worker_pb2.Observed(members=[worker_pb2.MemberObserved(nodes=[worker_pb2.NodeSeen()] * 20_001)]),
        "20001 nodes",
    ),
    "nobody's count": (
        worker_pb2.Observed(
            members=[worker_pb2.MemberObserved(nodes=[worker_pb2.NodeSeen(gpus=float("nan"))])]
        ),
        "cannot be",
    ),
    "paths": (
        worker_pb2.Observed(members=[worker_pb2.MemberObserved(paths=[overlay_pb2.PathMeasured()] * 257)]),
        "257 paths",
    ),
    "no time at all": (
        worker_pb2.Observed(
            members=[
                worker_pb2.MemberObserved(paths=[overlay_pb2.PathMeasured(peer_id="p", sent=1, received=1)])
            ]
        ),
        "no answer comes in no time",
    ),
}


@pytest.mark.parametrize("case", BAD_REPORTS)
async def test_report_that_no_worker_can_make_ends_its_session(
    served: Served, honest: Agent, hostile: Agent, case: str
) -> None:
    observed, words = BAD_REPORTS[case]
    await begin(hostile)
    await hostile.stream.write(worker_pb2.SessionRequest(observed=observed))
    with refused(Status.INVALID_ARGUMENT, "members", words):
        await hostile.expect("farewell")
    assert refusals(served, "Session", "invalid") == 1
    assert (await begin(hostile)).HasField("welcome")


async def test_statements_of_foreign_leases_and_workers_are_refused(
    served: Served, honest: Agent, hostile: Agent
) -> None:
    await begin(hostile)
    await answered(hostile)
    events = written(served)
    foreign = make_statement(worker_id=hostile.worker_id)
    envelopes = {
        "not_found": sign_statement(foreign, hostile.key),
        "invalid": sign_statement(replace(foreign, worker_id=honest.worker_id), hostile.key),
    }
    unsigned = sign_statement(foreign, Ed25519PrivateKey.generate())
    for envelope in (*envelopes.values(), unsigned):
        batch = worker_pb2.StatementBatch(envelopes=[envelope])
        await hostile.stream.write(worker_pb2.SessionRequest(statements=batch))
    await answered(hostile)
    assert refusals(served, "statements", "not_found") == 1
    assert refusals(served, "statements", "invalid") == 2
    assert written(served) == events


async def test_thousands_of_forged_statements_keep_nobody_waiting(
    served: Served, honest: Agent, hostile: Agent
) -> None:
    """The honest agent is answered many times over while one batch is being refused."""
    await begin(hostile)
    await answered(hostile)
    forged = sign_statement(make_statement(worker_id=hostile.worker_id), Ed25519PrivateKey.generate())
    batch = worker_pb2.StatementBatch(envelopes=[forged] * 5_000)
    await hostile.stream.write(worker_pb2.SessionRequest(statements=batch))
    after = asyncio.create_task(answered(hostile))
    await answered(honest, beats=30)
    assert not after.done()
    await after
    assert refusals(served, "statements", "invalid") == 1


async def test_wishes_faults_and_renewals_that_cannot_be_are_counted(served: Served, hostile: Agent) -> None:
    await begin(hostile)
    fault = worker_pb2.DeviceFault(device_id="x" * MEGABYTE, kind="xid", text="y" * MEGABYTE)
    terms = terms_pb2.Terms(regions=["x" * MEGABYTE])
    for request in (
        worker_pb2.SessionRequest(fault_report=worker_pb2.FaultReport(faults=[fault])),
        worker_pb2.SessionRequest(owner_wish=worker_pb2.OwnerWish(terms=terms)),
        worker_pb2.SessionRequest(owner_wish=worker_pb2.OwnerWish()),
        worker_pb2.SessionRequest(renew_certificate=worker_pb2.RenewCertificate(tls_csr=b"x" * MEGABYTE)),
    ):
        await hostile.stream.write(request)
    await answered(hostile)
    assert refusals(served, "fault", "not_found") == 1
    assert refusals(served, "wish", "invalid") == 2
    assert refusals(served, "renewal", "invalid") == 1


async def test_measurements_too_large_to_keep_are_refused(served: Served, hostile: Agent) -> None:
    await hostile.hello()
    device = telemetry_pb2.DeviceSample(device_id="x" * workers.SAMPLE_BYTES_MAX)
    telemetry = telemetry_pb2_grpc.TelemetryServiceStub(hostile.channel)
    with refused(Status.INVALID_ARGUMENT, "devices", "at most"):
        await telemetry.Report(
            iter((telemetry_pb2.ReportRequest(devices=[device]),)), metadata=bearer(hostile.token)
        )
    assert refusals(served, "Report", "invalid") == 1
    assert not served.house.plane.telemetry.newest
