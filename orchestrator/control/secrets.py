"""Bearer tokens as text: a secret, and the pin of the authority to be trusted with it."""

from __future__ import annotations

import hashlib

from orchestrator.adapters.keys import PIN_MARK


def pinned(secret: str, pin: str) -> str:
    """The token as it is handed over: whoever has it knows whom to show it to. An older pin is replaced."""
    return f"{secret.partition(PIN_MARK)[0]}{PIN_MARK}{pin}"


def digest_of(token: str) -> str:
    """What is stored and looked up: the SHA-256 of the secret, whatever pin stands behind it."""
    return hashlib.sha256(token.partition(PIN_MARK)[0].encode("utf-8", "replace")).hexdigest()
