"""A terminal that is listened to: single keys, signals and other threads wake one wait; all is put back in the end."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import tty
from types import FrameType, TracebackType
from typing import Any, Self

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Each ends the screen in order, so that the terminal is as it was."""

KEYS_BYTES_MAX = 64
"""An escape sequence, or what a cat typed; only its first character counts."""


class Keyboard:
    """Use with ``with``, in the main thread. Keys are heard where standard input is a terminal."""

    def __init__(self) -> None:
        self.ended = False
        """Whether a signal asked for the end."""
        self._stdin = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
        self._modes: list[Any] = []
        self._handlers: dict[signal.Signals, Any] = {}
        self._wakeup = -1
        self._reading, self._writing = os.pipe()

    def __enter__(self) -> Self:
        for end in (self._reading, self._writing):
            os.set_blocking(end, False)
        if self._stdin is not None:
            self._modes = termios.tcgetattr(self._stdin)
            tty.setcbreak(self._stdin)
        for number in ENDING:
            self._handlers[number] = signal.signal(number, self._end)
        # What changes the size only wakes; to be stopped in the middle of a screen helps nobody.
        self._handlers[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, _nothing)
        self._handlers[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, signal.SIG_IGN)
        self._wakeup = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._stdin is not None:
            termios.tcsetattr(self._stdin, termios.TCSADRAIN, self._modes)
        writing, self._writing = self._writing, -1
        os.close(writing)
        os.close(self._reading)

    def wake(self) -> None:
        """End the wait; from any thread, also after the end."""
        with contextlib.suppress(OSError):
            os.write(self._writing, b"\0")

    def wait(self, timeout_s: float) -> str:
        """Until a key, a signal, a ``wake`` or the end of the time: the key, or nothing."""
        watched = [self._reading, *([] if self._stdin is None else [self._stdin])]
        ready, _, _ = select.select(watched, [], [], max(0.0, timeout_s))
        if self._reading in ready:
            with contextlib.suppress(BlockingIOError):
                while os.read(self._reading, KEYS_BYTES_MAX):
                    pass
        if self._stdin is None or self._stdin not in ready:
            return ""
        typed = os.read(self._stdin, KEYS_BYTES_MAX)
        if not typed:
            # The terminal is gone: nobody can look any more.
            self.ended = True
        return typed[:1].decode("ascii", "replace")

    def _end(self, _number: int, _frame: FrameType | None) -> None:
        self.ended = True


def _nothing(_number: int, _frame: FrameType | None) -> None:
    """The signal has woken the wait, which was all."""
