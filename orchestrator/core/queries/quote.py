"""``quote``: what machines would cost and whether they can be had now, by a plan that is not applied.

The price is that of the machines which the plan would take. Where they cannot be had now it is that of the cheapest
devices that serve the request, held ones too; where there are none of these, the market's price of the model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.core.errors import RefusalCode, RefusedError
from orchestrator.core.ids import JobId, TenantId
from orchestrator.core.market import pricing
from orchestrator.core.queries.estimating import when
from orchestrator.core.queries.trial import tried
from orchestrator.core.scheduling.draft import Draft
from orchestrator.core.scheduling.filters import describe, fitting
from orchestrator.core.scheduling.offers import Column
from orchestrator.core.scheduling.placement import Deferral, JobNeed, Placement
from orchestrator.core.scheduling.reserving import opened
from orchestrator.core.scheduling.shortage import changes, shortage
from orchestrator.core.supply.catalogue import CPU_MODEL

if TYPE_CHECKING:
    from orchestrator.core.jobs import Requirements
    from orchestrator.core.market.pricing import CloudMedian, Currency, Quote
    from orchestrator.core.scheduling.draft import Draft
    from orchestrator.core.scheduling.placement import Share
    from orchestrator.core.state import State

NO_PRICE_FILE = (
    "no cloud is compared with: this network's operator gave no prices of clouds"
    " (`orch serve --price-file FILE`)"
)

SEVERAL_MODELS = "the GPUs are of several models, so no median of clouds is compared with; name one model"


@dataclass(frozen=True, slots=True)
class _Priced:
    """A price for each device, and its model."""

    microcredits: tuple[int, ...]
    models: tuple[str, ...]


def quote(state: State, wanted: Requirements, duration_ms: int, currency: Currency, at_ms: int) -> Quote:
    """For a tenant that has nothing yet. Raises RefusedError where there is nothing to set a price by."""
    draft = opened(state, at_ms)
    # Nobody's: no warm cluster and no quota counts.
    need = JobNeed(JobId(""), TenantId(""), wanted)
    outcome = tried(state, need, at_ms)
    diameter_us: int | None = None
    when_ms: int | None = at_ms
    match outcome:
        case Placement():
            priced = _of_shares(draft, outcome.shares)
            machines = f"on {len(outcome.shares)} machines" if len(outcome.shares) > 1 else "on one machine"
            free = f"{describe(wanted)}: free now, {machines}"
            reasons: tuple[str, ...] = (free, *_unmeasured(wanted, outcome.shares))
            diameter_us = outcome.chosen.diameter_us
        case Deferral():
            priced, rests_on = _of_fitting(state, draft, wanted)
            then = when(state, need, at_ms)
            when_ms = then.start_ms
            reasons = (outcome.reason, *_instead(state, draft, wanted), then.words, rests_on)
        case _:
            raise AssertionError(f"a plan of one need of nobody's came to {outcome}")
    models = sorted(set(priced.models))
    offer = pricing.Offer(
        microcredits_per_gpu_hour=priced.microcredits,
        available_now=isinstance(outcome, Placement),
        when_ms=when_ms,
        diameter_us=diameter_us,
        reasons=reasons,
    )
    median, without = _median(state, models)
    made = pricing.quote(
        ", ".join(models), offer, duration_ms, median, currency, state.policies.prices, without
    )
    return made if wanted.gpus else replace(made, gpus=0)


def _median(state: State, models: list[str]) -> tuple[CloudMedian | None, str]:
    """What to compare with; and why there is nothing, where that is not for lack of clouds."""
    if not state.policies.medians:
        return None, NO_PRICE_FILE
    if len(models) > 1:
        return None, SEVERAL_MODELS
    return state.policies.medians.get(models[0]), ""


def _of_shares(draft: Draft, shares: tuple[Share, ...]) -> _Priced:
    prices: list[int] = []
    models: list[str] = []
    for share in shares:
        row = draft.row_of(share.worker_id, share.device_ids)
        if row is not None:
            prices += [int(draft.prices[row])] * len(share.device_ids)
            models += [draft.view.offers.model_of(row)] * len(share.device_ids)
    return _Priced(tuple(prices), tuple(models))


def _of_fitting(state: State, draft: Draft, wanted: Requirements) -> tuple[_Priced, str]:
    """The cheapest devices that serve, each missing one at the dearest of these; and what the price rests on."""
    offers, count = draft.view.offers, wanted.device_count
    rows = np.flatnonzero(fitting(draft.question(wanted, ())))
    rows = rows[np.lexsort((rows, draft.prices[rows]))]
    each = np.repeat(rows, offers[Column.SERVING][rows])[:count].tolist()
    if each:
        each += [each[-1]] * (count - len(each))
        prices = tuple(int(draft.prices[row]) for row in each)
        models = tuple(offers.model_of(row) for row in each)
        return _Priced(prices, models), "the price is that of the cheapest devices that serve, held ones too"
    model = wanted.gpu_model or ("" if wanted.gpus else CPU_MODEL)
    if not model:
        message = f"no machine here serves {describe(wanted)}, so there is no price; name a model to see the market's"
        raise RefusedError(RefusalCode.NOT_FOUND, message, "orch.gpu_model")
    market = _Priced((state.market_price(model),) * count, (model,) * count)
    return market, f"no machine here serves this: the price is the market's of {model}"


def _instead(state: State, draft: Draft, wanted: Requirements) -> tuple[str, ...]:
    """What the tenant could ask for instead."""
    question = draft.question(wanted, ())
    found = shortage(question, draft.free, overlay_offered=state.overlay_offered)
    instead = changes(question, draft.free, found, overlay_offered=state.overlay_offered)
    return tuple(change.says for change in instead)


def _unmeasured(wanted: Requirements, shares: tuple[Share, ...]) -> tuple[str, ...]:
    """What is only known once the machines are together."""
    if not wanted.min_bandwidth_mbps or len(shares) == 1:
        return ()
    slow = f"who delivers less than {wanted.min_bandwidth_mbps} Mbit/s is replaced"
    return (f"bandwidth is measured before the start: {slow}, and nothing is charged until then",)
