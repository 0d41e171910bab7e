"""The independent script that adds postings up again from receipts."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.ledger.core import book
from orchestrator.receipts.bundle import build_bundle
from orchestrator.receipts.receipt import Receipt
from tests.ledger.books import add_up
from tests.receipts.samples import KEYS, make_receipt, minutes, sign_receipt, sign_statement

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "demo" / "readd.py"


def readd(balances: Path, *bundles: Path) -> subprocess.CompletedProcess[str]:
    """Run as anybody would, in a Python that cannot see the project."""
    command = [sys.executable, "-I", "-S", str(SCRIPT), "--balances", str(balances), *map(str, bundles)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=balances.parent)


def write_bundle(folder: Path, receipt: Receipt, name: str) -> Path:
    path = folder / name
    path.write_bytes(build_bundle(sign_receipt(receipt), [sign_statement(said) for said in minutes(2)], KEYS))
    return path


def write_balances(folder: Path, *receipts: Receipt, extra: int = 0) -> Path:
    """What the ledger's own arithmetic makes of the receipts, as `orch ledger balance -o json` prints it."""
    rows = [
        {
            "account_id": balance.account_id,
            "asset": balance.asset,
            "debits": str(balance.debits),
            "credits": str(balance.credits + (extra if balance.credits else 0)),
        }
        for balance in add_up(book(receipt) for receipt in receipts)
    ]
    path = folder / "balances.json"
    path.write_text(json.dumps({"balances": rows}))
    return path


@pytest.fixture
def receipts() -> list[Receipt]:
    return [make_receipt(), make_receipt(lease_id="lse_job_1-1-1", supplier_id="sup_2")]


def test_readd_true_books_agrees(tmp_path: Path, receipts: list[Receipt]) -> None:
    bundles = [write_bundle(tmp_path, receipt, f"{n}.json") for n, receipt in enumerate(receipts)]
    answer = readd(write_balances(tmp_path, *receipts), *bundles)
    assert (answer.returncode, answer.stderr) == (0, "")
    total_ms = sum(receipt.billed_ms for receipt in receipts)
    assert answer.stdout.splitlines()[-1] == f"2 receipts, {total_ms} device-ms: the ledger agrees"


def test_readd_same_receipt_twice_counts_it_once(tmp_path: Path, receipts: list[Receipt]) -> None:
    bundles = [write_bundle(tmp_path, receipts[0], name) for name in ("a.json", "b.json")]
    assert readd(write_balances(tmp_path, receipts[0]), *bundles).returncode == 0


def test_readd_supplier_paid_one_more_differs(tmp_path: Path, receipts: list[Receipt]) -> None:
    bundle = write_bundle(tmp_path, receipts[0], "a.json")
    answer = readd(write_balances(tmp_path, receipts[0], extra=1), bundle)
    assert answer.returncode == 1
    assert f"DIFFERS supplier:{receipts[0].supplier_id}" in answer.stdout


def test_readd_receipt_missing_differs(tmp_path: Path, receipts: list[Receipt]) -> None:
    bundle = write_bundle(tmp_path, receipts[0], "a.json")
    assert readd(write_balances(tmp_path, *receipts), bundle).returncode == 1


def test_readd_empty_ledger_differs(tmp_path: Path, receipts: list[Receipt]) -> None:
    bundle = write_bundle(tmp_path, receipts[0], "a.json")
    assert readd(write_balances(tmp_path), bundle).returncode == 1


@pytest.mark.parametrize(
    ("balances", "complaint"),
    [
        ("not json", "balances.json"),
        ('{"balances": {}}', "a list is expected"),
        (
            '{"balances": [{"account_id": "a", "asset": "b", "debits": 1, "credits": "0"}]}',
            "balances[0].debits",
        ),
        ('{"balances": [{"asset": "b", "debits": "1", "credits": "0"}]}', "balances[0].account_id"),
    ],
)
def test_readd_unreadable_balances_names_the_field(
    tmp_path: Path, receipts: list[Receipt], balances: str, complaint: str
) -> None:
    bundle = write_bundle(tmp_path, receipts[0], "a.json")
    (tmp_path / "balances.json").write_text(balances)
    answer = readd(tmp_path / "balances.json", bundle)
    assert answer.returncode == 2
    assert complaint in answer.stderr
    assert "Traceback" not in answer.stderr


def test_readd_source_imports_standard_library_only() -> None:
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(SCRIPT.read_text()))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported
    assert imported <= sys.stdlib_module_names
