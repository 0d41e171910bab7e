"""An all-reduce by the runtime's own torch: ``gloo.py`` as a child process inside a member's box.

It is run as the tenant's user, beside whatever the tenant runs there. So it gets nothing that is worth having, and
what it prints is believed only as far as a network could have shown it: a tenant could lie about its own cluster.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from orchestrator.adapters.box.entering import inside
from orchestrator.adapters.box.tools import BoxError
from orchestrator.adapters.probes.records import (
    LINE_CHARACTERS_MAX,
    RANKS_MAX,
    RANKS_MIN,
    ReduceMeasured,
    read_reduce_line,
)
from orchestrator.adapters.probes.ring import BYTES_MAX, BYTES_MIN, ROUNDS_MAX
from orchestrator.adapters.probes.wire import ProbeFailed
from orchestrator.adapters.ray_node import BOX_PATH

SCRIPT: Final = Path(__file__).with_name("gloo.py").read_text(encoding="utf-8")

METHODS: Final = frozenset(("gloo", "nccl"))

PACKAGES: Final = ("lib/python3*/*-packages", "local/lib/python3*/*-packages")
"""Below an interpreter's prefix: of a runtime, of most images, and of Debian's own Python."""

DEADLINE_S_MAX: Final = 600
"""A probe that takes ten minutes keeps GPUs waiting for more than the answer is worth."""

MEETING_PERCENT: Final = 75
"""Of the deadline, for each wait of torch's own: the rest is for its import, and for naming who did not come."""

OUTPUT_BYTES_MAX: Final = 4 * LINE_CHARACTERS_MAX
"""One line, of characters that UTF-8 writes with four bytes at most."""

PIECE_BYTES: Final = 4096
REASON_CHARACTERS: Final = 200
"""Of what it says on its standard error, where it gave no line."""


@dataclass(frozen=True, slots=True)
class TorchPlan:
    """One rank's part. The same on every rank, except ``namespace_pid``, ``interpreter`` and ``rank``.

    ``interpreter`` is a path inside the box that ``namespace_pid`` is in; ``host`` and ``port`` are rank 0's, which
    it opens on ``interface``; ``bytes`` and ``rounds`` as RingPlan's.
    """

    namespace_pid: int
    interpreter: str
    rank: int
    ranks: int
    host: str
    port: int
    interface: str
    bytes: int
    rounds: int
    deadline_s: int

    def __post_init__(self) -> None:
        for field, value, low, high in (
            ("namespace_pid", self.namespace_pid, 1, (1 << 31) - 1),
            ("ranks", self.ranks, RANKS_MIN, RANKS_MAX),
            ("rank", self.rank, 0, self.ranks - 1),
            ("port", self.port, 1, (1 << 16) - 1),
            ("bytes", self.bytes, BYTES_MIN, BYTES_MAX),
            ("rounds", self.rounds, 1, ROUNDS_MAX),
            ("deadline_s", self.deadline_s, 2, DEADLINE_S_MAX),
        ):
            if not low <= value <= high:
                raise ValueError(f"{field} is {value}; an all-reduce takes {low} to {high}")
        if self.bytes % 4:
            raise ValueError(f"bytes is {self.bytes}; a vector of float32 has a multiple of 4")

    @property
    def argv(self) -> list[str]:
        """What runs in the box. Isolated: neither the tenant's folders nor its variables are looked at."""
        words = {
            "rank": self.rank,
            "ranks": self.ranks,
            "host": self.host,
            "port": self.port,
            "bytes": self.bytes,
            "rounds": self.rounds,
            "deadline-s": max(1, self.deadline_s * MEETING_PERCENT // 100),
        }
        options = [word for name, value in words.items() for word in (f"--{name}", str(value))]
        return [self.interpreter, "-I", "-c", SCRIPT, *options]

    @property
    def environment(self) -> dict[str, str]:
        """All that it gets."""
        return {
            "PATH": BOX_PATH,
            "HOME": "/tmp",  # noqa: S108 - the box's own
            # Sums over a network keep no second core busy, and Ray is starting.
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": self.interface,
            "NCCL_SOCKET_IFNAME": self.interface,
        }


def has_torch(namespace_pid: int, interpreter: str) -> bool:
    """Whether torch lies among the packages of a box's Python; False where that is gone. Blocking: a few names."""
    if not PurePosixPath(interpreter).is_absolute():
        return False
    prefix = Path(f"/proc/{namespace_pid}/root", *PurePosixPath(interpreter).parent.parent.parts[1:])
    try:
        return any(
            package.joinpath("torch", "__init__.py").exists()
            for place in PACKAGES
            for package in prefix.glob(place)
        )
    except OSError:
        return False


async def measure_torch(plan: TorchPlan) -> ReduceMeasured:
    """Take part as ``plan.rank``; every rank gets the same figure. No process is left, cancelled or not.

    Raises:
        ProbeFailed: there is no torch, or says why it did not measure.
    """
    if not has_torch(plan.namespace_pid, plan.interpreter):
        raise ProbeFailed("the runtime has no torch")
    try:
        process = await asyncio.create_subprocess_exec(
            *inside(plan.namespace_pid, plan.argv),
            env=plan.environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except (BoxError, OSError) as error:
        raise ProbeFailed(str(error)) from None
    words = asyncio.create_task(_last_words(process.stderr))
    try:
        async with asyncio.timeout(plan.deadline_s):
            out = await _line(process.stdout)
            said = await words
            code = await process.wait()
    except TimeoutError:
        raise ProbeFailed(f"torch's all-reduce was not done within {plan.deadline_s} s") from None
    finally:
        words.cancel()
        if process.returncode is None:
            # What it started in the box ends with it.
            process.kill()
            await process.wait()
    if not out:
        raise ProbeFailed(f"torch's all-reduce exited {code}: {said or 'it said nothing'}")
    return _believed(plan, out)


def _believed(plan: TorchPlan, line: str) -> ReduceMeasured:
    """What the script printed, if it can be an answer to this plan. Raises ProbeFailed."""
    try:
        measured = read_reduce_line(line)
    except ValueError as error:
        raise ProbeFailed(str(error)) from None
    if measured.method not in METHODS:
        raise ProbeFailed(f"torch's all-reduce calls itself {measured.method!r}; gloo and nccl are torch's")
    if (measured.ranks, measured.bytes) != (plan.ranks, plan.bytes):
        raise ProbeFailed(
            f"torch's all-reduce tells of {measured.bytes} bytes over {measured.ranks} ranks;"
            f" it was asked for {plan.bytes} over {plan.ranks}"
        )
    return measured


async def _line(stream: asyncio.StreamReader | None) -> str:
    """All of its output. Raises ProbeFailed for more than its one line can be."""
    output = bytearray()
    while stream is not None and (piece := await stream.read(PIECE_BYTES)):
        output += piece
        if len(output) > OUTPUT_BYTES_MAX:
            raise ProbeFailed(f"torch's all-reduce printed more than {OUTPUT_BYTES_MAX} bytes")
    return output.decode(errors="replace").strip()


async def _last_words(stream: asyncio.StreamReader | None) -> str:
    """The end of all it says, however much that is."""
    output = bytearray()
    while stream is not None and (piece := await stream.read(PIECE_BYTES)):
        output = (output + piece)[-PIECE_BYTES:]
    words = " ".join(output.decode(errors="replace").split())[-REASON_CHARACTERS:]
    return "".join(character if character.isprintable() else "?" for character in words)
