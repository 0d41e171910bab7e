"""Reads Nebula's certificates (version 1), for tests of those that were made."""

from __future__ import annotations

import base64
import hashlib
import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator.adapters.overlay.certificates import CERTIFICATE_BANNER

BYTES = 2
"""protobuf's kind of a field with a length; the other kind there is, is a number."""


Fields = dict[int, list[int | bytes]]


@dataclass(frozen=True, slots=True)
class Certificate:
    """What one says; ``issuer`` and ``fingerprint`` in hex, ``addresses`` with their prefix."""

    name: str
    addresses: tuple[str, ...]
    groups: tuple[str, ...]
    not_before_s: int
    not_after_s: int
    public_key: bytes
    is_authority: bool
    issuer: str
    fingerprint: str


def read_certificate(pem: str) -> Certificate:
    """Of the one certificate in a PEM text."""
    first, *lines, last = pem.split("\n")[:-1]
    assert (first, last) == tuple(f"-----{word} {CERTIFICATE_BANNER}-----" for word in ("BEGIN", "END"))
    raw = base64.b64decode("".join(lines), validate=True)
    details = next(value for _, value in _fields(raw) if isinstance(value, bytes))
    fields: Fields = {}
    for number, value in _fields(details):
        fields.setdefault(number, []).append(value)
    assert fields.keys() <= {1, 2, 4, 5, 6, 7, 8, 9}, "fields that none of ours has"
    numbers = [number for packed in _bytes(fields, 2) for number in _numbers(packed)]
    return Certificate(
        name=b"".join(_bytes(fields, 1)).decode(),
        addresses=tuple(
            f"{ipaddress.IPv4Address(address)}/{mask.bit_count()}"
            for address, mask in zip(numbers[::2], numbers[1::2], strict=True)
        ),
        groups=tuple(value.decode() for value in _bytes(fields, 4)),
        not_before_s=_number(fields, 5),
        not_after_s=_number(fields, 6),
        public_key=b"".join(_bytes(fields, 7)),
        is_authority=bool(_number(fields, 8)),
        issuer=b"".join(_bytes(fields, 9)).hex(),
        fingerprint=hashlib.sha256(raw).hexdigest(),
    )


def _bytes(fields: Fields, number: int) -> list[bytes]:
    return [value for value in fields.get(number, []) if isinstance(value, bytes)]


def _number(fields: Fields, number: int) -> int:
    (value,) = fields.get(number, [0])
    assert isinstance(value, int)
    return value


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        value, at = _varint(data, at)
        if tag & 7 == BYTES:
            yield tag >> 3, data[at : at + value]
            at += value
        else:
            yield tag >> 3, value


def _numbers(packed: bytes) -> Iterator[int]:
    at = 0
    while at < len(packed):
        number, at = _varint(packed, at)
        yield number


def _varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte <= 0x7F:
            return number, at
