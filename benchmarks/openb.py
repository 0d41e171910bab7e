"""The openb trace (Alibaba 2023, as published with FGD) as machines and pods, and the load that is made of it.

A pod asks for processors, memory, and ``num_gpu`` GPUs, or for ``gpu_milli`` thousandths of one where it asks for a
single GPU; ``gpu_spec`` names the models that will do, separated by ``|`` (empty: any).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from orchestrator.core.scheduling.fragmentation import WHOLE_MILLI, Machines, Shape
from orchestrator.sim.traces import OpenbPod, TraceError, openb_nodes, openb_pods

__all__ = [
    "FOLDER",
    "NODE_FILE",
    "ROWS_MAX",
    "Cluster",
    "TraceError",
    "inflated",
    "pod_file",
    "read_nodes",
    "read_pods",
    "shuffled",
]

FOLDER = Path(__file__).parent / "data" / "openb"
NODE_FILE = "openb_node_list_gpu_node.csv"

ROWS_MAX = 1_000_000
"""A trace of more rows is refused before it fills the memory; openb has 8,152."""


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
        (node.cpu_milli, node.memory_mib, node.gpus, models.setdefault(node.model, len(models)))
        for _, node in openb_nodes(path, ROWS_MAX)
    ]
    if not rows:
        raise TraceError(f"{path}: no node in it; give the node list of a trace")
    table = np.array(rows, dtype=np.int64)
    gpus = table[:, 2]
    free = np.where(np.arange(max(1, int(gpus.max()))) < gpus[:, None], WHOLE_MILLI, 0)
    return Cluster(Machines(table[:, 0], table[:, 1], free.astype(np.int64), table[:, 3]), models)


def read_pods(path: Path, models: Mapping[str, int]) -> list[Shape]:
    """A pod list, in the file's order. Raises TraceError."""
    pods = [_shape(pod, at, models) for at, pod in openb_pods(path, ROWS_MAX)]
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


def _shape(pod: OpenbPod, at: str, models: Mapping[str, int]) -> Shape:
    # A model that no node has is numbered past all others: the pod then fits nowhere.
    numbers = frozenset(models.get(name, len(models)) for name in pod.models)
    try:
        return Shape(pod.cpu_milli, pod.memory_mib, pod.gpus, pod.share_milli, numbers)
    except ValueError as error:
        raise TraceError(f"{at}: {error}") from error
