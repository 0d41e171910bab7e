"""What is told of a decision that failed by a fault of ours: where, to the log, and how often, to whoever measures."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Protocol

import structlog

from orchestrator.core.errors import RefusalCode

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.core import messages as m
    from orchestrator.core.errors import UndecidedError

log = structlog.get_logger(__name__)


class FaultObserver(Protocol):
    """Where refusals are counted."""

    def refused(self, door: str, code: str) -> None: ...


def fault_told(observer: FaultObserver) -> Callable[[m.Command, UndecidedError], None]:
    """For the loop: log where a command's decision failed, and count it by the command.

    The error's own text may quote a caller's values: it is not logged.
    """

    def told(command: m.Command, error: UndecidedError) -> None:
        cause = error.__cause__ or error
        name = type(command).__name__
        where = "".join(traceback.format_tb(cause.__traceback__))
        log.error("decision_failed", command=name, error=type(cause).__name__, where=where)
        observer.refused(name, RefusalCode.INTERNAL.value)

    return told
