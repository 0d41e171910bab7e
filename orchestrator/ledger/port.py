"""What others may ask of the books, whether these live in the same process or behind gRPC.

Errors say what a caller with an outbox should do: RefusedArgument and ConflictingReceipt will be the same
next time; LedgerUnavailable will pass, and posting again is always safe.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

from orchestrator.ledger.core import Balance, Transfer, TransferId
from orchestrator.receipts.dsse import ENVELOPE_BYTES_MAX

# A screenful of a table for those who do not ask for more.
PAGE_SIZE_DEFAULT = 100
# A transfer takes about 350 bytes on the wire; a full page stays far below gRPC's usual 4 MiB per message.
PAGE_SIZE_MAX = 1000

# What ids here consist of; account owners and cursors are nothing else.
_SEARCHED = re.compile(r"[!-~]{0,200}")


class LedgerError(Exception):
    """The books did not do what was asked."""


class RefusedArgument(LedgerError):
    """The request is wrong and will stay wrong; ``field`` names what."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field


class ConflictingReceipt(LedgerError):
    """Another receipt stands in the books under this id; the first one stays."""


class LedgerUnavailable(LedgerError):
    """The books cannot be reached or written now; nothing was booked, or it was and posting again will say
    so.
    """


class SchemaTooNew(LedgerError):
    """The database was last used by a newer version, which this one cannot read."""


@dataclass(frozen=True, slots=True)
class Posted:
    """The receipt is in the books; ``already_posted`` if it was before this call."""

    receipt_id: str
    transfer_id: TransferId
    already_posted: bool


class LedgerPort(Protocol):
    """Double-entry books fed by signed receipts alone."""

    async def post_receipt(self, envelope: bytes) -> Posted:
        """Verify and book once, durably before returning; the same receipt again changes nothing.

        Raises RefusedArgument, ConflictingReceipt or LedgerUnavailable.
        """
        ...

    async def balances(self, owner: str) -> tuple[Balance, ...]:
        """Ordered by account and asset; an empty owner means all. Raises RefusedArgument or
        LedgerUnavailable.
        """
        ...

    async def transfers(self, after: str, page_size: int) -> tuple[Transfer, ...]:
        """In the order of booking, those that follow transfer ``after`` (empty: from the first).

        At most ``page_size``; 0 means PAGE_SIZE_DEFAULT. Raises RefusedArgument or LedgerUnavailable.
        """
        ...


def checked_envelope(envelope: bytes) -> bytes:
    """Refuse by size alone, before anything is sent or read. Raises RefusedArgument."""
    if len(envelope) > ENVELOPE_BYTES_MAX:
        raise RefusedArgument("envelope", f"{len(envelope)} bytes, at most {ENVELOPE_BYTES_MAX} are allowed")
    return envelope


def checked_search(field: str, value: str) -> str:
    """Refuse what no id can be. Raises RefusedArgument."""
    if not _SEARCHED.fullmatch(value):
        raise RefusedArgument(field, "an id of at most 200 visible ASCII characters is expected")
    return value


def checked_page_size(page_size: int) -> int:
    """The page size to use for the one asked for. Raises RefusedArgument."""
    if not 0 <= page_size <= PAGE_SIZE_MAX:
        raise RefusedArgument("page_size", f"{page_size} is not within 0 to {PAGE_SIZE_MAX}")
    return page_size or PAGE_SIZE_DEFAULT
