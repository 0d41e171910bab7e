"""`orch quote`: what machines would cost, whether they can be had now, and what clouds ask for the like."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.api.v1 import jobs_pb2, scheduling_pb2
from orchestrator.cli.amounts import MS_PER_HOUR, credits_of, decimal, whole
from orchestrator.cli.client import connect
from orchestrator.cli.conditions import Gpus, Model, conditions
from orchestrator.cli.output import Output, OutputFormat, print_fields, print_json, print_lines
from orchestrator.cli.wording import instant

US_PER_MS = 1000

Text = str | None


def quote(
    gpus: Gpus = None,
    model: Model = None,
    gpus_per_worker: Annotated[Text, typer.Option(help="On each machine.")] = None,
    hardware_class: Annotated[Text, typer.Option(help="consumer, datacenter, apple or cpu.")] = None,
    min_memory_gb: Annotated[Text, typer.Option(help="Of each GPU.")] = None,
    min_compute_capability: Annotated[Text, typer.Option(help="MAJOR.MINOR.")] = None,
    region: Annotated[Text, typer.Option(help="Where all of it has to stand.")] = None,
    max_price: Annotated[Text, typer.Option(help="Credits per GPU-hour.")] = None,
    min_reliability: Annotated[Text, typer.Option(help="Percent.")] = None,
    evidence: Annotated[Text, typer.Option(help="T0, T1 or T2.")] = None,
    tier: Annotated[Text, typer.Option(help="interruptible or committed.")] = None,
    max_rtt_ms: Annotated[Text, typer.Option(help="Between any two machines.")] = None,
    min_bandwidth_mbps: Annotated[Text, typer.Option(help="Between any two machines, in Mbit/s.")] = None,
    pattern: Annotated[Text, typer.Option(help="all-reduce, pipeline or independent.")] = None,
    isolation: Annotated[Text, typer.Option(help="none, box or container. [box]")] = None,
    runtime: Annotated[Text, typer.Option(help="As `orch runtime list` names it.")] = None,
    image: Annotated[Text, typer.Option(help="NAME@sha256:…, in place of a runtime.")] = None,
    hours: Annotated[str, typer.Option(help="For how long.")] = "1",
    currency: Annotated[str, typer.Option(help="native or stablecoin.")] = "native",
    output: Output = OutputFormat.TABLE,
) -> None:
    """Say what machines would cost and whether they can be had now; nothing is held, and asks move.

    Each option means what the key of a job's metadata means: --max-price is orch.max_price.
    """
    asked = {
        "orch.gpus": gpus,
        "orch.gpu_model": model,
        "orch.gpus_per_worker": gpus_per_worker,
        "orch.hardware_class": hardware_class,
        "orch.min_gpu_memory_gb": min_memory_gb,
        "orch.min_compute_capability": min_compute_capability,
        "orch.region": region,
        "orch.max_price": max_price,
        "orch.min_reliability": min_reliability,
        "orch.evidence": evidence,
        "orch.tier": tier,
        "orch.max_rtt_ms": max_rtt_ms,
        "orch.min_bandwidth_mbps": min_bandwidth_mbps,
        "orch.pattern": pattern,
        "orch.isolation": isolation,
        "orch.runtime": runtime,
        "orch.image": image,
    }
    request = jobs_pb2.GetQuoteRequest(
        metadata=conditions(asked),
        duration_ms=whole("--hours", hours, MS_PER_HOUR, "hours"),
        currency=currency,
    )
    with connect() as client:
        answer = client.call(client.jobs.GetQuote, request)
    if output is OutputFormat.JSON:
        print_json(answer)
    else:
        print_quote(answer.quote)


def print_quote(found: scheduling_pb2.Quote) -> None:
    """A table, and a line for each reason."""
    fees = found.payment_fee_microcredits + found.reservation_fee_microcredits
    hours = f"{decimal(found.duration_ms, MS_PER_HOUR)} h"
    print_fields(
        {
            "for": f"{found.gpus} × {found.model}, {hours}" if found.gpus else f"CPU work, {hours}",
            "available": "now" if found.available_now else instant(found.available_at) or "not now",
            "price per hour": f"{credits_of(found.microcredits_per_gpu_hour)} for one device, in the mean",
            "total": f"{credits_of(found.total_microcredits)} in {found.currency}, of which fees {credits_of(fees)}",
            "clouds' median": _median(found),
            "round trip": _diameter(found),
        }
    )
    print_lines(["", *found.reasons])


def _median(found: scheduling_pb2.Quote) -> str:
    """With the providers and the days of their prices."""
    if not found.HasField("cloud_median_microcredits"):
        return ""
    sources = ", ".join(f"{one.provider} {one.date}" for one in found.sources)
    return f"{credits_of(found.cloud_median_microcredits)} per GPU-hour ({sources})"


def _diameter(found: scheduling_pb2.Quote) -> str:
    if not found.HasField("diameter_us"):
        return "not known"
    if found.diameter_us == 0:
        return "none: one machine"
    return f"up to {found.diameter_us / US_PER_MS:.1f} ms expected"
