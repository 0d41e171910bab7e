"""`orch status`: whether the network is well, at a glance."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.api.v1 import operator_pb2
from orchestrator.cli import status_screen
from orchestrator.cli.client import connect
from orchestrator.cli.errors import EXIT_REFUSED
from orchestrator.cli.output import Output, OutputFormat, note, print_json, print_screen
from orchestrator.core.wording import counted

REMARKS_SHOWN_MAX = 3
"""What most workers say; `orch worker list` has the rest."""

Check = Annotated[
    bool, typer.Option("--check", help="Exit with 1 where the network is not well, for scripts.")
]


def status(check: Check = False, output: Output = OutputFormat.TABLE) -> None:
    """Say whether the network is well, and show it on one screen.

    The first line says it in words; below are the worst things first, each with what to do next. Exits with 0 when the
    answer came, well or not, unless --check is given.
    """
    with connect() as client:
        answer = client.call(client.operator.GetStatus, operator_pb2.GetStatusRequest())
    if output is OutputFormat.JSON:
        print_json(answer)
    else:
        print_screen(
            status_screen.verdict_line(answer),
            answer.verdict,
            status_screen.findings(answer),
            status_screen.fields(answer),
        )
        for remark in answer.remarks[:REMARKS_SHOWN_MAX]:
            note(remark_text(remark))
    if check and answer.verdict != status_screen.WELL:
        raise typer.Exit(EXIT_REFUSED)


def remark_text(remark: operator_pb2.StatusRemark) -> str:
    """`2 workers: no isolation, so no job comes here: …`."""
    return f"{counted(remark.workers, 'worker')}: {remark.text}"
