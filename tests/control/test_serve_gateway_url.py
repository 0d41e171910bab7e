"""The URL by which tenants come, where something stands before the gateway: taken, shown, and answered to."""

from __future__ import annotations

import http.client
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from orchestrator.api.v1 import operator_pb2
from orchestrator.cli.errors import CliError
from orchestrator.cli.serve_settings import read_settings
from tests.control.serving import START_S, refusal, serving

PUBLIC = "https://gpu.example.com"


def status_for_host(local: str, host: str, secret: str) -> int:
    """HTTP status of a request as a proxy hands it on."""
    at = urlsplit(local)
    connection = http.client.HTTPConnection(at.hostname or "", at.port, timeout=START_S)
    try:
        headers = {"Host": host, "Authorization": f"Bearer {secret}"}
        connection.request("GET", "/api/version", headers=headers)
        return connection.getresponse().status
    finally:
        connection.close()


def test_serve_gateway_url_is_shown_to_operators_and_its_host_is_answered(tmp_path: Path) -> None:
    with serving(tmp_path / "data", "--gateway-url", f"{PUBLIC}/") as serve:
        stub, metadata = serve.operator()
        assert stub.GetStatus(operator_pb2.GetStatusRequest(), metadata=metadata).gateway_url == PUBLIC
        local, secret = serve.endpoints["gateway"], serve.tenant_secret()
        assert local.startswith("http://127.0.0.1:"), "programs of this machine come as before"
        assert status_for_host(local, "gpu.example.com", secret) == 200
        assert status_for_host(local, "other.example.com", secret) >= 400
    assert f"RAY_ADDRESS={PUBLIC} " in serve.log.read_text()


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("https://gpu.example.com/", "https://gpu.example.com"),
        ("https://GPU.example.com:8443", "https://gpu.example.com:8443"),
        ("https://[2001:db8::1]:443", "https://[2001:db8::1]:443"),
        ("http://127.0.0.1:8265", "http://127.0.0.1:8265"),
        ("http://localhost", "http://localhost"),
        ("", ""),
    ],
)
def test_settings_gateway_url_is_a_door_of_http(given: str, taken: str) -> None:
    assert read_settings({"gateway_url": given}, None).gateway_url == taken


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("gpu.example.com", "such as https://gpu.example.com is expected"),
        ("ftp://me:hunter2@gpu.example.com", "is expected"),
        ("https://", "is expected"),
        ("https://gpu.example.com:70000", "is expected"),
        ("https://gpu.example.com/ray", "nothing behind"),
        ("https://me:hunter2@gpu.example.com", "nothing behind"),
        ("https://gpu_@.com", "nothing behind|host name"),
        ("http://gpu.example.com", "unencrypted"),
    ],
)
def test_settings_gateway_url_that_is_none_is_named(url: str, words: str) -> None:
    with pytest.raises(CliError, match=words) as caught:
        read_settings({"gateway_url": url}, None)
    assert "--gateway-url" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_settings_gateway_url_in_the_clear_wants_that_said() -> None:
    settings = read_settings({"gateway_url": "http://gpu.internal:8265", "gateway_plain": True}, None)
    assert settings.gateway_url == "http://gpu.internal:8265"


def test_settings_gateway_hosts_are_the_names_and_the_urls() -> None:
    settings = read_settings({"gateway_url": PUBLIC, "gateway_names": ("a.example", "gpu.example.com")}, None)
    assert settings.gateway_hosts == ("a.example", "gpu.example.com")


def test_serve_gateway_url_without_scheme_is_one_line_and_exit_2(tmp_path: Path) -> None:
    assert "ORCH_GATEWAY_URL" in refusal(tmp_path / "data", "--gateway-url", "gpu.example.com")
