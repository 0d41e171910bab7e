"""Readers of fleets, job traces and spot availability: ours, which docs/simulate.md describes, and those of openb.

All of them stream: a row is checked, handed on and forgotten. Whatever is wrong is a TraceError of one sentence that
names file and line.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import TypeVar

from orchestrator.core.supply.catalogue import MODELS, find_model, nearest
from orchestrator.core.supply.fleet import HardwareClass

N = TypeVar("N", int, float)

ROWS_MAX = 10_000_000
"""Jobs of one trace, unless the caller says otherwise: more take a day to simulate."""

LINE_BYTES_MAX = 64 * 1024
"""Of one line: a file without line ends must not be read into memory as one."""

GPUS_MAX = 64
"""Of one machine or one job: the network refuses larger gangs, and no machine holds more."""

MACHINES_MAX = 1_000_000
SECONDS_MAX = 10**10
"""Three centuries."""

WHOLE_MILLI = 1_000
"""Thousandths in which openb counts a GPU."""

OPENB_NODE_COLUMNS = ("cpu_milli", "memory_mib", "gpu", "model")
OPENB_POD_COLUMNS = ("cpu_milli", "memory_mib", "num_gpu", "gpu_milli", "gpu_spec")
OPENB_TIME_COLUMNS = ("creation_time", "deletion_time")
OPENB_MEMORY_GB = {"P100": 16, "T4": 16, "A10": 24, "V100M16": 16, "V100M32": 32}
OPENB_MEMORY_GB_OTHER = 32
"""Of the models that the trace does not name: what most of its machines have."""

FLEET_COLUMNS = ("workers", "gpus", "model")
FLEET_OPTIONAL = ("memory_gb", "price", "region")
AVAILABILITY_FIELDS = ("milliseconds", "machines")
JOB_COLUMNS = ("submit_s", "tenant", "gpus", "duration_s")
JOB_OPTIONAL = (
    "priority",
    "model",
    "min_memory_gb",
    "gpus_per_worker",
    "region",
    "max_rtt_ms",
    "max_price",
    "weight",
    "time_limit_s",
)


class TraceError(ValueError):
    """A file that cannot be read; the text names file and line."""


@dataclass(frozen=True, slots=True)
class Machines:
    """So many equal machines. ``price`` in microcredits per GPU-hour; 0: the market's."""

    count: int
    gpus: int
    model: str
    memory_gb: int
    hardware_class: HardwareClass
    price: int = 0
    region: str = ""


@dataclass(frozen=True, slots=True)
class TracedJob:
    """One row of a trace. Empty and 0 mean: no matter."""

    submit_ms: int
    tenant: str
    gpus: int
    duration_ms: int
    priority: int = 0
    model: str = ""
    min_memory_gb: int = 0
    gpus_per_worker: int = 0
    region: str = ""
    max_rtt_ms: int = 0
    max_price: int = 0
    weight: int = 0
    """The tenant's; what its first row says counts."""
    time_limit_ms: int = 0
    """It is stopped after so long, and the scheduler knows it."""
    rounded: bool = False
    """It asked for a part of a GPU and is given a whole one."""


@dataclass(frozen=True, slots=True)
class OpenbNode:
    """A machine of the openb list."""

    cpu_milli: int
    memory_mib: int
    gpus: int
    model: str


@dataclass(frozen=True, slots=True)
class OpenbPod:
    """What a pod of the openb list asks for; ``models`` empty: any."""

    cpu_milli: int
    memory_mib: int
    gpus: int
    share_milli: int
    """Of each of its GPUs."""
    models: tuple[str, ...]


# ---------------------------------------------------------------- fleets


def read_fleet(path: Path) -> tuple[Machines, ...]:
    """A fleet: our list of machines, or openb's list of nodes. Raises TraceError."""
    if "workers" in _header(path):
        found = tuple(_machines(row, at) for at, row in _rows(path, FLEET_COLUMNS, FLEET_OPTIONAL))
    else:
        found = tuple(_openb_machines(node) for _, node in openb_nodes(path) if node.gpus)
    total = sum(one.count for one in found)
    if total == 0:
        raise TraceError(f"{path}: no machine with a GPU in it; give a fleet of at least one")
    if total > MACHINES_MAX:
        raise TraceError(f"{path}: {total:,} machines; at most {MACHINES_MAX:,} are simulated")
    return found


def _machines(row: Mapping[str, str], at: str) -> Machines:
    name = row["model"]
    model = find_model(name)
    if model is None:
        raise TraceError(f"{at}: model {name[:40]!r} is not known; nearest is {nearest(name, list(MODELS))}")
    if model.memory_gb == 0:
        raise TraceError(f"{at}: model {model.name} is no GPU; leave machines without GPUs out")
    memory_gb = _number(row, "memory_gb", at, model.memory_gb) if row.get("memory_gb") else model.memory_gb
    return Machines(
        count=_number(row, "workers", at, MACHINES_MAX),
        gpus=_number(row, "gpus", at, GPUS_MAX, least=1),
        model=model.name,
        memory_gb=memory_gb,
        hardware_class=min(model.classes),
        price=_scaled(row, "price", at, 1_000_000, 10**6) if row.get("price") else 0,
        region=row.get("region") or "",
    )


def _openb_machines(node: OpenbNode) -> Machines:
    memory_gb = OPENB_MEMORY_GB.get(node.model, OPENB_MEMORY_GB_OTHER)
    return Machines(1, node.gpus, node.model, memory_gb, HardwareClass.DATACENTER)


def openb_nodes(path: Path, rows_max: int = MACHINES_MAX) -> Iterator[tuple[str, OpenbNode]]:
    """The nodes of openb's list, each with where it stands."""
    for at, row in _rows(path, OPENB_NODE_COLUMNS, rows_max=rows_max):
        yield (
            at,
            OpenbNode(
                _number(row, "cpu_milli", at),
                _number(row, "memory_mib", at),
                _number(row, "gpu", at, GPUS_MAX),
                row["model"],
            ),
        )


def read_availability(path: Path, rows_max: int = ROWS_MAX) -> tuple[tuple[int, int], ...]:
    """``(at_ms, machines)`` in order: from then on so many are there. Lines are ``milliseconds,machines``, no header.

    Several lines of one moment are taken as their last.
    """
    steps: list[tuple[int, int]] = []
    last_ms = 0
    with _opened(path) as lines:
        for count, fields in enumerate(_records(path, lines)):
            at = f"{path}:{count + 1}"
            if count >= rows_max:
                raise TraceError(f"{at}: more than {rows_max:,} rows; cut the file, or raise --rows-max")
            if len(fields) != len(AVAILABILITY_FIELDS):
                raise TraceError(f"{at}: {len(fields)} fields; a line is milliseconds,machines")
            row = dict(zip(AVAILABILITY_FIELDS, fields, strict=True))
            at_ms = _number(row, "milliseconds", at, SECONDS_MAX * 1000)
            machines = _number(row, "machines", at, MACHINES_MAX)
            if at_ms < last_ms:
                raise TraceError(f"{at}: {at_ms} ms comes after {last_ms} ms; sort the lines by time")
            if steps and steps[-1][0] == at_ms:
                steps.pop()
            steps.append((at_ms, machines))
            last_ms = at_ms
    if not steps:
        raise TraceError(f"{path}: no line in it; give lines of milliseconds,machines")
    return tuple(steps)


# ---------------------------------------------------------------- jobs


def read_trace(path: Path, rows_max: int = ROWS_MAX) -> Iterator[TracedJob]:
    """The jobs of a trace in order of arrival: ours, or openb's list of pods, of which those without GPUs are left out.

    Streams. Raises TraceError at the row that is wrong.
    """
    openb = "num_gpu" in _header(path)
    columns = (*OPENB_POD_COLUMNS, *OPENB_TIME_COLUMNS) if openb else JOB_COLUMNS
    optional = None if openb else JOB_OPTIONAL
    last_ms, empty = 0, True
    for at, row in _rows(path, columns, optional, rows_max):
        job = _openb_job(row, at) if openb else _job(row, at)
        if job is None:
            continue
        if job.submit_ms < last_ms:
            raise TraceError(
                f"{at}: submitted at {job.submit_ms / 1000:.12g} s, before the row above it at {last_ms / 1000:.12g} s;"
                " sort the rows by time"
            )
        last_ms, empty = job.submit_ms, False
        yield job
    if empty:
        raise TraceError(f"{path}: no job in it asks for a GPU; give a trace with at least one")


def _job(row: Mapping[str, str], at: str) -> TracedJob:
    name = row.get("model") or ""
    model = find_model(name) if name else None
    if name and model is None:
        raise TraceError(f"{at}: model {name[:40]!r} is not known; nearest is {nearest(name, list(MODELS))}")
    if not row["tenant"].strip():
        raise TraceError(f"{at}: tenant is empty; say whose job it is")
    gpus = _number(row, "gpus", at, GPUS_MAX, least=1)
    each = _optional(row, "gpus_per_worker", at, GPUS_MAX)
    if each and gpus % each:
        raise TraceError(f"{at}: {gpus} GPUs are no multiple of {each} for each worker")
    return TracedJob(
        submit_ms=_scaled(row, "submit_s", at, 1000, SECONDS_MAX),
        tenant=row["tenant"].strip(),
        gpus=gpus,
        duration_ms=_scaled(row, "duration_s", at, 1000, SECONDS_MAX),
        priority=_number(row, "priority", at, 1000, least=-1000) if row.get("priority") else 0,
        model=model.name if model else "",
        min_memory_gb=_optional(row, "min_memory_gb", at, 1000),
        gpus_per_worker=each,
        region=row.get("region") or "",
        max_rtt_ms=_optional(row, "max_rtt_ms", at, 10_000),
        max_price=_scaled(row, "max_price", at, 1_000_000, 10**6) if row.get("max_price") else 0,
        weight=_number(row, "weight", at, 1_000_000, least=1) if row.get("weight") else 0,
        time_limit_ms=_scaled(row, "time_limit_s", at, 1000, SECONDS_MAX) if row.get("time_limit_s") else 0,
    )


def _openb_job(row: Mapping[str, str], at: str) -> TracedJob | None:
    """A pod as a job of its one tenant; None where it wants no GPU."""
    pod = _openb_pod(row, at)
    if pod.gpus == 0:
        return None
    created_s = _number(row, "creation_time", at, SECONDS_MAX)
    deleted_s = _number(row, "deletion_time", at, SECONDS_MAX)
    if deleted_s < created_s:
        raise TraceError(f"{at}: deletion_time {deleted_s} is before creation_time {created_s}")
    return TracedJob(
        submit_ms=created_s * 1000,
        tenant="openb",
        gpus=pod.gpus,
        duration_ms=(deleted_s - created_s) * 1000,
        model=pod.models[0] if pod.models else "",
        gpus_per_worker=pod.gpus,
        rounded=pod.share_milli < WHOLE_MILLI,
    )


def openb_pods(path: Path, rows_max: int = ROWS_MAX) -> Iterator[tuple[str, OpenbPod]]:
    """The pods of openb's list in the file's order, each with where it stands."""
    for at, row in _rows(path, OPENB_POD_COLUMNS, rows_max=rows_max):
        yield at, _openb_pod(row, at)


def _openb_pod(row: Mapping[str, str], at: str) -> OpenbPod:
    gpus = _number(row, "num_gpu", at, GPUS_MAX)
    # Where no GPU is asked for, some lists leave the share empty.
    share_milli = _number(row, "gpu_milli", at, WHOLE_MILLI) if gpus else 0
    return OpenbPod(
        _number(row, "cpu_milli", at),
        _number(row, "memory_mib", at),
        gpus,
        share_milli if gpus == 1 else WHOLE_MILLI,
        tuple(name for name in row["gpu_spec"].split("|") if name),
    )


# ---------------------------------------------------------------- rows and fields


def _rows(
    path: Path,
    columns: Sequence[str],
    optional: Sequence[str] | None = None,
    rows_max: int = ROWS_MAX,
) -> Iterator[tuple[str, dict[str, str]]]:
    """Each row by its columns, with where it stands as ``file:line``. ``optional`` None: other columns do not matter."""
    with _opened(path) as lines:
        records = _records(path, lines)
        header = [name.strip() for name in next(records, [])]
        lacking = [name for name in columns if name not in header]
        if lacking:
            named = ", ".join(columns)
            raise TraceError(
                f"{path}:1: column {lacking[0]!r} is missing; the first line has to name {named}"
            )
        twice = [name for name in header if header.count(name) > 1]
        if twice:
            raise TraceError(f"{path}:1: column {twice[0][:40]!r} is there twice; leave one of them out")
        for name in header if optional is not None else ():
            known = [*columns, *(optional or ())]
            if name not in known:
                raise TraceError(
                    f"{path}:1: column {name[:40]!r} is not known; nearest is {nearest(name, known)}"
                )
        for count, fields in enumerate(records):
            at = f"{path}:{count + 2}"
            if count >= rows_max:
                raise TraceError(f"{at}: more than {rows_max:,} rows; cut the trace, or raise --rows-max")
            if len(fields) < len(header):
                raise TraceError(f"{at}: fewer fields than columns")
            if len(fields) > len(header):
                raise TraceError(f"{at}: more fields than columns")
            yield at, dict(zip(header, fields, strict=True))


def _header(path: Path) -> list[str]:
    with _opened(path) as lines:
        return [name.strip() for name in next(_records(path, lines), [])]


def _opened(path: Path) -> BufferedReader:
    """Raises TraceError, too, for what is no plain file: each is read twice, and a pipe would hang the second time."""
    try:
        if path.exists() and not path.is_file():
            raise TraceError(f"{path}: is no plain file; write what is in it to one first")
        return path.open("rb")
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror}; check the path") from error


def _records(path: Path, file: BufferedReader) -> Iterator[list[str]]:
    """Fields, line by line: a quoted field never goes on in the next line, so a line is a row."""
    number = 1
    try:
        while line := file.readline(LINE_BYTES_MAX):
            if len(line) == LINE_BYTES_MAX:
                raise TraceError(f"{path}:{number}: longer than {LINE_BYTES_MAX:,} bytes; is it CSV?")
            yield from csv.reader([line.decode("utf-8-sig").rstrip("\r\n")], strict=True)
            number += 1
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"{path}:{number}: cannot be read: {error}") from error


def _number(row: Mapping[str, str], name: str, at: str, most: int = 1 << 50, least: int = 0) -> int:
    return _within(row, name, at, int, "a whole number", least, most)


def _scaled(row: Mapping[str, str], name: str, at: str, scale: int, most: int) -> int:
    """A decimal number, as so many parts of one."""
    return round(scale * _within(row, name, at, float, "a number", 0, most))


def _optional(row: Mapping[str, str], name: str, at: str, most: int) -> int:
    return _number(row, name, at, most) if row.get(name) else 0


def _within(
    row: Mapping[str, str], name: str, at: str, parse: Callable[[str], N], kind: str, least: int, most: int
) -> N:
    text = row[name]
    try:
        number = parse(text)
    except ValueError:
        raise TraceError(f"{at}: {name} is {text[:40]!r}, not {kind}") from None
    if not math.isfinite(number) or not least <= number <= most:
        raise TraceError(f"{at}: {name} is {text[:40]}; it must lie between {least} and {most:,}")
    return number
