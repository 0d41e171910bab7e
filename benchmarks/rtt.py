"""Matrices of round-trip times: PlanetLab's three frames, or a stranger's own.

A file holds one frame: a line for each machine, in it the milliseconds to each machine in the same order, separated by
white space; the diagonal does not matter. It may be compressed (.xz). All frames are of the same machines, in order of
time: on the first one the peers are tuned, the others are reported.
"""

from __future__ import annotations

import lzma
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.own import own_files
from benchmarks.report import FigureError

Table = NDArray[np.float64]
"""N × n, milliseconds."""

VARIABLE = "BENCH_RTT"
FRAMES = tuple(
    Path(__file__).parent / "data" / "planetlab" / f"frame_{number}.txt.xz" for number in (1, 2, 3)
)
FRAMES_MIN = 2

MACHINES_MIN, MACHINES_MAX = 100, 5_000
"""Fewer have no use for 32 probes each, and of more a frame takes 200 MB."""

RTT_MS_MAX = 60_000.0


def read_frames() -> list[Table]:
    """All frames, at least two, the first of them for tuning. Raises FigureError, a sentence with file and line."""
    paths = own_files(VARIABLE, FRAMES, FRAMES_MIN)
    frames = [read_frame(path) for path in paths]
    for path, frame in zip(paths, frames, strict=True):
        if len(frame) != len(frames[0]):
            raise FigureError(
                f"{path}: {len(frame)} machines, but {len(frames[0])} in {paths[0]}; give frames of the same"
            )
    return frames


def read_frame(path: Path) -> Table:
    """One frame. Raises FigureError."""
    rows: list[Table] = []
    for line, text in enumerate(_lines(path), start=1):
        at = f"{path}:{line}"
        try:
            row = np.array(text.split(), dtype=np.float64)
        except ValueError as error:
            raise FigureError(f"{at}: {error}; give milliseconds, separated by white space") from error
        if not MACHINES_MIN <= len(row) <= MACHINES_MAX:
            raise FigureError(
                f"{at}: {len(row)} numbers; a frame has {MACHINES_MIN} to {MACHINES_MAX:,} machines"
            )
        if rows and len(row) != len(rows[0]):
            raise FigureError(f"{at}: {len(row)} numbers, but {len(rows[0])} in the first line")
        if len(rows) == len(row):
            raise FigureError(f"{at}: more lines than the {len(row)} machines of a line")
        wrong = np.flatnonzero(~((row > 0) & (row <= RTT_MS_MAX)))
        wrong = wrong[wrong != len(rows)]
        if len(wrong):
            column = int(wrong[0])
            raise FigureError(
                f"{at}: {row[column]:g} ms to machine {column + 1}; it must lie above 0 and be at most {RTT_MS_MAX:,.0f}"
            )
        rows.append(row)
    if not rows or len(rows) != len(rows[0]):
        raise FigureError(
            f"{path}: {len(rows)} lines for {len(rows[0]) if rows else 0} machines; a frame is a square"
        )
    return np.stack(rows)


def _lines(path: Path) -> Iterator[str]:
    opened = lzma.open if path.suffix == ".xz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            yield from file
    except (OSError, UnicodeDecodeError, lzma.LZMAError, EOFError) as error:
        raise FigureError(f"{path}: cannot be read: {error}") from error
