"""Words that come with a call: ids, names and cursors, checked before they are looked at."""

from __future__ import annotations

from orchestrator.core.errors import invalid

WORD_CHARACTERS_MAX = 200
"""No id, name or cursor is longer."""


def word(field: str, value: str, *, empty: bool = False) -> str:
    """An id or a name as it may come; INVALID, by its field, otherwise."""
    if not value and not empty:
        raise invalid(field, f"{field} is missing")
    if len(value) > WORD_CHARACTERS_MAX or not value.isprintable():
        raise invalid(field, f"{field} is not 1 to {WORD_CHARACTERS_MAX} printable characters")
    return value
