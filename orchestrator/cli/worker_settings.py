"""What a supplier sets for `orch worker`: by flag, else by variable, else in a file, else by default."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, SettingsConfigDict

from orchestrator.cli.configuration import (
    SettingPath,
    complaint,
    listed,
    read_toml,
    with_secrets,
)
from orchestrator.cli.errors import usage_error
from orchestrator.cli.settings import DEFAULT_URL
from orchestrator.cli.worker import AGENT_DATA_DIR

PREFIX = "ORCH_WORKER_"
URL_VARIABLE = "ORCH_URL"
"""The control plane's address, which every command reads."""

SECRETS = ("webhook",)
"""Settings that may also come by a file of their own, as a mounted secret does: each as ``NAME_file``."""

SLOTS_MAX = 64
"""More members than any one machine has devices."""
CPUS_MAX = 4096
"""Above the largest machine there is."""


Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(listed)]
Slots = Annotated[int, Field(ge=0, le=SLOTS_MAX)]


class WorkerSettings(BaseSettings):
    """Everything about this machine and its owner's terms, as typed; the meaning is checked by `cli.join`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True)

    control_plane: str = DEFAULT_URL
    token_file: SettingPath | None = None
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
    runtimes_dir: SettingPath | None = None
    data_dir: SettingPath = AGENT_DATA_DIR
    price: Words = ()
    region: Words = ()
    max_lease: str = ""
    schedule: str = ""
    timezone: str = ""
    idle_only: bool = False
    tier: str = "interruptible"
    notice: str = "30s"
    webhook: Annotated[str, Field(repr=False)] = ""
    webhook_file: SettingPath | None = None
    yes: bool = False


def read_worker_settings(flags: Mapping[str, Any], file: Path | None) -> WorkerSettings:
    """Flags over variables over the file over defaults. Raises a usage error that names what is wrong."""
    given = {name: value for name, value in flags.items() if value is not None}
    values = {**(read_toml(file) if file is not None else {}), **_from_environment(), **given}
    try:
        return WorkerSettings.model_validate(with_secrets(values, SECRETS, _spelt))
    except ValidationError as error:
        raise usage_error(_explained(error)) from None


def settings_text(settings: WorkerSettings) -> str:
    """The settings that were given, as the TOML that `--config` reads; consent is not copied, it is given."""
    lines = ["# Settings of `orch worker`; every one of them is a flag of `orch worker join` too."]
    for name in sorted(settings.model_fields_set):
        value = getattr(settings, name)
        by_file = f"{name}_file" in settings.model_fields_set and name in SECRETS
        if value is not None and name != "yes" and not by_file:
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
    values = EnvSettingsSource(WorkerSettings)()
    values.pop("control_plane", None)
    url = os.environ.get(URL_VARIABLE, "").strip()
    return {**values, "control_plane": url} if url else values


def _explained(error: ValidationError) -> str:
    """One line: the setting, its spellings, and what is wrong; never its value."""
    first = error.errors(include_input=False, include_url=False)[0]
    if first["type"] == "extra_forbidden" and first["loc"] == ("token",):
        return "token: a secret has no place among settings; put it into a file and name that as token_file"
    return complaint(error, WorkerSettings.model_fields, "orch worker join", _spelt)


def _spelt(name: str) -> str:
    flag = "--no-gpus" if name == "gpus" else f"--{name.replace('_', '-')}"
    return f"{flag} or {variable_of(name)}"
