"""Becoming a worker: from a join token, or from nowhere, to registered keys and a first certificate."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from orchestrator.adapters.peers import join_claim, recovery_claim
from orchestrator.api.v1 import worker_pb2, worker_pb2_grpc
from orchestrator.control.authority import certify, tls_key_of
from orchestrator.control.inventory_wire import inventory_from
from orchestrator.control.limits import Buckets, Limit, neighbourhood_of, region_of, site_of
from orchestrator.control.secrets import digest_of
from orchestrator.control.services.access import SECRET_CHARACTERS_MAX
from orchestrator.control.standing_wire import offered_terms
from orchestrator.control.words import word
from orchestrator.core import messages as m
from orchestrator.core.decisions.fleet import recoveries_left
from orchestrator.core.decisions.operators import authenticate
from orchestrator.core.errors import RefusalCode, RefusedError, invalid, not_found
from orchestrator.core.ids import SupplierId, WorkerId

if TYPE_CHECKING:
    from collections.abc import Callable

    import grpc.aio

    from orchestrator.control.authority import Authority
    from orchestrator.control.loop import Loop
    from orchestrator.core.state import State

    Context = grpc.aio.ServicerContext[Any, Any]

PUBLIC_KEY_BYTES = 32
NONCE_BYTES = 32
NONCE_LIFE_MS = 60_000
NONCES_MAX = 10_000
"""Open recoveries at once; past it the oldest is forgotten and has to begin anew."""

JOINS = Limit(burst=100, interval_ms=50)
"""Of one site with tokens: a data centre may enrol a hall at once."""

STRANGERS = Limit(burst=5, interval_ms=60_000)
"""Of one site without tokens: a household has a few machines."""

STRANGERS_OF_KEY = Limit(burst=3, interval_ms=60_000)

STRANGERS_OF_NEIGHBOURHOOD = Limit(burst=20, interval_ms=15_000)
"""Of all sites of one neighbourhood: whoever is given 65,536 of them is still one."""

STRANGERS_IN_ALL = Limit(burst=50, interval_ms=50)
"""Twenty a second, whoever they are: what they cost everybody else stays small however many sites they come from."""

STRANGERS_OF_REGION_NEW = Limit(burst=3, interval_ms=1_200_000)
"""A region from which hardly anybody came within the hour is not the one that floods."""

STRANGERS_RESERVED = Limit(burst=20, interval_ms=200)
"""Kept for those when everything else is used up: five a second."""

UNKNOWN_TOKENS = Limit(burst=50, interval_ms=50)
"""Tokens that are not known or count no more, from everybody together, that are told so; the rest is only refused."""

RECOVERIES = Limit(burst=5, interval_ms=60_000)
"""Of one worker, once it has shown its key: nobody else can use up its tries."""

RECOVERIES_OF_SITE = Limit(burst=300, interval_ms=200)
"""A hall of machines comes back at once after a power cut, by one address."""


@dataclass(frozen=True, slots=True)
class EnrolLimits:
    """What one site, one key and all together may try."""

    joins: Limit = JOINS
    strangers: Limit = STRANGERS
    strangers_of_key: Limit = STRANGERS_OF_KEY
    strangers_in_all: Limit = STRANGERS_IN_ALL
    recoveries: Limit = RECOVERIES
    strangers_of_neighbourhood: Limit = STRANGERS_OF_NEIGHBOURHOOD
    strangers_of_region_new: Limit = STRANGERS_OF_REGION_NEW
    strangers_reserved: Limit = STRANGERS_RESERVED
    unknown_tokens: Limit = UNKNOWN_TOKENS
    recoveries_of_site: Limit = RECOVERIES_OF_SITE


class EnrolServicer(worker_pb2_grpc.EnrolServiceServicer):
    """Turns a join token, or a stranger where those may come, into a registered worker."""

    def __init__(
        self,
        loop: Loop,
        authority: Authority,
        new_id: Callable[[str], str],
        random_bytes: Callable[[int], bytes],
        session_address: Callable[[], str],
        limits: EnrolLimits,
    ) -> None:
        self._loop = loop
        self._authority = authority
        self._new_id = new_id
        self._random_bytes = random_bytes
        self._session_address = session_address
        self._joins = Buckets(limits.joins)
        self._strangers = Buckets(limits.strangers)
        self._strangers_of_key = Buckets(limits.strangers_of_key)
        self._strangers_in_all = Buckets(limits.strangers_in_all)
        self._strangers_of_neighbourhood = Buckets(limits.strangers_of_neighbourhood)
        self._strangers_of_region_new = Buckets(limits.strangers_of_region_new)
        self._strangers_reserved = Buckets(limits.strangers_reserved)
        self._unknown_tokens = Buckets(limits.unknown_tokens)
        self._recoveries = Buckets(limits.recoveries)
        self._recoveries_of_site = Buckets(limits.recoveries_of_site)
        self._nonces: OrderedDict[bytes, tuple[WorkerId, int]] = OrderedDict()

    async def GetTrust(  # noqa: N802 -- the proto's name
        self, _request: worker_pb2.GetTrustRequest, _context: Context
    ) -> worker_pb2.GetTrustResponse:
        """Public: whoever asks compares it with a pin."""
        return worker_pb2.GetTrustResponse(trust_bundle=self._authority.trust_bundle())

    async def Join(  # noqa: N802 -- the proto's name
        self, request: worker_pb2.JoinRequest, context: Context
    ) -> worker_pb2.JoinResponse:
        """The same keys with the same token get the same worker again: an answer may have been lost."""
        # First of all, and before any arithmetic: a flood must cost nothing.
        self._admit(request, str(context.peer()))
        if len(request.join_token) > SECRET_CHARACTERS_MAX:
            raise invalid("join_token", "join_token is no token of ours; copy it again")
        if request.join_token:
            await self._check_token(request)
        tls_key_sha256 = tls_key_of(request.tls_csr)
        claim = join_claim(request.join_token, request.tls_csr)
        _check_proof(request.statement_public_key, request.proof, claim)
        command = m.JoinWorker(
            worker_id=WorkerId(self._new_id("wrk")),
            token_sha256=digest_of(request.join_token) if request.join_token else "",
            name=word("worker_name", request.worker_name),
            statement_key=request.statement_public_key.hex(),
            inventory=inventory_from(request.inventory),
            tls_key_sha256=tls_key_sha256,
            terms=offered_terms(request.terms),
            supplier_id=SupplierId(self._new_id("sup")),
        )
        worker_id = WorkerId(str((await self._loop.submit(command)).result))
        certificate = await self._certified(worker_id, request.tls_csr)
        return await self._loop.read(lambda state: self._joined(state, worker_id, certificate))

    def _admit(self, request: worker_pb2.JoinRequest, peer: str) -> None:
        now_ms = self._loop.now().monotonic_ms
        site = site_of(peer)
        if request.join_token:
            if not self._joins.take(site, now_ms):
                raise _too_often("joins from this address", "a minute")
            return
        if not self._strangers_of_key.take(request.statement_public_key[:PUBLIC_KEY_BYTES].hex(), now_ms):
            raise _too_often("joins with this key", "a minute")
        if not self._strangers.take(site, now_ms):
            raise _too_often("joins without a token from this address", "a minute")
        if not self._strangers_of_neighbourhood.take(neighbourhood_of(peer), now_ms):
            raise _too_often("joins without a token from addresses beside this one", "a minute")
        new_region = self._strangers_of_region_new.take(region_of(peer), now_ms)
        if self._strangers_in_all.take("", now_ms):
            return
        if not (new_region and self._strangers_reserved.take("", now_ms)):
            raise _too_often("joins without a token", "a second")

    async def _check_token(self, request: worker_pb2.JoinRequest) -> None:
        """Refuse a token that does not count before anything is computed for it, or queued."""
        digest, now = digest_of(request.join_token), self._loop.now()
        key = request.statement_public_key[: PUBLIC_KEY_BYTES + 1].hex()

        def check(state: State) -> None:
            # A key that is known may repeat the join whose answer was lost, with the token that it has spent.
            if key not in state.worker_by_key or digest not in state.token_by_hash:
                authenticate(state, digest, state.time_ms(now))

        try:
            await self._loop.read(check)
        except RefusedError as refusal:
            told = refusal.code is not RefusalCode.UNAUTHENTICATED
            if told or self._unknown_tokens.take("", now.monotonic_ms):
                raise
            raise _too_often("joins with tokens that do not count", "a second") from None

    def _joined(
        self, state: State, worker_id: WorkerId, certificate: worker_pb2.Certificate
    ) -> worker_pb2.JoinResponse:
        worker = state.workers[worker_id]
        return worker_pb2.JoinResponse(
            worker_id=worker_id,
            supplier_id=worker.supplier_id,
            network_id=state.control.network_id,
            certificate=certificate,
            session_address=self._session_address(),
        )

    async def _certified(self, worker_id: WorkerId, csr: bytes) -> worker_pb2.Certificate:
        _, certificate = await certify(self._loop, self._loop.submit, self._authority, worker_id, csr)
        return certificate

    # ------------------------------------------------------------ recovery

    async def GetRecoveryNonce(  # noqa: N802 -- the proto's name
        self, request: worker_pb2.GetRecoveryNonceRequest, context: Context
    ) -> worker_pb2.GetRecoveryNonceResponse:
        """Something fresh to sign."""
        worker_id = WorkerId(word("worker_id", request.worker_id))
        now_ms = self._loop.now().monotonic_ms
        if not self._recoveries_of_site.take(site_of(str(context.peer())), now_ms):
            raise _too_often("recoveries from this address", "a minute")
        nonce = self._random_bytes(NONCE_BYTES)
        self._nonces[nonce] = (worker_id, now_ms + NONCE_LIFE_MS)
        if len(self._nonces) > NONCES_MAX:
            self._nonces.popitem(last=False)
        return worker_pb2.GetRecoveryNonceResponse(nonce=nonce)

    async def Recover(  # noqa: N802 -- the proto's name
        self, request: worker_pb2.RecoverRequest, _context: Context
    ) -> worker_pb2.RecoverResponse:
        """Another certificate for registered keys, counted; a nonce is good once."""
        worker_id = WorkerId(word("worker_id", request.worker_id))
        wanted, until_ms = self._nonces.pop(request.nonce, (None, 0))
        if wanted != worker_id or self._loop.now().monotonic_ms > until_ms:
            raise invalid("nonce", "this nonce is unknown or too old; ask for a new one")
        tls_key_sha256 = tls_key_of(request.tls_csr)
        key = await self._loop.read(lambda state: _statement_key(state, worker_id))
        claim = recovery_claim(request.nonce, worker_id, request.tls_csr)
        _check_proof(bytes.fromhex(key), request.proof, claim)
        # Only now: whoever does not hold the key cannot use up the tries of him who does.
        if not self._recoveries.take(worker_id, self._loop.now().monotonic_ms):
            raise _too_often("recoveries of this worker", "a minute")
        await self._loop.submit(m.RecoverWorker(worker_id, tls_key_sha256))
        certificate = await self._certified(worker_id, request.tls_csr)
        return await self._loop.read(lambda state: self._recovered(state, worker_id, certificate))

    def _recovered(
        self, state: State, worker_id: WorkerId, certificate: worker_pb2.Certificate
    ) -> worker_pb2.RecoverResponse:
        at_ms = state.time_ms(self._loop.now())
        return worker_pb2.RecoverResponse(
            certificate=certificate,
            session_address=self._session_address(),
            recoveries_left=recoveries_left(state.workers[worker_id], state.policies.fleet, at_ms),
        )


def _too_often(what: str, after: str) -> RefusedError:
    return RefusedError(RefusalCode.EXHAUSTED, f"too many {what}; try again in {after}")


def _statement_key(state: State, worker_id: WorkerId) -> str:
    worker = state.workers.get(worker_id)
    if worker is None:
        raise not_found("worker", worker_id)
    return worker.statement_key


def _check_proof(public_key: bytes, proof: bytes, message: bytes) -> None:
    """The sender holds the statement key, and means just this request."""
    if len(public_key) != PUBLIC_KEY_BYTES:
        reason = f"statement_public_key must be a raw Ed25519 public key of {PUBLIC_KEY_BYTES} bytes"
        raise invalid("statement_public_key", reason)
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(proof, message)
    except (InvalidSignature, ValueError):
        raise invalid("proof", "proof is not the statement key's signature over this request") from None
