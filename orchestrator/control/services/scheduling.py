"""How explanations and quotes look on the wire."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.api.v1 import jobs_pb2, scheduling_pb2
from orchestrator.control.services.views import STATUS_NUMBERS
from orchestrator.control.wire import timestamp
from orchestrator.core.errors import NAME_CHARACTERS_MAX, invalid
from orchestrator.core.market.pricing import Currency
from orchestrator.core.supply.catalogue import nearest

if TYPE_CHECKING:
    from orchestrator.core.jobs import Job, RunnerUp
    from orchestrator.core.market.pricing import Quote
    from orchestrator.core.queries.explain import Explanation, Placed, Wait


def currency_of(text: str) -> Currency:
    """What the tenant pays in; nothing said is the network's own."""
    try:
        return Currency(text or Currency.NATIVE)
    except ValueError:
        shown = text[:NAME_CHARACTERS_MAX]
        hint = nearest(shown, [one.value for one in Currency])
        raise invalid("currency", f"unknown currency {shown!r}: did you mean {hint!r}?") from None


def explained(job: Job, found: Explanation) -> jobs_pb2.ExplainJobResponse:
    """A job's explanation."""
    return jobs_pb2.ExplainJobResponse(
        job_id=job.job_id,
        submission_id=job.submission_id,
        status=STATUS_NUMBERS[job.status],
        message=found.message,
        wait=None if found.wait is None else _wait(found.wait),
        placement=None if found.placed is None else _placement(found.placed),
    )


def _wait(wait: Wait) -> scheduling_pb2.JobWait:
    numbers = wait.shortage
    return scheduling_pb2.JobWait(
        reason=wait.reason,
        removed=[
            scheduling_pb2.FilterRemoval(
                name=one.name, phrase=one.phrase, workers=one.workers, alone=one.alone
            )
            for one in numbers.removed
        ],
        changes=[scheduling_pb2.RequestChange(key=one.key, says=one.says) for one in wait.changes],
        fitting=numbers.fitting,
        free=numbers.free,
        needed=numbers.needed,
        largest=numbers.largest,
        jobs_before=wait.jobs_before,
        tenants_before=wait.tenants_before,
        position=wait.position,
        overtaken=wait.overtaken,
        overtaken_max=wait.overtaken_max,
        entitled=wait.entitled,
        not_before=timestamp(wait.not_before_ms),
        estimated_start=timestamp(wait.estimated_start_ms),
        estimate=wait.estimate,
    )


def _placement(placed: Placed) -> scheduling_pb2.JobPlacement:
    return scheduling_pb2.JobPlacement(
        attempt_id=placed.attempt_id,
        cluster_id=placed.cluster_id,
        phase=placed.phase.value,
        explanation=placed.why,
        diameter_us=placed.diameter_us,
        devices=placed.devices,
        microcredits_per_hour=placed.microcredits_per_hour,
        predicted_diameter_us=placed.chosen.diameter_us,
        pairs=placed.chosen.pairs,
        pairs_measured=placed.chosen.pairs_measured,
        runner_up=None if placed.chosen.runner_up is None else _runner_up(placed.chosen.runner_up),
    )


def _runner_up(one: RunnerUp) -> scheduling_pb2.RunnerUp:
    return scheduling_pb2.RunnerUp(
        machines=one.machines,
        microcredits_per_hour=one.microcredits_per_hour,
        diameter_us=one.diameter_us,
        lost_by=one.lost_by,
    )


def quote_message(quote: Quote) -> scheduling_pb2.Quote:
    """A quote."""
    return scheduling_pb2.Quote(
        model=quote.model,
        gpus=quote.gpus,
        duration_ms=quote.duration_ms,
        available_now=quote.available_now,
        available_at=timestamp(quote.when_ms),
        microcredits_per_gpu_hour=quote.microcredits_per_gpu_hour,
        price_microcredits=quote.charge.price,
        payment_fee_microcredits=quote.charge.payment_fee,
        reservation_fee_microcredits=quote.charge.tenant_reservation_fee,
        total_microcredits=quote.total_microcredits,
        currency=quote.currency.value,
        cloud_median_microcredits=quote.cloud_median,
        below_median_bp=quote.below_median_bp,
        sources=[
            scheduling_pb2.PriceSource(provider=one.provider, date=one.day.isoformat())
            for one in quote.sources
        ],
        diameter_us=quote.diameter_us,
        reasons=quote.reasons,
    )
