"""Every refusal leaves as one plain sentence, which Ray's own command prints as it is."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, assert_never

import structlog
from aiohttp import web

from orchestrator.core.errors import RefusalCode, RefusedError

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler

RETRY_AFTER_S = 1
"""The control plane drains a full inbox within a second; a longer pause would idle the tenant."""

NOT_SERVED = (
    "nothing is served at this path: this endpoint speaks Ray's Jobs API only "
    "(submit, status, list, logs, stop, delete)"
)

INTERNAL = "internal error; nothing is known to be wrong with the request, try again or tell the operator"

log = structlog.get_logger(__name__)


class OversizeError(Exception):
    """A body above its bound."""

    def __init__(self, what: str, limit_bytes: int, advice: str) -> None:
        super().__init__(f"the {what} is larger than {limit_bytes} bytes; {advice}")


class SlowBodyError(Exception):
    """A body that stopped coming."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(f"no more of the body came within {timeout_s:g} s; send it again")


def http_status(code: RefusalCode) -> int:
    """The status that says the same as the code."""
    match code:
        case RefusalCode.INVALID:
            return 400
        case RefusalCode.UNAUTHENTICATED:
            return 401
        case RefusalCode.FORBIDDEN:
            return 403
        case RefusalCode.NOT_FOUND:
            return 404
        case RefusalCode.ALREADY_EXISTS | RefusalCode.CONFLICT | RefusalCode.STALE:
            return 409
        case RefusalCode.EXHAUSTED:
            return 429
        case RefusalCode.UNAVAILABLE:
            return 503
        case RefusalCode.INTERNAL:
            return 500
        case _:
            assert_never(code)


def refusal(error: RefusedError) -> web.Response:
    """The answer to a refused request."""
    headers = {}
    if error.code in (RefusalCode.EXHAUSTED, RefusalCode.UNAVAILABLE):
        headers["Retry-After"] = str(RETRY_AFTER_S)
    if error.code is RefusalCode.UNAUTHENTICATED:
        headers["WWW-Authenticate"] = "Bearer"
    return web.Response(status=http_status(error.code), text=error.message, headers=headers)


def log_failure(event: str, request: web.Request, error: Exception) -> None:
    """Where it failed and by what kind of error; the error's own text may quote a tenant's values."""
    route = route_template(request)
    where = "".join(traceback.format_tb(error.__traceback__))
    log.error(event, method=request.method, route=route, error=type(error).__name__, where=where)


def route_template(request: web.Request) -> str:
    """The route with its placeholders: bounded in number, and free of names."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "unmatched"


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn whatever a handler raises into an answer."""
    try:
        return await handler(request)
    except RefusedError as error:
        return refusal(error)
    except OversizeError as error:
        return web.Response(status=413, text=str(error))
    except SlowBodyError as error:
        return web.Response(status=408, text=str(error))
    except web.HTTPNotFound:
        return web.Response(status=404, text=NOT_SERVED)
    except Exception as error:  # noqa: BLE001 -- the last resort: no stack trace may leave
        if request.transport is None or request.transport.is_closing():
            # The client left in the middle; nobody reads this answer.
            return web.Response(status=400)
        log_failure("request_failed", request, error)
        return web.Response(status=500, text=INTERNAL)
