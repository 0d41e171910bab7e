"""What uv is told, and what its refusals mean; its words are recorded from the real one."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.adapters.runtimes import uv_environment
from orchestrator.adapters.runtimes.uv import Answer, explained

CONNECT = """error: Failed to fetch: http://u:secret@127.0.0.1:9/simple/six/
  cause: error sending request for url (http://u:secret@127.0.0.1:9/simple/six/)
  cause: client error (Connect)
  cause: tcp connect error
"""
HASHES = """error: Failed to download `six==1.17.0`
  cause: Hash mismatch for `six==1.17.0`

         Expected:
           sha256:0000
"""
OFFLINE = """error: No solution found when resolving dependencies
  cause: Because six was not found in the cache and you require six==1.17.0
hint: Packages were unavailable because the network was disabled.
"""
ABSENT = "  cause: Because there is no version of six==99.0 and you require six==99.0, we can conclude\n"
SOURCE = "  cause: Because docopt==0.6.2 has no usable wheels and you require docopt==0.6.2\n"
FULL = """error: Failed to install: joblib-1.6.0-py3-none-any.whl (joblib==1.6.0)
  cause: failed to copy file from a to b: No space left on device (os error 28)
"""
DENIED = "  cause: HTTP status client error (401 Unauthorized) for url (https://u:secret@host/simple/six/)\n"
STRANGE = "error: the moon is in the way of https://u:secret@host/simple/\n"


@pytest.mark.parametrize(
    ("said", "means"),
    [
        (CONNECT, "no package index can be reached; connect this machine, or set UV_DEFAULT_INDEX"),
        (OFFLINE, "no package index can be reached"),
        (HASHES, "six==1.17.0 with other bytes than the runtime's lock names"),
        (ABSENT, "lacks a version"),
        (SOURCE, "no ready build for this machine"),
        (FULL, "no space is left for the runtime in /runtimes"),
        (DENIED, "refuses this machine"),
        (STRANGE, "(exit 2): error: the moon is in the way of (an address)"),
    ],
)
def test_refusal_known_says_what_to_do_and_no_address(said: str, means: str) -> None:
    sentence = str(explained(Answer(2, "", said), Path("/runtimes")))
    assert means in sentence
    assert "secret" not in sentence
    assert "\n" not in sentence


def test_environment_passes_on_what_the_index_needs_and_nothing_else_of_ours(tmp_path: Path) -> None:
    given = {
        "HOME": str(tmp_path),
        "SSL_CERT_FILE": "/certificates",
        "UV_INDEX_URL": "https://index/simple",
        "PIP_INDEX_URL": "https://other/simple",
        "ORCH_TOKEN": "secret",
        "RAY_AUTH_TOKEN": "secret",
        "VIRTUAL_ENV": "/venv",
        "UV_PYTHON": "3.9",
    }
    environment = uv_environment(given)
    assert environment["SSL_CERT_FILE"] == "/certificates"
    assert environment["UV_INDEX_URL"] == "https://index/simple"
    assert "UV_DEFAULT_INDEX" not in environment
    assert not {"ORCH_TOKEN", "RAY_AUTH_TOKEN", "VIRTUAL_ENV", "UV_PYTHON"} & environment.keys()


def test_environment_pip_alone_is_set_up_its_index_is_used(tmp_path: Path) -> None:
    settings = tmp_path / "pip.conf"
    settings.write_text("[global]\nindex-url = https://mirror/%40simple\n")
    given = {"HOME": str(tmp_path), "PIP_CONFIG_FILE": str(settings)}
    assert uv_environment(given)["UV_DEFAULT_INDEX"] == "https://mirror/%40simple"
    by_variable = uv_environment({**given, "PIP_INDEX_URL": "https://named/simple"})
    assert by_variable["UV_DEFAULT_INDEX"] == "https://named/simple"
