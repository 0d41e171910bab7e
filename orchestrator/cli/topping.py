"""How `orch top` looks again and again: beside the screen, so that keys are heard while an answer is awaited."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

from google.protobuf import json_format
from google.protobuf.message import Message
from rich.console import Console
from rich.live import Live

from orchestrator.adapters.clock import SystemClock
from orchestrator.api.v1 import common_pb2, operator_pb2, overview_pb2
from orchestrator.cli.client import Client, Unreachable, connect
from orchestrator.cli.output import OutputFormat, note, plain_console
from orchestrator.cli.terminal import Keyboard
from orchestrator.cli.top_screen import SORT_KEYS, View, screen

STATUS_EVERY_S = 10.0
"""The judgement walks over the whole fleet; what it speaks of changes in minutes."""

LINES_MIN = 10
"""Of a terminal that says nothing, or nonsense, of its height."""

ROWS_MAX = 500
"""As many as the control plane gives."""

QUIT = ("q", "Q", "\x03", "\x04")
"""Ctrl-C and Ctrl-D too, where the terminal gives them as characters."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Order and filters; empty: all."""

    sort: str
    hardware_class: str
    supplier: str


@dataclass(frozen=True, slots=True)
class Look:
    """One answer; ``status`` may be some seconds older."""

    top: overview_pb2.GetTopResponse
    status: operator_pb2.GetStatusResponse


class Looking:
    """The control plane as it is asked: one question at a time, the judgement only now and then."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._status: operator_pb2.GetStatusResponse | None = None
        self._judged_s = 0.0

    def look(self, asked: Asked, rows_max: int) -> Look:
        """Blocking. Raises CliError."""
        request = overview_pb2.GetTopRequest(
            rows_max=min(ROWS_MAX, rows_max),
            sort=asked.sort,
            hardware_class=class_number(asked.hardware_class),
            supplier=asked.supplier,
        )
        operator = self._client.operator
        found = self._client.call(operator.GetTop, request)
        now_s = _now_s()
        if self._status is None or now_s - self._judged_s >= STATUS_EVERY_S:
            self._status = self._client.call(operator.GetStatus, operator_pb2.GetStatusRequest())
            self._judged_s = now_s
        return Look(found, self._status)


def class_number(name: str) -> common_pb2.HardwareClass.ValueType:
    """As the proto has it; unspecified for none."""
    return common_pb2.HardwareClass.Value(f"HARDWARE_CLASS_{name.upper() or 'UNSPECIFIED'}")


def follow(asked: Asked, interval_s: float, *, once: bool, output: OutputFormat) -> None:
    """Until q or Ctrl-C. Raises CliError where the first look fails, or a later one that no patience will mend."""
    with connect() as client:
        looking = Looking(client)
        console = plain_console()
        if once:
            look = looking.look(asked, ROWS_MAX)
            if output is OutputFormat.JSON:
                print_line(look)
            else:
                view = View(look.top, look.status, asked.sort, interval_s)
                console.print(screen(view, console.width, None))
        elif output is OutputFormat.JSON or not sys.stdout.isatty():
            _stream(looking, asked, interval_s)
        else:
            _live(looking, asked, interval_s, console)


# ------------------------------------------------------------ for programs


def print_line(look: Look) -> None:
    """One look as a JSON object on one line; fields are those of the protos."""
    value = {
        **_fields(look.top),
        "verdict": look.status.verdict,
        "findings": _fields(look.status)["findings"],
    }
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def _fields(message: Message) -> dict[str, Any]:
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def _stream(looking: Looking, asked: Asked, interval_s: float) -> None:
    """A line for each look; a look that failed is a remark, and the next one is tried."""
    first = True
    while True:
        began_s = _now_s()
        try:
            print_line(looking.look(asked, ROWS_MAX))
        except Unreachable as error:
            if first:
                raise
            note(f"orch: {error}; trying again")
        first = False
        time.sleep(max(0.0, interval_s - (_now_s() - began_s)))


# ------------------------------------------------------------ for people


class Asking:
    """Looks on a thread of its own; ``woken`` is called from there when one has come back."""

    def __init__(self, looking: Looking, woken: Callable[[], None]) -> None:
        self._looking = looking
        self._woken = woken
        self._pool = ThreadPoolExecutor(1)
        self._under_way: Future[Look] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def ask(self, asked: Asked, rows_max: int) -> None:
        """Begin a look, unless one is under way."""
        if self._under_way is None:
            self._under_way = self._pool.submit(self._looking.look, asked, rows_max)
            self._under_way.add_done_callback(lambda _: self._woken())

    def answer(self) -> Look | None:
        """The look that has come back, once; None where there is none. Raises CliError."""
        if self._under_way is None or not self._under_way.done():
            return None
        done, self._under_way = self._under_way, None
        return done.result()


def _live(looking: Looking, asked: Asked, interval_s: float, console: Console) -> None:
    """The first look comes before the screen is taken: what cannot work is said where it can be read."""
    first = looking.look(asked, ROWS_MAX)
    view = View(first.top, first.status, asked.sort, interval_s)
    with (
        Keyboard() as keyboard,
        Asking(looking, keyboard.wake) as asking,
        Live(console=console, screen=True, auto_refresh=False, redirect_stderr=False) as live,
    ):
        answered_s = _now_s()
        due_s = answered_s + interval_s
        while True:
            view = replace(view, stale_ms=int((_now_s() - answered_s) * 1000))
            live.update(screen(view, console.width, max(LINES_MIN, console.height)), refresh=True)
            key = keyboard.wait(due_s - _now_s())
            if keyboard.ended or key in QUIT:
                return
            if key in SORT_KEYS:
                asked = replace(asked, sort=SORT_KEYS[key])
                due_s = _now_s()
            try:
                look = asking.answer()
            except Unreachable as error:
                view = replace(view, trouble=str(error))
            else:
                if look is not None:
                    view = View(look.top, look.status, asked.sort, interval_s)
                    answered_s = _now_s()
            if _now_s() >= due_s:
                asking.ask(asked, ROWS_MAX)
                due_s = _now_s() + interval_s


def _now_s() -> float:
    """Only differences mean anything."""
    return SystemClock().elapsed_s()
