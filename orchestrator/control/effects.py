"""Doing what was decided: tell workers, sign receipts, give them to the ledger. Idempotent, tried until done."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol, assert_never

import structlog

from orchestrator.core import messages as m
from orchestrator.core.decide import pending_effects
from orchestrator.core.errors import RefusedError
from orchestrator.core.supply.catalogue import CATALOGUE_VERSION
from orchestrator.receipts import dsse, ids
from orchestrator.receipts.receipt import PAYLOAD_TYPE, Receipt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from orchestrator.control.alerts import Alerts
    from orchestrator.control.loop import Loop
    from orchestrator.control.sessions import Sessions
    from orchestrator.core.ids import ReceiptId
    from orchestrator.core.state import State

log = structlog.get_logger(__name__)

REVISIT_S = 15.0
"""How soon an effect whose outcome was lost is found again among the pending ones."""

NO_PRICE_POLICY = ids.sha256_hex(b"")
"""No price policy exists yet; the digest of no bytes says so."""


class LedgerDesk(Protocol):
    """Where receipts go: the id of the transfer that booked it. Raises OSError while it cannot be reached."""

    async def post(self, envelope: bytes) -> str: ...


class Effects:
    """Takes effects from the loop and performs them beside it."""

    def __init__(
        self,
        sessions: Sessions,
        loop: Loop,
        ledger: LedgerDesk,
        alerts: Alerts,
        key: Ed25519PrivateKey,
    ) -> None:
        self._sessions = sessions
        self._loop = loop
        self._ledger = ledger
        self._alerts = alerts
        self._key = key
        self._queue: dict[m.Effect, None] = {}
        self._filled = asyncio.Event()

    def perform(self, effects: Sequence[m.Effect]) -> None:
        """Begin effects; equal ones that still wait are done once."""
        for effect in effects:
            match effect:
                case m.SyncWorker():
                    self._sessions.sync(effect.worker_id)
                case m.ShutOut():
                    self._sessions.shut_out(effect.worker_id)
                case m.DeliverAlert():
                    self._alerts.deliver(effect)
                case m.SignReceipt() | m.PostReceipt():
                    self._queue[effect] = None
                    self._filled.set()
                case _:
                    assert_never(effect)

    async def run(self) -> None:
        """Work through receipts until cancelled."""
        try:
            await asyncio.gather(self._work(), self._revisit())
        finally:
            await self._alerts.close()

    async def _work(self) -> None:
        while True:
            await self._filled.wait()
            self._filled.clear()
            while self._queue:
                effect = next(iter(self._queue))
                del self._queue[effect]
                try:
                    await self._receipt(effect)
                except (OSError, RefusedError, ValueError) as error:
                    # One receipt that cannot be made must not stop the others; it is tried again, and seen.
                    log.warning("effect_postponed", effect=type(effect).__name__, reason=str(error))

    async def _revisit(self) -> None:
        while True:
            await asyncio.sleep(REVISIT_S)
            self.perform(await self._loop.read(pending_effects))

    async def _receipt(self, effect: m.Effect) -> None:
        match effect:
            case m.SignReceipt():
                unsigned = await self._loop.read(lambda state: build_receipt(state, effect.receipt_id))
                if unsigned is None:
                    return
                payload = unsigned.payload()
                envelope = dsse.sign(PAYLOAD_TYPE, payload, self._key)
                await self._loop.submit(
                    m.RecordSignature(effect.receipt_id, envelope, ids.sha256_hex(payload))
                )
            case m.PostReceipt():
                envelope = await self._loop.read(lambda state: state.receipts[effect.receipt_id].envelope)
                transfer_id = await self._ledger.post(envelope)
                await self._loop.submit(m.RecordPosting(effect.receipt_id, transfer_id))
                log.info("receipt_posted", receipt_id=effect.receipt_id, transfer_id=transfer_id)
            case _:
                pass


def build_receipt(state: State, receipt_id: ReceiptId) -> Receipt | None:
    """The receipt's fields as they will be signed; None where it is signed already.

    A pure function of the state, so a signature made twice is over the same bytes.
    """
    sealed = state.receipts[receipt_id]
    if sealed.envelope:
        return None
    lease = state.leases[sealed.lease_id]
    worker = state.workers[lease.worker_id]
    earlier = [state.receipts[one] for one in state.receipts_of[sealed.lease_id]]
    previous = next((one for one in earlier if one.sequence == sealed.sequence - 1), None)
    network_id = state.control.network_id
    digests = (
        state.statements[f"{lease.lease_id}/{number}"].payload_sha256 for number in sealed.statement_sequences
    )
    return Receipt(
        network_id=network_id,
        receipt_id=sealed.receipt_id,
        prev_hash=previous.payload_sha256 if previous is not None else "",
        lease_id=lease.lease_id,
        fence_term=lease.fence.term,
        fence_generation=lease.fence.generation,
        cluster_id=lease.cluster_id,
        job_id=lease.job_id,
        attempt_id=lease.attempt_id,
        tenant_hash=ids.tenant_hash(network_id, lease.tenant_id),
        supplier_id=lease.supplier_id,
        worker_id=lease.worker_id,
        worker_key_id=ids.key_id(bytes.fromhex(worker.statement_key)),
        device_ids=lease.device_ids,
        device_models=lease.device_models,
        simulated=lease.simulated,
        hardware_class=lease.hardware_class.value,
        catalogue_version=CATALOGUE_VERSION,
        epoch=sealed.epoch,
        sequence=sealed.sequence,
        start_ms=sealed.start_ms,
        end_ms=sealed.end_ms,
        billed_ms=sealed.billed_ms,
        idle_ms=0,
        heartbeats_expected=sealed.heartbeats_expected,
        heartbeats_received=sealed.heartbeats_received,
        evidence_class=lease.evidence_class,
        challenge_digests=(),
        statement_digests=tuple(digests),
        price_policy_hash=NO_PRICE_POLICY,
        correction_of="",
        issued_at_ms=sealed.issued_at_ms,
    )
