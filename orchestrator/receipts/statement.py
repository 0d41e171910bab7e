"""A worker's statement: how long it held which devices for one lease, by its own boot clock."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.receipts.record import Inconsistent, decode_record, encode_record, require_ids

PAYLOAD_TYPE = "application/vnd.orchestrator.statement.v1+json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """One interval of one lease.

    Offsets are milliseconds of the worker's boot clock since the lease began there, so a wrong wall clock
    changes nothing. ``sequence`` counts from 0; each statement starts where the one before it ended, the
    first at 0.
    """

    network_id: str
    lease_id: str
    member_id: str
    worker_id: str
    job_id: str
    attempt_id: str
    device_ids: tuple[str, ...]
    sequence: int
    start_offset_ms: int
    end_offset_ms: int
    final: bool
    heartbeats_acknowledged: int

    def duration_ms(self) -> int:
        """Length of the interval, whatever the number of devices."""
        return self.end_offset_ms - self.start_offset_ms

    def payload(self) -> bytes:
        """The bytes to sign as PAYLOAD_TYPE. Raises FieldError if the statement cannot be true."""
        self.validate()
        return encode_record(self)

    def validate(self) -> None:
        """Raise FieldError for a malformed field, Inconsistent for fields that contradict each other."""
        require_ids(
            network_id=self.network_id,
            lease_id=self.lease_id,
            member_id=self.member_id,
            worker_id=self.worker_id,
            job_id=self.job_id,
            attempt_id=self.attempt_id,
        )
        for device_id in self.device_ids:
            require_ids(device_ids=device_id)
        if len(set(self.device_ids)) != len(self.device_ids):
            raise Inconsistent("device_ids", "a device is named twice")
        if self.end_offset_ms < self.start_offset_ms:
            raise Inconsistent("end_offset_ms", "before start_offset_ms")
        if self.sequence == 0 and self.start_offset_ms != 0:
            raise Inconsistent("start_offset_ms", "the first statement of a lease starts at 0")


def parse_statement(payload: bytes) -> Statement:
    """Read a payload whose signature was verified. Raises CanonicalError or FieldError, which names the
    field.
    """
    statement = decode_record(Statement, payload)
    statement.validate()
    return statement
