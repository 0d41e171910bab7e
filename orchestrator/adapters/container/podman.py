"""Running podman, and saying what went wrong when it refuses."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence

from orchestrator.adapters.box.tools import BoxError, tool_environment

STEP_TIMEOUT_S = 60
"""A step takes a tenth of a second; the first one after an image came may spread its layers."""

REASON_CHARS = 400
"""The end of podman's complaint, short enough for a status message."""

LOOK_INTERVAL_S = 1.0
"""How often a watcher looks while podman works: a fast disk takes some 3 GiB in this time."""

BASE = ("podman", "--cgroup-manager=cgroupfs", "--events-backend=none")
"""The cgroups are ours, by path, whether or not systemd is there; and nobody reads its journal of events."""


def podman(
    runtime: str,
    arguments: Sequence[str],
    timeout_s: float = STEP_TIMEOUT_S,
    watch: Callable[[], None] | None = None,
    env: Mapping[str, str] | None = None,
) -> str:
    """Run podman with an OCI runtime and return its output. Raises BoxError when it fails.

    ``watch`` is called about once a second; what it raises ends podman and is raised here. ``env`` is added.
    """
    try:
        child = subprocess.Popen(
            [*BASE, f"--runtime={runtime}", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**tool_environment(), **(env or {})},
            cwd="/",
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise BoxError("podman is not installed; run: apt-get install podman runc") from error
    with child:
        try:
            told, complained = _ended(child, timeout_s, watch)
        except BaseException as error:
            # With its helpers, which unpack; a container's monitor has a session of its own.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise BoxError(f"podman {arguments[0]} did not end within {timeout_s:.0f} s") from error
            raise
    if child.returncode != 0:
        complaint = " ".join(complained.decode(errors="replace").split())[-REASON_CHARS:]
        raise BoxError(f"podman {arguments[0]}: {complaint or f'exit {child.returncode}'}")
    return told.decode(errors="replace")


def _ended(
    child: subprocess.Popen[bytes], timeout_s: float, watch: Callable[[], None] | None
) -> tuple[bytes, bytes]:
    """Wait for its end, watching; both its outputs. Raises TimeoutExpired, and what ``watch`` raises."""
    if watch is not None:
        for _ in range(math.ceil(timeout_s / LOOK_INTERVAL_S)):
            with contextlib.suppress(subprocess.TimeoutExpired):
                return child.communicate(timeout=LOOK_INTERVAL_S)
            watch()
        raise subprocess.TimeoutExpired(child.args, timeout_s)
    return child.communicate(timeout=timeout_s)
