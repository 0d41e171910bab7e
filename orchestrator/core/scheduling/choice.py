"""One need's machines: the cheapest set that serves it, and why these. Nothing is given away before ``place``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from orchestrator.core.scheduling.assembling import assemble, wide_enough
from orchestrator.core.scheduling.costs import Lone
from orchestrator.core.scheduling.filters import describe, joins
from orchestrator.core.scheduling.heads import head_host
from orchestrator.core.scheduling.offers import Column
from orchestrator.core.scheduling.placement import JobNeed, Placement, SpareNeed
from orchestrator.core.scheduling.runner_up import Rivals, one_machine, several

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from orchestrator.core.ids import WorkerId
    from orchestrator.core.jobs import Chosen, Requirements
    from orchestrator.core.scheduling.costs import Best
    from orchestrator.core.scheduling.draft import Draft
    from orchestrator.core.scheduling.offers import Numbers
    from orchestrator.core.scheduling.placement import Share
    from orchestrator.core.supply.fleet import Worker


@dataclass(frozen=True, slots=True)
class Choice:
    """Rows and how many devices of each. Only a gang has a head host."""

    taken: list[tuple[int, int]]
    head_host: Worker | None
    microcredits_per_hour: int
    beside: Best | Rivals
    """What else there was, for people: it is put in words for what is placed only."""


class Given(NamedTuple):
    """Devices and a head slot that a draft gave away."""

    shares: tuple[Share, ...]
    head_host: WorkerId | None


def choose(draft: Draft, need: JobNeed | SpareNeed) -> Choice | None:
    """The cheapest set: one machine before many, then the least cost of what is taken and what is left behind."""
    wanted = need.requirements
    fits, _ = draft.fits(wanted, need.avoid)
    count = wanted.device_count
    if wanted.gpus_per_worker in (0, count):
        best = draft.costs.best(Lone(wanted, count, need.packages), need.avoid, fits)
        if best is not None:
            return Choice([(best.row, count)], None, draft.prices.item(best.row) * count, best)
    if count == 1 or wanted.one_machine:
        return None
    return _together(draft, need)


def _together(draft: Draft, need: JobNeed | SpareNeed) -> Choice | None:
    """A gang over several workers of one ground; models are mixed only where no one model has enough."""
    wanted, sites = need.requirements, draft.view.offers[Column.SITE]
    hosts: dict[int, Worker | None] = {}
    for grounds in _grounds(draft, need):
        found: list[tuple[int, int, list[tuple[int, int]], Worker, Numbers]] = []
        for number, serving in enumerate(grounds):
            usable = (draft.slots[serving] > 0) & (draft.free[serving] >= max(1, wanted.gpus_per_worker))
            alike = serving[usable]
            gang = assemble(draft, wanted, alike)
            if gang is not None:
                row = gang.shares[0][0]
                site = sites.item(row)
                if site not in hosts:
                    hosts[site] = head_host(draft, need, row)
                host = hosts[site]
                if host is not None:
                    found.append((gang.score, number, gang.shares, host, alike))
        if found:
            found.sort(key=lambda one: one[:2])
            _, _, shares, host, alike = found[0]
            price = sum(draft.prices.item(row) * count for row, count in shares)
            return Choice(shares, host, price, Rivals(alike, [other for _, _, other, *_ in found[1:2]]))
    return None


def _grounds(draft: Draft, need: JobNeed | SpareNeed) -> Sequence[Sequence[Numbers]]:
    """The rows that ever serve in a gang of a request, by ground and model, and by ground alone."""
    wanted = need.requirements
    known = draft.grounds.get((wanted, need.avoid))
    if known is None:
        offers = draft.view.offers
        fits, _ = draft.fits(wanted, need.avoid)
        serving = fits & joins(
            offers, overlay_offered=draft.view.overlay_offered, measured=wanted.measured_first
        )
        rows = wide_enough(draft, wanted, np.flatnonzero(serving), ())
        ground = offers[Column.GROUND][rows]
        by_model = ground * (len(offers.models.names) + 1) + offers[Column.MODEL][rows]
        known = [[rows[names == name] for name in np.unique(names).tolist()] for names in (by_model, ground)]
        draft.grounds[wanted, need.avoid] = known
    return known


def affordable(need: JobNeed | SpareNeed, microcredits_per_hour: int) -> bool:
    """Whether a job's machines cost no more than its tenant's quota leaves for it. A spare's job runs already."""
    most = need.microcredits_per_hour_max if isinstance(need, JobNeed) else None
    return most is None or microcredits_per_hour <= most


def place(draft: Draft, need: JobNeed | SpareNeed, choice: Choice) -> Placement:
    """Give the chosen machines away."""
    why = tuple(_why(draft, need, choice.taken, choice.head_host))
    chosen = _chosen(draft, need.requirements, choice)
    given = give(draft, choice)
    if isinstance(need, JobNeed):
        draft.note_borrowed(need, choice.taken)
    return Placement(need.job_id, given.shares, given.head_host, why, chosen)


def give(draft: Draft, choice: Choice) -> Given:
    """The chosen machines, which are nobody else's from here on; without a word of why."""
    host = None if choice.head_host is None else choice.head_host.worker_id
    return Given(draft.take(choice.taken, host), host)


def _chosen(draft: Draft, wanted: Requirements, choice: Choice) -> Chosen:
    if isinstance(choice.beside, Rivals):
        return several(draft, wanted, choice.taken, choice.beside)
    return one_machine(draft, wanted.device_count, choice.beside)


def _why(
    draft: Draft, need: JobNeed | SpareNeed, taken: list[tuple[int, int]], head_host: Worker | None
) -> Iterator[str]:
    offers = draft.view.offers
    yield f"asked for {describe(need.requirements)}"
    for row, count in taken:
        worker = draft.view.workers[offers.worker_of(row)]
        yield (
            f"{worker.name}: class {worker.inventory.hardware_class}, {count} × {offers.model_of(row)}"
            f"{' (simulated)' if offers.simulated(row) else ''}, live, {draft.free.item(row) - count} fitting devices"
            " left free"
        )
    if head_host is None:
        yield "one machine holds the whole request and carries its own head"
    else:
        bound_ms = need.requirements.max_rtt_ms
        near = f", all of them measured to be within {bound_ms} ms" if bound_ms else ""
        yield (
            f"the cheapest set of one class and runtime{near}; head on {head_host.name}, which has a free head slot"
        )
        least_mbps = need.requirements.min_bandwidth_mbps
        if least_mbps:
            yield f"whoever turns out to deliver less than {least_mbps} Mbit/s to another is replaced before the start"
        ready = _readiness(draft, need, taken, head_host)
        if ready:
            yield ready


def _readiness(
    draft: Draft, need: JobNeed | SpareNeed, taken: list[tuple[int, int]], head_host: Worker
) -> str:
    """What of a gang is ready already, in words; empty where nothing of it is known."""
    rows = np.array([row for row, _ in taken], dtype=np.int64)
    ready = draft.costs.ready(rows, need.requirements)
    said = [f"{ready[1]} of {len(rows)} machines have the {ready[0]} already"] if ready and ready[1] else []
    head_row = next(iter(draft.view.offers.rows_of(head_host.worker_id)))
    if need.packages and draft.costs.packaged(need.packages)[head_row]:
        said.append("the head host has the package already")
    return ", ".join(said)
