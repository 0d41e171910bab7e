"""DSSE v1 envelopes with one Ed25519 signature: the payload's type is inside what is signed.

An envelope is RFC 8785 JSON: ``{"payload": base64, "payloadType": text, "signatures": [{"keyid": …, "sig":
base64}]}``. The signature covers ``DSSEv1 SP len(type) SP type SP len(payload) SP payload``, lengths in
bytes, in decimal.

By hand: decode ``payload`` and ``sig`` from base64, write those bytes to one file, and check it with any
Ed25519 tool against the raw public key whose ``key_id`` is ``keyid``. Only then read the payload, and only
those bytes. An envelope has exactly one spelling (canonical JSON, canonical base64), so no changed byte goes
unnoticed.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from orchestrator.receipts.canonical import (
    JSON_BYTES_MAX,
    CanonicalError,
    JsonValue,
    canonical_bytes,
    parse_canonical,
)
from orchestrator.receipts.ids import key_id

ENVELOPE_BYTES_MAX = JSON_BYTES_MAX
# Base64 grows by a third; what remains of the envelope is for type, key id and signature.
PAYLOAD_BYTES_MAX = ENVELOPE_BYTES_MAX // 4 * 3 - 1024
# A media type of ours has about 50 characters; the bound keeps the envelope within its own.
PAYLOAD_TYPE_CHARACTERS_MAX = 200

_ENVELOPE_FIELDS = frozenset({"payload", "payloadType", "signatures"})
_SIGNATURE_FIELDS = frozenset({"keyid", "sig"})


class EnvelopeError(ValueError):
    """The envelope proves nothing; its payload must not be read."""


class MalformedEnvelope(EnvelopeError):
    """Not an envelope in its one spelling."""


class WrongType(EnvelopeError):
    """Signed as something else than what was asked for."""


class UnknownKey(EnvelopeError):
    """Signed by a key that the caller does not know."""


class BadSignature(EnvelopeError):
    """The signature is not that key's over these bytes."""


@dataclass(frozen=True, slots=True)
class _Envelope:
    payload: bytes
    payload_type: str
    key_id: str
    signature: bytes


def pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: the exact bytes that are signed."""
    kind = payload_type.encode("utf-8")
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def public_bytes(key: Ed25519PrivateKey) -> bytes:
    """Raw 32 bytes of the public half."""
    return key.public_key().public_bytes_raw()


def sign(payload_type: str, payload: bytes, key: Ed25519PrivateKey) -> bytes:
    """Envelope bytes; the same input gives the same bytes. Raises MalformedEnvelope for what could not be
    opened.
    """
    if not 0 < len(payload_type) <= PAYLOAD_TYPE_CHARACTERS_MAX or not payload_type.isascii():
        raise MalformedEnvelope(
            f"payloadType: 1 to {PAYLOAD_TYPE_CHARACTERS_MAX} ASCII characters are needed"
        )
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise MalformedEnvelope(f"payload: {len(payload)} bytes, at most {PAYLOAD_BYTES_MAX} fit an envelope")
    signature = {
        "keyid": key_id(public_bytes(key)),
        "sig": _encoded(key.sign(pae(payload_type, payload))),
    }
    return canonical_bytes(
        {"payload": _encoded(payload), "payloadType": payload_type, "signatures": [signature]}
    )


def open_envelope(envelope: bytes, payload_type: str, keys: Mapping[str, bytes]) -> bytes:
    """Verify, then return the exact payload bytes.

    ``keys`` maps key ids to raw 32-byte public keys. Raises MalformedEnvelope, WrongType, UnknownKey or
    BadSignature.
    """
    parsed = _parse(envelope)
    if parsed.payload_type != payload_type:
        raise WrongType(f"payloadType: {parsed.payload_type[:80]!a} where {payload_type!r} is expected")
    public_key = keys.get(parsed.key_id)
    if public_key is None:
        raise UnknownKey(f"keyid: {parsed.key_id[:80]!a} is not among the known keys")
    try:
        verifier = Ed25519PublicKey.from_public_bytes(public_key)
    except ValueError:
        raise UnknownKey(f"keyid: {parsed.key_id} does not stand for a raw 32-byte Ed25519 key") from None
    try:
        verifier.verify(parsed.signature, pae(payload_type, parsed.payload))
    except InvalidSignature:
        raise BadSignature(f"sig: not a signature of {parsed.key_id} over this payload") from None
    return parsed.payload


def claimed_key_id(envelope: bytes) -> str:
    """Whom the envelope says it is from: only good for finding the key to verify it with. Raises
    MalformedEnvelope.
    """
    return _parse(envelope).key_id


def claimed_payload(envelope: bytes) -> bytes:
    """The payload, unverified: good for sorting and showing, never for deciding. Raises MalformedEnvelope."""
    return _parse(envelope).payload


def _parse(envelope: bytes) -> _Envelope:
    try:
        value = parse_canonical(envelope, ENVELOPE_BYTES_MAX)
    except CanonicalError as error:
        raise MalformedEnvelope(f"envelope: {error}") from None
    outer = _fields(value, _ENVELOPE_FIELDS, "envelope")
    signatures = outer["signatures"]
    if not isinstance(signatures, list) or len(signatures) != 1:
        raise MalformedEnvelope("signatures: exactly one is expected")
    inner = _fields(signatures[0], _SIGNATURE_FIELDS, "signatures[0]")
    return _Envelope(
        payload=_decoded(outer["payload"], "payload"),
        payload_type=_text(outer["payloadType"], "payloadType"),
        key_id=_text(inner["keyid"], "keyid"),
        signature=_decoded(inner["sig"], "sig"),
    )


def _fields(value: JsonValue, names: frozenset[str], where: str) -> dict[str, JsonValue]:
    if not isinstance(value, dict):
        raise MalformedEnvelope(f"{where}: an object is expected")
    if value.keys() != names:
        raise MalformedEnvelope(f"{where}: exactly the fields {', '.join(sorted(names))} are expected")
    return value


def _text(value: JsonValue, where: str) -> str:
    if not isinstance(value, str):
        raise MalformedEnvelope(f"{where}: text is expected")
    return value


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _decoded(value: JsonValue, where: str) -> bytes:
    """Standard base64 in its one spelling: padding present, unused trailing bits zero."""
    text = _text(value, where)
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise MalformedEnvelope(f"{where}: not base64") from None
    if _encoded(data) != text:
        raise MalformedEnvelope(f"{where}: not the canonical base64 of its bytes")
    return data
