"""`orch group`: workers that are alike and near each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.api.v1 import scheduling_pb2
from orchestrator.cli.client import connect
from orchestrator.cli.output import Output, OutputFormat, note, print_json, print_lines, print_table
from orchestrator.cli.wording import hardware_class_name

US_PER_MS = 1000

NOTHING_MEASURED = (
    "no latencies measured yet: workers with an overlay measure each other within minutes of joining;"
    " `orch worker list` shows which have one"
)

app = typer.Typer(no_args_is_help=True, help="Groups: workers alike and near each other.")


@app.command("list")
def list_(
    all_: Annotated[bool, typer.Option("--all", help="Groups of one worker too.")] = False,
    output: Output = OutputFormat.TABLE,
) -> None:
    """List groups, the largest first. What starts together is held to measured round trips, whatever its group."""
    with connect() as client:
        answer = client.call(client.operator.ListGroups, scheduling_pb2.ListGroupsRequest(all=all_))
    if output is OutputFormat.JSON:
        print_json(answer)
        return
    rows = [
        (
            group_name(group.number),
            hardware_class_name(group.hardware_class),
            group.model,
            group.operating_system,
            group.runtime,
            str(len(group.worker_ids)),
            str(group.devices),
            str(group.devices_free),
            _milliseconds(group.diameter_measured_us) if group.HasField("diameter_measured_us") else "",
            f"{group.pairs_measured} of {group.pairs}" if group.pairs else "",
            _milliseconds(group.diameter_predicted_us) if group.HasField("diameter_predicted_us") else "",
            group.leader_name,
        )
        for group in answer.groups
    ]
    columns = (
        *("GROUP", "CLASS", "MODEL", "OS", "RUNTIME", "WORKERS", "GPUS", "FREE"),
        *("DIAMETER", "PAIRS MEASURED", "PREDICTED", "LEADER"),
    )
    print_table(columns, rows, _why_none(answer))
    if rows:
        _say_what_is_left_out(answer)


def _why_none(answer: scheduling_pb2.ListGroupsResponse) -> str:
    if not answer.workers_measured:
        return NOTHING_MEASURED
    return (
        f"no two workers alike are known to be within {answer.bound_ms} ms of each other;"
        f" {answer.workers_alone} alone, `--all` lists them"
    )


def _say_what_is_left_out(answer: scheduling_pb2.ListGroupsResponse) -> None:
    shown = sum(len(group.worker_ids) > 1 for group in answer.groups)
    if shown < answer.groups_total:
        note(f"the largest {shown} of {answer.groups_total} groups")
    if not answer.workers_measured:
        note(NOTHING_MEASURED)
    elif answer.workers_alone and shown == len(answer.groups):
        note(f"{answer.workers_alone} more alone: nobody alike is known to be near; `--all` lists them")


@app.command()
def plot(
    out: Annotated[
        Path | None, typer.Option(help="Write an SVG file; without it the terminal shows a rough one.")
    ] = None,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Draw the groups so that distances on paper are about the round trips between workers."""
    from orchestrator.cli import group_drawing

    with connect() as client:
        answer = client.call(client.operator.GetGroupMap, scheduling_pb2.GetGroupMapRequest())
    if output is OutputFormat.JSON:
        print_json(answer)
        return
    if not answer.points:
        note(NOTHING_MEASURED if not answer.workers_measured else "all that was measured is too old by now")
        return
    marks = [
        group_drawing.Mark(
            name=point.worker_name,
            group=point.group_number,
            leads=point.leader,
            x_ms=point.x_ms,
            y_ms=point.y_ms,
            kind=f"{point.model}, {hardware_class_name(point.hardware_class)}",
        )
        for point in answer.points
    ]
    if out is None:
        print_lines(group_drawing.scatter(marks))
    else:
        out.write_text(group_drawing.svg(marks, answer.bound_ms), encoding="utf-8")
        print_lines([f"{out}: {len(marks)} workers"])
    if len(marks) < answer.workers_total:
        note(
            f"{len(marks)} of {answer.workers_total} workers are drawn: the largest groups, and who was measured"
        )


def group_name(number: int) -> str:
    """As tables and plots have it."""
    return f"g{number}"


def _milliseconds(rtt_us: int) -> str:
    return f"{rtt_us / US_PER_MS:.1f} ms"
