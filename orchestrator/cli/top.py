"""`orch top`: what keeps the network busy, and what is in trouble, on a screen that follows."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from orchestrator.cli.errors import usage_error
from orchestrator.cli.output import Output, OutputFormat

INTERVAL_S = 2.0
"""Agents measure each few seconds, and people read no faster."""

INTERVAL_S_MIN = 0.2
"""Each look costs the control plane some milliseconds."""

INTERVAL_S_MAX = 3_600.0


class Sort(StrEnum):
    """What workers are put in order by."""

    TROUBLE = "trouble"
    GPU = "gpu"
    MEMORY = "memory"
    TEMPERATURE = "temperature"
    SILENCE = "silence"
    AGE = "age"
    NAME = "name"


class Class(StrEnum):
    """Hardware classes, as workers have them."""

    CONSUMER = "consumer"
    MINER = "miner"
    DATACENTER = "datacenter"
    APPLE = "apple"
    CPU = "cpu"


def top(
    interval: Annotated[float, typer.Option(help="Seconds between two looks.")] = INTERVAL_S,
    sort: Annotated[Sort, typer.Option(help="What workers are put in order by.")] = Sort.TROUBLE,
    hardware_class: Annotated[
        Class | None, typer.Option("--class", help="Only workers and clusters of this hardware class.")
    ] = None,
    supplier: Annotated[str, typer.Option(help="Only workers of this supplier, by name or id.")] = "",
    once: Annotated[bool, typer.Option("--once", help="Look once, print it, and end.")] = False,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Follow workers, clusters and the queue on one screen until q or Ctrl-C.

    Where standard output is no terminal, or with --output json, each look is printed as one line of JSON instead.
    """
    if not INTERVAL_S_MIN <= interval <= INTERVAL_S_MAX:
        raise usage_error(f"--interval: give {INTERVAL_S_MIN:g} to {INTERVAL_S_MAX:g} seconds")
    # Only now: help needs none of it.
    from orchestrator.cli.topping import Asked, follow

    asked = Asked(sort.value, hardware_class.value if hardware_class is not None else "", supplier)
    follow(asked, interval, once=once, output=output)
