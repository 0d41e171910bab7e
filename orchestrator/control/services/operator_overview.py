"""What an operator sees at a glance: the network's standing with a judgement, and what is busiest or in trouble."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from orchestrator.api.v1 import operator_pb2, operator_pb2_grpc, overview_pb2
from orchestrator.control.inventory_wire import CLASS_NUMBERS, CLASSES
from orchestrator.control.services.workers import UNMEASURED, Sample
from orchestrator.control.wire import timestamp
from orchestrator.control.words import word
from orchestrator.core.clusters import ClusterPhase
from orchestrator.core.errors import invalid
from orchestrator.core.ids import WorkerId
from orchestrator.core.jobs import JobStatus
from orchestrator.core.queries.gpus import gpus_on, kept
from orchestrator.core.queries.health import Health, Vitals, judge
from orchestrator.core.queries.overview import FORMATION_WINDOW_MS, Overview, overview
from orchestrator.core.queries.top import (
    ROWS,
    ROWS_MAX,
    Measured,
    OpenCluster,
    QueuedJob,
    Sort,
    candidates,
    open_clusters,
    ranked,
    waiting_longest,
)
from orchestrator.core.supply.fleet import DeviceKind, HardwareClass, Liveness
from orchestrator.core.tallies import GpuState

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    import grpc.aio

    from orchestrator.control.loop import Loop
    from orchestrator.control.services.surroundings import Addresses, Surroundings
    from orchestrator.control.sessions import Sessions
    from orchestrator.core.ids import Now
    from orchestrator.core.queries.gpus import Kept, Reserved
    from orchestrator.core.state import State
    from orchestrator.core.supply.fleet import Worker
    from orchestrator.core.tallies import Gpus

    Context = grpc.aio.ServicerContext[Any, Any]

STATUS_REMARKS_MAX = 10
"""A page of a terminal; workers write them, so somebody may make up any number. `orch worker show` has the others."""


class OverviewViews(operator_pb2_grpc.OperatorServiceServicer):
    """The part of the operator's service that is about all of it at once."""

    _loop: Loop
    _sessions: Sessions
    _samples: Mapping[WorkerId, Sample]
    _surroundings: Surroundings

    async def GetStatus(  # noqa: N802 -- the proto's name
        self, _request: operator_pb2.GetStatusRequest, _context: Context
    ) -> operator_pb2.GetStatusResponse:
        """The network at a glance. A read waits for the commit under way, as every caller does: that is lag, too."""
        around, connected = self._surroundings, self._sessions.connected
        vitals, asked_ms = await around.vitals(), self._loop.now().monotonic_ms

        def find(state: State) -> operator_pb2.GetStatusResponse:
            now = self._loop.now()
            lag_ms = max(vitals.loop_lag_ms, now.monotonic_ms - asked_ms)
            late = replace(vitals, loop_lag_ms=lag_ms)
            reserved = around.measuring.reserved
            seen = overview(state, connected, reserved, state.time_ms(now))
            return status_message(state, around.addresses, seen, late, state.time_ms(now))

        return await self._loop.read(find)

    async def GetTop(  # noqa: N802 -- the proto's name
        self, request: overview_pb2.GetTopRequest, _context: Context
    ) -> overview_pb2.GetTopResponse:
        """Two short reads; what is put in order between them is put in order beside the loop."""
        asked = asked_of(request)
        connected, now = self._sessions.connected, self._loop.now()
        found = await self._loop.read(
            lambda state: candidates(
                state,
                connected,
                asked.hardware_class,
                asked.supplier,
                state.time_ms(now),
                now.monotonic_ms,
            )
        )
        samples = dict(self._samples)
        chosen = await asyncio.to_thread(
            lambda: ranked(found, measured_of(samples), asked.sort, asked.rows_max)
        )
        answer = await self._loop.read(
            lambda state: top_message(
                state,
                asked,
                chosen,
                samples,
                connected,
                self._surroundings.measuring.reserved,
                self._loop.now(),
            )
        )
        answer.workers_total = len(found)
        self._add_uptimes(answer)
        return answer

    def _add_uptimes(self, answer: overview_pb2.GetTopResponse) -> None:
        """Of this run: what was before it, Prometheus knows."""
        at_ms = answer.at.ToMilliseconds()
        for row in answer.workers:
            found = self._surroundings.measuring.uptime(WorkerId(row.worker_id), at_ms)
            if found is not None and found.expected_ms > 0:
                row.uptime_ratio = found.up_ms / found.expected_ms


# ------------------------------------------------------------ status


def status_message(
    state: State, addresses: Addresses, seen: Overview, vitals: Vitals, at_ms: int
) -> operator_pb2.GetStatusResponse:
    """The network at a glance; isolation and overlay are the weakest that any live worker has."""
    fleet = seen.fleet
    answer = operator_pb2.GetStatusResponse(
        network_id=state.control.network_id,
        version=addresses.version,
        term=state.control.term,
        workers_by_liveness={one.value: fleet.count(one) for one in Liveness},
        clusters_by_phase={one.value: seen.clusters[one] for one in ClusterPhase},
        jobs_by_status={one.value: seen.jobs[one] for one in JobStatus},
        receipts=seen.receipts,
        receipts_unposted=seen.outbox.receipts,
        devices=fleet.devices.present,
        devices_held=fleet.devices.held,
        devices_simulated=fleet.devices.simulated,
        isolation=fleet.isolation.value,
        overlay=fleet.overlay,
        receipt_public_key=addresses.receipt_public_key.hex(),
        gateway_url=addresses.gateway_url,
        metrics_url=addresses.metrics_url,
        remarks=_remarks(fleet.remarks),
        running_ms=max(0, at_ms - state.control.at_ms),
    )
    _add_overview(answer, seen)
    _add_health(answer, judge(seen, vitals), vitals)
    return answer


def _add_overview(answer: operator_pb2.GetStatusResponse, seen: Overview) -> None:
    fleet, waiting = seen.fleet, seen.waiting
    answer.workers.extend(
        overview_pb2.WorkerCount(liveness=one.value, hardware_class=CLASS_NUMBERS[kind], workers=number)
        for (one, kind), number in sorted(fleet.workers.items())
    )
    answer.workers_connected = fleet.connected
    answer.workers_placeable = fleet.placeable
    answer.workers_by_hold.update({kind.value: number for kind, number in fleet.holds.items()})
    answer.gpus.extend(gpu_messages(seen.gpus))
    answer.clusters_idle = seen.clusters_idle
    answer.queue.CopyFrom(
        overview_pb2.QueueStanding(
            jobs=waiting.jobs,
            gpus=waiting.gpus,
            oldest_ms=waiting.oldest_ms,
            oldest_job_id=waiting.oldest_job or "",
            oldest_reason=waiting.oldest_reason,
            jobs_for_reservations=waiting.for_reservations,
        )
    )
    answer.formations.CopyFrom(
        overview_pb2.FormationStanding(
            ready=seen.formations.ready,
            failed=seen.formations.failed,
            window_ms=FORMATION_WINDOW_MS,
            last_reason=seen.formations.last_reason,
        )
    )
    answer.outbox_oldest_ms = seen.outbox.oldest_ms
    answer.leases_open = seen.leases_open
    answer.zones_held.extend(seen.zones_held)


def _add_health(answer: operator_pb2.GetStatusResponse, health: Health, vitals: Vitals) -> None:
    answer.verdict = health.verdict
    answer.findings.extend(
        overview_pb2.HealthFinding(
            code=one.code, severity=one.severity.value, text=one.text, action=one.action
        )
        for one in health.findings
    )
    answer.loop.CopyFrom(
        overview_pb2.LoopStanding(
            inbox_commands=vitals.inbox_commands,
            inbox_commands_max=vitals.inbox_commands_max,
            lag_ms=vitals.loop_lag_ms,
            plan_lag_ms=vitals.plan_lag_ms,
        )
    )
    answer.certificates.extend(
        overview_pb2.CertificateStanding(certificate=name, remaining_ms=max(0, left_ms))
        for name, left_ms in vitals.certificates_ms.items()
    )
    answer.receipts_unaccounted = vitals.receipts_unaccounted
    answer.ledger_imbalance_microcredits = vitals.ledger_imbalance_microcredits
    if vitals.relay_connections_max:
        answer.relay.connections = vitals.relay_connections
        answer.relay.connections_max = vitals.relay_connections_max


def gpu_messages(found: Mapping[Gpus, int]) -> Iterator[overview_pb2.GpuCount]:
    """By class, model and state; only those of which there are some."""
    for (kind, model, standing), number in sorted(found.items()):
        if number:
            yield overview_pb2.GpuCount(
                hardware_class=CLASS_NUMBERS[kind], model=model, state=standing.value, gpus=number
            )


def _remarks(said: Mapping[str, int]) -> list[operator_pb2.StatusRemark]:
    """What workers say of themselves: what most of them say first, then by its words."""
    ordered = sorted(said.items(), key=lambda item: (-item[1], item[0]))
    return [
        operator_pb2.StatusRemark(text=text, workers=count) for text, count in ordered[:STATUS_REMARKS_MAX]
    ]


# ------------------------------------------------------------ top


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for the top, checked."""

    rows_max: int
    sort: Sort
    hardware_class: HardwareClass | None
    supplier: str


def asked_of(request: overview_pb2.GetTopRequest) -> Asked:
    """Raises RefusedError, which names the field."""
    if request.rows_max > ROWS_MAX:
        raise invalid("rows_max", f"rows_max is at most {ROWS_MAX}; `orch worker list` has all of them")
    try:
        sort = Sort(request.sort or Sort.TROUBLE)
    except ValueError:
        raise invalid("sort", f"sort must be one of {', '.join(Sort)}") from None
    return Asked(
        request.rows_max or ROWS,
        sort,
        CLASSES.get(request.hardware_class),
        word("supplier", request.supplier, empty=True),
    )


def measured_of(samples: Mapping[WorkerId, Sample]) -> dict[WorkerId, Measured]:
    """What workers are put in order by."""
    return {worker_id: _measured(sample) for worker_id, sample in samples.items() if sample.devices}


def _measured(sample: Sample) -> Measured:
    devices = sample.devices
    return Measured(
        sum(one.utilization_ratio for one in devices) / len(devices),
        float(sum(one.memory_used_bytes for one in devices)),
        max(one.temperature_celsius for one in devices),
    )


def top_message(
    state: State,
    asked: Asked,
    chosen: Iterable[WorkerId],
    samples: Mapping[WorkerId, Sample],
    connected: Collection[WorkerId],
    reserved: Reserved,
    now: Now,
) -> overview_pb2.GetTopResponse:
    """The chosen workers, less those that went meanwhile, and the first clusters and jobs."""
    at_ms, still_kept = state.time_ms(now), kept(state, reserved)
    clusters, clusters_total = open_clusters(state, asked.hardware_class, asked.rows_max)
    jobs, queue_total = waiting_longest(state, asked.rows_max, at_ms)
    return overview_pb2.GetTopResponse(
        workers=[
            _top_worker(
                state,
                state.workers[worker_id],
                samples.get(worker_id, UNMEASURED),
                still_kept,
                now,
                connected=worker_id in connected,
            )
            for worker_id in chosen
            if worker_id in state.workers
        ],
        clusters=[_top_cluster(one, at_ms) for one in clusters],
        clusters_total=clusters_total,
        queue=[_top_job(state, one) for one in jobs],
        queue_total=queue_total,
        at=timestamp(at_ms),
    )


def _top_worker(
    state: State, worker: Worker, sample: Sample, reserved: Kept, now: Now, *, connected: bool
) -> overview_pb2.TopWorker:
    """What was not measured stays unset."""
    supplier = state.suppliers.get(worker.supplier_id)
    present = [device for device in worker.inventory.devices if device.kind is DeviceKind.GPU]
    by_state = gpus_on(state, worker.worker_id, reserved)
    here = (state.members[member_id] for member_id in state.members_on.get(worker.worker_id, ()))
    never = now.monotonic_ms + 1
    heard_ms = state.heartbeats.heard_ms(worker.worker_id, never)
    row = overview_pb2.TopWorker(
        worker_id=worker.worker_id,
        name=worker.name,
        supplier_name=supplier.name if supplier is not None else "",
        hardware_class=CLASS_NUMBERS[worker.inventory.hardware_class],
        liveness=worker.liveness.value,
        liveness_ms=max(0, state.time_ms(now) - worker.liveness_since_ms),
        connected=connected,
        silence_ms=None if heard_ms == never else max(0, now.monotonic_ms - heard_ms),
        holds=[*(hold.kind.value for hold in worker.holds), *(("draining",) if worker.draining else ())],
        gpus=len(present),
        gpus_held=by_state[GpuState.HELD],
        gpus_by_state={one.value: number for one, number in by_state.items() if number},
        gpu_model=" ".join(dict.fromkeys(device.model for device in present)),
        gpu_memory_bytes=sum(device.memory_bytes for device in present),
        cluster_ids=list(dict.fromkeys(member.cluster_id for member in here)),
        devices_cordoned=len(worker.device_holds),
    )
    if sample is not UNMEASURED:
        row.cpu_utilization_ratio = sample.cpu_utilization_ratio
        row.memory_used_bytes = sample.memory_used_bytes
    if sample.devices:
        measured = _measured(sample)
        row.gpu_utilization_ratio = measured.gpu_ratio
        row.gpu_memory_used_bytes = int(measured.memory_bytes)
        row.temperature_celsius = measured.temperature_celsius
    return row


def _top_cluster(one: OpenCluster, at_ms: int) -> overview_pb2.TopCluster:
    cluster = one.cluster
    return overview_pb2.TopCluster(
        cluster_id=cluster.cluster_id,
        phase=cluster.phase.value,
        age_ms=max(0, at_ms - cluster.created_at_ms),
        phase_ms=max(0, at_ms - cluster.phase_since_ms),
        tenant_name=one.tenant_name,
        hardware_class=CLASS_NUMBERS[cluster.hardware_class],
        machines=len({member.worker_id for member in one.members if member.device_ids}),
        gpus=sum(member.gpus for member in one.members),
        job_id=one.job_id or "",
        idle=cluster.idle_since_ms is not None,
        reason=cluster.reason,
    )


def _top_job(state: State, one: QueuedJob) -> overview_pb2.TopJob:
    tenant = state.tenants.get(one.job.tenant_id)
    return overview_pb2.TopJob(
        job_id=one.job.job_id,
        tenant_name=tenant.name if tenant is not None else "",
        position=one.position,
        wait_ms=one.wait_ms,
        gpus=one.job.request.requirements.gpus,
        reason=one.reason,
        attempts=one.job.attempts,
    )
