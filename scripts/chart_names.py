"""What Kubernetes takes for names, labels, hosts and networks, as JSON schemas: for texts of the chart's values.

The patterns are of the kind that both Go and Python read: without looking ahead.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

FULL_NAME_CHARACTERS_MAX = 40
"""Of the 63 of a label: the longest suffix and the eleven characters of a StatefulSet's revision fit behind it."""

_WORD = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_HOST = rf"{_WORD}(\.{_WORD})*"
_LABEL = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
LABEL_KEY = rf"^({_HOST}/)?{_LABEL}$"
LABEL_VALUE = rf"^({_LABEL})?$"

PORT_NUMBER = r"([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_HOST_AND_PORT = rf"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):{PORT_NUMBER}"

_BYTE = r"(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = rf"{_BYTE}(\.{_BYTE}){{3}}"
_NETWORK4 = rf"{_IPV4}/(3[0-2]|[12]?[0-9])"
_NETWORK6 = r"[0-9a-fA-F]{0,4}(:[0-9a-fA-F]{0,4}){2,7}/(12[0-8]|1[01][0-9]|[1-9]?[0-9])"

_REPOSITORY_PART = r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*"


def _text(pattern: str, characters_max: int = 0) -> Schema:
    bound = {"maxLength": characters_max} if characters_max else {}
    return {"type": "string", **bound, "pattern": pattern}


def mapped(value: Schema) -> Schema:
    """An object of any keys that have the syntax of labels: of a wrong one helm names the place, too."""
    return {"type": "object", "patternProperties": {LABEL_KEY: value}, "additionalProperties": False}


TEXTS: dict[str, Schema] = {
    # RFC 1035 and not 1123: names of Services begin with a letter.
    "label": _text(r"^([a-z]([-a-z0-9]*[a-z0-9])?)?$", FULL_NAME_CHARACTERS_MAX),
    "name": _text(rf"^({_HOST})?$", 253),
    "host": _text(rf"^({_HOST})?$", 253),
    "domain": _text(rf"^{_HOST}$", 253),
    # A certificate's and a request's: a name or an address, which may have colons and nothing like a port.
    "reached": _text(
        r"^([a-z0-9_]([-a-z0-9_.]*[a-z0-9_])?|\[?[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*\]?)$", 253
    ),
    "key": _text(r"^[-._a-zA-Z0-9]*[-_a-zA-Z0-9][-._a-zA-Z0-9]*$", 253),
    "address": _text(rf"^({_HOST_AND_PORT})?$"),
    "beacon": _text(rf"^{_IPV4}={_HOST_AND_PORT}(,{_HOST_AND_PORT})?$"),
    "network": _text(rf"^({_NETWORK4}|{_NETWORK6})$"),
    "network4": _text(rf"^{_NETWORK4}$"),
    "repository": _text(rf"^({_HOST}(:{PORT_NUMBER})?/)?{_REPOSITORY_PART}(/{_REPOSITORY_PART})*$", 255),
    "tag": _text(r"^([A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?$"),
    # Whole, and without a step upwards, which the API refuses.
    "directory": _text(r"^(/(\.?[^/:.][^/:]*|\.\.[^/:]+))+$"),
}
"""One text each; those that may be empty say so in their pattern."""

MAPS: dict[str, Schema] = {
    "labels": mapped(_text(LABEL_VALUE)),
    "annotations": mapped({"type": "string"}),
}
"""Keys have the syntax of labels in both."""
