"""Interruptible work gives way to a job that waits, if that makes it fit, and so that least is lost.

*Who may*: ``core.preemption``. *Lost* is the device-time since a try's start. First the least set is looked for in each
place that could hold the job: devices have to add up to what is missing there, which is answered exactly. Distances,
head slots and machines of several kinds may still speak against it, so each set is tried by the plan's own choice, as if
it were gone; where none of these stands the test, as many victims as it takes are gathered, the least loss first. In
either case nobody is asked without whom the job would fit. Clusters that stand idle cost nothing, and what is on its way
already counts as gone: where that is enough nobody else is asked. A job that its tenant's quota of GPUs keeps waiting
has work of the same tenant give way wherever it runs, until the quota lets it begin and it fits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.core.clusters import ClusterPhase, MemberPhase, MemberRole
from orchestrator.core.preemption import TO_PRIORITY, TO_SHARE, lost_ms, may_give_way, preempted_clusters
from orchestrator.core.scheduling.choice import affordable, choose, give
from orchestrator.core.scheduling.filters import describe, joins
from orchestrator.core.scheduling.making_room import gpus_of, leaving
from orchestrator.core.scheduling.nominations import nominate, unclaimed
from orchestrator.core.scheduling.offers import Column
from orchestrator.core.scheduling.placement import Preemption, Victim
from orchestrator.core.tenancy.fairness import NOTHING
from orchestrator.core.tenancy.tenants import held_by

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from orchestrator.core.clusters import Cluster, Member
    from orchestrator.core.ids import ClusterId, TenantId
    from orchestrator.core.scheduling.choice import Given
    from orchestrator.core.scheduling.draft import Draft
    from orchestrator.core.scheduling.offers import Numbers
    from orchestrator.core.scheduling.placement import JobNeed
    from orchestrator.core.tenancy.fairness import Amounts

    Cost = tuple[int, int, int]

SOUGHT_MAX = 4
"""Different requests for which one plan looks for victims: each look is a few choices of machines."""

SCANNED_MAX = 4_096
"""Clusters of one tenant that are looked at, those given last first, which have least to lose: some milliseconds."""

VICTIMS_MAX = 128
"""Of these, such as may give way and would help: twice what the largest gang may need. A look costs some milliseconds."""

PLACES_TRIED = 4
"""Least sets that are tried before victims are gathered one by one."""

GATHERED_MAX = 64
"""Victims that are gathered: as many as the largest gang may need, if each brings one device."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A cluster that could go. ``brings`` is devices by row; ``victim`` is None where it stands idle."""

    cluster: Cluster
    victim: Victim | None
    lost_ms: int
    brings: Mapping[int, int]

    @property
    def cost(self) -> Cost:
        """Less is better: what is lost, who is asked, what is closed."""
        return (self.lost_ms, int(self.victim is not None), 1)

    @property
    def rank(self) -> tuple[int, int, int, str]:
        """For an order that does not depend on how things came to be listed."""
        return (
            self.lost_ms,
            int(self.victim is not None),
            -sum(self.brings.values()),
            self.cluster.cluster_id,
        )


def preempt(draft: Draft, need: JobNeed) -> str | None:
    """Note who gives way to a job that found no place, and keep what they free; in words what it waits for then.

    None where nobody gives way: nobody may, or it would not help.
    """
    view = draft.view
    others = view.watched.interruptible
    own = need.tenant_id in others and draft.now_ms - need.since_ms >= view.policies.preemption.wait_ms
    claim = need.claim if not any(_is_to_share(one) for one in draft.preemptions) else None
    asked = (need.requirements, need.avoid, need.tenant_id, need.priority, own, claim, need.gpus_in_excess)
    if not (own or claim) or draft.victims_sought == SOUGHT_MAX or asked in draft.hopeless:
        return None
    draft.victims_sought += 1
    draft.hopeless.add(asked)
    tenants = [*([need.tenant_id] if own else ()), *sorted(claim.over_share if claim else ())]
    found = [one for tenant_id in tenants for one in _victims(draft, need, tenant_id)]
    coming = _coming(draft) if found else []
    base = supposing(draft, coming) if found else draft
    need = replace(need, gpus_in_excess=max(0, need.gpus_in_excess - gpus_of(draft, coming, need.tenant_id)))
    candidates = sorted([*found, *_idle(draft, need)], key=lambda one: one.rank)
    if not found or _too_few(base, need, candidates):
        return None
    search = _Search(base, need, candidates)
    if search.fits(()) is not None:
        return None
    made = search.least()
    if made is not None and claim is not None and not _allowed(draft, made, claim.allowance):
        search = _Search(base, need, [one for one in candidates if _is_own(one)])
        made = search.least()
    if made is None:
        return None
    chosen, given = made
    victims = tuple(one.victim for one in chosen if one.victim is not None)
    if not victims or len(victims) > _room(draft):
        return None
    draft.hopeless.discard(asked)
    draft.closing.update(dict.fromkeys(one.cluster.cluster_id for one in chosen if one.victim is None))
    return _ordered(draft, need, victims, given)


def _ordered(draft: Draft, need: JobNeed, victims: tuple[Victim, ...], given: Given) -> str:
    notice_ms = draft.view.policies.preemption.notice_ms
    draft.preemptions.append(Preemption(need.job_id, victims, given.shares, given.head_host, notice_ms))
    devices = [(share.worker_id, share.device_ids) for share in given.shares]
    nominate(draft, need.job_id, devices, given.head_host)
    who = (
        "an interruptible job gives way"
        if len(victims) == 1
        else f"{len(victims)} interruptible jobs give way"
    )
    return (
        f"waiting for {describe(need.requirements)}: {who} to it within {notice_ms // 1_000} s,"
        " and what comes free by that is kept for it"
    )


def _too_few(base: Draft, need: JobNeed, candidates: Iterable[Candidate]) -> bool:
    """Whether all that serves the request would not be enough, wherever it stands."""
    fits, _ = base.fits(need.requirements, need.avoid)
    most = int(base.free[fits].sum()) + sum(sum(one.brings.values()) for one in candidates)
    return most < need.requirements.device_count


def _is_to_share(order: Preemption) -> bool:
    """What is owed to tenants is worked out before a plan: one such order in each, and the next knows of it."""
    return any(victim.to == TO_SHARE for victim in order.victims)


def _is_own(one: Candidate) -> bool:
    return one.victim is None or one.victim.to == TO_PRIORITY


def _room(draft: Draft) -> int:
    """How many more may be under notice at once."""
    view = draft.view
    under_notice = preempted_clusters(view.members[member_id] for member_id in view.noticed)
    ordered = sum(len(one.victims) for one in draft.preemptions)
    return view.policies.preemption.in_flight_max - len(under_notice) - ordered


def _allowed(draft: Draft, made: tuple[Sequence[Candidate], Given], allowance: Amounts | None) -> bool:
    """Whether what is given leaves its tenant within its share, where others of another tenant give way for it."""
    chosen, given = made
    if allowance is None or all(_is_own(one) for one in chosen):
        return True
    total = NOTHING
    for share in given.shares:
        inventory, held = draft.view.workers[share.worker_id].inventory, set(share.device_ids)
        models = [device.model for device in inventory.devices if device.device_id in held]
        total = total.plus(held_by(inventory, models))
    left = allowance.minus(total)
    return min(left.gpu_milli, left.cpus, left.memory_mib) >= 0


def _given(then: Draft, need: JobNeed) -> Given | None:
    """What the plan itself would give the job, within what its tenant may spend."""
    choice = choose(then, need)
    if choice is None or not affordable(need, choice.microcredits_per_hour):
        return None
    return give(then, choice)


# ------------------------------------------------------------ who could go


def _victims(draft: Draft, need: JobNeed, tenant_id: TenantId) -> Iterator[Candidate]:
    """Clusters of a tenant whose jobs may give way to this one, and some of whose devices would serve it."""
    clusters = draft.view.watched.interruptible.get(tenant_id, {})
    newest = islice(reversed(clusters), SCANNED_MAX)
    found = (_victim(draft, need, cluster_id) for cluster_id in newest)
    return islice((one for one in found if one is not None), VICTIMS_MAX)


def _victim(draft: Draft, need: JobNeed, cluster_id: ClusterId) -> Candidate | None:
    view = draft.view
    attempt = view.attempts[view.attempt_in[cluster_id]]
    job = view.jobs[attempt.job_id]
    own = job.tenant_id == need.tenant_id
    if own and job.request.priority >= need.priority:
        return None
    policies = view.policies
    if not may_give_way(job, attempt, draft.now_ms, policies.preemption, policies.jobs):
        return None
    cluster = view.clusters[cluster_id]
    if view.bookings.of(cluster.reservation_id) is not None:
        # Its machines are another promise.
        return None
    members = [view.members[member_id] for member_id in cluster.member_ids]
    if cluster.phase is ClusterPhase.CLOSING or any(member.notice is not None for member in members):
        return None
    if any(attempt.attempt_id == victim.attempt_id for one in draft.preemptions for victim in one.victims):
        return None
    brings = _brings(draft, need, members)
    if not (brings or need.gpus_in_excess):
        return None
    lost = lost_ms(attempt, sum(len(member.device_ids) for member in members), draft.now_ms)
    return Candidate(cluster, Victim(attempt.attempt_id, TO_PRIORITY if own else TO_SHARE), lost, brings)


def _idle(draft: Draft, need: JobNeed) -> Iterator[Candidate]:
    """Warm clusters without a job whose devices would serve it, or count to its tenant's quota."""
    for cluster in draft.idle_clusters():
        if draft.view.bookings.of(cluster.reservation_id) is not None:
            continue
        brings = _brings(draft, need, (draft.view.members[member_id] for member_id in cluster.member_ids))
        if brings or (need.gpus_in_excess and cluster.tenant_id == need.tenant_id):
            yield Candidate(cluster, None, 0, brings)


def _brings(draft: Draft, need: JobNeed, members: Iterable[Member]) -> dict[int, int]:
    """How many devices of each row serve the request, and would be free if these members were gone."""
    fits, _ = draft.fits(need.requirements, need.avoid)
    brings: dict[int, int] = {}
    for member in members:
        row = draft.row_of(member.worker_id, member.device_ids) if member.device_ids else None
        if row is not None and fits[row] and not draft.spoken_for[row] and not draft.awaited[row]:
            brings[row] = brings.get(row, 0) + len(member.device_ids)
    return brings


def _coming(draft: Draft) -> list[Cluster]:
    """What is gone by the time a notice would be over: clusters that end, are under notice, or are ended by this plan."""
    view = draft.view
    horizon_ms = draft.now_ms + view.policies.preemption.notice_ms
    noticed = (view.members[member_id] for member_id in view.noticed)
    ids = dict.fromkeys(
        member.cluster_id
        for member in noticed
        if member.notice is not None and member.notice.deadline_ms <= horizon_ms
    )
    for order in draft.preemptions:
        ids.update((view.attempts[victim.attempt_id].cluster_id, None) for victim in order.victims)
    ids.update((cluster.cluster_id, None) for cluster in leaving(draft))
    return [view.clusters[cluster_id] for cluster_id in ids]


def supposing(draft: Draft, clusters: Iterable[Cluster]) -> Draft:
    """The draft as it would be with these gone, but for what is kept for others. What is taken of it is not taken."""
    view = draft.view
    then = draft.twin()
    for cluster in clusters:
        for member_id in cluster.member_ids:
            member = view.members[member_id]
            if member.phase is not MemberPhase.RELEASED:
                _suppose_gone(then, member)
    return then


def _suppose_gone(then: Draft, member: Member) -> None:
    worker_id = member.worker_id
    if member.role is MemberRole.HEAD:
        if then.view.workers[worker_id].placeable:
            then.head_hosts[worker_id] = then.head_hosts.get(worker_id, 0) + 1
        return
    row = then.row_of(worker_id, member.device_ids)
    if row is None or then.spoken_for[row] or then.awaited[row]:
        return
    freed = unclaimed(then, member)
    then.freed.setdefault(worker_id, {}).update(dict.fromkeys(freed))
    then.free[row] += len(freed)
    then.slots[list(then.view.offers.rows_of(worker_id))] += 1


# ------------------------------------------------------------ the least of them


class _Search:
    """For one job, among these candidates."""

    def __init__(self, base: Draft, need: JobNeed, candidates: Sequence[Candidate]) -> None:
        """``base`` is without what goes anyway; candidates are in order of their rank."""
        self._base = base
        self._need = need
        self._candidates = candidates

    def least(self) -> tuple[Sequence[Candidate], Given] | None:
        """Who goes and what the job gets then; None where not even all of them would do."""
        if self.fits(self._candidates) is None:
            return None
        for chosen in sorted(self._covers(), key=_set_rank)[:PLACES_TRIED]:
            given = self.fits(chosen)
            if given is not None:
                return self._without_needless(chosen, given)
        return self._gathered()

    def fits(self, chosen: Sequence[Candidate]) -> Given | None:
        """What the job gets with these gone; None where it cannot start then."""
        if self._need.gpus_in_excess > sum(self._quota_freed(one) for one in chosen):
            return None
        return _given(supposing(self._base, (one.cluster for one in chosen)), self._need)

    def _quota_freed(self, one: Candidate) -> int:
        return gpus_of(self._base, (one.cluster,), self._need.tenant_id)

    def _gathered(self) -> tuple[Sequence[Candidate], Given] | None:
        """The least number of those with least to lose, and of these only whom it takes."""
        low, high = 1, min(GATHERED_MAX, len(self._candidates))
        given = self.fits(self._candidates[:high])
        if given is None:
            return None
        while low < high:
            middle = (low + high) // 2
            fewer = self.fits(self._candidates[:middle])
            if fewer is None:
                low = middle + 1
            else:
                high, given = middle, fewer
        return self._without_needless(self._candidates[:high], given)

    def _without_needless(
        self, chosen: Sequence[Candidate], given: Given
    ) -> tuple[Sequence[Candidate], Given]:
        """Those without whom it would not fit; who loses most is let off first."""
        kept = list(chosen)
        for one in sorted(chosen, key=lambda one: one.rank, reverse=True):
            rest = [other for other in kept if other is not one]
            fewer = self.fits(rest) if rest else None
            if fewer is not None:
                kept, given = rest, fewer
        return kept, given

    # -------------------------------------------------------- by what is missing

    def _covers(self) -> Iterator[Sequence[Candidate]]:
        """In each place that could hold the job, those who bring what is missing there at least cost."""
        wanted = self._need.requirements
        count, each = wanted.device_count, wanted.gpus_per_worker
        if self._need.gpus_in_excess:
            frees = [(one, self._quota_freed(one)) for one in self._candidates]
            enough = cheapest_cover(frees, self._need.gpus_in_excess)
            yield from () if enough is None else (enough,)
        if each in (0, count):
            yield from self._on_one_machine(count).values()
        if count == 1 or wanted.one_machine:
            return
        base, offers = self._base, self._base.view.offers
        fits, _ = base.fits(wanted, self._need.avoid)
        joining = fits & joins(
            offers, overlay_offered=base.view.overlay_offered, measured=wanted.measured_first
        )
        grounds = offers[Column.GROUND]
        touched = {row for one in self._candidates for row in one.brings if joining[row]}
        on_each = self._on_one_machine(each) if each else {}
        ready = base.one_row_each(np.flatnonzero(joining & (base.slots > 0) & (base.free >= max(1, each))))
        for ground in sorted({int(grounds[row]) for row in touched}):
            here = ready[grounds[ready] == ground]
            if each:
                missing = count // each - len(here)
                lists = [on_each[row] for row in sorted(touched & on_each.keys() - set(here.tolist()))]
                lists = sorted((one for one in lists if one), key=_set_rank)
                if len(lists) >= missing > 0:
                    yield _united(lists[:missing])
                continue
            brings = [
                (
                    one,
                    sum(
                        number
                        for row, number in one.brings.items()
                        if joining[row] and grounds[row] == ground
                    ),
                )
                for one in self._candidates
            ]
            cover = cheapest_cover(brings, max(1, count - int(base.free[here].sum())))
            if cover is not None:
                yield cover

    def _on_one_machine(self, count: int) -> dict[int, Sequence[Candidate]]:
        """By row, whom it takes there to have so many free; rows where nobody can help are not in it."""
        free: Numbers = self._base.free
        by_row: dict[int, list[tuple[Candidate, int]]] = {}
        for one in self._candidates:
            for row, number in one.brings.items():
                by_row.setdefault(row, []).append((one, number))
        covers = {
            row: cheapest_cover(brings, max(1, count - int(free[row]))) for row, brings in by_row.items()
        }
        return {row: cover for row, cover in covers.items() if cover is not None}


def _set_rank(chosen: Sequence[Candidate]) -> tuple[Cost, list[tuple[int, int, int, str]]]:
    return _total(one.cost for one in chosen), [one.rank for one in chosen]


def _total(costs: Iterable[Cost]) -> Cost:
    lost, asked, closed = 0, 0, 0
    for one in costs:
        lost, asked, closed = lost + one[0], asked + one[1], closed + one[2]
    return lost, asked, closed


def _united(lists: Iterable[Sequence[Candidate]]) -> Sequence[Candidate]:
    """All of them, each once: a gang may bring devices on several machines."""
    return list({one.cluster.cluster_id: one for chosen in lists for one in chosen}.values())


def cheapest_cover(brings: Sequence[tuple[Candidate, int]], missing: int) -> Sequence[Candidate] | None:
    """Of candidates that bring so many devices each, those that bring ``missing`` together at least cost.

    None where all of them bring fewer. Exact: for each number of devices, the cheapest set that brings as many or more.
    """
    best: list[tuple[Cost, tuple[Candidate, ...]] | None] = [((0, 0, 0), ()), *[None] * missing]
    for one, number in brings:
        if not number:
            continue
        for target in range(missing, 0, -1):
            before = best[max(0, target - number)]
            if before is None:
                continue
            cost = _total((before[0], one.cost))
            known = best[target]
            if known is None or cost < known[0]:
                best[target] = (cost, (*before[1], one))
    found = best[missing]
    return None if found is None else found[1]
