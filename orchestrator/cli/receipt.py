"""`orch receipt`: what was billed, and the proof of it that needs nobody's word."""

from __future__ import annotations

import re
import sys
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
from orchestrator.cli.wording import hardware_class_name, instant, model_text, seconds_text, yes_no
from orchestrator.receipts.bundle import (
    BUNDLE_BYTES_MAX,
    BundleError,
    VerifiedBundle,
    verify_bundle,
)
from orchestrator.receipts.receipt import Receipt

app = typer.Typer(no_args_is_help=True, help="Receipts for GPU time, verifiable offline.")

# Hexadecimal, with the white space an editor may leave around it.
KEY_FILE_BYTES_MAX = 1024

_HEX_KEY = re.compile(r"[0-9a-fA-F]{64}")


@app.command("list")
def list_(
    job: Annotated[str, typer.Option(help="Only this job's receipts (its job id).")] = "",
    output: Output = OutputFormat.TABLE,
) -> None:
    """List receipts."""
    with connect() as client:
        answer = client.call(client.operator.ListReceipts, operator_pb2.ListReceiptsRequest(job_id=job))
    if output is OutputFormat.JSON:
        print_json(answer)
        return
    rows = [
        (
            receipt.receipt_id,
            receipt.job_id,
            receipt.supplier_id,
            receipt.worker_id,
            hardware_class_name(receipt.hardware_class),
            instant(receipt.interval_start),
            seconds_text(receipt.billed_ms),
            receipt.state,
        )
        for receipt in answer.receipts
    ]
    columns = ("RECEIPT", "JOB", "SUPPLIER", "WORKER", "CLASS", "FROM", "BILLED GPU TIME", "STATE")
    print_table(columns, rows, "no receipts yet: one is sealed when a job's lease ends or the hour is full")


@app.command()
def show(
    receipt_id: Annotated[str, typer.Argument(metavar="RECEIPT", help="The receipt's id.")],
    bundle: Annotated[
        Path | None,
        typer.Option(help="Write the bundle that verifies offline to this file; - for standard output."),
    ] = None,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Fetch one receipt with its proof; check it against the control plane's key and show it, or write it."""
    with connect() as client:
        answer = client.call(
            client.operator.GetReceipt, operator_pb2.GetReceiptRequest(receipt_id=receipt_id)
        )
        if bundle is not None:
            write_bundle(bundle, answer.bundle)
            return
        if output is OutputFormat.JSON:
            sys.stdout.write(answer.bundle.decode("utf-8", "replace").rstrip() + "\n")
            return
        status = client.call(client.operator.GetStatus, operator_pb2.GetStatusRequest())
    try:
        proved = verify_bundle(answer.bundle, parse_key(status.receipt_public_key, "receipt_public_key"))
    except BundleError as error:
        raise CliError(f"{receipt_id}: does not verify: {error}", error.exit_code) from None
    print_fields(receipt_fields(proved.receipt))


@app.command()
def verify(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Bundles; - for standard input.")],
    key: Annotated[
        str,
        typer.Option(help="The control plane's public key, hexadecimal or a file of it; see `orch status`."),
    ] = "",
) -> None:
    """Verify bundles offline: no network, no token, one line each.

    Exit code: 0 if all verify, otherwise that of the first failure: 10 malformed, 11 bad signature,
    12 unknown key, 13 inconsistent receipt, 14 statements do not cover the interval, 15 wrong type,
    16 statements missing or to spare, 17 a statement speaks of something else.
    """
    trusted = read_key(key) if key else None
    if trusted is None:
        note("no --key: the receipts are checked against the key they carry, which anybody could have made")
    first_failure = 0
    for file in files:
        try:
            line = verified_line(verify_bundle(read_bundle(file), trusted))
        except BundleError as error:
            line = f"FAILED {error} [exit {error.exit_code}]"
            first_failure = first_failure or error.exit_code
        print_lines([f"{file}: {line}"])
    raise typer.Exit(first_failure)


def verified_line(proved: VerifiedBundle) -> str:
    """What a bundle proved, on one line."""
    receipt = proved.receipt
    key = proved.control_key_id + ("" if proved.control_key_trusted else ", not pinned")
    return (
        f"OK {receipt.receipt_id} {seconds_text(receipt.billed_ms)} of {models_text(receipt)}"
        f" by {receipt.supplier_id}, {len(proved.statements)} statements, signed by {key}"
    )


def receipt_fields(receipt: Receipt) -> dict[str, str]:
    """A receipt's lines."""
    return {
        "receipt": receipt.receipt_id,
        "verified": yes_no(value=True),
        "job": receipt.job_id,
        "attempt": receipt.attempt_id,
        "cluster": receipt.cluster_id,
        "supplier": receipt.supplier_id,
        "worker": receipt.worker_id,
        "devices": models_text(receipt),
        "class": receipt.hardware_class,
        "epoch": str(receipt.epoch),
        "interval": f"{seconds_text(receipt.end_ms - receipt.start_ms)} from {receipt.start_ms} ms",
        "billed": seconds_text(receipt.billed_ms),
        "idle": seconds_text(receipt.idle_ms),
        "heartbeats": f"{receipt.heartbeats_received} of {receipt.heartbeats_expected}",
        "evidence": receipt.evidence_class,
    }


def models_text(receipt: Receipt) -> str:
    """The billed devices' models, never without saying that they do not exist."""
    return ", ".join(model_text(model, simulated=receipt.simulated) for model in receipt.device_models)


def write_bundle(path: Path, data: bytes) -> None:
    """Write the bundle, exactly as it came."""
    if str(path) == "-":
        sys.stdout.buffer.write(data)
        return
    try:
        path.write_bytes(data)
    except OSError as error:
        raise usage_error(f"--bundle: cannot write {path}: {(error.strerror or '').lower()}") from None
    note(f"wrote {path}; check it anywhere with `orch receipt verify {path} --key KEY`")


def read_bundle(path: Path) -> bytes:
    """At most one byte more than a bundle may have. A usage error where there is nothing to read."""
    try:
        if str(path) == "-":
            return sys.stdin.buffer.read(BUNDLE_BYTES_MAX + 1)
        with path.open("rb") as file:
            return file.read(BUNDLE_BYTES_MAX + 1)
    except OSError as error:
        raise usage_error(f"FILE: cannot read {path}: {(error.strerror or '').lower()}") from None


def read_key(text: str) -> bytes:
    """A raw public key from its hexadecimal form or from a file that holds it."""
    if _HEX_KEY.fullmatch(text):
        return bytes.fromhex(text)
    path = Path(text)
    try:
        with path.open("rb") as file:
            content = file.read(KEY_FILE_BYTES_MAX)
    except OSError as error:
        raise usage_error(
            f"--key: neither 64 hexadecimal characters nor a readable file: {path}:"
            f" {(error.strerror or '').lower()}"
        ) from None
    return parse_key(content.decode("ascii", "replace"), "--key")


def parse_key(text: str, name: str) -> bytes:
    """64 hexadecimal characters as the 32 bytes they stand for."""
    stripped = text.strip()
    if not _HEX_KEY.fullmatch(stripped):
        raise usage_error(f"{name}: 64 hexadecimal characters are expected; `orch status` shows the key")
    return bytes.fromhex(stripped)
