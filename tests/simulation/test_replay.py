"""Simulated traces: small ones whose results are known by hand, real ones that must come to an end, and the command."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path
from random import Random

import pytest

from benchmarks import p9_goodput
from orchestrator.cli.main import run
from orchestrator.core.supply.fleet import HardwareClass
from orchestrator.sim.replay import Options, Replay, ReplayError
from orchestrator.sim.replay_report import PLOTS, Report, report, write_plots
from orchestrator.sim.replay_tally import POINTS_MAX, SAMPLES_MAX, Readings, Samples, Series
from orchestrator.sim.traces import Machines, TracedJob, read_availability, read_fleet, read_trace

DATA = Path(__file__).parents[2] / "benchmarks" / "data"
NODES = DATA / "openb" / "openb_node_list_gpu_node.csv"
PODS = DATA / "openb" / "openb_pod_list_default.csv"
SPOT = DATA / "spot" / "p3.csv"

COLD = Options(warm_ms=0, checkpoint_every_ms=0)
"""A cluster forms in 20 s and ends with its job; no checkpoints."""

S = 1000


def machines(count: int = 1, gpus: int = 1, region: str = "") -> Machines:
    return Machines(count, gpus, "RTX4090", 24, HardwareClass.CONSUMER, region=region)


def job(tenant: str = "a", submit_s: int = 0, duration_s: int = 100, gpus: int = 1) -> TracedJob:
    return TracedJob(submit_s * S, tenant, gpus, duration_s * S)


def ended(replay: Replay) -> Replay:
    while replay.step():
        pass
    return replay


def replayed(
    fleet: Machines | tuple[Machines, ...],
    jobs: list[TracedJob],
    options: Options = COLD,
    availability: tuple[tuple[int, int], ...] = (),
) -> Report:
    several = fleet if isinstance(fleet, tuple) else (fleet,)
    return report(ended(Replay(several, jobs, options, availability)))


def mixed(count: int, seed: int) -> list[TracedJob]:
    """Jobs of four tenants, of one GPU to four machines of four."""
    chance = Random(seed)
    jobs, at_s = [], 0
    for _ in range(count):
        at_s += chance.randrange(200)
        name = f"t{chance.randrange(4)}"
        jobs.append(job(name, at_s, chance.randrange(1, 7_200), chance.choice([1, 2, 4, 8, 16])))
    return jobs


# ---------------------------------------------------------------- known by hand


def test_replay_two_jobs_on_one_gpu_run_one_after_the_other() -> None:
    found = replayed(machines(), [job("a"), job("b", duration_s=50)])
    # 0–20 forms, –120 runs; –140 forms, –190 runs.
    assert (found.jobs_arrived, found.jobs_done, found.simulated_s) == (2, 2, 190)
    assert (found.wait_s_p50, found.wait_s_p90, found.wait_s_p99) == (20, 140, 140)
    assert (found.jct_s_mean, found.jct_s_p50, found.jct_s_p99) == (155, 120, 190)
    assert found.utilisation == 1
    assert found.goodput == pytest.approx(150 / 190)
    assert (found.fragmentation_gpus, found.fairness_jain) == (0, None)


def test_replay_next_job_of_a_tenant_starts_on_its_warm_cluster() -> None:
    found = replayed(machines(), [job(), job()], replace(COLD, warm_ms=60 * S))
    assert (found.jct_s_p50, found.jct_s_p99) == (120, 220)


def test_replay_warm_cluster_gives_way_to_another_tenant_at_once() -> None:
    found = replayed(machines(), [job("a"), job("b")], replace(COLD, warm_ms=60 * S))
    assert (found.jct_s_p50, found.jct_s_p99) == (120, 120 + 20 + 100)
    assert found.utilisation == 1


def test_replay_checkpoints_cost_their_time_between_stretches_of_work() -> None:
    options = replace(COLD, checkpoint_every_ms=25 * S, checkpoint_cost_ms=5 * S, formation_ms=0)
    found = replayed(machines(), [job()], options)
    # Three, and none at the end.
    assert found.jct_s_mean == 115
    assert found.goodput == pytest.approx(100 / 115)


def test_replay_lost_machine_costs_what_no_checkpoint_holds() -> None:
    options = replace(COLD, checkpoint_every_ms=30 * S, checkpoint_cost_ms=0)
    away = ((0, 1), (100 * S, 0), (200 * S, 1))
    found = replayed(machines(), [job(duration_s=150)], options, away)
    # 20–100 runs, of which 60 s are kept; the machine is back at 200, 220–310 runs.
    assert (found.interruptions, found.jct_s_mean) == (1, 310)
    assert found.goodput == pytest.approx(150 / 210)
    assert found.utilisation == 1
    without = replayed(machines(), [job(duration_s=150)], COLD, away)
    assert without.jct_s_mean == 370


def test_replay_notice_lets_a_job_save_all_and_go_on_where_a_spare_waits() -> None:
    options = replace(COLD, checkpoint_cost_ms=5 * S, notice_ms=30 * S)
    found = [
        replayed(machines(2), [job()], replace(options, seed=seed), ((0, 2), (80 * S, 1)))
        for seed in range(6)
    ]
    # 20–75 runs, the checkpoint is written until 80, and the other machine is ready: 80–125. Or the other one goes.
    assert {(one.jct_s_mean, one.interruptions) for one in found} == {(125, 1), (120, 0)}


def test_replay_notice_too_short_for_a_checkpoint_saves_nothing() -> None:
    options = replace(COLD, checkpoint_cost_ms=50 * S, notice_ms=30 * S)
    found = [
        replayed(machines(2), [job()], replace(options, seed=seed), ((0, 2), (80 * S, 1)))
        for seed in range(6)
    ]
    assert {(one.jct_s_mean, one.interruptions) for one in found} == {(180, 1), (120, 0)}


def test_replay_machine_lost_while_a_gang_forms_is_replaced_by_another() -> None:
    found = [
        replayed(machines(3), [job(gpus=2)], replace(COLD, seed=seed), ((0, 3), (10 * S, 2)))
        for seed in range(6)
    ]
    assert {one.interruptions for one in found} == {0}
    # A bystander goes; or a member, whose successor is there 20 s later.
    assert {one.jct_s_mean for one in found} == {120, 130}


def test_replay_free_gpus_that_nothing_fits_are_fragmentation() -> None:
    found = replayed(machines(gpus=4), [job(gpus=3), job("b", gpus=2)])
    # One GPU is free in the 120 s that the second waits; two in its own 120 s, when nobody does.
    assert found.fragmentation_gpus == 1
    assert found.fragmentation == 0.25
    assert found.utilisation == pytest.approx((3 * 120 + 2 * 120) / (4 * 240))


def test_replay_job_larger_than_the_fleet_never_fits_and_ends_nothing() -> None:
    found = replayed(machines(2, gpus=2), [job(gpus=5), job("b")])
    assert (found.jobs_never_fitted, found.jobs_waiting, found.jobs_done) == (1, 0, 1)
    assert found.fragmentation is None


def test_replay_until_ends_with_what_runs() -> None:
    found = replayed(machines(), [job(), job()], replace(COLD, until_ms=70 * S))
    assert (found.simulated_s, found.jobs_done, found.jobs_running, found.jobs_waiting) == (70, 0, 1, 1)
    assert found.goodput == pytest.approx(50 / 70)


def test_replay_speed_brings_arrivals_together() -> None:
    found = replayed(machines(), [job(), job(submit_s=240)], replace(COLD, speed=2.0))
    assert (found.simulated_s, found.wait_s_p99) == (240, 20)


def test_replay_gang_within_a_bound_stays_in_its_region() -> None:
    fleet = (machines(2, 2, "eu"), machines(2, 2, "us"))
    near = replace(job(gpus=4), max_rtt_ms=10)
    assert replayed(fleet, [near, near]).jct_s_p99 == 120
    assert replayed(fleet, [replace(near, gpus=6)]).jobs_never_fitted == 1
    assert replayed(fleet, [replace(near, gpus=6, max_rtt_ms=80)]).jobs_done == 1


def test_replay_fair_shares_contention_by_weight_and_fifo_by_arrival() -> None:
    jobs = [job("a", duration_s=200) for _ in range(60)] + [job("b", 1, 200) for _ in range(60)]
    options = replace(COLD, until_ms=3_600 * S)
    fair = replayed(machines(4), jobs, options)
    assert fair.fairness_jain is not None
    assert fair.fairness_jain > 0.98
    fifo = replayed(machines(4), jobs, replace(options, policy="fifo"))
    assert fifo.fairness_jain == pytest.approx(0.5, abs=0.01)
    heavy = [replace(one, weight=300 if one.tenant == "a" else 100) for one in jobs]
    weighted = replayed(machines(4), heavy, replace(options, until_ms=2_400 * S))
    assert weighted.fairness_jain is not None
    assert weighted.fairness_jain > 0.98


def test_replay_higher_priority_of_a_tenant_goes_first() -> None:
    jobs = [job(), job(duration_s=10), replace(job(duration_s=50), priority=5)]
    found = replayed(machines(), jobs)
    # 0–70, then 70–190 and 190–220 by age.
    assert (found.jct_s_mean, found.jct_s_p50, found.jct_s_p99) == (160, 190, 220)


# ---------------------------------------------------------------- real ones


def test_replay_job_that_comes_to_its_time_limit_is_cut_short_and_counts_for_nothing() -> None:
    jobs = [replace(job("a"), time_limit_ms=60 * S), replace(job("b"), time_limit_ms=100 * S)]
    found = replayed(machines(), jobs)
    # 0–20 forms, –80 runs and is stopped; –100 forms, –200 runs to its end.
    assert (found.jobs_cut_short, found.jobs_done, found.simulated_s) == (1, 1, 200)
    assert found.goodput == pytest.approx(100 / 200)


def test_replay_backfill_uses_what_is_kept_and_delays_nobody() -> None:
    hour_s = 3_600
    long = [replace(job("a", duration_s=4 * hour_s), time_limit_ms=4 * hour_s * S) for _ in range(3)]
    gang = [job("b", 60, hour_s, 4)]
    short = [replace(job("c", at_s, 600), time_limit_ms=600 * S) for at_s in range(120, 4 * hour_s, 700)]
    jobs = sorted(long + gang + short, key=lambda one: one.submit_ms)
    with_it, without = (
        replayed(machines(gpus=4), jobs, replace(COLD, policy=policy)) for policy in ("fair", "no-backfill")
    )
    assert with_it.jobs_done == without.jobs_done == len(jobs)
    assert with_it.fragmentation_gpus is not None
    assert without.fragmentation_gpus is not None
    assert with_it.fragmentation_gpus < without.fragmentation_gpus
    assert with_it.gpu_hours_held == pytest.approx(without.gpu_hours_held)
    assert with_it.jct_s_mean is not None
    assert without.jct_s_mean is not None
    assert with_it.jct_s_mean < without.jct_s_mean
    assert with_it.simulated_s <= without.simulated_s


def test_replay_openb_sample_ends_and_is_the_same_again() -> None:
    def sample() -> Report:
        jobs = islice(read_trace(PODS), 200)
        return report(ended(Replay(read_fleet(NODES)[:20], jobs, Options())))

    found = sample()
    assert found == sample()
    assert found.jobs_arrived == 200
    assert found.jobs_done + found.jobs_never_fitted == 200
    assert found.jobs_rounded_up > 0


@pytest.mark.parametrize(("seed", "notice_s"), [(0, 0), (1, 0), (1, 120)])
def test_replay_under_spot_churn_finishes_all_and_leaves_nothing_behind(seed: int, notice_s: int) -> None:
    options = replace(Options(), seed=seed, warm_ms=0, notice_ms=notice_s * S)
    replay = ended(Replay((machines(32, 4),), mixed(120, seed), options, read_availability(SPOT)))
    found = report(replay)
    assert found.jobs_done == 120
    assert found.interruptions > 0
    assert found.gpu_hours_useful == pytest.approx(
        sum(one.gpus * one.duration_ms for one in mixed(120, seed)) / 3.6e6
    )
    assert 0 < (found.goodput or 0) < 1
    state = replay.house.state
    left = (
        state.jobs,
        state.attempts,
        state.leases,
        state.members,
        state.clusters,
        state.queues,
        state.waiting,
    )
    assert [len(table) for table in left] == [0] * len(left)


def test_replay_seed_decides_which_machines_go() -> None:
    found = {
        replayed(
            (machines(32, 4),), mixed(60, 0), replace(COLD, seed=seed), read_availability(SPOT)
        ).jct_s_mean
        for seed in (1, 1, 2)
    }
    assert len(found) == 2


def test_replay_never_holds_more_than_is_there() -> None:
    replay = Replay((machines(32, 4),), mixed(60, 3), COLD, read_availability(SPOT))
    while replay.step():
        tally, state = replay.tally, replay.house.state
        assert tally.held_gpus == sum(one.gpus for one in replay.unfinished.values() if one.held)
        assert tally.held_gpus == sum(
            state.members[one].gpus for held in state.members_on.values() for one in held
        )
        assert tally.held_gpus + replay.house.free_gpus() == tally.available_gpus


@pytest.mark.parametrize("notice_s", [0, 30])
def test_goodput_under_spot_churn_stays_below_what_knowing_all_would_reach(notice_s: int) -> None:
    availability = read_availability(SPOT)
    until_ms = 3_600 * S
    options = Options(
        until_ms=until_ms,
        formation_ms=p9_goodput.FORMATION_MS,
        checkpoint_cost_ms=p9_goodput.CHECKPOINT_MS,
        notice_ms=notice_s * S,
    )
    share, stays = p9_goodput.goodput(options, availability)
    assert 0.5 < share <= p9_goodput.clairvoyant(stays, until_ms) < 1


# ---------------------------------------------------------------- what is kept


def test_samples_beyond_the_bound_keep_a_fair_part() -> None:
    samples = Samples(Random(0))
    for value in range(3 * SAMPLES_MAX):
        samples.add(value)
    assert samples.mean == (3 * SAMPLES_MAX - 1) / 2
    assert samples.quantile(0.5) == pytest.approx(1.5 * SAMPLES_MAX, rel=0.02)
    assert len(samples.curve(10)) == 10


def test_series_of_any_length_keeps_its_integral_in_bounded_points() -> None:
    series = Series()
    for start in range(0, 9_000 * S, 500):
        series.add(start, start + 500, start // 500 % 2)
    points = series.points()
    assert len(points) <= POINTS_MAX
    assert {round(value, 6) for _, value in points} == {0.5}


# ---------------------------------------------------------------- the command


def files(folder: Path, fleet: str = "1,1,RTX4090", jobs: str = "0,a,1,100\n0,b,1,50") -> list[str]:
    (folder / "fleet.csv").write_text(f"workers,gpus,model\n{fleet}\n")
    (folder / "trace.csv").write_text(f"submit_s,tenant,gpus,duration_s\n{jobs}\n")
    return ["simulate", "--fleet", str(folder / "fleet.csv"), "--trace", str(folder / "trace.csv")]


def test_simulate_prints_a_table_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*files(tmp_path), "--warm", "0"]) == 0
    shown = capsys.readouterr()
    assert "2 arrived, 2 done" in shown.out
    assert "p50 20.0 s, p90 2.3 min" in shown.out
    assert shown.err == ""


def test_simulate_prints_json_and_writes_plots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plots = tmp_path / "plots"
    assert run([*files(tmp_path), "--warm", "0", "--output", "json", "--plots", str(plots)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["jobs_done"], found["jct_s_mean"], found["utilisation"]) == (2, 155, 1)
    for name in PLOTS:
        assert "<polyline" in (plots / f"{name}.svg").read_text()


def test_plots_end_in_what_the_table_says() -> None:
    """Two tenants want one machine that goes for a while: somebody waits, and work is done again."""
    jobs = [job(submit_s=0, duration_s=3_000, tenant=one) for one in ("a", "b", "a", "b")]
    options = replace(COLD, checkpoint_every_ms=100_000)
    replay = ended(Replay((machines(),), jobs, options, ((0, 1), (1_550_000, 0), (2_000_000, 1))))
    found = report(replay)
    assert found.goodput is not None
    assert found.goodput < 1
    assert found.fairness_jain is not None
    last = {name: plotted.points(replay)[-1][1] for name, plotted in PLOTS.items()}
    assert (last["goodput"], last["fairness"]) == (found.goodput, found.fairness_jain)
    assert last["completion"] == last["wait"] == 1
    assert len({value for _, value in PLOTS["goodput"].points(replay)}) > 2
    assert all(value == 0 for _, value in PLOTS["fragmentation"].points(replay)), "nothing was free"


def test_readings_of_a_long_time_stay_few() -> None:
    readings = Readings()
    for now_ms in range(0, 20_000_000, 700):
        if readings.due(now_ms):
            readings.add(now_ms, now_ms / 2)
    assert POINTS_MAX / 2 <= len(readings.points) <= POINTS_MAX
    assert all(value == now_ms / 2 for now_ms, value in readings.points)
    assert readings.points[-1][0] > 19_000_000


@pytest.mark.parametrize(
    ("extra", "complaint"),
    [
        (["--policy", "fare"], "--policy 'fare' is not known; nearest is fair"),
        (["--speed", "0"], "--speed is 0"),
        (["--speed", "nan"], "--speed is nan"),
        (["--until", "-1"], "--until is -1"),
        (["--formation", "nan"], "--formation is nan"),
        (["--near-rtt-ms", "0"], "--near-rtt-ms"),
        (["--rows-max", "1"], "trace.csv:3: more than 1 rows"),
        (["--availability", "/nowhere.csv"], "/nowhere.csv: cannot be read"),
        (["--availability", str(SPOT)], "machines are available, but the fleet has 1"),
    ],
)
def test_simulate_bad_option_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: list[str], complaint: str
) -> None:
    assert run([*files(tmp_path), *extra]) == 2
    shown = capsys.readouterr()
    assert complaint in shown.err
    assert (shown.out, shown.err.count("\n")) == ("", 1)


def test_simulate_wrong_last_row_is_told_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(files(tmp_path, jobs="10,a,1,1\n5,a,1,1")) == 2
    assert "trace.csv:3: submitted at 5 s, before" in capsys.readouterr().err


def test_replay_more_available_than_there_are_is_refused() -> None:
    with pytest.raises(ReplayError, match="give a larger fleet"):
        Replay((machines(),), [job()], COLD, ((0, 2),))


def test_simulate_into_a_folder_that_cannot_be_says_so_before_it_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("a file")
    assert run([*files(tmp_path), "--plots", str(tmp_path / "taken" / "plots")]) == 2
    shown = capsys.readouterr()
    assert "--plots: " in shown.err
    assert shown.out == "", "it ran for nothing"


def test_plots_of_nothing_are_empty_axes(tmp_path: Path) -> None:
    replay = Replay((machines(),), [job()], COLD)
    assert [path.name for path in write_plots(replay, tmp_path)] == [f"{name}.svg" for name in PLOTS]
