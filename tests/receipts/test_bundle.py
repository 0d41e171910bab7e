"""Bundles: a true one proves its receipt, and each way to fail has its own exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.receipts import receipt as receipts
from orchestrator.receipts.bundle import (
    BundleError,
    BundleKeyUnknown,
    BundleSignatureBad,
    BundleTypeWrong,
    MalformedBundle,
    ReceiptInconsistent,
    StatementForeign,
    StatementsDoNotCover,
    StatementsMissing,
    build_bundle,
    verify_bundle,
)
from orchestrator.receipts.canonical import canonical_bytes
from orchestrator.receipts.dsse import sign
from orchestrator.receipts.ids import key_id, sha256_hex
from orchestrator.receipts.statement import Statement
from tests.receipts.samples import (
    CONTROL,
    CONTROL_PUBLIC,
    EPOCH,
    KEYS,
    STRANGER,
    WORKER,
    make_bundle,
    make_receipt,
    make_statement,
    minutes,
    sign_receipt,
    sign_statement,
)


def test_verify_bundle_true_one_returns_what_it_proved() -> None:
    found = verify_bundle(make_bundle(), CONTROL_PUBLIC)
    assert found.receipt == make_receipt()
    assert list(found.statements) == minutes(2)
    assert found.control_key_id == key_id(CONTROL_PUBLIC)
    assert found.control_key_trusted


def test_verify_bundle_without_trusted_key_says_so() -> None:
    assert not verify_bundle(make_bundle(), None).control_key_trusted


def test_verify_bundle_reprinted_for_people_still_proves() -> None:
    reprinted = json.dumps(json.loads(make_bundle()), indent=2).encode()
    assert verify_bundle(reprinted, CONTROL_PUBLIC).receipt == make_receipt()


def test_build_bundle_any_order_of_statements_gives_the_same_bytes() -> None:
    said = minutes(3)
    signed = sign_receipt(make_receipt(said))
    forwards = [sign_statement(s) for s in said]
    assert build_bundle(signed, forwards, KEYS) == build_bundle(signed, forwards[::-1], KEYS)


@given(minutes_=st.integers(1, 60), first=st.integers(0, 5), less_ms=st.integers(0, 59_999))
def test_verify_bundle_billed_at_most_what_is_stated_is_proved(
    minutes_: int, first: int, less_ms: int
) -> None:
    said = minutes(first + minutes_)[first:]
    start_ms = EPOCH * receipts.EPOCH_MS
    bundle = make_bundle(said, start_ms=start_ms, end_ms=start_ms + minutes_ * 60_000 - less_ms)
    assert verify_bundle(bundle, CONTROL_PUBLIC).receipt.billed_ms == 2 * (minutes_ * 60_000 - less_ms)


def test_verify_bundle_any_flipped_byte_is_refused() -> None:
    bundle = make_bundle()
    for index in range(len(bundle)):
        flipped = bytearray(bundle)
        flipped[index] ^= 1 << (index % 8)
        for trusted in (CONTROL_PUBLIC, None):
            with pytest.raises(BundleError):
                verify_bundle(bytes(flipped), trusted)


def billing_more_than_stated() -> bytes:
    start_ms = EPOCH * receipts.EPOCH_MS
    return make_bundle(start_ms=start_ms, end_ms=start_ms + 120_001)


def with_gap() -> bytes:
    return make_bundle(
        [make_statement(), make_statement(sequence=1, start_offset_ms=60_001, end_offset_ms=130_000)]
    )


def with_sequence_left_out() -> bytes:
    return make_bundle(
        [make_statement(), make_statement(sequence=2, start_offset_ms=60_000, end_offset_ms=120_000)]
    )


def after_the_final_one() -> bytes:
    return make_bundle([make_statement(final=True), minutes(2)[1]])


def of(**changes: Any) -> bytes:
    return make_bundle(minutes(2, **changes))


def signed_by_stranger_as_worker() -> bytes:
    said = minutes(2)
    return build_bundle(sign_receipt(make_receipt(said)), [sign_statement(s, STRANGER) for s in said], KEYS)


def signed_by_stranger_as_control() -> bytes:
    said = minutes(2)
    signed = sign_receipt(make_receipt(said), STRANGER)
    return build_bundle(signed, [sign_statement(s) for s in said], KEYS)


def one_statement_left_out() -> bytes:
    said = minutes(2)
    return build_bundle(sign_receipt(make_receipt(said)), [sign_statement(said[0])], KEYS)


def one_statement_to_spare() -> bytes:
    return build_bundle(sign_receipt(make_receipt(minutes(2))), [sign_statement(s) for s in minutes(3)], KEYS)


def statement_as_receipt() -> bytes:
    said = [sign_statement(s) for s in minutes(2)]
    return build_bundle(sign_statement(minutes(1)[0], CONTROL), said, KEYS)


def receipt_changed(**changes: str) -> bytes:
    """Well signed by the control plane, but changed after its own checks."""
    payload = canonical_bytes(json.loads(make_receipt().payload()) | changes)
    said = [sign_statement(s) for s in minutes(2)]
    return build_bundle(sign(receipts.PAYLOAD_TYPE, payload, CONTROL), said, KEYS)


def control_signs_for_worker() -> bytes:
    said = minutes(2)
    signed = sign_receipt(make_receipt(said, worker_key_id=key_id(CONTROL_PUBLIC)))
    return build_bundle(signed, [sign_statement(s, CONTROL) for s in said], KEYS)


def bundle_changed(change: Callable[[dict[str, Any]], object]) -> bytes:
    parts = json.loads(make_bundle())
    change(parts)
    return canonical_bytes(parts)


def signature_swapped() -> bytes:
    return bundle_changed(
        lambda b: b["receipt"]["signatures"][0].update(sig=b["statements"][0]["signatures"][0]["sig"])
    )


@pytest.mark.parametrize(
    ("bundle", "error", "exit_code"),
    [
        (lambda: b"", MalformedBundle, 10),
        (lambda: b"[" * 100_000, MalformedBundle, 10),
        (lambda: b"{}", MalformedBundle, 10),
        (lambda: bundle_changed(lambda b: b.update(schema="orchestrator.bundle.v2")), MalformedBundle, 10),
        (lambda: bundle_changed(lambda b: b.update(extra=1)), MalformedBundle, 10),
        (lambda: bundle_changed(lambda b: b.update(receipt=None)), MalformedBundle, 10),
        (lambda: bundle_changed(lambda b: b.update(statements={})), MalformedBundle, 10),
        (lambda: bundle_changed(lambda b: b["statements"].append({})), MalformedBundle, 10),
        (lambda: bundle_changed(lambda b: b["keys"][0].update(public_key="00")), MalformedBundle, 10),
        (lambda: bundle_changed(lambda b: b["keys"][0].update(key_id="key_x")), MalformedBundle, 10),
        (lambda: receipt_changed(epoch="01"), MalformedBundle, 10),
        (lambda: receipt_changed(surprise=""), MalformedBundle, 10),
        (signature_swapped, BundleSignatureBad, 11),
        (signed_by_stranger_as_control, BundleKeyUnknown, 12),
        (signed_by_stranger_as_worker, BundleKeyUnknown, 12),
        (lambda: bundle_changed(lambda b: b["keys"].pop(0)), BundleKeyUnknown, 12),
        (lambda: bundle_changed(lambda b: b["keys"].clear()), BundleKeyUnknown, 12),
        (lambda: receipt_changed(billed_ms="240001"), ReceiptInconsistent, 13),
        (lambda: receipt_changed(sequence="7"), ReceiptInconsistent, 13),
        (control_signs_for_worker, ReceiptInconsistent, 13),
        (billing_more_than_stated, StatementsDoNotCover, 14),
        (with_gap, StatementsDoNotCover, 14),
        (with_sequence_left_out, StatementsDoNotCover, 14),
        (after_the_final_one, StatementsDoNotCover, 14),
        (statement_as_receipt, BundleTypeWrong, 15),
        (one_statement_left_out, StatementsMissing, 16),
        (one_statement_to_spare, StatementsMissing, 16),
        (lambda: bundle_changed(lambda b: b["statements"].reverse()), StatementsMissing, 16),
        (lambda: of(lease_id="lse_other"), StatementForeign, 17),
        (lambda: of(worker_id="wrk_other"), StatementForeign, 17),
        (lambda: of(network_id="net_other"), StatementForeign, 17),
        (lambda: of(job_id="job_other"), StatementForeign, 17),
        (lambda: of(attempt_id="job_1-2"), StatementForeign, 17),
        (lambda: of(device_ids=("GPU-a",)), StatementForeign, 17),
        (lambda: of(device_ids=("GPU-a", "GPU-c")), StatementForeign, 17),
    ],
)
def test_verify_bundle_untrue_one_is_refused_with_its_exit_code(
    bundle: Callable[[], bytes], error: type[BundleError], exit_code: int
) -> None:
    with pytest.raises(error) as caught:
        verify_bundle(bundle(), CONTROL_PUBLIC)
    assert caught.value.exit_code == exit_code


def test_bundle_errors_exit_codes_are_one_per_failure() -> None:
    codes = [error.exit_code for error in BundleError.__subclasses__()]
    assert sorted(codes) == list(range(10, 10 + len(codes)))


def test_build_bundle_key_not_given_is_refused() -> None:
    said: list[Statement] = minutes(2)
    with pytest.raises(BundleKeyUnknown):
        build_bundle(
            sign_receipt(make_receipt(said)),
            [sign_statement(s) for s in said],
            {key_id(CONTROL_PUBLIC): CONTROL_PUBLIC},
        )


def test_build_bundle_garbage_is_refused() -> None:
    with pytest.raises(MalformedBundle):
        build_bundle(b"garbage", [], KEYS)
    with pytest.raises(MalformedBundle):
        build_bundle(sign_receipt(make_receipt()), [sign("x", b"garbage", WORKER)], KEYS)


def test_verify_bundle_digest_is_of_the_payload_alone() -> None:
    said = minutes(2)
    assert make_receipt(said).statement_digests == tuple(sha256_hex(s.payload()) for s in said)
