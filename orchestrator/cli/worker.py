"""`orch worker`: offer this machine, and look at those that are offered."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.api.v1 import operator_pb2
from orchestrator.cli.client import connect
from orchestrator.cli.errors import CliError, usage_error
from orchestrator.cli.output import (
    Output,
    OutputFormat,
    note,
    print_json,
    print_lines,
    print_table,
)
from orchestrator.cli.settings import AGENT_FILE, DATA_DIR, token_from
from orchestrator.cli.wording import devices_text, hardware_class_name, instant, isolation_text, yes_no

app = typer.Typer(no_args_is_help=True, help="Workers: machines that suppliers offer.")

AGENT_DATA_DIR = DATA_DIR / "agent"
AGENT_FIELDS = ("worker_id", "name", "supplier_id", "control_plane")


@app.command("list")
def list_(output: Output = OutputFormat.TABLE) -> None:
    """List the workers of the network."""
    with connect() as client:
        answer = client.call(client.operator.ListWorkers, operator_pb2.ListWorkersRequest())
    if output is OutputFormat.JSON:
        print_json(answer)
        return
    rows = [
        (
            worker.name,
            worker.supplier_name or worker.supplier_id,
            hardware_class_name(worker.inventory.hardware_class),
            devices_text(worker.inventory.devices),
            f"{worker.devices_held} of {len(worker.inventory.devices)}",
            state_text(worker),
            isolation_text(worker.inventory),
            worker.inventory.overlay,
            worker.worker_id,
        )
        for worker in answer.workers
    ]
    columns = ("NAME", "SUPPLIER", "CLASS", "DEVICES", "HELD", "STATE", "ISOLATION", "OVERLAY", "WORKER")
    print_table(columns, rows, "no workers yet: offer a machine with `orch worker join`")
    for worker in answer.workers:
        for remark in worker.inventory.remarks:
            note(f"{worker.name}: {remark}")


@app.command()
def leave(
    worker: Annotated[str, typer.Argument(help="The worker's id or name.")],
    output: Output = OutputFormat.TABLE,
) -> None:
    """Drain a worker and let it go, as its own Ctrl-C would: what runs there ends first or is moved."""
    with connect() as client:
        answer = client.call(client.operator.LeaveWorker, operator_pb2.LeaveWorkerRequest(worker=worker))
    if output is OutputFormat.JSON:
        print_json(answer)
    else:
        print_lines([f"{answer.worker.name} ({answer.worker.worker_id}): {state_text(answer.worker)}"])


def state_text(worker: operator_pb2.Worker) -> str:
    """Liveness and what qualifies it."""
    cordoned = len(worker.standing.device_holds)
    remarks = [
        *(("draining",) if worker.draining else ()),
        *(hold.kind for hold in worker.standing.holds),
        *((f"{cordoned} device(s) cordoned",) if cordoned else ()),
        *(("not connected",) if worker.liveness == "live" and not worker.connected else ()),
    ]
    return f"{worker.liveness} ({', '.join(remarks)})" if remarks else worker.liveness


def worker_fields(worker: operator_pb2.Worker) -> dict[str, str]:
    """A worker's lines, as the network sees it."""
    inventory = worker.inventory
    return {
        "state": state_text(worker),
        "connected": yes_no(worker.connected),
        "supplier name": worker.supplier_name,
        "class": hardware_class_name(inventory.hardware_class),
        "devices": devices_text(inventory.devices),
        "devices held": str(worker.devices_held),
        "slots": f"{inventory.slots}, head slots {inventory.head_slots}",
        "isolation": isolation_text(inventory),
        "overlay": inventory.overlay,
        **({"remarks": "; ".join(inventory.remarks)} if inventory.remarks else {}),
        "zone": inventory.zone,
        "joined": instant(worker.joined_at),
    }


def read_agent(directory: Path) -> dict[str, str]:
    """What the agent wrote about itself when it joined."""
    path = directory / AGENT_FILE
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise usage_error(
            f"--data-dir: no agent has joined from {directory};"
            " `orch worker join` does, or name its directory"
        ) from None
    except OSError as error:
        raise usage_error(f"--data-dir: cannot read {path}: {(error.strerror or '').lower()}") from None
    except ValueError:
        raise CliError(
            f"{path} is no JSON; restore it, or remove it and join again with a new token"
        ) from None
    if not isinstance(value, dict) or not all(isinstance(value.get(name), str) for name in AGENT_FIELDS):
        raise CliError(
            f"{path} lacks one of {', '.join(AGENT_FIELDS)}; remove it and join again with a new token"
        )
    return {name: value[name] for name in AGENT_FIELDS}


def seen_worker(worker_id: str) -> operator_pb2.Worker | None:
    """The network's view of one worker; None, with a remark, where it cannot be had."""
    if token_from(os.environ) is None:
        note("set ORCH_TOKEN to an operator's token to see how the network sees this machine")
        return None
    try:
        with connect() as client:
            answer = client.call(client.operator.ListWorkers, operator_pb2.ListWorkersRequest())
    except CliError as error:
        note(str(error))
        return None
    found = next((worker for worker in answer.workers if worker.worker_id == worker_id), None)
    if found is None:
        note(f"the network knows no worker {worker_id}")
    return found
