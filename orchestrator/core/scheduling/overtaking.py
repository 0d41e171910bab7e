"""Overtaking, counted and bounded: later jobs may use what an earlier one cannot, but not for ever.

A job that finds no place is passed over; each later job of the same plan that is given devices which would have served it
overtakes it. After ``overtaken_max`` times it is entitled: the machines that it will need are chosen, those that are
nearest to being free first, and whatever is free of them is kept for it. So it fills up as others end, and nothing new
starts there before it.

Where the time limits of what runs say when the machines will be enough, that instant is a promise. It is stored with its
job before anybody is told of it, and changes only for other machines or a sooner start. The next plans hold to it, those
after a restart too, and until then they lend what is kept to jobs that are sure to have ended by it (conservative
backfill). Such a job delays nobody: not whom the machines are kept for, and not those who wait and could not have had
them. So it overtakes nobody either. What breaks a promise is the ground: a machine that goes, or a cluster that forms for
longer than the five minutes allowed for.
"""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.core.instants import utc_words
from orchestrator.core.jobs import Promise
from orchestrator.core.scheduling.filters import describe
from orchestrator.core.scheduling.offers import Column
from orchestrator.core.scheduling.placement import JobNeed
from orchestrator.core.scheduling.soonest import looked_at, machines_for

if TYPE_CHECKING:
    from collections.abc import Iterable

    from orchestrator.core.ids import JobId, TenantId, WorkerId
    from orchestrator.core.scheduling.draft import Draft
    from orchestrator.core.scheduling.offers import Numbers
    from orchestrator.core.scheduling.placement import Need
    from orchestrator.core.scheduling.soonest import Machines

FOLLOWED_MAX = 64
"""Jobs whose overtaking one plan counts: the first that it passes over, which are those that waited longest."""

KEPT_MAX = 4
"""Entitled jobs that one plan keeps machines for: more would hold half a fleet idle."""

SETS_MAX = 16
"""Sets of machines that are looked at for one entitled job, each of them some tenths of a millisecond."""

PROMISED_MS_MAX = 24 * 3_600_000
"""A start that is farther away is not promised: machines of which nobody knows when they are free may well be sooner."""


class Passed:
    """Who was passed over in a plan, and by how many."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._jobs: list[JobNeed] = []
        self._tenants: set[TenantId] = set()
        self._counts: Counter[JobId] = Counter()

    def over(self, need: Need) -> None:
        """A job found no place. Who comes after another of its tenant stands behind that one."""
        if not isinstance(need, JobNeed) or len(self._jobs) == FOLLOWED_MAX:
            return
        if need.reservation_id is not None:
            # Its machines are kept already.
            return
        if need.tenant_id not in self._tenants:
            self._tenants.add(need.tenant_id)
            self._jobs.append(need)

    def by(self, workers: Iterable[WorkerId]) -> None:
        """A later one did, on these: it overtakes those whom any of their devices would have served, if not lent ones."""
        if not self._jobs:
            return
        offers = self._draft.view.offers
        rows = [row for worker_id in workers for row in offers.rows_of(worker_id)]
        rows = [row for row in rows if not self._draft.spoken_for[row]]
        for need in self._jobs:
            fits, _ = self._draft.fits(need.requirements, need.avoid)
            if fits[rows].any():
                self._counts[need.job_id] += 1

    def counts(self) -> tuple[tuple[JobId, int], ...]:
        """By job, in the order in which they were passed over."""
        return tuple(
            (need.job_id, self._counts[need.job_id]) for need in self._jobs if self._counts[need.job_id]
        )


# ------------------------------------------------------------ keeping machines


def keep_promises(draft: Draft) -> None:
    """What was promised before is kept from the beginning, so that nobody whose turn comes earlier takes it."""
    for job_id, promise in draft.view.promises.items():
        rows = rows_of(draft, promise)
        if job_id not in draft.view.entitled or rows is None or draft.spoken_for[rows].any():
            continue
        draft.keep(rows, promise.starts_by_ms)
        draft.promised[job_id] = promise
        if promise.head_host is not None:
            draft.heads[promise.head_host] += 1


def claim(draft: Draft, need: JobNeed) -> Promise | None:
    """It is a job's turn: what was promised to it is free to it."""
    promise = draft.promised.pop(need.job_id, None)
    rows = None if promise is None else rows_of(draft, promise)
    if promise is None or rows is None:
        return None
    draft.give_back(rows)
    if promise.head_host is not None:
        draft.heads[promise.head_host] -= 1
    return promise


def keep(draft: Draft, need: JobNeed, promised: Promise | None) -> str | None:
    """Keep machines for an entitled job; why it waits, in words. None where nothing could ever be kept for it."""
    if promised is None and draft.kept + len(draft.promised) >= KEPT_MAX:
        # What was promised before holds, whoever comes first by now.
        return None
    chosen = _chosen(draft, need, promised)
    if chosen is None:
        return None
    draft.kept += 1
    rows = chosen.rows
    free = int(draft.free[rows].sum())
    until = ""
    if _promised_at_all(draft, chosen):
        promise = draft.promises[need.job_id] = _promise(draft, chosen, promised)
        draft.keep(rows, promise.starts_by_ms)
        if chosen.head_host is not None:
            draft.heads[chosen.head_host] += 1
        if promised is not None and promise.starts_by_ms <= promised.starts_by_ms:
            # Only what is stored is told: what is promised anew, from the next plan on.
            told_ms = max(promised.starts_by_ms, chosen.release.at_ms)
            until = f", at {utc_words(told_ms)} at the latest"
    else:
        draft.keep(rows, None)
    wanted = need.requirements
    return (
        f"waiting for {describe(wanted)}: overtaken often enough; {free} of {wanted.device_count} devices are kept"
        f" for it on {len(rows)} machines until the rest of them is free{until}"
    )


def promised_anew(draft: Draft, started: set[JobId]) -> tuple[tuple[JobId, Promise | None], ...]:
    """By job, where this plan promises something else than was promised before. Whose job starts wants no promise.

    What was promised to jobs that the plan did not come to holds all the same.
    """
    before, after = draft.view.promises, {**draft.promises, **draft.promised}
    broken = sorted(before.keys() - after.keys() - started)
    anew = ((job_id, one) for job_id, one in after.items() if one != before.get(job_id))
    return (*anew, *((job_id, None) for job_id in broken))


def _promise(draft: Draft, chosen: Machines, before: Promise | None) -> Promise:
    """What is promised of these. Of the same machines as before it stays as it was, unless they are free sooner.

    Where they are late, it was promised all the same; by some milliseconds they are wherever they are lent, as those pass
    between a plan and its application.
    """
    offers = draft.view.offers
    devices = tuple((offers.worker_of(row), offers.devices_of(row)) for row in chosen.rows.tolist())
    promise = Promise(devices, chosen.head_host, chosen.release.at_ms)
    if before is None or not promise.same_machines(before):
        return promise
    return promise if promise.starts_by_ms < before.starts_by_ms else before


def _chosen(draft: Draft, need: JobNeed, promised: Promise | None) -> Machines | None:
    """Those that are sure to be free first, else those with most free. What was promised is left for better only."""
    known = list(islice(machines_for(draft, need, SETS_MAX), SETS_MAX))
    before = None if promised is None else rows_of(draft, promised)
    if promised is not None and before is not None and _would_hold(draft, need, before):
        known.insert(0, looked_at(draft, need, before, promised.head_host))
    sure = [one for one in known if _promised_at_all(draft, one)]
    if sure:
        return min(sure, key=lambda one: one.release.at_ms)
    return next(iter(known), None)


def _promised_at_all(draft: Draft, machines: Machines) -> bool:
    return 0 < machines.release.at_ms - draft.now_ms <= PROMISED_MS_MAX


def _would_hold(draft: Draft, need: JobNeed, rows: Numbers) -> bool:
    """Whether rows that were promised still fit, all of them, and are nobody else's."""
    fits, _ = draft.fits(need.requirements, need.avoid)
    left = np.maximum(draft.view.offers[Column.SERVING][rows] - draft.booked[rows], 0)
    enough = int(left.sum()) >= need.requirements.device_count
    return enough and bool(fits[rows].all()) and not draft.spoken_for[rows].any()


def rows_of(draft: Draft, promise: Promise) -> Numbers | None:
    """The rows of a promise; None where one of them has changed or gone."""
    rows = [draft.row_of(worker_id, device_ids) for worker_id, device_ids in promise.devices]
    found = [row for row in rows if row is not None]
    return np.array(found, dtype=np.int64) if len(found) == len(rows) else None
