"""How the state's entities look on the wire. Pure: from committed state to messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.api.v1 import delivery_pb2, jobs_pb2, operator_pb2
from orchestrator.control.inventory_wire import CLASS_NUMBERS, inventory_to
from orchestrator.control.standing_wire import standing_to
from orchestrator.control.wire import path_to, timestamp
from orchestrator.core.decisions.fleet import recoveries_at
from orchestrator.core.decisions.limits import limit_at_ms
from orchestrator.core.ids import WorkerId, attempt_id_of
from orchestrator.core.jobs import JobStatus
from orchestrator.core.queries.certificate import delivered_words
from orchestrator.core.queries.explain import chosen_words
from orchestrator.core.supply.fleet import TokenRole
from orchestrator.core.supply.hardware import worker_evidence_class
from orchestrator.core.supply.reliability import THOUSAND
from orchestrator.receipts import bundle, ids

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.control.paths import PathKnown
    from orchestrator.core.clusters import Cluster, Member, PathSeen
    from orchestrator.core.jobs import Attempt, Job
    from orchestrator.core.metering import Receipt
    from orchestrator.core.queries.certificate import RankDelivered
    from orchestrator.core.queries.tenant_standing import TenantStanding
    from orchestrator.core.state import State
    from orchestrator.core.supply.fleet import LeasePolicy, Token, Worker
    from orchestrator.core.tenancy.tenants import Tenant

ROLES = {
    operator_pb2.TOKEN_ROLE_OPERATOR: TokenRole.OPERATOR,
    operator_pb2.TOKEN_ROLE_TENANT: TokenRole.TENANT,
    operator_pb2.TOKEN_ROLE_SUPPLIER: TokenRole.SUPPLIER,
}
ROLE_NUMBERS = {role: number for number, role in ROLES.items()}

STATUS_NUMBERS = {
    JobStatus.PENDING: jobs_pb2.JOB_STATUS_PENDING,
    JobStatus.RUNNING: jobs_pb2.JOB_STATUS_RUNNING,
    JobStatus.STOPPED: jobs_pb2.JOB_STATUS_STOPPED,
    JobStatus.SUCCEEDED: jobs_pb2.JOB_STATUS_SUCCEEDED,
    JobStatus.FAILED: jobs_pb2.JOB_STATUS_FAILED,
}


def tenant_message(tenant: Tenant) -> operator_pb2.Tenant:
    """A tenant."""
    quota = tenant.quota
    return operator_pb2.Tenant(
        tenant_id=tenant.tenant_id,
        name=tenant.name,
        created_at=timestamp(tenant.created_at_ms),
        weight=tenant.weight,
        quota=operator_pb2.TenantQuota(
            gpus=quota.gpus,
            gpu_ms_per_month=quota.gpu_ms_per_month,
            microcredits_per_month=quota.microcredits_per_month,
        ),
    )


def tenant_standing_message(tenant: Tenant, found: TenantStanding) -> operator_pb2.GetTenantResponse:
    """A tenant with what it holds and used."""
    return operator_pb2.GetTenantResponse(
        tenant=tenant_message(tenant),
        gpus_held=found.use.gpus_held,
        month=str(found.use.month),
        gpu_ms_used=found.use.gpu_ms_used,
        microcredits_spent=found.use.microcredits_spent,
        microcredits_committed=found.use.microcredits_committed,
        gpu_ms_committed=found.use.gpu_ms_committed,
        share_ppm=found.share_ppm,
        lately_ppm=found.lately_ppm,
        fair_ppm=found.fair_ppm,
        jobs_queued=found.jobs_queued,
    )


def token_message(token: Token, at_ms: int) -> operator_pb2.Token:
    """A token without its secret, which nobody has."""
    return operator_pb2.Token(
        token_id=token.token_id,
        role=ROLE_NUMBERS[token.role],
        subject_id=token.subject_id,
        created_at=timestamp(token.created_at_ms),
        expires_at=timestamp(token.expires_at_ms),
        state=token.state_at(at_ms),
        head_host=token.head_host,
    )


def worker_message(
    state: State,
    worker: Worker,
    at_ms: int,
    *,
    connected: bool,
    cpu_utilization_ratio: float,
    memory_used_bytes: int,
) -> operator_pb2.Worker:
    """A worker and its newest measurements."""
    override = worker.class_override
    supplier = state.suppliers.get(worker.supplier_id)
    free = state.free_devices.get(worker.worker_id, {})
    return operator_pb2.Worker(
        worker_id=worker.worker_id,
        name=worker.name,
        supplier_id=worker.supplier_id,
        supplier_name=supplier.name if supplier is not None else "",
        inventory=inventory_to(worker.inventory),
        liveness=worker.liveness.value,
        draining=worker.draining,
        connected=connected,
        devices_held=len(worker.inventory.devices) - len(free),
        joined_at=timestamp(worker.joined_at_ms),
        cpu_utilization_ratio=cpu_utilization_ratio,
        memory_used_bytes=memory_used_bytes,
        standing=standing_to(state, worker, at_ms),
        agent_version=worker.agent_version,
        recoveries=-(-recoveries_at(worker, state.policies.fleet, at_ms) // THOUSAND),
        evidence_class=worker_evidence_class(worker.inventory.devices).value,
        lease_policy=lease_policy_to(worker.lease_policy),
        class_override_reason=override.reason if override is not None else "",
    )


def worker_path_message(state: State, path: PathKnown, now_ms: int) -> operator_pb2.WorkerPath:
    """A way to another worker, with that one's name where it is known still."""
    peer = state.workers.get(WorkerId(path.measured.peer_id))
    return operator_pb2.WorkerPath(
        measured=path.measured,
        peer_name=peer.name if peer is not None else "",
        age_ms=max(0, now_ms - path.at_ms),
    )


def lease_policy_to(policy: LeasePolicy | None) -> operator_pb2.LeasePolicy | None:
    """None stays unset: the network's policy counts."""
    if policy is None:
        return None
    return operator_pb2.LeasePolicy(
        lost_after_ms=policy.lost_after_ms, replace=policy.replace, reconcile=policy.reconcile.value
    )


def cluster_message(state: State, cluster: Cluster, job_ids: list[str]) -> operator_pb2.Cluster:
    """A cluster with the members that count."""
    return operator_pb2.Cluster(
        cluster_id=cluster.cluster_id,
        tenant_id=cluster.tenant_id,
        phase=cluster.phase.value,
        hardware_class=CLASS_NUMBERS[cluster.hardware_class],
        generation=cluster.generation,
        reason=cluster.reason,
        created_at=timestamp(cluster.created_at_ms),
        ready_at=timestamp(cluster.ready_at_ms),
        idle_since=timestamp(cluster.idle_since_ms),
        members=[_cluster_member(state, member) for member in state.cluster_members(cluster)],
        job_ids=job_ids,
    )


def _cluster_member(state: State, member: Member) -> operator_pb2.ClusterMember:
    return operator_pb2.ClusterMember(
        member_id=member.member_id,
        worker_id=member.worker_id,
        worker_name=state.workers[member.worker_id].name,
        role=member.role.value,
        phase=member.phase.value,
        device_ids=member.device_ids,
        slot=member.slot,
        generation=member.generation,
        node_ip=member.address.node_ip if member.address is not None else "",
        reason=member.reason,
        evidence_class=member.evidence.value if member.device_ids else "",
    )


def path_message(path: PathSeen) -> operator_pb2.ClusterPath:
    """A way between two members, with who measured it."""
    return operator_pb2.ClusterPath(member_id=path.from_id, measured=path_to(path))


def rank_message(rank: RankDelivered) -> delivery_pb2.RankDelivered:
    """A line of a delivery certificate; what was not measured stays unset."""
    return delivery_pb2.RankDelivered(
        rank=rank.rank,
        member_id=rank.member_id,
        worker_name=rank.worker_name,
        devices=[
            delivery_pb2.DeliveredDevice(uuid=one.uuid, model=one.model, simulated=one.simulated)
            for one in rank.devices
        ],
        evidence_class=rank.evidence.value,
        rtt_us=rank.rtt_us,
        bandwidth_bits_per_s=rank.bits_per_s,
        head_rtt_us=rank.head_rtt_us,
        head_bandwidth_bits_per_s=rank.head_bits_per_s,
        bus_bits_per_s=rank.bus_bits_per_s,
    )


def job_message(state: State, job: Job) -> jobs_pb2.Job:
    """A job with every attempt and its members."""
    tries = (state.attempts.get(attempt_id_of(job.job_id, n)) for n in range(1, job.attempts + 1))
    return jobs_pb2.Job(
        job_id=job.job_id,
        tenant_id=job.tenant_id,
        submission_id=job.submission_id,
        status=STATUS_NUMBERS[job.status],
        message=state.shown(job).message,
        entrypoint=job.request.entrypoint,
        submitted_at=timestamp(job.submitted_at_ms),
        started_at=timestamp(job.started_at_ms),
        ended_at=timestamp(job.ended_at_ms),
        attempts=[_attempt(state, attempt) for attempt in tries if attempt is not None],
        time_limit_ms=job.request.time_limit_ms,
        time_limit_at=timestamp(limit_at_ms(state, job)),
    )


def _attempt(state: State, attempt: Attempt) -> jobs_pb2.Attempt:
    cluster = state.clusters[attempt.cluster_id]
    return jobs_pb2.Attempt(
        attempt_id=attempt.attempt_id,
        number=attempt.number,
        cluster_id=attempt.cluster_id,
        phase=attempt.phase.value,
        message=attempt.message,
        explanation=(
            *attempt.explanation,
            *chosen_words(attempt.chosen),
            *delivered_words(state, cluster),
        ),
        members=[_attempt_member(state, member) for member in state.cluster_members(cluster)],
        log_bytes=attempt.log_bytes,
    )


def _attempt_member(state: State, member: Member) -> jobs_pb2.AttemptMember:
    worker = state.workers[member.worker_id]
    held = [device for device in worker.inventory.devices if device.device_id in member.device_ids]
    return jobs_pb2.AttemptMember(
        member_id=member.member_id,
        worker_id=member.worker_id,
        worker_name=worker.name,
        supplier_id=member.supplier_id,
        role=member.role.value,
        device_ids=member.device_ids,
        simulated=any(device.simulated for device in held),
    )


def receipt_state(receipt: Receipt) -> str:
    """``sealed``, ``signed`` or ``posted``."""
    if receipt.transfer_id:
        return "posted"
    return "signed" if receipt.envelope else "sealed"


def receipt_message(state: State, receipt: Receipt) -> operator_pb2.Receipt:
    """A receipt's facts, for a table; the bundle is what proves them."""
    lease = state.leases[receipt.lease_id]
    return operator_pb2.Receipt(
        receipt_id=receipt.receipt_id,
        lease_id=receipt.lease_id,
        job_id=lease.job_id,
        supplier_id=lease.supplier_id,
        worker_id=lease.worker_id,
        hardware_class=CLASS_NUMBERS[lease.hardware_class],
        epoch=receipt.epoch,
        sequence=receipt.sequence,
        interval_start=timestamp(receipt.start_ms),
        interval_end=timestamp(receipt.end_ms),
        billed_ms=receipt.billed_ms,
        state=receipt_state(receipt),
    )


def bundle_parts(state: State, receipt: Receipt, control_public_key: bytes) -> Callable[[], bytes]:
    """What makes a receipt's bundle, with everything it needs taken out of the state now."""
    lease = state.leases[receipt.lease_id]
    statements = [
        state.statements[f"{receipt.lease_id}/{number}"].envelope for number in receipt.statement_sequences
    ]
    worker_key = bytes.fromhex(state.workers[lease.worker_id].statement_key)
    keys = {ids.key_id(key): key for key in (control_public_key, worker_key)}
    envelope = receipt.envelope
    return lambda: bundle.build_bundle(envelope, statements, keys)
