"""The tenant's side: the plain `ray job submit`, its output read line by line while it runs."""

from __future__ import annotations

import json
import queue
import re
import subprocess
import threading
import time
from pathlib import Path
from typing import IO

from examples.demo.network import BIN, child_environment

WORKING_DIR = Path(__file__).resolve().parents[1] / "train_digits"
METADATA = {"orch.gpus": "3", "orch.hardware_class": "consumer", "orch.isolation": "none"}
"""The demo's agents run without isolation, to which owner and job have to consent."""
END_GRACE_S = 5.0
"""For the CLI to notice that it is to end."""

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_ACCURACY = re.compile(r"^test accuracy: (?P<value>[01]\.[0-9]+)\s*$")


class RaySubmit:
    """One `ray job submit`, unmodified; all it knows of us is in three environment variables."""

    def __init__(self, gateway: str, secret: str) -> None:
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.accuracy: float | None = None
        self._began_s = time.monotonic()
        self.wall_ms = 0
        environment = {
            "RAY_ADDRESS": f"http://{gateway}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secret,
        }
        command = [str(BIN / "ray"), "job", "submit", "--working-dir", str(WORKING_DIR)]
        command += ["--metadata-json", json.dumps(METADATA), "--", "python", "train.py"]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=child_environment(environment),
            start_new_session=True,
        )
        streams = ((self._process.stdout, self._read_own), (self._process.stderr, self._read))
        self._readers = [
            threading.Thread(target=read, args=(stream,), daemon=True) for stream, read in streams if stream
        ]
        for reader in self._readers:
            reader.start()

    def poll(self) -> int | None:
        """The CLI's exit code, once it has ended and all it said was read."""
        code = self._process.poll()
        if code is None:
            return None
        if not self.wall_ms:
            self.wall_ms = int((time.monotonic() - self._began_s) * 1000)
        for reader in self._readers:
            reader.join()
        return code

    def end(self) -> None:
        """End the CLI; the job goes on without it."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(END_GRACE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _read_own(self, stream: IO[bytes]) -> None:
        """Standard output, where the job's own output must appear."""
        for raw in stream:
            line = plain(raw)
            found = _ACCURACY.match(line)
            if found:
                self.accuracy = float(found["value"])
            self.lines.put(line)

    def _read(self, stream: IO[bytes]) -> None:
        for raw in stream:
            self.lines.put(plain(raw))


def plain(raw: bytes) -> str:
    """A line without its end and without the colours that Ray's CLI gives even to a pipe."""
    return _COLOUR.sub("", raw.decode("utf-8", "replace")).rstrip("\r\n")
