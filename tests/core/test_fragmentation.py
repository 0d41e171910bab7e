"""What a placement leaves behind: exact cases by hand, and what must hold whatever arrives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import openb
from benchmarks.p5_openb import Fgd, Ours, Policy, allocated, at_random, best_fit, bound_milli
from orchestrator.core.scheduling.fragmentation import (
    GAP_WEIGHT,
    STEP,
    WHOLE_MILLI,
    Fragmentation,
    Machines,
    Shape,
    Shapes,
    Worth,
    prices,
)

PLENTY = 1_000_000


def machines(*free: tuple[int, ...], cpu: int = PLENTY, memory: int = PLENTY) -> Machines:
    """One machine a tuple, which says what is free of each of its devices."""
    width = max(len(devices) for devices in free)
    table = np.array([devices + (0,) * (width - len(devices)) for devices in free], dtype=np.int64)
    rows = len(free)
    return Machines(
        np.full(rows, cpu, dtype=np.int64),
        np.full(rows, memory, dtype=np.int64),
        table,
        np.zeros(rows, dtype=np.int64),
    )


def share(milli: int, cpu: int = 0) -> Shape:
    return Shape(cpu, 0, 1, milli)


def whole(devices: int, cpu: int = 0) -> Shape:
    return Shape(cpu, 0, devices)


def empty_and_used(used: tuple[int, ...], *runs: tuple[int, Shape, tuple[int, ...]]) -> Fragmentation:
    """A table of two equal machines, with requests taken."""
    fragmentation = Fragmentation(machines(used, used), {share(470): 1, share(530): 1})
    for row, shape, devices in runs:
        fragmentation.take(row, shape, devices)
    return fragmentation


# ---------------------------------------------------------------- prices


@pytest.mark.parametrize(
    ("shares", "weights", "expected"),
    [
        ([500], [1.0], [1 / 2]),
        ([340], [1.0], [1 / 2]),
        ([810], [1.0], [1.0]),
        ([300, 700], [5.0, 1.0], [1 / 3, 2 / 3]),
        ([160, 810], [1.0, 9.0], [0.0, 1.0]),
    ],
)
def test_prices_of_few_shares_are_those_of_the_best_packing(
    shares: list[int], weights: list[float], expected: list[float]
) -> None:
    # With few 700s three 300s fill a device of their own; with many 810s a 160 rides along for nothing.
    assert prices(np.array(shares), np.array(weights)) == pytest.approx(expected)


def test_prices_of_a_pair_that_fills_a_device_add_up_to_it() -> None:
    assert prices(np.array([300, 700]), np.ones(2)).sum() == pytest.approx(1.0)


@given(st.dictionaries(st.integers(1, WHOLE_MILLI - 1), st.integers(1, 100), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_prices_of_any_histogram_never_charge_a_device_more_than_itself(histogram: dict[int, int]) -> None:
    shares = np.array(sorted(histogram))
    found = prices(shares, np.array([float(histogram[int(one)]) for one in shares]))
    assert found.min() >= 0
    # The dearest filling of one device, by trying every room in hundredths.
    best = [0.0] * 101
    for room in range(1, 101):
        fitting = [
            best[room - units] + price
            for units, price in zip((-(-shares // 10)).tolist(), found.tolist(), strict=True)
            if units <= room
        ]
        best[room] = max([best[room - 1], *fitting])
    assert best[100] <= 1 + 1e-6


# ---------------------------------------------------------------- worth and increase


def test_worth_of_whole_devices_is_gap_and_reach_by_hand() -> None:
    worth = Worth({whole(1): 3, whole(4): 1})
    found = worth.of(machines((1000, 1000, 1000, 1000), (1000, 1000, 0, 0), (0, 0, 0, 0)))
    assert found == pytest.approx([GAP_WEIGHT * 4000 + 4000, GAP_WEIGHT * 2000 + 0.75 * 2000, 0.0])


def test_worth_of_devices_without_processors_is_their_gap_alone() -> None:
    worth = Worth({whole(1, cpu=8): 1})
    assert worth.of(machines((1000, 1000), cpu=7)) == pytest.approx([GAP_WEIGHT * 2000])


def test_worth_of_a_gap_that_nothing_fills_is_nothing() -> None:
    worth = Worth({share(810): 1})
    assert worth.of(machines((190, 0)))[0] == 0.0


def test_worth_of_the_wrong_model_is_not_within_reach() -> None:
    worth = Worth({replace(whole(1), models=frozenset({7})): 1})
    assert worth.of(machines((1000,)))[0] == pytest.approx(GAP_WEIGHT * 1000)


def test_increase_where_nothing_fits_is_infinite() -> None:
    fragmentation = Fragmentation(machines((1000, 0), (1000, 1000)))
    increase = fragmentation.increase(np.array([0, 1]), whole(2))
    assert np.isinf(increase[0])
    assert np.isfinite(increase[1])


def test_best_of_a_share_fills_the_gap_that_was_left_for_it() -> None:
    fragmentation = empty_and_used((1000, 1000), (1, share(470), (1,)))
    assert fragmentation.best(share(530)) == 1
    assert fragmentation.devices(1, share(530)) == (1,)


def test_best_of_a_small_job_spares_the_whole_machine() -> None:
    fragmentation = Fragmentation(machines((1000,) * 4, (1000,) * 4), {whole(1): 1, whole(4): 1})
    fragmentation.take(1, whole(1), (0,))
    assert fragmentation.best(whole(1)) == 1
    assert fragmentation.best(whole(4)) == 0


def test_best_of_work_without_devices_goes_where_no_device_is_stranded() -> None:
    table = machines((1000,), (1000,), cpu=10)
    fragmentation = Fragmentation(table, {whole(1, cpu=6): 1})
    fragmentation.take(1, whole(1, cpu=4), (0,))
    assert fragmentation.best(Shape(6, 0, 0)) == 1


def test_best_of_equal_losses_matches_processors_per_device() -> None:
    table = machines((1000,), (1000,), (1000,))
    table.cpu_milli[:] = (64_000, 12_000, 4_000)
    fragmentation = Fragmentation(table, {whole(1): 1})
    assert fragmentation.best(whole(1, cpu=11_000)) == 1
    assert fragmentation.best(whole(1, cpu=3_000)) == 2


def test_best_of_an_empty_table_is_none() -> None:
    assert Fragmentation(machines((0,), cpu=0)).best(whole(1)) is None
    none = np.zeros(0, dtype=np.int64)
    nothing = Machines(none, none, np.zeros((0, 8), dtype=np.int64), none)
    assert Fragmentation(nothing).best(whole(1)) is None


def test_match_of_processors_never_outweighs_a_step() -> None:
    table = machines((1000,), (1000,))
    table.cpu_milli[:] = (1, PLENTY)
    increase = Fragmentation(table, {whole(1): 1}).increase(np.array([0, 1]), whole(1, cpu=1))
    assert abs(increase[0] - increase[1]) < STEP


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ((-1, 0, 1, 1000), "cpu_milli"),
        ((0, -1, 1, 1000), "memory_mib"),
        ((0, 0, -1, 1000), "devices"),
        ((0, 0, 1, 0), "share_milli"),
        ((0, 0, 1, 1001), "share_milli"),
        ((0, 0, 2, 500), "share_milli"),
    ],
)
def test_shape_that_makes_no_sense_names_its_field(values: tuple[int, int, int, int], field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}: "):
        Shape(*values)


def test_take_of_more_than_is_free_changes_nothing() -> None:
    fragmentation = empty_and_used((1000,), (0, share(600), (0,)))
    with pytest.raises(ValueError, match="not enough free"):
        fragmentation.take(0, share(470), (0,))
    assert fragmentation.machines.free_milli[0, 0] == 400


def test_give_of_what_was_never_taken_is_refused() -> None:
    with pytest.raises(ValueError, match="was not taken"):
        empty_and_used((1000,)).give(0, share(470), (0,))


@pytest.mark.parametrize("devices", [(), (0, 0), (0, 1), (5,), (-1,)])
def test_take_of_other_devices_than_asked_is_refused(devices: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="devices"):
        empty_and_used((1000, 1000)).take(0, whole(1), devices)


def test_fade_of_old_arrivals_lets_new_ones_decide() -> None:
    shapes = Shapes({whole(1): 8.0})
    shapes.fade(0.25)
    shapes.add(whole(2))
    assert shapes.weights == {whole(1): 2.0, whole(2): 1.0}
    with pytest.raises(ValueError, match="factor"):
        shapes.fade(1.5)


# ---------------------------------------------------------------- properties

SHAPES = st.one_of(
    st.builds(Shape, st.integers(0, 40), st.integers(0, 40), st.integers(0, 4)),
    st.builds(
        Shape, st.integers(0, 40), st.integers(0, 40), st.just(1), st.integers(1, 99).map(lambda n: n * 10)
    ),
)


@st.composite
def tables(draw: st.DrawFn) -> Machines:
    counts = draw(st.lists(st.integers(0, 4), min_size=1, max_size=6))
    table = machines(*((1000,) * count + (0,) * (4 - count) for count in counts))
    for column in (table.cpu_milli, table.memory_mib):
        column[:] = draw(st.lists(st.integers(0, 100), min_size=len(counts), max_size=len(counts)))
    return table


@given(tables(), st.lists(SHAPES, max_size=40), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_every_policy_never_oversubscribes_and_drops_only_what_does_not_fit(
    table: Machines, arriving: list[Shape], seed: int
) -> None:
    policies: list[tuple[Policy, Machines]] = []
    here = table.copy()
    policies.append((best_fit(here), here))
    here = table.copy()
    policies.append((at_random(here, seed), here))
    here = table.copy()
    policies.append((Fgd(here, None), here))
    ours = Fragmentation(table)
    policies.append((Ours(ours), ours.machines))
    for policy, left in policies:
        served = []
        for shape in arriving:
            fitted = bool(left.fits(shape).any())
            assert policy.place(shape) == fitted
            served += [shape] if fitted else []
        assert min(left.cpu_milli.min(), left.memory_mib.min(), left.free_milli.min()) >= 0
        assert table.cpu_milli.sum() - left.cpu_milli.sum() == sum(shape.cpu_milli for shape in served)
        assert table.memory_mib.sum() - left.memory_mib.sum() == sum(shape.memory_mib for shape in served)
        assert table.free_milli.sum() - left.free_milli.sum() == sum(shape.asked_milli for shape in served)


@given(tables(), st.lists(SHAPES, min_size=1, max_size=30), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_increase_kept_up_to_date_equals_one_computed_afresh(
    table: Machines, arriving: list[Shape], seed: int
) -> None:
    generator = np.random.default_rng(seed)
    histogram = dict.fromkeys(arriving, 1.0)
    kept = Fragmentation(table, histogram)
    runs: list[tuple[int, Shape, tuple[int, ...]]] = []
    every = np.arange(len(table.cpu_milli))
    for shape in arriving:
        row = kept.best(shape)
        if row is not None:
            runs.append((row, shape, kept.devices(row, shape)))
            kept.take(*runs[-1])
        if runs and generator.random() < 0.3:
            kept.give(*runs.pop(int(generator.integers(len(runs)))))
        afresh = Fragmentation(table, histogram)
        for run in runs:
            afresh.take(*run)
        for asked in histogram:
            assert np.array_equal(kept.increase(every, asked), afresh.increase(every, asked))


@given(tables(), st.lists(SHAPES, min_size=1, max_size=20))
@settings(max_examples=40, deadline=None)
def test_increase_of_many_equal_machines_is_that_of_one(table: Machines, arriving: list[Shape]) -> None:
    copies = 40
    histogram = dict.fromkeys(arriving, 1.0)
    few = Fragmentation(table, histogram)
    many = Fragmentation(table.rows(np.tile(np.arange(len(table.cpu_milli)), copies)), histogram)
    for shape in histogram:
        one = few.increase(np.arange(len(table.cpu_milli)), shape)
        assert np.allclose(many.increase(np.arange(len(one) * copies), shape), np.tile(one, copies))


@given(tables(), st.lists(SHAPES, min_size=1, max_size=25))
@settings(max_examples=25, deadline=None)
def test_bound_is_exceeded_by_no_policy(table: Machines, arriving: list[Shape]) -> None:
    if not any(shape.devices for shape in arriving):
        arriving = [*arriving, whole(1)]
    limit = bound_milli(table, arriving)
    assert allocated(Ours(Fragmentation(table)), arriving) <= limit + 1e-3
    assert allocated(best_fit(table.copy()), arriving) <= limit + 1e-3


def test_bound_of_two_large_shares_on_one_device_is_one_of_them() -> None:
    assert bound_milli(machines((1000,)), [share(600), share(600)]) == pytest.approx(600)


# ---------------------------------------------------------------- the trace

NODES = "sn,cpu_milli,memory_mib,gpu,model\nn0,64000,262144,2,P100\nn1,32000,1024,1,T4\n"
PODS = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "trace.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_trace_of_two_nodes_reads_as_written(tmp_path: Path) -> None:
    cluster = openb.read_nodes(written(tmp_path, NODES))
    assert cluster.capacity_milli == 3_000
    assert cluster.models == {"P100": 0, "T4": 1}
    assert cluster.machines.free_milli.tolist() == [[1000, 1000], [1000, 0]]
    text = PODS + "p0,4,8,1,460,\np1,4,8,2,1000,T4|P100\np2,4,8,0,,\np3,4,8,1,1000,H100\n"
    pods = openb.read_pods(written(tmp_path, text), cluster.models)
    assert pods[:3] == [Shape(4, 8, 1, 460), Shape(4, 8, 2, models=frozenset({0, 1})), Shape(4, 8, 0)]
    assert not cluster.machines.fits(pods[3]).any()


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("p0,-4,8,1,460,", "trace.csv:2: cpu_milli is -4"),
        ("p0,four,8,1,460,", "trace.csv:2: cpu_milli is 'four', not a whole number"),
        ("p0,4,8,1,1e9,", "trace.csv:2: gpu_milli is '1e9', not a whole number"),
        ("p0,4,8,1,0,", "trace.csv:2: share_milli: 0"),
        ("p0,4,8,1000000000,1000,", "trace.csv:2: num_gpu is 1000000000"),
        ("p0,4,8", "trace.csv:2: fewer fields"),
    ],
)
def test_trace_with_a_bad_pod_names_file_and_line(tmp_path: Path, row: str, complaint: str) -> None:
    with pytest.raises(openb.TraceError, match=complaint.replace(".", r"\.")):
        openb.read_pods(written(tmp_path, f"{PODS}{row}\n"), {})


def test_trace_without_a_column_names_it(tmp_path: Path) -> None:
    with pytest.raises(openb.TraceError, match=r"trace\.csv:1: column 'gpu_milli' is missing"):
        openb.read_pods(written(tmp_path, "name,cpu_milli,memory_mib,num_gpu,gpu_spec\n"), {})


def test_trace_that_is_not_there_or_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(openb.TraceError, match="cannot be read"):
        openb.read_nodes(tmp_path / "absent.csv")
    with pytest.raises(openb.TraceError, match="no node"):
        openb.read_nodes(written(tmp_path, NODES.splitlines()[0] + "\n"))


def test_trace_with_too_many_rows_stops_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openb, "ROWS_MAX", 1)
    with pytest.raises(openb.TraceError, match=r"trace\.csv:3: more than 1 rows"):
        openb.read_nodes(written(tmp_path, NODES))


def test_inflated_load_ends_below_its_bound_and_repeats_by_seed() -> None:
    pods = [share(500), whole(1), Shape(1, 1, 0)]
    arriving = openb.inflated(pods, 10_000, 1.3, seed=3)
    assert arriving == openb.inflated(pods, 10_000, 1.3, seed=3)
    assert 12_000 < sum(pod.asked_milli for pod in arriving) <= 13_000
    assert set(arriving[:3]) == set(pods)
