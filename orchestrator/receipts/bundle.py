"""One file that proves one receipt, offline: the receipt, the worker's statements behind it, and the keys.

A bundle is JSON: ``schema``, ``receipt`` (an envelope), ``statements`` (envelopes, in the order of the
receipt's ``statement_digests``) and ``keys`` (``key_id`` and raw ``public_key`` in hexadecimal, exactly those
that signed).

What verify_bundle does, step by step, can be done by hand with a JSON tool, SHA-256 and Ed25519:

1. Each key's ``key_id`` is ``key_`` and the first 40 hexadecimal characters of the SHA-256 of its 32 raw
   bytes.
2. The receipt's envelope is signed (see dsse) by the control plane's key, learnt from somewhere other than
   the bundle.
3. The receipt is consistent in itself (see receipt).
4. The SHA-256 of each statement's payload is, in order, what the receipt names, with none missing and none to
   spare.
5. Each statement is signed by the receipt's ``worker_key_id`` and speaks of its network, lease, job, worker,
   devices.
6. Statements follow each other without a gap, and together last at least as long as the billed interval.

Exit codes, stable for scripts, one per way to fail: 10 malformed · 11 bad signature · 12 unknown key · 13
inconsistent receipt · 14 statements do not cover the interval · 15 wrong type · 16 statements missing or to
spare · 17 a statement speaks of something else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from orchestrator.receipts import dsse, receipt, statement
from orchestrator.receipts.canonical import CanonicalError, JsonValue, canonical_bytes, parse_json
from orchestrator.receipts.ids import key_id, sha256_hex
from orchestrator.receipts.receipt import Receipt, parse_receipt
from orchestrator.receipts.record import FieldError, Inconsistent
from orchestrator.receipts.statement import Statement, parse_statement

SCHEMA = "orchestrator.bundle.v1"
# An hour of one-second statements, 1.5 kB each, is 6 MB; the bound leaves as much again and more.
BUNDLE_BYTES_MAX = 16 << 20

_BUNDLE_FIELDS = frozenset({"schema", "receipt", "statements", "keys"})
_KEY_FIELDS = frozenset({"key_id", "public_key"})
_PUBLIC_KEY = re.compile(r"[0-9a-f]{64}")


class BundleError(ValueError):
    """The bundle does not prove its receipt; each subclass has its own exit code."""

    exit_code: ClassVar[int]


class MalformedBundle(BundleError):
    """Not a bundle, or a part of it cannot be read."""

    exit_code = 10


class BundleSignatureBad(BundleError):
    """A signature is not that key's over that payload."""

    exit_code = 11


class BundleKeyUnknown(BundleError):
    """Signed by a key that is not the expected one."""

    exit_code = 12


class ReceiptInconsistent(BundleError):
    """The receipt, well signed, contradicts itself."""

    exit_code = 13


class StatementsDoNotCover(BundleError):
    """The statements have a gap, or last shorter than what is billed."""

    exit_code = 14


class BundleTypeWrong(BundleError):
    """Something was signed as another type of payload."""

    exit_code = 15


class StatementsMissing(BundleError):
    """The statements are not exactly those that the receipt names."""

    exit_code = 16


class StatementForeign(BundleError):
    """A statement speaks of another lease, job, worker or devices than the receipt."""

    exit_code = 17


@dataclass(frozen=True, slots=True)
class VerifiedBundle:
    """What a bundle proved.

    ``control_key_trusted`` is False where no trusted key was given: then everything fits together and is
    signed by ``control_key_id``, but who holds that key the bundle cannot tell.
    """

    receipt: Receipt
    statements: tuple[Statement, ...]
    control_key_id: str
    control_key_trusted: bool


@dataclass(frozen=True, slots=True)
class _Parts:
    receipt_envelope: bytes
    statement_envelopes: tuple[bytes, ...]
    keys: Mapping[str, bytes]


def build_bundle(
    receipt_envelope: bytes, statement_envelopes: Sequence[bytes], keys: Mapping[str, bytes]
) -> bytes:
    """Assemble, in any order of statements, without verifying; ``keys`` maps key ids to raw public keys.

    Only keys that signed something go in. Raises MalformedBundle or BundleKeyUnknown.
    """
    try:
        signers = {dsse.claimed_key_id(envelope) for envelope in (receipt_envelope, *statement_envelopes)}
        for signer in signers - keys.keys():
            raise BundleKeyUnknown(f"keys: {signer} signed, but its public key was not given")
        value = canonical_bytes(
            {
                "schema": SCHEMA,
                "receipt": parse_json(receipt_envelope),
                "statements": [parse_json(envelope) for envelope in sorted(statement_envelopes, key=_order)],
                "keys": [{"key_id": name, "public_key": keys[name].hex()} for name in sorted(signers)],
            }
        )
    except (dsse.MalformedEnvelope, CanonicalError, FieldError) as error:
        raise MalformedBundle(str(error)) from None
    if len(value) > BUNDLE_BYTES_MAX:
        raise MalformedBundle(f"bundle: {len(value)} bytes, at most {BUNDLE_BYTES_MAX} are allowed")
    return value


def verify_bundle(bundle: bytes, trusted_control_key: bytes | None) -> VerifiedBundle:
    """Check everything this module's docstring lists, and return what was proved. Raises a BundleError.

    ``trusted_control_key`` is the control plane's raw 32-byte public key; without it the bundle's own is used
    and the result says so.
    """
    parts = _parse(bundle)
    control_key_id = _claimed(parts.receipt_envelope, "receipt")
    if trusted_control_key is not None and key_id(trusted_control_key) != control_key_id:
        raise BundleKeyUnknown(
            f"receipt: signed by {control_key_id}, trusted is {key_id(trusted_control_key)}"
        )
    payload = _opened(parts.receipt_envelope, receipt.PAYLOAD_TYPE, parts.keys, "receipt")
    found = _read_receipt(payload)
    if found.worker_key_id == control_key_id:
        raise ReceiptInconsistent("worker_key_id: the control plane's own key cannot sign for a worker")
    if parts.keys.keys() != {control_key_id, found.worker_key_id}:
        raise BundleKeyUnknown(f"keys: exactly {control_key_id} and {found.worker_key_id} are expected")
    statements = _verified_statements(parts, found)
    _check_cover(found, statements)
    return VerifiedBundle(
        receipt=found,
        statements=statements,
        control_key_id=control_key_id,
        control_key_trusted=trusted_control_key is not None,
    )


def _verified_statements(parts: _Parts, found: Receipt) -> tuple[Statement, ...]:
    worker_key = {found.worker_key_id: parts.keys[found.worker_key_id]}
    payloads = [
        _opened(envelope, statement.PAYLOAD_TYPE, worker_key, f"statements[{index}]")
        for index, envelope in enumerate(parts.statement_envelopes)
    ]
    if tuple(sha256_hex(payload) for payload in payloads) != found.statement_digests:
        raise StatementsMissing(
            "statements: not exactly those of the receipt's statement_digests, in their order"
        )
    statements = tuple(_read_statement(payload, index) for index, payload in enumerate(payloads))
    for index, stated in enumerate(statements):
        _check_same_subject(found, stated, f"statements[{index}]")
    return statements


def _check_same_subject(found: Receipt, stated: Statement, where: str) -> None:
    compared: dict[str, tuple[object, object]] = {
        "network_id": (found.network_id, stated.network_id),
        "lease_id": (found.lease_id, stated.lease_id),
        "job_id": (found.job_id, stated.job_id),
        "attempt_id": (found.attempt_id, stated.attempt_id),
        "worker_id": (found.worker_id, stated.worker_id),
        "device_ids": (sorted(found.device_ids), sorted(stated.device_ids)),
    }
    for name, (billed, said) in compared.items():
        if billed != said:
            raise StatementForeign(f"{where}.{name}: differs from the receipt's")


def _check_cover(found: Receipt, statements: Sequence[Statement]) -> None:
    for before, after in pairwise(statements):
        if (
            after.sequence != before.sequence + 1
            or after.start_offset_ms != before.end_offset_ms
            or before.final
        ):
            raise StatementsDoNotCover(f"statements: {after.sequence} does not follow on {before.sequence}")
    stated_ms = sum(stated.duration_ms() for stated in statements)
    interval_ms = found.end_ms - found.start_ms
    if stated_ms < interval_ms:
        raise StatementsDoNotCover(f"statements: {stated_ms} ms are stated, {interval_ms} ms are billed")


def _read_receipt(payload: bytes) -> Receipt:
    try:
        return parse_receipt(payload)
    except Inconsistent as error:
        raise ReceiptInconsistent(f"receipt.{error}") from None
    except (CanonicalError, FieldError) as error:
        raise MalformedBundle(f"receipt.{error}") from None


def _read_statement(payload: bytes, index: int) -> Statement:
    try:
        return parse_statement(payload)
    except (CanonicalError, FieldError) as error:
        raise MalformedBundle(f"statements[{index}].{error}") from None


def _opened(envelope: bytes, payload_type: str, keys: Mapping[str, bytes], where: str) -> bytes:
    try:
        return dsse.open_envelope(envelope, payload_type, keys)
    except dsse.BadSignature as error:
        raise BundleSignatureBad(f"{where}.{error}") from None
    except dsse.UnknownKey as error:
        raise BundleKeyUnknown(f"{where}.{error}") from None
    except dsse.WrongType as error:
        raise BundleTypeWrong(f"{where}.{error}") from None
    except dsse.EnvelopeError as error:
        raise MalformedBundle(f"{where}.{error}") from None


def _claimed(envelope: bytes, where: str) -> str:
    try:
        return dsse.claimed_key_id(envelope)
    except dsse.MalformedEnvelope as error:
        raise MalformedBundle(f"{where}.{error}") from None


def _order(envelope: bytes) -> int:
    return parse_statement(dsse.claimed_payload(envelope)).sequence


def _parse(bundle: bytes) -> _Parts:
    try:
        outer = _fields(parse_json(bundle, BUNDLE_BYTES_MAX), _BUNDLE_FIELDS, "bundle")
        if outer["schema"] != SCHEMA:
            raise MalformedBundle(f"schema: {SCHEMA} is expected; another version needs another reader")
        return _Parts(
            receipt_envelope=canonical_bytes(outer["receipt"]),
            statement_envelopes=tuple(
                canonical_bytes(envelope) for envelope in _list(outer["statements"], "statements")
            ),
            keys=dict(_key(entry, f"keys[{i}]") for i, entry in enumerate(_list(outer["keys"], "keys"))),
        )
    except CanonicalError as error:
        raise MalformedBundle(f"bundle: {error}") from None


def _key(entry: JsonValue, where: str) -> tuple[str, bytes]:
    named = _fields(entry, _KEY_FIELDS, where)
    public_key = named["public_key"]
    if not isinstance(public_key, str) or not _PUBLIC_KEY.fullmatch(public_key):
        raise MalformedBundle(f"{where}.public_key: 64 lowercase hexadecimal characters are expected")
    raw = bytes.fromhex(public_key)
    if named["key_id"] != key_id(raw):
        raise MalformedBundle(f"{where}.key_id: not the id of this public_key")
    return key_id(raw), raw


def _fields(value: JsonValue, names: frozenset[str], where: str) -> dict[str, JsonValue]:
    if not isinstance(value, dict) or value.keys() != names:
        raise MalformedBundle(f"{where}: an object of exactly {', '.join(sorted(names))} is expected")
    return value


def _list(value: JsonValue, where: str) -> list[JsonValue]:
    if not isinstance(value, list):
        raise MalformedBundle(f"{where}: a list is expected")
    return value
