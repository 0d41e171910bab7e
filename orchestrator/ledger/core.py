"""The rules of the books: who owes whom how much of what, for one receipt. Pure.

A receipt moves device-milliseconds of one hardware class from the tenant who used them to the supplier who
gave them. An account's balance is nothing but the sum of its entries, so any order of posting gives the same
books, and anyone can add them up again from the receipts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NewType

from orchestrator.receipts.ids import ID_HEX_CHARACTERS, sha256_hex
from orchestrator.receipts.receipt import Receipt

AccountId = NewType("AccountId", str)
Asset = NewType("Asset", str)
TransferId = NewType("TransferId", str)


class CorrectionRefused(ValueError):
    """The receipt corrects another; booking it beside that one would pay twice."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """``amount`` of ``asset``, always positive, from the debited account to the credited one."""

    transfer_id: TransferId
    receipt_id: str
    debit_account_id: AccountId
    credit_account_id: AccountId
    asset: Asset
    amount: int


@dataclass(frozen=True, slots=True, order=True)
class Balance:
    """Everything ever debited from and credited to one account in one asset."""

    account_id: AccountId
    asset: Asset
    debits: int
    credits: int


def supplier_account(supplier_id: str) -> AccountId:
    """What a supplier gave is credited here."""
    return AccountId(f"supplier:{supplier_id}")


def tenant_account(tenant_hash: str) -> AccountId:
    """What a tenant used is debited here."""
    return AccountId(f"tenant:{tenant_hash}")


def account_owner(account_id: AccountId) -> str:
    """The supplier's id or the tenant's hash: what follows the kind of account."""
    return account_id.partition(":")[2]


def gpu_ms_asset(hardware_class: str) -> Asset:
    """Device-milliseconds of one hardware class; classes are never added to each other."""
    return Asset(f"gpu_ms:{hardware_class}")


def transfer_id_of(receipt_id: str) -> TransferId:
    """One receipt, one transfer, one id, however often it is posted."""
    return TransferId("trf_" + sha256_hex(receipt_id.encode())[:ID_HEX_CHARACTERS])


def book(receipt: Receipt) -> Transfer:
    """What a consistent receipt does to the books. Raises CorrectionRefused for corrections."""
    if receipt.correction_of:
        raise CorrectionRefused("these books take no corrections; they are booked by a later version")
    return Transfer(
        transfer_id=transfer_id_of(receipt.receipt_id),
        receipt_id=receipt.receipt_id,
        debit_account_id=tenant_account(receipt.tenant_hash),
        credit_account_id=supplier_account(receipt.supplier_id),
        asset=gpu_ms_asset(receipt.hardware_class),
        amount=receipt.billed_ms,
    )
