"""``plan(view, requests, now_ms, budget)``: which queued jobs run where, which vacancies are filled by whom, and why not.

Filter, then score, all or nothing: a gang gets every device it needs on workers of one class and one runtime, or waits
with the reason. The plan reads indexes that ``State`` maintains and changes nothing; the loop applies it, if the
capacity it was made on is still there.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orchestrator.core.catalogue import MODELS
from orchestrator.core.clusters import ClusterPhase
from orchestrator.core.filters import describe, device_rejection, explain, worker_rejection
from orchestrator.core.fleet import HardwareClass
from orchestrator.core.ids import ClusterId, DeviceId, TenantId, WorkerId
from orchestrator.core.jobs import Requirements
from orchestrator.core.placement import Budget, Deferral, Filling, Placement, Plan, Reuse, Share, VacancyNeed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from orchestrator.core.clusters import Member
    from orchestrator.core.fleet import Worker
    from orchestrator.core.placement import JobNeed, Need, PlacementView


@dataclass(slots=True)
class _Draft:
    """What this call has given away already, beside the view."""

    view: PlacementView
    taken: dict[WorkerId, set[DeviceId]] = field(default_factory=dict)
    heads: Counter[WorkerId] = field(default_factory=Counter)
    members: Counter[WorkerId] = field(default_factory=Counter)
    spent: set[WorkerId] = field(default_factory=set)
    """Workers that this call left without a free device: skipped at a glance."""
    reused: set[ClusterId] = field(default_factory=set)
    unfit: dict[tuple[Requirements, tuple[WorkerId, ...]], str] = field(default_factory=dict)
    idle: dict[TenantId, list[ClusterId]] | None = None

    def free(self, worker_id: WorkerId) -> list[DeviceId]:
        """Free devices of a worker that can take one more member."""
        held = self.view.free_devices.get(worker_id, {})
        taken = self.taken.get(worker_id)
        return list(held) if not taken else [device_id for device_id in held if device_id not in taken]

    def slots_left(self, worker: Worker) -> int:
        """Slots for device-bearing members."""
        on = self.view.members_on.get(worker.worker_id, {})
        busy = sum(1 for member_id in on if self.view.members[member_id].device_ids)
        return worker.inventory.slots - busy - self.members[worker.worker_id]

    def take(self, shares: Iterable[Share], head_host: WorkerId | None) -> None:
        """Give the shares away within this call."""
        for share in shares:
            self.taken.setdefault(share.worker_id, set()).update(share.device_ids)
            self.members[share.worker_id] += 1
            if not self.free(share.worker_id):
                self.spent.add(share.worker_id)
        if head_host is not None:
            self.heads[head_host] += 1

    def idle_clusters(self, tenant_id: TenantId) -> list[ClusterId]:
        """READY and clean clusters of a tenant, oldest first."""
        if self.idle is None:
            self.idle = {}
            for cluster_id in self.view.open_clusters:
                cluster = self.view.clusters[cluster_id]
                if cluster.phase is ClusterPhase.READY and cluster.idle_since_ms is not None:
                    self.idle.setdefault(cluster.tenant_id, []).append(cluster_id)
        return self.idle.get(tenant_id, [])


def plan(view: PlacementView, needs: Iterable[Need], now_ms: int, budget: Budget) -> Plan:
    """Serve the needs in the order given. Pure: the same view and needs give the same plan.

    ``now_ms`` is control time; the first version has no rule that depends on it, later ones (reservations, ageing) do.
    """
    del now_ms
    draft = _Draft(view)
    placements: list[Placement] = []
    reuses: list[Reuse] = []
    fillings: list[Filling] = []
    deferrals: list[Deferral] = []
    for need in needs:
        if len(placements) + len(reuses) + len(fillings) >= budget.placements_max:
            break
        if isinstance(need, VacancyNeed):
            filling = _fill(draft, need)
            if filling is not None:
                fillings.append(filling)
            continue
        outcome = _place(draft, need, budget)
        match outcome:
            case Placement():
                placements.append(outcome)
            case Reuse():
                reuses.append(outcome)
            case Deferral():
                deferrals.append(outcome)
            case None:
                pass
    return Plan(view.capacity_version, tuple(placements), tuple(reuses), tuple(fillings), tuple(deferrals))


def _place(draft: _Draft, need: JobNeed, budget: Budget) -> Placement | Reuse | Deferral | None:
    reuse = _reuse(draft, need)
    if reuse is not None:
        return reuse
    signature = (need.requirements, need.avoid)
    known = draft.unfit.get(signature)
    if known is not None:
        return Deferral(need.job_id, known)
    placed = _choose(draft, need)
    if placed is not None:
        return placed
    if len(draft.unfit) >= budget.explained_max:
        return None
    reason = explain(draft.view, need, draft.free)
    draft.unfit[signature] = reason
    return Deferral(need.job_id, reason)


def _reuse(draft: _Draft, need: JobNeed) -> Reuse | None:
    wanted = need.requirements
    for cluster_id in draft.idle_clusters(need.tenant_id):
        if cluster_id in draft.reused or cluster_id in draft.view.attempt_in:
            continue
        cluster = draft.view.clusters[cluster_id]
        members = [draft.view.members[member_id] for member_id in cluster.member_ids]
        bearing = [member for member in members if member.device_ids]
        workers = [draft.view.workers[member.worker_id] for member in bearing]
        if sum(len(member.device_ids) for member in bearing) != wanted.device_count:
            continue
        if any(not draft.view.workers[member.worker_id].placeable for member in members):
            continue
        if any(worker.worker_id in need.avoid for worker in workers):
            continue
        held = {device_id for member in bearing for device_id in member.device_ids}
        devices = [
            device for worker in workers for device in worker.inventory.devices if device.device_id in held
        ]
        if all(worker_rejection(worker, wanted) is None for worker in workers) and all(
            device_rejection(device, wanted) is None for device in devices
        ):
            draft.reused.add(cluster_id)
            names = ", ".join(worker.name for worker in workers)
            return Reuse(
                need.job_id, cluster_id, (f"warm cluster {cluster_id} of this tenant fits: {names}",)
            )
    return None


def _fill(draft: _Draft, need: VacancyNeed) -> Filling | None:
    cluster = draft.view.clusters[need.cluster_id]
    members = [draft.view.members[member_id] for member_id in cluster.member_ids]
    present = {member.worker_id for member in members}
    pattern = next((member for member in members if member.device_ids), None)
    head = next(member for member in members if not member.device_ids)
    beside = draft.view.workers[head.worker_id]
    models = set(MODELS) if pattern is None else _models_of(draft.view, pattern)
    for (hardware_class, model), workers in sorted(draft.view.buckets.items()):
        if hardware_class != cluster.hardware_class or model not in models:
            continue
        for worker_id in workers:
            worker = draft.view.workers[worker_id]
            if worker_id in present or worker_id in need.avoid or not _same_ground(worker, beside):
                continue
            if worker_rejection(worker, need.requirements) is not None:
                continue
            fitting = {
                device.device_id
                for device in worker.inventory.devices
                if device.model == model and device_rejection(device, need.requirements) is None
            }
            free = [device_id for device_id in draft.free(worker_id) if device_id in fitting]
            if len(free) >= need.device_count and draft.slots_left(worker) > 0:
                share = Share(worker_id, tuple(free[: need.device_count]))
                draft.take((share,), None)
                return Filling(need.cluster_id, share)
    return None


def _models_of(view: PlacementView, member: Member) -> set[str]:
    worker = view.workers[member.worker_id]
    return {_model(worker, device_id) for device_id in member.device_ids}


def _model(worker: Worker, device_id: DeviceId) -> str:
    return next(device.model for device in worker.inventory.devices if device.device_id == device_id)


@dataclass(frozen=True, slots=True)
class _Candidate:
    worker: Worker
    device_ids: tuple[DeviceId, ...]


def _candidates(draft: _Draft, need: JobNeed, bucket: tuple[str, str], enough: int) -> list[_Candidate]:
    """Workers of one bucket that serve the request now; stops once one holds the whole gang on its own."""
    wanted = need.requirements
    _, model = bucket
    found: list[_Candidate] = []
    for worker_id in draft.view.buckets.get(bucket, ()):
        if worker_id in draft.spent:
            continue
        worker = draft.view.workers[worker_id]
        if worker_id in need.avoid or worker_rejection(worker, wanted) is not None:
            continue
        fitting = {
            device.device_id
            for device in worker.inventory.devices
            if device.model == model and device_rejection(device, wanted) is None
        }
        free = tuple(device_id for device_id in draft.free(worker_id) if device_id in fitting)
        if not free or draft.slots_left(worker) <= 0:
            continue
        found.append(_Candidate(worker, free))
        if len(free) == enough:
            break
    return found


def _choose(draft: _Draft, need: JobNeed) -> Placement | None:
    """The cheapest set: one machine before many, then the fewest machines, then the fewest devices left over."""
    count = need.requirements.device_count
    by_class: dict[tuple[str, str, str], list[_Candidate]] = {}
    for bucket in sorted(draft.view.buckets, key=_thrift):
        if not _bucket_serves(bucket, need.requirements):
            continue
        candidates = _candidates(draft, need, bucket, count)
        placement = _alone(draft, need, candidates)
        if placement is not None:
            return placement
        for candidate in candidates:
            inventory = candidate.worker.inventory
            key = (inventory.hardware_class.value, inventory.runtime, inventory.zone)
            by_class.setdefault(key, []).append(candidate)
    if count == 1:
        return None
    for key in sorted(by_class):
        placement = _together(draft, need, by_class[key])
        if placement is not None:
            return placement
    return None


def _bucket_serves(bucket: tuple[str, str], wanted: Requirements) -> bool:
    """Whether any worker of a bucket may serve: saves walking through those that cannot."""
    hardware_class, model = bucket
    if (hardware_class == HardwareClass.CPU) != (wanted.gpus == 0):
        return False
    if wanted.hardware_class is not None and hardware_class != wanted.hardware_class:
        return False
    return wanted.gpu_model is None or model == wanted.gpu_model


def _thrift(bucket: tuple[str, str]) -> tuple[int, str, str]:
    """Smaller memory first: a large device is not spent on a request that a small one serves."""
    hardware_class, model = bucket
    known = MODELS.get(model)
    return (known.memory_gb if known is not None else 0, hardware_class, model)


def _alone(draft: _Draft, need: JobNeed, candidates: list[_Candidate]) -> Placement | None:
    count = need.requirements.device_count
    holding = [candidate for candidate in candidates if len(candidate.device_ids) >= count]
    if not holding:
        return None
    best = min(holding, key=lambda candidate: (len(candidate.device_ids), candidate.worker.worker_id))
    share = Share(best.worker.worker_id, best.device_ids[:count])
    draft.take((share,), None)
    return Placement(need.job_id, (share,), None, _why(need, [best], [share], None))


def _together(draft: _Draft, need: JobNeed, candidates: list[_Candidate]) -> Placement | None:
    """A gang over several workers; models are not mixed while one model has enough."""
    count = need.requirements.device_count
    by_model: dict[str, list[_Candidate]] = {}
    for candidate in candidates:
        by_model.setdefault(_model(candidate.worker, candidate.device_ids[0]), []).append(candidate)
    for group in [*(by_model[model] for model in sorted(by_model)), _one_per_worker(candidates)]:
        if sum(len(candidate.device_ids) for candidate in group) < count:
            continue
        head_host = _head_host(draft, group[0].worker, need.avoid)
        if head_host is None:
            return None
        ordered = sorted(
            group, key=lambda candidate: (-len(candidate.device_ids), candidate.worker.worker_id)
        )
        shares: list[Share] = []
        left = count
        for candidate in ordered:
            if left == 0:
                break
            device_ids = candidate.device_ids[:left]
            shares.append(Share(candidate.worker.worker_id, device_ids))
            left -= len(device_ids)
        draft.take(shares, head_host.worker_id)
        chosen = ordered[: len(shares)]
        return Placement(
            need.job_id, tuple(shares), head_host.worker_id, _why(need, chosen, shares, head_host)
        )
    return None


def _one_per_worker(candidates: list[_Candidate]) -> list[_Candidate]:
    """A worker with two models stands in two buckets but brings one share."""
    best: dict[WorkerId, _Candidate] = {}
    for candidate in candidates:
        known = best.get(candidate.worker.worker_id)
        if known is None or len(candidate.device_ids) > len(known.device_ids):
            best[candidate.worker.worker_id] = candidate
    return list(best.values())


def _head_host(draft: _Draft, beside: Worker, avoid: tuple[WorkerId, ...]) -> Worker | None:
    """The head host with most free head slots among those that run the same Ray in the same zone."""
    fitting = [
        (draft.view.head_hosts[worker_id] - draft.heads[worker_id], worker_id)
        for worker_id in draft.view.head_hosts
        if worker_id not in avoid and _same_ground(draft.view.workers[worker_id], beside)
    ]
    free = [(-slots, worker_id) for slots, worker_id in fitting if slots > 0]
    return draft.view.workers[min(free)[1]] if free else None


def _same_ground(one: Worker, other: Worker) -> bool:
    return one.inventory.runtime == other.inventory.runtime and one.inventory.zone == other.inventory.zone


def _why(
    need: JobNeed, chosen: list[_Candidate], shares: list[Share], head_host: Worker | None
) -> tuple[str, ...]:
    wanted = need.requirements
    lines = [f"asked for {describe(wanted)}"]
    for candidate, share in zip(chosen, shares, strict=True):
        worker = candidate.worker
        inventory = worker.inventory
        simulated = " (simulated)" if any(device.simulated for device in inventory.devices) else ""
        model = _model(worker, share.device_ids[0])
        left = len(candidate.device_ids) - len(share.device_ids)
        lines.append(
            f"{worker.name}: class {inventory.hardware_class}, {len(share.device_ids)} × {model}{simulated},"
            f" live, {left} fitting devices left free"
        )
    if head_host is None:
        lines.append("one machine holds the whole request and carries its own head")
    else:
        lines.append(
            f"fewest machines of one class and runtime; head on {head_host.name}, which has a free head slot"
        )
    return tuple(lines)
