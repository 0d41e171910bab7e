"""Listening: what a listener shows, and one line where its address cannot be had."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, NoReturn, TypeVar

import grpc
import grpc.aio

from orchestrator.adapters import clock
from orchestrator.cli.errors import usage_error

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from orchestrator.adapters.authority import Authority
    from orchestrator.cli.serve_settings import Address

T = TypeVar("T")


class ServerIdentity:
    """What a listener shows and whom it trusts, asked at each handshake: a rotation needs no restart.

    gRPC is told only of what has changed: it exchanges what it was given without regard to handshakes under way on
    other threads, and has crashed where it had to at each of hundreds at once.
    """

    def __init__(self, authority: Authority, *, mutual: bool) -> None:
        self._authority = authority
        self._mutual = mutual
        self._shown = self._parts()

    def credentials(self) -> grpc.ServerCredentials:
        """For ``add_secure_port``."""
        return grpc.dynamic_ssl_server_credentials(
            _configuration(*self._shown),
            self._changed,  # type: ignore[arg-type]  # the stubs do not know that None stands for no change
            self._mutual,
        )

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        parts = self._parts()
        if parts == self._shown:
            return None
        self._shown = parts
        return _configuration(*parts)

    def _parts(self) -> tuple[bytes, bytes, bytes | None]:
        key, chain = self._authority.server_credentials_pem(clock.SystemClock().now().wall_ms)
        return key, chain, self._authority.trust_bundle() if self._mutual else None


def _configuration(key: bytes, chain: bytes, roots: bytes | None) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(key, chain)], root_certificates=roots)


def bind_grpc(server: grpc.aio.Server, name: str, at: Address, credentials: grpc.ServerCredentials) -> int:
    """Tried with a plain socket first: gRPC would say in its own words, on standard error, what is wrong."""
    try:
        family = socket.AF_INET6 if ":" in at.host else socket.AF_INET
        with socket.create_server((at.host, at.port), family=family):
            pass
        return server.add_secure_port(at.with_port(at.port), credentials)
    except (OSError, RuntimeError):
        _refuse(name.replace("_", "-"), at)


async def taken(name: str, at: Address, starting: Awaitable[T]) -> T:
    """Start a listener; one line where its address cannot be had."""
    try:
        return await starting
    except OSError:
        _refuse(name, at)


def _refuse(name: str, at: Address) -> NoReturn:
    raise usage_error(
        f"--{name}: cannot listen on {at.with_port(at.port)}: it is in use, or not this machine's;"
        " stop what uses it, or choose another port"
    )
