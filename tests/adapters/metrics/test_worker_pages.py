"""A page of workers says what its rows do, whatever characters their labels hold and whatever is not known of them."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.adapters.metrics.catalogue import PER_WORKER
from orchestrator.adapters.metrics.worker_pages import WorkerRow, page_text
from orchestrator.api.v1.telemetry_pb2 import DeviceSample

Series = tuple[str, tuple[tuple[str, str], ...]]

WORDS = st.text(st.sampled_from('aZ09-_ %s"\\\n{},=#é'), max_size=8)
"""With all that means something in a line, in a template and in Python's formatting."""

NUMBERS = st.floats(allow_nan=False)
COUNTS = st.integers(0, 2**64 - 1)
UNKNOWN = st.none()

DEVICES = st.builds(
    DeviceSample,
    utilization_ratio=NUMBERS,
    memory_used_bytes=COUNTS,
    power_watts=NUMBERS,
    temperature_celsius=NUMBERS,
    ecc_uncorrected=UNKNOWN | COUNTS,
    last_xid=st.integers(0, 2**32 - 1),
    throttle_reasons=st.lists(st.just("power_cap"), max_size=1),
)

ROWS = st.lists(
    st.builds(
        WorkerRow,
        worker=WORDS,
        supplier=WORDS,
        hardware_class=WORDS,
        expected_s=NUMBERS,
        up_s=NUMBERS,
        name=WORDS,
        region=WORDS,
        group=WORDS,
        agent_version=WORDS,
        certificate_s=UNKNOWN | NUMBERS,
        cpu_ratio=UNKNOWN | NUMBERS,
        memory_bytes=UNKNOWN | COUNTS,
        devices=st.dictionaries(WORDS, DEVICES, max_size=3),
    ),
    max_size=4,
    unique_by=lambda row: row.worker,
)

PERCENT = WorkerRow("100%", "%s", "%%", 1.0, 0.5, name="%d")


def series_of(row: WorkerRow) -> dict[Series, float | None]:
    """All that a row may say, one by one; None: it does not know."""
    who = {"worker": row.worker}
    identity = who | {"supplier": row.supplier, "hardware_class": row.hardware_class}
    info = identity | {
        "name": row.name,
        "region": row.region,
        "group": row.group,
        "agent_version": row.agent_version,
    }
    found: list[tuple[str, dict[str, str], float | None]] = [
        ("worker_expected_seconds_total", identity, row.expected_s),
        ("worker_up_seconds_total", identity, row.up_s),
        ("worker_info", info, 1 if row.name or row.agent_version else None),
        ("worker_certificate_remaining_seconds", who, row.certificate_s),
        ("worker_cpu_utilization_ratio", who, row.cpu_ratio),
        ("worker_memory_used_bytes", who, row.memory_bytes),
    ]
    for device, sample in row.devices.items():
        which = who | {"device": device}
        found += [
            ("device_utilization_ratio", which, sample.utilization_ratio),
            ("device_memory_used_bytes", which, sample.memory_used_bytes),
            ("device_power_watts", which, sample.power_watts),
            ("device_temperature_celsius", which, sample.temperature_celsius),
            (
                "device_ecc_uncorrected",
                which,
                sample.ecc_uncorrected if sample.HasField("ecc_uncorrected") else None,
            ),
            ("device_last_xid", which, sample.last_xid),
            ("device_throttled", which, bool(sample.throttle_reasons)),
        ]
    return {(f"orchestrator_{name}", tuple(labels.items())): value for name, labels, value in found}


@given(ROWS)
@example([PERCENT])
@settings(max_examples=200)
def test_page_of_any_rows_is_read_as_what_they_say(rows: list[WorkerRow]) -> None:
    families = list(text_string_to_metric_families(page_text(rows).decode()))
    shown = {
        (sample.name, tuple(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }
    said = {key: value for row in rows for key, value in series_of(row).items() if value is not None}
    assert shown == said
    assert sum(len(family.samples) for family in families) == len(said)
    declared = [metric.name.removesuffix("_total") for metric in PER_WORKER]
    assert [family.name for family in families] == [
        name for name in declared if name in {one.name for one in families}
    ]
