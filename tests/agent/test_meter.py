"""The meter: what is claimed is what was held, through restarts of the agent and of the machine."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from orchestrator.agent.meter import Meter
from orchestrator.receipts import dsse, ids
from orchestrator.receipts.statement import PAYLOAD_TYPE, Statement, parse_statement
from tests.agent.fakes import FakeClock, FakeJournal, desired_member, lease

FAR_MS = 1 << 60
"""A deadline that nobody in these tests lives to see."""

KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
WANTED = {"m-0": desired_member("m-0", "d0", leases=[lease("l-1", "d0")])}


class Counting:
    """A meter, what it writes to, and the statements it made."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.journal = FakeJournal()
        self.restart()

    def restart(self) -> None:
        """Another process of the agent: only the journal is left."""
        self.meter = Meter(self.journal, self.journal.load(), self.clock, KEY)
        self.meter.identify("net_1", "wk_1")

    def pass_ms(self, duration_ms: int) -> None:
        self.clock.now_ms += duration_ms

    def statements(self) -> list[Statement]:
        public = KEY.public_key().public_bytes_raw()
        keys = {ids.key_id(public): public}
        return [
            parse_statement(dsse.open_envelope(envelope, PAYLOAD_TYPE, keys))
            for envelope in self.meter.pending()
        ]

    def intervals(self) -> list[tuple[int, int, int, bool]]:
        return [
            (one.sequence, one.start_offset_ms, one.end_offset_ms, one.final) for one in self.statements()
        ]


@pytest.fixture
def counting() -> Counting:
    return Counting()


def test_meter_interim_and_final_statements_join_without_a_gap(counting: Counting) -> None:
    counting.meter.follow(WANTED, ["m-0"], {})
    counting.meter.heartbeat_acknowledged()
    counting.pass_ms(60_000)
    counting.meter.state(interim=True, until_boottime_ms=FAR_MS)
    counting.pass_ms(5_000)
    assert counting.meter.follow({}, ["m-0"], {})
    counting.meter.state(interim=False)
    assert counting.intervals() == [(0, 0, 60_000, False), (1, 60_000, 65_000, True)]
    first = counting.statements()[0]
    assert (first.worker_id, first.device_ids, first.heartbeats_acknowledged) == ("wk_1", ("d0",), 1)


def test_meter_states_a_running_lease_up_to_its_nodes_deadline_only(counting: Counting) -> None:
    """A machine that slept past the deadline wakes before its node has ended: the sleep is nobody's to pay."""
    counting.meter.follow(WANTED, ["m-0"], {})
    deadline_ms = counting.clock.now_ms + 60_000
    counting.pass_ms(3_600_000)
    counting.meter.state(interim=True, until_boottime_ms=deadline_ms)
    assert counting.intervals() == [(0, 0, 60_000, False)]
    counting.meter.state(interim=True, until_boottime_ms=0)
    assert len(counting.intervals()) == 1, "while no deadline is known nothing is stated"


def test_meter_lease_on_a_node_not_up_yet_is_not_counted(counting: Counting) -> None:
    counting.meter.follow(WANTED, [], {})
    counting.pass_ms(10_000)
    counting.meter.state(interim=True, until_boottime_ms=FAR_MS)
    assert counting.meter.pending() == []


def test_meter_node_that_ended_unseen_is_claimed_until_its_end_only(counting: Counting) -> None:
    counting.meter.follow(WANTED, ["m-0"], {})
    started_ms = counting.clock.now_ms
    counting.pass_ms(100_000)
    counting.restart()
    counting.meter.follow(WANTED, [], {"m-0": started_ms + 30_000})
    counting.meter.state(interim=False)
    assert counting.intervals() == [(0, 0, 30_000, True)]


def test_meter_node_whose_end_nobody_saw_is_claimed_as_far_as_stated(counting: Counting) -> None:
    counting.meter.follow(WANTED, ["m-0"], {})
    counting.pass_ms(60_000)
    counting.meter.state(interim=True, until_boottime_ms=FAR_MS)
    counting.pass_ms(100_000)
    counting.restart()
    counting.meter.follow(WANTED, [], {"m-0": None})
    counting.meter.state(interim=False)
    assert counting.intervals()[-1] == (1, 60_000, 60_000, True)


def test_meter_agent_restart_with_the_node_up_counts_on(counting: Counting) -> None:
    counting.meter.follow(WANTED, ["m-0"], {})
    counting.pass_ms(30_000)
    counting.restart()
    counting.meter.follow(WANTED, ["m-0"], {})
    counting.pass_ms(30_000)
    counting.meter.state(interim=True, until_boottime_ms=FAR_MS)
    assert counting.intervals() == [(0, 0, 60_000, False)]


@pytest.mark.parametrize("up_s", [1, 100_000])
def test_meter_machine_restart_claims_nothing_beyond_what_was_stated(counting: Counting, up_s: int) -> None:
    counting.meter.follow(WANTED, ["m-0"], {})
    counting.pass_ms(60_000)
    counting.meter.state(interim=True, until_boottime_ms=FAR_MS)
    counting.pass_ms(20_000)
    counting.clock.boot, counting.clock.now_ms = "boot-2", up_s * 1000
    counting.restart()
    counting.meter.follow(WANTED, [], {"m-0": None})
    counting.meter.state(interim=False)
    assert counting.intervals() == [(0, 0, 60_000, False), (1, 60_000, 60_000, True)]


def test_meter_statements_survive_a_restart_until_they_are_acknowledged(counting: Counting) -> None:
    counting.meter.follow(WANTED, ["m-0"], {})
    counting.pass_ms(60_000)
    counting.meter.state(interim=True, until_boottime_ms=FAR_MS)
    counting.meter.follow({}, [], {})
    counting.meter.state(interim=False)
    sent = counting.meter.pending()
    counting.restart()
    assert counting.meter.pending() == sent
    counting.meter.acknowledged("l-1", 0)
    counting.restart()
    assert counting.meter.pending() == sent[1:]
    assert not counting.meter.idle
    counting.meter.acknowledged("l-1", 1)
    counting.restart()
    assert counting.meter.idle


def test_meter_acknowledgement_of_another_lease_changes_nothing(counting: Counting) -> None:
    counting.meter.follow(WANTED, ["m-0"], {})
    counting.meter.state(interim=True, until_boottime_ms=FAR_MS)
    assert counting.meter.pending() == [], "an instant is not worth a statement"
    counting.pass_ms(60_000)
    counting.meter.state(interim=True, until_boottime_ms=FAR_MS)
    counting.meter.acknowledged("l-2", 9)
    assert len(counting.meter.pending()) == 1


def test_meter_ended_lease_it_never_counted_is_closed_without_a_claim(counting: Counting) -> None:
    ended = lease("l-9", "d0")
    ended.member_id, ended.next_sequence, ended.stated_offset_ms = "m-9", 3, 70_000
    assert counting.meter.close_unknown([ended])
    counting.meter.state(interim=False)
    assert counting.intervals() == [(3, 70_000, 70_000, True)]
    assert not counting.meter.close_unknown([ended])


def test_meter_without_an_identity_signs_nothing_and_forgets_nothing(counting: Counting) -> None:
    meter = Meter(counting.journal, counting.journal.load(), counting.clock, KEY)
    meter.follow(WANTED, ["m-0"], {})
    counting.pass_ms(1_000)
    meter.follow({}, [], {})
    meter.state(interim=False)
    assert meter.pending() == []
    counting.restart()
    counting.meter.state(interim=False)
    assert counting.intervals() == [(0, 0, 1_000, True)]
