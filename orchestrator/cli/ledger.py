"""`orch ledger`: what the books say."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.api.v1 import ledger_pb2
from orchestrator.cli.client import connect
from orchestrator.cli.output import Output, OutputFormat, print_json, print_table

app = typer.Typer(no_args_is_help=True, help="The reward ledger: double-entry books fed by receipts.")


@app.callback()
def ledger() -> None:
    """Keep `balance` a subcommand although it is the only one."""


@app.command()
def balance(
    owner: Annotated[str, typer.Option(help="Only this owner's accounts, such as a supplier's id.")] = "",
    output: Output = OutputFormat.TABLE,
) -> None:
    """Show every account's debits and credits, per asset such as gpu_ms:consumer."""
    with connect() as client:
        answer = client.call(client.ledger.ListBalances, ledger_pb2.ListBalancesRequest(owner=owner))
    if output is OutputFormat.JSON:
        print_json(answer)
        return
    rows = [
        (
            entry.account_id,
            entry.asset,
            str(entry.debits),
            str(entry.credits),
            str(entry.credits - entry.debits),
        )
        for entry in answer.balances
    ]
    columns = ("ACCOUNT", "ASSET", "DEBITS", "CREDITS", "BALANCE")
    print_table(
        columns, rows, "nothing posted yet: receipts are posted when a job's lease ends or the hour is full"
    )
