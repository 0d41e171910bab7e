"""Filters: each removes exactly what it says, all of them agree with a slow second opinion, and counts are true."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.ids import WorkerId
from orchestrator.core.jobs import Requirements
from orchestrator.core.nearness.bandwidth import BandwidthMap
from orchestrator.core.scheduling.filters import (
    FILTERS,
    OF_HEADS,
    OPEN_MS_MIN,
    Filter,
    Question,
    Removed,
    describe,
    fitting,
    joins,
    rejections,
    scores_bp,
)
from orchestrator.core.scheduling.offers import Offers
from orchestrator.core.supply.catalogue import CPU_MODEL, GIB
from orchestrator.core.supply.evidence import EvidenceClass
from orchestrator.core.supply.fleet import NEBULA, HardwareClass, Isolation, Liveness, Worker
from orchestrator.core.supply.holds import PHRASES, HoldKind
from orchestrator.core.supply.reliability import Reliability, score_bp
from orchestrator.core.supply.terms import MINUTE_MS, MONDAY_MS, WEEK_MINUTES, Ask, Terms, Tier, WeekWindow
from tests.core.fleets import (
    AT_MS,
    CREDIT,
    HALF_LIFE_MS,
    MARKET,
    asked,
    cordoned,
    device,
    fleets,
    held,
    machine,
    put,
    requests,
    table_of,
)
from tests.core.rejections import device_rejection, owner_rejection, price_rejection, worker_rejection

NOW_MINUTE = (AT_MS - MONDAY_MS) // MINUTE_MS % WEEK_MINUTES


def hours(begins: int, ends: int, *, notice_ms: int = 30_000) -> Terms:
    """Open from so many minutes from now until so many."""
    window = WeekWindow((NOW_MINUTE + begins) % WEEK_MINUTES, (NOW_MINUTE + ends) % WEEK_MINUTES)
    return Terms(schedule=(window,), notice_ms=notice_ms)


def gpu_machine(name: str = "bad", model: str = "RTX4090", **offer: object) -> Worker:
    """A machine with one GPU."""
    return machine(name, device(name, model), **offer)  # type: ignore[arg-type]  # as machine has them


BOXED = {"isolation": Isolation.BOX}
EU = Terms(regions=("eu",))


@dataclass(frozen=True)
class Case:
    """A request, a machine that one filter alone removes, one that nothing removes, and the words for it."""

    name: str
    wanted: Requirements
    bad: Worker
    good: Worker
    phrase: str
    alone: int = 1
    """0 where whatever this filter removes, others remove as well."""


CASES = (
    Case(
        "hardware_class",
        Requirements(hardware_class=HardwareClass.MINER),
        gpu_machine(),
        gpu_machine("good", hardware_class=HardwareClass.MINER),
        "not of hardware class miner",
    ),
    Case(
        "isolation",
        Requirements(isolation=Isolation.CONTAINER),
        gpu_machine(**BOXED),
        gpu_machine("good", isolation=Isolation.CONTAINER),
        "isolation weaker than container",
    ),
    Case(
        "consent",
        Requirements(),
        gpu_machine(unisolated=False),
        gpu_machine("good", unisolated=False, **BOXED),
        "without isolation, to which the owner did not consent",
    ),
    Case(
        "runtime",
        Requirements(runtime="a" * 64),
        gpu_machine(),
        gpu_machine("good", **BOXED),
        "without provisioned runtimes",
    ),
    Case("devices", Requirements(), machine("bad"), gpu_machine("good"), "offers no device", alone=0),
    Case(
        "driver_cpus",
        Requirements(driver_cpus=5),
        gpu_machine(slots=2),
        gpu_machine("good"),
        "fewer than 5 CPUs for the driver",
    ),
    Case(
        "driver_memory",
        Requirements(driver_memory_bytes=33 * GIB),
        gpu_machine(),
        replace(gpu_machine("good"), inventory=replace(gpu_machine("good").inventory, memory_bytes=33 * GIB)),
        f"less than {33 * GIB} bytes of memory for the driver",
    ),
    Case(
        "hours",
        Requirements(),
        gpu_machine(terms=hours(5, 90)),
        gpu_machine("good", terms=hours(-5, 90)),
        "outside its owner's hours",
    ),
    Case(
        "closing",
        Requirements(),
        gpu_machine(terms=hours(-5, 90, notice_ms=3_600_000)),
        gpu_machine("good", terms=hours(-5, 125, notice_ms=3_600_000)),
        "closing soon by its owner's schedule",
    ),
    Case("avoid", Requirements(), gpu_machine(), gpu_machine("good"), "failed this job before it started"),
    Case("kind", Requirements(), machine("bad", device("c", CPU_MODEL)), gpu_machine("good"), "no GPU"),
    Case(
        "gpu_model",
        Requirements(gpu_model="RTX3060"),
        gpu_machine(),
        gpu_machine("good", "RTX3060"),
        "not a RTX3060",
    ),
    Case(
        "gpu_memory",
        Requirements(min_gpu_memory_gb=25),
        gpu_machine(),
        gpu_machine("good", "H100"),
        "less than 25 GB of GPU memory",
    ),
    Case(
        "compute_capability",
        Requirements(min_compute_capability=809),
        machine("bad", device("bad", capability="8.6")),
        machine("good", device("good", capability="8.9")),
        "compute capability not known to be 8.9 or more",
    ),
    Case(
        "region",
        Requirements(region="eu"),
        gpu_machine(terms=Terms(regions=("us",))),
        gpu_machine("good", terms=EU),
        "not in region eu",
    ),
    Case(
        "evidence",
        Requirements(min_evidence=EvidenceClass.T2),
        gpu_machine(),
        machine("good", device("good", proven=True)),
        "evidence weaker than t2",
    ),
    Case(
        "tier",
        Requirements(committed=True),
        gpu_machine(),
        gpu_machine("good", terms=Terms(tier=Tier.COMMITTED, notice_ms=300_000)),
        "interruptible",
    ),
    Case(
        "reliability",
        Requirements(min_reliability_bp=5_050),
        gpu_machine(),
        gpu_machine("good", reliability=Reliability(completed=9_000, at_ms=AT_MS)),
        "reliability below 50.5 %",
    ),
    Case(
        "bandwidth",
        Requirements(gpus=2, min_bandwidth_mbps=100),
        gpu_machine(),
        gpu_machine("good"),
        "known to deliver less than 100 Mbit/s to others",
    ),
    Case(
        "price",
        Requirements(max_price=450_000),
        gpu_machine(),
        gpu_machine("good", terms=Terms(asks=(Ask("RTX4090", 450_000),))),
        "dearer than 0.45 per GPU-hour",
    ),
    Case(
        "cordon",
        Requirements(),
        cordoned(gpu_machine(), "bad"),
        gpu_machine("good"),
        "with each fitting device cordoned",
    ),
)


def kept(question: Question) -> set[str]:
    """Workers of which some row fits."""
    rows = fitting(question).nonzero()[0].tolist()
    return {question.offers.worker_of(row) for row in rows}


def delivered_by(case: Case) -> BandwidthMap:
    """One is known to be slow, by two others who are not."""
    known = BandwidthMap()
    if case.name == "bandwidth":
        able = (WorkerId("able"), WorkerId("other"))
        known.observe(*able, 300_000_000, AT_MS)
        for one in able:
            known.observe(case.bad.worker_id, one, 99_999_999, AT_MS)
            known.observe(case.good.worker_id, one, 100_000_000, AT_MS)
    return known


def avoided(case: Case) -> tuple[WorkerId, ...]:
    return (case.bad.worker_id,) if case.name == "avoid" else ()


def test_cases_are_there_for_every_filter() -> None:
    assert [case.name for case in CASES] == [one.name for one in FILTERS]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_filter_removes_what_it_says_and_keeps_the_rest(case: Case) -> None:
    table = table_of([case.bad, case.good])
    question = asked(table, case.wanted, avoid=avoided(case), bandwidth=delivered_by(case))
    assert kept(question) == {"good"}
    assert rejections(question) == (Removed(case.name, case.phrase, 1, case.alone),)


@pytest.mark.parametrize("case", [case for case in CASES if case.alone], ids=lambda case: case.name)
def test_filter_alone_stands_between_the_machine_and_the_request(case: Case) -> None:
    table = table_of([case.bad])
    question = asked(table, case.wanted, avoid=avoided(case), bandwidth=delivered_by(case))
    (own,) = (one for one in FILTERS if one.name == case.name)
    assert not own.keeps(question).any()
    others = [one for one in FILTERS if one.name != case.name and one.asked(case.wanted)]
    assert all(one.keeps(question).all() for one in others)


@pytest.mark.parametrize("one", [one for one in FILTERS if one.field], ids=lambda one: one.name)
def test_filter_lifted_is_not_asked_any_more(one: Filter) -> None:
    (case,) = (case for case in CASES if case.name == one.name)
    assert one.asked(case.wanted)
    lifted = one.lifted(case.wanted)
    assert not one.asked(lifted)
    assert lifted == Requirements(gpus=case.wanted.gpus)
    then = asked(table_of([case.bad, case.good]), lifted, bandwidth=delivered_by(case))
    assert kept(then) == {"bad", "good"}


@pytest.mark.parametrize("one", [one for one in FILTERS if not one.field], ids=lambda one: one.name)
def test_filter_that_a_tenant_cannot_do_without_lifts_nothing(one: Filter) -> None:
    (case,) = (case for case in CASES if case.name == one.name)
    assert one.lifted(case.wanted) == case.wanted


def test_filters_of_cpu_work_want_a_cpu_worker() -> None:
    cpu = machine("good", device("c", CPU_MODEL), hardware_class=HardwareClass.CPU)
    question = asked(table_of([cpu, gpu_machine()]), Requirements(gpus=0))
    assert kept(question) == {"good"}
    assert rejections(question) == (Removed("hardware_class", "not of hardware class cpu", 1, 0),)


def test_filters_of_heads_look_at_no_device() -> None:
    head = machine("head", head_slots=2)
    wanted = Requirements(gpus=2, gpu_model="H100", region="eu", max_price=1)
    assert fitting(asked(table_of([head]), wanted), OF_HEADS).all()
    assert not fitting(asked(table_of([head]), wanted)).any()
    away = machine("head", head_slots=2, unisolated=False)
    assert not fitting(asked(table_of([away]), wanted), OF_HEADS).any()


@pytest.mark.parametrize(
    ("isolation", "overlay", "offered", "joined"),
    [
        (Isolation.NONE, "none", False, True),
        (Isolation.BOX, "none", True, False),
        (Isolation.BOX, NEBULA, True, True),
        (Isolation.BOX, NEBULA, False, False),
    ],
)
def test_joins_needs_a_way_to_the_others(
    isolation: Isolation, overlay: str, offered: bool, joined: bool
) -> None:
    offers = table_of([gpu_machine(isolation=isolation, overlay=overlay)])
    assert joins(offers, overlay_offered=offered).tolist() == [joined]


def test_closing_begins_where_a_cluster_would_not_pay() -> None:
    window = hours(-5, 30)
    closes_ms = AT_MS + (window.open_for_ms(AT_MS) or 0)
    offers = table_of([gpu_machine(terms=window)])
    for at_ms, fits in [(closes_ms - OPEN_MS_MIN, True), (closes_ms - OPEN_MS_MIN + 1, False)]:
        assert fitting(asked(offers, Requirements(), at_ms=at_ms)).tolist() == [fits]


# ------------------------------------------------------------ counts


STATES: tuple[tuple[Callable[[Worker], Worker], str], ...] = (
    (lambda worker: replace(worker, liveness=Liveness.SUSPECT), "suspect"),
    (lambda worker: replace(worker, liveness=Liveness.LOST), "lost"),
    (lambda worker: replace(worker, liveness=Liveness.LEFT), "left the network"),
    (lambda worker: replace(worker, draining=True), "draining"),
    (lambda worker: held(worker, HoldKind.PROBATION), "on probation"),
    (lambda worker: held(worker, HoldKind.SCHEDULE), PHRASES[HoldKind.SCHEDULE]),
)


@pytest.mark.parametrize(("changed", "phrase"), STATES, ids=[phrase for _, phrase in STATES])
def test_rejections_name_the_standing_of_a_worker(changed: Callable[[Worker], Worker], phrase: str) -> None:
    question = asked(table_of([changed(gpu_machine())]), Requirements())
    assert rejections(question) == (Removed("state", phrase, 1, 1),)


def test_rejections_of_no_worker_are_none() -> None:
    assert rejections(asked(Offers(), Requirements())) == ()
    offers = table_of([gpu_machine()])
    offers.remove(WorkerId("bad"))
    assert rejections(asked(offers, Requirements(gpu_model="H100"))) == ()


def test_rejections_count_most_first_and_a_worker_once() -> None:
    mixed = machine("mixed", device("a"), device("b", "RTX3060"))
    fleet = [gpu_machine("one"), gpu_machine("two"), mixed, held(gpu_machine("three"), HoldKind.OWNER)]
    question = asked(table_of(fleet), Requirements(gpu_model="RTX3060"))
    assert kept(question) == {"mixed"}
    assert rejections(question) == (
        Removed("gpu_model", "not a RTX3060", 2, 2),
        Removed("state", "cordoned by its owner", 1, 0),
    )


def test_rejections_speak_of_the_row_that_came_furthest() -> None:
    mixed = machine("mixed", device("a"), device("b", "H100", capability="9.0"))
    wanted = Requirements(gpu_model="H100", min_compute_capability=1_000, region="eu")
    (removed,) = rejections(asked(table_of([mixed]), wanted))
    assert (removed.name, removed.alone) == ("compute_capability", 0)


# ------------------------------------------------------------ any fleet


def wanted_by(worker: Worker, wanted: Requirements, avoid: tuple[WorkerId, ...]) -> set[str]:
    """Its devices that serve the request, by the second opinion."""
    if not worker.placeable or worker.worker_id in avoid or worker_rejection(worker, wanted):
        return set()
    if owner_rejection(worker, wanted, AT_MS, HALF_LIFE_MS):
        return set()
    away = {one.device_id for one in worker.device_holds}
    return {
        one.device_id
        for one in worker.inventory.devices
        if one.device_id not in away
        and device_rejection(one, wanted) is None
        and price_rejection(worker, one, wanted, MARKET) is None
    }


def not_on_the_edge(wanted: Requirements, fleet: list[Worker]) -> Requirements:
    """Scores of a whole table may differ by one from the exact one: no floor lies there."""
    scores = {score_bp(worker.reliability, AT_MS, HALF_LIFE_MS) for worker in fleet}
    edge = any(abs(wanted.min_reliability_bp - score) <= 1 for score in scores)
    return replace(wanted, min_reliability_bp=0) if edge else wanted


AVOIDED = st.sampled_from([(), (), (WorkerId("w0"),), (WorkerId("w1"), WorkerId("gone"))])


@given(fleet=fleets(), wanted=requests(), avoid=AVOIDED)
@settings(max_examples=150)
def test_fitting_any_fleet_and_request_agrees_with_one_worker_at_a_time(
    fleet: list[Worker], wanted: Requirements, avoid: tuple[WorkerId, ...]
) -> None:
    offers = table_of(fleet)
    wanted = not_on_the_edge(wanted, fleet)
    rows = fitting(asked(offers, wanted, avoid=avoid)).nonzero()[0].tolist()
    found = {(offers.worker_of(row), one) for row in rows for one in offers.devices_of(row)}
    assert found == {(worker.worker_id, one) for worker in fleet for one in wanted_by(worker, wanted, avoid)}


@given(fleet=fleets())
@settings(max_examples=50)
def test_scores_of_a_table_are_those_of_its_workers_but_for_a_rounding(fleet: list[Worker]) -> None:
    offers = table_of(fleet)
    scores = scores_bp(offers, AT_MS, HALF_LIFE_MS)
    for worker in fleet:
        for row in offers.rows_of(worker.worker_id):
            assert abs(int(scores[row]) - score_bp(worker.reliability, AT_MS, HALF_LIFE_MS)) <= 1


@given(fleet=fleets(), wanted=requests(), avoid=AVOIDED, forgotten=st.booleans())
@settings(max_examples=150)
def test_rejections_any_fleet_and_request_are_true(
    fleet: list[Worker], wanted: Requirements, avoid: tuple[WorkerId, ...], forgotten: bool
) -> None:
    offers = table_of(fleet)
    if forgotten and fleet:
        offers.remove(fleet.pop().worker_id)
    question = asked(offers, wanted, avoid=avoid)
    serving = kept(question)
    found = rejections(question)
    assert sum(one.workers for one in found) + len(serving) == len(fleet)
    assert len({(one.name, one.phrase) for one in found}) == len(found)
    by_name = {one.name: one for one in FILTERS}
    for removed in found:
        assert 0 <= removed.alone <= removed.workers
        lifted = by_name.get(removed.name)
        if lifted is not None and lifted.field and lifted.lifted(wanted) != wanted:
            then = kept(replace(question, wanted=lifted.lifted(wanted)))
            assert serving <= then
            assert len(then) - len(serving) >= removed.alone


@given(fleet=fleets(), wanted=requests())
@settings(max_examples=60)
def test_rejections_by_the_standing_alone_end_with_it(fleet: list[Worker], wanted: Requirements) -> None:
    offers = table_of(fleet)
    serving = kept(asked(offers, wanted))
    alone = sum(one.alone for one in rejections(asked(offers, wanted)) if one.name == "state")
    for worker in fleet:
        put(offers, replace(worker, liveness=Liveness.LIVE, draining=False, holds=()))
    assert len(kept(asked(offers, wanted)) - serving) == alone


# ------------------------------------------------------------ words


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (Requirements(), "1 × GPU"),
        (Requirements(gpus=0), "CPU work on one cpu worker"),
        (Requirements(gpus=4, gpu_model="H100", gpus_per_worker=2), "4 × H100 together 2 on each machine"),
        (
            Requirements(gpus=2, one_machine=True, region="eu", committed=True),
            "2 × GPU in region eu on committed machines on one machine",
        ),
        (
            Requirements(min_reliability_bp=9_950, max_price=1_234_567, max_rtt_ms=20),
            "1 × GPU of reliability 99.5 % for at most 1.234567 per GPU-hour within 20 ms",
        ),
        (
            Requirements(gpus=2, max_rtt_ms=20, min_bandwidth_mbps=250),
            "2 × GPU within 20 ms with 250 Mbit/s between machines together",
        ),
        (
            Requirements(min_compute_capability=1_200, min_evidence=EvidenceClass.T2),
            "1 × GPU of compute capability 12.0 with evidence t2",
        ),
    ],
)
def test_describe_says_what_is_asked(wanted: Requirements, words: str) -> None:
    assert describe(wanted) == words


def test_price_is_said_to_the_microcredit() -> None:
    wanted = Requirements(max_price=12 * CREDIT + 345_678)
    dear = gpu_machine(terms=Terms(asks=(Ask("RTX4090", 13 * CREDIT),)))
    (removed,) = rejections(asked(table_of([dear]), wanted))
    assert removed.phrase == "dearer than 12.345678 per GPU-hour"
