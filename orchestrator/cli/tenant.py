"""`orch tenant`: who may submit jobs, how much of the fleet is theirs, and what they may hold."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.adapters.clock import new_id
from orchestrator.api.v1 import operator_pb2
from orchestrator.cli.amounts import MS_PER_HOUR, credits_of, decimal, percent_of_ppm, whole
from orchestrator.cli.client import connect
from orchestrator.cli.errors import usage_error
from orchestrator.cli.output import Output, OutputFormat, print_fields, print_json, print_table
from orchestrator.cli.wording import instant
from orchestrator.core.market.pricing import MICROCREDITS

app = typer.Typer(no_args_is_help=True, help="Tenants: who submits jobs.")

Name = Annotated[str, typer.Argument(metavar="TENANT", help="Name or id.")]

NO_LIMIT = "none"


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="How the tenant is called.")],
    output: Output = OutputFormat.TABLE,
) -> None:
    """Create a tenant; give it a token with `orch token create --role tenant --subject NAME`."""
    request = operator_pb2.CreateTenantRequest(request_id=new_id("req"), name=name)
    with connect() as client:
        answer = client.call(client.operator.CreateTenant, request)
    if output is OutputFormat.JSON:
        print_json(answer)
    else:
        print_fields(tenant_fields(answer.tenant))


@app.command("list")
def list_(output: Output = OutputFormat.TABLE) -> None:
    """List the tenants."""
    with connect() as client:
        answer = client.call(client.operator.ListTenants, operator_pb2.ListTenantsRequest())
    if output is OutputFormat.JSON:
        print_json(answer)
        return
    rows = [
        (tenant.tenant_id, tenant.name, str(tenant.weight), _quota(tenant.quota), instant(tenant.created_at))
        for tenant in answer.tenants
    ]
    columns = ("TENANT", "NAME", "WEIGHT", "QUOTA", "CREATED")
    print_table(columns, rows, "no tenants yet: create one with `orch tenant create NAME`")


@app.command()
def show(tenant: Name, output: Output = OutputFormat.TABLE) -> None:
    """Show what a tenant may hold, holds and has used, and how large a part of the fleet that is."""
    with connect() as client:
        answer = client.call(client.operator.GetTenant, operator_pb2.GetTenantRequest(tenant=tenant))
    if output is OutputFormat.JSON:
        print_json(answer)
        return
    quota = answer.tenant.quota
    print_fields(
        {
            **tenant_fields(answer.tenant),
            "GPUs held": _of(str(answer.gpus_held), _gpus(quota)),
            f"GPU-hours in {answer.month}": _of(decimal(answer.gpu_ms_used, MS_PER_HOUR), _hours(quota))
            + _committed(decimal(answer.gpu_ms_committed, MS_PER_HOUR)),
            f"spent in {answer.month}": _of(credits_of(answer.microcredits_spent), _spend(quota))
            + _committed(credits_of(answer.microcredits_committed)),
            "share of the fleet": f"{percent_of_ppm(answer.share_ppm)} now,"
            f" {percent_of_ppm(answer.lately_ppm)} lately,"
            f" {percent_of_ppm(answer.fair_ppm)} by its weight",
            "jobs queued": str(answer.jobs_queued),
        }
    )


@app.command("set")
def set_(
    tenant: Name,
    weight: Annotated[
        str | None, typer.Option(help="Its part of a fleet that everybody wants; 100 is everybody's.")
    ] = None,
    gpus: Annotated[str | None, typer.Option(metavar="N|none", help="GPUs that it may hold at once.")] = None,
    gpu_hours: Annotated[
        str | None, typer.Option(metavar="N|none", help="GPU-hours that it may use in a month of UTC.")
    ] = None,
    spend: Annotated[
        str | None, typer.Option(metavar="CREDITS|none", help="What it may spend in a month of UTC.")
    ] = None,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Set a tenant's weight and quota; what is not named stays as it is."""
    if weight is None and gpus is None and gpu_hours is None and spend is None:
        raise usage_error("nothing to set: give --weight, --gpus, --gpu-hours or --spend")
    request = operator_pb2.SetTenantRequest(
        tenant=tenant,
        weight=None if weight is None else whole("--weight", weight, 1, "whole numbers"),
        gpus=_limit("--gpus", gpus, 1, "whole numbers"),
        gpu_ms_per_month=_limit("--gpu-hours", gpu_hours, MS_PER_HOUR, "hours"),
        microcredits_per_month=_limit("--spend", spend, MICROCREDITS, "credits"),
    )
    with connect() as client:
        answer = client.call(client.operator.SetTenant, request)
    if output is OutputFormat.JSON:
        print_json(answer)
    else:
        print_fields(tenant_fields(answer.tenant))


def tenant_fields(tenant: operator_pb2.Tenant) -> dict[str, str]:
    """What is set of a tenant."""
    return {
        "tenant": tenant.tenant_id,
        "name": tenant.name,
        "created": instant(tenant.created_at),
        "weight": str(tenant.weight),
        "quota": _quota(tenant.quota),
    }


def _limit(option: str, text: str | None, unit: int, of_what: str) -> operator_pb2.QuotaLimit | None:
    if text is None:
        return None
    if text.strip().lower() == NO_LIMIT:
        return operator_pb2.QuotaLimit()
    return operator_pb2.QuotaLimit(at_most=whole(option, text.strip(), unit, of_what))


def _quota(quota: operator_pb2.TenantQuota) -> str:
    """All limits in words."""
    limits = ((_gpus(quota), "GPUs"), (_hours(quota), "GPU-hours a month"), (_spend(quota), "a month"))
    return ", ".join(f"{limit} {of}" for limit, of in limits if limit) or NO_LIMIT


def _gpus(quota: operator_pb2.TenantQuota) -> str:
    return str(quota.gpus) if quota.HasField("gpus") else ""


def _hours(quota: operator_pb2.TenantQuota) -> str:
    return decimal(quota.gpu_ms_per_month, MS_PER_HOUR) if quota.HasField("gpu_ms_per_month") else ""


def _spend(quota: operator_pb2.TenantQuota) -> str:
    return credits_of(quota.microcredits_per_month) if quota.HasField("microcredits_per_month") else ""


def _committed(amount: str) -> str:
    return f", {amount} committed"


def _of(amount: str, limit: str) -> str:
    return f"{amount} of {limit}" if limit else amount
