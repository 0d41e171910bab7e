"""A control plane to talk to, and the command line to talk with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from orchestrator.api.v1.jobs_pb2_grpc import add_JobsServiceServicer_to_server
from orchestrator.api.v1.ledger_pb2_grpc import add_LedgerServiceServicer_to_server
from orchestrator.api.v1.operator_pb2_grpc import add_OperatorServiceServicer_to_server
from orchestrator.cli.main import run
from tests.cli.control import ADMIN, Door, FakeJobs, FakeLedger, FakeOperator


@dataclass(frozen=True)
class Control:
    url: str
    operator: FakeOperator
    jobs: FakeJobs


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str


Orch = Callable[..., Answer]


@pytest.fixture
def control() -> Iterator[Control]:
    server = grpc.server(ThreadPoolExecutor(4), interceptors=[Door()])
    operator, jobs = FakeOperator(), FakeJobs()
    add_OperatorServiceServicer_to_server(operator, server)
    add_JobsServiceServicer_to_server(jobs, server)
    add_LedgerServiceServicer_to_server(FakeLedger(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield Control(f"127.0.0.1:{port}", operator, jobs)
    server.stop(None).wait()


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No configuration but the test's own; returns the empty home."""
    for name in ("ORCH_URL", "ORCH_TOKEN", "ORCH_TOKEN_FILE", "ORCH_JOIN_TOKEN", "ORCH_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    return home


@pytest.fixture
def orch(clean_environment: Path, capfd: pytest.CaptureFixture[str]) -> Orch:
    """`orch` with these arguments, in this process."""

    def call(*arguments: str) -> Answer:
        code = run(arguments)
        captured = capfd.readouterr()
        return Answer(code, captured.out, captured.err)

    return call


@pytest.fixture
def admin(control: Control, orch: Orch, monkeypatch: pytest.MonkeyPatch) -> Orch:
    """The same, as the operator of the fake control plane."""
    monkeypatch.setenv("ORCH_URL", control.url)
    monkeypatch.setenv("ORCH_TOKEN", ADMIN)
    return orch
