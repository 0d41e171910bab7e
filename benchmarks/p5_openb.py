"""P5 `default`, `gpushare100`: how much of a GPU cluster can be given out before fragmentation stops it.

The cluster of the openb trace, empty; its pods arrive shuffled and drawn again until they have asked for 130 % of all
GPUs; none leaves, and one that fits nowhere when it arrives is dropped. The figure is GPUs given out ÷ GPUs there.
Ours is `orchestrator.core.scheduling.fragmentation` as the planner uses it, which knows the pods that have arrived and no
others.

The peers see the same pods and the same order of nodes: our own FGD (Fragmentation Gradient Descent, ATC 2023), once
with the histogram of the whole list beforehand, as published, and once with that of arrived pods; best fit; and
random. The better FGD, of these two and the published mean, is what ours is held against.

`BENCH_OPENB_NODES` names another node list of the same columns, `BENCH_OPENB_PODS` other pod lists, each of which is a
case by its file's name; beside them there is nothing published.

The bound is a linear programme that may leave out any pod, cut pods in pieces and mix the nodes of one kind: per kind
processors and memory in sum, per GPU only sets of shares that fit one. No placement of whole pods gives out more.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from benchmarks import openb
from benchmarks.own import own_files
from benchmarks.report import Case, FigureError, Target, compared, note
from benchmarks.stats import paired_ratio_interval
from orchestrator.core.scheduling.fragmentation import (
    UNIT_MILLI,
    WHOLE_MILLI,
    Floats,
    Fragmentation,
    Ints,
    Machines,
    Shape,
    dearest_sets,
    members_of,
    options,
)
from orchestrator.sim.plots import Curve

SEEDS = range(10)
LOAD = 1.3
TRACES = ("default", "gpushare100")
NODES_VARIABLE, PODS_VARIABLE = "BENCH_OPENB_NODES", "BENCH_OPENB_PODS"
TARGET = Target(1.0, ">=", "ratio")

PUBLISHED = {
    "default": {"fgd": 95.39, "best-fit": 93.08, "random": 87.47},
    "gpushare100": {"fgd": 86.90, "best-fit": 85.01, "random": 79.44},
}
"""Means of ten seeds in %, as published with FGD."""

ORDER_SEED = 777
"""Added to a run's seed for the order of nodes, so that it does not repeat the draws of the pods."""


TOLERANCE_MILLI = 1e-5
"""Of a GPU, by which a set must be dearer to be a better one; over all GPUs less than a tenth of one."""


class Policy(Protocol):
    """Places what it is handed, or says that it fits nowhere."""

    def place(self, shape: Shape) -> bool: ...


Maker = Callable[[Machines, Sequence[Shape], int], Policy]
"""From the empty machines, the whole pod list and the seed."""


def measure(traces: Sequence[str] = TRACES, seeds: Sequence[int] = SEEDS) -> list[Case]:
    """All cases."""
    nodes = own_files(NODES_VARIABLE, (openb.FOLDER / openb.NODE_FILE,))[0]
    pods = own_files(PODS_VARIABLE, [openb.pod_file(trace) for trace in traces])
    bundled = nodes.parent == openb.FOLDER and pods[0].parent == openb.FOLDER
    try:
        cluster = openb.read_nodes(nodes)
        if not cluster.capacity_milli:
            raise FigureError(f"{nodes}: no node in it has a GPU; give the node list of a GPU cluster")
        lists = [(path.stem.removeprefix("openb_pod_list_"), path) for path in pods]
        return [
            case
            for name, path in lists
            for case in _trace(
                name if bundled else f"own-{name}", cluster, openb.read_pods(path, cluster.models), seeds
            )
        ]
    except openb.TraceError as error:
        raise FigureError(str(error)) from error


def allocated(policy: Policy, pods: Sequence[Shape]) -> int:
    """Thousandths of GPUs that the policy gives out."""
    return sum(pod.asked_milli for pod in pods if policy.place(pod))


def _trace(trace: str, cluster: openb.Cluster, pods: Sequence[Shape], seeds: Sequence[int]) -> list[Case]:
    results: dict[str, list[float]] = {name: [] for name in (*POLICIES, "bound")}
    for seed in seeds:
        arriving = openb.inflated(pods, cluster.capacity_milli, LOAD, seed)
        machines = openb.shuffled(cluster.machines, seed + ORDER_SEED)
        for name, make in POLICIES.items():
            given_milli = allocated(make(machines.copy(), pods, seed), arriving)
            results[name].append(100 * given_milli / cluster.capacity_milli)
        results["bound"].append(100 * bound_milli(machines, arriving) / cluster.capacity_milli)
        shown = ", ".join(f"{name} {values[-1]:.2f}" for name, values in results.items())
        note(f"P5 {trace} seed {seed}: {shown}")
    return _cases(trace, results, len(seeds))


def _cases(trace: str, results: Mapping[str, list[float]], count: int) -> list[Case]:
    published = PUBLISHED.get(trace, {})
    ours = results["ours"]
    rivals = {
        "our FGD with the whole list's histogram": results["fgd"],
        "our FGD with the histogram of arrived pods": results["fgd-arrived"],
    }
    if published:
        rivals["the published FGD"] = [published["fgd"]] * count
    better = max(rivals, key=lambda name: float(np.mean(rivals[name])))
    means = ", ".join(
        f"{name} {float(np.mean(results[name])):.2f}"
        + (f" (published {published[name]})" if name in published else "")
        for name in results
    )
    remark = f"held against {better}; means in %: {means}; no placement gives out more than bound"
    interval = paired_ratio_interval(ours, rivals[better])
    case = compared("P5", trace, "%", ours, rivals[better], TARGET, interval, remark)
    cases = [replace(case, curves=(_dots(trace, results),))]
    cases += [
        compared("P5", f"{trace}-{name}", "%", results[name], [published[name]] * count) for name in published
    ]
    cases.append(compared("P5", f"{trace}-of-bound", "%", ours, results["bound"]))
    return cases


def _dots(trace: str, results: Mapping[str, Sequence[float]]) -> Curve:
    """By policy, in the order of POLICIES with the bound as the last."""
    columns = [results[name] for name in (*POLICIES, "bound")]
    points = [(float(number), float(np.median(values))) for number, values in enumerate(columns)]
    return Curve(trace, points, [(min(values), max(values)) for values in columns], joined=False)


# ---------------------------------------------------------------- ours


class Ours:
    """The fragmentation term alone: the machine that loses least."""

    def __init__(self, fragmentation: Fragmentation) -> None:
        self._fragmentation = fragmentation

    def place(self, shape: Shape) -> bool:
        self._fragmentation.arrived(shape)
        row = self._fragmentation.best(shape)
        if row is None:
            return False
        self._fragmentation.take(row, shape, self._fragmentation.devices(row, shape))
        return True


# ---------------------------------------------------------------- the peers


@dataclass(slots=True)
class Known:
    """What FGD remembers of one shape: as of which placement, scores by row, and what the machine would be left with."""

    upto: int
    score: Floats
    free_milli: Ints


class Fgd:
    """Fragmentation Gradient Descent: the node on which expected fragmentation grows least.

    A node's fragmentation for a pod is its free GPU share that the pod could not be given: all of it where the node
    lacks processors or GPUs, else that of GPUs with too little left. Scores are whole numbers of 0 to 100, through
    a sigmoid, and of equal ones the first node wins, as published.
    """

    RELEARN = 1.2

    def __init__(self, machines: Machines, histogram: Counter[Shape] | None) -> None:
        self._here = machines
        self._arrived: Counter[Shape] = Counter()
        self._follows = histogram is None
        self._changed_at = np.zeros(len(machines.cpu_milli), dtype=np.int64)
        self._version = 0
        self._learn(histogram or Counter([Shape(0, 0, 1)]))

    def _learn(self, histogram: Counter[Shape]) -> None:
        asking = [(shape, count) for shape, count in histogram.items() if shape.devices]
        weight = np.array([count for _, count in asking], dtype=np.float64)
        self._weight = weight / weight.sum()
        self._cpu = np.array([shape.cpu_milli for shape, _ in asking])
        self._gpus = np.array([shape.devices for shape, _ in asking])
        share = np.array([shape.share_milli for shape, _ in asking])
        self._shares, self._share_of = np.unique(share, return_inverse=True)
        self._models = [sorted(shape.models) for shape, _ in asking]
        self._known: dict[Shape, Known] = {}
        self._learn_at = self._arrived.total() * self.RELEARN

    def _fragments(self, machines: Machines) -> Floats:
        """(rows,): expected fragmentation, in thousandths of a GPU."""
        free = machines.free_milli
        large = free[:, :, None] >= self._shares
        fit = machines.cpu_milli[:, None] >= self._cpu
        fit &= large.sum(axis=1)[:, self._share_of] >= self._gpus
        for column, models in enumerate(self._models):
            if models:
                fit[:, column] &= np.isin(machines.model, models)
        usable = np.einsum("md,mds->ms", free, large)[:, self._share_of]
        fragments: Floats = free.sum(axis=1) - (fit * usable) @ self._weight
        return fragments

    def place(self, shape: Shape) -> bool:
        self._arrived[shape] += 1
        if self._follows and shape.devices and self._arrived.total() > self._learn_at:
            self._learn(self._arrived)
        known = self._scores(shape)
        row = int(known.score.argmax())
        if known.score[row] < 0:
            return False
        self._here.cpu_milli[row] -= shape.cpu_milli
        self._here.memory_mib[row] -= shape.memory_mib
        self._here.free_milli[row] = known.free_milli[row]
        self._version += 1
        self._changed_at[row] = self._version
        return True

    def _scores(self, shape: Shape) -> Known:
        rows = np.arange(len(self._changed_at))
        known = self._known.get(shape)
        if known is None:
            known = Known(self._version, np.full(len(rows), -1.0), np.zeros_like(self._here.free_milli))
            self._known[shape] = known
        else:
            rows = np.flatnonzero(self._changed_at > known.upto)
            known.upto = self._version
            known.score[rows] = -1.0
        ways = options(self._here, rows, shape)
        if len(ways.row):
            grown = self._fragments(ways.left) - self._fragments(self._here.rows(ways.row))
            score = np.floor(100.0 / (1.0 + np.exp(grown / WHOLE_MILLI)))
            order = np.lexsort((-score, ways.row))
            row = ways.row[order]
            best = order[np.concatenate(([True], row[1:] != row[:-1]))]
            known.score[ways.row[best]] = score[best]
            known.free_milli[ways.row[best]] = ways.left.free_milli[best]
        return known


class Simple:
    """A policy that picks the node by a rule of its own and packs a share onto the fullest GPU that holds it."""

    def __init__(self, machines: Machines, pick: Callable[[Machines, Ints, Shape], int]) -> None:
        self._here = machines
        self._pick = pick

    def place(self, shape: Shape) -> bool:
        here = self._here
        rows = np.flatnonzero(here.fits(shape))
        if not len(rows):
            return False
        row = self._pick(here, rows, shape)
        free = here.free_milli[row]
        able = np.where(free >= shape.share_milli, free, WHOLE_MILLI + 1)
        free[np.argsort(able, kind="stable")[: shape.devices]] -= shape.share_milli
        here.cpu_milli[row] -= shape.cpu_milli
        here.memory_mib[row] -= shape.memory_mib
        return True


def best_fit(machines: Machines) -> Simple:
    """The node with least left of processors and GPUs, each by the largest node's, in whole hundredths as published."""
    cpu_most = machines.cpu_milli.max(initial=1)
    gpus_most = machines.free_milli.sum(axis=1).max(initial=1)

    def pick(here: Machines, rows: Ints, shape: Shape) -> int:
        cpu_left = (here.cpu_milli[rows] - shape.cpu_milli) / cpu_most
        gpu_left = (here.free_milli[rows].sum(axis=1) - shape.asked_milli) / gpus_most
        return int(rows[np.floor(100 * (1 - (cpu_left + gpu_left) / 2)).argmax()])

    return Simple(machines, pick)


def at_random(machines: Machines, seed: int) -> Simple:
    """Any node that fits."""
    generator = np.random.default_rng(seed)
    return Simple(machines, lambda _here, rows, _shape: int(rows[generator.integers(len(rows))]))


POLICIES: dict[str, Maker] = {
    "ours": lambda machines, _pods, _seed: Ours(Fragmentation(machines)),
    "fgd": lambda machines, pods, _seed: Fgd(machines, Counter(pods)),
    "fgd-arrived": lambda machines, _pods, _seed: Fgd(machines, None),
    "best-fit": lambda machines, _pods, _seed: best_fit(machines),
    "random": lambda machines, _pods, seed: at_random(machines, seed),
}


# ---------------------------------------------------------------- the bound


def bound_milli(machines: Machines, arriving: Sequence[Shape]) -> float:
    """Thousandths of GPUs that no placement of these pods exceeds."""
    programme = Programme(machines, Counter(pod for pod in arriving if pod.devices))
    while programme.solve():
        pass
    return programme.given_milli


class Programme:
    """The linear programme of the bound, by column generation over sets of shares that fill one GPU.

    Columns: pods of a shape on a kind of node, then GPUs of a kind filled by a set. Rows: pods of a shape, processors
    of a kind, memory of a kind, GPUs of a kind, and shares of a size on a kind, which its sets must hold.
    """

    def __init__(self, machines: Machines, arrived: Counter[Shape]) -> None:
        gpus = (machines.free_milli > 0).sum(axis=1)
        columns = (machines.cpu_milli, machines.memory_mib, gpus, machines.model)
        self._kinds, self._of_kind = np.unique(np.column_stack(columns), axis=0, return_counts=True)
        self._shapes = list(arrived)
        self._arrived = np.array([arrived[shape] for shape in self._shapes], dtype=np.float64)
        share = np.array([shape.share_milli for shape in self._shapes])
        if (share % UNIT_MILLI).any():
            raise FigureError(f"the bound needs shares in steps of {UNIT_MILLI} thousandths of a GPU")
        self._shares, self._share_of = np.unique(share, return_inverse=True)
        self._sets = {tuple(row) for row in np.diag(WHOLE_MILLI // self._shares).tolist()}
        self._optimize: Any = importlib.import_module("scipy.optimize")
        self._sparse: Any = importlib.import_module("scipy.sparse")
        self.given_milli = 0.0

    def solve(self) -> bool:
        """Solve with the sets known so far; whether sets were found that may let more in."""
        sets = np.array(sorted(self._sets), dtype=np.float64)
        found = self._optimize.linprog(
            -np.concatenate(
                [np.repeat(self._asked(), len(self._kinds)), np.zeros(len(sets) * len(self._kinds))]
            ),
            self._rows(sets),
            self._limits(),
            bounds=self._bounds(len(sets)),
            method="highs",
        )
        if not found.success:
            raise FigureError(f"the bound's linear programme was not solved: {found.message}")
        self.given_milli = -float(found.fun)
        better = self._better_sets(-np.asarray(found.ineqlin.marginals, dtype=np.float64)) - self._sets
        self._sets |= better
        return bool(better)

    def _asked(self) -> Floats:
        return np.array([shape.asked_milli for shape in self._shapes], dtype=np.float64)

    def _rows(self, sets: Floats) -> Any:
        """The matrix, its rows and columns as the class says."""
        sparse, kinds, shapes = self._sparse, len(self._kinds), len(self._shapes)
        each = sparse.identity(kinds)
        sizes = np.zeros((len(self._shares), shapes))
        sizes[self._share_of, np.arange(shapes)] = [shape.devices for shape in self._shapes]
        cpu = np.array([[shape.cpu_milli for shape in self._shapes]], dtype=np.float64)
        memory = np.array([[shape.memory_mib for shape in self._shapes]], dtype=np.float64)
        blocks = [
            [sparse.kron(sparse.identity(shapes), np.ones((1, kinds))), None],
            [sparse.kron(cpu, each), None],
            [sparse.kron(memory, each), None],
            [None, sparse.kron(np.ones((1, len(sets))), each)],
            [sparse.kron(sizes, each), -sparse.kron(sets.T, each)],
        ]
        return sparse.bmat(blocks, format="csr")

    def _limits(self) -> Floats:
        cpu, memory, gpus = (self._kinds[:, column] * self._of_kind for column in range(3))
        shares = np.zeros(len(self._shares) * len(self._kinds))
        return np.concatenate([self._arrived, cpu, memory, gpus, shares])

    def _bounds(self, sets: int) -> list[tuple[float, float | None]]:
        """Nothing of a shape on a kind whose empty node could not hold it."""
        cpu, memory, gpus, model = self._kinds.T
        each: list[tuple[float, float | None]] = []
        for shape in self._shapes:
            fit = (cpu >= shape.cpu_milli) & (memory >= shape.memory_mib) & (gpus >= shape.devices)
            if shape.models:
                fit &= np.isin(model, list(shape.models))
            each += [(0.0, None if able else 0.0) for able in fit.tolist()]
        return each + [(0.0, None)] * (sets * len(self._kinds))

    def _better_sets(self, duals: Floats) -> set[tuple[int, ...]]:
        """Per kind the set whose shares are dearest, where it is dearer than the GPU."""
        kinds = len(self._kinds)
        first = len(self._shapes) + 2 * kinds
        gpu = duals[first : first + kinds]
        share = duals[first + kinds :].reshape(len(self._shares), kinds)
        better = set()
        for kind in range(kinds):
            worth, chosen = dearest_sets(self._shares // UNIT_MILLI, share[:, kind])
            if worth[-1] > gpu[kind] + TOLERANCE_MILLI:
                members = members_of(self._shares // UNIT_MILLI, chosen)
                better.add(tuple(int(count) for count in members))
        return better
