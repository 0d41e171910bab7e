"""The table of what can be had: its rows follow the workers, whatever happens to them, and its hours the clock."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core import messages as m
from orchestrator.core.entities import TABLES
from orchestrator.core.ids import WorkerId
from orchestrator.core.jobs import Requirements
from orchestrator.core.scheduling.offers import (
    CPU,
    GPU,
    NO_ASK,
    NO_DEVICE,
    OPEN,
    ROWS_MIN,
    STATES,
    Column,
    Offers,
)
from orchestrator.core.state import State
from orchestrator.core.supply.evidence import EVIDENCE_RANK, EvidenceClass, capability_number
from orchestrator.core.supply.fleet import HardwareClass, Liveness, Worker
from orchestrator.core.supply.holds import PHRASES, HoldKind
from orchestrator.core.supply.terms import (
    MINUTE_MS,
    MONDAY_MS,
    NEVER_MS,
    WEEK_MINUTES,
    Ask,
    Terms,
    Tier,
    WeekWindow,
)
from tests.core.fleets import AT_MS, cordoned, device, fleets, machine, put, table_of
from tests.core.worlds import World, inventory


def row_of(offers: Offers, worker_id: str, model: str = "RTX4090") -> int:
    """The one row of a worker's devices of a model."""
    (row,) = (row for row in offers.rows_of(WorkerId(worker_id)) if offers.model_of(row) == model)
    return row


def value(offers: Offers, worker_id: str, column: Column, model: str = "RTX4090") -> int:
    return int(offers[column][row_of(offers, worker_id, model)])


def counts(offers: Offers, worker_id: str, model: str = "RTX4090") -> tuple[int, int, int, int]:
    """(devices, that serve, that are free, slots)."""
    row = row_of(offers, worker_id, model)
    columns = (Column.DEVICES, Column.SERVING, Column.FREE, Column.SLOTS)
    devices, serving, free, slots = (int(offers[column][row]) for column in columns)
    return devices, serving, free, slots


# ------------------------------------------------------------ what a row says


def test_table_of_a_worker_that_joins_has_its_row() -> None:
    world = World()
    worker_id = world.worker(count=3, slots=2)
    offers = world.state.offers
    assert counts(offers, worker_id) == (3, 3, 3, 2)
    assert value(offers, worker_id, Column.STATE) == OPEN
    assert value(offers, worker_id, Column.KIND) == GPU
    assert value(offers, worker_id, Column.PRICE) == NO_ASK
    assert value(offers, worker_id, Column.CLOSES_MS) == NEVER_MS
    assert offers.worker_of(row_of(offers, worker_id)) == worker_id
    assert value(offers, world.worker("CPU"), Column.KIND, "CPU") == CPU
    assert value(offers, world.head_host(), Column.KIND, "") == NO_DEVICE


def test_table_of_several_kinds_on_one_machine_has_a_row_of_each() -> None:
    offers = table_of(
        [
            machine(
                "w",
                device("a"),
                device("b", "RTX3060"),
                device("c", capability="8.9", proven=True),
                device("d"),
                device("e", "RTX3060"),
            )
        ]
    )
    found = {
        (offers.model_of(row), int(offers[Column.CAPABILITY][row]), int(offers[Column.EVIDENCE][row])): (
            offers.devices_of(row)
        )
        for row in offers.rows_of(WorkerId("w"))
    }
    proven = EVIDENCE_RANK[EvidenceClass.T2]
    assert found == {
        ("RTX4090", 0, 0): ("a", "d"),
        ("RTX3060", 0, 0): ("b", "e"),
        ("RTX4090", 809, proven): ("c",),
    }
    assert sorted(offers[Column.LEADS].tolist()) == [0, 0, 1], "a machine is counted once"
    assert offers[Column.SLOTS].tolist() == [5, 5, 5]
    assert offers.mixed
    assert len(offers.shown()) == 3, "no row hides another"


def test_table_a_device_that_is_held_is_not_free_and_takes_a_slot_of_all_kinds() -> None:
    worker = machine("w", device("a"), device("b"), device("c", "RTX3060"), slots=3)
    offers = table_of([worker])
    offers.hold(worker.worker_id, {device("b").device_id: None, device("c").device_id: None}, 2)
    assert counts(offers, "w") == (2, 2, 1, 2)
    assert counts(offers, "w", "RTX3060") == (1, 1, 1, 2)


def test_table_follows_a_placement_and_its_end() -> None:
    world = World()
    worker_id = world.worker(count=3, slots=2)
    job_id = world.running(Requirements(gpus=2))
    offers = world.state.offers
    assert counts(offers, worker_id) == (3, 3, 1, 1)
    world.finish(job_id)
    assert counts(offers, worker_id) == (3, 3, 1, 1), "a warm cluster keeps its devices"
    world.tick(world.policies.clusters.idle_teardown_ms + 1)
    world.reports()
    assert counts(offers, worker_id) == (3, 3, 3, 2)


def test_table_follows_a_changed_inventory() -> None:
    world = World()
    worker_id = world.worker(count=2)
    before = world.who(worker_id).inventory
    added = device("new", "RTX3060")
    world.do(m.ConnectWorker(worker_id, replace(before, devices=(*before.devices, added), slots=3)))
    offers = world.state.offers
    assert counts(offers, worker_id) == (2, 2, 2, 3)
    assert counts(offers, worker_id, "RTX3060") == (1, 1, 1, 3)
    world.do(m.ConnectWorker(worker_id, replace(before, devices=(added,))))
    assert [offers.model_of(row) for row in offers.rows_of(worker_id)] == ["RTX3060"]
    assert value(offers, worker_id, Column.LEADS, "RTX3060") == 1
    world.do(m.ConnectWorker(worker_id, replace(before, devices=())))
    assert value(offers, worker_id, Column.KIND, "") == NO_DEVICE


def test_table_follows_a_cordoned_device() -> None:
    world = World()
    worker_id = world.worker(count=2)
    gone = world.who(worker_id).inventory.devices[0].device_id
    world.do(m.HoldDevice(worker_id, gone, "XID 79"))
    offers = world.state.offers
    assert counts(offers, worker_id) == (2, 1, 1, 2)
    assert gone not in offers.devices_of(row_of(offers, worker_id))
    world.do(m.ReleaseDevice(worker_id, gone))
    assert counts(offers, worker_id) == (2, 2, 2, 2)


def test_table_of_a_worker_all_whose_devices_are_cordoned_still_has_its_row() -> None:
    offers = table_of([cordoned(machine("w", device("a")), "a")])
    assert counts(offers, "w") == (1, 0, 0, 1)


# ------------------------------------------------------------ who gets nothing new


def state_phrase(offers: Offers, worker_id: str) -> str:
    return STATES[value(offers, worker_id, Column.STATE)]


@pytest.mark.parametrize("kind", HoldKind)
def test_table_says_which_hold_closes_a_worker(kind: HoldKind) -> None:
    world = World()
    worker_id = world.worker()
    world.do(m.PlaceHold(worker_id, kind, "because"))
    assert state_phrase(world.state.offers, worker_id) == PHRASES[kind]
    world.do(m.LiftHold(worker_id, kind))
    assert value(world.state.offers, worker_id, Column.STATE) == OPEN


def test_table_says_how_a_worker_leaves() -> None:
    world = World()
    worker_id = world.worker()
    world.do(m.DrainWorker(worker_id))
    assert state_phrase(world.state.offers, worker_id) == "draining"
    world.do(m.LeaveWorker(worker_id))
    assert state_phrase(world.state.offers, worker_id) == "left the network"


def test_table_says_how_a_worker_falls_silent() -> None:
    world = World()
    worker_id, _ = world.worker(), world.worker(supplier="barn")
    world.live_on(30_000, silent=frozenset({worker_id}))
    assert state_phrase(world.state.offers, worker_id) == "suspect"
    world.live_on(60_000, silent=frozenset({worker_id}))
    assert state_phrase(world.state.offers, worker_id) == "lost"


def test_table_open_says_what_a_worker_says_of_itself() -> None:
    standings = [replace(machine("w", device("a")), liveness=liveness) for liveness in Liveness]
    for worker in standings:
        offers = table_of([worker])
        assert (value(offers, "w", Column.STATE) == OPEN) == worker.placeable


# ------------------------------------------------------------ terms


def test_table_follows_the_owners_terms() -> None:
    world = World()
    worker_id = world.worker()
    offers = world.state.offers
    dear = Terms(asks=(Ask("RTX4090", 7),), regions=("eu", "de"), tier=Tier.COMMITTED, notice_ms=400_000)
    world.do(m.SetTerms(worker_id, dear))
    row = row_of(offers, worker_id)
    assert (value(offers, worker_id, Column.PRICE), value(offers, worker_id, Column.NOTICE_MS)) == (
        7,
        400_000,
    )
    assert value(offers, worker_id, Column.COMMITTED) == 1
    assert offers.in_region("eu")[row]
    assert offers.in_region("de")[row]
    world.do(m.SetTerms(worker_id, Terms(asks=(Ask("RTX3060", 7),), regions=("us",))))
    assert value(offers, worker_id, Column.PRICE) == NO_ASK
    assert value(offers, worker_id, Column.COMMITTED) == 0
    assert [bool(offers.in_region(one)[row]) for one in ("eu", "de", "us", "mars")] == [
        False,
        False,
        True,
        False,
    ]


def test_table_follows_a_schedule_that_comes_and_goes() -> None:
    offers = table_of([machine("w", device("a"))])
    assert offers.closes_ms(AT_MS).tolist() == [NEVER_MS]
    minute = (AT_MS - MONDAY_MS) // MINUTE_MS % WEEK_MINUTES
    later = WeekWindow((minute + 60) % WEEK_MINUTES, (minute + 120) % WEEK_MINUTES)
    put(offers, machine("w", device("a"), terms=Terms(schedule=(later,))))
    assert offers.closes_ms(AT_MS).tolist() == [0]
    put(offers, machine("w", device("a")))
    assert offers.closes_ms(AT_MS).tolist() == [NEVER_MS]


SCHEDULES = st.lists(
    st.builds(WeekWindow, st.integers(0, WEEK_MINUTES - 1), st.integers(0, WEEK_MINUTES - 1))
    | st.integers(0, WEEK_MINUTES - 1).map(lambda start: WeekWindow(start, (start + 7) % WEEK_MINUTES)),
    min_size=1,
    max_size=4,
).map(tuple)
WAITS_MS = st.lists(
    st.none() | st.sampled_from([0, 1, MINUTE_MS - 1, MINUTE_MS]) | st.integers(0, 9 * 24 * 60 * MINUTE_MS),
    min_size=1,
    max_size=12,
)
"""None: until the very instant at which the next hours begin or end."""


@given(schedules=st.lists(SCHEDULES | st.just(()), min_size=1, max_size=4), waits_ms=WAITS_MS)
def test_hours_any_schedule_at_any_time_are_those_of_the_terms(
    schedules: list[tuple[WeekWindow, ...]], waits_ms: list[int | None]
) -> None:
    kept = {f"w{number}": Terms(schedule=windows) for number, windows in enumerate(schedules)}
    offers = table_of([machine(name, device(name), terms=terms) for name, terms in kept.items()])
    at_ms = AT_MS
    for wait_ms in waits_ms:
        due_ms = int(offers[Column.RECHECK_MS].min())
        if wait_ms is not None:
            at_ms += wait_ms
        elif due_ms != NEVER_MS:
            at_ms = max(at_ms, due_ms)
        closes_ms = offers.closes_ms(at_ms)
        for name, terms in kept.items():
            open_ms = terms.open_for_ms(at_ms)
            expected = NEVER_MS if open_ms is None else at_ms + open_ms if open_ms else 0
            assert closes_ms[row_of(offers, name)] == expected


@given(schedule=SCHEDULES, at_ms=st.integers(AT_MS, AT_MS + 14 * 24 * 60 * MINUTE_MS))
def test_hours_are_true_until_they_say(schedule: tuple[WeekWindow, ...], at_ms: int) -> None:
    terms = Terms(schedule=schedule)
    closes_ms, until_ms = terms.hours(at_ms)
    assert until_ms > at_ms
    if until_ms != NEVER_MS:
        assert terms.hours(until_ms - 1)[0] == closes_ms
        assert terms.hours(until_ms)[0] != closes_ms


# ------------------------------------------------------------ rows come and go


def test_table_grows_and_keeps_what_it_had() -> None:
    many = 3 * ROWS_MIN + 1
    everybody = [
        machine(f"w{number}", device(f"d{number}"), terms=Terms(asks=(Ask("RTX4090", number),)))
        for number in range(many)
    ]
    offers = table_of(everybody)
    assert offers.size == many
    assert sorted(offers[Column.PRICE].tolist()) == list(range(many))
    assert all(counts(offers, worker.worker_id) == (1, 1, 1, 1) for worker in everybody)


def test_table_gives_rows_of_the_forgotten_to_newcomers_but_not_their_numbers() -> None:
    first = machine("first", device("a"), device("b", "RTX3060"), terms=Terms(regions=("eu",)))
    offers = table_of([first, machine("other", device("c"))])
    rows = set(offers.rows_of(first.worker_id))
    number = value(offers, "first", Column.WORKER)
    offers.remove(first.worker_id)
    assert set(offers.rows_of(first.worker_id)) == set()
    assert offers[Column.WORKER].tolist().count(-1) == 2
    assert not offers.in_region("eu").any()
    assert not offers.mixed
    put(offers, machine("second", device("d"), device("e", "RTX3060")))
    assert set(offers.rows_of(WorkerId("second"))) == rows
    assert value(offers, "second", Column.WORKER) != number
    assert offers.size == 3


def test_table_forgets_a_stranger_who_is_forgotten() -> None:
    world = World()
    world.worker()
    forgotten = world.worker()
    world.state.remove_worker(forgotten)
    world.submit(Requirements(gpus=1))
    (placement,) = world.plan().placements
    assert forgotten not in {share.worker_id for share in placement.shares}
    assert forgotten not in {one for one, _ in world.state.offers.shown()}


def everything(offers: Offers) -> dict[object, object]:
    """The table without the order in which it came about: what is shown, where it stands, its hours."""
    regions = {name: offers.in_region(name) for name in ("eu", "de", "us")}
    closes_ms = offers.closes_ms(AT_MS)
    rows = [row for row in range(offers.size) if offers[Column.WORKER][row] >= 0]
    places = sorted(
        (
            offers.worker_of(row),
            offers.devices_of(row),
            offers.grounds.names[offers[Column.GROUND][row]],
            offers.sites.names[offers[Column.SITE][row]],
            int(closes_ms[row]),
            *(bool(standing[row]) for standing in regions.values()),
        )
        for row in rows
    )
    return {"shown": offers.shown(), "places": places}


@given(before=fleets(8), after=fleets(8), gone=st.sets(st.integers(0, 7)))
@settings(max_examples=60)
def test_table_after_any_changes_is_that_of_a_new_one(
    before: list[Worker], after: list[Worker], gone: set[int]
) -> None:
    offers = table_of(before)
    offers.closes_ms(AT_MS - 1)
    names = {worker.worker_id for worker in before}
    for number in gone:
        if f"w{number}" in names:
            offers.remove(WorkerId(f"w{number}"))
            names.remove(WorkerId(f"w{number}"))
    for worker in after:
        put(offers, worker)
    left = {worker.worker_id: worker for worker in before if worker.worker_id in names}
    left.update((worker.worker_id, worker) for worker in after)
    assert everything(offers) == everything(table_of(left.values()))


def test_table_of_a_reloaded_state_is_the_applied_one() -> None:
    world = World()
    workers = [world.worker(count=3, slots=2) for _ in range(3)]
    world.join(MIXED)
    world.head_host()
    world.do(m.SetTerms(workers[0], Terms(regions=("eu",), schedule=(WeekWindow(0, 600),))))
    world.do(m.HoldDevice(workers[1], world.who(workers[1]).inventory.devices[0].device_id, "XID 79"))
    world.running(Requirements(gpus=2))
    world.do(m.DrainWorker(workers[2]))
    loaded = State(world.policies)
    rows = world.state.rows()
    for table in TABLES:
        for key in sorted(rows[table]):
            loaded.put(rows[table][key])
    assert loaded.offers.shown() == world.state.offers.shown()
    assert everything(loaded.offers) == everything(world.state.offers)


MIXED = replace(
    inventory(hardware_class=HardwareClass.CONSUMER),
    devices=(device("m1"), replace(device("m2", "RTX3060"), evidence=None), device("m3")),
    slots=3,
)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("8.9", 809),
        ("9.0", 900),
        ("12.0", 1200),
        ("8", 0),
        ("", 0),
        ("8.9.1", 0),
        ("-8.9", 0),
        ("a.b", 0),
        ("٨.٩", 0),
        ("8.999", 899),
        ("99999.0", 100_000),
    ],
)
def test_capability_any_text_is_a_number_in_order(text: str, number: int) -> None:
    assert capability_number(text) == number
