"""What a placement leaves behind: how much less of a machine the requests that keep coming could use afterwards.

A device's free share is worth the best set of expected requests that it still holds, at the requests' *prices*: what
each really costs when shares are packed as well as they can be (the duals of the cutting-stock problem over the
arrived histogram). A gap that nothing expected fills is worth nothing, however large. To that is added what is
*within reach*: free shares that an expected request could be given now, for which the machine's processors, memory,
model and number of whole devices must suffice too. The increase of fragmentation is what both lose by a placement.
Losses that differ by less than a step count as equal; then the machine wins whose processors per device are nearest
to what the request asks per device, and after it the first one, so that machines fill up one after another.

`increase` remembers its results by shape, and recomputes the rows it is asked about that have changed since.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

WHOLE_MILLI = 1_000
"""A device."""

UNIT_MILLI = 10
"""Prices tell shares apart in hundredths of a device; a request counts as the next larger one."""
UNITS = WHOLE_MILLI // UNIT_MILLI

GAP_WEIGHT = 3.0
"""How much more the worth of gaps counts than reach. Tried on seeds and mixes that no figure reports: 1 gives out less,
2 a little less, gaps alone, with no reach, far less."""

STEP = 40.0
"""Of lost worth: a hundredth of what an empty device is worth. Less is no reason to open another machine: without steps
placements spread and far less is given out. 20 does about as well, 80 a little worse."""

MATCH_SPAN = 0.9
"""Of a step, what the match of processors to devices may decide: always less than one step."""

LEARNT_GROWTH = 1.2
"""Arrivals since the histogram was last learnt from, as a factor: a fifth more moves prices by little."""

CLASSES_MAX = 256
"""Most frequent shapes that are expected; the rest is too rare to plan for."""

REMEMBERED_CELLS_MAX = 8_000_000
"""Scores that are kept, over all shapes and machines: 190 MB at 24 bytes each."""

PIVOTS_MAX = 400
"""Prices of a hundred sizes settle in fewer than 200; after that many they are near enough."""

SLACK = 1e-9
"""Rounding of the linear algebra."""

LOST_DECIMALS = 6
"""Of lost worth: far below a step, far above the rounding of a sum."""

DUPLICATES_FROM = 64
"""Rows from which on looking for equal machines pays for itself."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What one machine is asked for: whole devices, or a share of one, or none. Raises ValueError, naming the field."""

    cpu_milli: int
    memory_mib: int
    devices: int
    share_milli: int = WHOLE_MILLI
    """Of each device; less than a whole one only where one device is asked for."""
    models: frozenset[int] = frozenset()
    """Device models that will do, as numbered by the caller; empty: any."""

    def __post_init__(self) -> None:
        for name in ("cpu_milli", "memory_mib", "devices"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: {getattr(self, name)} is negative; ask for 0 or more")
        if not 0 < self.share_milli <= WHOLE_MILLI:
            raise ValueError(f"share_milli: {self.share_milli} is not between 1 and {WHOLE_MILLI}")
        if self.share_milli < WHOLE_MILLI and self.devices != 1:
            raise ValueError(
                f"share_milli: a share of {self.devices} devices; ask for one device or whole ones"
            )

    @property
    def asked_milli(self) -> int:
        """Of devices, in all."""
        return self.devices * self.share_milli


@dataclass(slots=True)
class Shapes:
    """The histogram of arrived requests: counted, and faded where old ones should count less."""

    weights: dict[Shape, float] = field(default_factory=dict)

    def add(self, shape: Shape, weight: float = 1.0) -> None:
        """Count one more arrival."""
        self.weights[shape] = self.weights.get(shape, 0.0) + weight

    def fade(self, factor: float) -> None:
        """Let all that has arrived count ``factor`` (0 to 1) of what it did."""
        if not 0.0 <= factor <= 1.0:
            raise ValueError(f"factor: {factor} is not between 0 and 1")
        faded = {shape: weight * factor for shape, weight in self.weights.items()}
        self.weights = {shape: weight for shape, weight in faded.items() if weight > SLACK}

    @property
    def total(self) -> float:
        return sum(self.weights.values())


@dataclass(slots=True)
class Machines:
    """What is free, one row a machine: ``free_milli`` is (rows, devices), 0 where a machine has fewer devices."""

    cpu_milli: Ints
    memory_mib: Ints
    free_milli: Ints
    model: Ints

    def __post_init__(self) -> None:
        rows = len(self.cpu_milli)
        for name in ("memory_mib", "free_milli", "model"):
            if len(getattr(self, name)) != rows:
                raise ValueError(f"{name}: {len(getattr(self, name))} rows, where cpu_milli has {rows}")
        if (
            min(self.cpu_milli.min(initial=0), self.memory_mib.min(initial=0), self.free_milli.min(initial=0))
            < 0
        ):
            raise ValueError("machines: something free is negative")
        if self.free_milli.max(initial=0) > WHOLE_MILLI:
            raise ValueError(f"free_milli: more than a whole device ({WHOLE_MILLI}) is free")

    def copy(self) -> Machines:
        return Machines(
            self.cpu_milli.copy(), self.memory_mib.copy(), self.free_milli.copy(), self.model.copy()
        )

    def rows(self, rows: Ints) -> Machines:
        """These rows alone, as a copy."""
        return Machines(self.cpu_milli[rows], self.memory_mib[rows], self.free_milli[rows], self.model[rows])

    def fits(self, shape: Shape) -> Bools:
        """Which machines can serve a request of this shape now."""
        fit = (self.cpu_milli >= shape.cpu_milli) & (self.memory_mib >= shape.memory_mib)
        if shape.devices:
            fit &= (self.free_milli >= shape.share_milli).sum(axis=1) >= shape.devices
        if shape.models:
            fit &= np.isin(self.model, list(shape.models))
        return fit


def prices(shares_milli: Ints, weights: Floats) -> Floats:
    """What a request of each share costs in devices when all are packed as well as they can be, by their weights.

    Shares are distinct, each below a whole device. The prices are those of the linear cutting-stock problem, found
    by column generation: no set of requests that fits one device costs more than that device.
    """
    units = -(-shares_milli // UNIT_MILLI)
    count = len(units)
    basis = np.diag(UNITS // units).astype(np.float64)
    cost = np.ones(count)
    for _ in range(PIVOTS_MAX):
        price = np.asarray(np.linalg.solve(basis.T, cost), dtype=np.float64)
        entering, entering_cost = np.zeros(count), 1.0
        if price.min() < -SLACK:
            # Serving more of a request than was asked costs nothing, so no price stays below nothing.
            entering[price.argmin()], entering_cost = -1.0, 0.0
        else:
            worth, chosen = dearest_sets(units, price)
            if worth[-1] <= 1.0 + SLACK:
                break
            entering = members_of(units, chosen)
        direction = np.linalg.solve(basis, entering)
        level = np.linalg.solve(basis, weights)
        steps = np.where(direction > SLACK, level / np.where(direction > SLACK, direction, 1.0), np.inf)
        leaving = int(steps.argmin())
        if not np.isfinite(steps[leaving]):
            break
        basis[:, leaving], cost[leaving] = entering, entering_cost
    price = np.maximum(np.linalg.solve(basis.T, cost), 0.0)
    # Whatever stopped the pivots, prices hold together when scaled so that the dearest set costs one device.
    scaled: Floats = price / max(1.0, float(dearest_sets(units, price)[0][-1]))
    return scaled


def dearest_sets(units: Ints, price: Floats) -> tuple[Floats, Ints]:
    """The dearest set of requests for each room of 0 to UNITS, and which of them is put in last (-1: none)."""
    worth = np.full(2 * UNITS + 1, -np.inf)
    worth[UNITS] = 0.0
    chosen = np.full(UNITS + 1, -1, dtype=np.int64)
    for room in range(1, UNITS + 1):
        options = price + worth[UNITS + room - units]
        best = int(options.argmax())
        worth[UNITS + room] = worth[UNITS + room - 1]
        if options[best] > worth[UNITS + room] + SLACK:
            worth[UNITS + room], chosen[room] = options[best], best
    return worth[UNITS:], chosen


def members_of(units: Ints, chosen: Ints) -> Floats:
    """How many of each request the dearest set for one device holds."""
    counts = np.zeros(len(units))
    room = UNITS
    while room > 0:
        if chosen[room] < 0:
            room -= 1
        else:
            counts[chosen[room]] += 1
            room -= int(units[chosen[room]])
    return counts


class Worth:
    """What free shares are worth to the requests of a histogram. Built once, never changed."""

    def __init__(self, weights: Mapping[Shape, float]) -> None:
        asking = {shape: weight for shape, weight in weights.items() if shape.devices and weight > 0}
        common = sorted(asking, key=lambda shape: -asking[shape])[:CLASSES_MAX] or [Shape(0, 0, 1)]
        weight = np.array([asking.get(shape, 1.0) for shape in common])
        self._weight = weight / weight.sum()
        self._cpu = np.array([shape.cpu_milli for shape in common], dtype=np.int64)
        self._memory = np.array([shape.memory_mib for shape in common], dtype=np.int64)
        self._devices = np.array([shape.devices for shape in common], dtype=np.int64)
        share = np.array([shape.share_milli for shape in common], dtype=np.int64)
        self._shares, self._share_of = np.unique(share, return_inverse=True)
        self._models = [
            (column, np.array(sorted(shape.models))) for column, shape in enumerate(common) if shape.models
        ]
        self._gap = self._gap_worth()

    def _gap_worth(self) -> Floats:
        """Worth of a device's free share of 0 to WHOLE_MILLI, in thousandths of a device."""
        frequency = np.zeros(len(self._shares))
        np.add.at(frequency, self._share_of, self._weight)
        partial = self._shares < WHOLE_MILLI
        gap = np.zeros(WHOLE_MILLI + 1)
        if partial.any():
            shares = self._shares[partial]
            price = prices(shares, frequency[partial])
            worth, _ = dearest_sets(-(-shares // UNIT_MILLI), price)
            gap = worth[np.arange(WHOLE_MILLI + 1) // UNIT_MILLI] * WHOLE_MILLI
        gap[WHOLE_MILLI] = WHOLE_MILLI
        return gap

    def of(self, machines: Machines) -> Floats:
        """(rows,): the worth of what is free on each machine."""
        free = machines.free_milli
        large = free[:, :, None] >= self._shares
        count = large.sum(axis=1)
        held = np.einsum("md,mds->ms", free, large)
        fit = (machines.cpu_milli[:, None] >= self._cpu) & (machines.memory_mib[:, None] >= self._memory)
        fit &= count[:, self._share_of] >= self._devices
        for column, models in self._models:
            fit[:, column] &= np.isin(machines.model, models)
        reach = (fit * held[:, self._share_of]) @ self._weight
        gaps: Floats = GAP_WEIGHT * self._gap[free].sum(axis=1) + reach
        return gaps


@dataclass(frozen=True, slots=True)
class Options:
    """Ways to serve one shape: the row in the table, what its machine is left with, and the first device used."""

    row: Ints
    left: Machines
    device: Ints
    """-1 where none is used."""


def options(machines: Machines, rows: Ints, shape: Shape) -> Options:
    """Every way to serve ``shape`` on these rows which differs in what is left.

    Whole requests take the first whole devices; a share may go to any device that holds it, of equally filled
    ones the first. Ordered by row.
    """
    here = machines.rows(rows)
    able = np.flatnonzero(here.fits(shape))
    row, left = rows[able], here.rows(able)
    left.cpu_milli -= shape.cpu_milli
    left.memory_mib -= shape.memory_mib
    free = left.free_milli
    if shape.devices == 0:
        return Options(row, left, np.full(len(row), -1, dtype=np.int64))
    if shape.share_milli == WHOLE_MILLI:
        whole = free == WHOLE_MILLI
        taken = whole & (np.cumsum(whole, axis=1) <= shape.devices)
        left.free_milli = np.where(taken, 0, free)
        return Options(row, left, taken.argmax(axis=1).astype(np.int64))
    earlier = np.tri(free.shape[1], k=-1, dtype=np.bool_)
    again = ((free[:, :, None] == free[:, None, :]) & earlier).any(axis=2)
    which, device = np.nonzero((free >= shape.share_milli) & ~again)
    spread = left.rows(which)
    spread.free_milli[np.arange(len(which)), device] -= shape.share_milli
    return Options(row[which], spread, device.astype(np.int64))


@dataclass(slots=True)
class _Scores:
    """What is remembered of one shape, by row: as of which version, the loss, and the device that it is by."""

    seen: Ints
    loss: Floats
    device: Ints


class Fragmentation:
    """The table of what is free, the histogram of what arrives, and what the one loses to the other by a placement."""

    def __init__(self, machines: Machines, weights: Mapping[Shape, float] | None = None) -> None:
        """``machines`` as they are when nothing runs; ``weights`` where a histogram is known beforehand."""
        self.machines = machines.copy()
        self.shapes = Shapes(dict(weights or {}))
        self._whole = machines.copy()
        held = (machines.free_milli > 0).sum(axis=1)
        self._cpu_per_device = machines.cpu_milli / np.maximum(held, 1)
        self._changed_at = np.zeros(len(held), dtype=np.int64)
        self._version = 0
        self._remembered: dict[Shape, _Scores] = {}
        self._learn()

    def arrived(self, shape: Shape) -> None:
        """Count a request that has arrived, and learn from the histogram once it has grown enough."""
        self.shapes.add(shape)
        if self.shapes.total >= self._learn_at:
            self._learn()

    def fade(self, factor: float) -> None:
        """Let all that has arrived count less, and learn from what remains."""
        self.shapes.fade(factor)
        self._learn()

    def _learn(self) -> None:
        self._worth = Worth(self.shapes.weights)
        self._learn_at = self.shapes.total * LEARNT_GROWTH + SLACK
        self._now = np.full(len(self._changed_at), np.nan)
        self._remembered.clear()

    def increase(self, candidates: Ints, shape: Shape) -> Floats:
        """Fragmentation that serving ``shape`` would add on each candidate row, in thousandths of a device (gaps
        weigh GAP_WEIGHT); infinite where it does not fit. Less is better.
        """
        loss: Floats = self._scores(shape, candidates).loss[candidates]
        return loss

    def best(self, shape: Shape) -> int | None:
        """The row that loses least, of equals the first; None where none fits."""
        loss = self._scores(shape, np.arange(len(self._changed_at))).loss
        if not len(loss):
            return None
        row = int(loss.argmin())
        return row if np.isfinite(loss[row]) else None

    def devices(self, row: int, shape: Shape) -> tuple[int, ...]:
        """The devices of that row by which the increase is least. Raises ValueError where the request does not fit."""
        scores = self._scores(shape, np.array([row]))
        if not np.isfinite(scores.loss[row]):
            raise ValueError(f"row {row} does not fit {shape}; ask `increase` first")
        if shape.share_milli < WHOLE_MILLI:
            return (int(scores.device[row]),)
        whole = np.flatnonzero(self.machines.free_milli[row] == WHOLE_MILLI)
        return tuple(int(device) for device in whole[: shape.devices])

    def take(self, row: int, shape: Shape, devices: tuple[int, ...]) -> None:
        """Serve a request there. Raises ValueError, changing nothing, where that would oversubscribe."""
        self._change(row, shape, devices, sign=-1)

    def give(self, row: int, shape: Shape, devices: tuple[int, ...]) -> None:
        """Free what a request had taken. Raises ValueError, changing nothing, where more would be free than is there."""
        self._change(row, shape, devices, sign=1)

    def _change(self, row: int, shape: Shape, devices: tuple[int, ...], sign: int) -> None:
        if len(devices) != shape.devices or len(set(devices)) != shape.devices:
            raise ValueError(f"devices: {devices} are not the {shape.devices} different ones asked for")
        here, whole = self.machines, self._whole
        if any(not 0 <= device < here.free_milli.shape[1] for device in devices):
            raise ValueError(f"devices: {devices} are not all on row {row}")
        cpu_milli = int(here.cpu_milli[row]) + sign * shape.cpu_milli
        memory_mib = int(here.memory_mib[row]) + sign * shape.memory_mib
        free_milli = here.free_milli[row].copy()
        free_milli[list(devices)] += sign * shape.share_milli
        if min(cpu_milli, memory_mib, int(free_milli.min(initial=0))) < 0:
            raise ValueError(f"row {row} has not enough free for {shape}")
        over = cpu_milli > whole.cpu_milli[row] or memory_mib > whole.memory_mib[row]
        if over or (free_milli > whole.free_milli[row]).any():
            raise ValueError(f"row {row} would have more free than it holds; {shape} was not taken there")
        here.cpu_milli[row], here.memory_mib[row], here.free_milli[row] = cpu_milli, memory_mib, free_milli
        self._version += 1
        self._changed_at[row] = self._version
        self._now[row] = np.nan

    def _scores(self, shape: Shape, rows: Ints) -> _Scores:
        """The scores of a shape, brought up to date on those of ``rows`` that have changed."""
        scores = self._remembered.get(shape)
        if scores is None:
            count = len(self._changed_at)
            if (len(self._remembered) + 1) * count > REMEMBERED_CELLS_MAX and self._remembered:
                del self._remembered[next(iter(self._remembered))]
            never = np.full(count, -1, dtype=np.int64)
            scores = _Scores(never, np.full(count, np.inf), never.copy())
            self._remembered[shape] = scores
        stale = rows[self._changed_at[rows] > scores.seen[rows]]
        if len(stale):
            self._refresh(shape, scores, stale)
            scores.seen[stale] = self._version
        return scores

    def _refresh(self, shape: Shape, scores: _Scores, rows: Ints) -> None:
        scores.loss[rows] = np.inf
        ways = options(self.machines, rows, shape)
        if not len(ways.row):
            return
        unknown = np.unique(ways.row[np.isnan(self._now[ways.row])])
        self._now[unknown] = _of_unlike(self._worth, self.machines.rows(unknown))
        lost = self._now[ways.row] - _of_unlike(self._worth, ways.left)
        # Sums that differ in their last bits, by the order they were made in, fall on the same side of a step.
        lost = np.round(np.round(lost, LOST_DECIMALS) / STEP) * STEP + self._mismatch(ways.row, shape) * (
            MATCH_SPAN * STEP
        )
        order = np.lexsort((lost, ways.row))
        row = ways.row[order]
        least = order[np.concatenate(([True], row[1:] != row[:-1]))]
        scores.loss[ways.row[least]] = lost[least]
        scores.device[ways.row[least]] = ways.device[least]

    def _mismatch(self, rows: Ints, shape: Shape) -> Floats:
        """0 to 1: how unlike a machine's processors per device are to the request's; without devices, how few."""
        offered = self._cpu_per_device[rows]
        if shape.devices == 0:
            poor: Floats = 1.0 - offered / max(float(self._cpu_per_device.max()), SLACK)
            return poor
        asked = max(shape.cpu_milli * WHOLE_MILLI / shape.asked_milli, SLACK)
        offered = np.maximum(offered, SLACK)
        unlike: Floats = 1.0 - np.minimum(offered / asked, asked / offered)
        return unlike


def _of_unlike(worth: Worth, machines: Machines) -> Floats:
    """`Worth.of`, computed once for machines that are alike but for the order of their devices."""
    if len(machines.cpu_milli) < DUPLICATES_FROM:
        return worth.of(machines)
    columns = (machines.cpu_milli, machines.memory_mib, machines.model, np.sort(machines.free_milli, axis=1))
    key = np.ascontiguousarray(np.column_stack(columns))
    packed = key.view(np.dtype((np.void, key.dtype.itemsize * key.shape[1]))).ravel()
    _, first, copies = np.unique(packed, return_index=True, return_inverse=True)
    return worth.of(machines.rows(first))[copies]
