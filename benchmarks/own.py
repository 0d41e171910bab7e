"""A stranger's own data in place of what lies in benchmarks/data: files named by environment variables."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from benchmarks.report import FigureError


def own_files(variable: str, ours: Sequence[Path], least: int = 1) -> tuple[Path, ...]:
    """The files that an environment variable names, separated as in PATH, or ours where it is not set.

    Raises FigureError where one is not there, or where they are fewer than ``least``.
    """
    named = tuple(Path(name) for name in os.environ.get(variable, "").split(os.pathsep) if name)
    for path in named:
        if not path.is_file():
            raise FigureError(f"{variable}: {path} is no file; name files, separated by {os.pathsep!r}")
    if named and len(named) < least:
        raise FigureError(f"{variable}: at least {least} files are needed, separated by {os.pathsep!r}")
    return named or tuple(ours)
