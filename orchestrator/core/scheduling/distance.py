"""Why a request with a bound on round trips waits although enough is free: what is near enough, and what would do."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from orchestrator.core.gangs.candidates import US_PER_MS
from orchestrator.core.gangs.widening import widened
from orchestrator.core.scheduling.shortage import MAX_RTT_KEY, Change

if TYPE_CHECKING:
    from orchestrator.core.gangs.choosing import NoGang
    from orchestrator.core.jobs import Requirements
    from orchestrator.core.scheduling.draft import Draft

WIDENED_MAX = 2
"""Requests for which one plan looks for a bound that would do: the first that it passes over. Each look is up to 40 ms
among hundreds of machines, a few among dozens; the others are told how much is near enough."""


def too_far(draft: Draft, wanted: Requirements) -> NoGang | None:
    """How much was found within the bound, and which bound would do; None where that is not what is missing, or not
    known before more was measured.
    """
    far = draft.too_far.get(wanted)
    if far is None or wanted in draft.measuring or not wanted.max_rtt_ms:
        return None
    found = far.none
    if draft.widened < WIDENED_MAX:
        draft.widened += 1
        found = widened(found, far.candidates, far.wish, far.rtt)
    return replace(found, wanted=wanted.device_count, devices=found.devices * far.lot)


def distance_words(draft: Draft, wanted: Requirements, far: NoGang | None) -> str:
    """What distances have to do with it; empty where nothing."""
    if wanted in draft.measuring:
        return f"the round trips between {draft.measuring[wanted]} machines are being measured"
    return "" if far is None else far.says


def nearness_change(far: NoGang) -> Change:
    """What the tenant could write instead of his bound."""
    within = replace(far, would_do_us=None).says
    if far.would_do_us is None:
        return Change(MAX_RTT_KEY, f"{within}; no bound that would do is known")
    sure = "" if far.would_do_measured else ", by what is predicted of the pairs that nobody measured"
    return Change(MAX_RTT_KEY, f"{within}; {MAX_RTT_KEY}={far.would_do_us // US_PER_MS} would do{sure}")
