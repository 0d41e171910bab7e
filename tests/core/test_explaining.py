"""Why a job waits: the numbers are those of the fleet, and whoever changes what he is told to is served."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings

from orchestrator.core.ids import JobId, TenantId
from orchestrator.core.jobs import Requirements
from orchestrator.core.scheduling.filters import FILTERS, Question, Removed
from orchestrator.core.scheduling.offers import Column
from orchestrator.core.scheduling.placement import Budget, JobNeed
from orchestrator.core.scheduling.plan import plan
from orchestrator.core.scheduling.shortage import (
    CHANGES_MAX,
    Change,
    Shortage,
    changes,
    position_words,
    shortage,
    waiting_words,
)
from orchestrator.core.supply.fleet import NEBULA, HardwareClass, Isolation, Worker
from orchestrator.core.supply.terms import Ask, Terms
from tests.core.fleets import AT_MS, CREDIT, asked, device, fleets, machine, requests, state_of, table_of
from tests.core.test_filters import gpu_machine
from tests.core.worlds import Listed, World


def short(fleet: list[Worker], wanted: Requirements, *, overlay_offered: bool = True) -> Shortage:
    """What there is for a request where nobody uses anything."""
    question = asked(table_of(fleet), wanted)
    return shortage(question, question[Column.FREE], overlay_offered=overlay_offered)


def advice(fleet: list[Worker], wanted: Requirements) -> tuple[Change, ...]:
    question = asked(table_of(fleet), wanted)
    free = question[Column.FREE]
    found = shortage(question, free, overlay_offered=True)
    return changes(question, free, found, overlay_offered=True)


def priced(name: str, price: int) -> Worker:
    """A machine of one RTX 4090 at a price."""
    return gpu_machine(name, terms=Terms(asks=(Ask("RTX4090", price),)))


# ------------------------------------------------------------ how much there is


def test_shortage_counts_what_fits_what_is_free_and_what_can_work_together() -> None:
    fleet = [
        machine("a", device("a1"), device("a2"), device("a3", "RTX3060")),
        machine("b", device("b1")),
        gpu_machine("c", hardware_class=HardwareClass.MINER),
        gpu_machine("d", zone="attic"),
    ]
    assert short(fleet, Requirements(gpus=4)) == Shortage(6, 6, 4, 3, ())
    assert short(fleet, Requirements(gpus=4, gpu_model="RTX4090")) == Shortage(5, 5, 4, 3, ())
    found = short(fleet, Requirements(gpus=4, hardware_class=HardwareClass.MINER))
    assert found == Shortage(1, 1, 4, 1, (Removed("hardware_class", "not of hardware class miner", 3, 3),))
    assert not found.enough


def test_shortage_counts_free_devices_as_the_plan_leaves_them() -> None:
    question = asked(table_of([gpu_machine("a"), gpu_machine("b")]), Requirements(gpus=2))
    free = question[Column.FREE].copy()
    free[0] = 0
    assert shortage(question, free, overlay_offered=True) == Shortage(2, 1, 2, 1, ())


def test_shortage_boxes_without_a_way_to_each_other_do_not_add_up() -> None:
    fleet = [gpu_machine(name, isolation=Isolation.BOX) for name in "ab"]
    assert short(fleet, Requirements(gpus=2)).largest == 1
    joined = [gpu_machine(name, isolation=Isolation.BOX, overlay=NEBULA) for name in "ab"]
    assert short(joined, Requirements(gpus=2)).largest == 2
    assert short(joined, Requirements(gpus=2), overlay_offered=False).largest == 1


def test_shortage_of_an_empty_fleet_is_all() -> None:
    assert short([], Requirements(gpus=2)) == Shortage(0, 0, 2, 0, ())


def test_shortage_on_one_machine_does_not_add_up_machines() -> None:
    fleet = [gpu_machine("a"), gpu_machine("b")]
    assert short(fleet, Requirements(gpus=2, one_machine=True)).largest == 1


def test_shortage_of_whole_machines_does_not_add_up_smaller_ones() -> None:
    fleet = [gpu_machine(name) for name in "abcd"]
    assert not short(fleet, Requirements(gpus=4, gpus_per_worker=2)).enough
    large = [machine(name, *(device(f"{name}{index}") for index in range(3))) for name in "ab"]
    assert short(large, Requirements(gpus=4, gpus_per_worker=2)).largest == 4
    assert short(large, Requirements(gpus=6, gpus_per_worker=2)).largest == 4


# ------------------------------------------------------------ in words


def words(fleet: list[Worker], wanted: Requirements) -> str:
    question = asked(table_of(fleet), wanted)
    return waiting_words(question, shortage(question, question[Column.FREE], overlay_offered=True))


def test_words_name_the_numbers_and_the_filters() -> None:
    fleet = [gpu_machine("a"), gpu_machine("b", "RTX3060"), gpu_machine("c", "RTX3060")]
    assert words(fleet, Requirements(gpus=2, gpu_model="RTX4090")) == (
        "waiting for 2 × RTX4090 together: 1 of 1 fitting devices free, 2 needed; "
        "workers left out: 2 not a RTX4090"
    )


def test_words_say_where_enough_is_free_but_not_in_one_place() -> None:
    fleet = [gpu_machine("a"), gpu_machine("b", zone="attic")]
    assert "at most 1 of them in one class, runtime and network" in words(fleet, Requirements(gpus=2))


def test_words_speak_of_slots_only_where_nothing_else_is_missing() -> None:
    fleet = [gpu_machine("a"), gpu_machine("b")]
    missing = "no head slot or member slot is free for them"
    assert missing in words(fleet, Requirements(gpus=2))
    assert missing not in words(fleet, Requirements(gpus=2, one_machine=True))
    assert missing not in words(fleet, Requirements(gpus=2, gpus_per_worker=2))


def test_words_of_a_job_are_those_that_its_tenant_reads() -> None:
    world = World()
    world.worker()
    world.worker("RTX3060")
    job_id = world.submit(Requirements(gpu_model="H100"))
    world.plan()
    assert world.job(job_id).message == (
        "waiting for 1 × H100: 0 of 0 fitting devices free, 1 needed; workers left out: 2 not a H100"
    )


@pytest.mark.parametrize(
    ("before", "tenants", "sentence"),
    [
        (0, 0, "the first of its tenant's queue; it is its tenant's turn"),
        (
            3,
            2,
            "behind 3 of its tenant's jobs; tenants with a smaller share of the fleet that come first: 2",
        ),
    ],
)
def test_position_says_who_comes_before(before: int, tenants: int, sentence: str) -> None:
    assert list(position_words(before, tenants)) == [sentence]


# ------------------------------------------------------------ what would help


def test_changes_name_the_price_that_does() -> None:
    fleet = [priced("a", 200_000), priced("b", 12_345_643), priced("c", 90 * CREDIT)]
    assert advice(fleet, Requirements(gpus=2, max_price=300_000)) == (
        Change("orch.max_price", "orch.max_price=12.345643 would do"),
    )


def test_changes_say_what_there_would_be_without_a_wish() -> None:
    fleet = [gpu_machine("a"), gpu_machine("b", "RTX3060"), gpu_machine("c", "RTX3060")]
    assert advice(fleet, Requirements(gpus=3, gpu_model="RTX4090")) == (
        Change(
            "orch.gpu_model", "without orch.gpu_model: 3 fitting devices are free together, enough to start"
        ),
    )
    assert advice(fleet, Requirements(gpus=9, gpu_model="RTX4090")) == (
        Change("orch.gpu_model", "without orch.gpu_model: 3 fitting devices, 3 of them free together"),
    )


def test_changes_the_most_helpful_come_first() -> None:
    here = Terms(regions=("eu",))
    fleet = [
        gpu_machine("a", terms=here),
        gpu_machine("b"),
        gpu_machine("c"),
        gpu_machine("d", "RTX3060", terms=here),
    ]
    found = advice(fleet, Requirements(gpus=3, gpu_model="RTX4090", region="eu"))
    assert [one.key for one in found] == ["orch.region", "orch.gpu_model"]


def test_changes_none_where_only_waiting_helps() -> None:
    assert advice([gpu_machine("a")], Requirements(gpus=2)) == ()
    assert advice([], Requirements(gpu_model="H100", max_price=1)) == ()
    assert advice([gpu_machine("a")], Requirements(region="")) == ()


def test_changes_a_wish_that_removes_nothing_is_not_named() -> None:
    assert advice([gpu_machine("a")], Requirements(gpus=2, gpu_model="RTX4090", min_gpu_memory_gb=8)) == ()


# ------------------------------------------------------------ any fleet

ENOUGH = re.compile(r"without (\S+): (\d+) fitting devices are free together, enough to start")
LESS = re.compile(r"without (\S+): (\d+) fitting devices, (\d+) of them free together")
PRICE = re.compile(r"orch\.max_price=([0-9.]+) would do")


def changed(wanted: Requirements, change: Change) -> Requirements:
    """The request as the tenant writes it who follows the advice."""
    price = PRICE.fullmatch(change.says)
    if price is not None:
        return replace(wanted, max_price=round(float(price[1]) * CREDIT))
    (one,) = (one for one in FILTERS if one.key == change.key)
    return one.lifted(wanted)


def starts(fleet: list[Worker], wanted: Requirements) -> bool:
    """Whether a plan places it, with head hosts wherever one may be wanted."""
    heads = [
        machine(
            f"head {number}",
            head_slots=1,
            zone=zone,
            isolation=isolation,
            overlay=NEBULA if isolation is not Isolation.NONE else "none",
        )
        for number, (zone, isolation) in enumerate(
            (zone, isolation) for zone in ("home", "attic") for isolation in Isolation
        )
    ]
    state = state_of([*fleet, *heads])
    need = JobNeed(JobId("job"), TenantId("ten"), wanted)
    return bool(plan(state, Listed([need]), AT_MS, Budget()).placements)


def question_of(fleet: list[Worker], wanted: Requirements) -> Question:
    """As the plan asks it: with the prices of the market."""
    state = state_of(fleet)
    question = asked(state.offers, wanted)
    own = question.offers[Column.PRICE]
    market = [state.market_price(question.offers.model_of(row)) for row in range(question.offers.size)]
    prices = [price if price >= 0 else market[row] for row, price in enumerate(own.tolist())]
    question.prices[:] = prices
    return question


@given(fleet=fleets(), wanted=requests())
@settings(max_examples=120)
def test_changes_any_advice_is_true(fleet: list[Worker], wanted: Requirements) -> None:
    question = question_of(fleet, wanted)
    free = question[Column.FREE]
    found = shortage(question, free, overlay_offered=True)
    told = changes(question, free, found, overlay_offered=True)
    assert len(told) <= CHANGES_MAX
    assert not (told and found.enough)
    for change in told:
        other = replace(question, wanted=changed(wanted, change))
        then = shortage(other, free, overlay_offered=True)
        less, enough = LESS.fullmatch(change.says), ENOUGH.fullmatch(change.says)
        assert then.fitting > found.fitting
        if less is not None:
            assert (int(less[2]), int(less[3])) == (then.fitting, then.largest)
            assert not then.enough
        else:
            assert then.enough
            assert enough is None or int(enough[2]) == then.largest
            assert starts(fleet, changed(wanted, change)), change.says
        if PRICE.fullmatch(change.says):
            cheaper = replace(other.wanted, max_price=other.wanted.max_price - 1)
            assert not shortage(replace(other, wanted=cheaper), free, overlay_offered=True).enough


@given(fleet=fleets(), wanted=requests())
@settings(max_examples=80)
def test_shortage_is_enough_exactly_where_a_plan_places_it(fleet: list[Worker], wanted: Requirements) -> None:
    question = question_of(fleet, wanted)
    found = shortage(question, question[Column.FREE], overlay_offered=True)
    assert found.enough == starts(fleet, wanted)
    assert found.largest <= found.free <= found.fitting
