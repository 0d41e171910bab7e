"""Terms: what an owner may ask for his machine."""

from __future__ import annotations

import re

from orchestrator.core.errors import invalid
from orchestrator.core.supply.catalogue import MODELS, nearest
from orchestrator.core.supply.terms import REGION, WEEK_MINUTES, Terms, Tier, WeekWindow

NOTICE_MS_MIN = 1_000
NOTICE_MS_MAX = 3_600_000
"""A machine that its owner cannot have back within the hour is not his."""

COMMITTED_NOTICE_MS_MIN = 300_000
"""Committed means that a job has the time to write a large checkpoint: five minutes at least."""

LEASE_MS_MIN = 60_000
"""Forming a cluster takes up to minutes; a shorter lease would be all formation."""

ASK_MICROCREDITS_MAX = 1_000_000_000
"""A thousand credits an hour for one GPU: no market asks more, and sums stay far within 64 bits."""

WINDOWS_MAX = 64
REGIONS_MAX = 16
WEBHOOK_CHARACTERS_MAX = 500

_WEBHOOK = re.compile(r"https?://[!-~]+")


def check_terms(terms: Terms) -> None:
    """Refuse terms that nobody can mean; the field at fault is named."""
    seen: set[str] = set()
    for ask in terms.asks:
        if ask.model not in MODELS:
            hint = nearest(ask.model[:80], list(MODELS))
            raise invalid("terms.asks.model", f"unknown model {ask.model[:80]!r}: did you mean {hint!r}?")
        if ask.model in seen:
            raise invalid("terms.asks.model", f"{ask.model} has two prices; give one")
        seen.add(ask.model)
        if not 0 <= ask.microcredits_per_gpu_hour <= ASK_MICROCREDITS_MAX:
            limit = ASK_MICROCREDITS_MAX // 1_000_000
            raise invalid("terms.asks", f"the price of {ask.model} must be 0 to {limit} credits per GPU-hour")
    if len(terms.regions) > REGIONS_MAX or not all(REGION.fullmatch(region) for region in terms.regions):
        raise invalid(
            "terms.regions", f"at most {REGIONS_MAX} regions of lower-case letters, digits and dashes"
        )
    if terms.lease_max_ms is not None and terms.lease_max_ms < LEASE_MS_MIN:
        raise invalid("terms.lease_max_ms", f"a lease of less than {LEASE_MS_MIN} ms would be all formation")
    if terms.lease_max_ms is not None and terms.lease_max_ms < 2 * terms.notice_ms:
        raise invalid("terms.lease_max_ms", "a lease is at least twice its notice, or it is all goodbye")
    if len(terms.schedule) > WINDOWS_MAX or not all(_is_window(window) for window in terms.schedule):
        raise invalid(
            "terms.schedule", f"at most {WINDOWS_MAX} windows of minutes 0 to {WEEK_MINUTES - 1} of the week"
        )
    _check_notice(terms)
    if terms.webhook_url and (
        len(terms.webhook_url) > WEBHOOK_CHARACTERS_MAX or not _WEBHOOK.fullmatch(terms.webhook_url)
    ):
        raise invalid("terms.webhook_url", "an http or https URL of at most 500 characters is expected")


def _check_notice(terms: Terms) -> None:
    least_ms = COMMITTED_NOTICE_MS_MIN if terms.tier is Tier.COMMITTED else NOTICE_MS_MIN
    if not least_ms <= terms.notice_ms <= NOTICE_MS_MAX:
        raise invalid(
            "terms.notice_ms",
            f"the notice of an {terms.tier} worker is {least_ms} to {NOTICE_MS_MAX} ms"
            if terms.tier is Tier.INTERRUPTIBLE
            else f"a committed worker gives a notice of {least_ms} to {NOTICE_MS_MAX} ms",
        )


def _is_window(window: WeekWindow) -> bool:
    return 0 <= window.start_minute < WEEK_MINUTES and 0 <= window.end_minute < WEEK_MINUTES
