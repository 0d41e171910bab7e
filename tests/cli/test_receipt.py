"""`orch receipt`: fetched, written, and verified offline; a changed bundle never passes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Orch
from tests.cli.control import lines_with
from tests.receipts.samples import CONTROL_PUBLIC, WORKER_PUBLIC, make_bundle, make_receipt

KEY = CONTROL_PUBLIC.hex()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = tmp_path / "bundle.json"
    path.write_bytes(make_bundle())
    return path


def tampered(path: Path, name: str) -> Path:
    """The same bundle with one character of the receipt's signature changed."""
    value = json.loads(path.read_bytes())
    signature = value["receipt"]["signatures"][0]["sig"]
    value["receipt"]["signatures"][0]["sig"] = ("B" if signature[0] == "A" else "A") + signature[1:]
    other = path.with_name(name)
    other.write_text(json.dumps(value))
    return other


def test_verify_true_bundle_needs_neither_token_nor_network(orch: Orch, bundle: Path) -> None:
    answer = orch("receipt", "verify", str(bundle), "--key", KEY)
    assert (answer.code, answer.err) == (0, "")
    assert lines_with(answer.out, "OK", make_receipt().receipt_id)
    assert len(answer.out.splitlines()) == 1


def test_verify_key_from_a_file(orch: Orch, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY + "\n")
    assert orch("receipt", "verify", str(bundle), "--key", str(tmp_path / "key")).code == 0


def test_verify_without_key_says_what_that_proves(orch: Orch, bundle: Path) -> None:
    answer = orch("receipt", "verify", str(bundle))
    assert answer.code == 0
    assert "--key" in answer.err
    assert "not pinned" in answer.out


def test_verify_tampered_bundle_fails_with_its_code_and_the_rest_is_still_checked(
    orch: Orch, bundle: Path
) -> None:
    answer = orch("receipt", "verify", str(tampered(bundle, "bad.json")), str(bundle), "--key", KEY)
    assert answer.code == 11
    bad, good = answer.out.splitlines()
    assert "FAILED" in bad
    assert "OK" in good


def test_verify_foreign_key_fails_as_unknown(orch: Orch, bundle: Path) -> None:
    assert orch("receipt", "verify", str(bundle), "--key", WORKER_PUBLIC.hex()).code == 12


def test_verify_no_json_fails_as_malformed(orch: Orch, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xff\x00")
    assert orch("receipt", "verify", str(tmp_path / "x"), "--key", KEY).code == 10


@pytest.mark.parametrize("key", ["abcd", "z" * 64, "/nowhere/key"])
def test_verify_bad_key_is_a_usage_error(orch: Orch, bundle: Path, key: str) -> None:
    answer = orch("receipt", "verify", str(bundle), "--key", key)
    assert answer.code == 2
    assert "--key" in answer.err


def test_verify_absent_file_is_a_usage_error(orch: Orch, tmp_path: Path) -> None:
    answer = orch("receipt", "verify", str(tmp_path / "nowhere.json"), "--key", KEY)
    assert answer.code == 2
    assert "nowhere.json: no such file" in answer.err


def test_show_checks_against_the_control_plane_s_key(admin: Orch) -> None:
    out = admin("receipt", "show", "rct_1").out
    assert lines_with(out, "verified", "yes")
    assert lines_with(out, "devices", "(simulated)") or not make_receipt().simulated


def test_show_bundle_written_to_file_verifies(admin: Orch, tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    assert admin("receipt", "show", "rct_1", "--bundle", str(path)).code == 0
    assert path.read_bytes() == make_bundle()
    assert admin("receipt", "verify", str(path), "--key", KEY).code == 0


def test_list_billed_time_is_exact(admin: Orch) -> None:
    assert lines_with(admin("receipt", "list").out, "rct_1", "61.005 s", "posted")
