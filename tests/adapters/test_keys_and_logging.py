from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.adapters.keys import AdminTokenFile, KeyFileError, Keys
from orchestrator.adapters.log_setup import REDACTED, redact
from orchestrator.receipts.dsse import public_bytes


def test_keys_second_load_has_the_same_secrets(tmp_path: Path) -> None:
    first, again = Keys(tmp_path, founded=False), Keys(tmp_path, founded=False)
    assert public_bytes(first.receipt_key) == public_bytes(again.receipt_key)
    assert first.admin_token == again.admin_token
    assert first.cluster_token("cl_1") == again.cluster_token("cl_1") != first.cluster_token("cl_2")
    assert first.token_secret("p", "req_1") == again.token_secret("p", "req_1")
    assert first.token_secret("p", "req_1") != first.token_secret("p", "req_2")


@pytest.mark.parametrize("content", ["", "zz", "00" * 31])
def test_keys_damaged_file_is_refused_without_its_content(tmp_path: Path, content: str) -> None:
    Keys(tmp_path, founded=False)
    (tmp_path / "master-secret").write_text(content)
    with pytest.raises(KeyFileError, match="backup"):
        Keys(tmp_path, founded=False)


@pytest.mark.parametrize("name", ["receipt-key", "master-secret"])
def test_keys_missing_beside_its_network_is_refused_and_not_made_anew(tmp_path: Path, name: str) -> None:
    Keys(tmp_path, founded=False)
    (tmp_path / name).unlink()
    with pytest.raises(KeyFileError, match=f"{name} is missing"):
        Keys(tmp_path, founded=True)
    assert not (tmp_path / name).exists()


def test_admin_token_of_the_operators_own_has_to_be_long_enough(tmp_path: Path) -> None:
    secret, good = tmp_path / "token", "0123456789abcdef" * 2
    secret.write_text(f"{good}\n")
    assert AdminTokenFile(tmp_path, secret).text == good
    for weak in ("hunter2", f"hunter2.{'x' * 43}", f"{good} hunter2", ""):
        secret.write_text(weak)
        with pytest.raises(KeyFileError, match="--admin-token-file: ") as refused:
            AdminTokenFile(tmp_path, secret)
        assert "hunter2" not in str(refused.value)
    assert not (tmp_path / "admin-token").exists()


def test_redact_secrets_by_name_and_by_text() -> None:
    shown = redact(
        None,
        "info",
        {
            "event": "call with Bearer abcdefghijkl failed",
            "session_token": "abc",
            "token_id": "tok_1",
            "admin_token_file": "/data/admin-token",
            "url": "postgresql://me:hunter2@db/x",
            "metrics": "http://127.0.0.1:9464/metrics",
            "nested": {"authorization": "x", "list": ["orch_tenant_0123456789abcdef"]},
        },
    )
    assert shown == {
        "event": f"call with Bearer {REDACTED} failed",
        "session_token": REDACTED,
        "token_id": "tok_1",
        "admin_token_file": "/data/admin-token",
        "url": f"postgresql://me:{REDACTED}@db/x",
        "metrics": "http://127.0.0.1:9464/metrics",
        "nested": {"authorization": REDACTED, "list": [f"orch_tenant_{REDACTED}"]},
    }
