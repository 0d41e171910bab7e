"""One spelling, one reading: what canonical.py admits and what it refuses."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.receipts.canonical import (
    INTEGER_MAX,
    JSON_BYTES_MAX,
    JSON_DEPTH_MAX,
    CanonicalError,
    DuplicateKey,
    NotJson,
    NumberRefused,
    TooDeep,
    TooLarge,
    TypeRefused,
    canonical_bytes,
    parse_canonical,
    parse_json,
)

# Without surrogates, which UTF-8 cannot carry.
TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-INTEGER_MAX, INTEGER_MAX) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_canonical_bytes_any_value_comes_back_and_has_one_spelling(value: object) -> None:
    spelled = canonical_bytes(value)
    assert parse_canonical(spelled) == value
    assert canonical_bytes(parse_json(spelled)) == spelled


def test_canonical_bytes_object_sorts_keys_by_utf16_and_drops_space() -> None:
    # RFC 8785, 3.2.3: U+1F600 is a surrogate pair in UTF-16, so it sorts before U+FB33.
    value = {"\ufb33": 1, "\U0001f600": 2, "b": [True, None, "\n\u20ac\x0f"], "a": -5}
    assert canonical_bytes(value) == (
        '{"a":-5,"b":[true,null,"\\n\u20ac\\u000f"],"\U0001f600":2,"\ufb33":1}'.encode()
    )


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (1.0, NumberRefused),
        (math.nan, NumberRefused),
        ({"a": [math.inf]}, NumberRefused),
        (INTEGER_MAX + 1, NumberRefused),
        (-INTEGER_MAX - 1, NumberRefused),
        (b"bytes", TypeRefused),
        ({1: "key"}, TypeRefused),
        ({"set": {1}}, TypeRefused),
        ("\ud800", TypeRefused),
        ({"\udfff": 1}, TypeRefused),
    ],
)
def test_canonical_bytes_value_without_one_spelling_is_refused(
    value: object, error: type[CanonicalError]
) -> None:
    with pytest.raises(error):
        canonical_bytes(value)


def test_canonical_bytes_self_containing_list_is_refused() -> None:
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(TooDeep):
        canonical_bytes(endless)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b'{"a":1,"a":1}', DuplicateKey),
        (b'[{"x":{"a":1,"\\u0061":2}}]', DuplicateKey),
        (b"NaN", NumberRefused),
        (b"[-Infinity]", NumberRefused),
        (b"1.0", NumberRefused),
        (b"1e3", NumberRefused),
        (b"9007199254740992", NumberRefused),
        (b"-" + b"9" * 1_000_000, NumberRefused),
        (b'"\\ud800"', TypeRefused),
        (b"\xff", NotJson),
        (b"\xef\xbb\xbf{}", NotJson),
        ("{}".encode("utf-16"), NotJson),
        (b"", NotJson),
        (b"{", NotJson),
        (b"]" * 40, NotJson),
        (b"{} {}", NotJson),
        (b'{"a":1,}', NotJson),
        (b'"' + b'\\"' * 400_000, NotJson),
        (b"[" * (JSON_DEPTH_MAX + 1) + b"]" * (JSON_DEPTH_MAX + 1), TooDeep),
        (b'{"a":' * 100_000, TooDeep),
        (b" " * (JSON_BYTES_MAX + 1), TooLarge),
    ],
)
def test_parse_json_hostile_text_is_refused(text: bytes, error: type[CanonicalError]) -> None:
    with pytest.raises(error) as caught:
        parse_json(text)
    assert len(str(caught.value)) < 200


def test_parse_json_deepest_allowed_and_brackets_in_text_are_read() -> None:
    deepest = b"[" * JSON_DEPTH_MAX + b"]" * JSON_DEPTH_MAX
    assert canonical_bytes(parse_json(deepest)) == deepest
    assert parse_json(b'"' + b"[" * 100 + b'\\""') == "[" * 100 + '"'


@pytest.mark.parametrize("text", [b"{ }", b'{"b":1,"a":2}', b'"\\u0061"', b"-0", b"{}\n"])
def test_parse_canonical_other_spelling_is_refused(text: bytes) -> None:
    parse_json(text)
    with pytest.raises(NotJson):
        parse_canonical(text)
