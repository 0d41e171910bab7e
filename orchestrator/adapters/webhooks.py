"""Posting to URLs that strangers chose: short, small, never redirected, and never into private networks."""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import aiohttp

if TYPE_CHECKING:
    from aiohttp import AddrInfoType, ClientSession

TIMEOUT_S = 10.0
"""An owner's server that takes longer is as good as not there; the alert is tried again."""

RESPONSE_OK = range(200, 300)

NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
"""RFC 6052: the last 32 bits are an IPv4 address, which the network's translator connects to."""

TUNNELS = (ipaddress.IPv6Network("2002::/16"), ipaddress.IPv6Network("64:ff9b:1::/48"))
"""Others that lead to IPv4 addresses inside them: no owner's server is named by these."""


class NotPublicError(OSError):
    """The address is one of a private network."""


def is_public(address: str) -> bool:
    """Whether an address is one of the open internet; raises ValueError for what is no address."""
    one = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(one, ipaddress.IPv6Address):
        if one.ipv4_mapped is not None:
            return is_public(str(one.ipv4_mapped))
        if one in NAT64:
            return is_public(str(ipaddress.IPv4Address(int(one) & 0xFFFF_FFFF)))
        if any(one in network for network in TUNNELS):
            return False
    return one.is_global and not one.is_multicast


def public_socket(dialled: AddrInfoType) -> socket.socket:
    """A socket for an address that is about to be connected to. Raises NotPublicError.

    The last place before the connection, whatever the URL looked like and however its name was resolved: nothing
    can be one address when it is checked and another when it is used.
    """
    family, kind, protocol, _, address = dialled
    host = str(address[0])
    if not _is_literal(host) or not is_public(host):
        raise NotPublicError(f"{host} is no public address")
    return socket.socket(family, kind, protocol)


class Webhooks:
    """The control plane's way to owners. Make it where the event loop runs, or before; close it in the end."""

    def __init__(self, *, private: bool) -> None:
        """``private`` allows addresses of one's own network, for owners whom an operator vouched for."""
        self._private = private
        self._sessions: dict[bool, ClientSession] = {}
        """By whether they may reach private addresses: a connection of the one kind is never the other's."""

    async def post(self, url: str, body: bytes, *, vouched: bool) -> None:
        """Deliver, or raise OSError where it may arrive later, ValueError where it never will.

        Without ``vouched`` a stranger chose the URL: it leads to public addresses only, whatever is set.
        """
        private = self._private and vouched
        host = urlsplit(url).hostname
        if not host:
            raise ValueError("the webhook's URL names no host")
        if not private and _is_literal(host) and not is_public(host):
            raise ValueError(f"the webhook's address {host} is no public one")
        session = self._sessions.get(private)
        if session is None:
            session = self._sessions[private] = _open(private=private)
        headers = {"Content-Type": "application/json"}
        try:
            async with session.post(url, data=body, headers=headers, allow_redirects=False) as answer:
                if answer.status not in RESPONSE_OK:
                    raise OSError(f"the webhook answered {answer.status}")
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
            raise ValueError("the webhook's URL is not valid") from error
        except aiohttp.ClientConnectorError as error:
            raise OSError(f"the webhook cannot be reached: {error.os_error}") from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise OSError(f"the webhook cannot be reached: {type(error).__name__}") from error

    async def close(self) -> None:
        """End every connection."""
        for session in self._sessions.values():
            await session.close()


def _open(*, private: bool) -> ClientSession:
    """Cookies are forgotten: a hostile server could otherwise fill the memory with them."""
    connector = aiohttp.TCPConnector(socket_factory=None if private else public_socket, limit=32)
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
    )


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
