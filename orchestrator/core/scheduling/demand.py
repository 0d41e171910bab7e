"""What has been asked for lately: the histogram by which a plan judges what it leaves of a machine.

Sizes and models of the jobs that arrived, a day ago half as much as now; a measurement, never stored, and made again
from the jobs that are loaded. Where little has come yet, every size is expected, small ones more than large ones: then
what leaves least of a machine is best.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.core.scheduling.fragmentation import GAP_WEIGHT, WHOLE_MILLI, Machines, Shape, Worth
from orchestrator.core.supply.catalogue import MODELS
from orchestrator.core.supply.hardware import DEVICES_MAX

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.core.jobs import Requirements
    from orchestrator.core.scheduling.offers import Numbers
    from orchestrator.core.supply.fleet import HardwareClass

HALF_LIFE_MS = 24 * 3_600_000
"""People's work has the rhythm of days: half of that would forget the evening's gangs by morning."""

PRIOR_ARRIVALS = 16
"""What is expected of every fleet counts like so many arrivals: what a tenant sends in an afternoon outweighs it."""

LEARNT_ARRIVALS_MIN = 16
LEARNT_SHARE = 0.2
"""Arrivals after which the histogram is learnt from again: a fifth more moves what is expected by little."""

REBASED_HALF_LIVES = 256
"""Weights grow with time instead of fading; after so long all are scaled down, far below what a float holds."""

FADED = 1e-9
"""Of an arrival: what counts less is forgotten."""

LOST_DEVICE_PRICE = 1_000
"""Microcredits per hour for each device's worth of expected requests that a machine can hold no more. A machine of
eight that everybody wants whole counts 0.008 credits: no more than a hundredth between two owners' prices."""

_NUMBER = {model: number for number, model in enumerate(MODELS)}

PRIOR = {Shape(0, 0, size): 1.0 / size for size in range(1, DEVICES_MAX + 1)}
"""Half as many ask for twice the size, as in every trace of such clusters."""


class Demand:
    """The histogram, and what each number of free devices is worth to it."""

    def __init__(self) -> None:
        self._weights: dict[Shape, float] = {}
        """At the time of ``_since_ms``, so that what comes later weighs more than 1."""
        self._since_ms: int | None = None
        self._latest_ms = 0
        self._unlearnt = 0
        self._learn_at = LEARNT_ARRIVALS_MIN
        self._learnt: dict[Shape, float] = dict(PRIOR)
        self._worth: Numbers | None = None

    def arrived(self, wanted: Requirements, at_ms: int) -> None:
        """Count a request; work for processors leaves no GPU behind."""
        if wanted.gpus == 0:
            return
        if self._since_ms is None:
            self._since_ms = at_ms
        self._latest_ms = max(self._latest_ms, at_ms)
        if self._latest_ms - self._since_ms > REBASED_HALF_LIVES * HALF_LIFE_MS:
            self._rebase()
        each = wanted.gpus_per_worker or wanted.gpus
        shape = _shape(each, wanted.gpu_model, wanted.min_gpu_memory_gb, wanted.hardware_class)
        self._weights[shape] = self._weights.get(shape, 0.0) + self._weight(at_ms) * (wanted.gpus / each)
        self._unlearnt += 1
        if self._unlearnt >= self._learn_at:
            self._learn()

    def worth(self) -> Numbers:
        """What free devices are worth, in microcredits per hour: (models and one for any other, DEVICES_MAX + 1)."""
        if self._worth is None:
            self._worth = _worth_of(self._learnt)
        return self._worth

    @staticmethod
    def model_numbers(names: Sequence[str]) -> Numbers:
        """The row of each model in ``worth``."""
        return np.array([_NUMBER.get(name, len(_NUMBER)) for name in names] or [0], dtype=np.int64)

    def _weight(self, at_ms: int) -> float:
        """Of an arrival at this time; one of long before the first that came counts nothing."""
        half_lives = (at_ms - (self._since_ms or 0)) / HALF_LIFE_MS
        return float(2.0 ** min(max(half_lives, -REBASED_HALF_LIVES), 2 * REBASED_HALF_LIVES))

    def _rebase(self) -> None:
        scale = self._weight(self._latest_ms)
        self._weights = {shape: weight / scale for shape, weight in self._weights.items()}
        self._weights = {shape: weight for shape, weight in self._weights.items() if weight > FADED}
        self._since_ms = self._latest_ms

    def _learn(self) -> None:
        """What arrived, beside what is expected anyway; in arrivals of now."""
        now = self._weight(self._latest_ms)
        prior = sum(PRIOR.values())
        self._learnt = {shape: PRIOR_ARRIVALS * weight / prior for shape, weight in PRIOR.items()}
        for shape, weight in self._weights.items():
            self._learnt[shape] = self._learnt.get(shape, 0.0) + weight / now
        self._worth = None
        self._unlearnt = 0
        self._learn_at = max(LEARNT_ARRIVALS_MIN, int(LEARNT_SHARE * sum(self._weights.values()) / now))


@lru_cache(maxsize=4096)
def _shape(devices: int, model: str | None, memory_gb: int, hardware_class: HardwareClass | None) -> Shape:
    """What one machine is asked for, with the models that would do; any model is the empty set."""
    if model is not None:
        return Shape(0, 0, devices, models=frozenset({_NUMBER.get(model, len(_NUMBER))}))
    if memory_gb == 0 and hardware_class is None:
        return Shape(0, 0, devices)
    fitting = (
        _NUMBER[one.name]
        for one in MODELS.values()
        if one.memory_gb >= memory_gb and hardware_class in (None, *one.classes)
    )
    return Shape(0, 0, devices, models=frozenset(fitting))


def _worth_of(weights: dict[Shape, float]) -> Numbers:
    """As Demand.worth. Whole devices have no gaps: that part of their worth is the same for all, and left out."""
    named = sorted({shape.models for shape in weights if shape.models}, key=sorted)
    asked = np.array([[model in models for models in named] for model in range(len(_NUMBER) + 1)])
    # Models that are named together everywhere are worth the same: each such kind is worked out once.
    _, kinds, kind_of = np.unique(asked, axis=0, return_index=True, return_inverse=True)
    counts = DEVICES_MAX + 1
    free = np.tile(np.arange(counts), len(kinds))
    whole = np.where(np.arange(DEVICES_MAX) < free[:, None], WHOLE_MILLI, 0)
    nothing = np.zeros(len(free), dtype=np.int64)
    machines = Machines(nothing, nothing, whole, np.repeat(kinds, counts))
    reach = Worth(weights).of(machines) - GAP_WEIGHT * WHOLE_MILLI * free
    worth: Numbers = np.round(reach * LOST_DEVICE_PRICE / WHOLE_MILLI).astype(np.int64)
    return worth.reshape(len(kinds), counts)[kind_of.ravel()]
