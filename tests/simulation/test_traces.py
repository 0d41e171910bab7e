"""What a fleet, a trace and an availability file may say, and the sentence for each that may not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.core.supply.fleet import HardwareClass
from orchestrator.sim.traces import (
    Machines,
    TracedJob,
    TraceError,
    read_availability,
    read_fleet,
    read_trace,
)

DATA = Path(__file__).parents[2] / "benchmarks" / "data"
NODES = DATA / "openb" / "openb_node_list_gpu_node.csv"
PODS = DATA / "openb" / "openb_pod_list_default.csv"
FLEET = "workers,gpus,model\n"
JOBS = "submit_s,tenant,gpus,duration_s\n"
POD = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,creation_time,deletion_time\n"


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "file.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_fleet_of_two_rows_reads_as_written(tmp_path: Path) -> None:
    text = "workers,gpus,model,memory_gb,price,region\n3,2,rtx 4090,,0.25,eu-west\n1,8,H100,40,,\r\n"
    assert read_fleet(written(tmp_path, text)) == (
        Machines(3, 2, "RTX4090", 24, HardwareClass.CONSUMER, 250_000, "eu-west"),
        Machines(1, 8, "H100", 40, HardwareClass.DATACENTER),
    )


def test_fleet_of_openb_has_all_its_gpus() -> None:
    fleet = read_fleet(NODES)
    assert sum(one.count for one in fleet) == 1_213
    assert sum(one.count * one.gpus for one in fleet) == 6_212


def test_trace_of_one_row_reads_as_written(tmp_path: Path) -> None:
    text = (
        "tenant,submit_s,gpus,duration_s,priority,model,min_memory_gb,gpus_per_worker,region,max_rtt_ms,max_price,weight,"
        "time_limit_s\n"
        "lab,1.5,4,0.001,-3,h100,40,2,eu,20,0.5,200,90.5\n"
    )
    assert list(read_trace(written(tmp_path, text))) == [
        TracedJob(1_500, "lab", 4, 1, -3, "H100", 40, 2, "eu", 20, 500_000, 200, 90_500)
    ]


def test_trace_of_openb_leaves_out_pods_without_gpus_and_rounds_shares_up(tmp_path: Path) -> None:
    text = POD + "p0,4,8,1,460,,5,9\np1,4,8,0,,,5,9\np2,4,8,2,1000,T4|P100,6,6\n"
    assert list(read_trace(written(tmp_path, text))) == [
        TracedJob(5_000, "openb", 1, 4_000, gpus_per_worker=1, rounded=True),
        TracedJob(6_000, "openb", 2, 0, model="T4", gpus_per_worker=2),
    ]
    assert sum(1 for _ in read_trace(PODS)) == 7_064


def test_trace_is_read_no_further_than_asked(tmp_path: Path) -> None:
    jobs = read_trace(written(tmp_path, JOBS + "0,a,1,1\n" * 3 + "broken"))
    assert [next(jobs).submit_ms for _ in range(3)] == [0, 0, 0]


def test_availability_takes_the_last_word_of_each_moment(tmp_path: Path) -> None:
    assert read_availability(written(tmp_path, "0,1\n0,2\n60000,3\n60000,1\n")) == ((0, 2), (60_000, 1))
    assert read_availability(DATA / "spot" / "p3.csv")[:2] == ((0, 18), (60_000, 19))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "file.csv:1: column 'cpu_milli' is missing"),
        ("workers,gpus\n1,1\n", "file.csv:1: column 'model' is missing"),
        (FLEET, "file.csv: no machine with a GPU in it"),
        (FLEET + "0,1,H100\n", "file.csv: no machine with a GPU in it"),
        (FLEET + "1,1,H1000\n", "file.csv:2: model 'H1000' is not known; nearest is H100"),
        (FLEET + "1,1,CPU\n", "file.csv:2: model CPU is no GPU; leave machines without"),
        (FLEET + "1,0,H100\n", "file.csv:2: gpus is 0; it must lie between 1 and 64"),
        (FLEET + "-1,1,H100\n", "file.csv:2: workers is -1"),
        (FLEET + "900000,1,H100\n900000,1,H100\n", "file.csv: 1,800,000 machines"),
        (
            "workers,gpus,model,prize\n1,1,H100,1\n",
            "file.csv:1: column 'prize' is not known; nearest is price",
        ),
        ("workers,gpus,model,price\n1,1,H100,nan\n", "file.csv:2: price is nan"),
        (b"workers,gpus,model\n1,1,\xff\n", "file.csv:2: cannot be read"),
        (FLEET + '1,1,"H100\n', "file.csv:2: cannot be read"),
    ],
)
def test_fleet_that_is_wrong_is_refused_by_file_and_line(
    tmp_path: Path, text: str | bytes, complaint: str
) -> None:
    with pytest.raises(TraceError) as refused:
        read_fleet(written(tmp_path, text))
    assert complaint in str(refused.value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("submit_s,gpus,duration_s\n", "file.csv:1: column 'tenant' is missing"),
        (JOBS, "file.csv: no job in it asks for a GPU"),
        (JOBS + "5,a,1,1\n4.5,a,1,1\n", "file.csv:3: submitted at 4.5 s, before the row above it at 5 s"),
        (JOBS + "-1,a,1,1\n", "file.csv:2: submit_s is -1"),
        (JOBS + "0,a,1,nan\n", "file.csv:2: duration_s is nan"),
        (JOBS + "0,a,1,inf\n", "file.csv:2: duration_s is inf"),
        (JOBS + "0,a,1,-0.5\n", "file.csv:2: duration_s is -0.5"),
        (JOBS + "0,a,1,soon\n", "file.csv:2: duration_s is 'soon', not a number"),
        (JOBS + "0,a,0,1\n", "file.csv:2: gpus is 0"),
        (JOBS + "0,a,65,1\n", "file.csv:2: gpus is 65; it must lie between 1 and 64"),
        (JOBS + "0, ,1,1\n", "file.csv:2: tenant is empty"),
        (JOBS + "0,a,1\n", "file.csv:2: fewer fields than columns"),
        (JOBS + "0,a,1,1,1\n", "file.csv:2: more fields than columns"),
        (JOBS + "0,a,1,1\n" * 6, "file.csv:7: more than 5 rows"),
        (JOBS + "x" * 70_000, "file.csv:2: longer than 65,536 bytes"),
        (JOBS.replace("\n", ",gpus_per_worker\n") + "0,a,3,1,2\n", "file.csv:2: 3 GPUs are no multiple of 2"),
        (JOBS.replace("\n", ",model\n") + "0,a,3,1,H10\n", "file.csv:2: model 'H10' is not known"),
        (POD + "p,1,1,1,1000,,9,5\n", "file.csv:2: deletion_time 5 is before creation_time 9"),
        (
            POD + "p,1,1,1,1000,,9,9\np,1,1,1,1000,,5,9\n",
            "file.csv:3: submitted at 5 s, before the row above",
        ),
        (POD + "p,1,1,0,,,9,9\n", "file.csv: no job in it asks for a GPU"),
    ],
)
def test_trace_that_is_wrong_is_refused_by_file_and_line(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(TraceError) as refused:
        list(read_trace(written(tmp_path, text), rows_max=5))
    assert complaint in str(refused.value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "file.csv: no line in it"),
        ("5,1\n4,1\n", "file.csv:2: 4 ms comes after 5 ms"),
        ("0,-1\n", "file.csv:1: machines is -1"),
        ("minute,1\n", "file.csv:1: milliseconds is 'minute', not a whole number"),
        ("0,1,2\n", "file.csv:1: 3 fields"),
        ("0,1\n" * 6, "file.csv:6: more than 5 rows"),
    ],
)
def test_availability_that_is_wrong_is_refused_by_file_and_line(
    tmp_path: Path, text: str, complaint: str
) -> None:
    with pytest.raises(TraceError) as refused:
        read_availability(written(tmp_path, text), rows_max=5)
    assert complaint in str(refused.value)


def test_pipe_is_refused_before_anybody_waits_on_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "trace.csv")
    with pytest.raises(TraceError, match="is no plain file"):
        next(iter(read_trace(tmp_path / "trace.csv")))


def test_file_that_is_not_there_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"absent\.csv: cannot be read"):
        read_fleet(tmp_path / "absent.csv")
