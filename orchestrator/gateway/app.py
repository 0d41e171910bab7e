"""The gateway: Ray's Jobs API for tenants, and nothing else of Ray."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from aiohttp import web

from orchestrator.adapters.http_listener import Bounds, HttpListener, bind
from orchestrator.gateway.auth import authenticate
from orchestrator.gateway.config import CONFIG, JOBS, GatewayConfig
from orchestrator.gateway.errors import answer_errors, route_template
from orchestrator.gateway.guard import refuse_strangers
from orchestrator.gateway.jobs import delete_job, get_job, get_version, list_jobs, stop_job, submit_job
from orchestrator.gateway.logs import TAILS, Tails, get_log, tail_log
from orchestrator.gateway.packages import get_package, put_package
from orchestrator.gateway.shares import UNDER_WAY, share

if TYPE_CHECKING:
    from ssl import SSLContext

    from aiohttp.typedefs import Handler

    from orchestrator.gateway.ports import JobsPort

WILDCARDS = ("0.0.0.0", "::", "")  # noqa: S104 -- compared with, never bound here
"""Hosts that mean every interface and so name none."""

ROUTES = (
    web.get("/api/version", get_version, allow_head=False),
    web.get("/api/packages/{protocol}/{name}", get_package, allow_head=False),
    web.put("/api/packages/{protocol}/{name}", put_package),
    web.post("/api/jobs/", submit_job),
    web.get("/api/jobs/", list_jobs, allow_head=False),
    web.get("/api/jobs/{submission_id}", get_job, allow_head=False),
    web.delete("/api/jobs/{submission_id}", delete_job),
    web.post("/api/jobs/{submission_id}/stop", stop_job),
    web.get("/api/jobs/{submission_id}/logs", get_log, allow_head=False),
    web.get("/api/jobs/{submission_id}/logs/tail", tail_log, allow_head=False),
)
"""The whole of what is served: what is not here is 404."""


@dataclass(frozen=True, slots=True)
class Gateway:
    """A gateway that listens. ``port`` is the real one where 0 was asked for."""

    host: str
    port: int
    runner: web.AppRunner
    listener: HttpListener

    async def close(self) -> None:
        """Stop listening, cut the tails, answer what is under way."""
        await self.listener.close()
        await self.runner.cleanup()


def build_app(jobs: JobsPort, config: GatewayConfig, listener: HttpListener) -> web.Application:
    """The application; each middleware sees only what those before it let through."""
    middlewares = [listener.follow, observe, answer_errors, refuse_strangers, authenticate, share]
    app = web.Application(middlewares=middlewares)
    app[JOBS] = jobs
    app[CONFIG] = config
    app[TAILS] = Tails(config.tails_per_tenant_max)
    app[UNDER_WAY] = Counter()
    app.add_routes(ROUTES)
    app.on_response_prepare.append(_harden)
    app.on_shutdown.append(_cut_tails)
    return app


async def start_gateway(
    jobs: JobsPort, config: GatewayConfig, *, host: str, port: int, tls: SSLContext | None = None
) -> Gateway:
    """Listen on ``host``; OSError where the port is taken. The host is then one of the allowed names.

    With ``tls`` it is HTTPS and nothing else.
    """
    if host not in WILDCARDS:
        config = replace(config, allowed_hosts=config.allowed_hosts | {host.lower()})
    listener = HttpListener(Bounds(config.connections_max, config.connection_idle_s), tls)
    runner = web.AppRunner(
        build_app(jobs, config, listener),
        handle_signals=False,
        access_log=None,
        # A packed body is stored as it came; unpacking one here would let a small body become a huge one.
        auto_decompress=False,
        logger=_server_log(),
        shutdown_timeout=config.shutdown_timeout_s,
    )
    await runner.setup()
    assert runner.server is not None  # noqa: S101 -- it was set up
    listener.serve(runner.server)
    try:
        listener.listen(await bind(host, port))
    except BaseException:
        await listener.close()
        await runner.cleanup()
        raise
    return Gateway(host=host, port=listener.port, runner=runner, listener=listener)


@web.middleware
async def observe(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Tell the observer of each request once it is answered; a tail counts as long as it was held."""
    observer = request.app[CONFIG].observer
    if observer is None:
        return await handler(request)
    loop = asyncio.get_running_loop()
    start_s = loop.time()
    response = await handler(request)
    observer(request.method, route_template(request), response.status, loop.time() - start_s)
    return response


def _server_log() -> logging.Logger:
    """Where aiohttp says that a request was no HTTP: without the exception, which quotes headers."""
    log = logging.getLogger("orchestrator.gateway.http")
    if _without_exception not in log.filters:
        log.addFilter(_without_exception)
    return log


def _without_exception(record: logging.LogRecord) -> bool:
    record.exc_info = None
    return True


async def _harden(_request: web.Request, response: web.StreamResponse) -> None:
    """Answers are a tenant's own: kept nowhere on the way, and never taken for a page."""
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Content-Type-Options"] = "nosniff"


async def _cut_tails(app: web.Application) -> None:
    app[TAILS].cut()
