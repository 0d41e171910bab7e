"""A control plane to talk to, and the command line to talk with."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from orchestrator.adapters.authority import Authority
from orchestrator.adapters.clock import SystemClock
from orchestrator.api.v1.jobs_pb2_grpc import add_JobsServiceServicer_to_server
from orchestrator.api.v1.ledger_pb2_grpc import add_LedgerServiceServicer_to_server
from orchestrator.api.v1.operator_pb2_grpc import add_OperatorServiceServicer_to_server
from orchestrator.cli.listening import ServerIdentity
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


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Of every control plane here."""
    folder = tmp_path_factory.mktemp("authority")
    return Authority(folder, now_ms=SystemClock().now().wall_ms, founded=False)


@pytest.fixture(autouse=True)
def trusting(authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command trusts that authority."""
    bundle = tmp_path / "trusted.pem"
    bundle.write_bytes(authority.trust_bundle())
    monkeypatch.setenv("ORCH_CA_FILE", str(bundle))


@pytest.fixture
def control(authority: Authority) -> Iterator[Control]:
    server = grpc.server(ThreadPoolExecutor(4), interceptors=[Door()])
    operator, jobs = FakeOperator(), FakeJobs()
    add_OperatorServiceServicer_to_server(operator, server)
    add_JobsServiceServicer_to_server(jobs, server)
    add_LedgerServiceServicer_to_server(FakeLedger(), server)
    credentials = ServerIdentity(authority, mutual=False).credentials()
    port = server.add_secure_port("127.0.0.1:0", credentials)
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
def environment(clean_environment: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """To set variables in, beside none of ours."""
    for name in [name for name in os.environ if name.startswith("ORCH_")]:
        monkeypatch.delenv(name)
    return monkeypatch


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
