"""Opening files that somebody else's code may have put there: never through a link, and nothing but plain files."""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath
from typing import BinaryIO

WALK = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Without O_NONBLOCK a pipe in the file's place would hold its reader for ever.
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def open_beneath(root: Path, relative: PurePosixPath) -> BinaryIO:
    """Open a plain file below ``root`` for reading; raises OSError where any part of the way is a link.

    A box's scratch is written by its tenant, and whoever reads it from outside has the rights of the machine: a link
    there could name any of its files.
    """
    if relative.is_absolute() or ".." in relative.parts:
        raise OSError(f"{relative} leads out of {root}")
    folder = os.open(root, WALK)
    try:
        for part in relative.parts[:-1]:
            inner = os.open(part, WALK, dir_fd=folder)
            os.close(folder)
            folder = inner
        file = os.open(relative.parts[-1], READ, dir_fd=folder)
    finally:
        os.close(folder)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(f"{relative} below {root} is not a plain file")
    return os.fdopen(file, "rb")
