"""A terminal for a command to run in: a real pseudo-terminal, its size, its keys, and what stands on its screen."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.polling import wait_until

ORCH = str(Path(sys.executable).with_name("orch"))

WAIT_S = 60.0
"""Far above what anything here takes, for machines that are busy."""

LEADING = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Makes the terminal the session's own, so that its Ctrl-C is a signal, and becomes the command."""

HOME = "\x1b[H"
ALTERNATE_ON, ALTERNATE_OFF = "\x1b[?1049h", "\x1b[?1049l"
CURSOR_OFF, CURSOR_ON = "\x1b[?25l", "\x1b[?25h"
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b(\[[0-9;?]*)?\Z")
"""The last one may be on its way still."""


class Terminal:
    """One command in a terminal of its own, whose controlling terminal it is."""

    def __init__(
        self, arguments: Sequence[str], environment: Mapping[str, str], *, columns: int = 80, lines: int = 24
    ) -> None:
        self._master, slave = pty.openpty()
        self._slave = slave
        self.resize(columns, lines)
        self.modes_before = self.modes()
        self.raw = ""
        """Everything written so far."""
        self.process = subprocess.Popen(
            [sys.executable, "-Ic", LEADING, ORCH, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={
                **{name: value for name, value in environment.items() if name not in ("COLUMNS", "LINES")},
                "TERM": "xterm-256color",
            },
            start_new_session=True,
        )

    def modes(self) -> list[Any]:
        """What the terminal does with keys and lines."""
        return termios.tcgetattr(self._slave)

    def resize(self, columns: int, lines: int) -> None:
        """Another size; the kernel tells the command."""
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def type(self, text: str) -> None:
        """Keys; \\x03 is Ctrl-C."""
        os.write(self._master, text.encode())

    def read(self) -> str:
        """What was written until now, without waiting."""
        while select.select([self._master], [], [], 0)[0]:
            try:
                self.raw += os.read(self._master, 65_536).decode("utf-8", "replace")
            except OSError:
                break
        return self.raw

    def screen(self) -> list[str]:
        """Lines of the newest whole picture, without colours; none before the first."""
        pictures = self.read().split(HOME)[1:]
        if not pictures:
            return []
        # The newest may still be on its way: it is whole once another has begun, or nothing more comes.
        return _CONTROL.sub("", pictures[-1]).replace("\r", "").split("\n")

    def wait_for(self, *words: str) -> list[str]:
        """The first screen that shows all the words."""
        found: list[str] = []

        def shown() -> bool:
            found[:] = self.screen()
            return self.shows(*words, on=found)

        wait_until(shown, what=f"{words} on the screen", deadline_s=WAIT_S)
        return found

    def shows(self, *words: str, on: Sequence[str] = ()) -> bool:
        """Whether they all stand on a screen, or else the one of now; fails where the command has ended."""
        assert self.process.poll() is None, self.read()
        text = "\n".join(on or self.screen())
        return all(word in text for word in words)

    def wait(self) -> int:
        """The exit code; what it writes meanwhile is read, or it would wait for that."""
        wait_until(self._ended, what="the command's end", deadline_s=WAIT_S)
        self.read()
        return int(self.process.returncode)

    def _ended(self) -> bool:
        self.read()
        return self.process.poll() is not None

    def close(self) -> None:
        """End it, whatever it is doing."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)
        os.close(self._slave)


@contextlib.contextmanager
def terminal(
    *arguments: str, environment: Mapping[str, str], columns: int = 80, lines: int = 24
) -> Iterator[Terminal]:
    """A command in a terminal, ended with the test."""
    opened = Terminal(arguments, environment, columns=columns, lines=lines)
    try:
        yield opened
    finally:
        opened.close()
