"""Ray's own command, unmodified, as a tenant runs it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

RAY = Path(sys.executable).parent / "ray"
REPOSITORY = Path(__file__).parents[2]

# Far above the command's 1 to 2 s, for machines that are busy.
DEADLINE_S = 60.0


@dataclass(frozen=True, slots=True)
class RayCli:
    """The command with its two settings, where and as whom, and other variables that a tenant may set."""

    url: str
    secret: str
    variables: Mapping[str, str] = field(default_factory=dict)

    async def start(self, *arguments: str, cwd: Path | None = None) -> asyncio.subprocess.Process:
        """``ray job <arguments>``, its errors in with its output."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        settings = {"RAY_ADDRESS": self.url, "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"}
        if self.secret:
            settings |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.secret}
        return await asyncio.create_subprocess_exec(
            RAY,
            "job",
            *arguments,
            cwd=cwd,
            env={**kept, **settings, **self.variables},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )

    async def run(self, *arguments: str, cwd: Path | None = None) -> tuple[int, str]:
        """(exit code, output)."""
        return await finished(await self.start(*arguments, cwd=cwd))


async def finished(process: asyncio.subprocess.Process) -> tuple[int, str]:
    """Wait for the end; the process is killed where it does not come."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        raise
    assert process.returncode is not None
    return process.returncode, output.decode()


async def read_until(process: asyncio.subprocess.Process, line: str) -> None:
    """Read the output up to a line, so that what follows happens after it was shown."""
    assert process.stdout is not None
    async with asyncio.timeout(DEADLINE_S):
        while line not in (await process.stdout.readline()).decode():
            assert not process.stdout.at_eof(), f"ended before it showed {line!r}"
