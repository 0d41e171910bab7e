"""`orch serve`: the control plane of a network, with gateway, ledger and metrics."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

SessionListen = Annotated[
    str | None, typer.Option(help="gRPC with mutual TLS, for workers' sessions. [127.0.0.1:7444]")
]
SessionAddress = Annotated[
    str | None, typer.Option(help="HOST:PORT by which workers reach --session-listen. [as bound]")
]
OpenEnrolment = Annotated[
    bool | None,
    typer.Option("--open-enrolment", help="Let strangers join without a token, on probation."),
]
ProbationMs = Annotated[
    int | None, typer.Option(help="How long a stranger is live before it gets paid work.")
]
PrivateWebhooks = Annotated[
    bool | None,
    typer.Option("--private-webhooks", help="Let suppliers with a token be alerted at private addresses."),
]
ProbationEvidence = Annotated[
    str | None, typer.Option(help="What a stranger's devices must show as well: T2; T0 in a laboratory.")
]
Gateway = Annotated[
    str | None,
    typer.Option(help="HTTP or HTTPS, for tenants; HTTPS wherever others reach it. [127.0.0.1:8265]"),
]
GatewayName = Annotated[
    list[str] | None,
    typer.Option(help="A host name or address by which tenants reach the gateway. Repeatable."),
]
GatewayUrl = Annotated[
    str | None,
    typer.Option(help="URL by which tenants come, where a proxy or Ingress is before --gateway. [as bound]"),
]
GatewayCertificate = Annotated[
    Path | None,
    typer.Option(help="PEM file with the gateway's certificate and its issuers; read anew when it changes."),
]
GatewayKey = Annotated[Path | None, typer.Option(help="PEM file with the key of --gateway-certificate.")]
GatewayTls = Annotated[
    str | None,
    typer.Option(help="own: a certificate of this network's authority; `ray job … --verify CA.PEM`."),
]
GatewayPlain = Annotated[
    bool | None,
    typer.Option("--gateway-plain", help="Plain HTTP beyond this machine: your own reverse proxy ends TLS."),
]
Metrics = Annotated[
    str | None,
    typer.Option(help="HTTP, for Prometheus and probes; metrics want a token. [127.0.0.1:9464]"),
]
MetricsTokenFile = Annotated[
    Path | None,
    typer.Option(help="File with the token that Prometheus shows; read anew when it changes. [made]"),
]
OverlayListen = Annotated[
    str | None,
    typer.Option(help="UDP, for the overlay between machines; none for none. [beside --session-listen]"),
]
OverlayAddress = Annotated[
    str | None, typer.Option(help="HOST:PORT by which machines reach --overlay-listen. [as bound]")
]
OverlayBeacon = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ADDRESS=HOST:PORT", help="A lighthouse of yours, in place of the own one. Repeatable."
    ),
]
OverlayNetwork = Annotated[
    str | None, typer.Option(help="The overlay's addresses; they show in boxes only. [198.18.0.0/15]")
]
OverlayBridgeListen = Annotated[
    str | None,
    typer.Option(help="TLS over TCP, for sites that let no UDP out; 443 passes most firewalls. [none]"),
]
OverlayBridgeAddress = Annotated[
    str | None, typer.Option(help="HOST:PORT by which machines reach --overlay-bridge-listen. [as bound]")
]
RuntimesDir = Annotated[
    Path | None, typer.Option(help="Runtimes of your own, NAME.toml with NAME.lock each.")
]
PriceFile = Annotated[
    Path | None,
    typer.Option(help="TOML file with dated prices of clouds; machines without a price follow it. [none]"),
]
DatabaseUrl = Annotated[
    str | None, typer.Option(help="SQLAlchemy URL; better by file where it has a password. [SQLite file]")
]
DatabaseUrlFile = Annotated[Path | None, typer.Option(help="File that holds the URL of the database.")]
AdminTokenFile = Annotated[
    Path | None,
    typer.Option(help="File with an operator's token of your own; read anew when it changes. [made]"),
]


def serve(
    data_dir: Annotated[Path | None, typer.Option(help="Where everything is kept. [~/.orchestrator]")] = None,
    listen: Annotated[str | None, typer.Option(help="gRPC, for agents and `orch`. [127.0.0.1:7443]")] = None,
    session_listen: SessionListen = None,
    session_address: SessionAddress = None,
    open_enrolment: OpenEnrolment = None,
    probation_ms: ProbationMs = None,
    private_webhooks: PrivateWebhooks = None,
    probation_evidence: ProbationEvidence = None,
    gateway: Gateway = None,
    gateway_name: GatewayName = None,
    gateway_url: GatewayUrl = None,
    gateway_certificate: GatewayCertificate = None,
    gateway_key: GatewayKey = None,
    gateway_tls: GatewayTls = None,
    gateway_plain: GatewayPlain = None,
    metrics: Metrics = None,
    metrics_token_file: MetricsTokenFile = None,
    overlay_listen: OverlayListen = None,
    overlay_address: OverlayAddress = None,
    overlay_beacon: OverlayBeacon = None,
    overlay_network: OverlayNetwork = None,
    overlay_bridge_listen: OverlayBridgeListen = None,
    overlay_bridge_address: OverlayBridgeAddress = None,
    runtimes_dir: RuntimesDir = None,
    price_file: PriceFile = None,
    database_url: DatabaseUrl = None,
    database_url_file: DatabaseUrlFile = None,
    admin_token_file: AdminTokenFile = None,
    heartbeat_interval_ms: Annotated[int | None, typer.Option(help="How often workers are heard.")] = None,
    suspect_after_ms: Annotated[int | None, typer.Option(help="Silence that makes a worker suspect.")] = None,
    lease_ttl_ms: Annotated[int | None, typer.Option(help="Silence after which its nodes end.")] = None,
    lost_after_ms: Annotated[int | None, typer.Option(help="Silence that makes it lost.")] = None,
    statement_interval_ms: Annotated[int | None, typer.Option(help="How often workers state.")] = None,
    idle_teardown_ms: Annotated[int | None, typer.Option(help="How long an idle cluster is kept.")] = None,
    gang_gpus_max: Annotated[int | None, typer.Option(help="The largest gang that may be asked for.")] = None,
    group_bound_ms: Annotated[
        int | None, typer.Option(help="Round trip between any two of a group of workers. [20]")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with any of these settings.")] = None,
    debug: Annotated[bool | None, typer.Option("--debug", help="Say more in the log.")] = None,
) -> None:
    """Run the control plane until Ctrl-C; a second Ctrl-C is immediate.

    Each option may also come as ORCH_<NAME> or from --config, as may the deadlines of cluster formation and
    the times of preemption.
    """
    flags = dict(locals())
    del flags["config"]
    flags["gateway_names"] = tuple(flags.pop("gateway_name") or ()) or None
    flags["overlay_beacons"] = tuple(flags.pop("overlay_beacon") or ()) or None
    from orchestrator.adapters.log_setup import configure_logging
    from orchestrator.cli.serve_settings import read_settings, warn_of_password
    from orchestrator.cli.variables import point_out_unknown

    point_out_unknown(os.environ)
    warn_of_password(database_url)
    settings = read_settings({name: value for name, value in flags.items() if value is not None}, config)
    configure_logging({"service": "control"}, pretty=sys.stderr.isatty(), debug=settings.debug)
    from orchestrator.cli.serving import run_control_plane

    run_control_plane(settings)
