"""Statements and receipts: exact round trips, and every untruth refused by the name of its field."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.receipts.canonical import CanonicalError, canonical_bytes
from orchestrator.receipts.ids import key_id, receipt_id, tenant_hash
from orchestrator.receipts.receipt import EPOCH_MS, Receipt, parse_receipt
from orchestrator.receipts.record import AMOUNT_MAX, LIST_ITEMS_MAX, FieldError, Inconsistent
from orchestrator.receipts.statement import Statement, parse_statement
from tests.receipts.samples import EPOCH, make_receipt, make_statement

IDS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=40)
DEVICES = st.lists(IDS, min_size=1, max_size=8, unique=True).map(tuple)
AMOUNTS = st.integers(0, AMOUNT_MAX)
DIGESTS = st.binary(min_size=32, max_size=32).map(bytes.hex)


@st.composite
def statements(draw: st.DrawFn) -> Statement:
    sequence = draw(AMOUNTS)
    start_ms = draw(AMOUNTS) if sequence else 0
    return make_statement(
        network_id=draw(IDS),
        lease_id=draw(IDS),
        device_ids=draw(DEVICES),
        sequence=sequence,
        start_offset_ms=start_ms,
        end_offset_ms=draw(st.integers(start_ms, AMOUNT_MAX)),
        final=draw(st.booleans()),
        heartbeats_acknowledged=draw(AMOUNTS),
    )


@st.composite
def receipts(draw: st.DrawFn) -> Receipt:
    epoch = draw(st.integers(0, 10_000_000))
    start_ms = epoch * EPOCH_MS + draw(st.integers(0, EPOCH_MS - 1))
    return make_receipt(
        network_id=draw(IDS),
        lease_id=draw(IDS),
        prev_hash=draw(st.just("") | DIGESTS),
        fence_term=draw(AMOUNTS),
        device_ids=draw(DEVICES),
        epoch=epoch,
        sequence=draw(AMOUNTS),
        start_ms=start_ms,
        end_ms=draw(st.integers(start_ms + 1, (epoch + 1) * EPOCH_MS)),
        simulated=draw(st.booleans()),
        challenge_digests=draw(st.lists(DIGESTS, max_size=3).map(tuple)),
        statement_digests=draw(st.lists(DIGESTS, min_size=1, max_size=5, unique=True).map(tuple)),
        issued_at_ms=draw(AMOUNTS),
    )


@given(statements())
def test_statement_payload_comes_back(statement: Statement) -> None:
    assert parse_statement(statement.payload()) == statement


@given(receipts())
def test_receipt_payload_comes_back(receipt: Receipt) -> None:
    assert parse_receipt(receipt.payload()) == receipt


def test_receipt_payload_holds_no_number() -> None:
    values = json.loads(make_receipt().payload())
    assert not [name for name, value in values.items() if type(value) in (int, float)]
    assert values["billed_ms"] == "240000"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"schema": "orchestrator.receipt.v2"}, "schema"),
        ({"network_id": ""}, "network_id"),
        ({"lease_id": "with space"}, "lease_id"),
        ({"supplier_id": "s\u00fcp"}, "supplier_id"),
        ({"worker_id": "x" * 201}, "worker_id"),
        ({"tenant_hash": "A" * 64}, "tenant_hash"),
        ({"prev_hash": "0" * 63}, "prev_hash"),
        ({"price_policy_hash": ""}, "price_policy_hash"),
        ({"correction_of": " "}, "correction_of"),
        ({"challenge_digests": ("x",)}, "challenge_digests"),
        ({"statement_digests": ("x",)}, "statement_digests"),
        ({"hardware_class": "Consumer"}, "hardware_class"),
        ({"hardware_class": "a:b"}, "hardware_class"),
        ({"evidence_class": "T4"}, "evidence_class"),
        ({"device_models": ("model\n", "model")}, "device_models"),
        ({"fence_term": -1}, "fence_term"),
        ({"issued_at_ms": AMOUNT_MAX + 1}, "issued_at_ms"),
        ({"heartbeats_received": 1.5}, "heartbeats_received"),
        ({"challenge_digests": ("0" * 64,) * (LIST_ITEMS_MAX + 1)}, "challenge_digests"),
    ],
)
def test_receipt_malformed_field_is_not_signed(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(FieldError) as caught:
        dataclasses.replace(make_receipt(), **changes).payload()
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: ")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"receipt_id": "rct_" + "0" * 40}, "receipt_id"),
        ({"sequence": 1}, "receipt_id"),
        ({"epoch": EPOCH + 1}, "epoch"),
        ({"end_ms": EPOCH * EPOCH_MS}, "end_ms"),
        ({"start_ms": EPOCH * EPOCH_MS + 120_000}, "end_ms"),
        ({"end_ms": (EPOCH + 1) * EPOCH_MS + 1}, "end_ms"),
        ({"billed_ms": 240_001}, "billed_ms"),
        ({"billed_ms": 120_000}, "billed_ms"),
        ({"idle_ms": 240_001}, "idle_ms"),
        ({"device_ids": (), "device_models": ()}, "device_ids"),
        ({"device_ids": ("GPU-a", "GPU-a")}, "device_ids"),
        ({"device_models": ("one",)}, "device_models"),
        ({"statement_digests": ()}, "statement_digests"),
        ({"statement_digests": ("0" * 64, "0" * 64)}, "statement_digests"),
    ],
)
def test_receipt_that_contradicts_itself_is_refused(changes: dict[str, Any], field: str) -> None:
    untrue = dataclasses.replace(make_receipt(), **changes)
    with pytest.raises(Inconsistent) as caught:
        untrue.payload()
    assert caught.value.field == field
    with pytest.raises(Inconsistent):
        parse_receipt(canonical_bytes(as_json(untrue)))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"member_id": ""}, "member_id"),
        ({"device_ids": ("GPU a",)}, "device_ids"),
        ({"device_ids": ("GPU-a", "GPU-a")}, "device_ids"),
        ({"sequence": -1}, "sequence"),
        ({"sequence": 1, "start_offset_ms": 60_001}, "end_offset_ms"),
        ({"start_offset_ms": 1}, "start_offset_ms"),
    ],
)
def test_statement_untrue_field_is_not_signed(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(FieldError) as caught:
        make_statement(**changes).payload()
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"surprise": "x"}, "surprise"),
        ({"sequence": 0}, "sequence"),
        ({"sequence": "00"}, "sequence"),
        ({"sequence": "-1"}, "sequence"),
        ({"sequence": "1e3"}, "sequence"),
        ({"sequence": "9" * 5000}, "sequence"),
        ({"sequence": str(AMOUNT_MAX + 1)}, "sequence"),
        ({"sequence": "\u0663"}, "sequence"),
        ({"final": "true"}, "final"),
        ({"final": None}, "final"),
        ({"final": 1}, "final"),
        ({"device_ids": "GPU-a"}, "device_ids"),
        ({"device_ids": [1]}, "device_ids"),
        ({"device_ids": ["x"] * (LIST_ITEMS_MAX + 1)}, "device_ids"),
        ({"lease_id": ["x"]}, "lease_id"),
    ],
)
def test_parse_statement_mistyped_field_is_refused_by_name(changes: dict[str, Any], field: str) -> None:
    payload = canonical_bytes(json.loads(make_statement().payload()) | changes)
    with pytest.raises(FieldError) as caught:
        parse_statement(payload)
    assert caught.value.field == field


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Receipt)])
def test_parse_receipt_missing_field_is_refused_by_name(name: str) -> None:
    values = json.loads(make_receipt().payload())
    del values[name]
    with pytest.raises(FieldError) as caught:
        parse_receipt(canonical_bytes(values))
    assert caught.value.field == name
    assert caught.value.reason == "missing"


@pytest.mark.parametrize("payload", [b"[]", b'"text"', b"null"])
def test_parse_receipt_no_object_is_refused(payload: bytes) -> None:
    with pytest.raises(FieldError):
        parse_receipt(payload)


def test_parse_receipt_other_spelling_is_refused() -> None:
    payload = make_receipt().payload()
    with pytest.raises(CanonicalError):
        parse_receipt(payload + b"\n")
    with pytest.raises(CanonicalError):
        parse_receipt(payload[:-1] + b',"epoch":"1"}')


def test_receipt_id_differs_in_each_part_and_by_where_parts_end() -> None:
    made = {
        receipt_id("n", "l", 1, 23),
        receipt_id("n", "l", 12, 3),
        receipt_id("nl", "", 1, 23),
        receipt_id("n", "m", 1, 23),
        receipt_id("m", "l", 1, 23),
    }
    assert len(made) == 5
    assert receipt_id("n", "l", 1, 23) in made


def test_ids_known_answers() -> None:
    # As the sha256sum tool gives them for 32 zero bytes, and for the JSON that the docstrings name.
    assert key_id(bytes(32)) == "key_66687aadf862bd776c8fc18b8e9f8e2008971485"
    assert receipt_id("net", "lse_1", 490_000, 0) == "rct_ecdaeedf7c681022bb90a29d18358798b78acc8a"
    assert tenant_hash("net", "ten_1") == "ea95b77601cdf3cbc66f0718505c42fca1c5c9c4ecd108baa1a0f82957b255c4"


def as_json(receipt: Receipt) -> dict[str, object]:
    """The receipt's JSON object, made without asking whether it is true."""
    return {
        name: list(value) if isinstance(value, tuple) else value if isinstance(value, bool) else str(value)
        for name, value in dataclasses.asdict(receipt).items()
    }
