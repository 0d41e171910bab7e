"""What an hour costs, what clouds ask for it, and what a quote says."""

from __future__ import annotations

from datetime import date, timedelta
from fractions import Fraction
from statistics import median as exact_median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.errors import RefusedError
from orchestrator.core.market.pricing import (
    BASIS_POINTS,
    HOUR_MS,
    QUOTE_MS_MAX,
    Basis,
    CloudMedian,
    CloudPrice,
    Currency,
    Offer,
    PricePolicy,
    Source,
    auto_ask,
    auto_asks,
    below,
    charge,
    cloud_medians,
    credits_text,
    median_microcredits,
    price_of_use,
    quote,
)
from orchestrator.core.market.worth import SMALLEST_WORTH_MILLI, UNIT, WORTH_MILLI, worth_milli
from orchestrator.core.policies import Policies
from orchestrator.core.supply.catalogue import MODELS

TODAY = date(2026, 11, 20)
POLICY = PricePolicy()
USD = 1_000_000


def price(model: str, provider: str, microcredits: int, days_ago: int = 1, region: str = "r") -> CloudPrice:
    return CloudPrice(model, provider, region, TODAY - timedelta(days=days_ago), microcredits)


def median(microcredits: int, providers: int = 3) -> CloudMedian:
    sources = tuple(Source(f"cloud-{number}", TODAY) for number in range(providers))
    return CloudMedian(microcredits, sources)


# ---------------------------------------------------------------- worth


def test_worth_is_known_of_every_model_of_the_catalogue_and_of_no_other() -> None:
    assert WORTH_MILLI.keys() == MODELS.keys()
    assert all(worth > 0 for worth in WORTH_MILLI.values())
    assert worth_milli("RTX4090") == UNIT
    assert worth_milli("RTX9999") == SMALLEST_WORTH_MILLI == min(WORTH_MILLI.values())


# ---------------------------------------------------------------- medians


@pytest.mark.parametrize(
    ("prices", "expected"),
    [([5], 5), ([3, 1, 2], 2), ([1, 2], 1), ([4, 1, 3, 2], 2), ([10, 10, 11, 12], 10), ([0, 0, 7], 0)],
)
def test_median_is_the_middle_and_of_an_even_number_rounds_down(prices: list[int], expected: int) -> None:
    assert median_microcredits(prices) == expected


def test_median_of_nothing_is_refused() -> None:
    with pytest.raises(RefusedError, match="no median of no prices"):
        median_microcredits([])


@given(prices=st.lists(st.integers(0, 10**12), min_size=1, max_size=20))
def test_median_of_any_prices_is_the_exact_one_rounded_down(prices: list[int]) -> None:
    assert median_microcredits(prices) == exact_median([Fraction(one) for one in prices]) // 1


def test_cloud_medians_take_each_provider_once_at_its_cheapest_region_of_the_latest_date() -> None:
    prices = [
        price("H100", "a", 1 * USD, days_ago=40),
        price("H100", "a", 5 * USD, days_ago=2),
        price("H100", "a", 4 * USD, days_ago=3, region="other"),
        price("H100", "b", 3 * USD),
        price("H100", "c", 9 * USD),
    ]
    found = cloud_medians(prices, TODAY)
    assert found["H100"].microcredits_per_gpu_hour == 4 * USD
    assert found["H100"].sources == (
        Source("a", TODAY - timedelta(days=3)),
        Source("b", TODAY - timedelta(days=1)),
        Source("c", TODAY - timedelta(days=1)),
    )


def test_cloud_medians_of_two_providers_or_of_days_to_come_are_none() -> None:
    prices = [price("H100", "a", 1), price("H100", "b", 2), price("H100", "c", 3, days_ago=-1)]
    assert cloud_medians(prices, TODAY) == {}
    assert "H100" in cloud_medians(prices, TODAY + timedelta(days=1))


@given(turned=st.permutations([price("H100", name, 7 * number) for number, name in enumerate("abcab", 1)]))
def test_cloud_medians_in_any_order_of_the_prices_are_the_same(turned: list[CloudPrice]) -> None:
    """Two prices of one provider, region and day: the cheaper counts, whichever comes first."""
    assert cloud_medians(turned, TODAY)["H100"].microcredits_per_gpu_hour == 14


# ---------------------------------------------------------------- fees


def test_charge_in_native_and_stablecoin_is_by_policy() -> None:
    native = charge(10 * USD, Currency.NATIVE, POLICY)
    assert (native.payment_fee, native.tenant_pays, native.supplier_reservation_fee) == (
        0,
        10_025_000,
        25_000,
    )
    stable = charge(10 * USD, Currency.STABLECOIN, POLICY)
    assert (stable.payment_fee, stable.tenant_pays, stable.supplier_reservation_fee) == (
        200_000,
        10_225_000,
        25_000,
    )


def test_charge_of_a_fraction_rounds_down_for_who_pays() -> None:
    one = charge(399, Currency.STABLECOIN, POLICY)
    assert (one.payment_fee, one.tenant_reservation_fee, one.supplier_reservation_fee) == (7, 0, 0)
    assert price_of_use(3, HOUR_MS - 1) == 2


def test_charge_of_less_than_nothing_is_refused() -> None:
    with pytest.raises(RefusedError, match="0 or more"):
        charge(-1, Currency.NATIVE, POLICY)


@given(amount=st.integers(0, 10**15), currency=st.sampled_from(Currency))
def test_charge_of_any_price_never_rounds_against_who_pays(amount: int, currency: Currency) -> None:
    got = charge(amount, currency, POLICY)
    on_top = POLICY.payment_fee_bp(currency) + POLICY.reservation_fee_bp
    exact = Fraction(amount) * (BASIS_POINTS + on_top) / BASIS_POINTS
    assert exact - 2 < got.tenant_pays <= exact
    assert got.supplier_reservation_fee <= Fraction(amount) * POLICY.reservation_fee_bp / BASIS_POINTS


# ---------------------------------------------------------------- auto


def test_auto_ask_with_a_median_lies_a_tenth_below_it_with_the_dearest_fees_included() -> None:
    ask = auto_ask("H100", {"H100": median(3 * USD)}, POLICY)
    assert ask.basis is Basis.MEDIAN
    assert ask.microcredits_per_gpu_hour == 3 * USD * 9_000 // 10_225
    assert charge(ask.microcredits_per_gpu_hour, Currency.STABLECOIN, POLICY).tenant_pays <= 2_700_000
    assert "median of 3 clouds is 3 credits" in ask.reasons[0]


def test_auto_ask_below_the_owners_cost_is_the_cost_and_says_so() -> None:
    ask = auto_ask("H100", {"H100": median(3 * USD)}, POLICY, cost_microcredits=2_800_000)
    assert (ask.microcredits_per_gpu_hour, ask.basis) == (2_800_000, Basis.COST)
    assert "costs its owner 2.8" in ask.reasons[-1]
    cheap = auto_ask("H100", {"H100": median(3 * USD)}, POLICY, cost_microcredits=1)
    assert cheap.basis is Basis.MEDIAN


def test_auto_ask_without_a_median_follows_models_of_its_class_by_worth() -> None:
    medians = {"RTX4090": median(700_000), "H100": median(30 * USD)}
    ask = auto_ask("RTX3090", medians, POLICY)
    assert ask.basis is Basis.OTHER_MODELS
    assert ask.microcredits_per_gpu_hour == below(700_000 * worth_milli("RTX3090") // UNIT, POLICY)
    assert "fewer than 3 clouds publish a price of RTX3090" in ask.reasons[0]
    only_centre = auto_ask("RTX3090", {"H100": median(4_500_000)}, POLICY)
    assert only_centre.microcredits_per_gpu_hour == below(600_000, POLICY)


def test_auto_ask_without_any_cloud_price_follows_the_operators_unit() -> None:
    ask = auto_ask("H100", {}, POLICY)
    assert ask.basis is Basis.POLICY
    assert ask.microcredits_per_gpu_hour == below(300_000 * worth_milli("H100") // UNIT, POLICY)
    assert "no cloud price is known" in ask.reasons[0]


def test_auto_asks_price_every_model() -> None:
    auto = auto_asks({}, POLICY)
    assert auto.keys() == MODELS.keys()
    assert all(one.microcredits_per_gpu_hour > 0 for one in auto.values())


def test_auto_ask_of_an_unknown_model_is_refused() -> None:
    with pytest.raises(RefusedError, match="unknown model 'RTX9999'"):
        auto_ask("RTX9999", {}, POLICY)


@given(
    reference=st.integers(1, 10**9),
    discount_bp=st.integers(1_000, 9_000),
    fee_bp=st.integers(0, 3_000),
    currency=st.sampled_from(Currency),
)
def test_auto_ask_any_policy_keeps_the_promise_in_any_currency(
    reference: int, discount_bp: int, fee_bp: int, currency: Currency
) -> None:
    policy = PricePolicy(discount_bp=discount_bp, stablecoin_fee_bp=fee_bp)
    ask = auto_ask("H100", {"H100": median(reference)}, policy).microcredits_per_gpu_hour
    paid = charge(ask, currency, policy).tenant_pays
    assert paid * BASIS_POINTS <= reference * (BASIS_POINTS - discount_bp)


# ---------------------------------------------------------------- quotes


def test_quote_of_unlike_machines_adds_their_prices_and_compares_what_is_paid() -> None:
    offer = Offer((2_000_000, 2_000_001), True, 5, diameter_us=4_000, reasons=("two machines are near",))
    got = quote("H100", offer, 2 * HOUR_MS, median(3 * USD), Currency.STABLECOIN, POLICY)
    assert got.microcredits_per_gpu_hour == 2_000_001
    assert got.charge.price == 8_000_002
    assert got.total_microcredits == 8_000_002 + 160_000 + 20_000
    assert got.below_median_bp == (12_000_000 - 8_180_002) * 10_000 // 12_000_000
    assert (got.gpus, got.cloud_median, got.diameter_us) == (2, 3 * USD, 4_000)
    assert len(got.sources) == 3
    assert got.reasons[0] == "two machines are near"
    assert (
        got.reasons[1]
        == "fees included it is 31.83 % below the median of 3 clouds, dated 2026-11-20 to 2026-11-20"
    )


def test_quote_above_the_median_says_so() -> None:
    got = quote("H100", Offer((4 * USD,), False, None), HOUR_MS, median(3 * USD), Currency.NATIVE, POLICY)
    assert got.below_median_bp == -3_367
    assert "33.67 % above the median" in got.reasons[-1]
    assert (got.available_now, got.when_ms) == (False, None)


def test_quote_less_below_than_promised_says_why() -> None:
    got = quote("H100", Offer((2_850_000,), True, 0), HOUR_MS, median(3 * USD), Currency.NATIVE, POLICY)
    assert got.below_median_bp == 476
    assert "less than is aimed at" in got.reasons[-1]


def test_quote_without_a_median_compares_with_nothing() -> None:
    got = quote("M4", Offer((5,), True, 0), HOUR_MS, None, Currency.NATIVE, POLICY)
    assert (got.cloud_median, got.below_median_bp, got.sources) == (None, None, ())
    assert "none is compared with" in got.reasons[-1]


@given(
    reference=st.integers(1_000, 10**9),
    gpus=st.integers(1, 64),
    duration_ms=st.integers(1, QUOTE_MS_MAX),
    currency=st.sampled_from(Currency),
)
def test_quote_at_auto_asks_is_a_tenth_below_for_any_length(
    reference: int, gpus: int, duration_ms: int, currency: Currency
) -> None:
    ask = auto_ask("H100", {"H100": median(reference)}, POLICY).microcredits_per_gpu_hour
    got = quote("H100", Offer((ask,) * gpus, True, 0), duration_ms, median(reference), currency, POLICY)
    assert got.below_median_bp is not None
    assert got.below_median_bp >= 1_000


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("rates", "duration_ms", "field"),
    [
        ((), HOUR_MS, "gpus"),
        ((1,), 0, "hours"),
        ((1,), QUOTE_MS_MAX + 1, "hours"),
        ((1, -1), HOUR_MS, "price"),
    ],
)
def test_quote_of_nothing_or_for_no_time_is_refused(
    rates: tuple[int, ...], duration_ms: int, field: str
) -> None:
    with pytest.raises(RefusedError) as caught:
        quote("H100", Offer(rates, True, 0), duration_ms, None, Currency.NATIVE, POLICY)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        (PricePolicy(discount_bp=999), "pricing.discount_bp"),
        (PricePolicy(discount_bp=10_001), "pricing.discount_bp"),
        (PricePolicy(native_fee_bp=-1), "pricing.native_fee_bp"),
        (PricePolicy(stablecoin_fee_bp=10_001), "pricing.stablecoin_fee_bp"),
        (PricePolicy(reservation_fee_bp=-1), "pricing.reservation_fee_bp"),
        (PricePolicy(unit_microcredits=0), "pricing.unit_microcredits"),
    ],
)
def test_policy_that_breaks_the_promise_is_refused(policy: PricePolicy, field: str) -> None:
    with pytest.raises(RefusedError) as caught:
        Policies(prices=policy)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("microcredits", "text"),
    [(0, "0"), (10_000_000, "10"), (1_500_000, "1.5"), (1, "0.000001"), (-2_500_000, "-2.5")],
)
def test_credits_are_written_exactly(microcredits: int, text: str) -> None:
    assert credits_text(microcredits) == text
