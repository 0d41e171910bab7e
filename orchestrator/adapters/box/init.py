"""The first program in a box: starts the node, collects what ends, and ends all when a vital process does.

    python -I init.py CONFIG.json        (the fields of `orchestrator.adapters.box.records.InitConfig`)

Standard library only, Python 3.10 or newer: it runs with the runtime's interpreter, and nothing of this package
can be imported inside a box. It writes JSON lines to its report descriptor: {"state": "up"}, or {"state":
"failed" | "died" | "stopped", "detail": …}. It is the tenant's own user that writes them: whoever reads them
takes them as the box's word and no more. Process 1 is bubblewrap; this is the child it waits for, and the one that
orphans are handed to.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

PR_SET_DUMPABLE = 4
"""From linux/prctl.h: 0 keeps other processes of this user out of this one's memory and descriptors."""

PR_SET_CHILD_SUBREAPER = 36
"""The same: 1 has orphaned descendants handed to this process."""

TERM_GRACE_LOOKS = 50
LOOK_INTERVAL_S = 0.02
"""One second in all: long enough for a driver to flush its output, short enough that a lapsed lease ends at once."""

REASON_CHARS = 600
"""The end of the command's output that explains a failed start, short enough for a status message."""

PROC = Path("/proc")


class Init:
    """One box's life, from its start command to its end."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = config
        self._start_pid = 0
        self._is_up = False
        self._stop = False
        self._vital: dict[int, str] = {}

    def run(self) -> int:
        """Start, watch, and return the exit code; bubblewrap ends what is left once this process is gone."""
        read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        looks = select.poll()
        looks.register(read_fd, select.POLLIN)
        # No event asked for: what comes is the error that nobody has the other end any more.
        looks.register(self._config["report_fd"], 0)
        signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(signum, self._on_stop_signal)
        ending = self._start()
        while ending is None:
            if any(fd == self._config["report_fd"] for fd, _ in looks.poll()):
                ending = ("stopped", "nobody keeps this box any more")
                break
            with contextlib.suppress(BlockingIOError):
                os.read(read_fd, 4096)
            ending = ("stopped", "asked to stop") if self._stop else self._judge_ended()
        state, detail = ending
        self._report(state, detail)
        end_all()
        return 0 if state == "stopped" else 1

    def _on_stop_signal(self, *_: object) -> None:
        """Take SIGTERM, SIGINT and SIGHUP as a request to stop."""
        self._stop = True

    def _start(self) -> tuple[str, str] | None:
        """Run the start command, its output in a file that the box's own quota bounds; say why it cannot."""
        command = self._config["command"]
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, self._config["log_file"], flags, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ]
        try:
            self._start_pid = os.posix_spawnp(
                command[0],
                command,
                os.environ,
                file_actions=actions,
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
            )
        except OSError as error:
            return "failed", f"{command[0]}: {error.strerror}"
        return None

    def _judge_ended(self) -> tuple[str, str] | None:
        """Collect every process that has ended; say what that means for the box, if anything."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                code = os.waitstatus_to_exitcode(status)
                if pid == self._start_pid and not self._is_up:
                    failure = self._judge_started(code)
                    if failure is not None:
                        return "failed", failure
                elif pid in self._vital:
                    return "died", f"{self._vital[pid]} (exit {code})"
        return None

    def _judge_started(self, code: int) -> str | None:
        """Look at what the start command has left behind; say what is wrong with it, if anything."""
        if code != 0:
            return f"exit {code}: {self._output()}"
        self._vital = self._vital_children()
        for name in self._config["required_names"]:
            if name not in self._vital.values():
                return f"no {name} stayed: {self._output()}"
        self._is_up = True
        self._report("up", "")
        return None

    def _vital_children(self) -> dict[int, str]:
        """Return pid → name of the orphans handed to this process whose death is the box's."""
        found: dict[int, str] = {}
        for entry in PROC.iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError, ValueError, IndexError):
                # After the command's closing parenthesis: state, parent. The command may itself hold one.
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                argv = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if parent == str(os.getpid()) and state not in "ZX":
                    name = self._vital_name(argv)
                    if name:
                        found[int(entry.name)] = name
        return found

    def _vital_name(self, argv: list[str]) -> str:
        """Return what a process is called if its end is the box's; empty otherwise."""
        program = argv[0].rpartition("/")[2]
        if program in self._config["vital_names"]:
            return program
        for ending, name in self._config["vital_scripts"]:
            if any(word.endswith(ending) for word in argv):
                return str(name)
        return ""

    def _output(self) -> str:
        """Return the end of what the start command printed, on one line."""
        try:
            text = Path(self._config["log_file"]).read_text(errors="replace")
        except OSError as error:
            return f"its output cannot be read: {error.strerror}"
        return " ".join(text.split())[-REASON_CHARS:]

    def _report(self, state: str, detail: str) -> None:
        """Write one line for whoever keeps this box; nobody may be left to read it."""
        line = json.dumps({"state": state, "detail": detail}) + "\n"
        with contextlib.suppress(OSError):
            os.write(self._config["report_fd"], line.encode())


def end_all() -> None:
    """Ask every other process to end, and give them a moment to."""
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGTERM)
    for _ in range(TERM_GRACE_LOOKS):
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
            select.select([], [], [], LOOK_INTERVAL_S)
            continue
        return


def main() -> NoReturn:
    """Be the first program of a box until there is none."""
    config = json.loads(Path(sys.argv[1]).read_text())
    if config["report_file"]:
        # Without waiting: where nobody reads, nobody keeps this box.
        config["report_fd"] = os.open(config["report_file"], os.O_WRONLY | os.O_NONBLOCK)
    # No child may write in this process's name, nor look into it.
    os.set_inheritable(config["report_fd"], False)  # noqa: FBT003 - it has no other form
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0 or prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl failed")
    sys.exit(Init(config).run())


if __name__ == "__main__":
    main()
