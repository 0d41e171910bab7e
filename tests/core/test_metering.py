"""Leases, statements, receipts: the smaller of both words is billed, once, and every hour on its own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.core import messages as m
from orchestrator.core.decide import pending_effects, receipt_effects
from orchestrator.core.errors import RefusalCode, RefusedError
from orchestrator.core.ids import JobId, LeaseId, WorkerId, receipt_id_of
from orchestrator.core.jobs import Requirements
from orchestrator.core.metering import EPOCH_MS, Lease, MeteringPolicy
from orchestrator.receipts import ids
from tests.core.worlds import NETWORK_ID, START_WALL_MS, World

MINUTE_MS = 60_000


def leased(count: int = 1) -> tuple[World, JobId, Lease]:
    """A job that began this instant on one machine."""
    world = World()
    world.worker(count=count)
    job_id = world.running(Requirements(gpus=count))
    (lease,) = world.leases(job_id)
    return world, job_id, lease


def look(world: World, lease: Lease) -> Lease:
    return world.state.leases[lease.lease_id]


def billed_ms(world: World, lease: Lease) -> list[int]:
    return [receipt.billed_ms for receipt in world.receipts(lease.lease_id)]


def test_lease_begins_for_every_member_that_brings_devices() -> None:
    world = World()
    for _ in range(2):
        world.worker()
    world.head_host()
    job_id = world.running(Requirements(gpus=2))
    leases = world.leases(job_id)
    assert [lease.member_id for lease in leases] == [one.member_id for one in world.members(job_id)[1:]]
    assert {lease.device_models for lease in leases} == {("RTX4090",)}
    assert all(lease.simulated for lease in leases)


def test_lease_models_stand_in_the_order_of_its_devices_whatever_the_inventorys() -> None:
    world = World()
    worker_id = world.worker(count=2)
    job_id = world.ready(Requirements(gpus=2))
    offer = world.who(worker_id).inventory
    one, two = offer.devices
    world.do(m.ConnectWorker(worker_id, replace(offer, devices=(replace(two, model="RTX3090"), one))))
    world.start(job_id)
    (lease,) = world.leases(job_id)
    assert lease.device_ids == (one.device_id, two.device_id)
    assert lease.device_models == ("RTX4090", "RTX3090")


@pytest.mark.parametrize(("stated_ms", "paid_ms"), [(40_000, 40_000), (60_000, 60_000), (90_000, 60_000)])
def test_billed_is_the_smaller_of_record_and_statement(stated_ms: int, paid_ms: int) -> None:
    world, job_id, lease = leased()
    world.forward(MINUTE_MS)
    world.finish(job_id)
    world.state_time(lease, stated_ms, final=True)
    assert billed_ms(world, lease) == [paid_ms]
    assert look(world, lease).settled
    assert look(world, lease).disputed_ms == MINUTE_MS - paid_ms


def test_billed_time_counts_every_device() -> None:
    world, job_id, lease = leased(count=4)
    world.forward(MINUTE_MS)
    world.finish(job_id)
    world.state_time(lease, MINUTE_MS, final=True)
    assert billed_ms(world, lease) == [4 * MINUTE_MS]


def test_billed_while_running_is_bounded_by_the_time_that_has_passed() -> None:
    world, _, lease = leased()
    world.forward(10_000)
    world.state_time(lease, 10**15)
    assert look(world, lease).billed_offset_ms == 10_000


def test_statement_repeated_is_acknowledged_again_and_billed_once() -> None:
    world, _, lease = leased()
    world.forward(MINUTE_MS)
    world.state_time(lease, 30_000)
    world.state_time(lease, MINUTE_MS)
    again = world.state_time(lease, 30_000, sequence=0)
    assert (again.events, again.result) == ((), 1)
    assert look(world, lease).billed_offset_ms == MINUTE_MS


def test_statement_that_leaves_a_gap_is_not_acknowledged() -> None:
    world, _, lease = leased()
    world.forward(MINUTE_MS)
    assert world.state_time(lease, 30_000, sequence=1).result == -1
    assert look(world, lease).next_sequence == 0
    world.state_time(lease, 30_000)
    assert world.state_time(lease, MINUTE_MS, sequence=5).result == 0


def contradiction(world: World, lease: Lease, **changes: object) -> m.Decision:
    lease = look(world, lease)
    command = m.AcceptStatement(
        lease.worker_id, lease.lease_id, world.subject(lease), lease.next_sequence, lease.stated_offset_ms,
        lease.stated_offset_ms + 1_000, False, lease.device_ids, 0, "f" * 64, b"signed evidence",
    )  # fmt: skip
    return world.do(replace(command, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"start_offset_ms": 29_999}, "does not continue at 30000"),
        ({"start_offset_ms": 30_001}, "does not continue at 30000"),
        ({"end_offset_ms": 29_000}, "does not continue"),
        ({"device_ids": ("other",)}, "other devices"),
        ({"subject": ("net_other", "m", "j", "a")}, "something else than its lease"),
        ({"heartbeats_acknowledged": 2**63 - 1}, "heartbeats"),
        ({"end_offset_ms": 30_999}, "less than 1000 ms"),
        ({"device_ids": ()}, "other devices"),
    ],
)
def test_statement_that_contradicts_is_kept_as_evidence_and_bills_nothing(
    changes: dict[str, object], words: str
) -> None:
    world, _, lease = leased()
    world.forward(MINUTE_MS)
    world.state_time(lease, 30_000)
    decision = contradiction(world, lease, **changes)
    (event,) = decision.events
    assert isinstance(event, m.StatementDisputed)
    assert words in event.reason
    assert event.envelope == b"signed evidence"
    assert decision.result == 1, "acknowledged: it will not become true by repeating it"
    assert look(world, lease).billed_offset_ms == 30_000
    assert len(world.state.statements) == 1


def test_statement_after_the_final_one_is_disputed() -> None:
    world, job_id, lease = leased()
    world.forward(MINUTE_MS)
    world.state_time(lease, 30_000, final=True)
    (event,) = contradiction(world, lease).events
    assert isinstance(event, m.StatementDisputed)
    assert "after the final statement" in event.reason
    world.finish(job_id)
    assert billed_ms(world, lease) == [30_000]


def test_statement_of_another_worker_or_unknown_lease_is_refused() -> None:
    world, _, lease = leased()
    other = world.worker()
    for changes in ({"worker_id": other}, {"lease_id": LeaseId("lse_none")}, {"worker_id": WorkerId("no")}):
        with pytest.raises(RefusedError) as refusal:
            contradiction(world, lease, **changes)
        assert refusal.value.code is RefusalCode.NOT_FOUND


def test_final_statement_settles_and_seals_the_rest() -> None:
    world, job_id, lease = leased()
    world.forward(MINUTE_MS)
    world.state_time(lease, 30_000)
    world.finish(job_id)
    assert world.receipts(lease.lease_id) == []
    world.state_time(lease, MINUTE_MS, final=True)
    (receipt,) = world.receipts(lease.lease_id)
    assert (receipt.start_ms, receipt.end_ms) == (lease.started_ms, lease.started_ms + MINUTE_MS)
    assert receipt.statement_sequences == (0, 1)
    assert look(world, lease).lease_id not in world.state.unsettled_leases


def test_final_statement_before_the_end_of_the_record_settles_at_that_end() -> None:
    world, job_id, lease = leased()
    world.forward(MINUTE_MS)
    world.state_time(lease, MINUTE_MS, final=True)
    assert not look(world, lease).settled
    world.forward(1_000)
    world.finish(job_id)
    assert look(world, lease).settled
    assert look(world, lease).disputed_ms == 1_000


def test_lease_without_its_last_word_settles_when_the_grace_is_over() -> None:
    world, job_id, lease = leased()
    world.forward(MINUTE_MS)
    world.state_time(lease, 45_000)
    world.finish(job_id)
    grace_ms = MeteringPolicy().statement_grace_ms
    world.tick(grace_ms)
    assert not look(world, lease).settled
    world.tick(1)
    assert look(world, lease).settled
    assert (billed_ms(world, lease), look(world, lease).disputed_ms) == ([45_000], 15_000)


def test_hour_edge_splits_receipts_while_the_lease_runs() -> None:
    world, job_id, lease = leased()
    to_edge_ms = EPOCH_MS - START_WALL_MS % EPOCH_MS
    world.live_on(to_edge_ms + EPOCH_MS + 5_000, step_ms=10_000)
    world.state_time(lease, to_edge_ms + EPOCH_MS + 5_000)
    first, second = world.receipts(lease.lease_id)
    edge_ms = lease.started_ms + to_edge_ms
    assert [(one.start_ms, one.end_ms, one.epoch) for one in (first, second)] == [
        (lease.started_ms, edge_ms, edge_ms // EPOCH_MS - 1),
        (edge_ms, edge_ms + EPOCH_MS, edge_ms // EPOCH_MS),
    ]
    world.finish(job_id)
    world.state_time(lease, to_edge_ms + EPOCH_MS + 5_000, final=True)
    assert world.receipts(lease.lease_id)[-1].billed_ms == 5_000
    assert [one.sequence for one in world.receipts(lease.lease_id)] == [0, 1, 2]


def test_receipt_ids_are_those_a_stranger_computes() -> None:
    world, job_id, lease = leased()
    world.live_on(EPOCH_MS, step_ms=10_000)
    world.finish(job_id)
    world.state_time(lease, EPOCH_MS, final=True)
    receipts = world.receipts(lease.lease_id)
    assert len(receipts) == 2
    for receipt in receipts:
        named = (NETWORK_ID, receipt.lease_id, receipt.epoch, receipt.sequence)
        assert receipt.receipt_id == ids.receipt_id(*named)


@pytest.mark.parametrize("lease_id", ["lse_a", 'lse_"quoted"', "lse_\\u0001", "lse_é\n\t\x7f"])
def test_receipt_id_formulas_agree_on_awkward_names(lease_id: str) -> None:
    assert receipt_id_of("net", LeaseId(lease_id), 497222, 3) == ids.receipt_id("net", lease_id, 497222, 3)


def test_lost_worker_is_paid_at_most_until_it_was_last_heard() -> None:
    world = World()
    worker_id = world.worker()
    job_id = world.running()
    (lease,) = world.leases(job_id)
    world.live_on(MINUTE_MS)
    world.live_on(120_000, silent=frozenset({worker_id}))
    assert look(world, lease).recorded_ms == MINUTE_MS
    world.do(m.ConnectWorker(worker_id, None))
    world.state_time(lease, 180_000, final=True)
    assert billed_ms(world, lease) == [MINUTE_MS]


def test_lost_worker_keeps_what_was_already_billed() -> None:
    world = World()
    worker_id = world.worker()
    job_id = world.running()
    (lease,) = world.leases(job_id)
    world.live_on(MINUTE_MS)
    world.forward(3_000)
    world.state_time(lease, 63_000)
    world.live_on(120_000, silent=frozenset({worker_id}))
    assert look(world, lease).recorded_ms == 63_000
    world.state_time(lease, 63_000, final=True)
    assert billed_ms(world, lease) == [63_000]


def test_each_attempt_has_its_own_leases() -> None:
    world, job_id, lease = leased()
    world.forward(10_000)
    world.fail(world.members(job_id)[0])
    world.reports()
    world.forward(5_000)
    world.plan()
    world.reports()
    world.start(job_id)
    first, second = world.leases(job_id)
    assert first.lease_id == lease.lease_id
    assert first.ended_ms is not None
    assert second.started_ms >= first.ended_ms
    assert (second.ended_ms, second.next_sequence) == (None, 0)


def test_receipts_of_a_lease_are_signed_in_their_order_and_then_posted() -> None:
    world, _, lease = leased()
    world.live_on(3 * EPOCH_MS, step_ms=10_000)
    world.state_time(lease, 3 * EPOCH_MS)
    order = [receipt.receipt_id for receipt in world.receipts(lease.lease_id)]
    assert len(order) == 3
    for receipt_id in order:
        assert receipt_effects(world.state)[0] == m.SignReceipt(receipt_id)
        signed = m.RecordSignature(receipt_id, b"envelope", "a" * 64)
        world.do(signed)
        assert world.do(signed).events == (), "signed once"
        assert m.PostReceipt(receipt_id) in pending_effects(world.state)
        posted = m.RecordPosting(receipt_id, f"tr_{receipt_id}")
        world.do(posted)
        assert world.do(posted).events == (), "posted once"
    assert receipt_effects(world.state) == []
