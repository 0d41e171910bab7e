"""What a supplier sets for `orch worker`: by flag, else by variable, else in a file, else by default."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, SettingsConfigDict

from orchestrator.cli.errors import usage_error
from orchestrator.cli.output import note
from orchestrator.cli.settings import DEFAULT_URL
from orchestrator.cli.worker import AGENT_DATA_DIR
from orchestrator.core.catalogue import nearest

PREFIX = "ORCH_WORKER_"
URL_VARIABLE = "ORCH_URL"
"""The control plane's address, which every command reads."""
CONFIG_VARIABLE = f"{PREFIX}CONFIG"
NOT_IN_FILES = frozenset({CONFIG_VARIABLE})

SLOTS_MAX = 64
"""More members than any one machine has devices."""
CPUS_MAX = 4096
"""Above the largest machine there is."""
FILE_BYTES_MAX = 1 << 20
"""A file of settings has a kilobyte; what is longer is some other file."""


def _listed(value: Any) -> Any:
    """A variable holds a list as words between commas."""
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value


Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed)]
Slots = Annotated[int, Field(ge=0, le=SLOTS_MAX)]


class WorkerSettings(BaseSettings):
    """Everything about this machine and its owner's terms, as typed; the meaning is checked by `cli.join`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    control_plane: str = DEFAULT_URL
    token_file: Path | None = None
    open_enrolment: bool = False
    ca_pin: str = ""
    name: str = ""
    simulate: Words = ()
    gpus: bool = True
    slots: Slots = 1
    head_slots: Slots = 0
    cpus: Annotated[int, Field(ge=1, le=CPUS_MAX)] | None = None
    zone: str = ""
    isolation: Literal["auto", "none", "box", "container"] = "auto"
    overlay: Literal["auto", "none", "nebula"] = "auto"
    overlay_transport: Literal["auto", "udp", "tls"] = "auto"
    egress: Literal["internet", "none"] = "internet"
    runtimes_dir: Path | None = None
    data_dir: Path = AGENT_DATA_DIR
    price: Words = ()
    region: Words = ()
    max_lease: str = ""
    schedule: str = ""
    timezone: str = ""
    idle_only: bool = False
    tier: str = "interruptible"
    notice: str = "30s"
    webhook: Annotated[str, Field(repr=False)] = ""
    yes: bool = False


def read_worker_settings(flags: Mapping[str, Any], file: Path | None) -> WorkerSettings:
    """Flags over variables over the file over defaults. Raises a usage error that names what is wrong."""
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return WorkerSettings.model_validate({**_from_file(file), **_from_environment(), **given})
    except ValidationError as error:
        raise usage_error(_explained(error)) from None


def settings_text(settings: WorkerSettings) -> str:
    """The settings that were given, as the TOML that `--config` reads; consent is not copied, it is given."""
    lines = ["# Settings of `orch worker`; every one of them is a flag of `orch worker join` too."]
    for name in sorted(settings.model_fields_set):
        value = getattr(settings, name)
        if value is not None and name != "yes":
            lines.append(f"{name} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def variable_of(name: str) -> str:
    """The environment variable of a setting."""
    return URL_VARIABLE if name == "control_plane" else f"{PREFIX}{name.upper()}"


def _toml(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case tuple():
            return f"[{', '.join(_toml(one) for one in value)}]"
        case _:
            # A JSON string is a TOML one, but for the one control character that JSON leaves as it is.
            return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _from_environment() -> dict[str, Any]:
    known = {variable_of(name) for name in WorkerSettings.model_fields} | NOT_IN_FILES
    for name in sorted(os.environ):
        if name.startswith(PREFIX) and name not in known:
            # Not refused: Kubernetes sets variables of its own after the names of services.
            note(f"{name}: no such setting, ignored; did you mean {nearest(name, sorted(known))}?")
    values = {name: value for name, value in EnvSettingsSource(WorkerSettings)().items() if value != ""}
    values.pop("control_plane", None)
    url = os.environ.get(URL_VARIABLE, "").strip()
    return {**values, "control_plane": url} if url else values


def _from_file(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        with path.expanduser().open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise usage_error(f"--config: cannot read {path}: {(error.strerror or '').lower()}") from None
    if len(data) > FILE_BYTES_MAX:
        raise usage_error(f"--config: {path} is too long for a file of settings; name another one")
    try:
        return tomllib.loads(data.decode("utf-8"))
    except ValueError as error:
        raise usage_error(f"--config: {path} is no TOML: {error}") from None


def _explained(error: ValidationError) -> str:
    """One line: the setting, its spellings, and what is wrong; never its value."""
    first = error.errors(include_input=False, include_url=False)[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        if name == "token":
            return (
                "token: a secret has no place among settings; put it into a file and name that as token_file"
            )
        hint = nearest(name, sorted(WorkerSettings.model_fields))
        return f"{name}: no such setting; did you mean {hint}? (`orch worker join --help` lists them)"
    message = str(first["msg"]).removeprefix("Value error, ")
    flag = "--no-gpus" if name == "gpus" else f"--{name.replace('_', '-')}"
    return f"{name}: {message} ({flag} or {variable_of(name)})"
