"""`orch serve` in a process of its own, for a test to speak to and to kill."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.api.v1 import operator_pb2, operator_pb2_grpc
from orchestrator.cli.client import open_channel
from tests.polling import wait_until

START_S = 60.0
"""Far above the two seconds it takes, for machines that are busy."""


@dataclass
class Serve:
    """One running `orch serve` on ``folder``."""

    folder: Path
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def endpoints(self) -> dict[str, str]:
        found: dict[str, str] = json.loads((self.folder / "endpoints.json").read_text())
        return found

    def kill(self) -> None:
        """As a power cut would, for this process."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def interrupt(self) -> int:
        """Ctrl-C: the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(START_S)

    def operator(self) -> tuple[operator_pb2_grpc.OperatorServiceStub, tuple[tuple[str, str], ...]]:
        """A stub and the metadata that its calls need."""
        admin = (self.folder / "admin-token").read_text().strip()
        channel = open_channel(self.endpoints["grpc"], Path(self.endpoints["ca_file"]).read_bytes())
        return operator_pb2_grpc.OperatorServiceStub(channel), (("authorization", f"Bearer {admin}"),)

    def tenant_secret(self) -> str:
        """A new tenant's token."""
        stub, metadata = self.operator()
        stub.CreateTenant(operator_pb2.CreateTenantRequest(name="acme"), metadata=metadata)
        request = operator_pb2.CreateTokenRequest(role=operator_pb2.TOKEN_ROLE_TENANT, subject="acme")
        return str(stub.CreateToken(request, metadata=metadata).secret)

    def metrics(self, path: str = "/metrics") -> tuple[int, bytes]:
        """(status, body) of a request to the metrics' door, with its token."""
        secret = Path(self.endpoints["metrics_token_file"]).read_text().strip()
        return self.http(self.endpoints["metrics"].removesuffix("/metrics") + path, secret)

    def http(self, path: str, secret: str = "", body: dict[str, object] | None = None) -> tuple[int, bytes]:
        """(status, body) of a request to the gateway, or to a whole URL."""
        url = path if "://" in path else self.endpoints["gateway"] + path
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(url, data=data, headers={"Authorization": f"Bearer {secret}"})
        try:
            with urllib.request.urlopen(request, timeout=START_S) as answer:
                return int(answer.status), answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()


def command(folder: Path, *arguments: str) -> list[str]:
    anywhere = [
        word
        for name in ("listen", "session-listen", "gateway", "metrics")
        for word in (f"--{name}", "127.0.0.1:0")
    ]
    return [
        *(sys.executable, "-m", "orchestrator.cli.main", "serve", "--data-dir", str(folder)),
        *anywhere,
        *arguments,
    ]


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("ORCH_")}


def refusal(folder: Path, *arguments: str, **variables: str) -> str:
    """What a start that must be refused says: one line, and exit code 2."""
    done = subprocess.run(
        command(folder, *arguments),
        env=environment() | variables,
        capture_output=True,
        text=True,
        timeout=START_S,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


@contextlib.contextmanager
def serving(folder: Path, *arguments: str) -> Iterator[Serve]:
    """Start, wait until it answers, and leave nothing behind."""
    endpoints = folder / "endpoints.json"
    endpoints.unlink(missing_ok=True)
    log = folder.with_suffix(".log")
    with log.open("ab") as errors:
        process = subprocess.Popen(command(folder, *arguments), env=environment(), stderr=errors)
    try:
        wait_until(
            lambda: endpoints.exists() or process.poll() is not None, what="orch serve", deadline_s=START_S
        )
        assert process.poll() is None, log.read_text()
        yield Serve(folder, process, log)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
