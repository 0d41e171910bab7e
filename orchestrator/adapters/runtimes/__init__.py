"""Runtimes: the Python, Ray and base packages that every member of a cluster has alike.

`catalogue` says what there is and names each by a digest, `store` makes it a folder on this machine. Such a folder is a
Python of its own, not a virtual environment: its interpreter is copied into it. So nothing in it depends on the
owner's Python, and Ray answers a job's `runtime_env` of pip or uv with a small environment on top (a virtual
environment it would copy whole, hundreds of megabytes for each job).
"""

from __future__ import annotations

from orchestrator.adapters.runtimes.catalogue import (
    DEFAULT_NAME,
    CatalogueError,
    Runtime,
    RuntimeDigest,
    bundled,
    catalogue,
    load_directory,
)
from orchestrator.adapters.runtimes.errors import RuntimeUnavailableError
from orchestrator.adapters.runtimes.store import Provisioned, RuntimeStore
from orchestrator.adapters.runtimes.uv import Uv, find_uv, uv_environment

__all__ = [
    "DEFAULT_NAME",
    "CatalogueError",
    "Provisioned",
    "Runtime",
    "RuntimeDigest",
    "RuntimeStore",
    "RuntimeUnavailableError",
    "Uv",
    "bundled",
    "catalogue",
    "find_uv",
    "load_directory",
    "uv_environment",
]
