"""What every LedgerPort promises, held by the one in this process and by the one behind gRPC alike."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest
import pytest_asyncio

from orchestrator.api.v1 import ledger_pb2, ledger_pb2_grpc
from orchestrator.ledger.core import book, transfer_id_of
from orchestrator.ledger.port import (
    PAGE_SIZE_MAX,
    ConflictingReceipt,
    LedgerPort,
    LedgerUnavailable,
    Posted,
    RefusedArgument,
)
from orchestrator.ledger.service import Ledger, LedgerClient, LedgerServicer
from orchestrator.ledger.store import open_store
from orchestrator.receipts import receipt as receipts
from orchestrator.receipts.canonical import canonical_bytes
from orchestrator.receipts.dsse import ENVELOPE_BYTES_MAX, sign
from orchestrator.receipts.ids import key_id
from tests.ledger.books import add_up
from tests.receipts.samples import (
    CONTROL,
    CONTROL_PUBLIC,
    STRANGER,
    make_receipt,
    make_statement,
    sign_receipt,
    sign_statement,
)


@pytest_asyncio.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    store = open_store(f"sqlite:///{tmp_path}/ledger.db")
    opened = Ledger(store, {key_id(CONTROL_PUBLIC): CONTROL_PUBLIC})
    yield opened
    opened.close()
    store.close()


@pytest_asyncio.fixture
async def channel(ledger: Ledger) -> AsyncIterator[grpc.aio.Channel]:
    server = grpc.aio.server()
    ledger_pb2_grpc.add_LedgerServiceServicer_to_server(LedgerServicer(ledger), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as opened:
        yield opened
    await server.stop(grace=None)


@pytest_asyncio.fixture(params=["in_process", "grpc"])
async def port(request: pytest.FixtureRequest, ledger: Ledger, channel: grpc.aio.Channel) -> LedgerPort:
    return ledger if request.param == "in_process" else LedgerClient(channel)


def changed_after_its_checks(**changes: object) -> bytes:
    payload = canonical_bytes(json.loads(make_receipt().payload()) | changes)
    return sign(receipts.PAYLOAD_TYPE, payload, CONTROL)


async def test_post_receipt_once_and_again_books_once(port: LedgerPort) -> None:
    receipt = make_receipt()
    transfer_id = transfer_id_of(receipt.receipt_id)
    envelope = sign_receipt(receipt)
    assert await port.post_receipt(envelope) == Posted(receipt.receipt_id, transfer_id, already_posted=False)
    assert await port.post_receipt(envelope) == Posted(receipt.receipt_id, transfer_id, already_posted=True)
    assert await port.balances("") == add_up([book(receipt)])
    assert await port.transfers("", 0) == (book(receipt),)


async def test_post_receipt_at_the_same_time_books_once(port: LedgerPort) -> None:
    envelope = sign_receipt(make_receipt())
    posted = await asyncio.gather(*(port.post_receipt(envelope) for _ in range(20)))
    assert sorted(one.already_posted for one in posted) == [False] + [True] * 19


async def test_balances_of_one_owner_leave_others_out(port: LedgerPort) -> None:
    mine = make_receipt(supplier_id="sup_1")
    theirs = make_receipt(supplier_id="sup_2", sequence=1)
    for receipt in (mine, theirs):
        await port.post_receipt(sign_receipt(receipt))
    (supplier,) = await port.balances("sup_1")
    assert (supplier.account_id, supplier.debits, supplier.credits) == ("supplier:sup_1", 0, 240_000)
    (tenant,) = await port.balances(mine.tenant_hash)
    assert (tenant.debits, tenant.credits) == (480_000, 0)
    assert await port.balances("sup") == ()
    assert len(await port.balances("")) == 3


async def test_transfers_page_by_page_are_all_of_them_in_order(port: LedgerPort) -> None:
    booked = [make_receipt(sequence=n) for n in range(7)]
    for receipt in booked:
        await port.post_receipt(sign_receipt(receipt))
    seen: list[str] = []
    after = ""
    while page := await port.transfers(after, 3):
        assert len(page) <= 3
        seen.extend(transfer.receipt_id for transfer in page)
        after = page[-1].transfer_id
    assert seen == [receipt.receipt_id for receipt in booked]


async def test_post_receipt_other_one_under_its_id_is_refused(port: LedgerPort) -> None:
    first = make_receipt()
    await port.post_receipt(sign_receipt(first))
    with pytest.raises(ConflictingReceipt, match=first.receipt_id):
        await port.post_receipt(sign_receipt(make_receipt(supplier_id="sup_thief")))
    assert await port.balances("") == add_up([book(first)])


@pytest.mark.parametrize(
    ("envelope", "field"),
    [
        (b"", "envelope"),
        (b"\x00" * (ENVELOPE_BYTES_MAX + 1), "envelope"),
        (sign_receipt(make_receipt(), STRANGER), "envelope"),
        (sign_receipt(make_receipt())[:-1], "envelope"),
        (sign_receipt(make_receipt()).replace(b'"sig":"', b'"sig":"AAAA'), "envelope"),
        (sign_statement(make_statement(), CONTROL), "envelope"),
        (sign(receipts.PAYLOAD_TYPE, b"{}", CONTROL), "envelope.payload.schema"),
        (sign(receipts.PAYLOAD_TYPE, b"not json", CONTROL), "envelope"),
        (sign_receipt(make_receipt(correction_of="rct_x")), "envelope.payload.correction_of"),
        (changed_after_its_checks(billed_ms="1"), "envelope.payload.billed_ms"),
        (changed_after_its_checks(billed_ms=240000), "envelope.payload.billed_ms"),
        (changed_after_its_checks(surprise="1"), "envelope.payload.surprise"),
    ],
)
async def test_post_receipt_forged_or_false_is_refused_naming_the_field(
    port: LedgerPort, envelope: bytes, field: str
) -> None:
    with pytest.raises(RefusedArgument) as caught:
        await port.post_receipt(envelope)
    assert caught.value.field == field
    assert await port.balances("") == ()


async def test_post_receipt_any_flipped_byte_books_nothing(ledger: Ledger) -> None:
    envelope = sign_receipt(make_receipt())
    for index in range(0, len(envelope), 7):
        flipped = bytearray(envelope)
        flipped[index] ^= 1
        with pytest.raises(RefusedArgument):
            await ledger.post_receipt(bytes(flipped))
    assert await ledger.transfers("", 0) == ()


@pytest.mark.parametrize("page_size", [-1, PAGE_SIZE_MAX + 1])
async def test_transfers_page_size_out_of_bounds_is_refused(port: LedgerPort, page_size: int) -> None:
    with pytest.raises(RefusedArgument) as caught:
        await port.transfers("", page_size)
    assert caught.value.field == "page_size"


@pytest.mark.parametrize("after", ["trf_none", "with space", "\x00", "x" * 201])
async def test_transfers_after_no_known_transfer_is_refused(port: LedgerPort, after: str) -> None:
    with pytest.raises(RefusedArgument) as caught:
        await port.transfers(after, 10)
    assert caught.value.field == "after_transfer_id"


@pytest.mark.parametrize("owner", ["\ud800", "a b", "x" * 201])
async def test_balances_owner_that_cannot_be_is_refused(port: LedgerPort, owner: str) -> None:
    with pytest.raises(RefusedArgument) as caught:
        await port.balances(owner)
    assert caught.value.field == "owner"


async def test_servicer_request_not_checked_by_a_client_is_refused_by_code(
    channel: grpc.aio.Channel,
) -> None:
    stub = ledger_pb2_grpc.LedgerServiceStub(channel)
    for call in (
        stub.PostReceipt(ledger_pb2.PostReceiptRequest(envelope=bytes(ENVELOPE_BYTES_MAX + 1))),
        stub.ListBalances(ledger_pb2.ListBalancesRequest(owner="a b")),
        stub.ListTransfers(ledger_pb2.ListTransfersRequest(page_size=2**32 - 1)),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert (caught.value.details() or "").split(":")[0] in {"envelope", "owner", "page_size"}


async def test_client_nobody_listening_is_unavailable() -> None:
    async with grpc.aio.insecure_channel("127.0.0.1:1") as nobody:
        with pytest.raises(LedgerUnavailable):
            await LedgerClient(nobody).balances("")
