"""The metrics' door as `orch serve` opens it: before everything else, so that it can say why the rest is not there."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from orchestrator.adapters import clock
from orchestrator.adapters.keys import KeyFileError
from orchestrator.adapters.metrics.token import TokenFile, own_token_file
from orchestrator.adapters.metrics.worker_pages import page_text
from orchestrator.adapters.peers import certificate_times
from orchestrator.cli.errors import usage_error

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator.adapters.authority import Authority
    from orchestrator.adapters.https_identity import HttpsIdentity
    from orchestrator.adapters.metrics.registry import Metrics
    from orchestrator.cli.serve_settings import ServeSettings
    from orchestrator.control.app import ControlPlane
    from orchestrator.control.overlay import Overlay


def open_token(settings: ServeSettings, folder: Path) -> TokenFile:
    """The operator's own file, else that of the data directory. Blocking. Raises a usage error, or KeyFileError."""
    named = settings.metrics_token_file
    if named is None:
        return own_token_file(folder)
    try:
        return TokenFile(named.expanduser().absolute())
    except KeyFileError as error:
        raise usage_error(f"--metrics-token-file: {error}") from None


def certificates(
    authority: Authority, https: HttpsIdentity | None, overlay: Overlay | None
) -> dict[str, int]:
    """When each of the network's own certificates runs out, by wall clock in ms; of those that it has."""
    now_ms = clock.SystemClock().now().wall_ms
    _key, chain = authority.server_credentials_pem(now_ms)
    found = {
        "authority": max(authority.generations, key=lambda one: one.number).not_after_ms,
        "session": certificate_times(chain)[1],
    }
    if https is not None:
        found["gateway"] = https.not_after_ms
    if overlay is not None:
        found["overlay"] = overlay.authority.not_after_ms
    return found


class Shown:
    """The pages of one control plane."""

    def __init__(self, metrics: Metrics, plane: ControlPlane) -> None:
        self._metrics = metrics
        self._plane = plane

    async def network(self) -> bytes:
        """Every metric of the network, and of this process."""
        await self._plane.measure()
        return self._metrics.text()

    def page_count(self) -> int:
        """Pages of workers."""
        return self._plane.measuring.page_count

    async def workers(self, page: int) -> bytes:
        """One of them. The text is written beside the loop."""
        rows = await self._plane.worker_rows(page)
        return await asyncio.to_thread(page_text, rows)
