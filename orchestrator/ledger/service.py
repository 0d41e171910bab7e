"""The ledger as a LedgerPort in this process, as a gRPC service, and as a client of one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Never, TypeVar

import grpc
import grpc.aio

from orchestrator.api.v1 import ledger_pb2, ledger_pb2_grpc
from orchestrator.ledger.core import (
    AccountId,
    Asset,
    Balance,
    CorrectionRefused,
    Transfer,
    TransferId,
    book,
)
from orchestrator.ledger.port import (
    ConflictingReceipt,
    LedgerError,
    LedgerPort,
    LedgerUnavailable,
    Posted,
    RefusedArgument,
    checked_envelope,
    checked_page_size,
    checked_search,
)
from orchestrator.ledger.store import LedgerStore
from orchestrator.receipts.canonical import CanonicalError
from orchestrator.receipts.dsse import EnvelopeError, open_envelope
from orchestrator.receipts.ids import sha256_hex
from orchestrator.receipts.receipt import PAYLOAD_TYPE, parse_receipt
from orchestrator.receipts.record import FieldError

# One posts while others read; SQLite has one writer anyway.
STORE_THREADS = 4
# Longer than the store waits for its turn, so that the store's own answer arrives first.
CALL_TIMEOUT_S = 20.0

T = TypeVar("T")


class Ledger:
    """The books in this process: verifies, books, and answers from the store, which it calls on its own
    threads.

    ``trusted_keys`` maps key ids to the raw public keys of control planes whose receipts are booked.
    ``close`` ends the threads; the store stays its owner's.
    """

    def __init__(self, store: LedgerStore, trusted_keys: Mapping[str, bytes]) -> None:
        self._store = store
        self._trusted_keys = trusted_keys
        self._threads = ThreadPoolExecutor(max_workers=STORE_THREADS, thread_name_prefix="ledger")

    async def post_receipt(self, envelope: bytes) -> Posted:
        checked_envelope(envelope)
        return await self._on_thread(lambda: self._post(envelope))

    async def balances(self, owner: str) -> tuple[Balance, ...]:
        checked_search("owner", owner)
        return await self._on_thread(lambda: self._store.balances(owner))

    async def transfers(self, after: str, page_size: int) -> tuple[Transfer, ...]:
        checked_search("after_transfer_id", after)
        size = checked_page_size(page_size)
        return await self._on_thread(lambda: self._store.transfers(after, size))

    async def totals(self) -> tuple[int, int]:
        """(receipts booked, debits less credits over all accounts). Raises LedgerUnavailable."""
        return await self._on_thread(self._store.totals)

    def close(self) -> None:
        """Finish what was begun and end the threads."""
        self._threads.shutdown(wait=True)

    def _post(self, envelope: bytes) -> Posted:
        try:
            payload = open_envelope(envelope, PAYLOAD_TYPE, self._trusted_keys)
            transfer = book(parse_receipt(payload))
        except FieldError as error:
            raise RefusedArgument(f"envelope.payload.{error.field}", error.reason) from None
        except CorrectionRefused as error:
            raise RefusedArgument("envelope.payload.correction_of", str(error)) from None
        except (EnvelopeError, CanonicalError) as error:
            raise RefusedArgument("envelope", str(error)) from None
        booked = self._store.post(transfer, envelope, sha256_hex(payload))
        return Posted(transfer.receipt_id, transfer.transfer_id, already_posted=not booked)

    async def _on_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


class LedgerServicer(ledger_pb2_grpc.LedgerServiceServicer):
    """Offers any LedgerPort over grpc.aio."""

    def __init__(self, ledger: LedgerPort) -> None:
        self._ledger = ledger

    async def PostReceipt(  # noqa: N802  # the proto's name
        self,
        request: ledger_pb2.PostReceiptRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> ledger_pb2.PostReceiptResponse:
        try:
            posted = await self._ledger.post_receipt(request.envelope)
        except LedgerError as error:
            await _abort(context, error)
        return ledger_pb2.PostReceiptResponse(
            receipt_id=posted.receipt_id,
            transfer_id=posted.transfer_id,
            already_posted=posted.already_posted,
        )

    async def ListBalances(  # noqa: N802  # the proto's name
        self,
        request: ledger_pb2.ListBalancesRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> ledger_pb2.ListBalancesResponse:
        try:
            found = await self._ledger.balances(request.owner)
        except LedgerError as error:
            await _abort(context, error)
        return ledger_pb2.ListBalancesResponse(
            balances=[
                ledger_pb2.Balance(
                    account_id=balance.account_id,
                    asset=balance.asset,
                    debits=balance.debits,
                    credits=balance.credits,
                )
                for balance in found
            ]
        )

    async def ListTransfers(  # noqa: N802  # the proto's name
        self,
        request: ledger_pb2.ListTransfersRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> ledger_pb2.ListTransfersResponse:
        try:
            found = await self._ledger.transfers(request.after_transfer_id, request.page_size)
        except LedgerError as error:
            await _abort(context, error)
        return ledger_pb2.ListTransfersResponse(
            transfers=[
                ledger_pb2.Transfer(
                    transfer_id=transfer.transfer_id,
                    receipt_id=transfer.receipt_id,
                    debit_account_id=transfer.debit_account_id,
                    credit_account_id=transfer.credit_account_id,
                    asset=transfer.asset,
                    amount=transfer.amount,
                )
                for transfer in found
            ]
        )


class LedgerClient:
    """A LedgerPort whose books are behind a channel; the channel stays its owner's."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = ledger_pb2_grpc.LedgerServiceStub(channel)

    async def post_receipt(self, envelope: bytes) -> Posted:
        request = ledger_pb2.PostReceiptRequest(envelope=checked_envelope(envelope))
        try:
            response = await self._stub.PostReceipt(request, timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise _error_of(error) from error
        return Posted(response.receipt_id, TransferId(response.transfer_id), response.already_posted)

    async def balances(self, owner: str) -> tuple[Balance, ...]:
        request = ledger_pb2.ListBalancesRequest(owner=checked_search("owner", owner))
        try:
            response = await self._stub.ListBalances(request, timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise _error_of(error) from error
        return tuple(
            Balance(AccountId(balance.account_id), Asset(balance.asset), balance.debits, balance.credits)
            for balance in response.balances
        )

    async def transfers(self, after: str, page_size: int) -> tuple[Transfer, ...]:
        request = ledger_pb2.ListTransfersRequest(
            after_transfer_id=checked_search("after_transfer_id", after),
            page_size=checked_page_size(page_size),
        )
        try:
            response = await self._stub.ListTransfers(request, timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise _error_of(error) from error
        return tuple(
            Transfer(
                transfer_id=TransferId(transfer.transfer_id),
                receipt_id=transfer.receipt_id,
                debit_account_id=AccountId(transfer.debit_account_id),
                credit_account_id=AccountId(transfer.credit_account_id),
                asset=Asset(transfer.asset),
                amount=transfer.amount,
            )
            for transfer in response.transfers
        )


async def _abort(context: grpc.aio.ServicerContext[Any, Any], error: LedgerError) -> Never:
    match error:
        case RefusedArgument():
            code = grpc.StatusCode.INVALID_ARGUMENT
        case ConflictingReceipt():
            code = grpc.StatusCode.ALREADY_EXISTS
        case _:
            code = grpc.StatusCode.UNAVAILABLE
    await context.abort(code, str(error))


def _error_of(error: grpc.aio.AioRpcError) -> LedgerError:
    """The servicer's mapping, backwards; every other failure is of the connection and will pass."""
    details = error.details() or error.code().name
    match error.code():
        case grpc.StatusCode.INVALID_ARGUMENT:
            field, _, reason = details.partition(": ")
            return RefusedArgument(field, reason)
        case grpc.StatusCode.ALREADY_EXISTS:
            return ConflictingReceipt(details)
        case _:
            return LedgerUnavailable(f"ledger service: {details}")
