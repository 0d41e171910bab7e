"""Expositions that others wrote: unpacked and sieved within bounds, in steps so short that nobody waits for them.

An exposition is Prometheus' text format, version 0.0.4: lines, each of which names its metric first. What a tenant's node
or a supplier's agent shows must not pose as anything else's, so only lines about names of its own are kept.

No series that passes here names a job or a user. What Ray counts by job is shown as the sum over all jobs. Whatever else
names one is left out: without that label it would be the number of one of them, and nobody could say of which.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

TEXT_BYTES_MAX = 8 * 1024 * 1024
"""Unpacked. A Ray node with a busy job shows some hundred kB; a page of 500 workers about one MiB."""

STEP_BYTES = 64 * 1024
"""Unpacked and sieved at once: less than a millisecond."""

LINES_MAX = 100_000
"""A Ray node with a busy job shows some thousands; each line costs time on the thread that decides, however short."""

LINE_BYTES_MAX = 64 * 1024
"""A line is a name, its labels and a number: some hundred bytes."""

GZIP_BITS = 31
"""zlib's word for a gzip header and the largest window."""

LEVEL = 1
"""Of packing: text with so many repetitions shrinks tenfold even so."""

OWN_TO_RAY = ("ray_", "python_", "process_", "target_info")
"""Ray puts the first before its own metrics and those of its users; the others are of the process that shows them, and
of its libraries."""

WHO = ("JobId", "job_id", "SubmissionId", "submission_id", "UserId", "user_id")
"""Labels that name a job or a user: Ray's own is the first."""

COUNTED_BY_JOB = ("ray_tasks", "ray_actors")
"""Numbers of things in a state, by name and job. Ray adds them up too where it leaves a label of theirs out."""

COUNTED_MAX = 5_000
"""Series of those, after adding up: by the names of a job's functions and classes, in some ten states each."""

COUNTED_LINES_AT_ONCE = 100
"""Added up in one step: less than a millisecond."""

OWN_TO_AGENT = ("orchestrator_agent_", "python_", "process_")


class ExpositionError(Exception):
    """What came is no exposition."""


class ExpositionTooLargeError(ExpositionError):
    """What came is larger than any exposition has to be."""


@dataclass(frozen=True, slots=True)
class Exposition:
    """Text as it is shown to Prometheus, and how many lines of what came were about names of others.

    Those that were left out as they name a job or a user are no sign of anything: Ray shows such ones every day.
    """

    text: bytes
    dropped: int


WHO_BYTES = frozenset(name.encode() for name in WHO)

NAMES_SOMEBODY = re.compile(
    rb'^[^\n]*?[{,][ \t]*+"?(?:' + b"|".join(WHO_BYTES) + rb')"?[ \t]*+=[ \t]*+"[^"\n][^\n]*\n', re.MULTILINE
)
"""A line with such a label. To Prometheus a label that is empty is not there."""

LABEL = rb'[a-zA-Z_][a-zA-Z0-9_]*+="(?:[^"\\\n]|\\[^\n])*+"'

LABELS = re.compile(LABEL)

COUNTED_LINE = re.compile(rb"^(?:" + "|".join(COUNTED_BY_JOB).encode() + rb")[ \t]*+\{[^\n]*\n", re.MULTILINE)

COUNTED_PARTS = re.compile(rb"(\w++)\{((?:" + LABEL + rb",?+)*+)\} ([0-9a-zA-Z.+-]{1,32})(?: [0-9]{1,20})?\n")
"""Name, labels and value, as Ray writes them."""


def packed(text: bytes) -> bytes:
    """The text as one gzip stream. Some ten milliseconds for the largest: not for a thread that others wait for."""
    packer = zlib.compressobj(LEVEL, zlib.DEFLATED, GZIP_BITS)
    return packer.compress(text) + packer.flush()


class Sieve:
    """Takes one gzip stream in parts, and keeps the lines that are about the names beginning with ``own``."""

    def __init__(self, own: tuple[str, ...], size_max: int = TEXT_BYTES_MAX) -> None:
        self._own = own
        self._size_max = size_max
        names = "|".join(re.escape(prefix) for prefix in own)
        self._foreign = re.compile(rf"^(?!(?:# (?:HELP|TYPE) )?(?:{names}))[^\n]+\n".encode(), re.MULTILINE)
        self._unpacker = zlib.decompressobj(GZIP_BITS)
        self._unpacked = 0
        self._lines = 0
        self._line = b""
        """Whose end has not come yet."""
        self._kept: list[bytes] = []
        self._counted: dict[bytes, tuple[int, float]] = {}
        """Series that are added up over jobs: where each stands in what is kept, and its sum."""
        self._dropped = 0
        self._by_job = 0

    @property
    def held_bytes(self) -> int:
        """What this keeps in memory."""
        return self._unpacked

    def steps(self, data: bytes) -> Iterator[None]:
        """Take the next part, yielding after each step of it. Raises ExpositionError."""
        while data:
            try:
                text = self._unpacker.decompress(data, STEP_BYTES)
            except zlib.error as error:
                raise ExpositionError(f"not a gzip stream: {error}") from None
            data = self._unpacker.unconsumed_tail
            if self._unpacker.unused_data:
                raise ExpositionError("something follows the end of the gzip stream")
            self._unpacked += len(text)
            if self._unpacked > self._size_max:
                raise ExpositionTooLargeError(f"more than {self._size_max} bytes")
            self._lines += text.count(b"\n")
            if self._lines > LINES_MAX:
                raise ExpositionTooLargeError(f"more than {LINES_MAX} lines")
            yield from self._sift(text)
            yield

    def finish(self) -> Exposition:
        """All of it, once everything was taken. Raises ExpositionError where the end is missing."""
        if not self._unpacker.eof:
            raise ExpositionError("the gzip stream was cut off")
        if self._line:
            for _ in self._sift(b"\n"):
                pass
        if self._dropped:
            own = " or ".join(f"{prefix}*" for prefix in self._own)
            note = f"# left out here: {self._dropped} lines about other names than {own}\n"
            self._kept.append(note.encode())
        if self._by_job:
            self._kept.append(f"# left out here: {self._by_job} lines about single jobs or users\n".encode())
        return Exposition(b"".join(self._kept), self._dropped)

    def _sift(self, text: bytes) -> Iterator[None]:
        lines, newline, rest = text.rpartition(b"\n")
        if not newline:
            self._line += rest
        else:
            kept, dropped = self._foreign.subn(b"", self._line + lines + newline)
            self._dropped += dropped
            yield from self._keep(kept)
            self._line = rest
        if len(self._line) > LINE_BYTES_MAX:
            raise ExpositionError(f"a line of more than {LINE_BYTES_MAX} bytes")

    def _keep(self, text: bytes) -> Iterator[None]:
        """Whole lines of own names."""
        after = 0
        for number, line in enumerate(COUNTED_LINE.finditer(text), start=1):
            self._keep_unnamed(text[after : line.start()])
            self._add(line[0])
            after = line.end()
            if number % COUNTED_LINES_AT_ONCE == 0:
                yield
        self._keep_unnamed(text[after:])

    def _keep_unnamed(self, text: bytes) -> None:
        if any(name in text for name in WHO_BYTES):
            text, by_job = NAMES_SOMEBODY.subn(b"", text)
            self._by_job += by_job
        if text:
            self._kept.append(text)

    def _add(self, line: bytes) -> None:
        """One line of what is counted by job, to the others that are equal but for the job."""
        try:
            series, value = _counted(line)
        except ValueError:
            self._by_job += 1
            return
        if (known := self._counted.get(series)) is not None:
            index, total = known
            self._counted[series] = index, total + value
            self._kept[index] = b"%b %b\n" % (series, repr(total + value).encode())
        elif len(self._counted) < COUNTED_MAX:
            self._counted[series] = len(self._kept), value
            self._kept.append(b"%b %b\n" % (series, repr(value).encode()))
        else:
            self._by_job += 1


def _counted(line: bytes) -> tuple[bytes, float]:
    """The series without labels that name somebody, and its value. Raises ValueError where it is no such line."""
    parts = COUNTED_PARTS.fullmatch(line)
    if parts is None:
        raise ValueError("no line of a series")
    name, labels, value = parts.groups()
    shown = (label for label in LABELS.findall(labels) if label.partition(b"=")[0] not in WHO_BYTES)
    return b"%b{%b}" % (name, b",".join(shown)), float(value)
