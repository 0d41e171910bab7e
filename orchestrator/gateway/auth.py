"""Who is calling: Ray's three places for a token, in Ray's order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from orchestrator.core.errors import RefusalCode, RefusedError
from orchestrator.gateway.config import JOBS, TENANT

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler

HEADERS = ("Authorization", "X-Ray-Authorization")
"""The second is for proxies that keep the first to themselves."""

COOKIE = "ray-authentication-token"

SCHEME = "bearer"

SECRET_CHARS_MAX = 512
"""Several times the length of any token issued; longer ones are not worth a look."""

MISSING = "no token came with the request: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN=<your token>"

NOT_BEARER = "the Authorization header holds no bearer token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"

MALFORMED = "the token is malformed: check RAY_AUTH_TOKEN for spaces, line ends or missing parts"


def presented_secret(request: web.Request) -> str:
    """The token in the request; UNAUTHENTICATED where there is none, FORBIDDEN where it cannot be ours."""
    for name in HEADERS:
        value = request.headers.get(name)
        if value:
            scheme, _, secret = value.partition(" ")
            if scheme.lower() != SCHEME:
                raise RefusedError(RefusalCode.UNAUTHENTICATED, NOT_BEARER)
            break
    else:
        secret = request.cookies.get(COOKIE, "")
    secret = secret.strip()
    if not secret:
        raise RefusedError(RefusalCode.UNAUTHENTICATED, MISSING)
    if len(secret) > SECRET_CHARS_MAX or not secret.isascii() or not secret.isprintable() or " " in secret:
        raise RefusedError(RefusalCode.FORBIDDEN, MALFORMED)
    return secret


@web.middleware
async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let in only known tenants, and tell the handler which."""
    request[TENANT] = await request.app[JOBS].authenticate(presented_secret(request))
    return await handler(request)
