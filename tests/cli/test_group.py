"""What people see of groups: tables, a page for a browser, letters for a terminal, and why there is nothing."""

from __future__ import annotations

import json
import random
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from orchestrator.api.v1 import common_pb2, scheduling_pb2
from orchestrator.cli.group_drawing import ALONE, COLUMNS, LABELS_MAX, ROWS, Mark, scatter, svg
from tests.cli.conftest import Control, Orch
from tests.cli.control import HOSTILE_NAME, lines_with

SVG = "{http://www.w3.org/2000/svg}"


def group(number: int, workers: int = 3, **more: object) -> scheduling_pb2.Group:
    pairs = workers * (workers - 1) // 2
    fields: dict[str, object] = {
        "number": number,
        "hardware_class": common_pb2.HARDWARE_CLASS_CONSUMER,
        "model": "RTX4090",
        "operating_system": "linux",
        "runtime": "provisioned, linux x86_64",
        "leader_name": "attic",
        "worker_ids": [f"wrk_{number}_{one}" for one in range(workers)],
        "devices": 2 * workers,
        "devices_free": workers,
        "pairs": pairs,
        "pairs_measured": pairs,
        **more,
    }
    return scheduling_pb2.Group(**fields)  # type: ignore[arg-type]  # names checked by the message


def point(
    name: str, number: int, x_ms: float, y_ms: float, *, leader: bool = False
) -> scheduling_pb2.GroupPoint:
    return scheduling_pb2.GroupPoint(
        worker_id=f"wrk_{name}",
        worker_name=name,
        group_number=number,
        leader=leader,
        x_ms=x_ms,
        y_ms=y_ms,
        model="RTX4090",
        hardware_class=common_pb2.HARDWARE_CLASS_CONSUMER,
    )


def marks(groups: int, each: int = 3) -> list[Mark]:
    dice = random.Random(3)
    found = []
    for number in range(groups):
        x, y = dice.uniform(0, 200), dice.uniform(0, 200)
        found += [
            Mark(f"w{number}-{one}", number, one == 0, x + one, y - one, f"M{number % 10}, consumer")
            for one in range(each)
        ]
    return found


# ---------------------------------------------------------------- tables


def test_group_list_shows_diameters_and_who_is_left_out(admin: Orch, control: Control) -> None:
    control.operator.groups = scheduling_pb2.ListGroupsResponse(
        groups=[
            group(12, diameter_measured_us=6_140),
            group(7, 2, pairs_measured=0, diameter_predicted_us=9_000),
        ],
        groups_total=2,
        workers_alone=4,
        workers_measured=9,
        bound_ms=20,
    )
    answer = admin("group", "list")
    assert answer.code == 0
    assert lines_with(answer.out, "g12", "consumer", "RTX4090", "linux", "6.1 ms", "3 of 3", "attic")
    assert lines_with(answer.out, "g7", "0 of 1", "9.0 ms")
    assert "4 more alone" in answer.err
    (asked,) = control.operator.asked
    assert asked == scheduling_pb2.ListGroupsRequest()


def test_group_list_all_asks_for_those_alone(admin: Orch, control: Control) -> None:
    control.operator.groups = scheduling_pb2.ListGroupsResponse(
        groups=[group(1, 1)], workers_alone=1, workers_measured=1, bound_ms=20
    )
    answer = admin("group", "list", "--all")
    assert control.operator.asked == [scheduling_pb2.ListGroupsRequest(all=True)]
    assert lines_with(answer.out, "g1", "–")
    assert answer.err == ""


def test_group_list_says_where_only_the_largest_are_listed(admin: Orch, control: Control) -> None:
    control.operator.groups = scheduling_pb2.ListGroupsResponse(
        groups=[group(1)], groups_total=700, workers_measured=3, bound_ms=20
    )
    assert "the largest 1 of 700 groups" in admin("group", "list").err


@pytest.mark.parametrize(
    ("measured", "said"),
    [(0, "no latencies measured yet"), (5, "no two workers alike are known to be within 20 ms")],
)
def test_group_list_of_nothing_says_why(admin: Orch, control: Control, measured: int, said: str) -> None:
    control.operator.groups = scheduling_pb2.ListGroupsResponse(
        workers_alone=5, workers_measured=measured, bound_ms=20
    )
    answer = admin("group", "list")
    assert (answer.code, answer.out) == (0, "")
    assert said in answer.err


# ---------------------------------------------------------------- plots


def test_group_plot_writes_a_page_with_every_worker(admin: Orch, control: Control, tmp_path: Path) -> None:
    control.operator.group_map = scheduling_pb2.GetGroupMapResponse(
        points=[
            point("attic", 12, 0, 0, leader=True),
            point("cellar", 12, 3, 1),
            point(HOSTILE_NAME + "<script>", 3, 90, 40, leader=True),
        ],
        workers_total=9,
        workers_measured=3,
        bound_ms=20,
    )
    path = tmp_path / "groups.svg"
    answer = admin("group", "plot", "--out", str(path))
    assert (answer.code, answer.out) == (0, f"{path}: 3 workers\n")
    assert "3 of 9 workers are drawn" in answer.err
    page = ET.fromstring(path.read_text(encoding="utf-8"))
    titles = [one.text or "" for one in page.iter(f"{SVG}title")]
    assert titles[:2] == ["attic, g12, leader", "cellar, g12"]
    assert len(titles) == 3
    texts = [one.text or "" for one in page.iter(f"{SVG}text")]
    assert "g12: 2 × RTX4090, consumer" in texts
    assert not any(text.startswith("g3:") for text in texts)
    assert "script" not in {one.tag.removeprefix(SVG) for one in page.iter()}


def test_group_plot_without_a_file_draws_letters(admin: Orch, control: Control) -> None:
    control.operator.group_map = scheduling_pb2.GetGroupMapResponse(
        points=[point("attic", 12, 0, 0, leader=True), point("cellar", 12, 9, 1), point("barn", 3, 90, 40)],
        workers_total=3,
        workers_measured=3,
    )
    answer = admin("group", "plot")
    assert (answer.code, answer.err) == (0, "")
    assert lines_with(answer.out, "a  g12: 2 × RTX4090, consumer")
    assert lines_with(answer.out, ALONE, "alone")
    assert json.loads(admin("group", "plot", "-o", "json").out)["points"]


@pytest.mark.parametrize(
    ("measured", "said"), [(0, "no latencies measured yet"), (4, "all that was measured is too old")]
)
def test_group_plot_of_nothing_says_why_and_writes_nothing(
    admin: Orch, control: Control, tmp_path: Path, measured: int, said: str
) -> None:
    control.operator.group_map = scheduling_pb2.GetGroupMapResponse(workers_measured=measured)
    path = tmp_path / "groups.svg"
    answer = admin("group", "plot", "--out", str(path))
    assert (answer.code, answer.out, path.exists()) == (0, "", False)
    assert said in answer.err


def test_group_plot_to_a_folder_that_is_not_there_names_it(
    admin: Orch, control: Control, tmp_path: Path
) -> None:
    control.operator.group_map = scheduling_pb2.GetGroupMapResponse(points=[point("attic", 1, 0, 0)])
    answer = admin("group", "plot", "--out", str(tmp_path / "none" / "groups.svg"))
    assert answer.code == 2
    assert "groups.svg: no such file or directory" in answer.err


@pytest.mark.parametrize("count", [1, 2, LABELS_MAX + 40])
def test_svg_keeps_everybody_on_the_page(count: int) -> None:
    page = ET.fromstring(svg(marks(count), 20))
    drawn = [one for one in page.iter(f"{SVG}circle") if one.find(f"{SVG}title") is not None]
    assert len(drawn) == 3 * count
    for one in drawn:
        assert 0 <= float(one.attrib["cx"]) <= 960 - 240 - 2 * 48
        assert 0 <= float(one.attrib["cy"]) <= 640 - 2 * 48
    labels = [one for one in page.iter(f"{SVG}text") if (one.text or "").startswith("g")]
    assert len(labels) == min(count, LABELS_MAX)


def test_svg_and_scatter_of_workers_at_one_place_do_not_fail() -> None:
    same = [Mark(f"w{number}", number % 2, number < 2, 0, 0, "A, consumer") for number in range(4)]
    assert len(list(ET.fromstring(svg(same, 20)).iter(f"{SVG}title"))) == 4
    assert any("*" in line for line in scatter(same)[:ROWS])


def test_scatter_fits_any_terminal_and_names_what_has_no_letter() -> None:
    lines = scatter(marks(60))
    assert all(len(line) <= COLUMNS for line in lines[:ROWS])
    assert lines_with("\n".join(lines), "8 smaller groups")
