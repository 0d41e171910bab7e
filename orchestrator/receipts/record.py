"""Flat records as signed JSON: every integer a decimal string, every field present, nothing else.

A record is a frozen dataclass whose fields are annotated ``str``, ``int``, ``bool`` or ``tuple[str, ...]``;
its JSON object has the same names. Decimal strings keep 64-bit amounts exact in readers whose numbers are
doubles.
"""

from __future__ import annotations

import re
from dataclasses import Field, fields
from typing import Any, ClassVar, Protocol, TypeVar

from orchestrator.receipts.canonical import JsonValue, canonical_bytes, parse_canonical

# Signed 64-bit, the widest integer that wire, books and databases all hold.
AMOUNT_MAX = 2**63 - 1
# AMOUNT_MAX has 19 digits.
AMOUNT_DIGITS_MAX = 19
# Ids here have at most 70 characters, device models at most 80.
TEXT_CHARACTERS_MAX = 200
# An hour of one-second statements, with room.
LIST_ITEMS_MAX = 4096

_AMOUNT = re.compile(r"0|[1-9][0-9]*")
_TEXT = re.compile(r"[ -~]*")
_ID = re.compile(r"[!-~]+")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class FieldError(ValueError):
    """A record that cannot be read or must not be signed; ``field`` names the culprit."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


class Inconsistent(FieldError):
    """Every field is well-formed, but together they cannot be true."""


class Record(Protocol):
    """Any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


R = TypeVar("R", bound=Record)


def encode_record(record: Record) -> bytes:
    """Canonical JSON of the record. Raises FieldError for values out of bounds."""
    return canonical_bytes({f.name: _encoded(f.name, getattr(record, f.name)) for f in fields(record)})


def decode_record(kind: type[R], payload: bytes) -> R:
    """Read a record back, strictly; its own consistency is the caller's to check.

    Raises CanonicalError if the bytes are not canonical JSON, else FieldError for unknown, missing or
    mistyped fields.
    """
    value = parse_canonical(payload)
    if not isinstance(value, dict):
        raise FieldError("payload", "a JSON object is expected")
    declared = {f.name: str(f.type) for f in fields(kind)}
    for name in sorted(value.keys() - declared.keys()):
        raise FieldError(ascii(name[:40]).strip("'"), "unknown field")
    for name in declared:
        if name not in value:
            raise FieldError(name, "missing")
    return kind(**{name: _decoded(name, annotation, value[name]) for name, annotation in declared.items()})


def require_ids(**values: str) -> None:
    """Each value must be visible ASCII without spaces, not empty. Raises FieldError."""
    for name, value in values.items():
        if not _ID.fullmatch(value):
            raise FieldError(name, "an id of visible ASCII characters without spaces is expected")


def require_digest(name: str, value: str) -> None:
    """The value must be a SHA-256 in lowercase hexadecimal. Raises FieldError."""
    if not _DIGEST.fullmatch(value):
        raise FieldError(name, "64 lowercase hexadecimal characters (SHA-256) are expected")


def _encoded(name: str, value: object) -> object:
    match value:
        case bool():
            return value
        case int():
            return str(_amount(name, value))
        case str():
            return _text(name, value)
        case tuple():
            return [_text(name, item) for item in _items(name, value)]
        case _:
            raise FieldError(name, f"{type(value).__name__} has no place in a record")


def _decoded(name: str, annotation: str, value: JsonValue) -> str | int | bool | tuple[str, ...]:
    match annotation, value:
        case "str", str():
            return _text(name, value)
        case "int", str():
            if len(value) > AMOUNT_DIGITS_MAX or not _AMOUNT.fullmatch(value):
                raise FieldError(name, f"a decimal string of 0 to {AMOUNT_MAX} is expected")
            return _amount(name, int(value))
        case "bool", bool():
            return value
        case "tuple[str, ...]", list():
            return tuple(_text(name, item) for item in _items(name, value))
        case _:
            raise FieldError(name, f"{_EXPECTED[annotation]} is expected, not {type(value).__name__}")


_EXPECTED = {
    "str": "text",
    "int": "a decimal string",
    "bool": "true or false",
    "tuple[str, ...]": "a list of texts",
}


def _amount(name: str, value: int) -> int:
    if not 0 <= value <= AMOUNT_MAX:
        raise FieldError(name, f"an integer of 0 to {AMOUNT_MAX} is expected")
    return value


def _items(name: str, value: tuple[object, ...] | list[JsonValue]) -> tuple[object, ...]:
    if len(value) > LIST_ITEMS_MAX:
        raise FieldError(name, f"{len(value)} items, at most {LIST_ITEMS_MAX} are allowed")
    return tuple(value)


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise FieldError(name, f"text is expected, not {type(value).__name__}")
    if len(value) > TEXT_CHARACTERS_MAX or not _TEXT.fullmatch(value):
        raise FieldError(name, f"at most {TEXT_CHARACTERS_MAX} printable ASCII characters are allowed")
    return value
