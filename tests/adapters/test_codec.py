"""Entities and events as JSON: nothing is lost on the way, and every version ever written is still read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from orchestrator.adapters import codec
from orchestrator.core import messages as m
from orchestrator.core.entities import TABLES
from orchestrator.core.ids import DeviceId, LeaseId, SupplierId, TokenId, WorkerId
from orchestrator.core.jobs import Promise, Requirements
from orchestrator.core.supply.fleet import Supplier
from tests.core.booking import reserve
from tests.core.worlds import World


def test_codec_every_entity_of_a_full_story_comes_back_equal() -> None:
    world = World()
    for _ in range(2):
        world.worker()
    world.head_host()
    job_id = world.running(Requirements(gpus=2))
    world.forward(60_000)
    world.finish(job_id)
    for lease in world.leases(job_id):
        world.state_time(lease, 60_000, final=True)
    world.do(m.CreateTenant(world.tenant("beta"), "gamma", "req-1"))
    reserve(world, Requirements(gpus=1))
    rows = world.state.rows()
    assert {table for table in TABLES if not rows[table]} == set(), "a table this story never fills"
    for table, entities in rows.items():
        for entity in entities.values():
            assert codec.decode_entity(table, codec.encode(entity)) == entity


def test_codec_promise_comes_back_equal_and_a_job_written_before_there_were_any_is_read() -> None:
    world = World()
    job_id = world.submit()
    devices = ((WorkerId("wkr_1"), (DeviceId("gpu-0"), DeviceId("gpu-1"))), (WorkerId("wkr_2"), ()))
    promised = m.JobPromised(job_id, Promise(devices, WorkerId("wkr_3"), 7))
    for told in (promised, m.JobPromised(job_id, None)):
        assert codec.decode_event("JobPromised", 1, codec.encode(told)) == told
    job = replace(world.state.jobs[job_id], promise=promised.promise)
    body = codec.encode(job)
    assert codec.decode_entity("jobs", body) == job
    raw = msgspec.json.decode(body)
    del raw["promise"]
    assert codec.decode_entity("jobs", msgspec.json.encode(raw)) == replace(job, promise=None)


def test_codec_bytes_that_are_no_text_come_back_equal() -> None:
    disputed = m.StatementDisputed(LeaseId("lse_a"), 3, "why", bytes(range(256)))
    assert codec.decode_event("StatementDisputed", 1, codec.encode(disputed)) == disputed


def test_codec_every_event_type_has_a_reader() -> None:
    assert set(codec.EVENT_TYPES) >= {"WorkerJoined", "ReceiptSealed", "ControlStarted"}
    assert {codec.event_version(name) for name in codec.EVENT_TYPES} == {1}


def test_codec_old_event_is_raised_through_every_version_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    def to_2(body: dict[str, Any]) -> dict[str, Any]:
        return {"supplier": {"supplier_id": body["id"], "label": body["label"]}}

    def to_3(body: dict[str, Any]) -> dict[str, Any]:
        supplier = body["supplier"]
        return {"supplier": {**supplier, "name": supplier["label"].title(), "created_at_ms": 0}}

    monkeypatch.setitem(codec.EVENT_VERSIONS, "SupplierCreated", 3)
    monkeypatch.setitem(codec.UPCASTERS, ("SupplierCreated", 1), to_2)
    monkeypatch.setitem(codec.UPCASTERS, ("SupplierCreated", 2), to_3)
    expected = m.SupplierCreated(Supplier(SupplierId("sup_1"), "Garage", 0))
    oldest = msgspec.json.encode({"id": "sup_1", "label": "garage"})
    assert codec.decode_event("SupplierCreated", 1, oldest) == expected
    middle = msgspec.json.encode({"supplier": {"supplier_id": "sup_1", "label": "garage"}})
    assert codec.decode_event("SupplierCreated", 2, middle) == expected
    assert codec.decode_event("SupplierCreated", 3, codec.encode(expected)) == expected
    assert codec.event_version("SupplierCreated") == 3


def test_codec_old_event_without_an_upcaster_is_an_error_and_not_a_guess(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(codec.EVENT_VERSIONS, "TokenRevoked", 2)
    with pytest.raises(KeyError):
        codec.decode_event("TokenRevoked", 1, codec.encode(m.TokenRevoked(TokenId("tok_1"))))


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"token_id": 5}', b"\xff"])
def test_codec_damaged_body_is_an_error(body: bytes) -> None:
    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
        codec.decode_event("TokenRevoked", 1, body)
