"""The few bytes of protobuf and PEM that a Nebula certificate is made of.

Nebula verifies a signature over its own serialisation, so there is one right order: fields by number, defaults left
out, numbers packed. Nothing is decoded here: reading certificates is Nebula's.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable

VARINT = 0
BYTES = 2

LOW_BITS = 0x7F
"""Of each byte of a number; the highest bit says that another byte follows."""

PEM_LINE_CHARS = 64


def varint(number: int) -> bytes:
    """A number of 0 … 2^64-1, least significant group first."""
    encoded = bytearray()
    while number > LOW_BITS:
        encoded.append(number & LOW_BITS | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def number_field(field: int, number: int) -> bytes:
    """Nothing at all for zero, which is what a reader assumes."""
    return varint(field << 3 | VARINT) + varint(number) if number else b""


def bytes_field(field: int, data: bytes) -> bytes:
    """Nothing at all for no bytes, which is what a reader assumes."""
    return varint(field << 3 | BYTES) + varint(len(data)) + data if data else b""


def packed_field(field: int, numbers: Iterable[int]) -> bytes:
    """Many numbers as one run of bytes."""
    return bytes_field(field, b"".join(varint(number) for number in numbers))


def to_pem(banner: str, data: bytes) -> str:
    """A PEM block, its last line ended."""
    text = base64.b64encode(data).decode("ascii")
    lines = [text[at : at + PEM_LINE_CHARS] for at in range(0, len(text), PEM_LINE_CHARS)]
    return "\n".join((f"-----BEGIN {banner}-----", *lines, f"-----END {banner}-----", ""))
