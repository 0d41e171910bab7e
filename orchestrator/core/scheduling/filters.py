"""Which offers could ever serve a request: one filter for each thing that may be asked, over the whole table at once.

A filter removes rows and has words for it, so that what a plan may choose from and why a job waits are the same lines.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.core.delivery import BITS_PER_MBIT
from orchestrator.core.market.pricing import credits_text
from orchestrator.core.scheduling.offers import (
    BY_OVERLAY,
    CLASS_NUMBER,
    CPU,
    GPU,
    NO_DEVICE,
    NO_REACH,
    OPEN,
    STATES,
    Column,
)
from orchestrator.core.supply.catalogue import GIB
from orchestrator.core.supply.evidence import CAPABILITY_MINORS, EVIDENCE_RANK, EvidenceClass
from orchestrator.core.supply.fleet import ISOLATION_RANK, HardwareClass
from orchestrator.core.supply.holds import PHRASES, HoldKind
from orchestrator.core.supply.reliability import BASIS_POINTS, PRIOR

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from orchestrator.core.ids import WorkerId
    from orchestrator.core.jobs import Requirements
    from orchestrator.core.nearness.bandwidth import BandwidthMap
    from orchestrator.core.scheduling.offers import Numbers, Offers

    Mask = NDArray[np.bool_]

OPEN_MS_MIN = 600_000
"""A cluster takes minutes to form and to pay for itself: a window that ends sooner is left alone."""


@dataclass(frozen=True, slots=True)
class Question:
    """All that filters may look at. Prices are per row, as Offers.PRICE with what the market says filled in."""

    offers: Offers
    wanted: Requirements
    at_ms: int
    prices: Numbers
    reliability_half_life_ms: int
    avoid: tuple[WorkerId, ...] = ()
    bandwidth: BandwidthMap | None = None
    """What was delivered lately, where anything was."""

    def __getitem__(self, column: Column) -> Numbers:
        return self.offers[column]


@dataclass(frozen=True, slots=True)
class Filter:
    """One reason to leave a row out. ``asked`` says whether a request has it at all.

    Where the tenant could do without, ``field`` is the requirement's and ``key`` what the tenant wrote.
    """

    name: str
    asked: Callable[[Requirements], bool]
    phrase: Callable[[Requirements], str]
    keeps: Callable[[Question], Mask]
    field: str = ""
    key: str = ""

    def lifted(self, wanted: Requirements) -> Requirements:
        """The request without it."""
        without: dict[str, Any] = {one.name: one.default for one in fields(wanted) if one.name == self.field}
        return replace(wanted, **without)


def _always(_wanted: Requirements) -> bool:
    return True


def _wanted_class(wanted: Requirements) -> HardwareClass | None:
    return HardwareClass.CPU if wanted.gpus == 0 else wanted.hardware_class


def _keeps_class(question: Question) -> Mask:
    wanted = _wanted_class(question.wanted) or HardwareClass.CPU
    kept: Mask = question[Column.HARDWARE_CLASS] == CLASS_NUMBER[wanted]
    return kept


def _keeps_open(question: Question) -> Mask:
    """Hours that have not begun are another filter's, with other words."""
    closes_ms = question.offers.closes_ms(question.at_ms)
    enough_ms = np.maximum(OPEN_MS_MIN, 2 * question[Column.NOTICE_MS])
    kept: Mask = (closes_ms == 0) | (closes_ms - question.at_ms >= enough_ms)
    return kept


def _keeps_avoided(question: Question) -> Mask:
    kept = np.ones(question.offers.size, dtype=np.bool_)
    for worker_id in question.avoid:
        kept[list(question.offers.rows_of(worker_id))] = False
    return kept


def slow_rows(question: Question) -> Mask:
    """Rows of workers that are known to deliver less bandwidth than asked; whoever is not known is tried."""
    slow = np.zeros(question.offers.size, dtype=np.bool_)
    least = question.wanted.min_bandwidth_mbps * BITS_PER_MBIT
    if question.bandwidth is not None and least:
        for worker_id in question.bandwidth.slower_than(least, question.at_ms):
            slow[list(question.offers.rows_of(worker_id))] = True
    return slow


def _keeps_bandwidth(question: Question) -> Mask:
    """Who holds the whole request alone has nobody to send to."""
    wanted = question.wanted
    if wanted.one_machine or wanted.gpus_per_worker == wanted.device_count:
        return np.ones(question.offers.size, dtype=np.bool_)
    kept: Mask = ~slow_rows(question)
    if not wanted.gpus_per_worker:
        kept |= question[Column.SERVING] >= wanted.device_count
    return kept


def _kind(wanted: Requirements) -> int:
    return CPU if wanted.gpus == 0 else GPU


def scores_bp(offers: Offers, at_ms: int, half_life_ms: int) -> Numbers:
    """As reliability.score_bp, for every row; a rounding may differ by one."""
    left = np.exp2(-np.maximum(0, at_ms - offers[Column.JUDGED_MS]) / half_life_ms)
    kept, broken = offers[Column.KEPT] * left, offers[Column.BROKEN] * left
    return (BASIS_POINTS * (PRIOR + kept) / (2 * PRIOR + kept + broken)).astype(np.int64)


FILTERS = (
    Filter(
        "hardware_class",
        lambda wanted: _wanted_class(wanted) is not None,
        lambda wanted: f"not of hardware class {_wanted_class(wanted)}",
        _keeps_class,
        "hardware_class",
        "orch.hardware_class",
    ),
    Filter(
        "isolation",
        lambda wanted: ISOLATION_RANK[wanted.isolation] > 0,
        lambda wanted: f"isolation weaker than {wanted.isolation}",
        lambda question: question[Column.ISOLATION] >= ISOLATION_RANK[question.wanted.isolation],
    ),
    Filter(
        "consent",
        _always,
        lambda _: "without isolation, to which the owner did not consent",
        lambda question: question[Column.CONSENTED] != 0,
    ),
    Filter(
        "runtime",
        lambda wanted: bool(wanted.runtime),
        lambda _: "without provisioned runtimes",
        lambda question: question[Column.BOXED] != 0,
        "runtime",
        "orch.runtime",
    ),
    Filter(
        "devices", _always, lambda _: "offers no device", lambda question: question[Column.KIND] != NO_DEVICE
    ),
    Filter(
        "driver_cpus",
        lambda wanted: wanted.driver_cpus > 1,
        lambda wanted: f"fewer than {wanted.driver_cpus} CPUs for the driver",
        lambda question: question[Column.PLACE_CPUS] >= question.wanted.driver_cpus,
        "driver_cpus",
        "entrypoint_num_cpus",
    ),
    Filter(
        "driver_memory",
        lambda wanted: wanted.driver_memory_bytes > 0,
        lambda wanted: f"less than {wanted.driver_memory_bytes} bytes of memory for the driver",
        lambda question: question[Column.MACHINE_BYTES] >= question.wanted.driver_memory_bytes,
        "driver_memory_bytes",
        "entrypoint_memory",
    ),
    Filter(
        "hours",
        _always,
        lambda _: PHRASES[HoldKind.SCHEDULE],
        lambda question: question.offers.closes_ms(question.at_ms) != 0,
    ),
    Filter("closing", _always, lambda _: "closing soon by its owner's schedule", _keeps_open),
    Filter("avoid", _always, lambda _: "failed this job before it started", _keeps_avoided),
    Filter(
        "kind",
        _always,
        lambda wanted: "not a CPU worker" if wanted.gpus == 0 else "no GPU",
        lambda question: question[Column.KIND] == _kind(question.wanted),
    ),
    Filter(
        "gpu_model",
        lambda wanted: wanted.gpu_model is not None,
        lambda wanted: f"not a {wanted.gpu_model}",
        lambda question: (
            question[Column.MODEL] == question.offers.models.find(question.wanted.gpu_model or "")
        ),
        "gpu_model",
        "orch.gpu_model",
    ),
    Filter(
        "gpu_memory",
        lambda wanted: wanted.min_gpu_memory_gb > 0,
        lambda wanted: f"less than {wanted.min_gpu_memory_gb} GB of GPU memory",
        lambda question: question[Column.DEVICE_BYTES] >= question.wanted.min_gpu_memory_gb * GIB,
        "min_gpu_memory_gb",
        "orch.min_gpu_memory_gb",
    ),
    Filter(
        "compute_capability",
        lambda wanted: wanted.min_compute_capability > 0,
        lambda wanted: f"compute capability not known to be {capability_words(wanted)} or more",
        lambda question: question[Column.CAPABILITY] >= question.wanted.min_compute_capability,
        "min_compute_capability",
        "orch.min_compute_capability",
    ),
    Filter(
        "region",
        lambda wanted: bool(wanted.region),
        lambda wanted: f"not in region {wanted.region}",
        lambda question: question.offers.in_region(question.wanted.region),
        "region",
        "orch.region",
    ),
    Filter(
        "evidence",
        lambda wanted: wanted.min_evidence is not EvidenceClass.T0,
        lambda wanted: f"evidence weaker than {wanted.min_evidence}",
        lambda question: question[Column.EVIDENCE] >= EVIDENCE_RANK[question.wanted.min_evidence],
        "min_evidence",
        "orch.evidence",
    ),
    Filter(
        "tier",
        lambda wanted: wanted.committed,
        lambda _: "interruptible",
        lambda question: question[Column.COMMITTED] != 0,
        "committed",
        "orch.tier",
    ),
    Filter(
        "reliability",
        lambda wanted: wanted.min_reliability_bp > 0,
        lambda wanted: f"reliability below {wanted.min_reliability_bp / 100:g} %",
        lambda question: (
            scores_bp(question.offers, question.at_ms, question.reliability_half_life_ms)
            >= question.wanted.min_reliability_bp
        ),
        "min_reliability_bp",
        "orch.min_reliability",
    ),
    Filter(
        "bandwidth",
        lambda wanted: wanted.min_bandwidth_mbps > 0 and wanted.device_count > 1,
        lambda wanted: f"known to deliver less than {wanted.min_bandwidth_mbps} Mbit/s to others",
        _keeps_bandwidth,
        "min_bandwidth_mbps",
        "orch.min_bandwidth_mbps",
    ),
    Filter(
        "price",
        lambda wanted: wanted.max_price > 0,
        lambda wanted: f"dearer than {credits_text(wanted.max_price)} per GPU-hour",
        lambda question: question.prices <= question.wanted.max_price,
        "max_price",
        "orch.max_price",
    ),
    Filter(
        "cordon",
        _always,
        lambda _: "with each fitting device cordoned",
        lambda question: question[Column.SERVING] > 0,
    ),
)


def capability_words(wanted: Requirements) -> str:
    """The compute capability asked for as its vendor writes it."""
    major, minor = divmod(wanted.min_compute_capability, CAPABILITY_MINORS)
    return f"{major}.{minor}"


OF_HEADS = frozenset({"isolation", "consent", "hours", "closing", "avoid"})
"""Filters that count for the head of a cluster, too, which brings no device."""


def fitting(question: Question, names: frozenset[str] | None = None) -> Mask:
    """The rows that serve a request, whether anything of them is free or not; by these filters alone, if named."""
    kept: Mask = question[Column.STATE] == OPEN
    for one in FILTERS:
        if one.asked(question.wanted) and (names is None or one.name in names):
            kept &= one.keeps(question)
    return kept


def joins(offers: Offers, *, overlay_offered: bool, measured: bool = False) -> Mask:
    """The rows whose workers can be members of clusters of several machines in this network.

    ``measured``: where they have to be measured against each other first, which bare machines are not.
    """
    reach = offers[Column.REACH]
    kept: Mask = (reach != NO_REACH) & ((reach != BY_OVERLAY) | overlay_offered)
    return kept & (reach == BY_OVERLAY) if measured else kept


@dataclass(frozen=True, slots=True)
class Removed:
    """Workers that one reason leaves out. ``alone`` is how many only that reason does: they would serve without it."""

    name: str
    phrase: str
    workers: int
    alone: int


def rejections(question: Question) -> tuple[Removed, ...]:
    """Why workers are left out, by the first reason of each, most workers first.

    A worker is left out where all its rows are; its reason is that of the row which came furthest.
    """
    wanted = question.wanted
    asked = [one for one in FILTERS if one.asked(wanted)]
    state = question[Column.STATE]
    failed = [state != OPEN, *(~one.keeps(question) for one in asked)]
    rows = np.flatnonzero(question[Column.WORKER] >= 0)
    stacked = np.stack(failed)[:, rows]
    furthest = np.where(stacked.any(axis=0), stacked.argmax(axis=0), len(failed))
    faults = stacked.sum(axis=0)
    workers = question[Column.WORKER][rows]
    # The row that came furthest speaks for its worker; of those the one with the fewest faults.
    order = np.lexsort((faults, -furthest, workers))
    speakers = order[np.unique(workers[order], return_index=True)[1]]
    out = speakers[furthest[speakers] < len(failed)]
    reasons = np.where(furthest == 0, state[rows], len(STATES) - 1 + furthest)[out]
    counts = np.bincount(reasons)
    by_itself = np.bincount(reasons[faults[out] == 1], minlength=len(counts))
    words = [("state", phrase) for phrase in STATES] + [(one.name, one.phrase(wanted)) for one in asked]
    found = [
        Removed(*words[number], int(counts[number]), int(by_itself[number]))
        for number in np.flatnonzero(counts).tolist()
    ]
    return tuple(sorted(found, key=lambda one: (-one.workers, one.phrase)))


def describe(wanted: Requirements) -> str:
    """The request in words."""
    if wanted.gpus == 0:
        return "CPU work on one cpu worker"
    parts = [f"{wanted.gpus} × {wanted.gpu_model or 'GPU'}"]
    if wanted.hardware_class is not None:
        parts.append(f"of class {wanted.hardware_class}")
    if wanted.min_gpu_memory_gb:
        parts.append(f"with at least {wanted.min_gpu_memory_gb} GB")
    if wanted.isolation != "none":
        parts.append(f"with isolation {wanted.isolation}")
    if wanted.image:
        parts.append(f"in image {wanted.image}")
    parts.extend(_conditions(wanted))
    if wanted.gpus > 1:
        parts.append("on one machine" if wanted.one_machine else "together")
    if wanted.gpus_per_worker:
        parts.append(f"{wanted.gpus_per_worker} on each machine")
    return " ".join(parts)


def _conditions(wanted: Requirements) -> Iterable[str]:
    if wanted.min_compute_capability:
        yield f"of compute capability {capability_words(wanted)}"
    if wanted.region:
        yield f"in region {wanted.region}"
    if wanted.min_evidence is not EvidenceClass.T0:
        yield f"with evidence {wanted.min_evidence}"
    if wanted.committed:
        yield "on committed machines"
    if wanted.min_reliability_bp:
        yield f"of reliability {wanted.min_reliability_bp / 100:g} %"
    if wanted.max_price:
        yield f"for at most {credits_text(wanted.max_price)} per GPU-hour"
    if wanted.max_rtt_ms:
        yield f"within {wanted.max_rtt_ms} ms"
    if wanted.min_bandwidth_mbps:
        yield f"with {wanted.min_bandwidth_mbps} Mbit/s between machines"
