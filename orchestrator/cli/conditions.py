"""What machines are to be, as it is typed: options that mean what the keys of a job's metadata mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated

import typer

from orchestrator.cli.errors import usage_error
from orchestrator.core.requests import PREFIX

Gpus = Annotated[str | None, typer.Option(help="How many; 0 for CPU work. [1]")]
Model = Annotated[str | None, typer.Option(help="Such as RTX4090.")]

SHOWN_MAX = 80
"""Of what was typed wrongly, as much as an error repeats."""


def conditions(named: Mapping[str, str | None], more: Iterable[str] = ()) -> dict[str, str]:
    """Metadata of what was given by options of its own and, ``more``, as KEY=VALUE. Raises a usage error."""
    found = {key: value for key, value in named.items() if value is not None}
    for text in more:
        key, given, value = text.partition("=")
        key = PREFIX + key.strip().removeprefix(PREFIX)
        if not given or key == PREFIX:
            raise usage_error(f"--set: {text[:SHOWN_MAX]!r} is not KEY=VALUE, such as max_rtt_ms=20")
        if key in found:
            raise usage_error(f"--set: {key} is given twice")
        found[key] = value.strip()
    return found
