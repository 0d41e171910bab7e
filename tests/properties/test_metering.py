"""Any sequence of statements: never more billed than recorded or stated, and receipts that cover exactly the bill."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core import messages as m
from orchestrator.core.metering import EPOCH_MS
from tests.core.worlds import World, sha

TALE = st.lists(
    st.tuples(
        st.integers(0, 2 * EPOCH_MS),  # time that passes
        st.integers(-2, 2),  # which sequence is claimed, beside the due one
        st.integers(-2_000, 2_000),  # by how much it misses the due start
        st.integers(-5_000, 3 * EPOCH_MS),  # how long it claims to have held
        st.booleans(),  # whether it is the last word
    ),
    max_size=12,
)


@given(TALE, st.integers(0, 12), st.booleans())
@settings(max_examples=150)
def test_statements_in_any_sequence_bill_no_more_than_recorded_and_stated(
    tale: list[tuple[int, int, int, int, bool]], ends_after: int, dies: bool
) -> None:
    world = World()
    worker_id = world.worker()
    job_id = world.running()
    (lease,) = world.leases(job_id)
    accepted_ms = 0
    for number, (passed_ms, beside, miss_ms, length_ms, final) in enumerate(tale):
        world.forward(passed_ms)
        world.do(m.ConnectWorker(worker_id, None))
        world.do(m.Tick())
        if number == ends_after:
            if dies:
                world.do(m.DrainWorker(worker_id))
            else:
                world.finish(job_id)
        lease = world.state.leases[lease.lease_id]
        start_ms = lease.stated_offset_ms + (miss_ms if miss_ms % 4 == 0 else 0)
        decision = world.do(
            m.AcceptStatement(
                worker_id, lease.lease_id, world.subject(lease), max(0, lease.next_sequence + beside),
                start_ms, start_ms + length_ms,
                final and number % 3 == 0, lease.device_ids, 0, sha(str(number)), b"e",
            )
        )  # fmt: skip
        if any(isinstance(event, m.StatementAccepted) for event in decision.events):
            accepted_ms = start_ms + length_ms
        after = world.state.leases[lease.lease_id]
        recorded_ms = world.at_ms - after.started_ms if after.recorded_ms is None else after.recorded_ms
        assert lease.billed_offset_ms <= after.billed_offset_ms <= recorded_ms
        assert after.billed_offset_ms <= after.stated_offset_ms == accepted_ms
        check_receipts(world, lease.lease_id)
    world.tick(2 * 24 * EPOCH_MS)
    if world.state.leases[lease.lease_id].ended_ms is not None:
        settled = world.state.leases[lease.lease_id]
        assert settled.settled
        assert settled.sealed_offset_ms == settled.billed_offset_ms
        assert settled.disputed_ms == (settled.recorded_ms or 0) - settled.billed_offset_ms
        check_receipts(world, lease.lease_id)


def check_receipts(world: World, lease_id: str) -> None:
    """They follow one another without a gap from the lease's start to what is sealed, none across an hour."""
    lease = next(one for one in world.state.leases.values() if one.lease_id == lease_id)
    receipts = world.receipts(lease.lease_id)
    edges = [lease.started_ms, *(receipt.end_ms for receipt in receipts)]
    assert [receipt.start_ms for receipt in receipts] == edges[:-1]
    assert edges[-1] == lease.started_ms + lease.sealed_offset_ms <= lease.started_ms + lease.billed_offset_ms
    assert all(one < other for one, other in pairwise(edges))
    assert [receipt.sequence for receipt in receipts] == list(range(len(receipts)))
    for receipt in receipts:
        assert receipt.start_ms // EPOCH_MS == receipt.epoch == (receipt.end_ms - 1) // EPOCH_MS
        assert receipt.billed_ms == receipt.end_ms - receipt.start_ms
        assert receipt.statement_sequences
