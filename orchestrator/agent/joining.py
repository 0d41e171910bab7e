"""Enrolment from the worker's side: learning whom to trust, joining, and recovering.

The first connection verifies nothing, so nothing secret goes over it: it only fetches the network's CA, which is
compared with the pin in the join token. The token itself travels on a second connection, which verifies the
server against that CA.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc
import grpc.aio

from orchestrator.adapters import peers
from orchestrator.adapters.trust import TrustError, fetch_trust
from orchestrator.agent.connection import Endpoint, open_channel, said
from orchestrator.agent.identity import Keys, StartError
from orchestrator.api.v1 import common_pb2, terms_pb2, worker_pb2
from orchestrator.api.v1.worker_pb2_grpc import EnrolServiceStub

if TYPE_CHECKING:
    from orchestrator.api.v1.worker_pb2_grpc import EnrolServiceAsyncStub

ANSWER_S = 20.0
"""A commit takes milliseconds; a control plane that takes longer to answer has a fault to be told of."""

UNREACHABLE = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})
ABOUT_TOKEN = frozenset({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED})

SHUT_OUT = frozenset({grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.NOT_FOUND})
"""Asking again changes nothing."""

UNVERIFIED = "CERTIFICATE_VERIFY_FAILED"
"""How gRPC's reason names a server whose certificate does not do."""

_PIN = re.compile(r"[A-Za-z0-9_-]{43}")
"""As `peers.pin_of` writes the 32 bytes of a hash."""


class JoinRefusedError(Exception):
    """The control plane answered with a no; the message is its reason. ``for_good``: asking again is pointless."""

    def __init__(self, message: str, *, about_token: bool = False, for_good: bool = True) -> None:
        super().__init__(message)
        self.about_token = about_token
        self.for_good = for_good


@dataclass(frozen=True, slots=True)
class JoinToken:
    """Both parts of what the operator handed out. Without a token both are empty."""

    secret: str = field(default="", repr=False)
    pin: str = ""


@dataclass(frozen=True, slots=True)
class Applicant:
    """What somebody who wants to join brings, beside keys and token."""

    control_plane: str
    name: str
    inventory: common_pb2.Inventory
    agent_version: str
    terms: terms_pb2.Terms


def parse_join_token(text: str) -> JoinToken:
    """Split a token at its last dot. Raises StartError, which repeats nothing of it."""
    secret, _, pin = text.strip().rpartition(".")
    if not secret or not _PIN.fullmatch(pin):
        raise StartError(
            "the join token is cut short: its end, a dot and 43 characters that name the network's CA, is missing"
            " or incomplete; copy the whole line that `orch token create --role supplier` printed"
        )
    return JoinToken(secret, pin)


def known_pin(token: JoinToken, ca_pin: str) -> str:
    """The pin to hold the control plane to; empty where there is none. Raises StartError."""
    if ca_pin and not _PIN.fullmatch(ca_pin):
        raise StartError(
            f"--ca-pin: a pin has 43 letters, digits, dashes and underscores, not {ca_pin[:80]!r}"
        )
    if ca_pin and token.pin and ca_pin != token.pin:
        raise StartError(
            f"--ca-pin {ca_pin} and the join token's own pin {token.pin} name two CAs; leave --ca-pin out, or"
            " get a token of the network that it names"
        )
    return token.pin or ca_pin


async def enrol(
    applicant: Applicant, keys: Keys, token: JoinToken, pin: str, wall_ms: int, say: Callable[[str], None]
) -> tuple[worker_pb2.JoinResponse, str]:
    """Join; the answer and the pin that was held to. Raises StartError.

    The same keys with the same token get the same answer again, so a crash at any moment costs nothing.
    """
    address = applicant.control_plane
    try:
        ca_pem = await fetch_trust(address, pin, wall_ms)
        if not pin:
            pin = peers.pin_of(ca_pem)
            say(
                f"trusting the control plane at {address} at first sight: the pin of its CA is {pin}; compare it"
                " with the operator's, or give --ca-pin"
            )
        answer = await join(Endpoint(address, ca_pem), _join_request(applicant, keys, token))
    except TrustError as error:
        raise StartError(str(error)) from None
    except ConnectionError as error:
        reason = str(error)
        if UNVERIFIED in reason:
            raise StartError(
                f"what answers at {address} showed the right CA and could not prove to be of it: something"
                " between here and the control plane answers in its place; the token was not sent"
            ) from None
        raise StartError(
            f"cannot reach the control plane at {address} to join: is `orch serve` running there, and is this the"
            f" address for joining? check --control-plane ({reason})"
        ) from None
    except JoinRefusedError as error:
        remedy = " (made by `orch token create --role supplier`)" if error.about_token else ""
        raise StartError(f"the control plane at {address} refused the join: {error}{remedy}") from None
    if not answer.session_address.rpartition(":")[2].isdecimal():
        raise StartError(
            f"the control plane at {address} names no address for sessions; it has to be upgraded"
        )
    return answer, pin


def _join_request(applicant: Applicant, keys: Keys, token: JoinToken) -> worker_pb2.JoinRequest:
    token_hash = hashlib.sha256(token.secret.encode()).digest()
    public_key = keys.statement.public_key().public_bytes_raw()
    csr = peers.make_csr(keys.tls)
    return worker_pb2.JoinRequest(
        request_id=f"join_{hashlib.sha256(token_hash + public_key).hexdigest()[:32]}",
        join_token=token.secret,
        worker_name=applicant.name,
        statement_public_key=public_key,
        proof=keys.statement.sign(peers.join_claim(token.secret, csr)),
        inventory=applicant.inventory,
        agent_version=applicant.agent_version,
        tls_csr=csr,
        terms=applicant.terms,
    )


async def join(endpoint: Endpoint, request: worker_pb2.JoinRequest) -> worker_pb2.JoinResponse:
    """Enrol. Raises ConnectionError where nobody answers, JoinRefusedError where the answer is no."""
    async with open_channel(endpoint) as channel:
        enrolment: EnrolServiceAsyncStub = EnrolServiceStub(channel)
        try:
            return await enrolment.Join(request, timeout=ANSWER_S)
        except grpc.aio.AioRpcError as error:
            if error.code() in UNREACHABLE:
                raise ConnectionError(said(error)) from None
            raise JoinRefusedError(said(error), about_token=error.code() in ABOUT_TOKEN) from None


async def recover(endpoint: Endpoint, worker_id: str, keys: Keys) -> worker_pb2.RecoverResponse:
    """Another certificate for a registered key. Raises ConnectionError, JoinRefusedError."""
    csr = peers.make_csr(keys.tls)
    async with open_channel(endpoint) as channel:
        enrolment: EnrolServiceAsyncStub = EnrolServiceStub(channel)
        try:
            request = worker_pb2.GetRecoveryNonceRequest(worker_id=worker_id)
            nonce = (await enrolment.GetRecoveryNonce(request, timeout=ANSWER_S)).nonce
        except grpc.aio.AioRpcError as error:
            raise _recovery_error(error) from None
        signed = peers.recovery_claim(nonce, worker_id, csr)
        try:
            return await enrolment.Recover(
                worker_pb2.RecoverRequest(
                    worker_id=worker_id, nonce=nonce, tls_csr=csr, proof=keys.statement.sign(signed)
                ),
                timeout=ANSWER_S,
            )
        except grpc.aio.AioRpcError as error:
            raise _recovery_error(error) from None


def _recovery_error(error: grpc.aio.AioRpcError) -> Exception:
    """Tries run out for minutes, recoveries for hours, and neither for ever."""
    if error.code() in UNREACHABLE:
        return ConnectionError(said(error))
    return JoinRefusedError(said(error), for_good=error.code() in SHUT_OUT)
