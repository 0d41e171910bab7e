"""How this program's processes log: pretty on a terminal, JSON lines otherwise, and never a secret."""

from __future__ import annotations

import logging
import re
import sys
from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping, Sequence

REDACTED = "<redacted>"

SECRET_WORDS = ("token", "secret", "authorization", "password", "cookie", "private_key", "env_vars")

HARMLESS_ENDINGS = ("_id", "_ids", "_file", "_path", "_sha256")
"""A name or the place of a secret is none."""

SECRET_TEXT = re.compile(
    r"(?i)(\borch_[a-z]+_|\bbearer\s+)[A-Za-z0-9_.~+/=-]{8,}|(://[^/\s:@]*:)[^/\s@]+(?=@)"
)
"""Tokens of ours by their prefix, anybody's after the word bearer, and a password in a URL."""

DEPTH_MAX = 4
"""Log lines are flat; deeper values are shown as text."""


def is_secret_name(name: str) -> bool:
    """Whether a value of that name must not be shown."""
    lower = name.lower()
    return any(word in lower for word in SECRET_WORDS) and not lower.endswith(HARMLESS_ENDINGS)


def redact(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Processor: replace what is secret by name, and what looks like a secret by its text."""
    for name, value in event.items():
        if not name.startswith("_"):
            event[name] = _clean(name, value, DEPTH_MAX)
    return event


def _clean(name: str, value: Any, depth: int) -> Any:
    if is_secret_name(name):
        return REDACTED
    match value:
        case str():
            return SECRET_TEXT.sub(rf"\1\2{REDACTED}", value)
        case bool() | int() | float() | None:
            return value
        case dict() if depth:
            return {key: _clean(str(key), item, depth - 1) for key, item in value.items()}
        case list() | tuple() | set() | frozenset() if depth:
            return [_clean("", item, depth - 1) for item in value]
        case _:
            return SECRET_TEXT.sub(rf"\1\2{REDACTED}", str(value))


def configure_logging(ids: Mapping[str, str], *, pretty: bool, debug: bool = False) -> None:
    """Set up structlog and the standard library's logging alike, on standard error.

    ``ids`` stand on every line; more can be bound with ``structlog.contextvars``.
    """

    def identify(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        for name, value in ids.items():
            event.setdefault(name, value)
        return event

    shared: Sequence[Any] = (
        structlog.contextvars.merge_contextvars,
        identify,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        redact,
    )
    renderer: Any = (
        structlog.dev.ConsoleRenderer(colors=True, exception_formatter=structlog.dev.plain_traceback)
        if pretty
        else structlog.processors.JSONRenderer(ensure_ascii=False)
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG if debug else logging.INFO),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=list(shared),
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Libraries speak only when something is wrong; we speak always.
    root.setLevel(logging.WARNING)
    logging.getLogger("orchestrator").setLevel(logging.DEBUG if debug else logging.INFO)
