"""Variables of ours in the environment: which there are, and which of those that are set no command reads.

The environment belongs to many: an unknown variable of ours is pointed out and left aside, and those that Kubernetes sets
after the names of services, such as ORCH_SERVICE_HOST for a service called "orch", are left alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from orchestrator.cli import serve_settings, worker_settings
from orchestrator.cli.configuration import PREFIX, SHOWN_CHARACTERS
from orchestrator.cli.output import clean, note
from orchestrator.core.supply.catalogue import nearest

SERVICE_NAME = re.compile(
    rf"{PREFIX}(?:[A-Z0-9_]+_)?"
    r"(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?|PORT|PORT_[0-9]+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)"
)
"""How Kubernetes names the variables by which a pod finds services of its namespace. No setting may be named so."""

EVERY_COMMANDS = (
    "ORCH_CA_FILE",
    "ORCH_DEBUG",
    "ORCH_JOIN_TOKEN",
    "ORCH_MEMBER_ID",
    "ORCH_NODE_NAME",
    "ORCH_NOTICE_FILE",
    "ORCH_TOKEN",
    "ORCH_TOKEN_FILE",
    "ORCH_URL",
    "ORCH_WORKER_CONFIG",
)
"""Variables that are no settings of one command: of all commands, of a pod, or what jobs find in theirs."""


MEANT = {"ORCH_JOIN_TOKEN_FILE": "ORCH_WORKER_TOKEN_FILE"}
"""Guesses that follow from our own names, and would be led astray by spelling."""


def point_out_unknown(environ: Iterable[str]) -> None:
    """Say which variables of ours no command reads. They are not refused: an older version must start beside them."""
    known = known_variables()
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in known and SERVICE_NAME.fullmatch(name) is None:
            shown = clean(name[:SHOWN_CHARACTERS])
            hint = MEANT.get(name) or nearest(shown, sorted(known))
            note(f"{shown}: no such setting, ignored; did you mean {hint}?")


def known_variables() -> frozenset[str]:
    """Every variable that some command reads."""
    serve = (serve_settings.variable_of(name) for name in serve_settings.ServeSettings.model_fields)
    worker = (worker_settings.variable_of(name) for name in worker_settings.WorkerSettings.model_fields)
    return frozenset((*EVERY_COMMANDS, *serve, *worker))
