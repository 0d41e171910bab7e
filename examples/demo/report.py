"""What the demo shows while it runs and says at its end."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

from orchestrator.cli.output import clean

ACCURACY_MIN = 0.9


class DemoFailed(Exception):
    """The demo cannot go on; the message says what was awaited and what happened instead."""


@dataclass
class Outcome:
    """The last line of `--json`; written field by field as the demo learns them."""

    job_status: str = "NONE"
    accuracy: float = 0.0
    members: int = 0
    receipts: int = 0
    receipts_verified: int = 0
    billed_ms: int = 0
    ledger_balanced: bool = False
    microcredits_per_hour: int = 0
    """Of the job's machines together, before fees."""
    placement_explained: bool = False
    wait_explained: bool = False
    isolation: str = "unknown"
    seconds: float = 0.0

    def json_line(self) -> str:
        """One line for programs."""
        return json.dumps(asdict(self))


def failures(outcome: Outcome, *, printed: bool, wall_ms: int, devices: int) -> list[str]:
    """Everything that must hold and does not. `printed`: the Ray CLI showed the job's own output."""
    checks = {
        f"the job ended {outcome.job_status}, not SUCCEEDED": outcome.job_status == "SUCCEEDED",
        "`ray job submit` did not print the job's own output": printed,
        f"accuracy {outcome.accuracy} is below {ACCURACY_MIN}": outcome.accuracy >= ACCURACY_MIN,
        f"the job ran on {outcome.members} members, fewer than 2": outcome.members >= 2,
        f"{outcome.receipts} receipts for {outcome.members} members": outcome.receipts >= outcome.members,
        f"{outcome.receipts_verified} of {outcome.receipts} receipts verified": (
            0 < outcome.receipts == outcome.receipts_verified
        ),
        f"{outcome.billed_ms} ms are billed in {wall_ms} ms on {devices} devices": (
            0 < outcome.billed_ms <= wall_ms * devices
        ),
        "the postings re-added from the receipts differ from the ledger": outcome.ledger_balanced,
        "`orch job explain` did not tell why these machines, or what they cost": outcome.placement_explained,
        "`orch job explain` did not tell why a job waits, or what would have to change": outcome.wait_explained,
    }
    return [message for message, holds in checks.items() if not holds]


class Progress(AbstractContextManager["Progress"]):
    """Lines that stay, and one that changes: a spinner on a terminal, a line per change elsewhere.

    With `to_stderr` standard output is left to the JSON line.
    """

    def __init__(self, *, to_stderr: bool) -> None:
        self._console = Console(stderr=to_stderr, highlight=False)
        self._live = self._console.is_terminal
        self._spinner = Status("starting", console=self._console)
        self._shown = ""

    def __enter__(self) -> Self:
        if self._live:
            self._spinner.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._spinner.stop()

    def now(self, text: str) -> None:
        """What is going on at this moment."""
        if text == self._shown:
            return
        self._shown = text
        if self._live:
            self._spinner.update(Text(text))
        else:
            self._print(Text(f"… {text}"))

    def done(self, text: str) -> None:
        """A step that is behind us."""
        self._print(Text("✓ ", style="green") + Text(text))

    def wrong(self, text: str) -> None:
        """Something that must not be."""
        self._print(Text("✗ ", style="red") + Text(text))

    def title(self, text: str) -> None:
        """The head of what follows."""
        self._print(Text(text, style="bold"))

    def line(self, text: str) -> None:
        """A line as it came, such as one of the job's."""
        self._print(Text("  │ ", style="dim") + Text(clean(text)))

    def table(self, columns: tuple[str, ...], rows: Sequence[Sequence[str]]) -> None:
        """Rows under their heads."""
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 2), header_style="dim")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        self._console.print(table)

    def _print(self, text: Text) -> None:
        self._console.print(text, soft_wrap=True)
        sys.stdout.flush()
