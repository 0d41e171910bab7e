"""`orch serve`: the control plane of a network, with gateway, ledger and metrics."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def serve(
    data_dir: Annotated[Path | None, typer.Option(help="Where everything is kept. [~/.orchestrator]")] = None,
    listen: Annotated[str | None, typer.Option(help="gRPC, for agents and `orch`. [127.0.0.1:7443]")] = None,
    session_listen: Annotated[
        str | None, typer.Option(help="gRPC with mutual TLS, for workers' sessions. [127.0.0.1:7444]")
    ] = None,
    session_address: Annotated[
        str | None, typer.Option(help="HOST:PORT by which workers reach --session-listen. [as bound]")
    ] = None,
    open_enrolment: Annotated[
        bool | None,
        typer.Option("--open-enrolment", help="Let strangers join without a token, on probation."),
    ] = None,
    probation_ms: Annotated[
        int | None, typer.Option(help="How long a stranger is live before it gets paid work.")
    ] = None,
    private_webhooks: Annotated[
        bool | None,
        typer.Option(
            "--private-webhooks", help="Let suppliers with a token be alerted at private addresses."
        ),
    ] = None,
    probation_evidence: Annotated[
        str | None, typer.Option(help="What a stranger's devices must show as well: T2; T0 in a laboratory.")
    ] = None,
    gateway: Annotated[str | None, typer.Option(help="HTTP, for tenants. [127.0.0.1:8265]")] = None,
    gateway_name: Annotated[
        list[str] | None, typer.Option(help="A host name by which tenants reach the gateway. Repeatable.")
    ] = None,
    metrics: Annotated[str | None, typer.Option(help="HTTP, for Prometheus. [127.0.0.1:9464]")] = None,
    database_url: Annotated[
        str | None, typer.Option(help="SQLAlchemy URL; ORCH_DATABASE_URL hides a password. [SQLite file]")
    ] = None,
    insecure_lab: Annotated[
        bool | None, typer.Option("--insecure-lab", help="Allow addresses that others reach, unencrypted.")
    ] = None,
    heartbeat_interval_ms: Annotated[int | None, typer.Option(help="How often workers are heard.")] = None,
    suspect_after_ms: Annotated[int | None, typer.Option(help="Silence that makes a worker suspect.")] = None,
    lease_ttl_ms: Annotated[int | None, typer.Option(help="Silence after which its nodes end.")] = None,
    lost_after_ms: Annotated[int | None, typer.Option(help="Silence that makes it lost.")] = None,
    statement_interval_ms: Annotated[int | None, typer.Option(help="How often workers state.")] = None,
    idle_teardown_ms: Annotated[int | None, typer.Option(help="How long an idle cluster is kept.")] = None,
    gang_gpus_max: Annotated[int | None, typer.Option(help="The largest gang that may be asked for.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with any of these settings.")] = None,
    debug: Annotated[bool | None, typer.Option("--debug", help="Say more in the log.")] = None,
) -> None:
    """Run the control plane until Ctrl-C; a second Ctrl-C is immediate.

    Each option may also come as ORCH_<NAME> or from --config, as may the deadlines of cluster formation.
    """
    flags = dict(locals())
    del flags["config"]
    flags["gateway_names"] = tuple(flags.pop("gateway_name") or ()) or None
    from orchestrator.adapters.log_setup import configure_logging
    from orchestrator.cli.serve_settings import read_settings, warn_of_password

    warn_of_password(database_url)
    settings = read_settings({name: value for name, value in flags.items() if value is not None}, config)
    configure_logging({"service": "control"}, pretty=sys.stderr.isatty(), debug=settings.debug)
    from orchestrator.cli.serving import run_control_plane

    run_control_plane(settings)
