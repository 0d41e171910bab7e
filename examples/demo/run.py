"""The main job on this machine, end to end: `make demo`.

A control plane, a head host and five agents of several suppliers; a tenant's unmodified `ray job submit` of
examples/train_digits on the consumer machines; then members, GPU time, receipts verified offline and books
re-added; and why that job ran where it ran, and why another one has to wait. Exit code
0 only where all of it holds. Whatever happens, no process and no file is left behind.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from types import FrameType

# Before gRPC is loaded: it would warn of every child that is started beside its threads.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from examples.demo.evidence import check_receipts, show_members, show_suppliers, wait_receipts
from examples.demo.explaining import explain_placed, explain_waiting
from examples.demo.network import Network
from examples.demo.operations import (
    create_tenant,
    operator_client,
    show_workers,
    start_agents,
    wait_live,
    wait_serving,
    watch_job,
)
from examples.demo.report import DemoFailed, Outcome, Progress, failures
from examples.demo.standing import Standing
from examples.demo.submission import METADATA, RaySubmit
from examples.demo.watching import start_prometheus
from orchestrator.api.v1 import operator_pb2
from orchestrator.cli.client import Client
from orchestrator.cli.errors import EXIT_INTERRUPTED, CliError

KEEP_POLL_S = 1.0


def run(network: Network, progress: Progress, outcome: Outcome, standing: Standing | None) -> list[str]:
    """Everything in order; returns what does not hold. Fills in `outcome` as far as it comes.

    With `standing` the network is to stay up, and is watched from before the job on.
    """
    progress.now("starting the control plane")
    network.start_serve()
    wait_serving(network, progress)
    progress.done(f"control plane at {network.addresses.control}, gateway at {network.addresses.gateway}")
    with operator_client(network) as client:
        start_agents(client, network)
        workers = wait_live(client, network, progress)
        outcome.isolation = client.call(client.operator.GetStatus, operator_pb2.GetStatusRequest()).isolation
        progress.done(f"{len(workers)} workers live, isolation {outcome.isolation}")
        show_workers(progress, workers)
        if standing is not None:
            # Now its first look at the lists finds everybody, and it sees the job from the beginning.
            standing.prometheus = start_prometheus(network, progress)
        return run_job(client, network, progress, outcome, workers)


def run_job(
    client: Client,
    network: Network,
    progress: Progress,
    outcome: Outcome,
    workers: list[operator_pb2.Worker],
) -> list[str]:
    """Submit, watch, and gather the evidence; returns what does not hold."""
    wanted = " ".join(f"{name}={value}" for name, value in METADATA.items())
    progress.title(f"ray job submit --working-dir examples/train_digits -- python train.py   ({wanted})")
    secret = create_tenant(client)
    submit = RaySubmit(network.addresses.gateway, secret)
    try:
        job_id = watch_job(client, network, progress, submit)
    finally:
        submit.end()
    outcome.job_status, members = show_members(network, progress, job_id)
    outcome.accuracy = submit.accuracy or 0.0
    outcome.members = len(members)
    devices = sum(len(member["device_ids"]) for member in members)
    code = submit.poll()
    if outcome.job_status == "SUCCEEDED":
        receipts = wait_receipts(client, network, progress, job_id, outcome.members)
        outcome.receipts = len(receipts)
        outcome.billed_ms = sum(receipt.billed_ms for receipt in receipts)
        show_suppliers(progress, receipts, workers)
        verified = check_receipts(client, network, progress, receipts)
        outcome.receipts_verified = verified.verified
        outcome.ledger_balanced = verified.ledger_balanced
        outcome.microcredits_per_hour, outcome.placement_explained = explain_placed(
            client, network, progress, job_id
        )
        outcome.wait_explained = explain_waiting(client, network, progress, secret)
    wrong = failures(outcome, printed=submit.accuracy is not None, wall_ms=submit.wall_ms, devices=devices)
    return [*([f"`ray job submit` exited with {code}"] if code else []), *wrong]


def wait_for_interrupt(
    network: Network, progress: Progress, standing: Standing, *, for_programs: bool
) -> None:
    """Leave the network up for a look around; whoever reads where it is may end it from that line on."""
    with contextlib.suppress(KeyboardInterrupt):
        if for_programs:
            print(standing.json_line(network), flush=True)
        standing.show(network, progress)
        while True:
            network.check_alive()
            time.sleep(KEEP_POLL_S)


def interrupt(_signal: int, _frame: FrameType | None) -> None:
    """SIGTERM and a lost terminal are Ctrl-C, too."""
    raise KeyboardInterrupt


def clean_up(network: Network, progress: Progress) -> None:
    """End it all; a second Ctrl-C ends it at once."""
    progress.now("stopping: agents drain, then the control plane (Ctrl-C: at once)")
    try:
        network.stop()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        network.kill()


def show_logs(network: Network, progress: Progress) -> None:
    """The end of every log, while the files are still there."""
    for child in network.children:
        progress.title(f"{child.name}: last lines of its log")
        for line in child.last_lines():
            progress.line(line)


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description="Run the main job on this machine, end to end.")
    parser.add_argument(
        "--json", action="store_true", help="end in one JSON line; all else to standard error"
    )
    parser.add_argument(
        "--keep",
        action="store_true",
        help="leave the network up until Ctrl-C, with Prometheus beside it; with --json a line of addresses first",
    )
    return parser.parse_args()


def main() -> int:
    """Run the demo; 0 where everything holds, 1 where not, 130 where it was interrupted."""
    chosen = arguments()
    began_s = time.monotonic()
    # SIGINT as well: a shell without job control has its background commands ignore it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    outcome = Outcome()
    standing = Standing() if chosen.keep else None
    with Progress(to_stderr=chosen.json) as progress:
        network = Network()
        code = 1
        try:
            wrong = run(network, progress, outcome, standing)
            for message in wrong:
                progress.wrong(message)
            code = 1 if wrong else 0
            if standing is not None:
                wait_for_interrupt(network, progress, standing, for_programs=chosen.json)
        except KeyboardInterrupt:
            code = EXIT_INTERRUPTED
        except (DemoFailed, CliError) as error:
            progress.wrong(str(error))
        finally:
            if code == 1:
                show_logs(network, progress)
            clean_up(network, progress)
        outcome.seconds = round(time.monotonic() - began_s, 1)
        if code == 0:
            progress.done(f"everything holds, in {outcome.seconds:g} s; nothing is left running")
    if chosen.json:
        print(outcome.json_line(), flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
