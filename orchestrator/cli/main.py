"""`orch`, the one command: a file per noun; every failure becomes one line and an exit code.

Nothing is imported here that help does not need: `commands.py` loads the command that is called.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from orchestrator.cli import commands
from orchestrator.cli.errors import EXIT_INTERRUPTED, EXIT_REFUSED, EXIT_USAGE, CliError
from orchestrator.core.errors import RefusalCode, RefusedError

app = typer.Typer(
    name="orch",
    cls=commands.Commands,
    help=(
        "One Ray endpoint over everybody's GPUs."
        " ORCH_URL and ORCH_TOKEN say where the control plane is and who asks."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
commands.register(app)


SERVERS = (("serve",), ("worker", "join"))
"""Whose log may hold what gRPC's core has to say. Elsewhere it would stand between a person and the one line of an error;
it has to be told so before it is imported."""


def print_version(wanted: bool) -> None:
    """Answer `orch --version` before any command is asked for."""
    if wanted:
        from importlib.metadata import version

        sys.stdout.write(f"orch {version('ray-gpu-orchestrator')}\n")
        raise typer.Exit


@app.callback()
def orch(
    _version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Hold the options that stand before the command."""


def main() -> None:
    """Entry point of the command."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; a traceback is shown only where ORCH_DEBUG is set."""
    if (*arguments[:1],) not in SERVERS and (*arguments[:2],) not in SERVERS:
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        code = app(args=list(arguments), prog_name="orch", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has seen enough; what is still buffered must not be flushed into the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_REFUSED
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_INTERRUPTED
    except Exception as error:  # noqa: BLE001 -- the last resort: a person gets a line, never a traceback
        return report(error)
    return code if isinstance(code, int) else 0


def report(error: Exception) -> int:
    """Say on standard error what failed; return the exit code."""
    message, code = described(error)
    if message:
        from orchestrator.cli.output import clean

        sys.stderr.write(f"orch: {clean(message)}\n")
    if os.environ.get("ORCH_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    return code


def described(error: Exception) -> tuple[str, int]:
    """The line and the exit code for a failure; no line where help was shown instead of a command."""
    match error:
        case CliError():
            return error.message, error.exit_code
        case typer.TyperException():
            # The parser's enumerations put the library's own words before theirs.
            message = error.format_message().rstrip(".").replace("Value error, ", "")
            return message and f"{message}; see `{command_path(error)} --help`", EXIT_USAGE
        case RefusedError(code=RefusalCode.INVALID):
            return error.message, EXIT_USAGE
        case RefusedError():
            return error.message, EXIT_REFUSED
        case OSError(filename=str() as name, strerror=str() as reason):
            return f"{name}: {reason.lower()}; check the path and its owner", EXIT_USAGE
        case _:
            said = f"{type(error).__name__}: {error}".rstrip(": ")
            return f"unexpected failure: {said}; ORCH_DEBUG=1 shows where", EXIT_REFUSED


def command_path(error: typer.TyperException) -> str:
    """The command whose options were wrong, as typed."""
    context = getattr(error, "ctx", None)
    return str(getattr(context, "command_path", "orch"))


if __name__ == "__main__":
    main()
