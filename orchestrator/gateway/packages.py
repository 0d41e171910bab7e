"""Packages: what Ray's client uploads before it submits. They are the tenant's own, never shared by name."""

from __future__ import annotations

import re

from aiohttp import web

from orchestrator.core.errors import RefusalCode, RefusedError, invalid
from orchestrator.gateway.body import bounded_chunks, quoted
from orchestrator.gateway.config import CONFIG, JOBS, tenant_of

PROTOCOL = "gcs"
"""The only one Ray's client uploads to; the others name storage that the job would read by itself."""

PACKAGE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}\.zip", re.ASCII)
"""Ray's ``_ray_pkg_<hash>.zip``; no separator, so that no name leads out of a folder."""


def package_uri(protocol: str, name: str) -> str:
    """Ray's URI of a package; INVALID where it names none that can be uploaded here."""
    if protocol != PROTOCOL:
        raise invalid("protocol", f"packages are kept under {PROTOCOL!r} only, not {quoted(protocol)}")
    if not PACKAGE_NAME.fullmatch(name):
        message = f"{quoted(name)} is no package name of a zip: only working_dir is offered"
        raise invalid("package", message)
    return f"{PROTOCOL}://{name}"


def _uri_of(request: web.Request) -> str:
    return package_uri(request.match_info["protocol"], request.match_info["name"])


async def get_package(request: web.Request) -> web.Response:
    """200 where the tenant has uploaded it, so that Ray's client skips the upload; else 404."""
    uri = _uri_of(request)
    if not await request.app[JOBS].has_package(tenant_of(request), uri):
        raise RefusedError(RefusalCode.NOT_FOUND, f"no package {uri} was uploaded with this token's tenant")
    return web.Response()


async def put_package(request: web.Request) -> web.Response:
    """Stream the package to where it is kept; Ray's client takes only 200 for a success."""
    config = request.app[CONFIG]
    uri = _uri_of(request)
    chunks = bounded_chunks(
        request,
        what="package",
        limit_bytes=config.package_bytes_max,
        idle_timeout_s=config.body_idle_timeout_s,
        advice="leave data and weights out of working_dir (`excludes`, .gitignore) and fetch them in the job",
    )
    await request.app[JOBS].put_package(tenant_of(request), uri, chunks)
    return web.Response()
