"""Workers' statements on their way in: verified with the worker's key, read from the very bytes that it signed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from orchestrator.api.v1 import worker_pb2
from orchestrator.core import messages as m
from orchestrator.core.errors import RefusedError, invalid
from orchestrator.core.ids import LeaseId
from orchestrator.receipts import dsse, ids
from orchestrator.receipts.statement import PAYLOAD_TYPE, parse_statement

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from orchestrator.control.loop import Committed
    from orchestrator.core.ids import WorkerId

STATEMENTS_MAX = 10_000
"""More in one message than a worker could gather in a week of holding all its slots."""


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


async def accept_statements(
    worker_id: WorkerId,
    key: str,
    envelopes: Sequence[bytes],
    submit: Callable[[m.Command], Awaitable[Committed]],
    send: Callable[[worker_pb2.SessionResponse], Awaitable[None]],
) -> list[RefusedError]:
    """Take what counts, acknowledge it once it is durable, and give back why the rest was refused."""
    refused: list[RefusedError] = []
    for envelope in envelopes[:STATEMENTS_MAX]:
        try:
            command = statement_command(worker_id, key, envelope)
            committed = await submit(command)
        except RefusedError as refusal:
            refused.append(refusal)
            # Nothing was waited for: thousands of forgeries in a row would keep everybody else waiting.
            await asyncio.sleep(0)
            continue
        sequence = committed.result
        if isinstance(sequence, int) and sequence >= command.sequence:
            ack = worker_pb2.StatementAck(lease_id=command.lease_id, sequence=sequence)
            await send(worker_pb2.SessionResponse(statement_ack=ack))
    return refused
