"""What the canned control plane answers."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

from orchestrator.adapters.runtimes import Runtime
from orchestrator.api.v1 import common_pb2, jobs_pb2, operator_pb2, scheduling_pb2

REMARK = "serves one-machine clusters only: no /dev/net/tun"


def worker() -> operator_pb2.Worker:
    device = common_pb2.Device(
        device_id="dev_1",
        kind=common_pb2.DEVICE_KIND_GPU,
        model="RTX4090",
        memory_bytes=24 << 30,
        simulated=True,
    )
    inventory = common_pb2.Inventory(
        hardware_class=common_pb2.HARDWARE_CLASS_CONSUMER, devices=[device], slots=1, isolation="box"
    )
    inventory.overlay = "none"
    inventory.remarks.append(REMARK)
    return operator_pb2.Worker(
        worker_id="wrk_1",
        name="attic",
        supplier_id="sup_1",
        supplier_name="north",
        inventory=inventory,
        liveness="live",
        connected=True,
        devices_held=1,
        joined_at=Timestamp(seconds=1_700_000_000),
    )


def tenant() -> operator_pb2.Tenant:
    """With two of three limits."""
    return operator_pb2.Tenant(
        tenant_id="ten_1",
        name="lab",
        weight=200,
        quota=operator_pb2.TenantQuota(gpus=8, microcredits_per_month=50_000_000),
    )


def job() -> jobs_pb2.Job:
    member = jobs_pb2.AttemptMember(
        member_id="clu_1-1",
        worker_id="wrk_1",
        worker_name="attic",
        supplier_id="sup_1",
        role="member",
        device_ids=["dev_1"],
        simulated=True,
    )
    attempt = jobs_pb2.Attempt(
        attempt_id="job_1-1",
        number=1,
        cluster_id="clu_1",
        phase="running",
        explanation=["attic: 1 of 1 devices free", "chosen over cellar: nearer"],
        members=[member],
    )
    return jobs_pb2.Job(
        job_id="job_1",
        tenant_id="ten_1",
        submission_id="raysubmit_1",
        status=jobs_pb2.JOB_STATUS_RUNNING,
        message="running on 1 member",
        entrypoint="python train.py",
        attempts=[attempt],
        time_limit_ms=5_400_000,
        time_limit_at=Timestamp(seconds=1_700_005_400),
    )


def small_runtime(name: str, extra: str = "") -> common_pb2.Runtime:
    """A runtime of two or three packages."""
    hashed = f"--hash=sha256:{'ab' * 32}"
    lock = "".join(f"{one} {hashed}\n" for one in ("ray==2.60.0", "numpy==2.4.1", extra) if one).encode()
    runtime = Runtime(name, "3.11", "2.60.0", lock, ("ray[default]==2.60.0", "numpy"))
    return common_pb2.Runtime(
        name=name,
        digest=runtime.digest,
        python=runtime.python,
        ray_version=runtime.ray_version,
        packages=runtime.packages,
        lock=lock,
    )


def wait() -> scheduling_pb2.JobWait:
    """Of a job for which machines are kept."""
    return scheduling_pb2.JobWait(
        reason="waiting for 2 × RTX4090",
        removed=[
            scheduling_pb2.FilterRemoval(name="gpu_model", phrase="not a RTX4090", workers=7, alone=3),
        ],
        changes=[scheduling_pb2.RequestChange(key="orch.region", says="without orch.region: enough")],
        fitting=4,
        free=1,
        needed=2,
        largest=1,
        jobs_before=5,
        position="behind 5 of its tenant's jobs",
        overtaken=16,
        overtaken_max=16,
        entitled=True,
        not_before=Timestamp(seconds=1_700_000_000),
        estimate="when it starts is not known",
    )


def quote() -> scheduling_pb2.Quote:
    """Of machines that are free."""
    return scheduling_pb2.Quote(
        model="RTX4090",
        gpus=8,
        duration_ms=5_400_000,
        available_now=True,
        microcredits_per_gpu_hour=300_001,
        price_microcredits=3_600_012,
        payment_fee_microcredits=72_000,
        reservation_fee_microcredits=9_000,
        total_microcredits=3_681_012,
        currency="stablecoin",
        cloud_median_microcredits=450_000,
        below_median_bp=3_183,
        sources=[scheduling_pb2.PriceSource(provider="cloud-a", date="2026-11-03")],
        reasons=["free now, on 2 machines", "31.83 % below the median of 3 clouds"],
    )
