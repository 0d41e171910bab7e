"""What commands print: tables for people, JSON for programs; remarks go to standard error.

Names, messages and entrypoints come from strangers, so nothing here interprets markup and control characters
never reach the terminal.
"""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Annotated

import typer
from google.protobuf import json_format
from google.protobuf.message import Message
from rich.console import Console
from rich.table import Table
from rich.text import Text

PIPE_WIDTH = 4096
"""Columns where no terminal says how many there are: a reader of a pipe wants whole lines."""
NONE = "–"
"""Stands where there is nothing to show."""


class OutputFormat(StrEnum):
    """For whom a command prints."""

    TABLE = "table"
    JSON = "json"


Output = Annotated[
    OutputFormat, typer.Option("--output", "-o", help="A table for people or JSON for programs.")
]


def clean(text: str) -> str:
    """The text on one line, without anything that could steer a terminal."""
    return "".join(" " if unicodedata.category(character)[0] in "CZ" else character for character in text)


def print_json(message: Message) -> None:
    """The message as one JSON object: names of the protos, every field present, 64-bit integers as text."""
    value = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], empty: str) -> None:
    """Rows under their heads; where there are none, `empty` says what to do about it."""
    if not rows:
        note(empty)
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for number, column in enumerate(columns):
        # The first names the thing, to be copied into the next command.
        table.add_column(column, overflow="fold", no_wrap=number == 0)
    for row in rows:
        table.add_row(*(Text(clean(cell) or NONE) for cell in row))
    plain_console().print(table)


def print_fields(fields: Mapping[str, str]) -> None:
    """One thing, a line for each of its fields."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in fields.items():
        table.add_row(Text(name), Text(clean(value) or NONE))
    plain_console().print(table)


STYLES = {"well": "bold green", "critical": "bold red", "warning": "bold yellow", "info": "dim"}
"""Of verdicts and severities, where the terminal has colours."""


def print_screen(
    headline: str,
    verdict: str,
    findings: Iterable[tuple[str, str, str]],
    fields: Iterable[tuple[str, str]],
) -> None:
    """A headline; findings as (severity, text, what to do); then fields, a line for each that has a text."""
    console = plain_console()
    console.print(Text(clean(headline), style=STYLES.get(verdict, "bold")))
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for severity, text, action in findings:
        grid.add_row(Text(severity, style=STYLES.get(severity, "")), Text(clean(text)))
        if action:
            grid.add_row("", Text(f"→ {clean(action)}", style="dim"))
    for name, text in fields:
        if text:
            grid.add_row(Text(name, style="bold"), Text(clean(text)))
    console.print(grid)


def print_lines(lines: Sequence[str]) -> None:
    """Plain lines, each kept on one."""
    for line in lines:
        sys.stdout.write(clean(line).rstrip() + "\n")


def note(text: str) -> None:
    """A remark beside the result."""
    sys.stderr.write(clean(text) + "\n")


def plain_console() -> Console:
    """Follows whatever standard output is now; full width and no colour where it is no terminal."""
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return Console(file=sys.stdout, width=width, highlight=False, soft_wrap=False)
