"""``plan(view, requests, now_ms, budget)``: which queued jobs run where, which vacancies are filled by whom, and why not.

Filter, then score, all or nothing: a gang gets every device it needs on workers of one class and one runtime, or waits
with the reason. The plan reads indexes that ``State`` maintains and changes nothing; the loop applies it, if the
capacity it was made on is still there.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from orchestrator.core.catalogue import MODELS
from orchestrator.core.clusters import ClusterPhase
from orchestrator.core.filters import (
    can_join,
    describe,
    device_rejection,
    explain,
    hours_rejection,
    isolation_rejection,
    worker_rejection,
)
from orchestrator.core.fleet import HardwareClass
from orchestrator.core.ids import ClusterId, DeviceId, TenantId, WorkerId
from orchestrator.core.jobs import Requirements
from orchestrator.core.placement import (
    BucketKey,
    Budget,
    Deferral,
    Filling,
    JobNeed,
    Placement,
    Plan,
    Reuse,
    Share,
    SpareNeed,
    VacancyNeed,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from orchestrator.core.clusters import Member
    from orchestrator.core.fleet import Worker
    from orchestrator.core.placement import Need, PlacementView


_Ground = tuple[str, str, str]
"""(hardware class, runtime, reach): machines of one ground may form one cluster."""


@dataclass(slots=True)
class _Draft:
    """What this call has given away already, beside the view."""

    view: PlacementView
    now_ms: int
    taken: dict[WorkerId, set[DeviceId]] = field(default_factory=dict)
    heads: Counter[WorkerId] = field(default_factory=Counter)
    members: Counter[WorkerId] = field(default_factory=Counter)
    spent: set[WorkerId] = field(default_factory=set)
    """Workers that this call left without a free device: skipped at a glance."""
    reused: set[ClusterId] = field(default_factory=set)
    counted_on: set[ClusterId] = field(default_factory=set)
    """Warm clusters that make a spare needless, each for one job; who comes first may have them all the same."""
    spares_unplaced: int = 0
    unfit: dict[tuple[Requirements, tuple[WorkerId, ...]], str] = field(default_factory=dict)
    idle: dict[TenantId, list[ClusterId]] | None = None
    best_fit: list[BucketKey] = field(default_factory=list)
    """Buckets from the smallest device with the fewest free beside it: for a request that fits one machine."""
    most_first: list[BucketKey] = field(default_factory=list)
    """Buckets from the smallest device with the most free beside it: for a gang on few machines."""

    def __post_init__(self) -> None:
        self.best_fit = sorted(self.view.buckets, key=lambda bucket: (_thrift(bucket), bucket[2]))
        self.most_first = sorted(self.view.buckets, key=lambda bucket: (_thrift(bucket), -bucket[2]))

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

    def open(self, worker: Worker) -> bool:
        """Whether a worker may get something new, and its owner's hours go on for long enough."""
        return worker.placeable and hours_rejection(worker, self.now_ms) is None

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
        """READY and clean clusters of a tenant, oldest first; spares are their job's alone."""
        if self.idle is None:
            self.idle = {}
            for cluster_id in self.view.open_clusters:
                cluster = self.view.clusters[cluster_id]
                idle = cluster.phase is ClusterPhase.READY and cluster.idle_since_ms is not None
                if idle and cluster.spare_for is None:
                    self.idle.setdefault(cluster.tenant_id, []).append(cluster_id)
        return self.idle.get(tenant_id, [])


def plan(view: PlacementView, needs: Iterable[Need], now_ms: int, budget: Budget) -> Plan:
    """Serve the needs in the order given. Pure: the same view and needs give the same plan.

    ``now_ms`` is control time: owners' hours end.
    """
    draft = _Draft(view, now_ms)
    placements: list[Placement] = []
    reuses: list[Reuse] = []
    fillings: list[Filling] = []
    deferrals: list[Deferral] = []
    for need in needs:
        if len(placements) + len(reuses) + len(fillings) >= budget.placements_max:
            break
        outcome: Placement | Reuse | Filling | Deferral | None
        match need:
            case VacancyNeed():
                outcome = _fill(draft, need)
            case SpareNeed():
                outcome = _spare(draft, need, budget)
            case JobNeed():
                outcome = _place(draft, need, budget)
        match outcome:
            case Placement():
                placements.append(outcome)
            case Reuse():
                reuses.append(outcome)
            case Filling():
                fillings.append(outcome)
            case Deferral():
                deferrals.append(outcome)
            case None:
                pass
    return Plan(view.capacity_version, tuple(placements), tuple(reuses), tuple(fillings), tuple(deferrals))


def _place(draft: _Draft, need: JobNeed, budget: Budget) -> Placement | Reuse | Deferral | None:
    own = _own_spare(draft, need)
    if own is not None:
        return own
    warm = _warm(draft, need, draft.reused)
    if warm is not None:
        cluster_id, names = warm
        return Reuse(need.job_id, cluster_id, (f"warm cluster {cluster_id} of this tenant fits: {names}",))
    signature = (need.requirements, need.avoid)
    known = draft.unfit.get(signature)
    if known is not None:
        return Deferral(need.job_id, known)
    placed = _choose(draft, need)
    if placed is not None:
        return placed
    if len(draft.unfit) >= budget.explained_max:
        return None
    reason = explain(draft.view, need, draft.free, draft.now_ms)
    draft.unfit[signature] = reason
    return Deferral(need.job_id, reason)


def _own_spare(draft: _Draft, need: JobNeed) -> Reuse | Deferral | None:
    """The cluster that was formed ahead for this job; None where there is none, or none that may be used."""
    cluster_id = draft.view.spares.get(need.job_id)
    if cluster_id is None:
        return None
    cluster = draft.view.clusters[cluster_id]
    if cluster.phase is ClusterPhase.READY:
        if cluster.idle_since_ms is None:
            return Deferral(need.job_id, "its spare cluster is about to be ready")
        members = (draft.view.members[member_id] for member_id in cluster.member_ids)
        if not all(draft.view.workers[member.worker_id].placeable for member in members):
            return None
    return Reuse(need.job_id, cluster_id, (f"cluster {cluster_id} was formed ahead for this job",))


def _spare(draft: _Draft, need: SpareNeed, budget: Budget) -> Placement | None:
    """A cluster formed ahead, unless a warm one of the tenant would do."""
    warm = _warm(draft, need, draft.reused | draft.counted_on)
    if warm is not None or draft.spares_unplaced >= budget.explained_max:
        return None
    placed = _choose(draft, need)
    if placed is None:
        draft.spares_unplaced += 1
        return None
    return replace(placed, spare=True)


def _warm(draft: _Draft, need: JobNeed | SpareNeed, given: set[ClusterId]) -> tuple[ClusterId, str] | None:
    """An idle cluster of the tenant that fits and is not ``given`` yet, and the names of its workers."""
    wanted = need.requirements
    for cluster_id in draft.idle_clusters(need.tenant_id):
        if cluster_id in given or cluster_id in draft.view.attempt_in:
            continue
        cluster = draft.view.clusters[cluster_id]
        members = [draft.view.members[member_id] for member_id in cluster.member_ids]
        bearing = [member for member in members if member.device_ids]
        workers = [draft.view.workers[member.worker_id] for member in bearing]
        if sum(len(member.device_ids) for member in bearing) != wanted.device_count:
            continue
        if cluster.runtime != (wanted.runtime or (draft.view.default_runtime if cluster.runtime else "")):
            continue
        if cluster.image != wanted.image:
            continue
        # The members' own: a worker that is boxed now may have been bare when they were placed.
        if not all(member.isolation.at_least(wanted.isolation) for member in members):
            continue
        if not all(draft.open(draft.view.workers[member.worker_id]) for member in members):
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
            (draft.reused if isinstance(need, JobNeed) else draft.counted_on).add(cluster_id)
            return cluster_id, ", ".join(worker.name for worker in workers)
    return None


def _fill(draft: _Draft, need: VacancyNeed) -> Filling | None:
    cluster = draft.view.clusters[need.cluster_id]
    members = [draft.view.members[member_id] for member_id in cluster.member_ids]
    present = {member.worker_id for member in members}
    pattern = next((member for member in members if member.device_ids), None)
    head = next(member for member in members if not member.device_ids)
    beside = draft.view.workers[head.worker_id]
    models = set(MODELS) if pattern is None else _models_of(draft.view, pattern)
    for bucket in draft.best_fit:
        hardware_class, model, free = bucket
        if hardware_class != cluster.hardware_class or model not in models or free < need.device_count:
            continue
        for worker_id in draft.view.buckets[bucket]:
            if worker_id in present or worker_id in need.avoid:
                continue
            candidate = _candidate(draft, need.requirements, worker_id, model)
            if candidate is None or not _same_ground(candidate.worker, beside):
                continue
            if len(candidate.device_ids) >= need.device_count:
                share = Share(worker_id, candidate.device_ids[: need.device_count])
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


def _candidate(draft: _Draft, wanted: Requirements, worker_id: WorkerId, model: str) -> _Candidate | None:
    """What a worker can still bring of one model in this call; None where it cannot serve."""
    if worker_id in draft.spent:
        return None
    worker = draft.view.workers[worker_id]
    if worker_rejection(worker, wanted) is not None or draft.slots_left(worker) <= 0:
        return None
    if hours_rejection(worker, draft.now_ms) is not None:
        return None
    fitting = {
        device.device_id
        for device in worker.inventory.devices
        if device.model == model and device_rejection(device, wanted) is None
    }
    free = tuple(device_id for device_id in draft.free(worker_id) if device_id in fitting)
    return _Candidate(worker, free) if free else None


def _candidates(draft: _Draft, need: JobNeed | SpareNeed, bucket: BucketKey) -> Iterator[_Candidate]:
    """Workers of one bucket that serve the request, as they are asked for: the first is often enough."""
    for worker_id in draft.view.buckets[bucket]:
        candidate = _candidate(draft, need.requirements, worker_id, bucket[1])
        if candidate is not None and worker_id not in need.avoid:
            yield candidate


def _choose(draft: _Draft, need: JobNeed | SpareNeed) -> Placement | None:
    """The cheapest set: one machine before many, then the fewest machines, then the fewest devices left over."""
    count = need.requirements.device_count
    for bucket in draft.best_fit:
        if bucket[2] < count or not _bucket_serves(bucket, need.requirements):
            continue
        for candidate in _candidates(draft, need, bucket):
            if len(candidate.device_ids) >= count:
                share = Share(candidate.worker.worker_id, candidate.device_ids[:count])
                draft.take((share,), None)
                return Placement(need.job_id, (share,), None, _why(need, [candidate], [share], None))
    return None if count == 1 or need.requirements.one_machine else _together(draft, need)


def _bucket_serves(bucket: BucketKey, wanted: Requirements) -> bool:
    """Whether any worker of a bucket may serve: saves walking through those that cannot."""
    hardware_class, model, _ = bucket
    if (hardware_class == HardwareClass.CPU) != (wanted.gpus == 0):
        return False
    if wanted.hardware_class is not None and hardware_class != wanted.hardware_class:
        return False
    return wanted.gpu_model is None or model == wanted.gpu_model


def _thrift(bucket: BucketKey) -> tuple[int, str, str]:
    """Smaller memory first: a large device is not spent on a request that a small one serves."""
    hardware_class, model, _ = bucket
    known = MODELS.get(model)
    return (known.memory_gb if known is not None else 0, hardware_class, model)


def _together(draft: _Draft, need: JobNeed | SpareNeed) -> Placement | None:
    """A gang over several workers of one ground; models are mixed only where no one model has enough."""
    count = need.requirements.device_count
    single: dict[tuple[_Ground, str], list[_Candidate]] = {}
    mixed: dict[_Ground, dict[WorkerId, _Candidate]] = {}
    for bucket in draft.most_first:
        if not _bucket_serves(bucket, need.requirements):
            continue
        for candidate in _candidates(draft, need, bucket):
            ground = _ground_of(candidate.worker)
            if not can_join(candidate.worker.inventory, overlay_offered=draft.view.overlay_offered):
                continue
            group = single.setdefault((ground, bucket[1]), [])
            group.append(candidate)
            if _devices(group) >= count:
                placement = _gang(draft, need, group)
                if placement is not None:
                    return placement
            # A worker with two models stands in two buckets but brings one share: its larger one, which comes first.
            mixed.setdefault(ground, {}).setdefault(candidate.worker.worker_id, candidate)
    for ground in sorted(mixed):
        together = sorted(
            mixed[ground].values(), key=lambda one: (-len(one.device_ids), one.worker.worker_id)
        )
        if _devices(together) >= count:
            placement = _gang(draft, need, together)
            if placement is not None:
                return placement
    return None


def _devices(candidates: list[_Candidate]) -> int:
    return sum(len(candidate.device_ids) for candidate in candidates)


def _gang(draft: _Draft, need: JobNeed | SpareNeed, candidates: list[_Candidate]) -> Placement | None:
    """All or nothing of the candidates in order, with a head host of the same ground."""
    head_host = _head_host(draft, candidates[0].worker, need)
    if head_host is None:
        return None
    shares: list[Share] = []
    left = need.requirements.device_count
    for candidate in candidates:
        if left == 0:
            break
        device_ids = candidate.device_ids[:left]
        shares.append(Share(candidate.worker.worker_id, device_ids))
        left -= len(device_ids)
    draft.take(shares, head_host.worker_id)
    why = _why(need, candidates[: len(shares)], shares, head_host)
    return Placement(need.job_id, tuple(shares), head_host.worker_id, why)


def _ground_of(worker: Worker) -> _Ground:
    inventory = worker.inventory
    return (inventory.hardware_class.value, inventory.runtime, inventory.reach)


def _head_host(draft: _Draft, beside: Worker, need: JobNeed | SpareNeed) -> Worker | None:
    """The head host with most free head slots among those that run the same Ray and can be reached."""
    fitting = [
        (draft.view.head_hosts[worker_id] - draft.heads[worker_id], worker_id)
        for worker_id in draft.view.head_hosts
        if worker_id not in need.avoid
        and isolation_rejection(draft.view.workers[worker_id].inventory, need.requirements) is None
        and _same_ground(draft.view.workers[worker_id], beside)
        and hours_rejection(draft.view.workers[worker_id], draft.now_ms) is None
    ]
    free = [(-slots, worker_id) for slots, worker_id in fitting if slots > 0]
    return draft.view.workers[min(free)[1]] if free else None


def _same_ground(one: Worker, other: Worker) -> bool:
    return one.inventory.runtime == other.inventory.runtime and one.inventory.reach == other.inventory.reach


def _why(
    need: JobNeed | SpareNeed, chosen: list[_Candidate], shares: list[Share], head_host: Worker | None
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
