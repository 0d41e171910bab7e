"""`orch status`: the network at a glance."""

from __future__ import annotations

from orchestrator.api.v1 import operator_pb2
from orchestrator.cli.client import connect
from orchestrator.cli.output import Output, OutputFormat, note, print_fields, print_json
from orchestrator.cli.wording import counts_text


def status(output: Output = OutputFormat.TABLE) -> None:
    """Show the network: workers, devices, clusters, jobs, receipts, addresses, the receipts' key."""
    with connect() as client:
        answer = client.call(client.operator.GetStatus, operator_pb2.GetStatusRequest())
    if output is OutputFormat.JSON:
        print_json(answer)
    else:
        print_fields(status_fields(answer))
        for remark in answer.remarks:
            note(remark_text(remark))


def status_fields(answer: operator_pb2.GetStatusResponse) -> dict[str, str]:
    """The answer's lines."""
    return {
        "network": answer.network_id,
        "version": f"{answer.version} (term {answer.term})",
        "workers": counts_text(answer.workers_by_liveness),
        "devices": (
            f"{answer.devices}, of them {answer.devices_held} held, {answer.devices_simulated} simulated"
        ),
        "clusters": counts_text(answer.clusters_by_phase),
        "jobs": counts_text(answer.jobs_by_status),
        "receipts": f"{answer.receipts}, of them {answer.receipts_unposted} not yet in the ledger",
        "isolation": answer.isolation,
        "overlay": answer.overlay,
        "gateway": answer.gateway_url,
        "metrics": answer.metrics_url,
        "receipts' public key": answer.receipt_public_key,
    }


def remark_text(remark: operator_pb2.StatusRemark) -> str:
    """`2 workers: no isolation, so no job comes here: …`."""
    return f"{remark.workers} {'worker' if remark.workers == 1 else 'workers'}: {remark.text}"
