"""The demo's own judgement and its promise to leave nothing behind."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deploy.local.ports import free_address
from examples.demo.explaining import IMPOSSIBLE, call
from examples.demo.network import MACHINES, child_environment, end
from examples.demo.report import DemoFailed, Outcome, failures
from orchestrator.core.jobs import JobPolicy
from orchestrator.core.requests import parse_conditions
from tests.polling import wait_until

KEYS = [
    "job_status",
    "accuracy",
    "members",
    "receipts",
    "receipts_verified",
    "billed_ms",
    "ledger_balanced",
    "microcredits_per_hour",
    "placement_explained",
    "wait_explained",
    "isolation",
    "seconds",
]
GOOD = Outcome(
    job_status="SUCCEEDED",
    accuracy=0.95,
    members=3,
    receipts=3,
    receipts_verified=3,
    billed_ms=30_000,
    ledger_balanced=True,
    microcredits_per_hour=900_000,
    placement_explained=True,
    wait_explained=True,
    isolation="none",
    seconds=60.0,
)


def judged(outcome: Outcome, *, printed: bool = True) -> list[str]:
    return failures(outcome, printed=printed, wall_ms=10_000, devices=3)


def test_failures_all_holds_none() -> None:
    assert judged(GOOD) == []


@pytest.mark.parametrize(
    "change",
    [
        {"job_status": "FAILED"},
        {"accuracy": 0.89},
        {"members": 1},
        {"receipts": 2, "receipts_verified": 2},
        {"receipts_verified": 2},
        {"billed_ms": 0},
        {"billed_ms": 30_001},
        {"ledger_balanced": False},
        {"placement_explained": False},
        {"wait_explained": False},
    ],
)
def test_failures_each_condition_alone_is_noticed(change: dict[str, Any]) -> None:
    assert len(judged(dataclasses.replace(GOOD, **change))) == 1


def test_failures_output_not_printed_is_noticed() -> None:
    assert len(judged(GOOD, printed=False)) == 1


def test_json_line_has_exactly_the_promised_keys() -> None:
    line = GOOD.json_line()
    assert "\n" not in line
    assert list(json.loads(line)) == KEYS


def test_job_that_has_to_wait_is_a_good_request_for_what_the_demo_does_not_have() -> None:
    wanted = parse_conditions(IMPOSSIBLE, 0, JobPolicy()).requirements
    assert wanted.gpu_model is not None
    assert not any(wanted.gpu_model in one.simulate for one in MACHINES)
    assert wanted.gpus > sum(bool(one.simulate) for one in MACHINES)


def test_call_of_a_gateway_that_is_not_there_says_what_was_asked() -> None:
    with pytest.raises(DemoFailed, match="did not answer /api/version"):
        call(free_address(), "secret", "/api/version")


def test_child_environment_leads_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://elsewhere:1")
    monkeypatch.setenv("ORCH_TOKEN", "somebody-s")
    found = child_environment({"RAY_AUTH_MODE": "token"})
    assert "RAY_ADDRESS" not in found
    assert "ORCH_TOKEN" not in found
    assert found["RAY_AUTH_MODE"] == "token"
    assert "127.0.0.1" in found["NO_PROXY"]


DOCILE = "import signal; print('up', flush=True); signal.pause()"
STUBBORN = f"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); {DOCILE}"


@pytest.mark.parametrize(("source", "code"), [(DOCILE, -signal.SIGINT), (STUBBORN, -signal.SIGKILL)])
def test_end_asks_first_and_then_kills(source: str, code: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", source], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"up\n"
        end([process], grace_s=5.0 if source is DOCILE else 0.2)
    assert process.returncode == code


# A network whose child leaves a grandchild in a session of its own, as Ray's processes do.
ABANDON = """
import subprocess, sys, time
from examples.demo.network import Network
network = Network()
orphan = "[sys.executable, '-c', 'import signal; signal.pause()']"
inner = f"import subprocess, sys; subprocess.Popen({orphan}, start_new_session=True)"
subprocess.run([sys.executable, "-c", inner], check=True)
from orchestrator.adapters.process_tree import descendants
import os
print(network.folder, *descendants({os.getpid()}), flush=True)
network.kill()
"""


@pytest.mark.skipif(
    sys.platform != "linux", reason="ends processes that left their parents, which needs Linux"
)
def test_kill_orphaned_grandchild_and_files_are_gone() -> None:
    root = Path(__file__).resolve().parents[2]
    answer = subprocess.run(
        [sys.executable, "-c", ABANDON],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    folder, *orphans = answer.stdout.split()
    assert len(orphans) == 1
    assert not Path(folder).exists()
    wait_until(lambda: not Path("/proc", orphans[0]).exists(), what="the orphan's end", deadline_s=10)
