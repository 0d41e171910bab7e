"""What a quote says of machines that can be had, that are held, and that are not there at all."""

from __future__ import annotations

from datetime import date

import pytest

from orchestrator.core import messages as m
from orchestrator.core.errors import RefusedError
from orchestrator.core.jobs import Requirements
from orchestrator.core.market.pricing import (
    HOUR_MS,
    CloudMedian,
    Currency,
    PricePolicy,
    Quote,
    Source,
    auto_asks,
)
from orchestrator.core.policies import Policies
from orchestrator.core.queries.quote import NO_PRICE_FILE, SEVERAL_MODELS, quote
from orchestrator.core.supply.fleet import HardwareClass
from orchestrator.core.supply.terms import Ask, Terms
from tests.core.worlds import World

MEDIAN = CloudMedian(1_000_000, tuple(Source(f"cloud-{name}", date(2026, 11, 3)) for name in "abc"))


def compared() -> World:
    """A network that knows what clouds ask for an RTX 4090."""
    medians = {"RTX4090": MEDIAN}
    prices = PricePolicy()
    return World(Policies(market=auto_asks(medians, prices), medians=medians, prices=prices))


def quoted(world: World, wanted: Requirements, currency: Currency = Currency.NATIVE) -> Quote:
    before = world.state.rows()
    made = quote(world.state, wanted, HOUR_MS, currency, world.at_ms)
    assert world.state.rows() == before
    assert world.state.waiting == {}
    return made


def ask(world: World, microcredits: int) -> None:
    """A worker of two RTX 4090 whose owner asks this."""
    worker_id = world.worker(count=2)
    world.do(m.SetTerms(worker_id, Terms(asks=(Ask("RTX4090", microcredits),))))


def test_quote_free_machines_is_now_and_at_their_asks() -> None:
    world = compared()
    ask(world, 500_000)
    made = quoted(world, Requirements(gpus=2, gpu_model="RTX4090"))
    assert (made.available_now, made.when_ms) == (True, world.at_ms)
    assert (made.model, made.gpus, made.microcredits_per_gpu_hour) == ("RTX4090", 2, 500_000)
    assert made.diameter_us == 0
    assert "free now, on one machine" in made.reasons[0]
    assert (made.cloud_median, made.sources) == (1_000_000, MEDIAN.sources)
    # 0.25 % for the reservation.
    assert made.total_microcredits == 1_002_500
    assert made.below_median_bp == 4_987


def test_quote_is_what_the_plan_then_places() -> None:
    world = compared()
    for microcredits in (700_000, 300_000, 500_001):
        ask(world, microcredits)
    world.head_host(3)
    wanted = Requirements(gpus=4, gpu_model="RTX4090")
    made = quoted(world, wanted)
    assert made.microcredits_per_gpu_hour == 400_001
    assert made.diameter_us is None
    assert "on 2 machines" in made.reasons[0]
    world.submit(wanted)
    (placement,) = world.plan().placements
    assert len(placement.shares) == 2


def test_quote_of_several_machines_tells_the_longest_round_trip_known() -> None:
    world = compared()
    one, other = world.worker(), world.worker()
    world.head_host()
    wanted = Requirements(gpus=2, gpu_model="RTX4090")
    assert quoted(world, wanted).diameter_us is None
    for worker_id, peer_id in ((one, other), (other, one)):
        world.state.latency.observe(worker_id, peer_id, 12_345, world.at_ms)
    assert quoted(world, wanted).diameter_us == 12_345


def test_quote_auto_asks_stay_a_tenth_below_the_median_in_the_dearest_currency() -> None:
    world = compared()
    world.worker()
    for currency in Currency:
        made = quoted(world, Requirements(gpu_model="RTX4090"), currency)
        assert made.below_median_bp is not None
        assert made.below_median_bp >= 1_000


def test_quote_held_machines_says_why_not_now_and_their_price() -> None:
    world = compared()
    ask(world, 500_000)
    world.running(Requirements(gpus=2))
    made = quoted(world, Requirements(gpus=2, gpu_model="RTX4090"))
    assert (made.available_now, made.when_ms, made.diameter_us) == (False, None, None)
    assert made.microcredits_per_gpu_hour == 500_000
    assert "0 of 2 fitting devices free, 2 needed" in made.reasons[0]
    assert any("state no orch.time_limit" in reason for reason in made.reasons)
    assert any("the cheapest devices that serve" in reason for reason in made.reasons)


def test_quote_held_machines_says_when_by_the_time_limit_of_what_runs() -> None:
    world = compared()
    ask(world, 500_000)
    world.submit(Requirements(gpus=2), time_limit_ms=3_600_000)
    world.plan()
    made = quoted(world, Requirements(gpus=2, gpu_model="RTX4090"))
    assert not made.available_now
    assert made.when_ms is not None
    assert made.when_ms >= world.at_ms + 3_600_000
    assert any(reason.startswith("machines for it are free about") for reason in made.reasons)


def test_quote_more_than_there_are_counts_the_missing_at_the_dearest() -> None:
    world = compared()
    ask(world, 500_000)
    made = quoted(world, Requirements(gpus=8, gpu_model="RTX4090"))
    assert (made.available_now, made.gpus, made.microcredits_per_gpu_hour) == (False, 8, 500_000)


def test_quote_says_what_to_do_without() -> None:
    world = compared()
    ask(world, 500_000)
    made = quoted(world, Requirements(gpu_model="RTX4090", max_price=400_000))
    assert "orch.max_price=0.5 would do" in made.reasons


def test_quote_empty_network_is_the_markets_price_of_a_model() -> None:
    world = compared()
    made = quoted(world, Requirements(gpus=3, gpu_model="RTX4090"))
    market = world.state.policies.market["RTX4090"].microcredits_per_gpu_hour
    assert (made.available_now, made.microcredits_per_gpu_hour, made.gpus) == (False, market, 3)
    assert any("the price is the market's of RTX4090" in reason for reason in made.reasons)


def test_quote_empty_network_without_a_model_is_refused_with_what_to_do() -> None:
    with pytest.raises(RefusedError, match="name a model") as refusal:
        quoted(World(), Requirements(gpus=3))
    assert refusal.value.field == "orch.gpu_model"


def test_quote_without_price_file_names_the_option() -> None:
    world = World()
    world.worker()
    made = quoted(world, Requirements(gpu_model="RTX4090"))
    assert (made.cloud_median, made.below_median_bp, made.sources) == (None, None, ())
    assert "--price-file" in NO_PRICE_FILE
    assert made.reasons[-1] == NO_PRICE_FILE


def test_quote_model_without_median_says_so() -> None:
    world = compared()
    world.worker("H100", hardware_class=HardwareClass.DATACENTER)
    made = quoted(world, Requirements(gpu_model="H100"))
    assert made.cloud_median is None
    assert "fewer than 3 clouds publish a price of H100" in made.reasons[-1]


def test_quote_of_several_models_compares_with_no_median() -> None:
    world = compared()
    for model in ("RTX4090", "RTX3090"):
        world.worker(model)
    world.head_host()
    made = quoted(world, Requirements(gpus=2))
    assert (made.available_now, made.model) == (True, "RTX3090, RTX4090")
    assert made.reasons[-1] == SEVERAL_MODELS


def test_quote_of_cpu_work_is_for_no_gpu() -> None:
    world = World()
    world.worker("CPU")
    made = quoted(world, Requirements(gpus=0))
    assert (made.available_now, made.gpus, made.model) == (True, 0, "CPU")


@pytest.mark.parametrize("duration_ms", [0, -1, 10**15])
def test_quote_of_no_time_or_of_years_is_refused(duration_ms: int) -> None:
    world = compared()
    world.worker()
    with pytest.raises(RefusedError) as refusal:
        quote(world.state, Requirements(), duration_ms, Currency.NATIVE, world.at_ms)
    assert refusal.value.field == "hours"
