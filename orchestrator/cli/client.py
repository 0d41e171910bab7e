"""The command line's side of the control plane's gRPC services; every failure becomes a sentence."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from types import TracebackType
from typing import Self, TypeVar

import grpc
from cryptography.x509 import load_pem_x509_certificates

from orchestrator.adapters.clock import SystemClock
from orchestrator.adapters.keys import ADMIN_PREFIX
from orchestrator.adapters.peers import SERVER_NAME
from orchestrator.adapters.trust import TrustError, UnknownPinError, fetch_trust, is_loopback
from orchestrator.api.v1.jobs_pb2_grpc import JobsServiceStub
from orchestrator.api.v1.ledger_pb2_grpc import LedgerServiceStub
from orchestrator.api.v1.operator_pb2_grpc import OperatorServiceStub
from orchestrator.cli.errors import CliError, usage_error
from orchestrator.cli.reaching import why_unreachable
from orchestrator.cli.settings import Settings, settings_from

CALL_TIMEOUT_S = 20.0
"""A commit takes milliseconds; a control plane that is silent this long will not answer this call later."""
MESSAGE_BYTES_MAX = 32 << 20
"""A receipt's bundle may have 16 MiB; twice that leaves room for what surrounds it."""
RECONNECT_MS_MAX = 2000
"""Somebody is waiting at a terminal, and a control plane restarts in seconds."""
TRANSPORT_WORDS = (
    "failed to connect",
    "dns resolution",
    "errors resolving",
    "socket closed",
    "connection reset",
    "goaway",
    "endpoint",
    "handshake",
)
"""How gRPC's own reasons for UNAVAILABLE read; it marks them in no other way. Other words are a server's."""

Req = TypeVar("Req")
Res = TypeVar("Res")


class Unreachable(CliError):
    """The connection failed, so that the same call may succeed later."""


class Client:
    """One connection, closed at the end of the `with`. Every method raises CliError."""

    def __init__(self, settings: Settings) -> None:
        self._url = settings.url
        self._metadata = (("authorization", f"Bearer {settings.token}"),)
        self._authorities = trusted(settings)
        self._trusted_by = f"ORCH_CA_FILE's ({settings.ca_file})" if settings.ca_file else "the token's"
        self._channel = open_channel(settings.url, self._authorities)
        self.operator = OperatorServiceStub(self._channel)
        self.jobs = JobsServiceStub(self._channel)
        self.ledger = LedgerServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def call(self, method: grpc.UnaryUnaryMultiCallable[Req, Res], request: Req) -> Res:
        """One request, one answer."""
        try:
            return method(request, timeout=CALL_TIMEOUT_S, metadata=self._metadata)
        except grpc.RpcError as error:
            raise self._explained(error) from None

    def stream(self, method: grpc.UnaryStreamMultiCallable[Req, Res], request: Req) -> Iterator[Res]:
        """One request, answers for as long as the server has any."""
        try:
            yield from method(request, metadata=self._metadata)
        except grpc.RpcError as error:
            raise self._explained(error) from None

    def _explained(self, error: grpc.RpcError) -> CliError:
        if error.code() is grpc.StatusCode.UNAVAILABLE and is_transport((error.details() or "").strip()):
            return Unreachable(why_unreachable(self._url, self._authorities, self._trusted_by))
        return explained(error, self._url)


def open_channel(url: str, authorities: bytes) -> grpc.Channel:
    """A channel to HOST:PORT that trusts these authorities (PEM) and nobody else."""
    options: list[tuple[str, int | str]] = [
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        ("grpc.max_reconnect_backoff_ms", RECONNECT_MS_MAX),
        ("grpc.ssl_target_name_override", SERVER_NAME),
    ]
    if is_loopback(url):
        options.append(("grpc.enable_http_proxy", 0))
    return grpc.secure_channel(url, grpc.ssl_channel_credentials(authorities), options=options)


def trusted(settings: Settings) -> bytes:
    """PEM of whom to trust: the file's authorities, else the one that the token pins. Raises CliError."""
    if settings.ca_file is not None:
        try:
            bundle = settings.ca_file.read_bytes()
        except OSError as error:
            reason = (error.strerror or "cannot be read").lower()
            raise usage_error(f"ORCH_CA_FILE: cannot read {settings.ca_file}: {reason}") from None
        try:
            load_pem_x509_certificates(bundle)
        except ValueError:
            raise usage_error(
                f"ORCH_CA_FILE: {settings.ca_file} holds no certificate; name the ca.pem that `orch serve` keeps in its"
                " data directory"
            ) from None
        return bundle
    pin = settings.token.partition(".")[2]
    if not pin:
        raise usage_error(
            "whom to trust is not known: this token names no authority; set ORCH_CA_FILE to the ca.pem that"
            " `orch serve` keeps in its data directory"
        )
    try:
        return asyncio.run(fetch_trust(settings.url, pin, SystemClock().now().wall_ms))
    except ConnectionError as error:
        raise Unreachable(
            f"cannot reach the control plane at {settings.url}: is `orch serve` running? set ORCH_URL ({error})"
        ) from None
    except UnknownPinError:
        raise CliError(_unknown_pin(settings.url, settings.token)) from None
    except TrustError as error:
        raise CliError(str(error)) from None


def _unknown_pin(url: str, token: str) -> str:
    """What whoever holds this token can do about an authority that it does not name."""
    said = (
        f"the control plane at {url} has another CA than the one this token names, so the token was not sent:"
        " ORCH_URL leads to another network, or `orch authority retire` has ended the trust in the older CA"
    )
    if token.startswith(ADMIN_PREFIX):
        return (
            f"{said}; on the control plane's machine admin-token and ca.pem in its data directory are always of the"
            " newest: set ORCH_TOKEN_FILE or ORCH_CA_FILE to them, or make a new token there with"
            " `orch token create --role operator`"
        )
    return f"{said}; ask the operator for a new token, or for the network's ca.pem and set ORCH_CA_FILE to it"


def connect() -> Client:
    """A client for what the environment names. Raises CliError."""
    return Client(settings_from(os.environ))


def explained(error: grpc.RpcError, url: str) -> CliError:
    """What a server answered and what to do next."""
    said = (error.details() or "").strip()
    match error.code():
        case grpc.StatusCode.UNAVAILABLE:
            return Unreachable(
                f"the control plane at {url} is not ready: {said or 'no reason given'}; try again"
            )
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return Unreachable(
                f"the control plane at {url} did not answer within {CALL_TIMEOUT_S:g} s; what you asked may"
                " still happen: look before you repeat it"
            )
        case grpc.StatusCode.UNAUTHENTICATED:
            return CliError(
                f"the control plane at {url} does not accept this token: {said or 'unknown token'}"
                "; set ORCH_TOKEN or ORCH_TOKEN_FILE"
            )
        case grpc.StatusCode.PERMISSION_DENIED:
            return CliError(
                f"this token may not do that: {said or 'permission denied'}; use an operator's token"
            )
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return CliError(f"{said or 'the control plane is at its limit'}; try again in a moment")
        case grpc.StatusCode.UNIMPLEMENTED:
            return CliError(
                f"the control plane at {url} does not know this call;"
                " run `orch` and `orch serve` of one version"
            )
        case grpc.StatusCode.INTERNAL | grpc.StatusCode.UNKNOWN:
            return CliError(
                f"the control plane at {url} failed: {said or 'no reason given'}; its log says more"
            )
        case code:
            return CliError(said or f"the control plane at {url} refused: {code.name}")


def is_transport(said: str) -> bool:
    """Whether the connection failed, rather than a server that answered."""
    return not said or any(words in said.lower() for words in TRANSPORT_WORDS)
