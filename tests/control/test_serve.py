"""`orch serve` as a process: what it loses when killed (nothing), and what it says when it cannot start."""

from __future__ import annotations

import json
import socket
import sqlite3
import ssl
import stat
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.api.v1 import operator_pb2
from orchestrator.cli.errors import CliError
from orchestrator.cli.gateway_tls import check_gateway
from orchestrator.cli.serve_settings import listen_address, read_settings, warn_of_password
from orchestrator.core.supply.fleet import FleetPolicy
from tests.control.serving import START_S, refusal, serving

JOBS = 20
EVERYWHERE = "0.0.0.0:0"


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
        status, text = serve.metrics()
        assert status == 200
        families = {family.name: family for family in text_string_to_metric_families(text.decode())}
        assert {
            "orchestrator_workers",
            "orchestrator_job_queue_seconds",
            "orchestrator_plan_seconds",
            "orchestrator_receipts",
        } <= families.keys()
        requests = families["orchestrator_gateway_request_seconds"].samples
        assert {sample.labels["status"] for sample in requests} == {"200", "403"}
        for name in (
            "admin-token",
            "metrics-token",
            "receipt-key",
            "master-secret",
            "control.db",
            "endpoints.json",
        ):
            assert stat.S_IMODE((folder / name).stat().st_mode) & 0o077 == 0, name
        admin = (folder / "admin-token").read_text().strip()
        assert serve.interrupt() == 0
        said = serve.log.read_text()
    assert all(json.loads(line)["service"] == "control" for line in said.splitlines())
    assert admin not in said
    assert secret not in said


def test_serve_metrics_want_their_token_and_readiness_wants_none(tmp_path: Path) -> None:
    token = tmp_path / "prometheus-token"
    token.write_text("from-a-secret\n")
    with serving(tmp_path / "data", "--metrics-token-file", str(token)) as serve:
        assert serve.endpoints["metrics_token_file"] == str(token)
        assert serve.metrics()[0] == 200
        status, said = serve.http(serve.endpoints["metrics"])
        assert status == 401
        assert str(token) in said.decode()
        root = serve.endpoints["metrics"].removesuffix("/metrics")
        assert serve.http(f"{root}/readyz") == (200, b"ready\n")
        assert serve.http(f"{root}/healthz") == (200, b"alive\n")
        assert not (tmp_path / "data" / "metrics-token").exists()


def test_serve_metrics_token_file_that_is_missing_is_one_line_and_exit_2(tmp_path: Path) -> None:
    said = refusal(tmp_path / "data", "--metrics-token-file", str(tmp_path / "none"))
    assert f"--metrics-token-file: cannot read {tmp_path / 'none'}: no such file" in said


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


@pytest.mark.parametrize("name", ["receipt-key", "master-secret"])
def test_serve_key_missing_beside_its_network_is_one_line_and_exit_2_and_not_made_anew(
    tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "data"
    with serving(folder) as serve:
        serve.kill()
    (folder / name).unlink()
    said = refusal(folder)
    assert f"{name} is missing" in said
    assert "backup" in said
    assert not (folder / name).exists()


def test_serve_database_that_cannot_be_written_is_named_in_one_line_and_exit_2(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with serving(folder) as serve:
        serve.kill()
    said = refusal(folder, "--database-url", f"sqlite:///file:{folder / 'control.db'}?mode=ro&uri=true")
    assert "control.db" in said
    assert "cannot be written" in said


@pytest.mark.parametrize("url", ["mysql://me:hunter2@db/x", "hunter2", "sqlite+nope:///x"])
def test_serve_database_of_another_kind_is_one_line_and_exit_2(tmp_path: Path, url: str) -> None:
    said = refusal(tmp_path / "data", ORCH_DATABASE_URL=url)
    assert "ORCH_DATABASE_URL" in said
    assert "hunter2" not in said


def test_serve_database_driver_missing_is_one_line_and_exit_2(tmp_path: Path) -> None:
    absent = tmp_path / "psycopg2.py"
    absent.write_text("raise ModuleNotFoundError('none here', name='psycopg2')")
    said = refusal(
        tmp_path / "data", ORCH_DATABASE_URL="postgresql+psycopg2://db/x", PYTHONPATH=str(tmp_path)
    )
    assert "--database-url" in said
    assert "psycopg2 is not installed" in said


def test_serve_gateway_that_others_reach_in_the_clear_is_refused_before_anything_is_made(
    tmp_path: Path,
) -> None:
    said = refusal(tmp_path / "data", "--gateway", "0.0.0.0:0")
    assert all(way in said for way in ("--gateway-certificate", "--gateway-tls own", "--gateway-plain"))
    assert not (tmp_path / "data").exists()


def test_serve_own_certificate_for_every_address_without_a_name_is_refused(tmp_path: Path) -> None:
    said = refusal(tmp_path / "data", "--gateway", "[::]:0", "--gateway-tls", "own")
    assert "add --gateway-name" in said
    assert not (tmp_path / "data").exists()


def test_serve_certificate_that_is_missing_is_one_line_and_exit_2(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.pem")
    said = refusal(tmp_path / "data", "--gateway-certificate", missing, "--gateway-key", missing)
    assert "--gateway-certificate" in said
    assert f"cannot read {missing}: no such file" in said


def test_serve_every_door_open_to_others_needs_no_flag_but_the_gateways(tmp_path: Path) -> None:
    doors = [
        word
        for name in ("listen", "session-listen", "gateway", "metrics")
        for word in (f"--{name}", EVERYWHERE)
    ]
    with serving(tmp_path / "data", *doors, "--gateway-plain", "--gateway-name", "127.0.0.1") as serve:
        assert serve.endpoints["gateway"].startswith("http://127.0.0.1:")
        assert serve.http("/api/version", serve.tenant_secret())[0] == 200


def test_serve_own_certificate_is_trusted_by_the_authoritys_file_under_each_name(tmp_path: Path) -> None:
    own = ("--gateway", EVERYWHERE, "--gateway-tls", "own", "--gateway-name", "tenants.example")
    with serving(tmp_path / "data", *own) as serve:
        url = urlsplit(serve.endpoints["gateway"])
        assert (url.scheme, url.hostname) == ("https", "tenants.example")
        trusting = ssl.create_default_context(cafile=serve.endpoints["ca_file"])
        # What newer versions of Python ask of every certificate.
        trusting.verify_flags |= ssl.VERIFY_X509_STRICT
        for name in ("tenants.example", "127.0.0.1", "localhost"):
            with (
                socket.create_connection(("127.0.0.1", url.port or 0), START_S) as plain,
                trusting.wrap_socket(plain, server_hostname=name) as shown,
            ):
                shown.sendall(f"GET /api/version HTTP/1.0\r\nHost: {name}\r\n\r\n".encode())
                assert b" 401 " in shown.recv(1024)
        assert stat.S_IMODE((serve.folder / "gateway.pem").stat().st_mode) == 0o600
        assert serve.interrupt() == 0


def test_settings_flag_over_variable_over_file_over_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "orch.toml"
    config.write_text("heartbeat_interval_ms = 1000\nidle_teardown_ms = 2000\nstatement_interval_ms = 3000")
    monkeypatch.setenv("ORCH_IDLE_TEARDOWN_MS", "4000")
    monkeypatch.setenv("ORCH_STATEMENT_INTERVAL_MS", "5000")
    policies = read_settings({"statement_interval_ms": 6000}, config).policies
    assert policies.fleet.heartbeat_interval_ms == 1000
    assert policies.clusters.idle_teardown_ms == 4000
    assert policies.metering.statement_interval_ms == 6000
    assert policies.fleet.lease_ttl_ms == FleetPolicy().lease_ttl_ms


@pytest.mark.parametrize(
    ("flags", "text", "expected"),
    [
        ({"lease_ttl_ms": 100_000}, "", "lease_ttl_ms"),
        ({"heartbeat_interval_ms": "soon"}, "", "--heartbeat-interval-ms or ORCH_HEARTBEAT_INTERVAL_MS"),
        ({}, "heartbeat_intervall_ms = 5", "no such setting"),
        ({}, "no toml", "is no TOML"),
        ({"gateway_key": "a"}, "", "go together"),
        ({"gateway_tls": "own", "gateway_plain": True}, "", "give one of"),
        ({"gateway_tls": "others"}, "", "--gateway-tls or ORCH_GATEWAY_TLS"),
        ({"gateway_names": ("a:1",)}, "", "--gateway-name or ORCH_GATEWAY_NAMES"),
        ({"gateway_names": ("fe80::1%eth0",)}, "", "without a port"),
        ({}, "gateway_names = 1", "gateway_names"),
        ({}, "insecure_lab = true", "no such setting"),
    ],
)
def test_settings_wrong_value_is_named(
    tmp_path: Path, flags: dict[str, object], text: str, expected: str
) -> None:
    config = tmp_path / "orch.toml"
    config.write_text(text)
    with pytest.raises(CliError, match=expected) as caught:
        read_settings(flags, config)
    assert caught.value.exit_code == 2


def test_settings_gateway_names_come_from_a_variable_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCH_GATEWAY_NAMES", "Tenants.example, [2001:DB8::1],10.0.0.1")
    assert read_settings({}, None).gateway_names == ("tenants.example", "2001:db8::1", "10.0.0.1")


def test_settings_private_webhooks_are_off_unless_said() -> None:
    assert not read_settings({}, None).private_webhooks
    assert read_settings({"private_webhooks": True}, None).private_webhooks


def test_settings_database_password_is_not_shown() -> None:
    settings = read_settings({"database_url": "postgresql://me:hunter2@db/x"}, None)
    assert "hunter2" not in repr(settings)


@pytest.mark.parametrize("url", ["postgresql://me:hunter2@db/x", "postgresql://db/x?password=hunter2"])
def test_warn_of_password_on_the_command_line_says_where_to_put_it(
    capsys: pytest.CaptureFixture[str], url: str
) -> None:
    warn_of_password(url)
    said = capsys.readouterr().err
    assert "ORCH_DATABASE_URL" in said
    assert "hunter2" not in said


@pytest.mark.parametrize("url", [None, "sqlite:////data/x.db", "postgresql://me@db/x"])
def test_warn_of_password_none_is_silent(capsys: pytest.CaptureFixture[str], url: str | None) -> None:
    warn_of_password(url)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("text", ["7443", "host", "127.0.0.1:70000", "http://127.0.0.1:1"])
def test_listen_address_no_address_is_named(text: str) -> None:
    with pytest.raises(CliError, match="--gateway"):
        listen_address("gateway", text)


@pytest.mark.parametrize("text", ["127.0.0.1:0", "127.0.0.2:1", "[::1]:2", "localhost:3"])
def test_listen_address_loopback_in_each_form_is_known_as_such(text: str) -> None:
    address = listen_address("listen", text)
    assert address.loopback
    assert address.with_port(9) == f"{text[:-2]}:9"


@pytest.mark.parametrize("text", ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "0:1", "gateway.example:1"])
def test_check_gateway_address_of_others_needs_a_way(text: str) -> None:
    at = listen_address("gateway", text)
    with pytest.raises(CliError, match="--gateway-plain"):
        check_gateway(read_settings({"gateway": text}, None), at)
    check_gateway(read_settings({"gateway": text, "gateway_plain": True}, None), at)
    pair = {"gateway_certificate": "a.pem", "gateway_key": "b.pem"}
    check_gateway(read_settings({"gateway": text, **pair}, None), at)
