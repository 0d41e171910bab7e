"""Running the machine's own tools (ip, nft, mount …) and saying what went wrong when one refuses."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterable, Sequence

TOOL_TIMEOUT_S = 30
"""They take milliseconds; one that takes this long waits for something that will not come."""

REASON_CHARS = 300
"""The end of a tool's complaint, short enough for a status message."""

ADMIN_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where the tools lie; a service's own PATH may lack the administrator's part."""


class BoxError(RuntimeError):
    """A box could not be made, or not be removed wholly; the message says which step and why."""


def run_tool(argv: Sequence[str], stdin: str = "") -> str:
    """Run one tool and return its output. Raises BoxError when it fails."""
    try:
        done = subprocess.run(
            argv,
            input=stdin.encode(),
            capture_output=True,
            timeout=TOOL_TIMEOUT_S,
            check=False,
            env=tool_environment(),
        )
    except FileNotFoundError as error:
        raise BoxError(
            f"{argv[0]} is not installed; install it with the machine’s package manager"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise BoxError(f"{' '.join(argv[:4])} did not end within {TOOL_TIMEOUT_S} s") from error
    if done.returncode != 0:
        complaint = " ".join(done.stderr.decode(errors="replace").split())[-REASON_CHARS:]
        raise BoxError(f"{' '.join(argv[:4])}: {complaint or f'exit {done.returncode}'}")
    return done.stdout.decode(errors="replace")


def tool_environment() -> dict[str, str]:
    """Return the environment of tools that run as root: nothing of ours, and messages in one language."""
    return {"PATH": os.environ.get("PATH", "") + ":" + ADMIN_PATH, "LC_ALL": "C"}


def attempt_all(steps: Iterable[Callable[[], object]]) -> list[str]:
    """Take every step, whatever became of the others; return what those that failed said."""
    complaints: list[str] = []
    for step in steps:
        try:
            step()
        except (OSError, BoxError) as error:
            complaints.append(str(error))
    return complaints
