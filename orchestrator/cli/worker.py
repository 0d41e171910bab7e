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
    print_fields,
    print_json,
    print_lines,
    print_table,
)
from orchestrator.cli.settings import AGENT_FILE, DATA_DIR, DEFAULT_URL, checked_address, token_from
from orchestrator.cli.wording import devices_text, hardware_class_name, instant, yes_no

app = typer.Typer(no_args_is_help=True, help="Workers: machines that suppliers offer.")

AGENT_DATA_DIR = DATA_DIR / "agent"
AGENT_FIELDS = ("worker_id", "name", "supplier_id", "control_plane")
SLOTS_MAX = 64
"""More members than any one machine has devices."""

DataDir = Annotated[Path, typer.Option(help="Where the agent keeps its keys and state.")]


@app.command()
def join(
    control_plane: Annotated[
        str, typer.Option(envvar="ORCH_URL", help="The control plane's HOST:PORT.")
    ] = DEFAULT_URL,
    token_file: Annotated[Path | None, typer.Option(help="File that holds the join token.")] = None,
    token: Annotated[
        str | None, typer.Option(help="The join token itself; visible to others, ORCH_JOIN_TOKEN is not.")
    ] = None,
    name: Annotated[str, typer.Option(help="How to call this machine; default: its host name.")] = "",
    hardware_class: Annotated[
        str,
        typer.Option(help="consumer, miner, datacenter, apple or cpu; default: that of its devices."),
    ] = "",
    simulate: Annotated[
        list[str] | None,
        typer.Option(metavar="MODELxN", help="Pretend to have N such GPUs, shown as simulated. Repeatable."),
    ] = None,
    slots: Annotated[int, typer.Option(min=0, max=SLOTS_MAX, help="Members that may run here at once.")] = 1,
    head_slots: Annotated[
        int, typer.Option(min=0, max=SLOTS_MAX, help="Ray heads to carry for clusters of several machines.")
    ] = 0,
    data_dir: DataDir = AGENT_DATA_DIR,
    cpus: Annotated[int | None, typer.Option(min=1, help="Processors to offer; default: all.")] = None,
    zone: Annotated[
        str, typer.Option(help="Machines with the same zone share a fate, such as an uplink.")
    ] = "",
) -> None:
    """Offer this machine to the network until Ctrl-C, which drains it first; a second Ctrl-C is immediate."""
    from orchestrator.cli.join import class_of, join_token, machine_name, simulated_models

    directory = data_dir.expanduser()
    models = simulated_models(simulate or [])
    if slots == 0 and head_slots == 0:
        raise usage_error("--slots and --head-slots: both are 0, so this machine would offer nothing")
    chosen = class_of(hardware_class, models)
    address = checked_address(control_plane, "--control-plane")
    called = machine_name(name)
    secret = join_token(token, token_file, os.environ, directory)

    from orchestrator.agent.daemon import AgentConfig, run_agent

    config = AgentConfig(
        control_plane=address,
        join_token=secret,
        name=called,
        hardware_class=chosen.value if chosen is not None else "",
        simulate=tuple(f"{model.name}x{count}" for model, count in models),
        head_slots=head_slots,
        slots=slots,
        data_dir=directory,
        cpus=cpus,
        zone=zone,
    )
    raise typer.Exit(run_agent(config))


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
            worker.inventory.isolation,
            worker.worker_id,
        )
        for worker in answer.workers
    ]
    columns = ("NAME", "SUPPLIER", "CLASS", "DEVICES", "HELD", "STATE", "ISOLATION", "WORKER")
    print_table(columns, rows, "no workers yet: offer a machine with `orch worker join`")


@app.command()
def status(data_dir: DataDir = AGENT_DATA_DIR, output: Output = OutputFormat.TABLE) -> None:
    """Show this machine's agent: as it knows itself, and as the network sees it where a token is at hand."""
    known = read_agent(data_dir.expanduser())
    seen = seen_worker(known["worker_id"])
    if output is OutputFormat.JSON:
        if seen is None:
            print_lines([json.dumps(known)])
        else:
            print_json(seen)
        return
    print_fields({name.replace("_", " "): known[name] for name in AGENT_FIELDS})
    if seen is not None:
        print_fields(worker_fields(seen))


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
    remarks = [
        *(("draining",) if worker.draining else ()),
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
        "isolation": inventory.isolation,
        "overlay": inventory.overlay,
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
