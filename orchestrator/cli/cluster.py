"""`orch cluster`: the Ray clusters, their phases and members."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

import typer

from orchestrator.api.v1 import delivery_pb2, operator_pb2, overlay_pb2
from orchestrator.cli.client import connect
from orchestrator.cli.output import Output, OutputFormat, print_fields, print_json, print_table
from orchestrator.cli.wording import device_names, hardware_class_name, instant, model_text

US_PER_MS = 1000
BYTES_PER_KIB = 1024
MEGA = 10**6
GIGA = 10**9

app = typer.Typer(no_args_is_help=True, help="Ray clusters, each of one tenant.")


@app.command("list")
def list_(
    all_: Annotated[bool, typer.Option("--all", help="Closed clusters too.")] = False,
    output: Output = OutputFormat.TABLE,
) -> None:
    """List clusters."""
    with connect() as client:
        answer = client.call(client.operator.ListClusters, operator_pb2.ListClustersRequest(all=all_))
    if output is OutputFormat.JSON:
        print_json(answer)
        return
    rows = [
        (
            cluster.cluster_id,
            cluster.phase,
            hardware_class_name(cluster.hardware_class),
            str(len(cluster.members)),
            cluster.tenant_id,
            instant(cluster.created_at),
            ", ".join(cluster.job_ids),
            cluster.reason,
        )
        for cluster in answer.clusters
    ]
    columns = ("CLUSTER", "PHASE", "CLASS", "MEMBERS", "TENANT", "CREATED", "JOBS", "REASON")
    print_table(columns, rows, "no clusters: one is formed when a job needs it; `--all` shows closed ones")


@app.command()
def show(
    cluster_id: Annotated[str, typer.Argument(metavar="CLUSTER", help="The cluster's id.")],
    output: Output = OutputFormat.TABLE,
) -> None:
    """Show one cluster and its members."""
    with connect() as client:
        answer = client.call(
            client.operator.GetCluster, operator_pb2.GetClusterRequest(cluster_id=cluster_id)
        )
        if output is OutputFormat.JSON:
            print_json(answer)
            return
        workers = client.call(client.operator.ListWorkers, operator_pb2.ListWorkersRequest()).workers
    cluster = answer.cluster
    print_fields(
        {
            "cluster": cluster.cluster_id,
            "phase": cluster.phase,
            "reason": cluster.reason,
            "class": hardware_class_name(cluster.hardware_class),
            "tenant": cluster.tenant_id,
            "generation": str(cluster.generation),
            "created": instant(cluster.created_at),
            "ready": instant(cluster.ready_at),
            "idle since": instant(cluster.idle_since),
            "jobs": ", ".join(cluster.job_ids),
            "all-reduce": bus_words(answer.bus) if answer.HasField("bus") else "",
        }
    )
    names = device_names(workers)
    columns = ("MEMBER", "ROLE", "PHASE", "WORKER", "SLOT", "NODE", "DEVICES", "EVIDENCE", "REASON")
    print_table(columns, [member_row(member, names) for member in cluster.members], "no members")
    if answer.certificate:
        columns = ("RANK", "WORKER", "GPU", "EVIDENCE", "RTT", "BANDWIDTH", "RTT TO HEAD", "TO HEAD", "BUS")
        print_table(columns, [rank_row(rank) for rank in answer.certificate], "")
    if answer.paths:
        workers_of = {member.member_id: member.worker_name for member in cluster.members}
        heads = ("FROM", "TO", "RTT", "P90", "JITTER", "LOSS", "BANDWIDTH")
        print_table(heads, [path_row(path, workers_of) for path in answer.paths], "")


def bus_words(bus: overlay_pb2.BusMeasured) -> str:
    """An all-reduce in words."""
    size = f"{bus.size_bytes // BYTES_PER_KIB} KiB"
    return f"{rate(bus.bus_bits_per_s)} bus bandwidth ({bus.method}, {size} over {bus.ranks} members)"


def path_row(path: operator_pb2.ClusterPath, workers_of: Mapping[str, str]) -> tuple[str, ...]:
    """The line of a way between two members; times only where there was an answer."""
    measured = path.measured
    times_us = (measured.rtt_median_us, measured.rtt_p90_us, measured.jitter_us)
    loss = (measured.sent - measured.received) * 100 / max(1, measured.sent)
    return (
        workers_of.get(path.member_id, path.member_id),
        workers_of.get(measured.peer_id, measured.peer_id),
        *(milliseconds(time_us) if measured.received else "" for time_us in times_us),
        f"{loss:.0f} %",
        rate(measured.bandwidth_bits_per_s) if measured.bandwidth_bits_per_s else "",
    )


def rank_row(rank: delivery_pb2.RankDelivered) -> tuple[str, ...]:
    """A rank's line of the delivery certificate, with its devices by UUID."""

    def figure(field: str, show: Callable[[int], str]) -> str:
        return show(getattr(rank, field)) if rank.HasField(field) else ""  # type: ignore[arg-type]  # a field's name

    devices = (f"{one.uuid} {model_text(one.model, simulated=one.simulated)}" for one in rank.devices)
    return (
        str(rank.rank),
        rank.worker_name,
        ", ".join(one.strip() for one in devices),
        rank.evidence_class.upper(),
        figure("rtt_us", milliseconds),
        figure("bandwidth_bits_per_s", rate),
        figure("head_rtt_us", milliseconds),
        figure("head_bandwidth_bits_per_s", rate),
        figure("bus_bits_per_s", rate),
    )


def milliseconds(time_us: int) -> str:
    """Microseconds as people read them."""
    return f"{time_us / US_PER_MS:.1f} ms"


def rate(bits_per_s: int) -> str:
    """Bits per second as people read them."""
    if bits_per_s >= GIGA:
        return f"{bits_per_s / GIGA:.2f} Gbit/s"
    return f"{bits_per_s / MEGA:.1f} Mbit/s"


def member_row(member: operator_pb2.ClusterMember, names: Mapping[str, str]) -> tuple[str, ...]:
    """A member's line; a device that no worker lists any more keeps its id."""
    return (
        member.member_id,
        member.role,
        member.phase,
        member.worker_name or member.worker_id,
        str(member.slot),
        member.node_ip,
        ", ".join(names.get(device_id, device_id) for device_id in member.device_ids),
        member.evidence_class.upper(),
        member.reason,
    )
