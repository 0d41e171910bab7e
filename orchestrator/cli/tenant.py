"""`orch tenant`: who may submit jobs."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.adapters.clock import new_id
from orchestrator.api.v1 import operator_pb2
from orchestrator.cli.client import connect
from orchestrator.cli.output import Output, OutputFormat, print_fields, print_json, print_table
from orchestrator.cli.wording import instant

app = typer.Typer(no_args_is_help=True, help="Tenants: who submits jobs.")


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
        tenant = answer.tenant
        print_fields({"tenant": tenant.tenant_id, "name": tenant.name, "created": instant(tenant.created_at)})


@app.command("list")
def list_(output: Output = OutputFormat.TABLE) -> None:
    """List the tenants."""
    with connect() as client:
        answer = client.call(client.operator.ListTenants, operator_pb2.ListTenantsRequest())
    if output is OutputFormat.JSON:
        print_json(answer)
        return
    rows = [(tenant.tenant_id, tenant.name, instant(tenant.created_at)) for tenant in answer.tenants]
    print_table(
        ("TENANT", "NAME", "CREATED"), rows, "no tenants yet: create one with `orch tenant create NAME`"
    )
