"""Collectors as the catalogue declares them, pages as Prometheus reads them, and the table in the docs."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from shutil import which

import pytest
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.adapters.metrics.catalogue import ALL, NETWORK, PER_WORKER, Kind
from orchestrator.adapters.metrics.registry import BATCHES_KEPT, Metrics, short_name
from orchestrator.adapters.metrics.worker_pages import (
    DEVICES_PER_PAGE_MAX,
    PAGE_BYTES_MAX,
    WorkerRow,
    devices_each,
    page_text,
)
from orchestrator.api.v1.telemetry_pb2 import DeviceSample
from orchestrator.control.measuring.places import WORKERS_PER_PAGE
from orchestrator.core.decisions.terms import REGIONS_MAX
from orchestrator.core.supply.hardware import DEVICES_MAX
from scripts.docs import DOCS, metrics_text

FORBIDDEN = {"job", "user", "tenant", "submission", "attempt"}
"""Labels that would tell who does what, or grow without end."""

UNITS = ("bytes", "celsius", "info", "microcredits", "ratio", "seconds", "watts")
"""Base units as Prometheus has them, never thousands or parts of them; ``info`` is of what is always 1."""

COUNTS = {
    "agent_members",
    "agent_session_connected",
    "agent_statements_unacknowledged",
    "clusters",
    "device_ecc_uncorrected",
    "device_last_xid",
    "device_throttled",
    "gpus",
    "group_workers",
    "groups",
    "jobs",
    "leases",
    "loop_inbox_commands",
    "overlay_tunnels",
    "queue_gpus",
    "queue_jobs",
    "receipts_unaccounted",
    "receipts_unposted",
    "relay_connections",
    "reservations",
    "worker_holds",
    "workers",
    "workers_connected",
    "zones_held",
}
"""Gauges without a unit: numbers of things, yes or no, and a code. Whatever else is measured ends in its unit."""

TRICKY = 'a "rig"\\\n'

DEVICE = DeviceSample(
    device_id="GPU-1",
    utilization_ratio=0.25,
    memory_used_bytes=3,
    power_watts=320.5,
    temperature_celsius=71.0,
    ecc_uncorrected=5,
    last_xid=79,
    throttle_reasons=["power_cap", "hw_thermal"],
)

ROW = WorkerRow(
    "wrk_1",
    "sup_1",
    "consumer",
    expected_s=60.5,
    up_s=60.25,
    name=TRICKY,
    region="europe,germany",
    group="3",
    agent_version="0.1.0",
    certificate_s=3_600.0,
    cpu_ratio=0.5,
    memory_bytes=1_024.0,
    devices={"0": DEVICE},
)


def test_catalogue_names_are_unique_and_of_the_conventions() -> None:
    names = [metric.name for metric in ALL]
    assert len(names) == len(set(names)) == len({short_name(metric) for metric in ALL})
    for metric in ALL:
        assert re.fullmatch(r"orchestrator_[a-z][a-z0-9_]*", metric.name)
        assert (metric.kind is Kind.COUNTER) == metric.name.endswith("_total")
        assert (metric.kind is Kind.HISTOGRAM) == bool(metric.buckets)
        assert list(metric.buckets) == sorted(metric.buckets)
        assert not FORBIDDEN & set(metric.labels)
        assert metric.text.endswith(".")


def test_catalogue_gauges_and_histograms_end_in_a_unit_or_are_plain_counts() -> None:
    measured = {
        metric.name.removeprefix("orchestrator_") for metric in ALL if metric.kind is not Kind.COUNTER
    }
    assert {name for name in measured if name.rpartition("_")[2] not in UNITS} == COUNTS
    histograms = {metric.name for metric in ALL if metric.kind is Kind.HISTOGRAM}
    assert all(name.endswith("_seconds") for name in histograms)


def test_metrics_are_those_of_the_catalogue_and_of_the_process() -> None:
    families = {one.name: one for one in text_string_to_metric_families(Metrics().text().decode())}
    for metric in NETWORK:
        family = families.pop(metric.name.removesuffix("_total"))
        assert (family.type, family.documentation) == (metric.kind.value, metric.text)
    assert {name.split("_")[0] for name in families} == {"process", "python"}


@pytest.mark.parametrize("feed", ["add", "advance", "observe", "show"])
def test_metrics_name_that_nobody_declared_is_an_error(feed: str) -> None:
    metrics = Metrics()
    value = {(): 1.0} if feed == "show" else 1.0
    with pytest.raises(KeyError):
        getattr(metrics, feed)("invented", value)
    with pytest.raises(ValueError, match="label"):
        metrics.add("attempts", 1, ("failed", "of whom"))


def test_metrics_fed_are_those_to_which_something_came() -> None:
    metrics = Metrics()
    metrics.add("attempts", 0, ("failed",))
    metrics.show("group_workers", {})
    assert metrics.fed == set()
    assert 'orchestrator_attempts_total{outcome="failed"} 0.0' in metrics.text().decode()
    metrics.add("attempts", 1, ("failed",))
    metrics.observe("plan_seconds", 0.1)
    assert metrics.fed == {"orchestrator_attempts_total", "orchestrator_plan_seconds"}


def test_metrics_gauge_series_that_are_not_named_again_are_gone() -> None:
    metrics = Metrics()
    metrics.show("group_loss_ratio", {("1",): 0.5, ("2",): 0.1})
    metrics.show("group_loss_ratio", {("2",): 0.2})
    shown = [
        line for line in metrics.text().decode().splitlines() if line.startswith("orchestrator_group_loss")
    ]
    assert shown == ['orchestrator_group_loss_ratio{group="2"} 0.2']


def test_metrics_counter_advanced_never_falls() -> None:
    metrics = Metrics()
    for total in (10.0, 25.0, 3.0):
        metrics.advance("relay_bytes", total, ("in",))
    assert metrics.registry.get_sample_value("orchestrator_relay_bytes_total", {"direction": "in"}) == 25


def test_metrics_batches_are_counted_before_anybody_looks() -> None:
    metrics = Metrics()
    for number in range(1, BATCHES_KEPT + 3):
        metrics.batch(2, number % 2, 0.25, 0.5, 0.125)
        assert metrics.registry.get_sample_value("orchestrator_loop_commands_total") == 2 * number
    text = metrics.text().decode()
    events = (BATCHES_KEPT + 3) // 2
    assert f"orchestrator_loop_events_total {float(events)}" in text
    assert f"orchestrator_loop_commit_seconds_sum {events * 0.5}" in text
    assert f"orchestrator_loop_decide_seconds_count {float(BATCHES_KEPT + 2)}" in text


def test_metrics_batches_that_nobody_looks_at_do_not_pile_up() -> None:
    metrics = Metrics()
    for _ in range(BATCHES_KEPT):
        metrics.batch(1, 1, 0.0, 0.0, 0.0)
    assert "orchestrator_loop_commands_total" in metrics.fed


def test_worker_page_has_every_metric_of_the_catalogue_as_it_was_given() -> None:
    text = page_text([ROW]).decode()
    found = {family.name: family for family in text_string_to_metric_families(text)}
    assert found.keys() == {metric.name.removesuffix("_total") for metric in PER_WORKER}
    for metric in PER_WORKER:
        (sample,) = found[metric.name.removesuffix("_total")].samples
        assert tuple(sample.labels) == metric.labels
        assert sample.name == metric.name
    (info,) = found["orchestrator_worker_info"].samples
    assert info.labels["name"] == TRICKY
    assert found["orchestrator_worker_up_seconds"].samples[0].value == 60.25


def test_worker_page_of_what_nobody_knows_says_nothing_of_it() -> None:
    text = page_text([WorkerRow("wrk_1", "sup_1", "cpu", 1.0, 0.0)]).decode()
    families = {family.name for family in text_string_to_metric_families(text)}
    assert families == {"orchestrator_worker_expected_seconds", "orchestrator_worker_up_seconds"}
    assert page_text([]) == b""


@pytest.mark.parametrize(
    ("counts", "total", "each"),
    [([], 8, 0), ([2, 3], 8, 3), ([2, 2, 64], 8, 4), ([64, 64, 1], 8, 3), ([0, 8], 8, 8), ([9] * 4, 3, 0)],
)
def test_devices_each_takes_from_those_that_have_most(counts: list[int], total: int, each: int) -> None:
    assert devices_each(counts, total) == each
    assert sum(min(count, each) for count in counts) <= total


def test_worker_page_at_its_largest_is_bounded_and_says_what_it_leaves_out() -> None:
    longest = 1.2345678901234567e-100
    device = DeviceSample(
        utilization_ratio=longest,
        memory_used_bytes=2**64 - 1,
        power_watts=longest,
        temperature_celsius=longest,
        ecc_uncorrected=2**64 - 1,
        last_xid=2**32 - 1,
    )
    many = {str(number): device for number in range(DEVICES_MAX)}
    few = dict(list(many.items())[:8])
    row = WorkerRow(
        "wrk_" + "0" * 36,
        "sup_" + "0" * 36,
        "datacenter",
        *(longest, longest),
        name="n" * 63,
        region=",".join(["r" * 40] * REGIONS_MAX),
        group="1234567890",
        agent_version="9999.9999",
        certificate_s=longest,
        cpu_ratio=longest,
        memory_bytes=longest,
        devices=many,
    )
    honest = row._replace(worker="wrk_honest", devices=few)
    text = page_text([honest, *[row] * (WORKERS_PER_PAGE - 1)]).decode()
    assert len(text) <= PAGE_BYTES_MAX
    shown = text.count("\norchestrator_device_power_watts{")
    assert 0.9 * DEVICES_PER_PAGE_MAX < shown <= DEVICES_PER_PAGE_MAX
    assert text.count('orchestrator_device_power_watts{worker="wrk_honest"') == len(few)
    left_out = 8 + (WORKERS_PER_PAGE - 1) * DEVICES_MAX - shown
    assert text.splitlines()[-1].startswith(f"# left out here: {left_out} devices")


def test_pages_are_what_promtool_calls_well_formed() -> None:
    promtool = which("promtool")
    if promtool is None:
        pytest.skip("promtool: `make system` installs it")
    metrics = Metrics()
    metrics.batch(1, 1, 0.1, 0.1, 0.1)
    for text in (metrics.text(), page_text([ROW])):
        done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode() + done.stdout.decode()


def test_docs_table_is_what_the_catalogue_says() -> None:
    assert (Path(DOCS) / "metrics.md").read_text() == metrics_text(), "run `make docs`"
    for metric in ALL:
        assert f"| `{metric.name}` |" in metrics_text()
