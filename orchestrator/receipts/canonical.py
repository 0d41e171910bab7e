"""RFC 8785 bytes of JSON values, and a parser that refuses what two readers could read differently.

What is signed must have one spelling and one reading. So nothing here knows floats, integers stay within what
every JSON reader keeps exact (larger amounts travel as decimal strings), and duplicate keys, ``NaN``, bytes
that are not UTF-8, deep nesting and oversize input are refused before they cost time or memory.
"""

from __future__ import annotations

import json
import re
from typing import TypeAlias

import rfc8785

JsonValue: TypeAlias = "bool | int | str | list[JsonValue] | dict[str, JsonValue] | None"

# An hour of one-second statements makes a receipt of about 350 kB in base64; anything near this is no
# receipt.
JSON_BYTES_MAX = 1 << 20
# A bundle, the deepest thing written here, nests five deep.
JSON_DEPTH_MAX = 16
# RFC 7493: beyond this a reader that keeps numbers as doubles would round.
INTEGER_MAX = 2**53 - 1
# INTEGER_MAX has 16 digits and one sign; a longer text is refused before it is converted, which costs time
# squared.
INTEGER_CHARACTERS_MAX = 17

# Strings first, so that brackets inside them do not count; an unclosed string swallows the rest (linear
# time).
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]', re.DOTALL)


class CanonicalError(ValueError):
    """The value or text has no place in anything signed."""


class NotJson(CanonicalError):
    """The bytes are not JSON in UTF-8."""


class TooLarge(CanonicalError):
    """The input exceeds the bound on its size."""


class TooDeep(CanonicalError):
    """Lists and objects nest deeper than JSON_DEPTH_MAX."""


class DuplicateKey(CanonicalError):
    """An object names the same key twice: readers would disagree which counts."""


class NumberRefused(CanonicalError):
    """A float, ``NaN``, infinity, or an integer beyond ±INTEGER_MAX."""


class TypeRefused(CanonicalError):
    """A value of a type that JSON does not have, or text that UTF-8 cannot carry."""


def canonical_bytes(value: object) -> bytes:
    """The one RFC 8785 spelling of ``value``: None, bool, int, str, and lists, tuples and str-keyed dicts of
    these.

    Raises a CanonicalError for anything else, floats included.
    """
    _check(value)
    return rfc8785.dumps(value)  # type: ignore[arg-type]  # _check has just admitted exactly what it takes


def parse_json(data: bytes, bytes_max: int = JSON_BYTES_MAX) -> JsonValue:
    """Read JSON under every refusal of this module; the spelling need not be canonical. Raises a
    CanonicalError.
    """
    if len(data) > bytes_max:
        raise TooLarge(f"{len(data)} bytes of JSON, at most {bytes_max} are read")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotJson(f"not UTF-8 at byte {error.start}") from None
    _check_depth(text)
    try:
        value: JsonValue = json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_refuse_number,
            parse_constant=_refuse_number,
        )
    except json.JSONDecodeError as error:
        raise NotJson(f"not JSON: {error.msg} at character {error.pos}") from None
    _check(value)
    return value


def parse_canonical(data: bytes, bytes_max: int = JSON_BYTES_MAX) -> JsonValue:
    """Like parse_json, and also refuse any spelling but the canonical one. Raises a CanonicalError."""
    value = parse_json(data, bytes_max)
    if canonical_bytes(value) != data:
        raise NotJson("not in the canonical form of RFC 8785")
    return value


def _check_depth(text: str) -> None:
    """Count nesting before the recursive parser meets it."""
    depth = 0
    for match in _STRING_OR_BRACKET.finditer(text):
        match match[0][0]:
            case "[" | "{":
                depth += 1
                if depth > JSON_DEPTH_MAX:
                    raise TooDeep(f"nested deeper than {JSON_DEPTH_MAX} at character {match.start()}")
            case "]" | "}":
                depth -= 1
            case _:
                pass


def _object(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    found: dict[str, JsonValue] = {}
    for key, value in pairs:
        if key in found:
            raise DuplicateKey(f"key {_shown(key)} appears twice")
        found[key] = value
    return found


def _integer(text: str) -> int:
    if len(text) > INTEGER_CHARACTERS_MAX:
        raise NumberRefused(f"an integer of {len(text)} characters; send large amounts as decimal strings")
    return int(text)


def _refuse_number(text: str) -> JsonValue:
    raise NumberRefused(f"{_shown(text)} is not an integer; floats, NaN and infinities are refused")


def _check(root: object) -> None:
    """Admit exactly the values that have one canonical spelling; a stack of its own, so depth costs no
    recursion.
    """
    pending: list[tuple[object, int]] = [(root, 1)]
    while pending:
        value, depth = pending.pop()
        match value:
            case None | bool():
                pass
            case int():
                if abs(value) > INTEGER_MAX:
                    raise NumberRefused(
                        f"integer beyond ±{INTEGER_MAX}; send large amounts as decimal strings"
                    )
            case str():
                _check_text(value)
            case float():
                raise NumberRefused("floats are refused; use an integer in a smaller unit")
            case list() | tuple():
                _bound(depth)
                pending.extend((item, depth + 1) for item in value)
            case dict():
                _bound(depth)
                for key, item in value.items():
                    if not isinstance(key, str):
                        raise TypeRefused(f"object key of type {type(key).__name__}, only text is allowed")
                    _check_text(key)
                    pending.append((item, depth + 1))
            case _:
                raise TypeRefused(f"{type(value).__name__} has no JSON form")


def _bound(depth: int) -> None:
    if depth > JSON_DEPTH_MAX:
        raise TooDeep(f"nested deeper than {JSON_DEPTH_MAX}")


def _check_text(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise TypeRefused("text holds a lone surrogate, which UTF-8 cannot carry") from None


def _shown(text: str) -> str:
    """Text from outside, short enough for an error message."""
    return ascii(text[:40])
