"""Ids and digests that anyone can compute again from what a receipt says."""

from __future__ import annotations

import hashlib

from orchestrator.receipts.canonical import canonical_bytes

# 160 bits: no two inputs will ever meet, and the id still fits on a line.
ID_HEX_CHARACTERS = 40


def sha256_hex(data: bytes) -> str:
    """SHA-256 in lowercase hexadecimal, the form of every digest here."""
    return hashlib.sha256(data).hexdigest()


def key_id(public_key: bytes) -> str:
    """Names a raw 32-byte Ed25519 public key by its own digest, so a name cannot be moved to another key."""
    return "key_" + sha256_hex(public_key)[:ID_HEX_CHARACTERS]


def receipt_id(network_id: str, lease_id: str, epoch: int, sequence: int) -> str:
    """The same hour of the same lease has the same id for ever, whoever computes it and however often."""
    named = ["orchestrator.receipt-id.v1", network_id, lease_id, str(epoch), str(sequence)]
    return "rct_" + sha256_hex(canonical_bytes(named))[:ID_HEX_CHARACTERS]


def tenant_hash(network_id: str, tenant_id: str) -> str:
    """Stands for a tenant in receipts and books: the same within one network, not to be joined across
    networks.

    It hides a tenant only as well as tenant ids are hard to guess.
    """
    return sha256_hex(canonical_bytes(["orchestrator.tenant.v1", network_id, tenant_id]))
