"""The few bytes of protobuf and PEM that a Nebula certificate is made of.

Nebula verifies a signature over its own serialisation, so there is one right order: fields by number, defaults left
out, numbers packed. Encoding keeps to it; decoding takes any valid input and is bounded by the input's length.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator

VARINT = 0
BYTES = 2

LOW_BITS = 0x7F
"""Of each byte of a number; the highest bit says that another byte follows."""

VARINT_BYTES_MAX = 10
"""64 bits in groups of seven."""

PEM_LINE_CHARS = 64

PEM_CHARS_MAX = 16_384
"""A certificate with every group allowed takes a tenth of it."""


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


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number that starts at ``at``, and where the next byte after it is. Raises ValueError."""
    number = 0
    for index, byte in enumerate(data[at : at + VARINT_BYTES_MAX]):
        number |= (byte & LOW_BITS) << 7 * index
        if byte <= LOW_BITS:
            if number >> 64:
                raise ValueError("a number in it has more than 64 bits")
            return number, at + index + 1
    raise ValueError("it ends in the middle of a number")


def read_fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field, value) in the order they stand; raises ValueError at the first that cannot be."""
    at = 0
    while at < len(data):
        tag, at = read_varint(data, at)
        field, kind = tag >> 3, tag & 7
        value, at = read_varint(data, at)
        match kind:
            case 0:
                yield field, value
            case 2:
                if value > len(data) - at:
                    raise ValueError(f"field {field} is cut off")
                yield field, data[at : at + value]
                at += value
            case _:
                raise ValueError(f"field {field} is of no kind that belongs there")


def read_packed(data: bytes) -> tuple[int, ...]:
    """The numbers of a packed run. Raises ValueError."""
    numbers: list[int] = []
    at = 0
    while at < len(data):
        number, at = read_varint(data, at)
        numbers.append(number)
    return tuple(numbers)


def to_pem(banner: str, data: bytes) -> str:
    """A PEM block, its last line ended."""
    text = base64.b64encode(data).decode("ascii")
    lines = [text[at : at + PEM_LINE_CHARS] for at in range(0, len(text), PEM_LINE_CHARS)]
    return "\n".join((f"-----BEGIN {banner}-----", *lines, f"-----END {banner}-----", ""))


def from_pem(banner: str, pem: str) -> bytes:
    """What stands in the one block of this banner. Raises ValueError, which never repeats the content."""
    if len(pem) > PEM_CHARS_MAX:
        raise ValueError(f"it has {len(pem)} characters; a {banner} has at most {PEM_CHARS_MAX}")
    head, foot = f"-----BEGIN {banner}-----", f"-----END {banner}-----"
    text = pem.strip()
    if not (text.startswith(head) and text.endswith(foot) and text.count("-----BEGIN ") == 1):
        raise ValueError(f"it is not one PEM block of {banner!r}")
    try:
        return base64.b64decode("".join(text[len(head) : -len(foot)].split()), validate=True)
    except binascii.Error:
        raise ValueError(f"the base64 in its {banner!r} block is damaged") from None
