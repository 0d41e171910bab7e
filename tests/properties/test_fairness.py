"""What holds of turns whatever the tenants, their weights and their past; and what an hour of them comes to."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.ids import TenantId
from orchestrator.core.tenancy.fairness import (
    SHARE_ONE,
    Amounts,
    Contender,
    FairnessPolicy,
    Turns,
    Usage,
    changed,
    mean_held,
    moment,
)

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
POLICY = FairnessPolicy()
HALF_LIFE_MS = POLICY.half_life_ms
START_MS = 20_000 * HALF_LIFE_MS + 7 * HOUR_MS
UNITS = 1_000
FLEET = Amounts(gpu_milli=UNITS * 1_000)
UNIT = Amounts(gpu_milli=1_000)


@st.composite
def pasts(draw: st.DrawFn) -> Usage:
    """Held up to the whole fleet for a while, gave it back, and waited."""
    amount = Amounts(gpu_milli=draw(st.integers(0, FLEET.gpu_milli)))
    held_ms, idle_ms = draw(st.integers(0, 9 * HALF_LIFE_MS)), draw(st.integers(0, 3 * HALF_LIFE_MS))
    usage = changed(Usage(), moment(START_MS - idle_ms - held_ms, HALF_LIFE_MS), gained=amount)
    return changed(usage, moment(START_MS - idle_ms, HALF_LIFE_MS), lost=amount)


@st.composite
def tenants(draw: st.DrawFn) -> list[Contender]:
    drawn = draw(st.lists(st.tuples(pasts(), st.integers(1, 10)), min_size=2, max_size=6))
    return [Contender(TenantId(f"t{number}"), *one) for number, one in enumerate(drawn)]


def hand_out(contenders: list[Contender], count: int) -> tuple[Turns, Counter[TenantId]]:
    """``count`` units to tenants that all want more than there is."""
    turns = Turns(contenders, FLEET, POLICY, START_MS, misses_max=1)
    served: Counter[TenantId] = Counter()
    for _ in range(count):
        tenant_id = turns.next()
        assert tenant_id is not None
        turns.gave(tenant_id, UNIT)
        served[tenant_id] += 1
    return turns, served


@given(contenders=tenants(), count=st.integers(1, UNITS))
def test_turns_any_past_nobody_is_served_past_one_who_has_less(
    contenders: list[Contender], count: int
) -> None:
    turns, served = hand_out(contenders, count)
    least = min(turns.share(one.tenant_id) for one in contenders)
    for one in contenders:
        if served[one.tenant_id]:
            before_its_last = turns.share(one.tenant_id) - SHARE_ONE // UNITS // one.weight - 1
            assert before_its_last <= least


@given(contenders=tenants())
def test_turns_any_past_shuts_nobody_out(contenders: list[Contender]) -> None:
    _, served = hand_out(contenders, UNITS)
    assert all(served[one.tenant_id] > 0 for one in contenders)


@given(contenders=tenants(), seed=st.integers(0, 2**32))
def test_turns_any_order_of_the_tenants_come_to_the_same(contenders: list[Contender], seed: int) -> None:
    turned = list(contenders)
    random.Random(seed).shuffle(turned)
    assert hand_out(turned, 100)[1] == hand_out(contenders, 100)[1]


@given(usage=pasts(), names=st.permutations("abcdefg"), count=st.integers(1, 60))
def test_turns_of_equals_whoever_has_which_name_differ_by_one_unit(
    usage: Usage, names: list[str], count: int
) -> None:
    _, served = hand_out([Contender(TenantId(name), usage) for name in names], count)
    each = sorted(served[TenantId(name)] for name in names)
    whole, more = divmod(count, len(names))
    assert each == [whole] * (len(names) - more) + [whole + 1] * more


@given(usage=pasts(), half_lives=st.integers(0, 80))
def test_credit_of_an_idle_tenant_grows_to_that_of_a_newcomer_and_no_further(
    usage: Usage, half_lives: int
) -> None:
    now = moment(START_MS + half_lives * HALF_LIFE_MS, HALF_LIFE_MS)
    left = mean_held(usage, now).gpu_milli
    assert 0 <= left <= (FLEET.gpu_milli >> half_lives) + 1
    if half_lives > 25:
        assert left == 0


@given(usage=pasts(), weights=st.tuples(st.integers(1, 10), st.integers(1, 10)))
def test_credit_of_an_idle_tenant_is_worth_one_fair_share_at_most(
    usage: Usage, weights: tuple[int, int]
) -> None:
    """Of two, the idle one can get its own fair share and the part of the other's that memory takes, no more."""
    idle, busy = weights
    both = [Contender(TenantId("idle"), Usage(), idle), Contender(TenantId("busy"), usage, busy)]
    _, served = hand_out(both, UNITS)
    fair_of_busy = UNITS * busy / (idle + busy)
    assert served[TenantId("busy")] >= fair_of_busy * (1 - idle / (idle + busy)) - 2


# ---------------------------------------------------------------- an hour


@dataclass(frozen=True, slots=True)
class Work:
    gpus: int
    minutes: int


def jain(values: list[float]) -> float:
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))


def contended_hour(weights: list[int], gpus: int, seed: int) -> dict[TenantId, int]:
    """GPU-minutes of each tenant, all of which always have work of the same kinds. Who is next and does not fit is
    waited for: what is handed past it is another part's business."""
    draws = random.Random(seed)
    fleet = Amounts(gpu_milli=gpus * 1_000)
    names = [TenantId(f"t{number}") for number in range(len(weights))]
    usages = dict.fromkeys(names, Usage())
    waiting = {name: _draw(draws) for name in names}
    running: list[tuple[int, TenantId, Amounts]] = []
    used: Counter[TenantId] = Counter()
    for minute in range(60):
        at_ms = START_MS + minute * MINUTE_MS
        now = moment(at_ms, HALF_LIFE_MS)
        for _, name, amounts in [one for one in running if one[0] <= minute]:
            usages[name] = changed(usages[name], now, lost=amounts)
        running = [one for one in running if one[0] > minute]
        contenders = [
            Contender(name, usages[name], weight) for name, weight in zip(names, weights, strict=True)
        ]
        turns = Turns(contenders, fleet, POLICY, at_ms, misses_max=1)
        free = gpus - sum(amounts.gpu_milli for _, _, amounts in running) // 1_000
        while (whose := turns.next()) is not None and waiting[whose].gpus <= free:
            name, work = whose, waiting[whose]
            amounts = Amounts(gpu_milli=work.gpus * 1_000)
            turns.gave(name, amounts)
            usages[name] = changed(usages[name], now, gained=amounts)
            running.append((minute + work.minutes, name, amounts))
            free -= work.gpus
            waiting[name] = _draw(draws)
        for _, name, amounts in running:
            used[name] += amounts.gpu_milli // 1_000
    return {name: used[name] for name in names}


def _draw(draws: random.Random) -> Work:
    return Work(gpus=draws.choice((1, 1, 1, 2, 2, 4)), minutes=draws.randint(1, 20))


@given(count=st.integers(2, 8), gpus=st.integers(40, 120), seed=st.integers(0, 2**32))
def test_hour_of_equal_weights_and_demand_is_shared_fairly(count: int, gpus: int, seed: int) -> None:
    used = contended_hour([100] * count, gpus, seed)
    assert sum(used.values()) > 0.9 * gpus * 60
    assert jain([float(one) for one in used.values()]) >= 0.95


@given(weights=st.lists(st.sampled_from((100, 200, 300)), min_size=2, max_size=5), seed=st.integers(0, 2**32))
def test_hour_of_unequal_weights_is_shared_by_weight(weights: list[int], seed: int) -> None:
    used = contended_hour(weights, 120, seed)
    assert jain([one / weight for one, weight in zip(used.values(), weights, strict=True)]) >= 0.95


@pytest.mark.parametrize("gpus", [20, 100])
def test_memory_evens_out_days_after_one_had_everything(gpus: int) -> None:
    """Both hold what the turns give them, in steps of an hour; who had nothing until now is ahead until it had as much,
    and from then on they take turns."""
    fleet = Amounts(gpu_milli=gpus * 1_000)
    rich = changed(Usage(), moment(START_MS - 20 * HALF_LIFE_MS, HALF_LIFE_MS), gained=fleet)
    usages = {
        TenantId("a"): changed(rich, moment(START_MS, HALF_LIFE_MS), lost=fleet),
        TenantId("b"): Usage(),
    }
    shares: list[float] = []
    for hour in range(5 * 24):
        at_ms = START_MS + hour * HOUR_MS
        now = moment(at_ms, HALF_LIFE_MS)
        nothing_held = {name: changed(usage, now, lost=usage.held) for name, usage in usages.items()}
        turns = Turns(
            [Contender(name, usage) for name, usage in nothing_held.items()], fleet, POLICY, at_ms, 1
        )
        served: Counter[TenantId] = Counter()
        for _ in range(gpus):
            name = turns.next()
            assert name is not None
            turns.gave(name, UNIT)
            served[name] += 1
        usages = {
            name: changed(usage, now, gained=replace(UNIT, gpu_milli=1_000 * served[name]))
            for name, usage in nothing_held.items()
        }
        shares.append(served[TenantId("b")] / gpus)
    assert 0.7 <= shares[0] <= 0.8
    assert sum(shares[-24:]) / 24 == pytest.approx(0.5, abs=0.05)
