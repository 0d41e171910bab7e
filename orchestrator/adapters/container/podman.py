"""Running podman, and saying what went wrong when it refuses."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from orchestrator.adapters.box.tools import BoxError, tool_environment

STEP_TIMEOUT_S = 60
"""A step takes a tenth of a second; the first one after an image came may spread its layers."""

REASON_CHARS = 400
"""The end of podman's complaint, short enough for a status message."""

BASE = ("podman", "--cgroup-manager=cgroupfs", "--events-backend=none")
"""The cgroups are ours, by path, whether or not systemd is there; and nobody reads its journal of events."""


def podman(runtime: str, arguments: Sequence[str], timeout_s: float = STEP_TIMEOUT_S) -> str:
    """Run podman with an OCI runtime and return its output. Raises BoxError when it fails."""
    argv = [*BASE, f"--runtime={runtime}", *arguments]
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
            env=tool_environment(),
            cwd="/",
        )
    except FileNotFoundError as error:
        raise BoxError("podman is not installed; run: apt-get install podman runc") from error
    except subprocess.TimeoutExpired as error:
        raise BoxError(f"podman {arguments[0]} did not end within {timeout_s:.0f} s") from error
    if done.returncode != 0:
        complaint = " ".join(done.stderr.decode(errors="replace").split())[-REASON_CHARS:]
        raise BoxError(f"podman {arguments[0]}: {complaint or f'exit {done.returncode}'}")
    return done.stdout.decode(errors="replace")
