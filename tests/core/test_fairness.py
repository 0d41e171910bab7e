"""Whose turn it is, by what each tenant holds and held lately."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.errors import RefusedError
from orchestrator.core.ids import TenantId
from orchestrator.core.market.worth import worth_milli
from orchestrator.core.policies import Policies
from orchestrator.core.tenancy.fairness import (
    GROWTH_BITS,
    NOTHING,
    SHARE_ONE,
    WEIGHT_MAX,
    Amounts,
    Contender,
    FairnessPolicy,
    Turns,
    Usage,
    amounts_of,
    changed,
    check_weight,
    dominant_share,
    mean_held,
    moment,
    order,
)

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
START_MS = 20_000 * DAY_MS + 5 * HOUR_MS
POLICY = FairnessPolicy()
FLEET = Amounts(gpu_milli=100_000, cpus=1_000, memory_mib=1_000_000)
ONE_GPU = Amounts(gpu_milli=1_000)


NEW = Usage()


def tenant(name: str, usage: Usage = NEW, weight: int = 100) -> Contender:
    return Contender(TenantId(name), usage, weight)


def holding(amounts: Amounts, since_ms: int, half_life_ms: int = DAY_MS) -> Usage:
    return changed(Usage(), moment(since_ms, half_life_ms), gained=amounts)


def mean_at(usage: Usage, at_ms: int, half_life_ms: int = DAY_MS) -> int:
    return mean_held(usage, moment(at_ms, half_life_ms)).gpu_milli


# ---------------------------------------------------------------- amounts


def test_amounts_of_devices_weighs_them_by_worth_and_counts_no_processor_as_gpu() -> None:
    amounts = amounts_of(["H100", "RTX4090", "CPU"], cpus=12, memory_mib=2_048)
    assert amounts == Amounts(worth_milli("H100") + 1_000, 12, 2_048)


# ---------------------------------------------------------------- memory


def test_mean_of_what_is_held_for_one_half_life_is_half_of_it() -> None:
    usage = holding(FLEET, START_MS)
    assert mean_at(usage, START_MS) == 0
    assert mean_at(usage, START_MS + DAY_MS) == pytest.approx(50_000, abs=1)
    assert mean_at(usage, START_MS + 2 * DAY_MS) == pytest.approx(75_000, abs=1)
    assert mean_at(usage, START_MS + 1_000 * DAY_MS) == 100_000


def test_mean_of_what_was_given_back_halves_in_a_half_life() -> None:
    usage = holding(FLEET, START_MS)
    over_ms = START_MS + 100 * DAY_MS
    usage = changed(usage, moment(over_ms, DAY_MS), lost=FLEET)
    assert usage.held == NOTHING
    assert mean_at(usage, over_ms) == pytest.approx(100_000, abs=1)
    assert mean_at(usage, over_ms + DAY_MS) == pytest.approx(50_000, abs=1)
    assert mean_at(usage, over_ms + 40 * DAY_MS) == 0


def test_mean_after_another_half_life_is_chosen_is_the_same_and_fades_by_the_new_one() -> None:
    usage = changed(holding(FLEET, START_MS), moment(START_MS + DAY_MS, DAY_MS), lost=FLEET)
    later_ms = START_MS + 2 * DAY_MS
    assert mean_at(usage, later_ms, HOUR_MS) == pytest.approx(25_000, abs=1)
    usage = changed(usage, moment(later_ms, HOUR_MS), gained=ONE_GPU)
    assert usage.half_life_ms == HOUR_MS
    assert mean_at(usage, later_ms, HOUR_MS) == pytest.approx(25_000, abs=1)
    assert mean_at(usage, later_ms + HOUR_MS, HOUR_MS) == pytest.approx(13_000, abs=1)


def test_memory_of_the_largest_fleet_fits_sixty_four_bits() -> None:
    whole = Amounts(gpu_milli=100_000 * 9_000, cpus=20_000_000, memory_mib=100_000 * 1_048_576)
    usage = changed(holding(whole, START_MS), moment(START_MS + 100 * DAY_MS, DAY_MS), lost=whole)
    assert usage.deviation.memory_mib < 1 << 63


Step = tuple[int, int]
STEPS = st.lists(st.tuples(st.integers(0, 3 * DAY_MS), st.integers(0, 10**6)), min_size=1, max_size=12)


@given(steps=STEPS, after_ms=st.integers(0, 5 * DAY_MS))
def test_mean_of_any_story_is_the_exponential_mean(steps: list[Step], after_ms: int) -> None:
    usage, at_ms, held = Usage(), START_MS, 0
    exact = 0.0
    for wait_ms, next_held in steps:
        exact = held + (exact - held) * 0.5 ** (wait_ms / DAY_MS)
        at_ms += wait_ms
        now = moment(at_ms, DAY_MS)
        usage = changed(usage, now, gained=Amounts(next_held), lost=Amounts(held))
        held = next_held
    exact = held + (exact - held) * 0.5 ** (after_ms / DAY_MS)
    # A step of growth is told in sixteen bits of a period and kept to a millionth.
    assert mean_at(usage, at_ms + after_ms) == pytest.approx(exact, abs=1 + len(steps) * (1 + 10**6 * 3e-5))


@given(
    parts=st.lists(st.tuples(st.integers(0, HOUR_MS), st.integers(0, 10**6)), max_size=8),
    order_of=st.randoms(use_true_random=False),
)
def test_changes_within_a_period_any_order_come_to_the_same(
    parts: list[Step], order_of: random.Random
) -> None:
    turned = list(parts)
    order_of.shuffle(turned)
    one, other = Usage(), Usage()
    for at_ms, amount in parts:
        one = changed(one, moment(20_000 * DAY_MS + at_ms, DAY_MS), gained=Amounts(amount))
    for at_ms, amount in turned:
        other = changed(other, moment(20_000 * DAY_MS + at_ms, DAY_MS), gained=Amounts(amount))
    assert one == other


@given(into_ms=st.integers(0, DAY_MS - 1))
def test_growth_within_a_period_goes_from_one_to_two(into_ms: int) -> None:
    now = moment(20_000 * DAY_MS + into_ms, DAY_MS)
    exact = 2 ** (into_ms / DAY_MS)
    assert now.period == 20_000
    assert float(Fraction(now.growth, 1 << GROWTH_BITS)) == pytest.approx(exact, abs=5e-5)


def test_moment_before_the_usage_was_written_takes_nothing_away() -> None:
    usage = holding(FLEET, START_MS)
    earlier = moment(START_MS - 3 * DAY_MS, DAY_MS)
    assert changed(usage, earlier).period == usage.period
    assert 0 <= mean_held(usage, earlier).gpu_milli <= FLEET.gpu_milli


# ---------------------------------------------------------------- shares


def test_dominant_share_is_the_largest_of_any_resource_over_the_weight() -> None:
    held = Amounts(gpu_milli=10_000, cpus=300, memory_mib=0)
    assert dominant_share(held, FLEET) == SHARE_ONE * 3 // 10
    assert dominant_share(held, FLEET, 3) == SHARE_ONE // 10


def test_dominant_share_of_a_resource_that_the_fleet_lacks_says_nothing() -> None:
    assert dominant_share(Amounts(5, 5, 5), NOTHING) == 0


def test_dominant_share_by_the_largest_weight_still_tells_one_small_device() -> None:
    fleet = Amounts(gpu_milli=1_000_000 * 9_000)
    assert dominant_share(Amounts(gpu_milli=90), fleet, WEIGHT_MAX) > 0


# ---------------------------------------------------------------- turns


def given_in_turn(turns: Turns, size: Amounts, count: int) -> str:
    served = ""
    for _ in range(count):
        tenant_id = turns.next()
        if tenant_id is None:
            break
        served += tenant_id
        turns.gave(tenant_id, size)
    return served


def test_turns_of_equals_go_round() -> None:
    turns = Turns([tenant("b"), tenant("a"), tenant("c")], FLEET, POLICY, START_MS, 8)
    assert given_in_turn(turns, ONE_GPU, 7) == "abcabca"


def test_turns_of_twice_the_weight_come_twice_as_often() -> None:
    turns = Turns([tenant("a", weight=200), tenant("b")], FLEET, POLICY, START_MS, 8)
    assert given_in_turn(turns, ONE_GPU, 9).count("a") == 6


def test_turns_of_who_holds_much_wait_until_the_others_hold_as_much() -> None:
    now = moment(START_MS, DAY_MS)
    holder = changed(Usage(), now, gained=Amounts(gpu_milli=3_000))
    turns = Turns([tenant("a", holder), tenant("b")], FLEET, POLICY, START_MS, 8)
    assert given_in_turn(turns, ONE_GPU, 6) == "bbbaba"


def test_turns_of_different_resources_equalise_what_dominates() -> None:
    """The example of the literature: 9 processors and 18 of memory, jobs of <1, 4> and <3, 1>: three and two of them."""
    fleet = Amounts(cpus=9, memory_mib=18)
    turns = Turns([tenant("a"), tenant("b")], fleet, POLICY, START_MS, 8)
    sizes = {TenantId("a"): Amounts(cpus=1, memory_mib=4), TenantId("b"): Amounts(cpus=3, memory_mib=1)}
    left, served = fleet, ""
    while (tenant_id := turns.next()) is not None:
        after = left.minus(sizes[tenant_id])
        if min(after.cpus, after.memory_mib) < 0:
            turns.leave(tenant_id)
            continue
        turns.gave(tenant_id, sizes[tenant_id])
        left, served = after, served + tenant_id
    assert sorted(served) == ["a", "a", "a", "b", "b"]


def test_turns_after_a_miss_go_to_an_equal_and_come_back_until_too_many() -> None:
    turns = Turns([tenant("a"), tenant("b")], FLEET, POLICY, START_MS, misses_max=2)
    a, b = TenantId("a"), TenantId("b")
    seen = []
    while (tenant_id := turns.next()) is not None:
        seen.append(tenant_id)
        turns.missed(tenant_id)
    assert seen == [a, b, a, b]


def test_turns_when_something_is_taken_back_come_sooner() -> None:
    held = changed(Usage(), moment(START_MS, DAY_MS), gained=Amounts(gpu_milli=5_000))
    turns = Turns([tenant("a", held), tenant("b", held)], FLEET, POLICY, START_MS, 8)
    turns.took(TenantId("b"), ONE_GPU)
    assert turns.next() == TenantId("b")
    turns.gave(TenantId("b"), ONE_GPU)
    assert turns.next() == TenantId("a")


def test_turns_given_to_somebody_out_of_turn_count_and_a_stranger_is_passed_over() -> None:
    turns = Turns([tenant("a"), tenant("b")], FLEET, POLICY, START_MS, 8)
    turns.gave(TenantId("a"), ONE_GPU)
    turns.gave(TenantId("nobody"), ONE_GPU)
    assert turns.next() == TenantId("b")
    assert turns.share(TenantId("a")) == SHARE_ONE // 10_000


def test_turns_of_nobody_are_nobodys() -> None:
    assert Turns([], FLEET, POLICY, START_MS, 8).next() is None


def had(gpus: int, minutes: int) -> Usage:
    """Held until now, when it was given back."""
    amounts = Amounts(gpu_milli=1_000 * gpus)
    past = holding(amounts, START_MS - 60_000 * minutes)
    return changed(past, moment(START_MS, DAY_MS), lost=amounts)


@pytest.mark.parametrize("much", [2, 24])
def test_turns_of_who_had_more_lately_stand_behind_by_their_place_however_much_it_was(much: int) -> None:
    """Of four equals the last stands one and a half fair shares behind the first, each one half behind the next."""
    contenders = [tenant(name, had(number * much, 12 * 60)) for number, name in enumerate("dcba")]
    turns = Turns(contenders, FLEET, POLICY, START_MS, 8)
    half_of_fair = SHARE_ONE // 100 // 8
    assert [turns.share(one.tenant_id) for one in contenders] == [
        number * half_of_fair for number in range(4)
    ]


def test_turns_of_who_had_hardly_more_lately_stand_behind_in_part() -> None:
    """Of two, a fair share is 50 GPUs; one of them had it for five minutes: a quarter of what tells them apart wholly."""
    turns = Turns([tenant("a", had(50, 5)), tenant("b")], FLEET, POLICY, START_MS, 8)
    fair = SHARE_ONE // 100 // 2
    assert turns.share(TenantId("a")) == pytest.approx(fair / 4, rel=0.02)
    turns = Turns([tenant("a", had(50, 25)), tenant("b")], FLEET, POLICY, START_MS, 8)
    assert turns.share(TenantId("a")) == fair


def test_turns_of_who_had_as_much_lately_stand_together() -> None:
    past = changed(holding(ONE_GPU, START_MS - HOUR_MS), moment(START_MS, DAY_MS), lost=ONE_GPU)
    turns = Turns([tenant("a", past), tenant("b"), tenant("c", past)], FLEET, POLICY, START_MS, 8)
    assert turns.share(TenantId("a")) == turns.share(TenantId("c")) > turns.share(TenantId("b")) == 0


def test_turns_of_the_last_in_memory_come_once_all_others_have_their_fair_shares() -> None:
    rich = changed(holding(FLEET, START_MS - DAY_MS), moment(START_MS, DAY_MS), lost=FLEET)
    for weight in (50, 100, 1_000):
        contenders = [tenant("a", rich, weight), *(tenant(name) for name in "bcde")]
        turns = Turns(contenders, FLEET, POLICY, START_MS, 8)
        fair_of_others = 100 * 400 // (400 + weight)
        served = given_in_turn(turns, ONE_GPU, 100)
        assert "a" in served
        assert served.index("a") <= fair_of_others + 4


def test_turns_of_who_holds_more_than_its_part_of_the_weights_stand_beyond_their_fair_share() -> None:
    now = moment(START_MS, DAY_MS)
    holder = changed(Usage(), now, gained=Amounts(gpu_milli=34_000))
    turns = Turns([tenant("a", holder, 50), tenant("b", holder, 100)], FLEET, POLICY, START_MS, 8)
    assert turns.is_beyond(TenantId("a"))
    assert not turns.is_beyond(TenantId("b"))


def test_order_puts_who_used_much_lately_behind() -> None:
    past = changed(holding(FLEET, START_MS), moment(START_MS + DAY_MS, DAY_MS), lost=FLEET)
    both = [tenant("a", past), tenant("b")]
    soon_ms = START_MS + DAY_MS
    assert order(both, FLEET, POLICY, soon_ms) == ("b", "a")
    assert order(both, FLEET, FairnessPolicy(memory_bp=0), soon_ms) == ("a", "b")
    assert order(both, FLEET, POLICY, START_MS + 60 * DAY_MS) == ("a", "b")


def test_turns_alternate_while_what_is_given_grows_their_shares() -> None:
    turns = Turns([tenant("a"), tenant("b"), tenant("c")], FLEET, POLICY, START_MS, 8)
    wanted = {TenantId("a"): 3, TenantId("b"): 1, TenantId("c"): 2}
    seen = []
    while (tenant_id := turns.next()) is not None:
        if wanted[tenant_id]:
            wanted[tenant_id] -= 1
            seen.append(tenant_id)
            turns.gave(tenant_id, ONE_GPU)
        else:
            turns.leave(tenant_id)
    assert seen == ["a", "b", "c", "a", "c", "a"]


def test_turns_of_one_whose_jobs_never_fit_are_bounded_and_serve_the_others_all_the_same() -> None:
    turns = Turns([tenant("a"), tenant("b")], FLEET, POLICY, START_MS, misses_max=3)
    seen = []
    while (tenant_id := turns.next()) is not None:
        seen.append(tenant_id)
        turns.missed(tenant_id)
    assert seen == ["a", "b", "a", "b", "a", "b"]


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("weight", [0, -1, WEIGHT_MAX + 1])
def test_weight_that_orders_nothing_is_refused(weight: int) -> None:
    with pytest.raises(RefusedError, match="weight must be 1 to") as caught:
        check_weight(weight)
    assert caught.value.field == "tenant.weight"


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        (FairnessPolicy(half_life_ms=0), "fairness.half_life_ms"),
        (FairnessPolicy(half_life_ms=10**18), "fairness.half_life_ms"),
        (FairnessPolicy(memory_bp=-1), "fairness.memory_bp"),
        (FairnessPolicy(memory_bp=10_001), "fairness.memory_bp"),
    ],
)
def test_policy_that_nobody_can_mean_is_refused(policy: FairnessPolicy, field: str) -> None:
    with pytest.raises(RefusedError) as caught:
        Policies(fairness=policy)
    assert caught.value.field == field


def test_weight_by_default_is_accepted() -> None:
    check_weight(Contender(TenantId("a"), Usage()).weight)
