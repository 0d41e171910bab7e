"""Who may have a session, what it is welcomed with, and when it may go: questions to committed state."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from orchestrator.adapters.peers import session_claim
from orchestrator.api.v1 import worker_pb2
from orchestrator.control.wire import OVERLAY_KEY_BYTES
from orchestrator.control.words import word
from orchestrator.core.decisions.fleet import check_admitted
from orchestrator.core.errors import RefusalCode, RefusedError, invalid
from orchestrator.core.ids import WorkerId
from orchestrator.core.supply.versions import check_version

if TYPE_CHECKING:
    from collections.abc import Mapping

    from orchestrator.api.v1 import common_pb2
    from orchestrator.control.authority import Peer
    from orchestrator.core.state import State


def identify(state: State, hello: worker_pb2.Hello, nonce: bytes, peer: Peer) -> WorkerId:
    """The worker that both keys speak for. Raises RefusedError."""
    worker_id = WorkerId(hello.worker_id)
    if worker_id != peer.worker_id:
        reason = f"this certificate is {peer.worker_id}'s, and a worker speaks only for itself"
        raise RefusedError(RefusalCode.FORBIDDEN, reason)
    key = statement_key(state, worker_id)
    worker = state.workers[worker_id]
    if peer.key_sha256 != worker.tls_key_sha256:
        reason = f"this certificate is for another key than the one {worker_id} joined with"
        raise RefusedError(RefusalCode.FORBIDDEN, reason)
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(
            hello.signature, session_claim(nonce, worker_id)
        )
    except (InvalidSignature, ValueError):
        raise RefusedError(RefusalCode.UNAUTHENTICATED, f"hello is not signed by {worker_id}'s key") from None
    check_admitted(worker)
    check_version(word("hello.agent_version", hello.agent_version, empty=True))
    if not hello.session_number:
        raise invalid("hello.session_number", "the agent does not count its sessions; install a newer one")
    return worker_id


def statement_key(state: State, worker_id: WorkerId) -> str:
    """A registered worker's key, in hex."""
    worker = state.workers.get(worker_id)
    if worker is None:
        raise RefusedError(
            RefusalCode.UNAUTHENTICATED, f"no worker {worker_id[:80]!r} is registered; join first"
        )
    return worker.statement_key


def overlay_key(raw: bytes) -> bytes:
    """A worker's own for the overlay; empty where it uses none. Raises RefusedError for what is no key."""
    if raw and len(raw) != OVERLAY_KEY_BYTES:
        raise invalid("hello.overlay_public_key", f"{len(raw)} bytes; an X25519 key has {OVERLAY_KEY_BYTES}")
    return raw


def welcome_of(
    state: State, worker_id: WorkerId, token: str, runtimes: Mapping[str, common_pb2.Runtime]
) -> worker_pb2.Welcome:
    """What a session begins with. ``runtimes`` are the network's by digest."""
    policies, worker = state.policies, state.workers[worker_id]
    welcome = worker_pb2.Welcome(
        term=state.control.term,
        heartbeat_interval_ms=policies.fleet.heartbeat_interval_ms,
        lease_ttl_ms=worker.lease_ttl_ms(policies.fleet),
        statement_interval_ms=policies.metering.statement_interval_ms,
        session_token=token,
        supplier_id=worker.supplier_id,
        network_id=state.control.network_id,
    )
    runtime = runtimes.get(policies.jobs.default_runtime)
    if runtime is not None and worker.inventory.boxed:
        welcome.default_runtime.CopyFrom(runtime)
        welcome.default_runtime.ClearField("lock")
    return welcome


def farewell_of(state: State, worker_id: WorkerId) -> worker_pb2.Farewell | None:
    """Goodbye to a worker that is draining and done; None for any other."""
    worker = state.workers[worker_id]
    busy = state.members_on.get(worker_id) or state.unsettled_on.get(worker_id)
    if not worker.draining or busy:
        return None
    if worker.dismissed:
        return worker_pb2.Farewell(reason="the operator let this worker go", retry=False)
    return worker_pb2.Farewell(reason="left; thank you for the hours", retry=True)
