"""What the canned control plane says of its network as a whole."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

from orchestrator.api.v1 import common_pb2, operator_pb2, overview_pb2
from tests.receipts.samples import CONTROL_PUBLIC

CONSUMER = common_pb2.HARDWARE_CLASS_CONSUMER
DATACENTER = common_pb2.HARDWARE_CLASS_DATACENTER
MINUTE_MS = 60_000
DAY_MS = 86_400_000


def gpus(
    number: int, model: str, state: str, of_class: common_pb2.HardwareClass.ValueType = CONSUMER
) -> overview_pb2.GpuCount:
    return overview_pb2.GpuCount(hardware_class=of_class, model=model, state=state, gpus=number)


def status() -> operator_pb2.GetStatusResponse:
    """Of a small network that is well."""
    return operator_pb2.GetStatusResponse(
        network_id="net_1",
        version="0.1.0",
        term=3,
        workers_by_liveness={"live": 3},
        clusters_by_phase={"ready": 1, "closed": 7},
        jobs_by_status={"RUNNING": 1, "SUCCEEDED": 6},
        receipts=7,
        isolation="none",
        overlay="none",
        receipt_public_key=CONTROL_PUBLIC.hex(),
        gateway_url="http://127.0.0.1:8265",
        metrics_url="http://127.0.0.1:9464/metrics",
        remarks=[
            operator_pb2.StatusRemark(text="no isolation, so no job comes here", workers=2),
            operator_pb2.StatusRemark(text="serves one-machine clusters only", workers=1),
        ],
        verdict="well",
        workers=[overview_pb2.WorkerCount(liveness="live", hardware_class=CONSUMER, workers=3)],
        workers_connected=3,
        workers_placeable=2,
        gpus=[gpus(2, "RTX4090", "free"), gpus(1, "RTX4090", "leased"), gpus(8, "H100", "free", DATACENTER)],
        formations=overview_pb2.FormationStanding(ready=1, window_ms=15 * MINUTE_MS),
        loop=overview_pb2.LoopStanding(inbox_commands_max=10_000),
        certificates=[
            overview_pb2.CertificateStanding(certificate="authority", remaining_ms=3_649 * DAY_MS),
            overview_pb2.CertificateStanding(certificate="session", remaining_ms=6 * DAY_MS),
        ],
        running_ms=5 * 3_600_000,
    )


def unwell(findings: int = 2) -> operator_pb2.GetStatusResponse:
    """The same with a queue that is stuck, a zone that is held, and as many findings as asked for."""
    found = status()
    found.verdict = "critical"
    found.queue.CopyFrom(
        overview_pb2.QueueStanding(
            jobs=4,
            gpus=9,
            oldest_ms=41 * MINUTE_MS,
            oldest_job_id="job_9",
            oldest_reason="needs 8 \u00d7 H200",
        )
    )
    for number in range(findings):
        found.findings.add(
            code=("zones_held", "queue_stuck")[number % 2],
            severity="warning" if number else "critical",
            text=f"finding {number} \x1b[31m",
            action=f"`orch job explain job_{number}`",
        )
    return found


def top() -> overview_pb2.GetTopResponse:
    """Two workers, a cluster and a waiting job."""
    return overview_pb2.GetTopResponse(
        workers=[
            overview_pb2.TopWorker(
                worker_id="wrk_1",
                name="attic\x1b[31m",
                supplier_name="north",
                hardware_class=CONSUMER,
                liveness="live",
                liveness_ms=5 * MINUTE_MS,
                connected=True,
                silence_ms=1_200,
                gpus=2,
                gpus_by_state={"leased": 1, "free": 1},
                gpu_model="RTX4090",
                gpu_utilization_ratio=0.87,
                gpu_memory_used_bytes=20 << 30,
                gpu_memory_bytes=48 << 30,
                temperature_celsius=71,
                cpu_utilization_ratio=0.5,
                memory_used_bytes=8 << 30,
                cluster_ids=["clu_1"],
            ),
            overview_pb2.TopWorker(
                worker_id="wrk_2",
                name="shed",
                supplier_name="south",
                hardware_class=DATACENTER,
                liveness="lost",
                liveness_ms=2 * DAY_MS,
                gpus=8,
                gpu_model="H100",
                holds=["operator"],
            ),
        ],
        workers_total=9,
        clusters=[
            overview_pb2.TopCluster(
                cluster_id="clu_1",
                phase="joining",
                age_ms=40_000,
                phase_ms=7_000,
                tenant_name="lab",
                hardware_class=CONSUMER,
                machines=2,
                gpus=4,
                job_id="job_1",
            )
        ],
        clusters_total=1,
        queue=[
            overview_pb2.TopJob(
                job_id="job_2",
                tenant_name="lab",
                position=1,
                wait_ms=41 * MINUTE_MS,
                gpus=8,
                reason="needs 8 \u00d7 H200",
            )
        ],
        queue_total=3,
        at=Timestamp(seconds=1_700_000_000),
    )
