"""`orch authority`: whom workers trust, and whose certificates they show."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.api.v1 import authority_pb2
from orchestrator.cli.client import connect
from orchestrator.cli.errors import usage_error
from orchestrator.cli.output import (
    Output,
    OutputFormat,
    note,
    print_fields,
    print_json,
    print_lines,
    print_table,
)
from orchestrator.cli.settings import DATA_DIR
from orchestrator.cli.wording import instant

app = typer.Typer(no_args_is_help=True, help="The network's certificate authority.")

COLUMNS = ("GENERATION", "PIN", "VALID UNTIL")


@app.command()
def show(output: Output = OutputFormat.TABLE) -> None:
    """Show the authorities that are trusted now, the newest first."""
    with connect() as client:
        answer = client.call(client.operator.GetAuthority, authority_pb2.GetAuthorityRequest())
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
        answer = client.call(client.operator.RotateAuthority, authority_pb2.RotateAuthorityRequest())
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
        request = authority_pb2.RetireAuthorityRequest(force=force)
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


@app.command()
def beacon(
    address: Annotated[str, typer.Option(help="Its address in the overlay, such as 198.18.0.2.")],
    out: Annotated[Path, typer.Option(help="Directory to write; it goes to the beacon's machine.")],
    listen_port: Annotated[int, typer.Option(min=1, max=65_535, help="UDP, on every address.")] = 4242,
    data_dir: Annotated[
        Path, typer.Option(envvar="ORCH_DATA_DIR", help="The control plane's, whose secret it needs.")
    ] = DATA_DIR,
    overlay_network: Annotated[
        str, typer.Option(envvar="ORCH_OVERLAY_NETWORK", help="As `orch serve` has it.")
    ] = "198.18.0.0/15",
    output: Output = OutputFormat.TABLE,
) -> None:
    """Make, or renew, what a lighthouse and relay of yours needs elsewhere; on the control plane's machine.

    Nothing is recorded, and `orch serve` may run or not. The directory holds a secret key.
    """
    from orchestrator.adapters.keys import MASTER_FILE, KeyFileError, Keys
    from orchestrator.cli import beacons
    from orchestrator.cli.overlay import overlay_network as checked_network

    folder = data_dir.expanduser().absolute()
    if not (folder / MASTER_FILE).exists():
        raise usage_error(
            f"--data-dir: {folder} is no control plane's: it has no {MASTER_FILE}; name the one that `orch serve` uses"
        )
    try:
        made = beacons.write(
            Keys(folder, founded=True), checked_network(overlay_network), address, listen_port, out
        )
    except KeyFileError as error:
        raise usage_error(str(error)) from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise usage_error(f"--out: cannot write {error.filename or out}: {reason}") from None
    until = datetime.fromtimestamp(made.not_after_s, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    fields = {
        "directory": str(made.folder),
        "valid until": until,
        "run there": made.command,
        "tell": f"orch serve --overlay-beacon {made.address}=HOST:{listen_port}",
    }
    if output is OutputFormat.JSON:
        print_lines([json.dumps({name.replace(" ", "_"): value for name, value in fields.items()})])
        return
    print_fields(fields)
    note(
        "before that time: the same command again, copy the directory, and send nebula a SIGHUP; tunnels stay"
    )


def _print(authorities: Iterable[authority_pb2.Authority]) -> None:
    rows = [(str(one.generation), one.pin, instant(one.not_after)) for one in authorities]
    print_table(COLUMNS, rows, "no authority: `orch serve` makes one at its first start")
