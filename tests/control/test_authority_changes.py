"""A certificate authority that changes: who follows, who is counted behind, and how one who was away comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from orchestrator.adapters import peers
from orchestrator.adapters.peers import SESSION_CONTEXT
from orchestrator.agent.connection import GrpcControlPlane, GrpcSession
from orchestrator.agent.credentials import Credentials, keep_certificate
from orchestrator.agent.identity import Identity, Keys, Received
from orchestrator.api.v1 import authority_pb2, operator_pb2, worker_pb2
from orchestrator.cli.client import trusted
from orchestrator.cli.errors import CliError
from orchestrator.cli.settings import Settings
from orchestrator.core.ids import WorkerId
from tests.agent.fakes import FakeClock
from tests.control.agents import Agent, Served, agent_of, refused, serving
from tests.control.floods import answered
from tests.control.house import DEADLINE_S
from tests.control.test_enrolment import offered
from tests.tls import wall_ms

TRIES_MAX = 8
"""Three refusals at the handshake, the recovery, and a session; each is one attempt of the agent's."""


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path) as running:
        yield running


async def rotate(served: Served) -> None:
    await served.operator.RotateAuthority(authority_pb2.RotateAuthorityRequest(), metadata=served.admin)


async def retire(served: Served, *, force: bool = False) -> None:
    request = authority_pb2.RetireAuthorityRequest(force=force)
    await served.operator.RetireAuthority(request, metadata=served.admin)


async def behind(served: Served) -> int:
    request = authority_pb2.GetAuthorityRequest()
    return int((await served.operator.GetAuthority(request, metadata=served.admin)).workers_behind)


async def renew(agent: Agent) -> None:
    renewal = worker_pb2.RenewCertificate(tls_csr=peers.make_csr(agent.tls_key))
    await agent.stream.write(worker_pb2.SessionRequest(renew_certificate=renewal))
    async with asyncio.timeout(DEADLINE_S):
        while not (certificate := (await agent.expect("certificate")).certificate).chain:
            pass
    agent.certificate = certificate


async def recoveries(served: Served, worker_id: str) -> int:
    request = operator_pb2.GetWorkerRequest(worker=worker_id)
    return int((await served.operator.GetWorker(request, metadata=served.admin)).worker.recoveries)


def files_of(agent: Agent, folder: Path) -> tuple[Identity, Keys, FakeClock]:
    """What a real agent keeps of this worker."""
    clock = FakeClock()
    clock.wall_ms = wall_ms()
    keys = Keys(agent.key, agent.tls_key)
    identity = Identity(
        worker_id=agent.worker_id,
        name="rig",
        supplier_id="sup_1",
        control_plane=agent.served.address,
        network_id="net_1",
        session_address=agent.served.session_address,
        ca_pin=agent.served.house.authority.pin,
        certificate=Received(0, "", 0, proved=False),
    )
    folder.mkdir()
    return keep_certificate(folder, identity, keys, agent.certificate, clock.now(), proved=True), keys, clock


async def opened(control: GrpcControlPlane) -> tuple[GrpcSession, list[str]]:
    """The session that an agent comes to in the end, and why it did not before."""
    reasons: list[str] = []
    for _ in range(TRIES_MAX):
        try:
            return await control.open(), reasons
        except ConnectionError as error:
            reasons.append(str(error))
    raise AssertionError(f"no session after {TRIES_MAX} attempts: {reasons}")


async def greeted(session: GrpcSession, agent: Agent) -> worker_pb2.SessionResponse:
    """The answer to the hello of this worker."""
    challenge = await session.receive()
    assert challenge is not None
    signed = agent.key.sign(SESSION_CONTEXT + challenge.challenge.nonce + agent.worker_id.encode())
    hello = worker_pb2.Hello(
        worker_id=agent.worker_id,
        signature=signed,
        inventory=agent.offer,
        agent_version=agent.version,
        session_number=agent.session_number + 1,
    )
    await session.send(worker_pb2.SessionRequest(hello=hello))
    answer = await session.receive()
    assert answer is not None
    return answer


async def test_agent_that_was_off_during_rotation_and_forced_retirement_recovers_and_is_in(
    served: Served, tmp_path: Path
) -> None:
    """It verifies the server by the CA it knows, its own certificate is refused, and one recovery is counted."""
    async with agent_of(served) as agent:
        await agent.join()
        await agent.hello()
        identity, keys, clock = files_of(agent, tmp_path / "agent")
    await rotate(served)
    assert await behind(served) == 1
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "1 worker(s)", "0 connected", "1 absent", "--force"):
        await retire(served)
    await retire(served, force=True)
    said: list[str] = []
    credentials = Credentials(tmp_path / "agent", identity, keys, clock, said.append)
    control = GrpcControlPlane(credentials)
    session, reasons = await opened(control)
    assert (await greeted(session, agent)).HasField("welcome")
    await session.close()
    await control.close()
    assert all("ended the connection at the handshake" in reason for reason in reasons)
    assert credentials.identity.ca_pin == served.house.authority.pin
    assert await recoveries(served, agent.worker_id) == 1
    assert await behind(served) == 0
    assert "4 more time(s)" in said[0]


async def test_behind_is_kept_over_a_restart_and_counts_who_is_not_there(tmp_path: Path) -> None:
    async with (
        serving(tmp_path) as served,
        agent_of(served) as here,
        agent_of(served, offer=offered("away")) as away,
    ):
        for one in (here, away):
            await one.join()
            await one.hello()
        await rotate(served)
        assert await behind(served) == 2
        await renew(here)
        assert await behind(served) == 1
    async with serving(tmp_path) as again:
        assert await behind(again) == 1
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "1 absent"):
            await retire(again)
        request = operator_pb2.RevokeWorkerRequest(worker=away.worker_id, reason="sold")
        await again.operator.RevokeWorker(request, metadata=again.admin)
        await retire(again)


async def test_renewal_under_the_same_authority_writes_nothing(served: Served) -> None:
    async with agent_of(served) as agent:
        await agent.join()
        await agent.hello()
        before = await served.house.plane.loop.read(lambda state: state.version)
        await renew(agent)
        assert await served.house.plane.loop.read(lambda state: state.version) == before
        await rotate(served)
        await renew(agent)
        worker_id = WorkerId(agent.worker_id)
        kept = await served.house.plane.loop.read(lambda state: state.workers[worker_id])
        assert kept.certificate_generation == 2


async def test_forced_retirement_ends_the_sessions_of_old_certificates_and_no_others(served: Served) -> None:
    async with agent_of(served) as old, agent_of(served, offer=offered("new")) as new:
        for one in (old, new):
            await one.join()
            await one.hello()
        await rotate(served)
        await renew(new)
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "1 connected", "0 absent"):
            await retire(served)
        await retire(served, force=True)
        async with asyncio.timeout(DEADLINE_S):
            farewell = (await old.expect("farewell")).farewell
            assert (farewell.retry, "retired" in farewell.reason) == (True, True)
            # The connection is open still, and no way in: another handshake would be refused.
            stream = old.stub.Session()
            first = await stream.read()
            assert isinstance(first, worker_pb2.SessionResponse)
            assert "retired" in first.farewell.reason
        await answered(new)
        await old.recover()
        assert (await old.hello()).HasField("welcome")


async def test_rotations_at_once_take_turns(served: Served) -> None:
    await asyncio.gather(*(rotate(served) for _ in range(3)))
    assert [one.number for one in served.house.authority.generations] == [4, 3, 2, 1]


async def test_admin_file_names_the_newest_authority(tmp_path: Path) -> None:
    file = tmp_path / "admin-token"
    async with serving(tmp_path) as served:
        authority = served.house.authority
        first = file.read_text().strip()
        assert first.partition(".")[2] == authority.pin
        await rotate(served)
        assert file.read_text().strip() == f"{first.partition('.')[0]}.{authority.pin}"
        assert await behind(served) == 0
    # As a control plane of before wrote it.
    file.write_text(f"{first.partition('.')[0]}\n")
    async with serving(tmp_path) as again:
        assert await behind(again) == 0
        assert file.read_text().strip() == f"{first.partition('.')[0]}.{again.house.authority.pin}"


async def test_token_of_a_retired_authority_is_told_what_to_do_by_its_holders_role(served: Served) -> None:
    """And the admin file alone, copied to another machine, is enough."""
    file = Path(served.house.keys.folder) / "admin-token"
    old = file.read_text().strip()
    await rotate(served)
    await retire(served)
    for token, words in ((old, "ORCH_CA_FILE to them"), ("orch_tenant_x." + old[-43:], "ask the operator")):
        with pytest.raises(CliError, match=f"names, so the token was not sent.*{words}"):
            await asyncio.to_thread(trusted, Settings(served.address, token))
    new = Settings(served.address, file.read_text().strip())
    assert await asyncio.to_thread(trusted, new) == served.house.authority.trust_bundle()


async def test_recoveries_of_one_worker_are_limited_and_nobody_else_uses_them_up(served: Served) -> None:
    """Whoever does not hold its key can ask for nonces in its name, and spends only his own address's."""
    async with agent_of(served) as agent, agent_of(served, offer=offered("other")) as other:
        await agent.join()
        await other.join()
        thief = replace(agent, key=Ed25519PrivateKey.generate(), channels=[])
        for _ in range(20):
            with refused(grpc.StatusCode.INVALID_ARGUMENT, "proof"):
                await thief.recover()
        for _ in range(5):
            await agent.recover()
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "this worker"):
            await agent.recover()
        await other.recover()
