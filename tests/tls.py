"""Real TLS for tests: a network's authority in a temporary folder, and grpc.aio servers that it names."""

from __future__ import annotations

from pathlib import Path

import grpc
import grpc.aio

from orchestrator.adapters.authority import HOUR_MS, Authority
from orchestrator.adapters.clock import SystemClock
from orchestrator.adapters.peers import spiffe_id
from orchestrator.agent.connection import Endpoint
from orchestrator.api.v1 import worker_pb2

LOOPBACK = "127.0.0.1"


def wall_ms() -> int:
    """TLS compares certificates with the machine's own clock, so the tests live in its present."""
    return SystemClock().now().wall_ms


class TestNetwork:
    """One network's CA, and what it certifies."""

    __test__ = False

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder, now_ms=wall_ms(), founded=False)

    @property
    def pin(self) -> str:
        return self.authority.pin

    def token(self, secret: str) -> str:
        """A join token as an operator hands it out."""
        return f"{secret}.{self.pin}"

    def certificate(
        self,
        csr: bytes,
        worker_id: str = "wk_1",
        *,
        issued_ms: int | None = None,
        life_ms: int = HOUR_MS,
        renew_ratio: float = 0.5,
    ) -> worker_pb2.Certificate:
        """What a control plane answers with; ``renew_ratio`` 1.0 makes renewal due at once."""
        now_ms = wall_ms() if issued_ms is None else issued_ms
        name = spiffe_id("net_1", "sup_1", worker_id)
        issued = self.authority.issue_worker(csr, name, now_ms, life_ms)
        return worker_pb2.Certificate(
            chain=issued.chain_pem,
            trust_bundle=self.authority.trust_bundle(),
            not_after_unix_ms=issued.not_after_ms,
            renew_after_unix_ms=now_ms + int((issued.not_after_ms - now_ms) * renew_ratio),
        )

    def bundle(self) -> worker_pb2.Certificate:
        """What is pushed after the CA was rotated."""
        return worker_pb2.Certificate(trust_bundle=self.authority.trust_bundle())

    def endpoint(self, address: str) -> Endpoint:
        """For a client that shows nothing."""
        return Endpoint(address, self.authority.trust_bundle())

    def add_port(self, server: grpc.aio.Server, *, mutual: bool) -> str:
        """Listen on a free port of loopback, asking the authority anew at each handshake; HOST:PORT."""

        def fetch() -> grpc.ServerCertificateConfiguration:
            pair = self.authority.server_credentials_pem(wall_ms())
            return grpc.ssl_server_certificate_configuration([pair], self.authority.trust_bundle())

        credentials = grpc.dynamic_ssl_server_credentials(
            fetch(), fetch, require_client_authentication=mutual
        )
        return f"{LOOPBACK}:{server.add_secure_port(f'{LOOPBACK}:0', credentials)}"
