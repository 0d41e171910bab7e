"""What a simulation counts as it goes: integrals over virtual time, samples and series, all of bounded size."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from random import Random

SAMPLES_MAX = 100_000
"""Kept of waits and completion times: percentiles of fewer jobs are exact, of more a fair sample by the seed."""

POINTS_MAX = 2_000
"""Of a plotted series: more than a screen is wide."""


class Samples:
    """Numbers of which a bounded, fair sample is kept; count and mean are of all."""

    def __init__(self, chance: Random) -> None:
        self._chance = chance
        self._kept: list[int] = []
        self.count = 0
        self.total = 0

    def add(self, value: int) -> None:
        """One more."""
        self.count += 1
        self.total += value
        if len(self._kept) < SAMPLES_MAX:
            self._kept.append(value)
            return
        place = self._chance.randrange(self.count)
        if place < SAMPLES_MAX:
            self._kept[place] = value

    @property
    def mean(self) -> float | None:
        """Of all; None of none."""
        return self.total / self.count if self.count else None

    def quantile(self, part: float) -> int | None:
        """The smallest kept value that ``part`` of them do not exceed; None of none."""
        if not self._kept:
            return None
        ordered = sorted(self._kept)
        return ordered[max(0, -int(-part * len(ordered) // 1) - 1)]

    def curve(self, points: int) -> list[tuple[float, float]]:
        """(value, part of all that is not larger), for a plot."""
        ordered = sorted(self._kept)
        last = len(ordered) - 1
        chosen = (
            sorted({round(last * step / max(1, points - 1)) for step in range(points)}) if ordered else []
        )
        return [(float(ordered[place]), (place + 1) / len(ordered)) for place in chosen]


class Series:
    """Means over equal stretches of virtual time; when there are too many, two become one."""

    def __init__(self, stretch_ms: int = 1_000) -> None:
        self.stretch_ms = stretch_ms
        self._sums: list[float] = []
        self._until_ms = 0

    def add(self, from_ms: int, to_ms: int, value: float) -> None:
        """``value`` held from ``from_ms``, where the last one ended, to ``to_ms``."""
        while to_ms > self.stretch_ms * POINTS_MAX:
            self._halve()
        while from_ms < to_ms:
            place = from_ms // self.stretch_ms
            end_ms = min(to_ms, (place + 1) * self.stretch_ms)
            while len(self._sums) <= place:
                self._sums.append(0.0)
            self._sums[place] += value * (end_ms - from_ms)
            from_ms = end_ms
        self._until_ms = to_ms

    def points(self) -> list[tuple[float, float]]:
        """(middle of the stretch in ms, mean), for a plot."""
        found = []
        for place, total in enumerate(self._sums):
            begin_ms = place * self.stretch_ms
            end_ms = min(self._until_ms, begin_ms + self.stretch_ms)
            if end_ms > begin_ms:
                found.append(((begin_ms + end_ms) / 2, total / (end_ms - begin_ms)))
        return found

    def _halve(self) -> None:
        pairs = [*self._sums, 0.0] if len(self._sums) % 2 else self._sums
        self._sums = [one + other for one, other in zip(pairs[::2], pairs[1::2], strict=True)]
        self.stretch_ms *= 2


class Readings:
    """What something was now and then, at equal distances of virtual time at least; of too many, each second goes."""

    def __init__(self, distance_ms: int = 1_000) -> None:
        self._distance_ms = distance_ms
        self._due_ms = 0
        self.points: list[tuple[int, float]] = []
        """(when in ms, what it was), in order."""

    def due(self, now_ms: int) -> bool:
        """Whether a reading is wanted: taking one may cost something."""
        return now_ms >= self._due_ms

    def add(self, now_ms: int, value: float | None) -> None:
        """One more, later than the others; None where there was nothing to read."""
        self._due_ms = now_ms + self._distance_ms
        if value is None:
            return
        self.points.append((now_ms, value))
        if len(self.points) > POINTS_MAX:
            self.points = self.points[::2]
            self._distance_ms *= 2


@dataclass(slots=True)
class TenantTally:
    """One tenant's jobs now, and its GPU time while it had to share."""

    weight: int
    waiting: int = 0
    """Jobs that the whole fleet could hold, and that hold nothing."""
    held_gpus: int = 0
    contended_gpu_ms: int = 0
    """Held while it and another had jobs waiting."""
    due_gpu_ms: float = 0.0
    """What its weight's part of all that the contenders held then would have been."""


@dataclass(slots=True)
class Tally:
    """Everything that is added up over time. The caller sets what is so now, and moves on."""

    waits: Samples
    completions: Samples
    tenants: dict[str, TenantTally] = field(default_factory=dict)
    utilisation: Series = field(default_factory=Series)
    queue: Series = field(default_factory=Series)
    fragmentation: Series = field(default_factory=Series)
    fairness: Readings = field(default_factory=Readings)
    """Jain's index until then."""
    goodput: Readings = field(default_factory=Readings)
    """Work that counted over GPU time held, until then."""
    now_ms: int = 0
    cut_short: int = 0
    """Jobs that came to their time limit."""
    available_gpus: int = 0
    held_gpus: int = 0
    free_gpus: int = 0
    waiting: int = 0
    """Jobs that hold nothing."""
    arrived: int = 0
    done: int = 0
    rounded: int = 0
    interruptions: int = 0
    available_gpu_ms: int = 0
    held_gpu_ms: int = 0
    useful_gpu_ms: int = 0
    """Work that counted: without formation, checkpoints, and what was lost and done again."""
    short_ms: int = 0
    """Time in which a job waited that the whole fleet could hold."""
    short_free_gpu_ms: int = 0
    """GPUs that were free in that time."""
    contended_ms: int = 0

    def move_to(self, to_ms: int) -> None:
        """Until ``to_ms`` everything was as it is now."""
        length_ms = to_ms - self.now_ms
        if length_ms <= 0:
            return
        self.available_gpu_ms += self.available_gpus * length_ms
        self.held_gpu_ms += self.held_gpus * length_ms
        contenders = [one for one in self.tenants.values() if one.waiting]
        if contenders:
            self.short_ms += length_ms
            self.short_free_gpu_ms += self.free_gpus * length_ms
        if len(contenders) > 1:
            self.contended_ms += length_ms
            weights = sum(one.weight for one in contenders)
            held = sum(one.held_gpus for one in contenders)
            for one in contenders:
                one.contended_gpu_ms += one.held_gpus * length_ms
                one.due_gpu_ms += held * length_ms * one.weight / weights
        used = self.held_gpus / self.available_gpus if self.available_gpus else 0.0
        self.utilisation.add(self.now_ms, to_ms, used)
        self.queue.add(self.now_ms, to_ms, self.waiting)
        short = self.free_gpus / self.available_gpus if contenders and self.available_gpus else 0.0
        self.fragmentation.add(self.now_ms, to_ms, short)
        self.now_ms = to_ms

    def jain(self) -> float | None:
        """Jain's index of what contenders got of what was due to them: 1 is perfectly fair; None without contention."""
        parts = [one.contended_gpu_ms / one.due_gpu_ms for one in self.tenants.values() if one.due_gpu_ms]
        squares = sum(part * part for part in parts)
        return sum(parts) ** 2 / (len(parts) * squares) if squares else None
