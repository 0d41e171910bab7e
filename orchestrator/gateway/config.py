"""What the operator sets for the gateway, and what its parts share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web

from orchestrator.core.ids import TenantId
from orchestrator.gateway.ports import JobsPort

JOBS_API_VERSION = "4"
"""The version of Ray's Jobs API spoken here: the one with DELETE, which Ray 2.60 speaks too."""

RAY_VERSION = "2.60.0"
"""The Ray that runs the jobs; Ray's clients refuse options newer than it."""

KIB = 1024
MIB = 1024 * KIB

Observer = Callable[[str, str, int, float], None]
"""Takes (method, route template, status, seconds); the template keeps names of jobs out of metrics."""


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """Bounds and names of one gateway."""

    ray_version: str = RAY_VERSION
    json_bytes_max: int = MIB
    """A submission is an entrypoint and some settings; files belong into the package."""
    package_bytes_max: int = 512 * MIB
    """Ray itself stops at 100 MiB, which real working directories outgrow."""
    allowed_hosts: frozenset[str] = frozenset({"localhost"})
    """Names this gateway is reached by, beside loopback addresses; anything else may be DNS rebinding."""
    ping_interval_s: float = 20.0
    """Below the 30 to 60 s after which proxies and NAT boxes forget a silent connection."""
    body_idle_timeout_s: float = 60.0
    """A sender silent for so long is gone, though its connection may look open."""
    tails_per_tenant_max: int = 256
    """Each tail holds a socket; no tenant may use up those of the others."""
    requests_per_tenant_max: int = 512
    """Under way, tails among them: senders of packages and readers of logs may take their time."""
    connections_max: int = 4_096
    """Sixteen tenants that follow all the logs they may; some 100 MB where all of them are open."""
    connection_idle_s: float = 75.0
    """Above the 60 s for which proxies keep a connection: one that is closed while a request is on its way fails it."""
    shutdown_timeout_s: float = 5.0
    """Time for requests under way to be answered once the gateway closes."""
    observer: Observer | None = None


CONFIG = web.AppKey("CONFIG", GatewayConfig)
JOBS: web.AppKey[JobsPort] = web.AppKey("JOBS")
TENANT = web.RequestKey("TENANT", str)


def tenant_of(request: web.Request) -> TenantId:
    """The tenant whom the authentication middleware found."""
    return TenantId(request[TENANT])
