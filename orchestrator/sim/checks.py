"""What must hold: during every run after every commit and on every machine, and at its end."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING

from orchestrator.adapters import codec
from orchestrator.core import messages as m
from orchestrator.core.clusters import MemberPhase
from orchestrator.core.jobs import AttemptPhase, JobStatus, Outcome
from orchestrator.core.preemption import HOUR_MS
from orchestrator.core.scheduling.overtaking import KEPT_MAX
from orchestrator.core.state import is_queued
from orchestrator.core.supply.fleet import DeviceKind, Liveness
from orchestrator.core.tallies import GpuState, lease_state
from orchestrator.receipts import dsse
from orchestrator.receipts.receipt import PAYLOAD_TYPE, Receipt, parse_receipt

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from orchestrator.core.ids import DeviceId, JobId, WorkerId
    from orchestrator.core.policies import Policies
    from orchestrator.core.state import State
    from orchestrator.core.tallies import Gpus
    from orchestrator.sim.memory import MemoryLedger, MemoryStore
    from orchestrator.sim.ray import Machine, SimRay

UNNOTICED_MS = 2_500
"""A node's end is seen at the agent's next look, once a second, and reported over a slow link."""


AWAY_MS = 40_000
"""The control plane may be dead when a time limit is over, and die again when it is back."""


class ViolationError(AssertionError):
    """An invariant does not hold."""


def require(holds: bool, what: str) -> None:  # noqa: FBT001 - reads as a sentence
    """Raise ViolationError unless it holds."""
    if not holds:
        raise ViolationError(what)


def check_state(state: State) -> None:
    """After each commit: no device in two members, gangs whole, one running attempt a cluster, no time from nowhere, and
    no reservation's jobs on more than was promised.
    """
    check_reservations(state)
    for worker_id, member_ids in state.members_on.items():
        held: dict[str, str] = {}
        slots: dict[int, str] = {}
        for member_id in member_ids:
            member = state.members[member_id]
            for device_id in member.device_ids:
                other = held.setdefault(device_id, member_id)
                require(
                    other == member_id, f"device {device_id} of {worker_id} is in {other} and {member_id}"
                )
            other = slots.setdefault(member.slot, member_id)
            require(other == member_id, f"slot {member.slot} of {worker_id} is in {other} and {member_id}")
    for cluster_id, attempt_id in state.attempt_in.items():
        attempt = state.attempts[attempt_id]
        job = state.jobs[attempt.job_id]
        require(job.attempt_id == attempt_id, f"{attempt_id} is open but {job.attempt_id} counts")
        if attempt.phase is AttemptPhase.RUNNING:
            members = state.cluster_members(state.clusters[cluster_id])
            devices = sum(len(member.device_ids) for member in members)
            wanted = job.request.requirements.device_count
            require(devices == wanted, f"{attempt_id} runs on {devices} of {wanted} devices")
            up = all(member.phase in (MemberPhase.UP, MemberPhase.STOPPING) for member in members)
            require(up, f"{attempt_id} runs while a member is not up")
    check_nominations(state)
    check_promises(state)
    check_tallies(state)


def check_tallies(state: State) -> None:
    """What is counted as entities are put is what somebody finds who counts them all."""
    tallies = state.tallies
    workers = state.workers.values()
    found: dict[str, tuple[object, object]] = {
        "workers": (
            +tallies.workers,
            Counter((one.liveness, one.inventory.hardware_class) for one in workers),
        ),
        "holds": (+tallies.holds, Counter(hold.kind for one in workers for hold in one.holds)),
        "clusters": (+tallies.clusters, Counter(one.phase for one in state.clusters.values())),
        "jobs": (+tallies.jobs, Counter(one.status for one in state.jobs.values())),
        "leases": (+tallies.leases, Counter(lease_state(one) for one in state.leases.values())),
        "posted": (tallies.receipts_posted, sum(bool(one.transfer_id) for one in state.receipts.values())),
        "gpus": (+tallies.gpus, Counter(_gpus(state))),
    }
    queued = [state.jobs[job_id] for queue in _queues(state) for _, _, job_id in queue]
    wanted = sum(job.request.requirements.gpus for job in queued)
    found["queued"] = (tallies.queued, tallies.queued_gpus), (len(queued), wanted)
    for name, (counted, true) in found.items():
        require(counted == true, f"tallies of {name} are {counted}, there are {true}")


def _queues(state: State) -> Iterator[list[tuple[int, int, JobId]]]:
    yield from state.queues.values()
    yield from state.bookings.queues.values()


def _gpus(state: State) -> Iterator[Gpus]:
    given = {
        (member.worker_id, device_id)
        for member in state.members.values()
        if member.phase is not MemberPhase.RELEASED
        for device_id in member.device_ids
    }
    for worker in state.workers.values():
        held = {hold.device_id for hold in worker.device_holds}
        for device in worker.inventory.devices:
            if worker.liveness is Liveness.LEFT or device.kind is not DeviceKind.GPU:
                continue
            if worker.liveness is not Liveness.LIVE:
                what = GpuState.UNREACHABLE
            elif (worker.worker_id, device.device_id) in given:
                what = GpuState.LEASED
            else:
                what = GpuState.FREE if worker.placeable and device.device_id not in held else GpuState.HELD
            yield worker.inventory.hardware_class, device.model, what


def check_promises(state: State) -> None:
    """Few are promised anything, all of them queued, and none what another is."""
    stored = {job.job_id: job.promise for job in state.jobs.values() if job.promise is not None}
    require(state.promises == stored, f"promised is {state.promises}, stored {stored}")
    require(len(stored) <= KEPT_MAX, f"{len(stored)} jobs are promised machines")
    machines: dict[tuple[WorkerId, DeviceId], JobId] = {}
    for job_id, promise in stored.items():
        require(is_queued(state.jobs[job_id]), f"{job_id} has a promise and is not queued")
        for worker_id, device_ids in promise.devices:
            for device_id in device_ids:
                other = machines.setdefault((worker_id, device_id), job_id)
                require(other == job_id, f"{device_id} of {worker_id} is promised to {other} and {job_id}")


def check_nominations(state: State) -> None:
    """What others give way from goes to the nominated job: free, or still theirs, until it has it.

    Only interruptible jobs give way, and none more often than it has to.
    """
    for job_id, nomination in state.watched.nominated.items():
        if nomination.until_ms <= state.latest_ms:
            continue
        nominated = {(worker_id, one) for worker_id, device_ids in nomination.devices for one in device_ids}
        for worker_id, _ in nomination.devices:
            for member_id in state.members_on.get(worker_id, ()):
                member = state.members[member_id]
                if nominated.isdisjoint((worker_id, one) for one in member.device_ids):
                    continue
                since_ms = state.clusters[member.cluster_id].created_at_ms
                fair = since_ms <= nomination.made_at_ms
                require(
                    fair,
                    f"{member_id} of {since_ms} took what was kept for {job_id} since {nomination.made_at_ms}",
                )
    for job in state.jobs.values():
        if job.gave_way:
            require(job.request.interruptible, f"{job.job_id} is not interruptible and gave way")
            last_ms, most = job.gave_way[-1].at_ms, state.policies.preemption.per_hour_max
            times = sum(last_ms - one.at_ms < HOUR_MS for one in job.gave_way)
            require(times <= most, f"{job.job_id} gave way {times} times in an hour")


def check_reservations(state: State) -> None:
    """Spare clusters apart, which take over what others of the same job have."""
    for reservation_id, cluster_ids in state.bookings.clusters.items():
        one = state.reservations[reservation_id]
        clusters = [
            state.clusters[cluster_id] for cluster_id in cluster_ids if cluster_id in state.attempt_in
        ]
        held = sum(
            len(member.device_ids) for cluster in clusters for member in state.cluster_members(cluster)
        )
        promised = one.requirements.device_count
        require(held <= promised, f"jobs of {reservation_id} hold {held} devices of {promised} promised")


def check_machines(machines: Iterable[Machine], devices: Mapping[str, tuple[str, ...]]) -> None:
    """No more GPUs in live nodes than the machine has: a device given twice would show as one too many."""
    for machine in machines:
        used = sum(node.gpus for node in machine.alive())
        owned = len(devices[machine.name])
        require(used <= owned, f"{machine.name} has {owned} GPUs and runs nodes with {used}")


def check_deadlines(machine: Machine) -> None:
    """No node goes on past its deadline: a machine that has just woken ends it before anything else happens there.

    A suspended machine runs nothing, whatever its nodes are called.
    """
    if machine.frozen:
        return
    now_ms = machine.clock.boottime_ms()
    for node in machine.alive():
        late_ms = now_ms - node.deadline_boottime_ms
        require(late_ms <= 0, f"{node.member_id} on {machine.name} runs {late_ms} ms past its deadline")


def check_promise(machine: Machine, promised_ms: int) -> None:
    """No node may go on for longer than its lease from when the control plane last heard of its worker.

    This is what lets a silent worker be declared lost: by then its nodes have ended, wherever it is.
    """
    now_ms = machine.clock.boottime_ms()
    for node in machine.nodes.values():
        more_ms = node.deadline_boottime_ms - now_ms
        fine = not node.runs or more_ms <= max(0, promised_ms)
        require(fine, f"{node.member_id} may go on for {more_ms} ms, of which {promised_ms} are promised")


def check_gone(machine: Machine) -> None:
    """A worker that is lost has no node any more: others may do its work now. A suspended machine does none."""
    running = [] if machine.frozen else [node.member_id for node in machine.alive()]
    require(not running, f"{machine.name} is lost and still runs {running}")


def check_devices(machine: Machine, devices_of: Mapping[str, frozenset[str]]) -> None:
    """No two nodes of a machine hold one device, a suspended one's included: it may wake."""
    held: dict[str, str] = {}
    for node in machine.nodes.values():
        for device_id in devices_of.get(node.member_id, ()) if node.runs else ():
            other = held.setdefault(device_id, node.member_id)
            require(other == node.member_id, f"{other} and {node.member_id} both run on {device_id}")


def check_succession(store: MemoryStore) -> None:
    """Once a job has a newer attempt, nothing about an older one is taken: no start, no end, no log."""
    job_of: dict[str, str] = {}
    newest: dict[str, str] = {}
    for version, _, name, body in store.log:
        if name not in ("AttemptPlaced", "AttemptStarted", "AttemptEnded", "LogCompleted"):
            continue
        event = codec.decode_event(name, codec.event_version(name), body)
        match event:
            case m.AttemptPlaced():
                attempt = event.attempt
                job_of[attempt.attempt_id] = attempt.job_id
                newest[attempt.job_id] = attempt.attempt_id
            case m.AttemptStarted() | m.AttemptEnded() | m.LogCompleted():
                known = newest[job_of[event.attempt_id]]
                require(
                    known == event.attempt_id, f"event {version}: {name} of {event.attempt_id} after {known}"
                )


def check_gangs(ray: SimRay, state: State) -> None:
    """No driver ever began on less than its gang."""
    for attempt_id, gpus in ray.submissions:
        attempt = next((one for one in state.attempts.values() if one.attempt_id == attempt_id), None)
        require(attempt is not None, f"Ray ran {attempt_id}, which was never decided")
        if attempt is not None and attempt.job_id in state.jobs:
            wanted = state.jobs[attempt.job_id].request.requirements.gpus
            node_lost = attempt.outcome is Outcome.GROUND
            require(gpus >= wanted or node_lost, f"{attempt_id} began on {gpus} of {wanted} GPUs")


def check_limits(state: State) -> None:
    """No try outlives its time limit by more than the grace, or is stopped before; none follows one that came to it."""
    grace_ms = state.policies.jobs.stop_grace_ms
    for attempt in state.attempts.values():
        job = state.jobs[attempt.job_id]
        limit_ms = job.request.time_limit_ms
        if attempt.started_at_ms is None or attempt.ended_at_ms is None or not limit_ms:
            require(not attempt.timed_out, f"{attempt.attempt_id} came to a limit that nobody set")
            continue
        ran_ms = attempt.ended_at_ms - attempt.started_at_ms
        late_ms = ran_ms - limit_ms - grace_ms
        require(late_ms <= AWAY_MS, f"{attempt.attempt_id} outlived its time limit by {late_ms} ms")
        if attempt.timed_out:
            require(ran_ms >= limit_ms, f"{attempt.attempt_id} was stopped after {ran_ms} of {limit_ms} ms")
            counts = job.attempt_id == attempt.attempt_id
            require(counts, f"{attempt.attempt_id} came to its limit and {job.attempt_id} followed")


def check_store(store: MemoryStore, policies: Policies, state: State) -> None:
    """Rows as loaded, events as replayed and the state in memory are one."""
    loaded, replayed = store.load(policies), store.replay(policies)
    require(loaded.rows() == replayed.rows(), "rows as loaded differ from the log as replayed")
    require(loaded.rows() == state.rows(), "rows as loaded differ from the state in memory")
    require(loaded.version == replayed.version == state.version, "versions differ")


def check_jobs(state: State, acknowledged: Mapping[str, str], ray: SimRay) -> None:
    """Every acknowledged job is there and has ended, and its end is that of the attempt that counts."""
    for submission_id, job_id in acknowledged.items():
        job = state.jobs.get(job_id)  # type: ignore[call-overload]  # ids are plain text outside core
        require(job is not None, f"{submission_id} was acknowledged as {job_id} and is gone")
        require(job.status.terminal, f"{submission_id} has not ended: {job.status} {job.message}")
        driver = ray.drivers.get(job.attempt_id or "")
        if job.status is JobStatus.SUCCEEDED:
            came_to = driver.status if driver is not None else "never ran"
            require(came_to == "SUCCEEDED", f"{submission_id} succeeded but its driver {came_to}")
    done: dict[str, list[str]] = defaultdict(list)
    for attempt in state.attempts.values():
        if attempt.outcome is Outcome.SUCCEEDED:
            done[attempt.job_id].append(attempt.attempt_id)
    for job_id, attempts in done.items():
        require(len(attempts) == 1, f"{job_id} succeeded {len(attempts)} times: {attempts}")


def receipts_of(ledger: MemoryLedger, public_key: bytes, key_id: str) -> list[Receipt]:
    """What the ledger was given, verified again."""
    keys = {key_id: public_key}
    return [parse_receipt(dsse.open_envelope(one, PAYLOAD_TYPE, keys)) for one in ledger.envelopes.values()]


def check_money(
    state: State,
    ledger: MemoryLedger,
    receipts: list[Receipt],
    held_ms: Mapping[str, int],
    slack_ms: int = UNNOTICED_MS,
) -> None:
    """Nothing paid twice, nothing paid that was not held, books equal receipts.

    ``held_ms`` is for how long each member's node really ran, known to within ``slack_ms``.
    """
    require(not state.unsigned, f"{len(state.unsigned)} receipts were never signed")
    require(not state.unposted, f"{len(state.unposted)} receipts were never posted")
    require({one.receipt_id for one in receipts} == set(state.receipts), "the books and the receipts differ")
    posted = sum(transfer.amount for transfer in ledger.transfers.values())
    require(posted == sum(one.billed_ms for one in receipts), "postings do not add up to the receipts")
    intervals: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
    billed: dict[str, int] = defaultdict(int)
    for receipt in receipts:
        lease = state.leases[receipt.lease_id]  # type: ignore[index]  # ids are plain text outside core
        require(lease.ended_ms is not None, f"{lease.lease_id} never ended")
        inside = lease.started_ms <= receipt.start_ms <= receipt.end_ms <= (lease.ended_ms or 0)
        require(inside, f"{receipt.receipt_id} lies outside its lease")
        for device_id in receipt.device_ids:
            intervals[device_id].append((receipt.start_ms, receipt.end_ms, receipt.receipt_id))
        billed[lease.member_id] += receipt.end_ms - receipt.start_ms
    for device_id, spans in intervals.items():
        spans.sort()
        for (_, end_ms, one), (start_ms, _, other) in pairwise(spans):
            require(end_ms <= start_ms, f"{device_id} is paid twice, by {one} and {other}")
    for member_id, billed_ms in billed.items():
        ran_ms = held_ms.get(member_id, 0)
        require(billed_ms <= ran_ms + slack_ms, f"{member_id} ran {ran_ms} ms and is paid {billed_ms} ms")
