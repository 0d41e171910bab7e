"""In-memory adapters that keep what a disk would keep when the process above them dies."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from orchestrator.adapters import codec
from orchestrator.agent.journal import Record
from orchestrator.core.apply import apply
from orchestrator.core.entities import TABLES
from orchestrator.core.policies import Policies
from orchestrator.core.state import State
from orchestrator.ledger.core import book
from orchestrator.receipts import dsse, ids
from orchestrator.receipts.receipt import PAYLOAD_TYPE, parse_receipt

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    from orchestrator.adapters.store import Transaction
    from orchestrator.ledger.core import Transfer

COMMIT_S_MAX = 0.02
"""A slow disk's flush."""


class MemoryStore:
    """Rows and log as encoded bytes. ``interrupt`` may end the process before or after a batch is applied."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self.rows: dict[str, dict[str, bytes]] = {table: {} for table in TABLES}
        self.log: list[tuple[int, int, str, bytes]] = []
        self.interrupt: Callable[[str], None] | None = None

    async def commit(self, transaction: Transaction) -> None:
        """All or nothing, after a while; a crash may fall on either side of the instant that counts."""
        await asyncio.sleep(self._random.random() * COMMIT_S_MAX)
        if self.interrupt is not None:
            self.interrupt("before_write")
        self.write(transaction)
        if self.interrupt is not None:
            self.interrupt("after_write")

    def write(self, transaction: Transaction) -> None:
        """The instant that counts."""
        for position, event in enumerate(transaction.events, start=1):
            version = transaction.base_version + position
            self.log.append((version, transaction.at_ms, type(event).__name__, codec.encode(event)))
        for table, key, entity in transaction.rows:
            if entity is None:
                self.rows[table].pop(key, None)
            else:
                self.rows[table][key] = codec.encode(entity)

    def load(self, policies: Policies) -> State:
        """As SqlStore.load."""
        state = State(policies)
        for table, rows in self.rows.items():
            for key in sorted(rows):
                state.put(codec.decode_entity(table, rows[key]))
        state.version, state.latest_ms = self.log[-1][:2] if self.log else (0, 0)
        state.take_touched()
        return state

    def replay(self, policies: Policies) -> State:
        """As SqlStore.replay."""
        state = State(policies)
        for version, at_ms, name, body in self.log:
            apply(state, codec.decode_event(name, codec.event_version(name), body), at_ms)
            if state.version != version:
                raise AssertionError(f"event {version} is the {state.version}th of the log")
        state.take_touched()
        return state


class MemoryLogFiles:
    """Logs that outlive the control plane's process."""

    def __init__(self) -> None:
        self.files: dict[str, bytearray] = {}

    async def append(self, attempt_id: str, offset: int, data: bytes) -> int:
        """As LogFiles.append."""
        kept = self.files.setdefault(attempt_id, bytearray())
        if offset <= len(kept):
            kept[offset:] = kept[offset : offset + len(data)] + data[len(kept) - offset :]
        return len(kept)

    def size_bytes(self, attempt_id: str) -> int:
        """Bytes stored."""
        return len(self.files.get(attempt_id, b""))

    async def read(self, attempt_id: str, offset: int, size_max: int) -> bytes:
        """As LogFiles.read."""
        return bytes(self.files.get(attempt_id, b"")[offset : offset + size_max])


class MemoryJournal:
    """An agent's journal that outlives its process; what was not saved is lost with it."""

    def __init__(self) -> None:
        self._saved = b""

    def load(self) -> Record:
        """As FileJournal.load."""
        return codec.decode_as(self._saved, Record) if self._saved else Record()

    def save(self, record: Record) -> None:
        """As FileJournal.save."""
        self._saved = codec.encode(record)


class MemoryLedger:
    """Books with the real booking rule, on the far side of an unreliable wire: posting may fail before or after."""

    def __init__(self, random: Random, key: Ed25519PublicKey) -> None:
        self._random = random
        self._keys = {ids.key_id(key.public_bytes_raw()): key.public_bytes_raw()}
        self.transfers: dict[str, Transfer] = {}
        self.envelopes: dict[str, bytes] = {}
        self.failure_ratio = 0.0

    async def post(self, envelope: bytes) -> str:
        """As LedgerDesk.post."""
        await asyncio.sleep(self._random.random() * 0.05)
        if self._random.random() < self.failure_ratio:
            raise ConnectionError("the ledger is away")
        receipt = parse_receipt(dsse.open_envelope(envelope, PAYLOAD_TYPE, self._keys))
        transfer = book(receipt)
        known = self.envelopes.setdefault(receipt.receipt_id, envelope)
        if known != envelope:
            raise AssertionError(f"two different receipts under id {receipt.receipt_id}")
        self.transfers[transfer.transfer_id] = transfer
        if self._random.random() < self.failure_ratio:
            raise ConnectionError("the answer was lost")
        return transfer.transfer_id


class MemoryWebhooks:
    """Owners' webhooks: what was posted, by URL."""

    def __init__(self) -> None:
        self.posted: list[tuple[str, bytes]] = []

    async def post(self, url: str, body: bytes, *, vouched: bool) -> None:  # noqa: ARG002 -- the desk's shape
        """As WebhookDesk.post."""
        self.posted.append((url, body))
