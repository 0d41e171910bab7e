"""How a decision says no: one exception type, so that every door can answer with the same sentence."""

from __future__ import annotations

from enum import StrEnum

NAME_CHARACTERS_MAX = 80
"""Of a name that was sent, as much as an answer repeats: enough to know it again, and one line of text."""


class RefusalCode(StrEnum):
    """Why a command was refused; the doors map it to gRPC and HTTP statuses."""

    INVALID = "invalid"
    NOT_FOUND = "not_found"
    ALREADY_EXISTS = "already_exists"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    CONFLICT = "conflict"
    EXHAUSTED = "exhausted"
    STALE = "stale"
    UNAVAILABLE = "unavailable"
    INTERNAL = "internal"
    """A fault of ours, and nothing was done."""


class RefusedError(Exception):
    """A command that changes nothing. ``field`` names the input at fault, empty where none is."""

    def __init__(self, code: RefusalCode, message: str, field: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.field = field


class UndecidedError(Exception):
    """A decision failed by a fault of ours, which is its cause. Nothing was applied, so the state is as it was."""


def invalid(field: str, message: str) -> RefusedError:
    """Refusal of one input, named by its field."""
    return RefusedError(RefusalCode.INVALID, message, field)


def not_found(kind: str, name: str) -> RefusedError:
    """Refusal for a thing that the caller named and that does not exist for them."""
    shown = name[:NAME_CHARACTERS_MAX]
    return RefusedError(
        RefusalCode.NOT_FOUND, f"no {kind} named {shown!r}; list them to see the right name", kind
    )
