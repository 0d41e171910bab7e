"""Plots are well-formed and say what they must; data of a stranger's own is read, or refused with file and line."""

from __future__ import annotations

import os
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from benchmarks import fairness, openb, p5_openb, p9_goodput, perturb, plot, rtt
from benchmarks.own import own_files
from benchmarks.report import Case, FigureError
from orchestrator.sim import plots
from orchestrator.sim.plots import Axis, Curve, Mark
from orchestrator.sim.replay import Options
from orchestrator.sim.traces import read_availability

SVG = "{http://www.w3.org/2000/svg}"


def drawn(text: str) -> ET.Element:
    return ET.fromstring(text)


def words(root: ET.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}text")]


def case(name: str, *curves: Curve, figure: str = "P3") -> Case:
    return Case(figure, name, 1.0, "ms", 1, 1.0, 1.0, curves=curves)


# ---------------------------------------------------------------- the writer


def test_plot_names_its_title_axes_curves_marks_and_source() -> None:
    curves = [Curve("one & other", [(0, 1), (10, 3)]), Curve("more", [(0, 2), (10, 4)])]
    text = plots.plot(
        "A < B", Axis("seconds"), Axis("jobs", low=0), curves, [Mark("target", 3)], "from a test"
    )
    root = drawn(text)
    assert {"A < B", "seconds", "jobs", "one & other", "more", "target", "from a test"} <= set(words(root))
    assert root.findtext(f"{SVG}title") == "A < B"
    assert "prefers-color-scheme:dark" in (root.findtext(f"{SVG}style") or "")


def test_plot_points_lie_in_proportion_between_the_axes() -> None:
    root = drawn(plots.plot("t", Axis("x", 0, 10), Axis("y", 0, 4), [Curve("c", [(0, 0), (5, 1), (10, 4)])]))
    line = root.find(f"{SVG}polyline")
    assert line is not None
    (x0, y0), (x1, y1), (x2, y2) = (map(float, one.split(",")) for one in line.attrib["points"].split())
    assert (x0, x2) == (plots.LEFT, plots.WIDTH - plots.RIGHT)
    assert (y0, y2) == (plots.HEIGHT - plots.BOTTOM, plots.TOP)
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.1)
    assert y1 == pytest.approx(y0 + (y2 - y0) / 4, abs=0.1)


def test_plot_logarithmic_axis_gives_each_decade_the_same_room() -> None:
    axis = Axis("workers", logarithmic=True)
    root = drawn(plots.plot("t", axis, Axis("ms"), [Curve("c", [(1_000, 1), (10_000, 1), (100_000, 2)])]))
    line = root.find(f"{SVG}polyline")
    assert line is not None
    first, second, third = (float(one.split(",")[0]) for one in line.attrib["points"].split())
    assert second - first == pytest.approx(third - second, abs=0.2)
    assert {"1,000", "10,000", "100,000"} <= set(words(root))


def test_plot_logarithmic_axis_of_nothing_above_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="ms: a logarithmic axis"):
        plots.plot("t", Axis("x"), Axis("ms", logarithmic=True), [Curve("c", [(1, 0)])])


@pytest.mark.parametrize("points", [[], [(0.0, 0.0)], [(3.0, 7.0), (3.0, 7.0)]])
def test_plot_of_nothing_or_of_one_value_is_well_formed(points: list[tuple[float, float]]) -> None:
    assert drawn(plots.plot("t", Axis("x"), Axis("y"), [Curve("c", points)])).tag == f"{SVG}svg"


# ---------------------------------------------------------------- the drawings


def test_write_joins_the_curves_of_several_cases_and_leaves_other_figures_alone(tmp_path: Path) -> None:
    cases = [
        case("decision-1000-workers", Curve("median", [(1_000, 0.2)])),
        case("decision-100k", Curve("median", [(10_000, 0.4)])),
        case("kernel"),
    ]
    assert [path.name for path in plot.write(cases, tmp_path)] == ["decision-time.svg"]
    root = drawn((tmp_path / "decision-time.svg").read_text())
    assert len((root.findall(f"{SVG}polyline")[0]).attrib["points"].split()) == 2
    assert any("cores" in line and "Python" in line for line in words(root))


def test_curves_over_names_stand_beside_each_other() -> None:
    drawing = next(one for one in plot.DRAWINGS if one.file == "openb-allocation")
    found = plot.curves_of(
        drawing,
        [
            case(name, Curve(name, [(0.0, 90.0)], joined=False), figure="P5")
            for name in ("default", "gpushare100")
        ],
    )
    assert [round(curve.points[0][0], 3) for curve in found] == [-0.08, 0.08]


def test_fairness_minutes_lead_to_the_figure_of_the_hour() -> None:
    hour = fairness.an_hour(fairness.mixed_world(16), Options())
    assert len(hour.by_minute) == 60
    assert hour.by_minute[-1] == hour.jain
    assert 0 < hour.jain <= 1


# ---------------------------------------------------------------- a stranger's data


def test_own_files_are_those_of_the_variable_or_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = (Path("ours"),)
    assert own_files("BENCH_TEST", ours) == ours
    both = [tmp_path / "a", tmp_path / "b"]
    for path in both:
        path.touch()
    monkeypatch.setenv("BENCH_TEST", os.pathsep.join(map(str, both)))
    assert own_files("BENCH_TEST", ours, 2) == tuple(both)
    with pytest.raises(FigureError, match="BENCH_TEST: at least 3 files"):
        own_files("BENCH_TEST", ours, 3)
    monkeypatch.setenv("BENCH_TEST", str(tmp_path / "c"))
    with pytest.raises(FigureError, match=r"BENCH_TEST: .*c is no file"):
        own_files("BENCH_TEST", ours)


def frame_file(path: Path, change: dict[int, str] | None = None, size: int = rtt.MACHINES_MIN) -> Path:
    lines = [" ".join("0" if row == column else "12.5" for column in range(size)) for row in range(size)]
    for number, text in (change or {}).items():
        lines[number] = text
    path.write_text("\n".join(lines) + "\n")
    return path


def test_frame_is_read_as_milliseconds(tmp_path: Path) -> None:
    frame = rtt.read_frame(frame_file(tmp_path / "f.txt"))
    assert frame.shape == (rtt.MACHINES_MIN, rtt.MACHINES_MIN)
    assert frame[0, 1] == 12.5


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("12.5 far", "could not convert"),
        ("12.5 " * (rtt.MACHINES_MIN - 1), "99 numbers"),
        ("-1 " * rtt.MACHINES_MIN, "-1 ms to machine 1"),
        ("nan " * rtt.MACHINES_MIN, "nan ms to machine 1"),
        ("1e9 " * rtt.MACHINES_MIN, "at most 60,000"),
    ],
)
def test_frame_with_a_bad_line_is_a_sentence_with_file_and_line(
    tmp_path: Path, text: str, complaint: str
) -> None:
    path = frame_file(tmp_path / "f.txt", {6: text})
    with pytest.raises(FigureError, match=complaint) as caught:
        rtt.read_frame(path)
    assert f"{path}:7: " in str(caught.value)


def test_frame_that_is_no_square_or_no_text_is_refused(tmp_path: Path) -> None:
    path = frame_file(tmp_path / "f.txt")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(FigureError, match="a frame is a square"):
        rtt.read_frame(path)
    packed = tmp_path / "f.xz"
    packed.write_bytes(b"no archive")
    with pytest.raises(FigureError, match="cannot be read"):
        rtt.read_frame(packed)


def test_frames_of_unlike_sizes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [frame_file(tmp_path / "a.txt"), frame_file(tmp_path / "b.txt", size=rtt.MACHINES_MIN + 1)]
    monkeypatch.setenv(rtt.VARIABLE, os.pathsep.join(map(str, paths)))
    with pytest.raises(FigureError, match=r"b\.txt: 101 machines, but 100"):
        rtt.read_frames()


def test_spot_trace_with_a_bad_line_is_a_sentence_with_file_and_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "spot.csv"
    path.write_text("0,3\n60000,many\n")
    monkeypatch.setenv(p9_goodput.SPOT_VARIABLE, str(path))
    with pytest.raises(FigureError, match=r"spot\.csv:2: "):
        p9_goodput.measure()


def test_openb_of_ones_own_is_measured_and_held_against_nothing_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes, pods = tmp_path / "nodes.csv", tmp_path / "pods.csv"
    nodes.write_text("cpu_milli,memory_mib,gpu,model\n" + "64000,262144,4,T4\n" * 3)
    pods.write_text(
        "cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\n" + "4000,16384,1,500,\n8000,32768,2,1000,T4\n" * 4
    )
    monkeypatch.setenv(p5_openb.NODES_VARIABLE, str(nodes))
    monkeypatch.setenv(p5_openb.PODS_VARIABLE, str(pods))
    cases = p5_openb.measure(seeds=range(2))
    assert [one.case for one in cases] == ["own-pods", "own-pods-of-bound"]
    assert 50 < cases[0].value <= 100
    pods.write_text("cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\n4000,16384,1,x,\n")
    with pytest.raises(FigureError, match=r"pods\.csv:2: gpu_milli is 'x'"):
        p5_openb.measure(seeds=range(1))


def test_perturbed_data_differs_from_ours_and_is_read_by_the_same_readers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = perturb.write(tmp_path, seed=3)
    for variable, named in paths.items():
        monkeypatch.setenv(variable, os.pathsep.join(map(str, named)))
    frames = rtt.read_frames()
    assert [len(frame) for frame in frames] == [368] * 3
    assert np.array_equal(np.isfinite(frames[0]), np.ones((368, 368), dtype=np.bool_))
    spot = read_availability(paths[p9_goodput.SPOT_VARIABLE][0])
    assert spot[0][0] == 0
    assert spot != read_availability(p9_goodput.SPOT)
    cluster = openb.read_nodes(paths[p5_openb.NODES_VARIABLE][0])
    assert cluster.capacity_milli != openb.read_nodes().capacity_milli
    assert len(openb.read_pods(paths[p5_openb.PODS_VARIABLE][0], cluster.models)) == 8_152
