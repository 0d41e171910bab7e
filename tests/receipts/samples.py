"""True receipts and statements to start from, and the keys that sign them."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from orchestrator.receipts import receipt as receipts
from orchestrator.receipts import statement as statements
from orchestrator.receipts.bundle import build_bundle
from orchestrator.receipts.dsse import public_bytes, sign
from orchestrator.receipts.ids import key_id, receipt_id, sha256_hex, tenant_hash
from orchestrator.receipts.receipt import EPOCH_MS, Receipt
from orchestrator.receipts.statement import Statement

NETWORK = "net_test"
EPOCH = 490_000


def private_key(seed: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(seed.encode()).digest())


CONTROL = private_key("control plane")
WORKER = private_key("worker")
STRANGER = private_key("stranger")
CONTROL_PUBLIC = public_bytes(CONTROL)
WORKER_PUBLIC = public_bytes(WORKER)
KEYS = {key_id(public): public for public in (CONTROL_PUBLIC, WORKER_PUBLIC, public_bytes(STRANGER))}


def make_statement(**changes: Any) -> Statement:
    """One minute of two devices, the first of its lease unless changed."""
    statement = Statement(
        network_id=NETWORK,
        lease_id="lse_job_1-1-0",
        member_id="clu_1-0",
        worker_id="wrk_1",
        job_id="job_1",
        attempt_id="job_1-1",
        device_ids=("GPU-b", "GPU-a"),
        sequence=0,
        start_offset_ms=0,
        end_offset_ms=60_000,
        final=False,
        heartbeats_acknowledged=12,
    )
    return dataclasses.replace(statement, **changes)


def minutes(count: int, **changes: Any) -> list[Statement]:
    """Statements of one lease that follow each other, a minute each."""
    return [
        make_statement(sequence=n, start_offset_ms=n * 60_000, end_offset_ms=(n + 1) * 60_000, **changes)
        for n in range(count)
    ]


def make_receipt(said: list[Statement] | None = None, **changes: Any) -> Receipt:
    """A receipt over two minutes of two devices; its id follows from its other fields unless it is given."""
    start_ms = changes.get("start_ms", changes.get("epoch", EPOCH) * EPOCH_MS)
    end_ms = changes.get("end_ms", start_ms + 120_000)
    devices = changes.get("device_ids", ("GPU-a", "GPU-b"))
    fields: dict[str, Any] = {
        "network_id": NETWORK,
        "prev_hash": "",
        "lease_id": "lse_job_1-1-0",
        "fence_term": 3,
        "fence_generation": 1,
        "cluster_id": "clu_1",
        "job_id": "job_1",
        "attempt_id": "job_1-1",
        "tenant_hash": tenant_hash(NETWORK, "ten_1"),
        "supplier_id": "sup_1",
        "worker_id": "wrk_1",
        "worker_key_id": key_id(WORKER_PUBLIC),
        "device_ids": devices,
        "device_models": tuple("NVIDIA GeForce RTX 4090" for _ in devices),
        "simulated": True,
        "hardware_class": "consumer",
        "catalogue_version": "1",
        "epoch": EPOCH,
        "sequence": 0,
        "start_ms": start_ms,
        "end_ms": end_ms,
        "billed_ms": (end_ms - start_ms) * len(devices),
        "idle_ms": 0,
        "heartbeats_expected": 24,
        "heartbeats_received": 24,
        "statement_digests": tuple(sha256_hex(s.payload()) for s in (said or minutes(2))),
        "price_policy_hash": sha256_hex(b""),
        "issued_at_ms": end_ms + 1,
    } | changes
    fields.setdefault(
        "receipt_id",
        receipt_id(fields["network_id"], fields["lease_id"], fields["epoch"], fields["sequence"]),
    )
    return Receipt(**fields)


def sign_receipt(receipt: Receipt, key: Ed25519PrivateKey = CONTROL) -> bytes:
    return sign(receipts.PAYLOAD_TYPE, receipt.payload(), key)


def sign_statement(statement: Statement, key: Ed25519PrivateKey = WORKER) -> bytes:
    return sign(statements.PAYLOAD_TYPE, statement.payload(), key)


def make_bundle(said: list[Statement] | None = None, **changes: Any) -> bytes:
    """A bundle whose statements are all signed by the worker."""
    said = said or minutes(2)
    return build_bundle(sign_receipt(make_receipt(said, **changes)), [sign_statement(s) for s in said], KEYS)
