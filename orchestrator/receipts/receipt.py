"""A receipt: what the control plane bills for one hour, or the part of it, of one lease.

It states facts only; prices and rewards are derived later, from receipts and a policy file.

By hand: ``epoch`` is ``start_ms`` in whole hours since 1970, the interval [start_ms, end_ms) ends within that
hour, ``billed_ms`` is its length times the number of devices, and ``receipt_id`` is ``rct_`` and the first 40
hexadecimal characters of the SHA-256 of
``["orchestrator.receipt-id.v1","<network_id>","<lease_id>","<epoch>","<sequence>"]``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from orchestrator.receipts import ids
from orchestrator.receipts.record import (
    FieldError,
    Inconsistent,
    decode_record,
    encode_record,
    require_digest,
    require_ids,
)

PAYLOAD_TYPE = "application/vnd.orchestrator.receipt.v1+json"
SCHEMA = "orchestrator.receipt.v1"
# An epoch is one UTC hour.
EPOCH_MS = 3_600_000
# T0 self-reported, T1 challenged, T2 cross-checked, T3 attested.
EVIDENCE_CLASSES = frozenset({"T0", "T1", "T2", "T3"})

# Part of an asset's name in the books, so without any separator.
_HARDWARE_CLASS = re.compile(r"[a-z][a-z0-9_]{0,31}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """Times are the control plane's wall milliseconds since 1970 (UTC); ``billed_ms`` and ``idle_ms`` are
    device-ms.

    ``prev_hash`` is the SHA-256 of the lease's previous receipt payload, empty for its first;
    ``statement_digests`` are those of the worker's statement payloads that cover the interval, in their
    order; ``correction_of`` is empty but for corrections; ``price_policy_hash`` is the SHA-256 of the price
    policy file (of no bytes where none is).
    """

    schema: str = SCHEMA
    network_id: str
    receipt_id: str
    prev_hash: str
    lease_id: str
    fence_term: int
    fence_generation: int
    cluster_id: str
    job_id: str
    attempt_id: str
    tenant_hash: str
    supplier_id: str
    worker_id: str
    worker_key_id: str
    device_ids: tuple[str, ...]
    device_models: tuple[str, ...]
    simulated: bool
    hardware_class: str
    catalogue_version: str
    epoch: int
    sequence: int
    start_ms: int
    end_ms: int
    billed_ms: int
    idle_ms: int
    heartbeats_expected: int
    heartbeats_received: int
    evidence_class: str = "T0"
    challenge_digests: tuple[str, ...] = ()
    statement_digests: tuple[str, ...]
    price_policy_hash: str
    correction_of: str = ""
    issued_at_ms: int

    def payload(self) -> bytes:
        """The bytes to sign as PAYLOAD_TYPE. Raises FieldError if the receipt cannot be true."""
        self.validate()
        return encode_record(self)

    def validate(self) -> None:
        """Raise FieldError for a malformed field, Inconsistent for fields that contradict each other."""
        self._validate_forms()
        self._validate_devices()
        self._validate_interval()
        if self.receipt_id != ids.receipt_id(self.network_id, self.lease_id, self.epoch, self.sequence):
            raise Inconsistent("receipt_id", "not the id of this network, lease, epoch and sequence")
        if not self.statement_digests:
            raise Inconsistent("statement_digests", "nothing is billed without a statement of the worker")
        if len(set(self.statement_digests)) != len(self.statement_digests):
            raise Inconsistent("statement_digests", "a statement is named twice")

    def _validate_forms(self) -> None:
        if self.schema != SCHEMA:
            raise FieldError("schema", f"{SCHEMA} is expected; another version needs another reader")
        require_ids(
            network_id=self.network_id,
            lease_id=self.lease_id,
            cluster_id=self.cluster_id,
            job_id=self.job_id,
            attempt_id=self.attempt_id,
            supplier_id=self.supplier_id,
            worker_id=self.worker_id,
            worker_key_id=self.worker_key_id,
            catalogue_version=self.catalogue_version,
        )
        require_digest("tenant_hash", self.tenant_hash)
        require_digest("price_policy_hash", self.price_policy_hash)
        if self.prev_hash:
            require_digest("prev_hash", self.prev_hash)
        if self.correction_of:
            require_ids(correction_of=self.correction_of)
        for digest in self.challenge_digests:
            require_digest("challenge_digests", digest)
        for digest in self.statement_digests:
            require_digest("statement_digests", digest)
        if not _HARDWARE_CLASS.fullmatch(self.hardware_class):
            raise FieldError("hardware_class", "a lowercase word of at most 32 characters is expected")
        if self.evidence_class not in EVIDENCE_CLASSES:
            raise FieldError("evidence_class", f"one of {', '.join(sorted(EVIDENCE_CLASSES))} is expected")

    def _validate_devices(self) -> None:
        for device_id in self.device_ids:
            require_ids(device_ids=device_id)
        if not self.device_ids:
            raise Inconsistent("device_ids", "a receipt bills at least one device")
        if len(set(self.device_ids)) != len(self.device_ids):
            raise Inconsistent("device_ids", "a device is named twice")
        if len(self.device_models) != len(self.device_ids):
            raise Inconsistent(
                "device_models", "one model per device, in the order of device_ids, is expected"
            )

    def _validate_interval(self) -> None:
        if self.end_ms <= self.start_ms:
            raise Inconsistent("end_ms", "the interval is empty or runs backwards")
        if self.epoch != self.start_ms // EPOCH_MS:
            raise Inconsistent("epoch", "not the hour of start_ms")
        if self.end_ms > (self.epoch + 1) * EPOCH_MS:
            raise Inconsistent("end_ms", "the interval leaves its hour")
        if self.billed_ms != (self.end_ms - self.start_ms) * len(self.device_ids):
            raise Inconsistent("billed_ms", "not the interval times the number of devices")
        if self.idle_ms > self.billed_ms:
            raise Inconsistent("idle_ms", "more than billed_ms")


def parse_receipt(payload: bytes) -> Receipt:
    """Read a payload whose signature was verified. Raises CanonicalError or FieldError, which names the
    field.
    """
    receipt = decode_record(Receipt, payload)
    receipt.validate()
    return receipt
