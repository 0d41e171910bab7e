"""`orch reserve`: machines that are kept for a tenant in a window of time."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated

import typer
from google.protobuf.timestamp_pb2 import Timestamp

from orchestrator.adapters.clock import SystemClock, new_id
from orchestrator.api.v1 import reservations_pb2
from orchestrator.cli.amounts import MS_PER_HOUR, whole
from orchestrator.cli.client import connect
from orchestrator.cli.conditions import Gpus, Model, conditions
from orchestrator.cli.errors import usage_error
from orchestrator.cli.output import Output, OutputFormat, print_fields, print_json, print_table
from orchestrator.cli.wording import MS_PER_S, instant, yes_no
from orchestrator.core.requests import TIME_UNIT_MS

app = typer.Typer(no_args_is_help=True, help="Reservations: machines kept for a tenant in a window of time.")

Name = Annotated[str, typer.Argument(metavar="RESERVATION", help="Name or id.")]
Tenant = Annotated[
    str, typer.Option(help="Whose: name or id. For operators; a tenant's token says it itself.")
]

FROM_NOW = re.compile(r"\+([0-9]{1,6})(s|m|h|d)")


@app.command()
def create(
    name: Annotated[str, typer.Option(help="What jobs call it: orch.reservation=NAME.")],
    begin: Annotated[
        str, typer.Option("--from", help="When it begins: 2026-12-01T08:00Z, or +2h from now.")
    ] = "+0m",
    hours: Annotated[str, typer.Option(help="For how long.")] = "1",
    gpus: Gpus = None,
    model: Model = None,
    more: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Any other orch. key of a job, such as max_rtt_ms=20."
        ),
    ] = None,
    tenant: Tenant = "",
    output: Output = OutputFormat.TABLE,
) -> None:
    """Have machines kept, or hear what is missing. Nobody is charged for it; what nobody uses ends early.

    Distances are not promised: who is near whom is measured when its time comes.
    """
    from_ms = moment_ms("--from", begin, SystemClock().now().wall_ms)
    request = reservations_pb2.CreateReservationRequest(
        request_id=new_id("req"),
        tenant=tenant,
        name=name,
        metadata=conditions({"orch.gpus": gpus, "orch.gpu_model": model}, more or ()),
        begins_at=_timestamp(from_ms),
        ends_at=_timestamp(from_ms + whole("--hours", hours, MS_PER_HOUR, "hours")),
    )
    with connect() as client:
        answer = client.call(client.jobs.CreateReservation, request)
    if output is OutputFormat.JSON:
        print_json(answer)
    else:
        print_fields(fields_of(answer.reservation))


@app.command("list")
def list_(
    tenant: Tenant = "",
    ended: Annotated[bool, typer.Option("--ended", help="Those that have ended, too.")] = False,
    output: Output = OutputFormat.TABLE,
) -> None:
    """List reservations in the order in which they begin."""
    request = reservations_pb2.ListReservationsRequest(tenant=tenant, ended=ended)
    with connect() as client:
        answer = client.call(client.jobs.ListReservations, request)
    if output is OutputFormat.JSON:
        print_json(answer)
        return
    rows = [
        (
            one.reservation_id,
            one.name,
            one.tenant_id,
            one.wanted,
            instant(one.begins_at),
            instant(one.ends_at),
            one.phase,
            f"{one.devices_held} of {one.devices}",
        )
        for one in answer.reservations
    ]
    columns = ("RESERVATION", "NAME", "TENANT", "WANTED", "FROM", "TO", "PHASE", "HELD")
    print_table(columns, rows, "no reservations: make one with `orch reserve create`")


@app.command()
def show(reservation: Name, output: Output = OutputFormat.TABLE) -> None:
    """Show one reservation, and how much of it its jobs hold."""
    request = reservations_pb2.GetReservationRequest(reservation=reservation)
    with connect() as client:
        answer = client.call(client.jobs.GetReservation, request)
    if output is OutputFormat.JSON:
        print_json(answer)
    else:
        print_fields(fields_of(answer.reservation))


@app.command()
def cancel(reservation: Name, output: Output = OutputFormat.TABLE) -> None:
    """Keep nothing for it any more; its jobs that run go on, the others wait as any."""
    request = reservations_pb2.CancelReservationRequest(reservation=reservation)
    with connect() as client:
        answer = client.call(client.jobs.CancelReservation, request)
    if output is OutputFormat.JSON:
        print_json(answer)
    else:
        print_fields(fields_of(answer.reservation))


def fields_of(one: reservations_pb2.Reservation) -> dict[str, str]:
    """A line for each thing that is known of it."""
    return {
        "reservation": one.reservation_id,
        "name": one.name,
        "tenant": one.tenant_id,
        "wanted": one.wanted,
        "from": instant(one.begins_at),
        "to": instant(one.ends_at),
        "created": instant(one.created_at),
        "phase": one.phase,
        "ended": instant(one.ended_at),
        "ever used": yes_no(one.used),
        "devices held": f"{one.devices_held} of {one.devices}",
        "jobs waiting": str(one.jobs_waiting),
    }


def moment_ms(option: str, text: str, now_ms: int) -> int:
    """An instant of UTC as it is typed, or a time from now. Raises a usage error."""
    from_now = FROM_NOW.fullmatch(text.strip())
    if from_now is not None:
        return now_ms + int(from_now[1]) * TIME_UNIT_MS[from_now[2]]
    try:
        found = datetime.fromisoformat(text.strip())
        moment = found.astimezone(UTC) if found.tzinfo is not None else None
    except (ValueError, OverflowError):
        moment = None
    if moment is None:
        raise usage_error(
            f"{option}: a time of UTC such as 2026-12-01T08:00Z, or one from now such as +2h, is expected,"
            f" not {text[:40]!r}"
        )
    return int(moment.timestamp()) * MS_PER_S


def _timestamp(at_ms: int) -> Timestamp:
    return Timestamp(seconds=at_ms // MS_PER_S, nanos=at_ms % MS_PER_S * 1_000_000)
