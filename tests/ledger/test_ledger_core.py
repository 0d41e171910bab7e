"""The rules of the books, without any store."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.ledger.core import (
    AccountId,
    Asset,
    CorrectionRefused,
    Transfer,
    account_owner,
    book,
    supplier_account,
    tenant_account,
    transfer_id_of,
)
from tests.ledger.books import add_up
from tests.receipts.samples import make_receipt

TRANSFERS = st.builds(
    lambda number, tenant, supplier, asset, amount: Transfer(
        transfer_id=transfer_id_of(f"rct_{number}"),
        receipt_id=f"rct_{number}",
        debit_account_id=tenant_account(tenant),
        credit_account_id=supplier_account(supplier),
        asset=Asset(asset),
        amount=amount,
    ),
    st.integers(0, 10**6),
    st.sampled_from(["t1", "t2"]),
    st.sampled_from(["s1", "s2", "s3"]),
    st.sampled_from(["gpu_ms:consumer", "gpu_ms:datacenter"]),
    st.integers(1, 10**12),
)


def test_book_receipt_moves_billed_time_from_tenant_to_supplier() -> None:
    receipt = make_receipt()
    assert book(receipt) == Transfer(
        transfer_id=transfer_id_of(receipt.receipt_id),
        receipt_id=receipt.receipt_id,
        debit_account_id=AccountId(f"tenant:{receipt.tenant_hash}"),
        credit_account_id=AccountId("supplier:sup_1"),
        asset=Asset("gpu_ms:consumer"),
        amount=240_000,
    )


def test_book_two_receipts_give_two_transfer_ids() -> None:
    assert book(make_receipt()).transfer_id != book(make_receipt(sequence=1)).transfer_id


def test_book_correction_is_refused() -> None:
    with pytest.raises(CorrectionRefused):
        book(make_receipt(correction_of="rct_other"))


def test_account_owner_with_colons_is_kept_whole() -> None:
    assert account_owner(supplier_account("a:b")) == "a:b"


@given(st.lists(TRANSFERS, max_size=20), st.randoms(use_true_random=False))
def test_add_up_any_order_gives_the_same_balanced_books(transfers: list[Transfer], order: Random) -> None:
    balances = add_up(transfers)
    shuffled = list(transfers)
    order.shuffle(shuffled)
    assert add_up(shuffled) == balances
    assert sum(balance.debits for balance in balances) == sum(transfer.amount for transfer in transfers)
    assert sum(balance.credits for balance in balances) == sum(transfer.amount for transfer in transfers)
