"""Add the postings up again from receipt bundles, with the standard library only; compare with the ledger.

usage: readd.py --balances BALANCES.json BUNDLE.json…

BALANCES.json is what `orch ledger balance --output json` prints; a bundle is what `orch receipt show ID
--bundle FILE` writes, and should have passed `orch receipt verify`: signatures are not checked here. Nothing
of the project is imported, so that a mistake in its arithmetic cannot hide here too.

A receipt of a tenant's use of a supplier's devices is one transfer of its billed_ms, in the asset
`gpu_ms:<hardware class>`, from `tenant:<tenant hash>` to `supplier:<supplier id>`; a receipt counts once,
however many copies of it there are.

Exit code 0: the books say the same. 1: they do not. 2: something cannot be read.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
from pathlib import Path

DEBIT, CREDIT = 0, 1
Books = dict[tuple[str, str], list[int]]
"""(account, asset) → [debits, credits]."""


class Unreadable(Exception):
    """A file is not what it should be; the message names file and field."""


def amount(value: object, where: str) -> int:
    """A 64-bit integer, which JSON carries as decimal digits in a string."""
    if not isinstance(value, str) or not value.isascii() or not value.isdigit():
        raise Unreadable(f"{where}: a decimal string is expected")
    return int(value)


def text(value: object, where: str) -> str:
    """Text that is not empty."""
    if not isinstance(value, str) or not value:
        raise Unreadable(f"{where}: text is expected")
    return value


def read_json(path: Path) -> dict[str, object]:
    """A JSON object from a file."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise Unreadable(f"{path}: {error}") from None
    if not isinstance(value, dict):
        raise Unreadable(f"{path}: a JSON object is expected")
    return value


def receipt_of(path: Path) -> dict[str, object]:
    """The payload inside the bundle's receipt envelope."""
    envelope = read_json(path).get("receipt")
    if not isinstance(envelope, dict):
        raise Unreadable(f"{path}: receipt: an object is expected")
    try:
        payload = json.loads(
            base64.b64decode(text(envelope.get("payload"), f"{path}: payload"), validate=True)
        )
    except ValueError:
        raise Unreadable(f"{path}: payload: base64 of JSON is expected") from None
    if not isinstance(payload, dict):
        raise Unreadable(f"{path}: payload: a JSON object is expected")
    return payload


def add_up(bundles: list[Path]) -> Books:
    """The books that these receipts make."""
    books: Books = {}
    seen: set[str] = set()
    for path in bundles:
        receipt = receipt_of(path)
        receipt_id = text(receipt.get("receipt_id"), f"{path}: receipt_id")
        if receipt_id in seen:
            continue
        seen.add(receipt_id)
        asset = "gpu_ms:" + text(receipt.get("hardware_class"), f"{path}: hardware_class")
        tenant = "tenant:" + text(receipt.get("tenant_hash"), f"{path}: tenant_hash")
        supplier = "supplier:" + text(receipt.get("supplier_id"), f"{path}: supplier_id")
        billed_ms = amount(receipt.get("billed_ms"), f"{path}: billed_ms")
        books.setdefault((tenant, asset), [0, 0])[DEBIT] += billed_ms
        books.setdefault((supplier, asset), [0, 0])[CREDIT] += billed_ms
    return books


def read_balances(path: Path) -> Books:
    """The books as the ledger tells them; accounts without a movement say nothing."""
    rows = read_json(path).get("balances", [])
    if not isinstance(rows, list):
        raise Unreadable(f"{path}: balances: a list is expected")
    books: Books = {}
    for index, row in enumerate(rows):
        where = f"{path}: balances[{index}]"
        if not isinstance(row, dict):
            raise Unreadable(f"{where}: an object is expected")
        key = (text(row.get("account_id"), f"{where}.account_id"), text(row.get("asset"), f"{where}.asset"))
        if key in books:
            raise Unreadable(f"{where}: {key[0]} is listed twice in {key[1]}")
        books[key] = [amount(row.get(side), f"{where}.{side}") for side in ("debits", "credits")]
    return {key: sides for key, sides in books.items() if any(sides)}


def differences(ours: Books, theirs: Books) -> list[str]:
    """A line for each account on which the two disagree."""
    found = []
    for key in sorted(ours.keys() | theirs.keys()):
        mine, said = ours.get(key, [0, 0]), theirs.get(key, [0, 0])
        if mine != said:
            found.append(
                f"{key[0]} {key[1]}: receipts make debits {mine[DEBIT]}, credits {mine[CREDIT]};"
                f" the ledger says {said[DEBIT]}, {said[CREDIT]}"
            )
    return found


def main(arguments: list[str]) -> int:
    """Compare, print, and say by the exit code whether the books agree."""
    parser = argparse.ArgumentParser(
        description="Add postings up again from receipts; compare with the ledger."
    )
    parser.add_argument(
        "--balances", type=Path, required=True, help="output of `orch ledger balance -o json`"
    )
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    chosen = parser.parse_args(arguments)
    try:
        ours = add_up(chosen.bundles)
        wrong = differences(ours, read_balances(chosen.balances))
    except Unreadable as error:
        print(error, file=sys.stderr)
        return 2
    for (account, asset), (debits, credits_) in sorted(ours.items()):
        print(f"{account} {asset} debits {debits} credits {credits_}")
    for line in wrong:
        print(f"DIFFERS {line}")
    debited = sum(sides[DEBIT] for sides in ours.values())
    verdict = "the ledger differs" if wrong else "the ledger agrees"
    print(f"{len(chosen.bundles)} receipts, {debited} device-ms: {verdict}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
