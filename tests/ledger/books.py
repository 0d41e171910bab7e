"""The books added up again from their transfers, without the ledger's own store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from orchestrator.ledger.core import AccountId, Asset, Balance, Transfer


def add_up(transfers: Iterable[Transfer]) -> tuple[Balance, ...]:
    """Balances by account and asset, in that order."""
    debits: Counter[tuple[AccountId, Asset]] = Counter()
    credits_: Counter[tuple[AccountId, Asset]] = Counter()
    for one in transfers:
        debits[one.debit_account_id, one.asset] += one.amount
        credits_[one.credit_account_id, one.asset] += one.amount
    return tuple(
        Balance(account_id, asset, debits[account_id, asset], credits_[account_id, asset])
        for account_id, asset in sorted({*debits, *credits_})
    )
