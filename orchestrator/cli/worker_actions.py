"""`orch worker show|revoke|class|policy`: what operators do with one worker."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.api.v1 import common_pb2, operator_pb2
from orchestrator.cli.client import connect
from orchestrator.cli.errors import usage_error
from orchestrator.cli.output import Output, OutputFormat, print_fields, print_json, print_lines, print_table
from orchestrator.cli.standings import (
    SAMPLE_COLUMNS,
    holds_lines,
    sample_rows,
    span_text,
    standing_fields,
    terms_fields,
)
from orchestrator.cli.wording import hardware_class_name, model_text, seconds_text
from orchestrator.cli.worker import state_text, worker_fields
from orchestrator.core.supply.catalogue import nearest

Worker = Annotated[str, typer.Argument(help="The worker's id or name.")]

DEVICE_COLUMNS = ("NUMBER", "DEVICE", "MODEL", "EVIDENCE", "SOURCES", "DRIVER", "BUS", "HELD FOR")
PATH_COLUMNS = ("WAY TO", "RTT", "LOSS", "MEASURED")

US_PER_MS = 1000

CLASS_PREFIX = "HARDWARE_CLASS_"
EVIDENCE_PREFIX = "EVIDENCE_CLASS_"
RECONCILE = ("original", "replacement")
LOST_AFTER_MS_MAX = 7 * 86_400_000
"""A worker that is silent for a week is lost, whatever an operator hopes."""


def show(worker: Worker, output: Output = OutputFormat.TABLE) -> None:
    """Show everything about one worker: holds, evidence, terms, reliability, alerts and measurements, with reasons."""
    with connect() as client:
        answer = client.call(client.operator.GetWorker, operator_pb2.GetWorkerRequest(worker=worker))
    if output is OutputFormat.JSON:
        print_json(answer)
        return
    known = answer.worker
    print_fields(
        {
            "worker": known.worker_id,
            "name": known.name,
            **worker_fields(known),
            "agent": known.agent_version,
            "evidence": known.evidence_class,
            **labels_fields(known.inventory),
            "recoveries": str(known.recoveries),
            "patience": policy_text(known),
            **({"class set by hand": known.class_override_reason} if known.class_override_reason else {}),
            **standing_fields(known.standing),
            **terms_fields(known.standing.terms),
        }
    )
    held = {hold.device_id: hold.reason for hold in known.standing.device_holds}
    # From 0, as metrics number them.
    rows = [(str(number), *device_row(one, held)) for number, one in enumerate(known.inventory.devices)]
    print_table(DEVICE_COLUMNS, rows, "no devices")
    print_table(SAMPLE_COLUMNS, sample_rows(answer.samples), "no device has been measured")
    if answer.paths:
        print_table(PATH_COLUMNS, [path_row(path) for path in answer.paths], "")


def path_row(path: operator_pb2.WorkerPath) -> tuple[str, ...]:
    """The way to another worker; a time only where there was an answer."""
    measured = path.measured
    loss = (measured.sent - measured.received) * 100 / max(1, measured.sent)
    return (
        path.peer_name or measured.peer_id,
        f"{measured.rtt_median_us / US_PER_MS:.1f} ms" if measured.received else "",
        f"{loss:.0f} %",
        f"{seconds_text(path.age_ms)} ago",
    )


def labels_fields(inventory: common_pb2.Inventory) -> dict[str, str]:
    """What its cluster says of a machine in Kubernetes, and where what was measured says otherwise."""
    if not inventory.evidence.HasField("labels"):
        return {}
    labels = inventory.evidence.labels
    gpus = f"{labels.gpu_count} × " if labels.HasField("gpu_count") and labels.gpu_product else ""
    told = {
        "region": labels.region,
        "zone": labels.zone,
        "instance": labels.instance_type,
        "GPU": f"{gpus}{labels.gpu_product}",
    }
    words = [labels.node, *(f"{name} {text}" for name, text in told.items() if text)]
    contradicted = enumerate(inventory.label_contradictions, 1)
    return {
        "node's labels": f"{', '.join(words)} (the cluster's word, not checked)",
        **{f"contradicted {number}": text for number, text in contradicted},
    }


def device_row(device: common_pb2.Device, held: dict[str, str]) -> tuple[str, ...]:
    """A device with the evidence of it and what is against it."""
    grade = common_pb2.EvidenceClass.Name(device.evidence_class).removeprefix(EVIDENCE_PREFIX)
    return (
        device.device_id,
        model_text(device.model, simulated=device.simulated),
        "" if device.evidence_class == common_pb2.EVIDENCE_CLASS_UNSPECIFIED else grade,
        ", ".join(sighting.source for sighting in device.evidence.sightings),
        device.evidence.driver_version,
        device.evidence.pci_bus_id,
        held.get(device.device_id, ""),
    )


def policy_text(worker: operator_pb2.Worker) -> str:
    """How patient the network is with it."""
    policy = worker.lease_policy
    if not policy.lost_after_ms:
        return "the network's"
    while_suspect = "replaced while suspect" if policy.replace else "not replaced while suspect"
    return f"lost after {span_text(policy.lost_after_ms)}, {while_suspect}, back: {policy.reconcile}"


def revoke(
    worker: Worker,
    reason: Annotated[str, typer.Option(help="Kept, and told to the owner.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Without being asked.")] = False,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Throw a worker out: its session ends, its certificate is good for nothing. `uncordon` readmits it."""
    if not yes:
        typer.confirm(f"Throw {worker} out, and end what runs there?", abort=True, err=True)
    with connect() as client:
        request = operator_pb2.RevokeWorkerRequest(worker=worker, reason=reason)
        answer = client.call(client.operator.RevokeWorker, request)
    if output is OutputFormat.JSON:
        print_json(answer)
    else:
        _said(answer.worker)


def class_(
    worker: Worker,
    hardware_class: Annotated[str, typer.Argument(metavar="[CLASS]", help="Such as consumer or miner.")] = "",
    reason: Annotated[str, typer.Option(help="Why the rule is wrong here; kept.")] = "",
    rule: Annotated[bool, typer.Option("--rule", help="Back to what the rule says.")] = False,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Put your word in place of the rule that finds a worker's hardware class, or take it back."""
    if rule == bool(hardware_class):
        raise usage_error("CLASS or --rule: give one of the two")
    if hardware_class and not reason.strip():
        raise usage_error("--reason: say why the rule is wrong here: the reason is kept")
    request = operator_pb2.SetHardwareClassRequest(
        worker=worker, hardware_class=_class_of(hardware_class), reason=reason
    )
    with connect() as client:
        answer = client.call(client.operator.SetHardwareClass, request)
    if output is OutputFormat.JSON:
        print_json(answer)
        return
    known = answer.worker
    print_lines([f"{known.name}: {hardware_class_name(known.inventory.hardware_class)}"])
    print_lines([f"  {known.standing.class_reason}"] if known.standing.class_reason else [])


def _class_of(text: str) -> common_pb2.HardwareClass.ValueType:
    if not text:
        return common_pb2.HARDWARE_CLASS_UNSPECIFIED
    known = {
        name.removeprefix(CLASS_PREFIX).lower(): number
        for name, number in common_pb2.HardwareClass.items()
        if number != common_pb2.HARDWARE_CLASS_UNSPECIFIED
    }
    found = known.get(text.strip().lower())
    if found is None:
        raise usage_error(
            f"CLASS: {', '.join(known)} are known, not {text[:80]!r};"
            f" did you mean {nearest(text[:80], list(known))}?"
        )
    return found


def policy(
    worker: Worker,
    lost_after: Annotated[
        str, typer.Option(help="Silence after which it is lost, such as 2m; `default`: the network's.")
    ],
    replace: Annotated[
        bool, typer.Option("--replace/--no-replace", help="Form a replacement while it is only suspect.")
    ] = False,
    reconcile: Annotated[
        str, typer.Option(help="Which goes on when it comes back: original or replacement.")
    ] = RECONCILE[0],
    output: Output = OutputFormat.TABLE,
) -> None:
    """Say how patient the network is with one worker."""
    from orchestrator.cli.join import duration_ms

    lost_after_ms = 0 if lost_after.strip() == "default" else duration_ms(lost_after, "--lost-after")
    if lost_after_ms > LOST_AFTER_MS_MAX:
        raise usage_error("--lost-after: at most 7d")
    if reconcile not in RECONCILE:
        guess = nearest(reconcile[:80], list(RECONCILE))
        raise usage_error(f"--reconcile: {' or '.join(RECONCILE)} is expected; did you mean {guess}?")
    wanted = operator_pb2.LeasePolicy(lost_after_ms=lost_after_ms, replace=replace, reconcile=reconcile)
    request = operator_pb2.SetLeasePolicyRequest(worker=worker, lease_policy=wanted)
    with connect() as client:
        answer = client.call(client.operator.SetLeasePolicy, request)
    if output is OutputFormat.JSON:
        print_json(answer)
    else:
        print_lines([f"{answer.worker.name}: {policy_text(answer.worker)}"])


def _said(worker: operator_pb2.Worker) -> None:
    print_lines([f"{worker.name} ({worker.worker_id}): {state_text(worker)}"])
    print_lines([f"  {line}" for line in holds_lines(worker.standing)])


def register(app: typer.Typer) -> None:
    """Add these commands to those of all workers."""
    for name, command in (("show", show), ("revoke", revoke), ("class", class_), ("policy", policy)):
        app.command(name)(command)
