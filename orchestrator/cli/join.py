"""What a supplier types to offer a machine, checked before the agent starts."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestrator.cli.errors import usage_error
from orchestrator.cli.output import note
from orchestrator.cli.settings import AGENT_FILE, checked_token, read_token
from orchestrator.core.catalogue import MODELS, Model, find_model, nearest
from orchestrator.core.fleet import HardwareClass

JOIN_VARIABLE = "ORCH_JOIN_TOKEN"
NAME_CHARACTERS_MAX = 63
"""As long as a host's name may be, which is the default."""

_SIMULATE = re.compile(r"(?P<model>.+)x(?P<count>[1-9][0-9]{0,2})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def join_token(
    token: str | None, token_file: Path | None, environ: Mapping[str, str], data_dir: Path
) -> str | None:
    """The join token from its one source; None where this machine has joined before and needs none."""
    if token is not None and token_file is not None:
        raise usage_error("--token and --token-file: give one of the two, better --token-file")
    if token is not None:
        note(
            "warning: --token is visible to every user of this machine in its process list;"
            f" use --token-file or {JOIN_VARIABLE}"
        )
        return checked_token(token, "--token")
    if token_file is not None:
        return read_token(token_file, "--token-file")
    value = environ.get(JOIN_VARIABLE, "")
    if value.strip():
        return checked_token(value, JOIN_VARIABLE)
    if (data_dir / AGENT_FILE).exists():
        return None
    raise usage_error(
        f"no join token: give --token-file or {JOIN_VARIABLE}; the operator makes one with"
        " `orch token create --role supplier --subject YOUR-NAME`"
    )


def simulated_models(texts: Sequence[str]) -> list[tuple[Model, int]]:
    """Models of the catalogue and how many of each, from MODELxN."""
    found = []
    for text in texts:
        match = _SIMULATE.fullmatch(text.strip())
        if match is None:
            raise usage_error(f"--simulate: MODELxN such as RTX4090x1 is expected, not {text!r}")
        model = find_model(match["model"])
        if model is None:
            guess = nearest(match["model"], list(MODELS))
            raise usage_error(
                f"--simulate: unknown model {match['model']!r}; did you mean {guess}x{match['count']}?"
            )
        found.append((model, int(match["count"])))
    return found


def class_of(text: str, models: Sequence[tuple[Model, int]]) -> HardwareClass | None:
    """The machine's class: as chosen, else the first that offers every simulated model, else what its GPUs say."""
    chosen = chosen_class(text) if text else None
    if not models:
        return chosen
    for wanted in HardwareClass if chosen is None else (chosen,):
        if all(wanted in model.classes for model, _ in models):
            return wanted
    if chosen is None:
        raise usage_error("--simulate: no hardware class offers all of these; a machine has one class")
    name, classes = next((model.name, model.classes) for model, _ in models if chosen not in model.classes)
    raise usage_error(f"--hardware-class: {name} belongs to {', '.join(sorted(classes))}, not {chosen}")


def chosen_class(text: str) -> HardwareClass:
    """A class by its name."""
    try:
        return HardwareClass(text.lower())
    except ValueError:
        known = [wanted.value for wanted in HardwareClass]
        raise usage_error(
            f"--hardware-class: one of {', '.join(known)} is expected, not {text!r};"
            f" did you mean {nearest(text, known)}?"
        ) from None


def machine_name(name: str) -> str:
    """The name to show, by default the host's."""
    found = name or socket.gethostname()
    if len(found) > NAME_CHARACTERS_MAX or not _NAME.fullmatch(found):
        raise usage_error(
            f"--name: letters, digits, dots, dashes and underscores are allowed,"
            f" at most {NAME_CHARACTERS_MAX}, not {found!r}"
        )
    return found
