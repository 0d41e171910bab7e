"""A tenant at home in its box, leaving a mark of every kind that a neighbour might find; usage: settle.py MARK."""

from __future__ import annotations

import ctypes
import os
import select
import socket
import sys
from pathlib import Path

PORT = 18_200
SHARED_KEY = 0x6F726368
"""Of a System V segment, which has no path."""
IPC_CREAT_FOR_ALL = 0o1666

BEAT_S = 0.1
BEATS_FILE = "beats"
"""In the home: one byte for each moment that the job went on."""


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def settle(mark: str) -> None:
    for folder in ("/dev/shm", "/tmp", "/home", os.environ["HOME"]):
        (Path(folder) / mark).write_text(mark)
    segment = ctypes.CDLL(None, use_errno=True).shmget(SHARED_KEY, 4096, IPC_CREAT_FOR_ALL)
    assert segment >= 0, os.strerror(ctypes.get_errno())
    hidden = socket.socket(socket.AF_UNIX)
    hidden.bind(f"\0{mark}")
    hidden.listen()
    listener = socket.create_server(("0.0.0.0", PORT))
    say(f"{mark} is at home")
    with (Path(os.environ["HOME"]) / BEATS_FILE).open("ab", buffering=0) as beats:
        while True:
            if select.select([listener], [], [], BEAT_S)[0]:
                listener.accept()[0].close()
            beats.write(b".")


if __name__ == "__main__":
    settle(sys.argv[1])
