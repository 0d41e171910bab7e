"""How a decision says no: one exception type, so that every door can answer with the same sentence."""

from __future__ import annotations

from enum import StrEnum


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


class RefusedError(Exception):
    """A command that changes nothing. ``field`` names the input at fault, empty where none is."""

    def __init__(self, code: RefusalCode, message: str, field: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.field = field


def invalid(field: str, message: str) -> RefusedError:
    """Refusal of one input, named by its field."""
    return RefusedError(RefusalCode.INVALID, message, field)


def not_found(kind: str, name: str) -> RefusedError:
    """Refusal for a thing that the caller named and that does not exist for them."""
    return RefusedError(
        RefusalCode.NOT_FOUND, f"no {kind} named {name!r}; list them to see the right name", kind
    )
