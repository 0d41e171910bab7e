"""Workers' statements on their way in: verified with the worker's key, read from the very bytes that it signed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.core import messages as m
from orchestrator.core.errors import invalid
from orchestrator.core.ids import LeaseId
from orchestrator.receipts import dsse, ids
from orchestrator.receipts.statement import PAYLOAD_TYPE, parse_statement

if TYPE_CHECKING:
    from orchestrator.core.ids import WorkerId


def statement_command(worker_id: WorkerId, key: str, envelope: bytes) -> m.AcceptStatement:
    """Verify a statement's signature and read it. Raises RefusedError."""
    public_key = bytes.fromhex(key)
    try:
        payload = dsse.open_envelope(envelope, PAYLOAD_TYPE, {ids.key_id(public_key): public_key})
        statement = parse_statement(payload)
    except ValueError as error:
        raise invalid("statements", f"not a statement of this worker: {error}") from None
    if statement.worker_id != worker_id:
        raise invalid("statements.worker_id", "a worker states only about itself")
    return m.AcceptStatement(
        worker_id=worker_id,
        lease_id=LeaseId(statement.lease_id),
        subject=(statement.network_id, statement.member_id, statement.job_id, statement.attempt_id),
        sequence=statement.sequence,
        start_offset_ms=statement.start_offset_ms,
        end_offset_ms=statement.end_offset_ms,
        final=statement.final,
        device_ids=statement.device_ids,
        heartbeats_acknowledged=statement.heartbeats_acknowledged,
        payload_sha256=ids.sha256_hex(payload),
        envelope=envelope,
    )
