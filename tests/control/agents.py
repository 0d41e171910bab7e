"""A control plane that listens with TLS, and agents that a test moves by hand."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from orchestrator.adapters import peers
from orchestrator.adapters.peers import JOIN_CONTEXT, RECOVER_CONTEXT, SESSION_CONTEXT
from orchestrator.api.v1 import (
    common_pb2,
    jobs_pb2_grpc,
    operator_pb2_grpc,
    worker_pb2,
    worker_pb2_grpc,
)
from orchestrator.cli.listening import ServerIdentity
from orchestrator.control.inventory_wire import inventory_to
from orchestrator.control.services.enrolment import EnrolLimits
from orchestrator.control.services.surroundings import Addresses
from orchestrator.core.policies import Policies
from orchestrator.core.supply.fleet import TokenRole
from tests.control.house import House, house, inventory

Metadata = tuple[tuple[str, str], ...]
LOOPBACK = "127.0.0.1:0"
OPTIONS = (("grpc.ssl_target_name_override", peers.SERVER_NAME), ("grpc.enable_http_proxy", 0))


@dataclass
class Served:
    """A control plane that listens, and a channel to its enrol listener."""

    house: House
    address: str
    session_address: str
    channel: grpc.aio.Channel

    @property
    def admin(self) -> Metadata:
        return bearer(self.house.keys.admin_token)

    @property
    def operator(self) -> operator_pb2_grpc.OperatorServiceAsyncStub:
        return operator_pb2_grpc.OperatorServiceStub(self.channel)

    @property
    def jobs(self) -> jobs_pb2_grpc.JobsServiceAsyncStub:
        return jobs_pb2_grpc.JobsServiceStub(self.channel)

    @property
    def enrol(self) -> worker_pb2_grpc.EnrolServiceAsyncStub:
        return worker_pb2_grpc.EnrolServiceStub(self.channel)


def bearer(secret: str) -> Metadata:
    return (("authorization", f"Bearer {secret}"),)


@asynccontextmanager
async def serving(
    folder: Path,
    policies: Policies | None = None,
    limits: EnrolLimits | None = None,
    runtimes: Sequence[common_pb2.Runtime] = (),
) -> AsyncIterator[Served]:
    """Both listeners on loopback."""
    async with house(folder, policies, runtimes) as built:
        authority = built.authority
        sessions = await built.plane.session_server()
        mutual = ServerIdentity(authority, mutual=True).credentials()
        session_address = f"127.0.0.1:{sessions.add_secure_port(LOOPBACK, mutual)}"
        await sessions.start()
        built.plane.session_address = session_address
        addresses = Addresses("0.1", "http://gateway", "http://metrics", b"k" * 32)
        server = await built.plane.enrol_server(addresses, (), limits or EnrolLimits())
        port = server.add_secure_port(LOOPBACK, ServerIdentity(authority, mutual=False).credentials())
        await server.start()
        address = f"127.0.0.1:{port}"
        trusting = grpc.ssl_channel_credentials(authority.trust_bundle())
        async with grpc.aio.secure_channel(address, trusting, options=OPTIONS) as channel:
            yield Served(built, address, session_address, channel)
        await server.stop(0)
        await sessions.stop(0)


@dataclass
class Agent:
    """A scripted agent: its keys, a session, and what it was told."""

    served: Served
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    tls_key: EllipticCurvePrivateKey = field(default_factory=peers.new_tls_key)
    version: str = "0.1.0"
    worker_id: str = ""
    certificate: worker_pb2.Certificate = field(default_factory=worker_pb2.Certificate)
    session_number: int = 0
    stream: Any = None
    token: str = ""
    offer: common_pb2.Inventory = field(default_factory=lambda: inventory_to(inventory()))
    channels: list[grpc.aio.Channel] = field(default_factory=list)

    @property
    def channel(self) -> grpc.aio.Channel:
        """The newest connection with the worker's certificate."""
        return self.channels[-1]

    @property
    def stub(self) -> worker_pb2_grpc.WorkerServiceAsyncStub:
        return worker_pb2_grpc.WorkerServiceStub(self.channel)

    def join_request(self, token: str) -> worker_pb2.JoinRequest:
        csr = peers.make_csr(self.tls_key)
        signed = JOIN_CONTEXT + hashlib.sha256(token.encode()).digest() + hashlib.sha256(csr).digest()
        return worker_pb2.JoinRequest(
            join_token=token,
            worker_name="rig-1",
            statement_public_key=self.key.public_key().public_bytes_raw(),
            proof=self.key.sign(signed),
            tls_csr=csr,
            inventory=self.offer,
        )

    async def join(self, token: str | None = None) -> None:
        """With a new supplier token unless one is given; empty: as a stranger."""
        if token is None:
            token = await self.served.house.token(TokenRole.SUPPLIER, "anna")
        answer = await self.served.enrol.Join(self.join_request(token))
        self.worker_id = answer.worker_id
        self.certificate = answer.certificate

    async def recover(self) -> worker_pb2.RecoverResponse:
        """Another certificate for the same keys."""
        asked = worker_pb2.GetRecoveryNonceRequest(worker_id=self.worker_id)
        nonce = (await self.served.enrol.GetRecoveryNonce(asked)).nonce
        csr = peers.make_csr(self.tls_key)
        signed = RECOVER_CONTEXT + nonce + self.worker_id.encode() + hashlib.sha256(csr).digest()
        request = worker_pb2.RecoverRequest(
            worker_id=self.worker_id, nonce=nonce, tls_csr=csr, proof=self.key.sign(signed)
        )
        answer: worker_pb2.RecoverResponse = await self.served.enrol.Recover(request)
        self.certificate = answer.certificate
        return answer

    def connect(self) -> grpc.aio.Channel:
        """A new connection that shows the newest certificate."""
        credentials = grpc.ssl_channel_credentials(
            self.served.house.authority.trust_bundle(),
            peers.key_to_pem(self.tls_key),
            self.certificate.chain,
        )
        # Channels to one address with equal arguments would share one connection, and its certificate.
        options = (*OPTIONS, ("grpc.use_local_subchannel_pool", 1))
        self.channels.append(
            grpc.aio.secure_channel(self.served.session_address, credentials, options=options)
        )
        return self.channel

    async def hello(self, *, forged: bool = False, number: int | None = None) -> worker_pb2.SessionResponse:
        """The answer to hello, on a new connection."""
        self.connect()
        self.stream = self.stub.Session()
        challenge = (await self.stream.read()).challenge
        key = Ed25519PrivateKey.generate() if forged else self.key
        signature = key.sign(SESSION_CONTEXT + challenge.nonce + self.worker_id.encode())
        self.session_number = self.session_number + 1 if number is None else number
        hello = worker_pb2.Hello(
            worker_id=self.worker_id,
            signature=signature,
            inventory=self.offer,
            agent_version=self.version,
            session_number=self.session_number,
        )
        await self.stream.write(worker_pb2.SessionRequest(hello=hello))
        answer: worker_pb2.SessionResponse = await self.stream.read()
        self.token = answer.welcome.session_token
        return answer

    async def expect(self, kind: str) -> worker_pb2.SessionResponse:
        """The next message of a kind; others are passed over."""
        while True:
            message = await self.stream.read()
            assert message is not grpc.aio.EOF, f"the session ended without {kind}"
            if message.WhichOneof("message") == kind:
                found: worker_pb2.SessionResponse = message
                return found

    async def close(self) -> None:
        for channel in self.channels:
            await channel.close()


@asynccontextmanager
async def agent_of(served: Served, **known: Any) -> AsyncIterator[Agent]:
    """One agent, its connections closed in the end."""
    agent = Agent(served, **known)
    try:
        yield agent
    finally:
        await agent.close()


def refused(code: grpc.StatusCode, *words: str) -> pytest.RaisesExc[grpc.aio.AioRpcError]:
    """A call that ended with this status and a sentence with these words."""

    def check(error: grpc.aio.AioRpcError) -> bool:
        return error.code() is code and all(word in (error.details() or "") for word in words)

    return pytest.RaisesExc(grpc.aio.AioRpcError, check=check)
