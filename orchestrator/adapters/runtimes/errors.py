"""Why a runtime cannot be had here."""

from __future__ import annotations


class RuntimeUnavailableError(RuntimeError):
    """One sentence for the owner: what is wrong and what to do. Never an index's address, which may hold a secret."""
