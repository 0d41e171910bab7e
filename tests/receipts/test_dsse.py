"""Envelopes: what is signed is known, what is changed is refused."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.receipts.canonical import canonical_bytes
from orchestrator.receipts.dsse import (
    PAYLOAD_BYTES_MAX,
    BadSignature,
    EnvelopeError,
    MalformedEnvelope,
    UnknownKey,
    WrongType,
    claimed_key_id,
    open_envelope,
    pae,
    public_bytes,
    sign,
)
from orchestrator.receipts.ids import key_id
from tests.receipts.samples import CONTROL, CONTROL_PUBLIC, STRANGER, private_key

TYPE = "application/vnd.test+json"
CONTROL_KEYS = {key_id(CONTROL_PUBLIC): CONTROL_PUBLIC}


def opened(envelope: bytes) -> bytes:
    return open_envelope(envelope, TYPE, CONTROL_KEYS)


def changed(**changes: Any) -> bytes:
    return canonical_bytes(json.loads(sign(TYPE, b"hello", CONTROL)) | changes)


def test_pae_known_answer_from_the_specification() -> None:
    expected = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    assert pae("http://example.com/HelloWorld", b"hello world") == expected


def test_pae_lengths_count_bytes_not_characters() -> None:
    assert pae("\u20ac", "\u20ac\u20ac".encode()) == b"DSSEv1 3 \xe2\x82\xac 6 \xe2\x82\xac\xe2\x82\xac"


def test_sign_known_key_gives_known_envelope() -> None:
    # The first key pair of RFC 8032, 7.1.
    seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    key = Ed25519PrivateKey.from_private_bytes(seed)
    public = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
    assert public_bytes(key) == public
    envelope = json.loads(sign(TYPE, b"hello", key))
    assert envelope["payload"] == "aGVsbG8="
    assert envelope["signatures"][0]["keyid"] == "key_21fe31dfa154a261626bf854046fd2271b7bed4b"
    key.public_key().verify(base64.b64decode(envelope["signatures"][0]["sig"]), pae(TYPE, b"hello"))


@given(st.binary(max_size=200), st.text("abc/+.", min_size=1, max_size=20), st.text(max_size=5))
def test_open_envelope_signed_payload_comes_back_exactly(payload: bytes, kind: str, seed: str) -> None:
    key = private_key(repr(seed))
    envelope = sign(kind, payload, key)
    public = public_bytes(key)
    assert open_envelope(envelope, kind, {key_id(public): public}) == payload
    assert claimed_key_id(envelope) == key_id(public)
    assert sign(kind, payload, key) == envelope


def test_open_envelope_any_bit_of_any_byte_flipped_is_refused() -> None:
    # Each length modulo 3: base64 with two, one and no padding characters, so with unused trailing bits.
    for payload in (b'{"a":1}', b'{"a":12}', b'{"a":123}'):
        envelope = sign(TYPE, payload, CONTROL)
        for index in range(len(envelope)):
            for bit in range(8):
                flipped = bytearray(envelope)
                flipped[index] ^= 1 << bit
                with pytest.raises(EnvelopeError):
                    opened(bytes(flipped))


@given(st.data())
def test_open_envelope_cut_or_grown_is_refused(data: st.DataObject) -> None:
    envelope = sign(TYPE, b"hello", CONTROL)
    start = data.draw(st.integers(0, len(envelope)))
    end = data.draw(st.integers(start, len(envelope)))
    put = data.draw(st.binary(max_size=8))
    torn = envelope[:start] + put + envelope[end:]
    if torn != envelope:
        with pytest.raises(EnvelopeError):
            opened(torn)


def test_open_envelope_other_type_is_refused() -> None:
    with pytest.raises(WrongType):
        opened(sign("application/other", b"hello", CONTROL))


def test_open_envelope_type_swapped_after_signing_is_refused() -> None:
    envelope = canonical_bytes(
        json.loads(sign("application/other", b"hello", CONTROL)) | {"payloadType": TYPE}
    )
    with pytest.raises(BadSignature):
        opened(envelope)


def test_open_envelope_stranger_is_refused() -> None:
    with pytest.raises(UnknownKey):
        opened(sign(TYPE, b"hello", STRANGER))


def test_open_envelope_stranger_claiming_a_known_key_is_refused() -> None:
    signature = json.loads(sign(TYPE, b"hello", STRANGER))["signatures"][0]["sig"]
    with pytest.raises(BadSignature):
        opened(changed(signatures=[{"keyid": key_id(CONTROL_PUBLIC), "sig": signature}]))


def test_open_envelope_key_of_wrong_length_is_refused() -> None:
    with pytest.raises(UnknownKey):
        open_envelope(sign(TYPE, b"hello", CONTROL), TYPE, {key_id(CONTROL_PUBLIC): b"short"})


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"payload": "aGVsbG9="}, "payload"),
        ({"payload": "aGVsbG8"}, "payload"),
        ({"payload": "aGVs bG8="}, "payload"),
        ({"payload": "\u20ac"}, "payload"),
        ({"payload": 5}, "payload"),
        ({"payloadType": None}, "payloadType"),
        ({"signatures": []}, "signatures"),
        ({"signatures": {}}, "signatures"),
        ({"signatures": ["x", "y"]}, "signatures"),
        ({"signatures": ["x"]}, "signatures[0]"),
        ({"signatures": [{"keyid": "k"}]}, "signatures[0]"),
        ({"signatures": [{"keyid": "k", "sig": "", "more": 1}]}, "signatures[0]"),
        ({"signatures": [{"keyid": 1, "sig": ""}]}, "keyid"),
        ({"more": 1}, "envelope"),
    ],
)
def test_open_envelope_malformed_is_refused_naming_the_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(MalformedEnvelope) as caught:
        opened(changed(**changes))
    assert str(caught.value).startswith(f"{field}: ")


@pytest.mark.parametrize("envelope", [b"", b"[]", b"null", b"{}", b"\x00", b"[" * 100_000])
def test_open_envelope_not_an_envelope_is_refused(envelope: bytes) -> None:
    with pytest.raises(MalformedEnvelope):
        opened(envelope)


def test_sign_largest_payload_opens_and_larger_is_refused() -> None:
    assert len(opened(sign(TYPE, bytes(PAYLOAD_BYTES_MAX), CONTROL))) == PAYLOAD_BYTES_MAX
    with pytest.raises(MalformedEnvelope):
        sign(TYPE, bytes(PAYLOAD_BYTES_MAX + 1), CONTROL)


@pytest.mark.parametrize("kind", ["", "\u20ac", "x" * 201])
def test_sign_unusable_type_is_refused(kind: str) -> None:
    with pytest.raises(MalformedEnvelope):
        sign(kind, b"", CONTROL)
