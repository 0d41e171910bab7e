"""Which commands `orch` has. Each is loaded when it is asked for: help, a typing error or one command wait for no other.

The words beside each name are shown by `orch --help`, which therefore loads none of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command, get_group

ROOM = "orchestrator.cli"


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a command is: a group's Typer or a single command's function, in a module of this room."""

    module: str
    attribute: str
    help: str


def _group(module: str, words: str) -> Entry:
    return Entry(module, "app", words)


COMMANDS = {
    "serve": Entry("serve", "serve", "Run the control plane until Ctrl-C; a second Ctrl-C is immediate."),
    "status": Entry("status", "status", "Say whether the network is well, and show it on one screen."),
    "top": Entry("top", "top", "Follow workers, clusters and the queue on one screen until q or Ctrl-C."),
    "quote": Entry(
        "quote",
        "quote",
        "Say what machines would cost and whether they can be had now; nothing is held, and asks move.",
    ),
    "simulate": Entry(
        "simulate",
        "simulate",
        "Run a trace of jobs on a fleet with the scheduler that the network itself uses, without any network.",
    ),
    "worker": _group("workers", "Workers: machines that suppliers offer."),
    "tenant": _group("tenant", "Tenants: who submits jobs."),
    "token": _group("token", "Tokens of tenants, suppliers and operators."),
    "job": _group("job", "Jobs; tenants submit them with `ray job submit`."),
    "reserve": _group("reserve", "Reservations: machines kept for a tenant in a window of time."),
    "cluster": _group("cluster", "Ray clusters, each of one tenant."),
    "group": _group("group", "Groups: workers alike and near each other."),
    "runtime": _group("runtime", "The Python, Ray and packages that a job finds on every machine."),
    "receipt": _group("receipt", "Receipts for GPU time, verifiable offline."),
    "ledger": _group("ledger", "The reward ledger: double-entry books fed by receipts."),
    "authority": _group("authority", "The network's certificate authority."),
}


class Commands(TyperGroup):
    """`orch` itself: what it lists are stand-ins, and the one that is called is loaded."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The command that these arguments name. Raises a usage error where there is none."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command if name is None else load(name), rest


def register(app: typer.Typer) -> None:
    """Have the app list them all."""
    for name, entry in COMMANDS.items():
        app.command(name, help=entry.help)(_stand_in)


def load(name: str) -> Any:
    """The command of this name, as Typer runs it."""
    entry = COMMANDS[name]
    found = getattr(import_module(f"{ROOM}.{entry.module}"), entry.attribute)
    if isinstance(found, typer.Typer):
        command: Any = get_group(found)
    else:
        alone = typer.Typer(add_completion=False)
        alone.command(name)(found)
        command = get_command(alone)
    command.name = name
    return command


def _stand_in() -> None:
    """Never runs: the group loads what it stands for."""
