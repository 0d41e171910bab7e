"""Settings from files and variables, for every command that has any: read alike, and wrong ones named alike.

A file of settings is ours alone, so a key that is not known there is refused; see ``variables`` for the environment.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ValidationError

from orchestrator.cli.errors import usage_error
from orchestrator.cli.output import clean
from orchestrator.cli.settings import read_secret
from orchestrator.core.supply.catalogue import nearest

PREFIX = "ORCH_"

FILE_BYTES_MAX = 1 << 20
"""A file of settings has a kilobyte; what is longer is some other file."""

SHOWN_CHARACTERS = 80
"""Of a name that somebody mistyped: enough to find it by."""


def listed(value: Any) -> Any:
    """A variable holds a list as words between commas."""
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value


def _named(value: Any) -> Any:
    if isinstance(value, str) and (not value.strip() or "\0" in value):
        raise ValueError("is empty, or no path; name one, or leave the setting out")
    return value


SettingPath = Annotated[Path, BeforeValidator(_named)]
"""A path that somebody meant: an empty one would be the directory of whoever started this."""


def read_toml(path: Path) -> dict[str, Any]:
    """A file of settings. Raises a usage error that names it."""
    try:
        with path.expanduser().open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise usage_error(f"--config: cannot read {path}: {(error.strerror or '').lower()}") from None
    if len(data) > FILE_BYTES_MAX:
        raise usage_error(f"--config: {path} is too long for a file of settings; name another one")
    try:
        return tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        # The byte itself may be of a secret.
        raise usage_error(f"--config: {path} is no TOML: byte {error.start} is not UTF-8") from None
    except ValueError as error:
        raise usage_error(f"--config: {path} is no TOML: {error}") from None


def with_secrets(
    values: Mapping[str, Any], names: Iterable[str], spelt: Callable[[str], str]
) -> dict[str, Any]:
    """The settings with each secret that was given by a file of its own: of ``name`` by ``name_file``.

    ``spelt`` is how a setting is called in errors. Raises a usage error, which never repeats a secret.
    """
    filled = dict(values)
    for name in names:
        by_file = f"{name}_file"
        path = values.get(by_file)
        if not isinstance(path, str | Path) or not str(path).strip():
            continue
        if values.get(name):
            raise usage_error(
                f"{name} and {by_file}: give one of the two, better the file ({spelt(by_file)})"
            )
        filled[name] = read_secret(Path(path).expanduser(), f"{by_file} ({spelt(by_file)})")
    return filled


def spelt_by_file(values: Mapping[str, Any], spelt: Callable[[str], str]) -> Callable[[str], str]:
    """How settings are called in errors, where some of them may have come by a file of their own."""

    def called(name: str) -> str:
        path = values.get(f"{name}_file")
        return f"read from {path}; {spelt(f'{name}_file')}" if path else spelt(name)

    return called


def unknown(name: str, known: Iterable[str], command: str) -> str:
    """What to say of a key that is no setting."""
    shown = clean(name[:SHOWN_CHARACTERS])
    return f"{shown}: no such setting; did you mean {nearest(shown, sorted(known))}? (`{command} --help` lists them)"


def complaint(error: ValidationError, known: Iterable[str], command: str, spelt: Callable[[str], str]) -> str:
    """One line: the first setting that is wrong, how else it is spelt, and what is wrong with it; never its value."""
    first = error.errors(include_input=False, include_url=False)[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        return unknown(name, known, command)
    message = " ".join(str(first["msg"]).removeprefix("Value error, ").split())
    return f"{name}: {message} ({spelt(name)})" if name else message
