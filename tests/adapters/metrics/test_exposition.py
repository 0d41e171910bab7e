"""What others show, unpacked and sieved: whole, bounded, and never as anybody else's."""

from __future__ import annotations

import gzip
import itertools
import random
from collections import deque
from collections.abc import Iterable

import pytest

from orchestrator.adapters.metrics.exposition import (
    COUNTED_LINES_AT_ONCE,
    COUNTED_MAX,
    LINE_BYTES_MAX,
    LINES_MAX,
    OWN_TO_AGENT,
    OWN_TO_RAY,
    STEP_BYTES,
    TEXT_BYTES_MAX,
    WHO,
    Exposition,
    ExpositionError,
    ExpositionTooLargeError,
    Sieve,
    packed,
)

RAY = b"""# HELP ray_node_cpu_utilization How busy.
# TYPE ray_node_cpu_utilization gauge
ray_node_cpu_utilization{NodeAddress="127.0.0.2",label="a b # {c}"} 12.5
ray_tasks 3
python_info{version="3.11"} 1.0
"""


def sieved(parts: Iterable[bytes], own: tuple[str, ...] = OWN_TO_RAY) -> Exposition:
    sieve = Sieve(own)
    for part in parts:
        for _ in sieve.steps(part):
            pass
    return sieve.finish()


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_sieve_text_of_own_names_is_kept_to_the_byte(size: int) -> None:
    assert sieved(cut(packed(RAY), size)) == Exposition(RAY, 0)


def test_sieve_text_over_many_steps_is_kept_to_the_byte() -> None:
    noise = random.Random(1)
    text = b"".join(b'ray_x{n="%d"} %d\n' % (n, noise.getrandbits(60)) for n in range(20_000))
    assert len(text) > 5 * STEP_BYTES
    assert sieved(cut(packed(text), 1_000)) == Exposition(text, 0)


FOREIGN = (
    b"orchestrator_workers 0",
    b'orchestrator_loop_lag_seconds{job="x"} 99',
    b"up 0",
    b'ALERTS{alertname="x"} 1',
    b" orchestrator_workers 0",
    b"\torchestrator_workers 0",
    b'{"orchestrator_workers"} 0',
    b"# TYPE orchestrator_workers gauge",
    b"# HELP orchestrator_workers Lies.",
    b"rayon 1",
)


@pytest.mark.parametrize("line", FOREIGN)
def test_sieve_line_of_another_name_is_left_out_and_said(line: bytes) -> None:
    shown = sieved([packed(RAY + line + b"\nray_after 1\n")])
    assert shown.dropped == 1
    assert shown.text.startswith(RAY + b"ray_after 1\n# left out here: 1 lines ")
    assert line not in shown.text


def test_sieve_name_behind_a_line_end_within_a_label_is_left_out() -> None:
    shown = sieved([packed(b'ray_x{a="\norchestrator_workers 0\n"} 1\n')])
    assert b"orchestrator_workers" not in shown.text


def test_sieve_last_line_without_an_end_is_judged_too() -> None:
    assert sieved([packed(b"ray_x 1")]).text == b"ray_x 1\n"
    assert b"orchestrator_workers" not in sieved([packed(b"ray_x 1\norchestrator_workers 0")]).text


TASKS = b"""# HELP ray_tasks Current number of tasks currently in a particular state.
# TYPE ray_tasks gauge
ray_tasks{IsRetry="0",JobId="02000000",Name="fit, {JobId=\\"9\\"}",State="RUNNING"} 3.0
ray_tasks{IsRetry="0",JobId="01000000",Name="other",State="RUNNING"} 1.0
ray_tasks{IsRetry="0",JobId="03000000",Name="fit, {JobId=\\"9\\"}",State="RUNNING"} 2.0 1790000000000
ray_tasks{IsRetry="0",Name="other",State="RUNNING",JobId=""} 4.5
"""


@pytest.mark.parametrize("size", [1, 50, 10_000])
def test_sieve_counts_by_job_are_shown_as_their_sum_over_jobs(size: int) -> None:
    kept = b"ray_node_mem_used 1\n"
    assert sieved(cut(packed(kept + TASKS + kept), size)) == Exposition(
        kept + b"\n".join(TASKS.splitlines()[:2]) + b"\n"
        b'ray_tasks{IsRetry="0",Name="fit, {JobId=\\"9\\"}",State="RUNNING"} 5.0\n'
        b'ray_tasks{IsRetry="0",Name="other",State="RUNNING"} 5.5\n' + kept,
        0,
    )


@pytest.mark.parametrize(
    "line",
    [
        *(f'ray_x{{a="b",{name}="7007"}} 1'.encode() for name in WHO),
        b'ray_x{JobId="7007"} 1',
        b'ray_x{a="b", JobId = "7007",c="d"} 1',
        b'ray_x{a="b",\t"JobId"="7007"} 1',
        b'python_x{job_id="7007"} 1',
        b'ray_x_bucket{le="1.0",job_id="7007"} 1',
        b'ray_tasks{ JobId="7007"} 1',
        b'ray_tasks {JobId="7007"} 1',
        b'ray_tasks{"JobId"="7007"} 1',
        b'ray_tasks{JobId="7007" } 1',
        b'ray_tasks{JobId="7007"} one more',
        b'ray_tasks{JobId="7007"} none',
    ],
)
def test_sieve_series_that_names_a_job_or_user_is_left_out_and_said(line: bytes) -> None:
    shown = sieved([packed(RAY + line + b"\nray_after 1\n")])
    assert shown.dropped == 0
    assert shown.text == RAY + b"ray_after 1\n# left out here: 1 lines about single jobs or users\n"
    assert b"7007" not in shown.text


def test_sieve_label_of_no_job_is_kept() -> None:
    text = b'ray_x{JobId="",MyJobId="1",job_ids="2",b=",JobId"} 1\nray_y{a="JobId"} 2\n'
    assert sieved([packed(text)]) == Exposition(text, 0)


def test_sieve_counts_by_job_are_bounded_and_added_up_in_short_steps() -> None:
    lines = b"".join(
        b'ray_tasks{JobId="%d",Name="%d"} 1\n' % (n, n % (COUNTED_MAX + 1)) for n in range(60_000)
    )
    sieve = Sieve(OWN_TO_RAY)
    steps = sum(1 for _ in sieve.steps(packed(lines)))
    shown = sieve.finish()
    assert steps >= 60_000 // COUNTED_LINES_AT_ONCE
    assert shown.text.count(b"ray_tasks{") == COUNTED_MAX
    left_out = sum(n % (COUNTED_MAX + 1) == COUNTED_MAX for n in range(60_000))
    assert shown.text.endswith(b"\n# left out here: %d lines about single jobs or users\n" % left_out)


def test_sieve_of_an_agent_lets_only_its_own_metrics_through() -> None:
    shown = sieved([packed(b"orchestrator_agent_sessions_total 3\norchestrator_workers 0\n")], OWN_TO_AGENT)
    assert shown.dropped == 1
    assert b"orchestrator_workers" not in shown.text
    assert shown.text.startswith(b"orchestrator_agent_sessions_total 3\n")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"ray_x 1\n", "not a gzip stream"),
        (packed(RAY)[:-9], "cut off"),
        (packed(RAY) + b"x", "follows the end"),
        (packed(RAY) + packed(RAY), "follows the end"),
        (packed(b"ray_x" * LINE_BYTES_MAX), "a line of more than"),
    ],
)
def test_sieve_of_what_is_no_exposition_raises(data: bytes, words: str) -> None:
    with pytest.raises(ExpositionError, match=words):
        sieved([data])


@pytest.mark.parametrize("line", [b"\n", b"a\n"])
def test_sieve_of_many_short_lines_stops_at_their_bound(line: bytes) -> None:
    with pytest.raises(ExpositionTooLargeError, match="lines"):
        sieved([gzip.compress(line * (LINES_MAX + 1))])


def test_sieve_of_a_bomb_stops_at_the_bound_without_unpacking_it() -> None:
    bomb = gzip.compress(b"ray_x 1\n" * (100 * TEXT_BYTES_MAX // 8), 9)
    assert len(bomb) < TEXT_BYTES_MAX
    sieve, steps = Sieve(OWN_TO_RAY), itertools.count()
    with pytest.raises(ExpositionTooLargeError):
        deque(zip(sieve.steps(bomb), steps, strict=False), maxlen=0)
    assert next(steps) <= TEXT_BYTES_MAX // STEP_BYTES + 1
    assert sieve.held_bytes <= TEXT_BYTES_MAX + STEP_BYTES
