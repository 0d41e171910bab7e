"""`orch authority`: whom workers trust, and whose certificates they show."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import typer

from orchestrator.api.v1 import operator_pb2
from orchestrator.cli.client import connect
from orchestrator.cli.output import Output, OutputFormat, note, print_json, print_table
from orchestrator.cli.wording import instant

app = typer.Typer(no_args_is_help=True, help="The network's certificate authority.")

COLUMNS = ("GENERATION", "PIN", "VALID UNTIL")


@app.command()
def show(output: Output = OutputFormat.TABLE) -> None:
    """Show the authorities that are trusted now, the newest first."""
    with connect() as client:
        answer = client.call(client.operator.GetAuthority, operator_pb2.GetAuthorityRequest())
    if output is OutputFormat.JSON:
        print_json(answer)
        return
    _print(answer.authorities)
    if answer.workers_behind:
        note(
            f"{answer.workers_behind} worker(s) have no certificate of the newest authority yet; they renew by"
            " themselves, those that are away when they come"
        )


@app.command()
def rotate(output: Output = OutputFormat.TABLE) -> None:
    """Make a new authority; the older ones stay trusted until `orch authority retire`."""
    with connect() as client:
        answer = client.call(client.operator.RotateAuthority, operator_pb2.RotateAuthorityRequest())
    if output is OutputFormat.JSON:
        print_json(answer)
        return
    _print(answer.authorities)
    note(
        "connected workers renew now, absent ones when they come; tokens made before name an older authority and"
        " serve until it is retired; when `orch authority show` counts no worker any more: `orch authority retire`"
    )


@app.command()
def retire(
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Even where workers have not renewed yet: connected ones are cut off, and all of those recover"
            " when they come next, which is counted.",
        ),
    ] = False,
    output: Output = OutputFormat.TABLE,
) -> None:
    """End the trust in all authorities but the newest."""
    with connect() as client:
        request = operator_pb2.RetireAuthorityRequest(force=force)
        answer = client.call(client.operator.RetireAuthority, request)
    if output is OutputFormat.JSON:
        print_json(answer)
        return
    _print(answer.authorities)
    note(
        "join tokens from before the last `orch authority rotate` name an authority that is gone: make new ones."
        " Operators' and tenants' tokens from before serve on where ORCH_CA_FILE names the new ca.pem, and at the"
        " gateway; admin-token on the control plane's machine is up to date"
    )


def _print(authorities: Iterable[operator_pb2.Authority]) -> None:
    rows = [(str(one.generation), one.pin, instant(one.not_after)) for one in authorities]
    print_table(COLUMNS, rows, "no authority: `orch serve` makes one at its first start")
