"""What is turned away before anyone asks who is calling: foreign names, foreign pages, unknown paths."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from aiohttp import web

from orchestrator.gateway.config import CONFIG

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from aiohttp.typedefs import Handler

OWN_PAGES = ("same-origin", "none")
"""Values of Sec-Fetch-Site that no foreign page can cause."""

UNKNOWN_HOST = (
    "this gateway is not known by the host name of this request; use the address the operator gave you "
    "(operators: add the name to the gateway's allowed hosts)"
)

CROSS_SITE = "requests that another web site makes a browser send are refused; use Ray's command line or SDK"


def host_name(netloc: str) -> str:
    """The name or address in a Host header, lower case, without port; empty where it cannot be read."""
    try:
        return (urlsplit(f"//{netloc}").hostname or "").lower()
    except ValueError:
        return ""


def is_own_host(netloc: str, allowed: AbstractSet[str]) -> bool:
    """Whether the request was addressed to us: a rebound DNS name shows here and nowhere else."""
    name = host_name(netloc)
    if name in allowed:
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def is_cross_site(request: web.Request) -> bool:
    """Whether a browser sends this on behalf of a foreign page.

    Reads are refused as well: a page may open a WebSocket to anywhere, and a cookie would travel with it.
    """
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None and site.lower() not in OWN_PAGES:
        return True
    origin = request.headers.get("Origin")
    if origin is None:
        return False
    scheme, _, netloc = origin.lower().partition("://")
    if request.secure and scheme != "https":
        # A page that came in the clear may be anyone's. Behind a proxy that ends TLS our own scheme says nothing.
        return True
    return netloc != request.headers.get("Host", "").lower()


@web.middleware
async def refuse_strangers(request: web.Request, handler: Handler) -> web.StreamResponse:
    """421 for a foreign host name, 403 for a foreign page, 404 for what is not on the list of routes."""
    hosts = request.headers.getall("Host", [])
    if len(hosts) != 1 or not is_own_host(hosts[0], request.app[CONFIG].allowed_hosts):
        return web.Response(status=421, text=UNKNOWN_HOST)
    if is_cross_site(request):
        return web.Response(status=403, text=CROSS_SITE)
    if request.match_info.http_exception is not None:
        # A known path with another method is as unknown as the rest.
        raise web.HTTPNotFound
    return await handler(request)
