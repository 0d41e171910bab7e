"""Reader of the openb trace (Alibaba 2023, as published with FGD) and the load that is made of it.

A pod asks for processors, memory, and ``num_gpu`` GPUs, or for ``gpu_milli`` thousandths of one where it asks for a
single GPU; ``gpu_spec`` names the models that will do, separated by ``|`` (empty: any).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from orchestrator.core.fragmentation import WHOLE_MILLI, Machines, Shape

FOLDER = Path(__file__).parent / "data" / "openb"
NODE_FILE = "openb_node_list_gpu_node.csv"
NODE_COLUMNS = ("cpu_milli", "memory_mib", "gpu", "model")
POD_COLUMNS = ("cpu_milli", "memory_mib", "num_gpu", "gpu_milli", "gpu_spec")

ROWS_MAX = 1_000_000
"""A trace of more rows is refused before it fills the memory; openb has 8,152."""

GPUS_MAX = 64
"""Of one node: more than any machine holds."""


class TraceError(ValueError):
    """A trace file that cannot be read; the text names file and line."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """The nodes, empty, and the numbers of their GPU models."""

    machines: Machines
    models: Mapping[str, int]

    @property
    def capacity_milli(self) -> int:
        return int(self.machines.free_milli.sum())


def read_nodes(path: Path = FOLDER / NODE_FILE) -> Cluster:
    """The node list. Raises TraceError."""
    models: dict[str, int] = {}
    rows = [
        (
            _number(row, "cpu_milli", at),
            _number(row, "memory_mib", at),
            _number(row, "gpu", at, GPUS_MAX),
            models.setdefault(row["model"], len(models)),
        )
        for at, row in _rows(path, NODE_COLUMNS)
    ]
    if not rows:
        raise TraceError(f"{path}: no node in it; give the node list of a trace")
    table = np.array(rows, dtype=np.int64)
    gpus = table[:, 2]
    free = np.where(np.arange(max(1, int(gpus.max()))) < gpus[:, None], WHOLE_MILLI, 0)
    return Cluster(Machines(table[:, 0], table[:, 1], free.astype(np.int64), table[:, 3]), models)


def read_pods(path: Path, models: Mapping[str, int]) -> list[Shape]:
    """A pod list, in the file's order. Raises TraceError."""
    pods = [_pod(row, at, models) for at, row in _rows(path, POD_COLUMNS)]
    if not any(pod.asked_milli for pod in pods):
        raise TraceError(f"{path}: no pod in it asks for a GPU; give the pod list of a trace")
    return pods


def pod_file(trace: str) -> Path:
    """Where the pods of a trace lie that comes with the benchmarks."""
    return FOLDER / f"openb_pod_list_{trace}.csv"


def inflated(pods: Sequence[Shape], capacity_milli: int, load: float, seed: int) -> list[Shape]:
    """All pods shuffled, then pods drawn again, until the next would lift GPU demand above ``load`` × capacity."""
    generator = np.random.default_rng(seed)
    order = [int(index) for index in generator.permutation(len(pods))]
    arriving: list[Shape] = []
    demand_milli = 0
    while True:
        index = order[len(arriving)] if len(arriving) < len(order) else int(generator.integers(len(pods)))
        demand_milli += pods[index].asked_milli
        if demand_milli > load * capacity_milli:
            return arriving
        arriving.append(pods[index])


def shuffled(machines: Machines, seed: int) -> Machines:
    """The machines in another order, for policies that take the first of equals."""
    return machines.rows(np.random.default_rng(seed).permutation(len(machines.cpu_milli)))


def _pod(row: Mapping[str, str], at: str, models: Mapping[str, int]) -> Shape:
    gpus = _number(row, "num_gpu", at, GPUS_MAX)
    # Where no GPU is asked for, some lists leave the share empty.
    share_milli = _number(row, "gpu_milli", at, WHOLE_MILLI) if gpus else 0
    names = [name for name in row["gpu_spec"].split("|") if name]
    try:
        return Shape(
            _number(row, "cpu_milli", at),
            _number(row, "memory_mib", at),
            gpus,
            share_milli if gpus == 1 else WHOLE_MILLI,
            # A model that no node has is numbered past all others: the pod then fits nowhere.
            frozenset(models.get(name, len(models)) for name in names),
        )
    except ValueError as error:
        raise TraceError(f"{at}: {error}") from error


def _rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Each row with where it stands, as ``file:line``."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            lacking = [name for name in columns if name not in (reader.fieldnames or ())]
            if lacking:
                raise TraceError(
                    f"{path}:1: column {lacking[0]!r} is missing; the first line names {columns}"
                )
            for count, row in enumerate(reader):
                at = f"{path}:{reader.line_num}"
                if count >= ROWS_MAX:
                    raise TraceError(f"{at}: more than {ROWS_MAX:,} rows; cut the trace")
                if any(row[name] is None for name in columns):
                    raise TraceError(f"{at}: fewer fields than columns")
                yield at, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"{path}: cannot be read: {error}") from error


def _number(row: Mapping[str, str], name: str, at: str, most: int = 1 << 50) -> int:
    text = row[name]
    try:
        number = int(text)
    except ValueError:
        raise TraceError(f"{at}: {name} is {text[:40]!r}, not a whole number") from None
    if not 0 <= number <= most:
        raise TraceError(f"{at}: {name} is {number}; it must lie between 0 and {most:,}")
    return number
