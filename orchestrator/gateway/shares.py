"""No tenant takes the connections of the others: each has so many requests under way, and no more."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from aiohttp import web

from orchestrator.core.errors import RefusalCode, RefusedError
from orchestrator.gateway.config import CONFIG, tenant_of

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler

    from orchestrator.core.ids import TenantId

UNDER_WAY: web.AppKey[Counter[TenantId]] = web.AppKey("UNDER_WAY")
"""Requests by tenant."""


@web.middleware
async def share(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Count a known tenant's request in while it is answered; EXHAUSTED past the bound."""
    under_way, tenant_id = request.app[UNDER_WAY], tenant_of(request)
    most = request.app[CONFIG].requests_per_tenant_max
    if under_way[tenant_id] >= most:
        raise RefusedError(
            RefusalCode.EXHAUSTED, f"{most} requests of yours are under way already; wait for one to end"
        )
    under_way[tenant_id] += 1
    try:
        return await handler(request)
    finally:
        under_way[tenant_id] -= 1
        if not under_way[tenant_id]:
            del under_way[tenant_id]
