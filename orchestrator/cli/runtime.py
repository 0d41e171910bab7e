"""`orch runtime`: what every member of a cluster has, before a job relies on it."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from orchestrator.adapters.runtimes import Runtime
from orchestrator.api.v1 import common_pb2, jobs_pb2
from orchestrator.cli.client import connect
from orchestrator.cli.errors import CliError, usage_error
from orchestrator.cli.output import Output, OutputFormat, print_fields, print_json, print_lines, print_table

app = typer.Typer(
    no_args_is_help=True, help="The Python, Ray and packages that a job finds on every machine."
)

DIGEST_SHOWN = 12
"""Characters of a digest: as many as `orch.runtime` takes for the whole."""


@app.command("list")
def list_(output: Output = OutputFormat.TABLE) -> None:
    """List the runtimes that a job may name in `orch.runtime`."""
    with connect() as client:
        answer = client.call(client.jobs.ListRuntimes, jobs_pb2.ListRuntimesRequest())
    if output is OutputFormat.JSON:
        print_json(answer)
        return
    rows = [
        (
            runtime.name,
            runtime.python,
            runtime.ray_version,
            runtime.digest[:DIGEST_SHOWN],
            # The network lists first what a job has that names none.
            "yes" if position == 0 else "",
            ", ".join(runtime.packages),
        )
        for position, runtime in enumerate(answer.runtimes)
    ]
    columns = ("RUNTIME", "PYTHON", "RAY", "DIGEST", "DEFAULT", "PACKAGES")
    print_table(columns, rows, "no runtimes: this network runs jobs on the machines' own Python only")


@app.command()
def show(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Its name, its digest, or 12 characters of that.")
    ],
    lock: Annotated[
        bool, typer.Option("--lock", help="Print its lock: every package with its hashes, for pip or uv.")
    ] = False,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Show a runtime with every package in it."""
    if lock and output is OutputFormat.JSON:
        raise usage_error("--lock and --output json: the JSON holds the lock already; leave one out")
    with connect() as client:
        answer = client.call(client.jobs.GetRuntime, jobs_pb2.GetRuntimeRequest(name=name))
    if output is OutputFormat.JSON:
        print_json(answer)
        return
    runtime = checked(answer.runtime)
    if lock:
        sys.stdout.write(runtime.lock.decode())
        return
    locked = runtime.locked
    print_fields(
        {
            "runtime": runtime.name,
            "digest": runtime.digest,
            "Python": runtime.python,
            "Ray": runtime.ray_version,
            "asked for": ", ".join(runtime.packages),
            "packages": str(len(locked)),
        }
    )
    print_lines([f"  {one}" for one in locked])


def checked(told: common_pb2.Runtime) -> Runtime:
    """The runtime that was told, if its lock is the one that its digest names. Raises CliError."""
    runtime = Runtime(told.name, told.python, told.ray_version, told.lock, tuple(told.packages))
    try:
        whole = runtime.digest == told.digest and bool(runtime.locked)
    except ValueError:
        whole = False
    if not whole:
        raise CliError(
            f"the lock of runtime {told.name} is not the one that its digest names; run `orch` and `orch serve`"
            " of one version"
        )
    return runtime
