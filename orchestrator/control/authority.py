"""What the control plane needs of its certificate authority, and what a certificate says of its bearer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

from orchestrator.adapters import peers
from orchestrator.adapters.authority import HOUR_MS
from orchestrator.api.v1 import worker_pb2
from orchestrator.core import messages as m
from orchestrator.core.errors import RefusalCode, RefusedError, invalid
from orchestrator.core.ids import WorkerId
from orchestrator.core.supply.fleet import Liveness
from orchestrator.core.supply.holds import HoldKind

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from orchestrator.adapters.authority import CaGeneration, Issued
    from orchestrator.control.loop import Committed, Loop
    from orchestrator.core.state import State
    from orchestrator.core.supply.fleet import Worker


class Authority(Protocol):
    """The network's certificate authority; ``orchestrator.adapters.authority`` is the real one."""

    @property
    def pin(self) -> str: ...
    @property
    def generation(self) -> int: ...
    @property
    def generations(self) -> tuple[CaGeneration, ...]: ...
    def trust_bundle(self) -> bytes: ...
    def issue_worker(self, csr_der: bytes, spiffe_id: str, now_ms: int, life_ms: int) -> Issued: ...
    def rotate(self, now_ms: int) -> None: ...
    def retire(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of a mutual TLS connection."""

    worker_id: WorkerId
    key_sha256: str
    not_after_ms: int
    """Wall clock, Unix ms."""
    certificate: bytes = b""
    """PEM."""


def peer_of(auth: Mapping[str, Iterable[bytes]], network_id: str) -> Peer:
    """The bearer of a verified certificate, from gRPC's auth context. Raises RefusedError."""
    certificates = list(auth.get("x509_pem_cert", ()))
    names = list(auth.get("peer_spiffe_id", ()))
    try:
        network, _, worker = peers.parse_spiffe_id(names[0].decode())
        not_after_ms = peers.certificate_times(certificates[0])[1]
        key = peers.key_sha256(certificates[0])
    except (IndexError, ValueError):
        reason = "this connection shows no worker's certificate; join first"
        raise RefusedError(RefusalCode.UNAUTHENTICATED, reason) from None
    if network != network_id:
        raise RefusedError(RefusalCode.UNAUTHENTICATED, f"this certificate is of another network: {network}")
    return Peer(WorkerId(worker), key, not_after_ms, certificates[0])


@lru_cache(maxsize=4)
def _authorities(trust_bundle: bytes) -> dict[str, bytes]:
    """A bundle read once: it changes with a rotation, and every session that opens asks for it."""
    return peers.bundle_pins(trust_bundle)


def generation_of(authority: Authority, certificate: bytes) -> int:
    """The generation of the authority that issued a worker's certificate; 0 where none that is trusted did."""
    by_pin = _authorities(authority.trust_bundle())
    for one in authority.generations:
        if peers.is_issued_by(certificate, by_pin[one.pin]):
            return one.number
    return 0


def tls_key_of(csr_der: bytes) -> str:
    """The key that a certificate is asked for; INVALID where the request is not as it must be."""
    try:
        return peers.key_sha256(peers.read_csr(csr_der))
    except ValueError as error:
        raise invalid("tls_csr", f"tls_csr: {error}") from None


async def certify(
    loop: Loop,
    submit: Callable[[m.Command], Awaitable[Committed]],
    authority: Authority,
    worker_id: WorkerId,
    csr_der: bytes,
) -> tuple[int, worker_pb2.Certificate]:
    """(generation, certificate) for a registered worker; the generation is durable before anybody has the other.

    Raises RefusedError.
    """
    # Asked before the certificate is made: where the authority changes meanwhile, the worker is called behind.
    generation, now_ms = authority.generation, loop.now().wall_ms

    def issue(state: State) -> tuple[worker_pb2.Certificate, int]:
        worker, life_ms = state.workers[worker_id], state.policies.fleet.certificate_life_ms
        network_id = state.control.network_id
        certificate = certificate_for(authority, worker, network_id, csr_der, now_ms, life_ms)
        return certificate, worker.certificate_generation

    certificate, known = await loop.read(issue)
    if known != generation:
        await submit(m.RecordCertificate(worker_id, generation))
    return generation, certificate


def behind_of(state: State, generation: int) -> frozenset[WorkerId]:
    """Workers that may come back and whose newest certificate is of an older generation than this one."""
    return frozenset(
        worker.worker_id
        for worker in state.workers.values()
        if worker.certificate_generation < generation
        and worker.liveness is not Liveness.LEFT
        and worker.hold(HoldKind.REVOKED) is None
    )


def certificate_for(
    authority: Authority, worker: Worker, network_id: str, csr_der: bytes, now_ms: int, life_ms: int
) -> worker_pb2.Certificate:
    """A certificate for a worker's own key under its own name, renewed at half its life."""
    if tls_key_of(csr_der) != worker.tls_key_sha256:
        reason = f"this request is for another key than the one {worker.worker_id} joined with"
        raise RefusedError(RefusalCode.FORBIDDEN, reason, "tls_csr")
    name = peers.spiffe_id(network_id, worker.supplier_id, worker.worker_id)
    issued = authority.issue_worker(csr_der, name, now_ms, min(life_ms, 24 * HOUR_MS))
    return worker_pb2.Certificate(
        chain=issued.chain_pem,
        trust_bundle=authority.trust_bundle(),
        not_after_unix_ms=issued.not_after_ms,
        renew_after_unix_ms=now_ms + (issued.not_after_ms - now_ms) // 2,
    )
