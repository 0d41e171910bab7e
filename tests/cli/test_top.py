"""`orch top` in a real terminal, against a control plane of canned answers."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest
from rich.cells import cell_len

from deploy.local.ports import free_address
from orchestrator.api.v1 import common_pb2, overview_pb2
from orchestrator.cli.top import Sort
from orchestrator.cli.top_screen import SORT_KEYS, View, screen, shares
from orchestrator.core.queries import top as core_top
from tests.cli.conftest import Control, Orch
from tests.cli.control import ADMIN, TENANT
from tests.cli.status_samples import status, top, unwell
from tests.cli.test_failures import own_environment, process
from tests.polling import wait_until
from tests.terminals import (
    ALTERNATE_OFF,
    ALTERNATE_ON,
    CURSOR_OFF,
    CURSOR_ON,
    ORCH,
    WAIT_S,
    Terminal,
    terminal,
)

FAST = ("top", "--interval", "0.2")


def operator(control: Control, home: Path) -> dict[str, str]:
    return own_environment(home, ORCH_URL=control.url, ORCH_TOKEN=ADMIN)


def assert_restored(shown: Terminal) -> None:
    """The terminal is as it was: main screen, cursor, modes."""
    assert shown.raw.rfind(ALTERNATE_OFF) > shown.raw.rfind(ALTERNATE_ON) >= 0
    assert shown.raw.rfind(CURSOR_ON) > shown.raw.rfind(CURSOR_OFF) >= 0
    assert shown.modes() == shown.modes_before
    assert "Traceback" not in shown.raw


@pytest.mark.parametrize("key", ["q", "\x03", "\x04"])
def test_top_key_that_ends_it_leaves_the_terminal_as_it_was(
    control: Control, tmp_path: Path, key: str
) -> None:
    with terminal(*FAST, environment=operator(control, tmp_path)) as shown:
        shown.wait_for("attic", "clu_1", "job_2")
        assert shown.modes() != shown.modes_before, "keys are not heard one by one"
        shown.type(key)
        assert shown.wait() == 0
        assert_restored(shown)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_top_signal_leaves_the_terminal_as_it_was(
    control: Control, tmp_path: Path, number: signal.Signals
) -> None:
    with terminal(*FAST, environment=operator(control, tmp_path)) as shown:
        shown.wait_for("attic")
        shown.process.send_signal(number)
        assert shown.wait() == 0
        assert_restored(shown)


def test_top_small_terminal_shows_what_matters_and_follows_its_size(control: Control, tmp_path: Path) -> None:
    with terminal(*FAST, environment=operator(control, tmp_path), columns=40, lines=14) as shown:
        narrow = shown.wait_for("attic", "shed", "clu_1", "job_2")
        assert not [line for line in narrow if cell_len(line) > 40]
        assert len(narrow) <= 14
        assert not any("SUPPLIER" in line for line in narrow)
        shown.resize(200, 40)
        wide = shown.wait_for("SUPPLIER", "north", "every 0.2 s")
        assert len(wide) <= 40
        shown.type("q")
        assert shown.wait() == 0


def test_top_key_puts_workers_in_another_order(control: Control, tmp_path: Path) -> None:
    with terminal("top", "--interval", "60", environment=operator(control, tmp_path)) as shown:
        shown.wait_for("by trouble")
        shown.type("c")
        shown.wait_for("by temperature")
        shown.type("q")
        assert shown.wait() == 0
    assert [request.sort for request in control.operator.tops] == ["trouble", "temperature"]


def test_top_strangers_words_do_not_steer_the_terminal(control: Control, tmp_path: Path) -> None:
    with terminal(*FAST, environment=operator(control, tmp_path)) as shown:
        shown.wait_for("attic")
        assert "attic\x1b[31m" not in shown.raw
        shown.type("q")
        shown.wait()


def test_top_token_that_counts_no_more_ends_it_with_one_line(control: Control, tmp_path: Path) -> None:
    environment = own_environment(tmp_path, ORCH_URL=control.url, ORCH_TOKEN=TENANT)
    with terminal(*FAST, environment=environment) as shown:
        assert shown.wait() == 1
        assert "use an operator's token" in shown.raw
        assert ALTERNATE_ON not in shown.raw


def test_top_unreachable_at_its_start_says_so_in_one_line(tmp_path: Path) -> None:
    address = free_address()
    answer = process(tmp_path, "top", "--once", ORCH_URL=address, ORCH_TOKEN=ADMIN)
    assert answer.returncode == 1
    assert answer.stderr.decode().startswith(f"orch: cannot reach the control plane at {address}")
    assert answer.stderr.count(b"\n") == 1


def test_top_into_a_pipe_prints_a_line_of_json_for_each_look(control: Control, tmp_path: Path) -> None:
    with subprocess.Popen(
        [ORCH, *FAST], env=operator(control, tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        looks = [json.loads(running.stdout.readline()) for _ in range(3)]
        running.send_signal(signal.SIGINT)
        assert running.wait(WAIT_S) == 130
        assert running.stderr.read() == b""
    assert [look["workers"][0]["name"] for look in looks] == ["attic\x1b[31m"] * 3
    assert {look["verdict"] for look in looks} == {"well"}
    assert looks[0]["queue"][0]["wait_ms"] == str(41 * 60_000)


def test_top_once_prints_tables_or_one_line_of_json(admin: Orch) -> None:
    tables = admin("top", "--once")
    assert tables.code == 0
    assert "WORKER (2 of 9)" in tables.out
    assert "SUPPLIER" in tables.out
    assert "q ends" not in tables.out
    line = admin("top", "--once", "-o", "json")
    assert line.out.count("\n") == 1
    assert json.loads(line.out)["workers_total"] == 9


def test_top_filters_go_to_the_control_plane(admin: Orch, control: Control) -> None:
    assert admin("top", "--once", "--class", "datacenter", "--supplier", "north", "--sort", "gpu").code == 0
    (request,) = control.operator.tops
    assert request.hardware_class == common_pb2.HARDWARE_CLASS_DATACENTER
    assert (request.supplier, request.sort) == ("north", "gpu")


@pytest.mark.parametrize("interval", ["0.1", "-1", "nan", "3601"])
def test_top_interval_out_of_bounds_is_refused_by_name(admin: Orch, interval: str) -> None:
    answer = admin("top", "--once", "--interval", interval)
    assert answer.code == 2
    assert "--interval" in answer.err


def test_top_lost_control_plane_is_said_and_the_last_picture_stays() -> None:
    view = View(top(), status(), "trouble", 2.0, trouble="cannot reach the control plane", stale_ms=12_000)
    lines = [line.plain for line in screen(view, 100, 24).renderables]  # type: ignore[union-attr]
    assert any("no answer for 12 s: cannot reach the control plane" in line for line in lines)
    assert any("attic" in line for line in lines)


def test_top_answer_that_takes_too_long_is_said_to_be_missing() -> None:
    def text(stale_ms: int) -> str:
        view = View(top(), status(), "trouble", 2.0, stale_ms=stale_ms)
        return "\n".join(line.plain for line in screen(view, 100, 24).renderables)  # type: ignore[union-attr]

    assert "no answer" not in text(7_000)
    assert "no answer for 7 s: still waiting" in text(7_001)


@pytest.mark.parametrize("width", [1, 7, 20, 40, 80, 200])
@pytest.mark.parametrize("height", [10, 24, 60])
def test_screen_fits_any_size_and_never_breaks_a_line(width: int, height: int) -> None:
    crowd = overview_pb2.GetTopResponse()
    for _ in range(40):
        crowd.MergeFrom(top())
    crowd.workers[0].name = "東京" * 20
    lines = [line.plain for line in screen(View(crowd, unwell(), "gpu", 2.0), width, height).renderables]  # type: ignore[union-attr]
    assert len(lines) == height
    assert all(cell_len(line) <= width for line in lines)


@pytest.mark.parametrize(
    ("room", "wanted", "given"),
    [
        (20, [50, 50, 50], [10, 5, 5]),
        (20, [50, 0, 50], [15, 0, 5]),
        (20, [3, 50, 50], [3, 12, 5]),
        (20, [3, 4, 5], [3, 4, 5]),
        (3, [9, 9, 9], [0, 2, 2]),
    ],
)
def test_shares_leave_no_row_empty_that_somebody_wants(
    room: int, wanted: list[int], given: list[int]
) -> None:
    assert shares(room, wanted) == given


def test_sort_words_and_keys_are_those_of_the_control_plane() -> None:
    assert [one.value for one in Sort] == [one.value for one in core_top.Sort] == list(SORT_KEYS.values())


def test_top_control_plane_that_goes_is_shown_and_what_comes_back_too(
    control: Control, tmp_path: Path
) -> None:
    with terminal(*FAST, environment=operator(control, tmp_path)) as shown:
        shown.wait_for("attic")
        control.operator.away = True
        shown.wait_for("no answer for", "attic")
        control.operator.away = False
        wait_until(
            lambda: not shown.shows("no answer for") and shown.shows("attic"),
            what="a fresh answer",
            deadline_s=WAIT_S,
        )
        shown.type("\x03")
        assert shown.wait() == 0
        assert_restored(shown)
