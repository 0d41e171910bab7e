"""Whatever is asked in whatever order: nothing is held twice, and disk, log and memory tell one story."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings

from orchestrator.adapters import codec
from orchestrator.adapters.store import SqlStore
from orchestrator.core.apply import apply
from orchestrator.core.state import State
from orchestrator.sim.checks import check_tallies
from tests.properties.stories import BOOKED_STEPS, STEPS, WOVEN_STEPS, Story


def index_view(state: State) -> dict[str, object]:
    """Every public index, without the order in which it was filled."""
    return {
        "free_devices": {key: set(value) for key, value in state.free_devices.items()},
        "offers": state.offers.shown(),
        "head_hosts": dict(state.head_hosts),
        "open_clusters": set(state.open_clusters),
        "idle_clusters": set(state.idle_clusters),
        "entitled": set(state.entitled),
        "clusters_of": {key: set(value) for key, value in state.clusters_of.items() if value},
        "members_on": {key: set(value) for key, value in state.members_on.items() if value},
        "members_of": {key: set(value) for key, value in state.members_of.items() if value},
        "attempt_in": dict(state.attempt_in),
        "logs_open_in": {key: set(value) for key, value in state.logs_open_in.items() if value},
        "queues": dict(state.queues),
        "booked": dict(state.bookings.booked),
        "booked_queues": dict(state.bookings.queues),
        "booked_clusters": {key: set(value) for key, value in state.bookings.clusters.items()},
        "booked_due": state.bookings.due(1 << 60),
        "booked_near": [one.reservation_id for one in state.bookings.near(state.latest_ms)],
        "jobs_by_submission": dict(state.jobs_by_submission),
        "leases_of": {key: set(value) for key, value in state.leases_of.items() if value},
        "leases_on": {key: set(value) for key, value in state.leases_on.items() if value},
        "unsettled_leases": set(state.unsettled_leases),
        "unsettled_on": {key: set(value) for key, value in state.unsettled_on.items() if value},
        "statements_of": {key: set(value) for key, value in state.statements_of.items()},
        "receipts_of": dict(state.receipts_of),
        "unsigned": set(state.unsigned),
        "unposted": set(state.unposted),
        "tokens": dict(state.token_by_hash),
        "worker_by_key": dict(state.worker_by_key),
        "on_probation": set(state.on_probation),
        "owners": state.claims.owners(),
        "unsettled": set(state.claims.unsettled),
        "proven": state.newcomers.proven.all(),
        "forgotten": state.newcomers.forgotten.all(),
        "workers_of": {key: set(value) for key, value in state.workers_of.items() if value},
        "token_subjects": set(state.token_subjects),
        "spares": dict(state.spares),
        "noticed": set(state.noticed),
        "workers_due": set(state.watched.workers_due_ms),
        "members_due": set(state.watched.members_due_ms),
        "replacing": set(state.watched.replacing),
        "shut_out": set(state.watched.shut_out),
        "spares_closed": {
            job_id: closed for job_id, closed in state.watched.spares_closed.items() if job_id in state.jobs
        },
    }


@given(STEPS)
@settings(max_examples=150)
def test_story_any_order_of_commands_holds_every_invariant(steps: list[tuple[str, int]]) -> None:
    Story().play(steps)


@given(STEPS)
@settings(max_examples=60)
def test_story_replayed_from_its_encoded_events_is_the_applied_state(steps: list[tuple[str, int]]) -> None:
    story = Story()
    story.play(steps)
    assert_replayed(story)


@given(BOOKED_STEPS)
@settings(max_examples=60)
def test_story_of_reservations_replayed_is_the_applied_state(steps: list[tuple[str, int]]) -> None:
    story = Story().busy()
    story.play(steps)
    assert_replayed(story)


@given(WOVEN_STEPS)
@settings(max_examples=60)
def test_story_of_a_cluster_in_the_overlay_is_ready_only_as_measured(steps: list[tuple[str, int]]) -> None:
    story = Story().woven()
    story.play(steps)
    assert_replayed(story)
    for cluster in story.world.state.clusters.values():
        members = [one for one in story.world.state.cluster_members(cluster) if one.overlay_host]
        if cluster.ready_at_ms is None:
            assert cluster.paths == ()
        elif members:
            head, *others = members
            reached = {
                path.from_id for path in cluster.paths if path.to_id == head.member_id and path.answered
            }
            assert reached == {one.member_id for one in others}


def assert_replayed(story: Story) -> None:
    """What was written says the same as what is in memory."""
    replayed = State(story.world.policies)
    for transaction in story.transactions:
        for event in transaction.events:
            name = type(event).__name__
            same = codec.decode_event(name, codec.event_version(name), codec.encode(event))
            assert same == event
            apply(replayed, same, transaction.at_ms)
    check_tallies(story.world.state)
    check_tallies(replayed)
    assert replayed.rows() == story.world.state.rows()
    assert index_view(replayed) == index_view(story.world.state)


@given(STEPS | BOOKED_STEPS)
@settings(max_examples=30)
def test_story_rows_loaded_are_those_applied_and_those_replayed(steps: list[tuple[str, int]]) -> None:
    story = Story()
    story.play(steps)
    applied = story.world.state
    with tempfile.TemporaryDirectory() as folder:
        store = SqlStore(f"sqlite:///{Path(folder) / 'state.db'}")
        try:
            for transaction in story.transactions:
                store.write(transaction)
            loaded, replayed = store.load(applied.policies), store.replay(applied.policies)
        finally:
            store.close()
    for other in (loaded, replayed):
        check_tallies(other)
        assert other.rows() == applied.rows()
        assert index_view(other) == index_view(applied)
        assert (other.version, other.latest_ms) == (applied.version, applied.latest_ms)
