"""Reading Ray's JobSubmitRequest: each field's type is checked here, its meaning by the control plane."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from orchestrator.core.errors import RefusedError, invalid
from orchestrator.core.supply.catalogue import nearest
from orchestrator.gateway.body import quoted
from orchestrator.gateway.installs import parse_install
from orchestrator.gateway.packages import PROTOCOL, package_uri
from orchestrator.gateway.ports import Submission

if TYPE_CHECKING:
    from collections.abc import Mapping

FIELDS = (
    "entrypoint",
    "submission_id",
    "job_id",
    "runtime_env",
    "metadata",
    "entrypoint_num_cpus",
    "entrypoint_num_gpus",
    "entrypoint_memory",
    "entrypoint_resources",
    "entrypoint_label_selector",
)
"""All that Ray 2.60 sends; null stands for absent, as in Ray."""

SUBMISSION_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", re.ASCII)
"""Safe in a path, a file name, a label and a terminal; Ray's own are ``raysubmit_`` and 16 characters."""

COUNT_MAX = 10**9
"""Above any machine's cores and any resource's units; below where floats lose whole numbers."""

MEMORY_BYTES_MAX = 2**53
"""The largest whole number that every JSON reader keeps exact."""

OFFERED = "only working_dir, env_vars, pip and uv are offered"

IN_WORKING_DIR = "put what the job imports into working_dir"

IN_PIP = "name its packages in pip or uv"

NETWORK_CHOOSES = "the network chooses the runtime of its machines; leave it out"

ADVICE: Mapping[str, str] = {
    "conda": IN_PIP,
    "py_modules": IN_WORKING_DIR,
    "py_executable": NETWORK_CHOOSES,
    "container": NETWORK_CHOOSES,
    "image_uri": NETWORK_CHOOSES,
}


def parse_submission(body: Mapping[str, object]) -> Submission:
    """The submission in a body; raises RefusedError that names the field at fault."""
    for key in body:
        if key not in FIELDS:
            message = f"unknown field {quoted(key)}: did you mean {nearest(key[:80], list(FIELDS))!r}?"
            raise invalid(quoted(key), message)
    if body.get("entrypoint_label_selector"):
        field = "entrypoint_label_selector"
        message = f"{field} is not offered; say what the machines must be in metadata, as orch.gpu_model"
        raise invalid(field, message)
    return Submission(
        entrypoint=_entrypoint(body.get("entrypoint")),
        submission_id=_submission_id(body),
        runtime_env=_runtime_env(body.get("runtime_env")),
        metadata=_texts("metadata", body.get("metadata")),
        entrypoint_num_cpus=_count("entrypoint_num_cpus", body.get("entrypoint_num_cpus")),
        entrypoint_num_gpus=_count("entrypoint_num_gpus", body.get("entrypoint_num_gpus")),
        entrypoint_memory_bytes=_memory_bytes(body.get("entrypoint_memory")),
        entrypoint_resources=_resources(body.get("entrypoint_resources")),
    )


def is_submission_id(text: str) -> bool:
    """Whether a job can have this name at all."""
    return SUBMISSION_ID.fullmatch(text) is not None


def _kind(value: object) -> str:
    """A JSON value's type in JSON's words: the value itself may be a secret."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "an array"
        case _:
            return "an object"


def _text(field: str, value: object) -> str:
    """A string that can be stored as UTF-8 and handed to a process."""
    if not isinstance(value, str):
        raise invalid(field, f"{field} must be a string, not {_kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise invalid(field, f"{field} holds half of a surrogate pair, which is no text") from None
    if "\0" in value:
        raise invalid(field, f"{field} holds a NUL character, which no process can be given")
    return value


def _entrypoint(value: object) -> str:
    if value is None:
        raise invalid("entrypoint", "entrypoint is missing: give the command to run, as `-- python train.py`")
    text = _text("entrypoint", value)
    if not text.strip():
        raise invalid("entrypoint", "entrypoint is empty: give the command to run, as `-- python train.py`")
    return text


def _submission_id(body: Mapping[str, object]) -> str | None:
    """``job_id`` is Ray's older name of the same field."""
    found: str | None = None
    for field in ("job_id", "submission_id"):
        value = body.get(field)
        if value is not None:
            found = _text(field, value)
            if not is_submission_id(found):
                message = f"{field} {quoted(found)} is not 1 to 128 letters, digits, '.', '-' or '_'"
                raise invalid(field, f"{message}, the first no '.' or '-'")
    return found


def _object(field: str, value: object) -> dict[str, object]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise invalid(field, f"{field} must be an object, not {_kind(value)}")
    for key in value:
        _text(f"a key of {field}", key)
    return value


def _texts(field: str, value: object) -> dict[str, str]:
    return {key: _text(f"{field}[{quoted(key)}]", item) for key, item in _object(field, value).items()}


def _count(field: str, value: object) -> float:
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise invalid(field, f"{field} must be a number, not {_kind(value)}")
    if not math.isfinite(value) or not 0 <= value <= COUNT_MAX:
        raise invalid(field, f"{field} must be from 0 to {COUNT_MAX}")
    return float(value)


def _memory_bytes(value: object) -> int:
    field = "entrypoint_memory"
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int):
        raise invalid(field, f"{field} must be a whole number of bytes, not {_kind(value)}")
    if not 0 <= value <= MEMORY_BYTES_MAX:
        raise invalid(field, f"{field} must be from 0 to {MEMORY_BYTES_MAX} bytes")
    return value


def _resources(value: object) -> dict[str, float]:
    field = "entrypoint_resources"
    return {key: _count(f"{field}[{quoted(key)}]", item) for key, item in _object(field, value).items()}


def _runtime_env(value: object) -> dict[str, object]:
    """Two keys are the work of Ray's client and passed over: ``excludes`` has been obeyed when it packed the files, and
    ``_ray_commit`` names the Ray of the tenant's machine, where that of the runtime counts.
    """
    found: dict[str, object] = {}
    for key, item in _object("runtime_env", value).items():
        match key:
            case "working_dir":
                found[key] = _working_dir(item)
            case "env_vars":
                found[key] = _env_vars(item)
            case "pip" | "uv":
                install = parse_install(key, item)
                found.update({key: install} if install else {})
            case "excludes" | "_ray_commit":
                continue
            case _:
                field = f"runtime_env[{quoted(key)}]"
                raise invalid(field, f"{field} is not offered: {OFFERED}; {ADVICE.get(key, 'leave it out')}")
    if "pip" in found and "uv" in found:
        field = "runtime_env['uv']"
        raise invalid(field, f"{field} and runtime_env['pip'] exclude each other in Ray; give one of them")
    return found


def _working_dir(value: object) -> str:
    field = "runtime_env['working_dir']"
    scheme, _, name = _text(field, value).partition("://")
    try:
        return package_uri(scheme, name)
    except RefusedError:
        message = f"{field} must be a package uploaded here ({PROTOCOL}://<name>.zip)"
        raise invalid(field, f"{message}: give --working-dir a local directory or zip") from None


def _env_vars(value: object) -> dict[str, str]:
    field = "runtime_env['env_vars']"
    found = _texts(field, value)
    for name in found:
        if not name or "=" in name:
            raise invalid(field, f"{field} holds {quoted(name)}, which is no name of an environment variable")
    return found
