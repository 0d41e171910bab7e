"""Bodies: bounded while they are read, and JSON with nothing left to interpretation."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, NoReturn

from orchestrator.core.errors import invalid
from orchestrator.gateway.errors import OversizeError, SlowBodyError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiohttp import web

CHUNK_BYTES = 256 * 1024
"""Large enough that a package is few calls, small enough to hold for every sender at once."""

INTEGER_DIGITS_MAX = 19
"""The digits of a 64-bit integer; Python would take millions and spend seconds on them."""

QUOTED_CHARS_MAX = 80
"""Enough of a tenant's own word to recognise it in the answer."""


def quoted(text: str) -> str:
    """A tenant's word, safe to print and bounded."""
    return repr(text[:QUOTED_CHARS_MAX])


async def bounded_chunks(
    request: web.Request, *, what: str, limit_bytes: int, idle_timeout_s: float, advice: str
) -> AsyncIterator[bytes]:
    """The body piece by piece; raises OversizeError past the bound and SlowBodyError when it stalls."""
    if request.content_length is not None and request.content_length > limit_bytes:
        raise OversizeError(what, limit_bytes, advice)
    total = 0
    while True:
        try:
            async with asyncio.timeout(idle_timeout_s):
                chunk = await request.content.read(CHUNK_BYTES)
        except TimeoutError:
            raise SlowBodyError(idle_timeout_s) from None
        if not chunk:
            return
        total += len(chunk)
        if total > limit_bytes:
            raise OversizeError(what, limit_bytes, advice)
        yield chunk


async def read_object(request: web.Request, *, limit_bytes: int, idle_timeout_s: float) -> dict[str, object]:
    """The JSON object in the body."""
    chunks = bounded_chunks(
        request,
        what="request body",
        limit_bytes=limit_bytes,
        idle_timeout_s=idle_timeout_s,
        advice="put files and large settings into working_dir",
    )
    return parse_object(b"".join([chunk async for chunk in chunks]))


def parse_object(data: bytes) -> dict[str, object]:
    """JSON as it was meant: UTF-8, one object, no key twice, no NaN, no number without bound."""
    try:
        value = json.loads(
            data.decode(),
            object_pairs_hook=_no_key_twice,
            parse_constant=_no_constant,
            parse_int=_bounded_int,
        )
    except UnicodeDecodeError:
        raise invalid("body", "the body is not UTF-8; send JSON as UTF-8") from None
    except json.JSONDecodeError as error:
        message = f"the body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        raise invalid("body", message) from None
    except RecursionError:
        raise invalid("body", "the body is nested too deeply; a submission needs three levels") from None
    if not isinstance(value, dict):
        raise invalid("body", "the body must be a JSON object with at least an entrypoint")
    return value


def _no_key_twice(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise invalid("body", f"the key {quoted(key)} stands twice in one object; keep one of them")
        found[key] = value
    return found


def _no_constant(name: str) -> NoReturn:
    raise invalid("body", f"{name} is not a number in JSON; send a finite number")


def _bounded_int(digits: str) -> int:
    if len(digits.lstrip("-")) > INTEGER_DIGITS_MAX:
        raise invalid("body", f"a number in the body has more than {INTEGER_DIGITS_MAX} digits")
    return int(digits)
