"""Posting to URLs that strangers chose: short, small, never redirected, and never into private networks."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

if TYPE_CHECKING:
    from aiohttp import ClientSession

TIMEOUT_S = 10.0
"""An owner's server that takes longer is as good as not there; the alert is tried again."""

RESPONSE_OK = range(200, 300)


class PublicResolver(AbstractResolver):
    """Resolves names to public addresses only: the check and the connection use the same answer."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Raises OSError where no public address is found."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
        public = [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=port,
                family=kind,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for kind, _, _, _, address in found
            if is_public(str(address[0]))
        ]
        if not public:
            raise OSError(f"{host} has no public address")
        return public

    async def close(self) -> None:
        """Nothing is kept."""


def is_public(address: str) -> bool:
    """Whether an address is one of the open internet."""
    return ipaddress.ip_address(address.partition("%")[0]).is_global


class Webhooks:
    """The control plane's way to owners. Make it where the event loop runs, or before; close it in the end."""

    def __init__(self, *, private: bool) -> None:
        """``private`` allows addresses of one's own network: a closed laboratory has no others."""
        self._private = private
        self._session: ClientSession | None = None

    async def post(self, url: str, body: bytes) -> None:
        """Deliver, or raise OSError where it may arrive later, ValueError where it never will."""
        host = urlsplit(url).hostname
        if not host:
            raise ValueError("the webhook's URL names no host")
        if not self._private and _is_literal(host) and not is_public(host):
            raise ValueError(f"the webhook's address {host} is no public one")
        if self._session is None:
            resolver = None if self._private else PublicResolver()
            connector = aiohttp.TCPConnector(resolver=resolver, limit=32)
            self._session = aiohttp.ClientSession(
                connector=connector, timeout=aiohttp.ClientTimeout(total=TIMEOUT_S), trust_env=False
            )
        headers = {"Content-Type": "application/json"}
        try:
            async with self._session.post(url, data=body, headers=headers, allow_redirects=False) as answer:
                if answer.status not in RESPONSE_OK:
                    raise OSError(f"the webhook answered {answer.status}")
        except aiohttp.InvalidURL as error:
            raise ValueError("the webhook's URL is not valid") from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise OSError(f"the webhook cannot be reached: {type(error).__name__}") from error

    async def close(self) -> None:
        """End every connection."""
        if self._session is not None:
            await self._session.close()


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
