"""`orch serve` as a process: what it loses when killed (nothing), and what it says when it cannot start."""

from __future__ import annotations

import json
import socket
import sqlite3
import stat
import subprocess
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.api.v1 import operator_pb2
from tests.control.serving import START_S, command, environment, serving

JOBS = 20


def test_serve_killed_after_acknowledged_submits_has_them_all_again(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with serving(folder) as serve:
        secret = serve.tenant_secret()
        acknowledged = []
        for number in range(JOBS):
            body: dict[str, object] = {"entrypoint": "true", "submission_id": f"job-{number}"}
            status, _ = serve.http("/api/jobs/", secret, body)
            assert status == 200
            acknowledged.append(f"job-{number}")
        serve.kill()
    with serving(folder) as again:
        status, text = again.http("/api/jobs/", secret)
        assert status == 200
        assert sorted(job["submission_id"] for job in json.loads(text)) == sorted(acknowledged)
        # The same submission again is the same job, not a second one.
        assert again.http("/api/jobs/", secret, {"entrypoint": "true", "submission_id": "job-0"})[0] == 200
        assert again.http("/api/jobs/", secret, {"entrypoint": "no", "submission_id": "job-0"})[0] == 409
        stub, metadata = again.operator()
        answer = stub.GetStatus(operator_pb2.GetStatusRequest(), metadata=metadata)
        assert (answer.term, answer.jobs_by_status["PENDING"]) == (2, JOBS)


def test_serve_answers_at_every_door_and_ends_at_ctrl_c(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with serving(folder) as serve:
        secret = serve.tenant_secret()
        assert serve.http("/api/version", secret)[0] == 200
        assert serve.http("/api/version", "never-issued")[0] == 403
        status, text = serve.http(serve.endpoints["metrics"])
        assert status == 200
        families = {family.name: family for family in text_string_to_metric_families(text.decode())}
        assert {
            "orchestrator_worker_expected_seconds",
            "orchestrator_worker_up_seconds",
            "orchestrator_job_queue_seconds",
            "orchestrator_plan_seconds",
            "orchestrator_receipts",
        } <= families.keys()
        requests = families["orchestrator_gateway_request_seconds"].samples
        assert {sample.labels["status"] for sample in requests} == {"200", "403"}
        for name in ("admin-token", "receipt-key", "master-secret", "control.db", "endpoints.json"):
            assert stat.S_IMODE((folder / name).stat().st_mode) & 0o077 == 0, name
        admin = (folder / "admin-token").read_text().strip()
        assert serve.interrupt() == 0
        said = serve.log.read_text()
    assert all(json.loads(line)["service"] == "control" for line in said.splitlines())
    assert admin not in said
    assert secret not in said


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


@pytest.mark.parametrize("door", ["listen", "gateway", "metrics"])
def test_serve_port_taken_is_one_line_and_exit_2(tmp_path: Path, door: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refusal(tmp_path / "data", f"--{door}", f"127.0.0.1:{port}")
    assert f"--{door}" in said
    assert str(port) in said


def test_serve_data_dir_in_use_is_one_line_and_exit_2(tmp_path: Path) -> None:
    with serving(tmp_path / "data"):
        assert "another `orch serve`" in refusal(tmp_path / "data")


def test_serve_data_dir_that_is_a_file_is_one_line_and_exit_2(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("not a folder")
    assert "--data-dir" in refusal(tmp_path / "data")


def test_serve_newer_schema_is_one_line_and_exit_2_and_untouched(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    with sqlite3.connect(folder / "control.db") as database:
        database.execute("CREATE TABLE control_schema_version (version_num VARCHAR(32) NOT NULL)")
        database.execute("INSERT INTO control_schema_version VALUES ('c9999')")
    database.close()
    assert "newer version" in refusal(folder)
    with sqlite3.connect(folder / "control.db") as database:
        assert database.execute("SELECT version_num FROM control_schema_version").fetchall() == [("c9999",)]
    database.close()


def test_serve_key_that_others_can_read_is_one_line_and_exit_2(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "receipt-key").write_text("00" * 32)
    (folder / "receipt-key").chmod(0o644)
    assert "chmod 600" in refusal(folder)


def test_serve_settings_that_are_wrong_are_one_line_and_exit_2(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    assert "--insecure-lab" in refusal(folder, "--listen", "0.0.0.0:0")
    assert "lease_ttl_ms" in refusal(folder, "--lease-ttl-ms", "100000")
    assert "heartbeat_interval_ms" in refusal(folder, ORCH_HEARTBEAT_INTERVAL_MS="soon")
    config = tmp_path / "orch.toml"
    config.write_text("heartbeat_intervall_ms = 5")
    assert "no such setting" in refusal(folder, "--config", str(config))
    assert not folder.exists()
