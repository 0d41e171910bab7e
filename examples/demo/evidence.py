"""After the job: who ran it and why, who is paid, and that all of it holds without trusting anybody."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.demo.network import BIN, Network, child_environment
from examples.demo.operations import wait_for
from examples.demo.report import DemoFailed, Progress
from orchestrator.api.v1 import operator_pb2
from orchestrator.cli.client import Client
from orchestrator.cli.wording import hardware_class_name, seconds_text

RECEIPTS_DEADLINE_S = 60.0
"""The last statements come with the agents' next reports, seconds after the job's end."""
READD = Path(__file__).with_name("readd.py")
POSTED = "posted"


@dataclass(frozen=True)
class Verified:
    """What the offline checks found."""

    verified: int
    ledger_balanced: bool


def orch(network: Network, *arguments: str, online: bool = True) -> subprocess.CompletedProcess[str]:
    """Run `orch` as anybody would; offline it knows neither address nor token."""
    environment: dict[str, str] = {"HOME": str(network.folder)}
    if online:
        environment |= {
            "ORCH_URL": network.addresses.control,
            "ORCH_TOKEN_FILE": str(network.admin_token_file),
        }
    return subprocess.run(
        [str(BIN / "orch"), *arguments],
        env=child_environment(environment),
        capture_output=True,
        text=True,
        check=False,
    )


def orch_json(network: Network, *arguments: str) -> dict[str, Any]:
    """The JSON that a command prints. Raises DemoFailed with the command's own words."""
    answer = orch(network, *arguments, "--output", "json")
    if answer.returncode != 0:
        raise DemoFailed(f"`orch {' '.join(arguments)}` failed: {answer.stderr.strip()}")
    value = json.loads(answer.stdout)
    if not isinstance(value, dict):
        raise DemoFailed(f"`orch {' '.join(arguments)}` printed no JSON object")
    return value


def show_members(network: Network, progress: Progress, job_id: str) -> tuple[str, list[dict[str, Any]]]:
    """The job's final status and the members of its last attempt that gave devices."""
    job = orch_json(network, "job", "show", job_id)["job"]
    attempts = job["attempts"]
    status = str(job["status"]).removeprefix("JOB_STATUS_")
    if not attempts:
        raise DemoFailed(f"job {job_id} is {status} without an attempt: {job['message']}")
    last = attempts[-1]
    progress.title(f"members of {last['attempt_id']}")
    rows = []
    for member in last["members"]:
        simulated = " (simulated)" if member["simulated"] else ""
        devices = ", ".join(f"{device}{simulated}" for device in member["device_ids"]) or "–"
        rows.append((member["worker_name"], member["role"], devices))
    progress.table(("worker", "role", "devices"), rows)
    return status, [member for member in last["members"] if member["device_ids"]]


def wait_receipts(
    client: Client, network: Network, progress: Progress, job_id: str, members: int
) -> list[operator_pb2.Receipt]:
    """Until each member's receipt is sealed and in the books."""
    found: list[operator_pb2.Receipt] = []

    def look() -> str | None:
        request = operator_pb2.ListReceiptsRequest(job_id=job_id)
        found[:] = client.call(client.operator.ListReceipts, request).receipts
        workers = {receipt.worker_id for receipt in found}
        posted = sum(receipt.state == POSTED for receipt in found)
        if len(workers) >= members and posted == len(found):
            return None
        return f"{len(found)} for {len(workers)} of {members} members, {posted} in the ledger"

    wait_for(network, progress, "receipts", RECEIPTS_DEADLINE_S, look)
    return found


def show_suppliers(
    progress: Progress, receipts: list[operator_pb2.Receipt], workers: list[operator_pb2.Worker]
) -> None:
    """GPU time per supplier."""
    names = {worker.supplier_id: worker.supplier_name for worker in workers}
    sums: dict[tuple[str, str], int] = {}
    for receipt in receipts:
        key = (
            names.get(receipt.supplier_id, receipt.supplier_id),
            hardware_class_name(receipt.hardware_class),
        )
        sums[key] = sums.get(key, 0) + receipt.billed_ms
    progress.title("GPU time per supplier")
    rows = [(name, kind, seconds_text(billed_ms)) for (name, kind), billed_ms in sorted(sums.items())]
    progress.table(("supplier", "class", "GPU time"), rows)


def check_receipts(
    client: Client, network: Network, progress: Progress, receipts: list[operator_pb2.Receipt]
) -> Verified:
    """Fetch every bundle, verify each offline, and add the postings up again beside the ledger."""
    folder = network.folder / "bundles"
    folder.mkdir(exist_ok=True)
    bundles = [folder / f"{receipt.receipt_id}.json" for receipt in receipts]
    for receipt, path in zip(receipts, bundles, strict=True):
        request = operator_pb2.GetReceiptRequest(receipt_id=receipt.receipt_id)
        path.write_bytes(client.call(client.operator.GetReceipt, request).bundle)
    key = client.call(client.operator.GetStatus, operator_pb2.GetStatusRequest()).receipt_public_key
    names = [str(path) for path in bundles]
    checked = orch(network, "receipt", "verify", "--key", key, *names, online=False)
    progress.title("each receipt verified offline")
    for line in (*checked.stdout.splitlines(), *checked.stderr.splitlines()):
        progress.line(line.removeprefix(f"{folder}/"))
    verified = sum(": OK " in line for line in checked.stdout.splitlines())
    balances = folder / "balances.json"
    balances.write_text(json.dumps(orch_json(network, "ledger", "balance")))
    readded = subprocess.run(
        [sys.executable, "-I", str(READD), "--balances", str(balances), *names],
        capture_output=True,
        text=True,
        check=False,
    )
    progress.title("postings re-added from the receipts")
    for line in (*readded.stdout.splitlines(), *readded.stderr.splitlines()):
        progress.line(line)
    return Verified(
        verified=verified if checked.returncode == 0 else min(verified, len(names) - 1),
        ledger_balanced=readded.returncode == 0,
    )
