"""Who gets in: tokens, keys, certificates, strangers, copies, and who is thrown out again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from orchestrator.adapters import peers
from orchestrator.api.v1 import (
    authority_pb2,
    common_pb2,
    operator_pb2,
    telemetry_pb2,
    telemetry_pb2_grpc,
    terms_pb2,
    worker_pb2,
)
from orchestrator.control.inventory_wire import inventory_to
from orchestrator.control.limits import Limit
from orchestrator.control.loop import Committed
from orchestrator.control.services.enrolment import EnrolLimits
from orchestrator.core import messages as m
from orchestrator.core.errors import RefusalCode, RefusedError
from orchestrator.core.ids import WorkerId
from orchestrator.core.policies import Policies
from orchestrator.core.supply.evidence import EvidenceClass
from orchestrator.core.supply.fleet import FleetPolicy, TokenRole
from orchestrator.core.supply.holds import HoldKind
from tests.control.agents import OPTIONS, Agent, Served, agent_of, bearer, refused, serving
from tests.control.house import DEADLINE_S, inventory
from tests.polling import wait_until_async

OUT_S = 30.0
"""How soon a revoked worker must be out."""


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path) as running:
        yield running


@pytest.fixture
async def agent(served: Served) -> AsyncIterator[Agent]:
    async with agent_of(served) as made:
        yield made


async def held(agent: Agent) -> dict[str, str]:
    """Kinds of holds on the agent's worker, with their reasons."""
    request = operator_pb2.GetWorkerRequest(worker=agent.worker_id)
    answer = await agent.served.operator.GetWorker(request, metadata=agent.served.admin)
    return {hold.kind: hold.reason for hold in answer.worker.standing.holds}


def offered(of: str) -> common_pb2.Inventory:
    return inventory_to(inventory(1, of))


# ---------------------------------------------------------------- tokens and keys


async def test_join_certificate_names_the_worker_and_lives_a_day_at_most(agent: Agent) -> None:
    await agent.join()
    leaf = x509.load_pem_x509_certificate(agent.certificate.chain)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
    network, _, worker = peers.parse_spiffe_id(uri)
    assert (network, worker) == (agent.served.house.plane.loop.network_id, agent.worker_id)
    begins_ms, ends_ms = peers.certificate_times(agent.certificate.chain)
    assert ends_ms - begins_ms <= 24 * 3_600_000
    middle_ms = (ends_ms + begins_ms) // 2
    assert abs(agent.certificate.renew_after_unix_ms - middle_ms) < 3_600_000


async def test_join_token_is_good_for_one_pair_of_keys(agent: Agent) -> None:
    token = await agent.served.house.token(TokenRole.SUPPLIER, "anna")
    await agent.join(token)
    async with agent_of(agent.served, offer=offered("other")) as other:
        with refused(grpc.StatusCode.UNAUTHENTICATED, "used"):
            await other.join(token)
    swapped = Agent(agent.served, key=agent.key)
    with refused(grpc.StatusCode.ALREADY_EXISTS, agent.worker_id):
        await swapped.join(token)


async def test_join_expired_and_foreign_tokens_are_refused_with_the_reason(agent: Agent) -> None:
    house = agent.served.house
    short = await house.token(TokenRole.SUPPLIER, "anna", ttl_ms=1)
    with refused(grpc.StatusCode.UNAUTHENTICATED, "expired"):
        await agent.join(short)
    _, tenants = await house.tenant("acme")
    with refused(grpc.StatusCode.PERMISSION_DENIED, "supplier token"):
        await agent.join(tenants)
    with refused(grpc.StatusCode.UNAUTHENTICATED, "not known"):
        await agent.join("orch_supplier_trunca")
    with refused(grpc.StatusCode.PERMISSION_DENIED, "join token only"):
        await agent.join("")


async def test_join_request_for_a_name_is_refused(agent: Agent) -> None:
    """Names are given, never asked for."""
    asked = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "somebody else")])
    )
    csr = asked.sign(agent.tls_key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    request = agent.join_request(await agent.served.house.token(TokenRole.SUPPLIER, "anna"))
    request.tls_csr = csr
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "tls_csr", "name"):
        await agent.served.enrol.Join(request)


async def test_session_of_another_worker_is_refused(agent: Agent) -> None:
    """A certificate speaks for its own worker, a session token for the connection it was given on."""
    await agent.join()
    await agent.hello()
    async with agent_of(agent.served, offer=offered("other")) as other:
        await other.join()
        own = other.worker_id
        other.worker_id = agent.worker_id
        answer = await other.hello()
        assert answer.WhichOneof("message") == "farewell"
        assert own in answer.farewell.reason
        telemetry = telemetry_pb2_grpc.TelemetryServiceStub(other.channel)
        with refused(grpc.StatusCode.PERMISSION_DENIED, "another worker"):
            await telemetry.Report(iter((telemetry_pb2.ReportRequest(),)), metadata=bearer(agent.token))


async def test_session_without_certificate_finds_no_way_in(agent: Agent) -> None:
    trusting = grpc.ssl_channel_credentials(agent.served.house.authority.trust_bundle())
    async with grpc.aio.secure_channel(agent.served.session_address, trusting, options=OPTIONS) as channel:
        call: Any = channel.unary_unary("/orchestrator.api.v1.WorkerService/FetchPackage")
        with refused(grpc.StatusCode.UNAVAILABLE):
            await call(b"", timeout=DEADLINE_S)
    request = worker_pb2.FetchPackageRequest(attempt_id="a", sha256="b")
    enrol_only: Any = agent.served.channel.unary_stream("/orchestrator.api.v1.WorkerService/FetchPackage")
    with refused(grpc.StatusCode.UNIMPLEMENTED):
        await anext(aiter(enrol_only(request.SerializeToString())))


# ---------------------------------------------------------------- certificates


async def test_renewal_over_the_live_session_gives_a_later_certificate(agent: Agent) -> None:
    await agent.join()
    await agent.hello()
    renew = worker_pb2.RenewCertificate(tls_csr=peers.make_csr(agent.tls_key))
    await agent.stream.write(worker_pb2.SessionRequest(renew_certificate=renew))
    async with asyncio.timeout(DEADLINE_S):
        renewed = (await agent.expect("certificate")).certificate
    assert renewed.chain != agent.certificate.chain
    agent.certificate = renewed
    assert (await agent.hello()).HasField("welcome")


async def test_renewal_for_another_key_is_refused_and_the_session_goes_on(agent: Agent) -> None:
    await agent.join()
    await agent.hello()
    renew = worker_pb2.RenewCertificate(tls_csr=peers.make_csr(peers.new_tls_key()))
    await agent.stream.write(worker_pb2.SessionRequest(renew_certificate=renew))
    beat = worker_pb2.Heartbeat(sequence=3)
    await agent.stream.write(worker_pb2.SessionRequest(heartbeat=beat))
    async with asyncio.timeout(DEADLINE_S):
        while (answer := await agent.stream.read()).WhichOneof("message") != "heartbeat_ack":
            assert answer.WhichOneof("message") != "certificate"


async def test_recovery_is_counted_and_ends(tmp_path: Path) -> None:
    policies = Policies(fleet=FleetPolicy(recoveries_max=2))
    async with serving(tmp_path, policies) as served, agent_of(served) as agent:
        await agent.join()
        assert (await agent.recover()).recoveries_left == 1
        assert (await agent.recover()).recoveries_left == 0
        assert (await agent.hello()).HasField("welcome")
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "2 times lately", "24 hours"):
            await agent.recover()
        stolen = Agent(served, key=agent.key, worker_id=agent.worker_id)
        with refused(grpc.StatusCode.PERMISSION_DENIED, "TLS key"):
            await stolen.recover()


async def test_recovery_nonce_is_good_once_and_for_its_worker(agent: Agent) -> None:
    await agent.join()
    asked = worker_pb2.GetRecoveryNonceRequest(worker_id=agent.worker_id)
    nonce = (await agent.served.enrol.GetRecoveryNonce(asked)).nonce
    forged = worker_pb2.RecoverRequest(
        worker_id=agent.worker_id, nonce=nonce, tls_csr=peers.make_csr(agent.tls_key), proof=b"x" * 64
    )
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "proof"):
        await agent.served.enrol.Recover(forged)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "nonce"):
        await agent.served.enrol.Recover(forged)


async def test_rotation_under_load_drops_no_good_worker(served: Served) -> None:
    """Rotate, let all renew over their sessions, retire: nobody's session ends, and everybody comes back."""
    async with AsyncExitStack() as stack:
        agents = [
            await stack.enter_async_context(agent_of(served, offer=offered(f"rig{number}")))
            for number in range(8)
        ]
        for one in agents:
            await one.join()
            await one.hello()
        await served.operator.RotateAuthority(authority_pb2.RotateAuthorityRequest(), metadata=served.admin)
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "8 worker(s)", "8 connected", "0 absent"):
            await served.operator.RetireAuthority(
                authority_pb2.RetireAuthorityRequest(), metadata=served.admin
            )
        async with asyncio.timeout(DEADLINE_S):
            for one in agents:
                pushed = (await one.expect("certificate")).certificate
                assert len(peers.bundle_pins(pushed.trust_bundle)) == 2
                renew = worker_pb2.RenewCertificate(tls_csr=peers.make_csr(one.tls_key))
                await one.stream.write(worker_pb2.SessionRequest(renew_certificate=renew))
                one.certificate = (await one.expect("certificate")).certificate
            retired = await served.operator.RetireAuthority(
                authority_pb2.RetireAuthorityRequest(), metadata=served.admin
            )
            assert [one.generation for one in retired.authorities] == [2]
            for one in agents:
                await one.stream.write(worker_pb2.SessionRequest(heartbeat=worker_pb2.Heartbeat(sequence=1)))
                assert (await one.expect("heartbeat_ack")).heartbeat_ack.sequence == 1
        assert len(served.house.plane.sessions.connected) == 8
        for one in agents:
            assert (await one.hello()).HasField("welcome")


async def test_revoked_worker_is_out_at_once_and_the_others_stay(served: Served) -> None:
    async with agent_of(served) as bad, agent_of(served, offer=offered("good")) as good:
        for one in (bad, good):
            await one.join()
            await one.hello()
        request = operator_pb2.RevokeWorkerRequest(worker=bad.worker_id, reason="mines on tenants' time")
        await served.operator.RevokeWorker(request, metadata=served.admin)
        async with asyncio.timeout(OUT_S):
            farewell = (await bad.expect("farewell")).farewell
            assert (farewell.retry, "mines" in farewell.reason) == (False, True)
            while await bad.stream.read() is not grpc.aio.EOF:
                pass
        again = await bad.hello()
        assert (again.farewell.retry, "mines" in again.farewell.reason) == (False, True)
        with refused(grpc.StatusCode.PERMISSION_DENIED, "mines"):
            await bad.recover()
        assert served.house.plane.sessions.connected == {WorkerId(good.worker_id)}
        await served.operator.UncordonWorker(
            operator_pb2.UncordonWorkerRequest(worker=bad.worker_id), metadata=served.admin
        )
        assert (await bad.hello()).HasField("welcome")


# ---------------------------------------------------------------- copies


async def test_cloned_keys_in_two_places_shut_both_out(agent: Agent) -> None:
    """The copy comes with the next number; when the original comes back, its own number has been used."""
    await agent.join()
    await agent.hello()
    copy = replace(agent, channels=[])
    assert (await copy.hello()).HasField("welcome")
    original = await agent.hello()
    assert original.WhichOneof("message") == "farewell"
    assert "two places" in original.farewell.reason
    assert not original.farewell.retry
    async with asyncio.timeout(DEADLINE_S):
        assert "two places" in (await copy.expect("farewell")).farewell.reason
    assert not (await copy.hello()).HasField("welcome")
    assert set(await held(agent)) == {"cloned"}
    await agent.served.operator.UncordonWorker(
        operator_pb2.UncordonWorkerRequest(worker=agent.worker_id), metadata=agent.served.admin
    )
    assert (await agent.hello()).HasField("welcome")
    await copy.close()


async def test_device_of_another_worker_quarantines_the_later_one(agent: Agent) -> None:
    await agent.join()
    await agent.hello()
    async with agent_of(agent.served) as later:
        await later.join()
        assert (await later.hello()).HasField("welcome")
        holds = await held(later)
        assert set(holds) == {"quarantined"}
        assert agent.worker_id in holds["quarantined"]
        assert not await held(agent)


# ---------------------------------------------------------------- strangers


OPEN = Policies(fleet=FleetPolicy(open_enrolment=True, probation_ms=300, probation_evidence=EvidenceClass.T0))


async def test_stranger_becomes_a_live_worker_and_leaves_probation(tmp_path: Path) -> None:
    async with serving(tmp_path, OPEN) as served, agent_of(served) as stranger:
        await stranger.join("")
        assert set(await held(stranger)) == {"probation"}
        assert (await stranger.hello()).HasField("welcome")

        async def promoted() -> bool:
            return not await held(stranger)

        async with asyncio.timeout(DEADLINE_S):
            while not await promoted():
                await stranger.stream.write(
                    worker_pb2.SessionRequest(heartbeat=worker_pb2.Heartbeat(sequence=1))
                )
                await stranger.expect("heartbeat_ack")


async def test_strangers_are_limited_by_key_by_address_and_in_all(tmp_path: Path) -> None:
    limits = EnrolLimits(strangers=Limit(2, 3_600_000), strangers_of_key=Limit(1, 3_600_000))
    async with serving(tmp_path, OPEN, limits) as served:
        first = Agent(served, offer=offered("a"))
        await first.join("")
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "this key"):
            await first.join("")
        await Agent(served, offer=offered("b")).join("")
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "this address"):
            await Agent(served, offer=offered("c")).join("")
        # Whoever has an operator's word is not kept waiting by strangers.
        await Agent(served, offer=offered("d")).join()
        assert b'orchestrator_refusals_total{code="exhausted",door="Join"} 2.0' in served.house.metrics.text()


# ---------------------------------------------------------------- versions


async def test_agent_of_the_future_is_told_what_to_install(served: Served) -> None:
    async with agent_of(served, version="9.0.0") as agent:
        await agent.join()
        farewell = (await agent.hello()).farewell
        assert farewell.retry
        assert "newer than this control plane" in farewell.reason
        assert "install agent" in farewell.reason


async def test_agent_older_than_the_window_works_on_and_is_told(served: Served) -> None:
    async with agent_of(served, version="0.0.9") as agent:
        await agent.join()
        assert (await agent.hello()).HasField("welcome")
        async with asyncio.timeout(DEADLINE_S):
            standing = (await agent.expect("standing")).standing
        assert "14 days" in standing.upgrade_notice
        assert not standing.holds
        agent.version = "0.1.7"
        await agent.hello()
        async with asyncio.timeout(DEADLINE_S):
            assert not (await agent.expect("standing")).standing.upgrade_notice


async def test_lease_policy_of_one_worker_reaches_its_agent(agent: Agent) -> None:
    """Its nodes end by themselves before it is lost, so it has to know how long that is."""
    await agent.join()
    usual_ms = (await agent.hello()).welcome.lease_ttl_ms
    policy = operator_pb2.LeasePolicy(lost_after_ms=600_000, replace=True, reconcile="replacement")
    request = operator_pb2.SetLeasePolicyRequest(worker=agent.worker_id, lease_policy=policy)
    answer = await agent.served.operator.SetLeasePolicy(request, metadata=agent.served.admin)
    assert answer.worker.lease_policy == policy
    async with asyncio.timeout(DEADLINE_S):
        assert (await agent.expect("farewell")).farewell.retry
    known = FleetPolicy()
    expected_ms = 600_000 - (known.lost_after_ms - known.lease_ttl_ms)
    assert usual_ms == known.lease_ttl_ms != expected_ms
    assert (await agent.hello()).welcome.lease_ttl_ms == expected_ms
    request.lease_policy.reconcile = "whatever"
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "reconcile"):
        await agent.served.operator.SetLeasePolicy(request, metadata=agent.served.admin)


# ---------------------------------------------------------------- what an owner asks over his session


async def test_owner_wishes_change_his_own_worker(agent: Agent) -> None:
    await agent.join()
    await agent.hello()

    async def ask(**wish: object) -> None:
        owner_wish = worker_pb2.OwnerWish(**wish)  # type: ignore[arg-type]
        await agent.stream.write(worker_pb2.SessionRequest(owner_wish=owner_wish))

    async def until(kinds: set[str]) -> None:
        async def reached() -> bool:
            return set(await held(agent)) == kinds

        async with asyncio.timeout(DEADLINE_S):
            while not await reached():
                await agent.stream.write(
                    worker_pb2.SessionRequest(heartbeat=worker_pb2.Heartbeat(sequence=1))
                )
                await agent.expect("heartbeat_ack")

    await ask(cordon=worker_pb2.Cordon(reason="moving house"))
    await until({"owner"})
    await ask(reclaim=worker_pb2.Reclaim(busy=True))
    await until({"owner", "busy"})
    await ask(uncordon=worker_pb2.Uncordon(busy_only=True))
    await until({"owner"})
    await ask(uncordon=worker_pb2.Uncordon())
    await until(set())
    terms = terms_pb2.Terms(
        asks=[terms_pb2.Ask(model="RTX4090", microcredits_per_gpu_hour=350_000)], notice_ms=60_000
    )
    await ask(terms=terms)
    async with asyncio.timeout(DEADLINE_S):
        while (await agent.expect("standing")).standing.terms != terms:
            pass


async def test_owner_wish_is_acknowledged_once_it_is_durable_or_refused_with_its_reason(agent: Agent) -> None:
    await agent.join()
    await agent.hello()
    wish = worker_pb2.OwnerWish(cordon=worker_pb2.Cordon(reason="tea"), number=4)
    await agent.stream.write(worker_pb2.SessionRequest(owner_wish=wish))
    assert (await agent.expect("wish_ack")).wish_ack == worker_pb2.WishAck(number=4)
    assert await held(agent) == {"owner": "tea"}
    wish = worker_pb2.OwnerWish(terms=terms_pb2.Terms(committed=True, notice_ms=5), number=5)
    await agent.stream.write(worker_pb2.SessionRequest(owner_wish=wish))
    ack = (await agent.expect("wish_ack")).wish_ack
    assert (ack.number, "committed" in ack.refusal) == (5, True)


async def test_owner_wish_that_meets_a_stopping_control_plane_is_not_acknowledged(agent: Agent) -> None:
    await agent.join()
    await agent.hello()
    refusing = RefusedError(RefusalCode.UNAVAILABLE, "the control plane is stopping; safe to retry")
    submit = agent.served.house.plane.loop.submit

    async def stopping(command: m.Command) -> Committed:
        if isinstance(command, m.PlaceHold):
            raise refusing
        return await submit(command)

    agent.served.house.plane.loop.submit = stopping  # type: ignore[method-assign]  # ends as a real one does
    wish = worker_pb2.OwnerWish(cordon=worker_pb2.Cordon(), number=4)
    await agent.stream.write(worker_pb2.SessionRequest(owner_wish=wish))
    with refused(grpc.StatusCode.UNAVAILABLE, "safe to retry"):
        await agent.expect("wish_ack")


async def test_fault_report_cordons_the_device(agent: Agent) -> None:
    await agent.join()
    await agent.hello()
    device_id = agent.offer.devices[0].device_id
    fault = worker_pb2.DeviceFault(device_id=device_id, kind="xid", text="XID 79: fell off the bus")
    report = worker_pb2.FaultReport(
        faults=[fault, worker_pb2.DeviceFault(device_id="nobody's", kind="xid", text="?")], number=7
    )
    await agent.stream.write(worker_pb2.SessionRequest(fault_report=report))
    ack = (await agent.expect("fault_ack")).fault_ack
    assert ack.number == 7
    assert "nobody's" in ack.refusal
    state_of = agent.served.house.plane.loop.read

    async def cordoned() -> bool:
        holds = await state_of(lambda state: state.workers[WorkerId(agent.worker_id)].device_holds)
        return [one.device_id for one in holds] == [device_id]

    async with asyncio.timeout(DEADLINE_S):
        while not await cordoned():
            await agent.stream.write(worker_pb2.SessionRequest(heartbeat=worker_pb2.Heartbeat(sequence=1)))
            await agent.expect("heartbeat_ack")
    free = await state_of(lambda state: dict(state.free_devices[WorkerId(agent.worker_id)]))
    assert not free


async def test_alert_reaches_the_owners_webhook_once(agent: Agent) -> None:
    await agent.join()
    await agent.hello()
    terms = terms_pb2.Terms(webhook_url="https://owner.example/hook")
    await agent.stream.write(worker_pb2.SessionRequest(owner_wish=worker_pb2.OwnerWish(terms=terms)))
    async with asyncio.timeout(DEADLINE_S):
        while (await agent.expect("standing")).standing.terms.webhook_url != terms.webhook_url:
            pass
    hold = m.PlaceHold(WorkerId(agent.worker_id), HoldKind.OPERATOR, "looks odd")
    await agent.served.house.plane.loop.submit(hold)
    owners = agent.served.house.owners
    await wait_until_async(lambda: bool(owners.told), what="the owner to be told", deadline_s=DEADLINE_S)
    ((url, body),) = owners.told
    assert url == terms.webhook_url
    assert b"looks odd" in body
