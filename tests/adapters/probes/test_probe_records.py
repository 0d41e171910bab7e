from __future__ import annotations

import json
from dataclasses import replace

import pytest

from orchestrator.adapters.probes.records import (
    RANKS_MAX,
    RTT_US_MAX,
    BandwidthMeasured,
    Direction,
    PathMeasured,
    ReduceMeasured,
    read_reduce_line,
)
from orchestrator.adapters.probes.wire import Target, purpose_key

PATH = PathMeasured("wrk_1", 3, 3, 100, 200, 300, 50)
RING = ReduceMeasured(4, 1_000_000, 1000, "gloo")
LINE = {
    "method": "gloo",
    "ranks": 4,
    "bytes": 1_000_000,
    "duration_us": 1000,
    "bus_bits_per_s": 12_000_000_000,
}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sent", 0),
        ("received", 4),
        ("received", -1),
        ("rtt_min_us", -1),
        ("rtt_min_us", RTT_US_MAX + 1),
        ("rtt_min_us", None),
        ("rtt_median_us", 99),
        ("rtt_p90_us", 199),
        ("rtt_p90_us", 300.5),
        ("jitter_us", None),
        ("jitter_us", -1),
        ("peer", ""),
        ("peer", "a\nb"),
    ],
)
def test_path_absurd_figure_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        replace(PATH, **{field: value})  # type: ignore[arg-type]  # what a codec could hand over


def test_bandwidth_rate_follows_from_bytes_and_time() -> None:
    assert BandwidthMeasured("wrk_1", Direction.TO_PEER, 1_000_000, 8_000_000).bits_per_s == 1_000_000


@pytest.mark.parametrize(("count", "duration_us"), [(0, 1), (1, 0), (1 << 39, 1), (-1, 5)])
def test_bandwidth_absurd_figures_are_refused(count: int, duration_us: int) -> None:
    with pytest.raises(ValueError, match=r"bytes|duration_us|bits_per_s"):
        BandwidthMeasured("wrk_1", Direction.TO_PEER, count, duration_us)


def test_ring_bus_bandwidth_is_that_of_the_definition() -> None:
    # 8 Gbit in a second, moved 2 × 3 / 4 times over each link.
    assert RING.bus_bits_per_s == 12_000_000_000


@pytest.mark.parametrize("ranks", [1, RANKS_MAX + 1])
def test_ring_number_of_ranks_outside_bounds_is_refused(ranks: int) -> None:
    with pytest.raises(ValueError, match="ranks"):
        replace(RING, ranks=ranks)


def test_ring_line_of_the_script_is_read() -> None:
    assert read_reduce_line(json.dumps(LINE)) == RING


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("", "no JSON"),
        ("[" * 4000, "no JSON"),
        ("x" * 5000, "5000 characters"),
        ("[]", "other fields"),
        (json.dumps({"error": "rank 2 did not come"}), "rank 2 did not come"),
        (json.dumps({**LINE, "more": 1}), "other fields"),
        (json.dumps({**LINE, "ranks": "4"}), "ranks"),
        (json.dumps({**LINE, "ranks": True}), "ranks"),
        (json.dumps({**LINE, "method": "wish"}), "method"),
        (json.dumps({**LINE, "method": ["ring"]}), "method"),
        (json.dumps({**LINE, "bus_bits_per_s": 1}), "bus_bits_per_s"),
        (json.dumps({**LINE, "duration_us": float("nan")}), "duration_us"),
    ],
)
def test_ring_line_made_up_is_refused_with_a_reason(line: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        read_reduce_line(line)


@pytest.mark.parametrize(("host", "port", "field"), [("head.example", 1, "host"), ("127.0.0.1", 0, "port")])
def test_target_that_cannot_be_reached_is_refused_by_field(host: str, port: int, field: str) -> None:
    with pytest.raises(ValueError, match=field):
        Target("peer", host, port)


def test_key_for_each_purpose_differs_and_a_short_one_is_refused() -> None:
    assert purpose_key(bytes(16), b"echo") != purpose_key(bytes(16), b"ring")
    with pytest.raises(ValueError, match="key has 15 bytes"):
        purpose_key(bytes(15), b"echo")
