"""A control plane of canned answers behind a real gRPC server, for the command line to talk to."""

# ruff: noqa: N802 -- gRPC calls methods by the names of the protos

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from orchestrator.adapters.runtimes import Runtime
from orchestrator.api.v1 import (
    common_pb2,
    jobs_pb2,
    ledger_pb2,
    operator_pb2,
    overlay_pb2,
    scheduling_pb2,
    telemetry_pb2,
)
from orchestrator.api.v1.jobs_pb2_grpc import JobsServiceServicer
from orchestrator.api.v1.ledger_pb2_grpc import LedgerServiceServicer
from orchestrator.api.v1.operator_pb2_grpc import OperatorServiceServicer
from tests.receipts.samples import CONTROL_PUBLIC, make_bundle

ADMIN = "adm_secret-of-the-operator"
TENANT = "tnt_secret-of-a-tenant"
HOSTILE_NAME = "lab\x1b[31m[bold]\nsecond"
SECRET = "sup_fresh-secret"
REMARK = "serves one-machine clusters only: no /dev/net/tun"
LOG = b"epoch 1\n\x00\xff binary\nepoch 2\n"


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
    )


class FakeOperator(OperatorServiceServicer):
    """Remembers what it was asked."""

    def __init__(self) -> None:
        self.created: list[operator_pb2.CreateTokenRequest] = []
        self.tenants: list[operator_pb2.CreateTenantRequest] = []
        self.asked: list[Any] = []
        """Requests about workers and authorities."""
        self.held: list[int] = []
        """Devices held at the next looks at the worker; one after the last."""

    def GetStatus(self, request: Any, context: Any) -> operator_pb2.GetStatusResponse:
        return operator_pb2.GetStatusResponse(
            network_id="net_1",
            version="0.1.0",
            term=3,
            workers_by_liveness={"live": 2, "lost": 1},
            receipts=7,
            isolation="none",
            receipt_public_key=CONTROL_PUBLIC.hex(),
            remarks=[
                operator_pb2.StatusRemark(text="no isolation, so no job comes here", workers=2),
                operator_pb2.StatusRemark(text="serves one-machine clusters only", workers=1),
            ],
        )

    def CreateTenant(
        self, request: operator_pb2.CreateTenantRequest, context: Any
    ) -> operator_pb2.CreateTenantResponse:
        self.tenants.append(request)
        if request.name == "taken":
            context.abort(
                grpc.StatusCode.ALREADY_EXISTS, "name: a tenant 'taken' exists; choose another name"
            )
        return operator_pb2.CreateTenantResponse(
            tenant=operator_pb2.Tenant(tenant_id="ten_1", name=request.name)
        )

    def ListTenants(self, request: Any, context: Any) -> operator_pb2.ListTenantsResponse:
        return operator_pb2.ListTenantsResponse(
            tenants=[operator_pb2.Tenant(tenant_id="ten_1", name=HOSTILE_NAME, weight=100)]
        )

    def GetTenant(
        self, request: operator_pb2.GetTenantRequest, context: Any
    ) -> operator_pb2.GetTenantResponse:
        return operator_pb2.GetTenantResponse(
            tenant=tenant(),
            gpus_held=3,
            month="2026-11",
            gpu_ms_used=5_400_000,
            microcredits_spent=12_345_678,
            share_ppm=123_456,
            lately_ppm=23_400,
            fair_ppm=500_000,
            jobs_queued=2,
        )

    def SetTenant(
        self, request: operator_pb2.SetTenantRequest, context: Any
    ) -> operator_pb2.SetTenantResponse:
        self.asked.append(request)
        return operator_pb2.SetTenantResponse(tenant=tenant())

    def CreateToken(
        self, request: operator_pb2.CreateTokenRequest, context: Any
    ) -> operator_pb2.CreateTokenResponse:
        self.created.append(request)
        token = operator_pb2.Token(token_id="tok_1", role=request.role, subject_id="sup_1", state="live")
        return operator_pb2.CreateTokenResponse(token=token, secret=SECRET)

    def ListTokens(self, request: Any, context: Any) -> operator_pb2.ListTokensResponse:
        return operator_pb2.ListTokensResponse()

    def RevokeToken(
        self, request: operator_pb2.RevokeTokenRequest, context: Any
    ) -> operator_pb2.RevokeTokenResponse:
        token = operator_pb2.Token(token_id=request.token_id, state="revoked")
        return operator_pb2.RevokeTokenResponse(token=token)

    def ListWorkers(self, request: Any, context: Any) -> operator_pb2.ListWorkersResponse:
        return operator_pb2.ListWorkersResponse(workers=[worker()])

    def LeaveWorker(
        self, request: operator_pb2.LeaveWorkerRequest, context: Any
    ) -> operator_pb2.LeaveWorkerResponse:
        if request.worker != "attic":
            context.abort(
                grpc.StatusCode.NOT_FOUND, f"no worker {request.worker!r}; list them to see the right name"
            )
        leaving = worker()
        leaving.draining = True
        return operator_pb2.LeaveWorkerResponse(worker=leaving)

    def GetWorker(
        self, request: operator_pb2.GetWorkerRequest, context: Any
    ) -> operator_pb2.GetWorkerResponse:
        sample = telemetry_pb2.DeviceSample(
            device_id="dev_1", utilization_ratio=0.5, temperature_celsius=61, power_watts=220
        )
        known = self.known(request)
        known.devices_held = self.held.pop(0) if self.held else known.devices_held
        measured = overlay_pb2.PathMeasured(peer_id="wrk_2", sent=20, received=19, rtt_median_us=42_500)
        path = operator_pb2.WorkerPath(measured=measured, peer_name="cellar", age_ms=61_000)
        return operator_pb2.GetWorkerResponse(worker=known, samples=[sample], paths=[path])

    def CordonWorker(
        self, request: operator_pb2.CordonWorkerRequest, context: Any
    ) -> operator_pb2.CordonWorkerResponse:
        return operator_pb2.CordonWorkerResponse(worker=self.known(request))

    def UncordonWorker(
        self, request: operator_pb2.UncordonWorkerRequest, context: Any
    ) -> operator_pb2.UncordonWorkerResponse:
        return operator_pb2.UncordonWorkerResponse(worker=self.known(request))

    def ReclaimWorker(
        self, request: operator_pb2.ReclaimWorkerRequest, context: Any
    ) -> operator_pb2.ReclaimWorkerResponse:
        return operator_pb2.ReclaimWorkerResponse(worker=self.known(request))

    def RevokeWorker(
        self, request: operator_pb2.RevokeWorkerRequest, context: Any
    ) -> operator_pb2.RevokeWorkerResponse:
        return operator_pb2.RevokeWorkerResponse(worker=self.known(request))

    def SetHardwareClass(
        self, request: operator_pb2.SetHardwareClassRequest, context: Any
    ) -> operator_pb2.SetHardwareClassResponse:
        return operator_pb2.SetHardwareClassResponse(worker=self.known(request))

    def SetLeasePolicy(
        self, request: operator_pb2.SetLeasePolicyRequest, context: Any
    ) -> operator_pb2.SetLeasePolicyResponse:
        return operator_pb2.SetLeasePolicyResponse(worker=self.known(request))

    def known(self, request: Any) -> operator_pb2.Worker:
        """The one worker, and the request remembered."""
        self.asked.append(request)
        return worker()

    def GetAuthority(self, request: Any, context: Any) -> operator_pb2.GetAuthorityResponse:
        return operator_pb2.GetAuthorityResponse(authorities=self.authorities(), workers_behind=1)

    def RotateAuthority(self, request: Any, context: Any) -> operator_pb2.RotateAuthorityResponse:
        return operator_pb2.RotateAuthorityResponse(authorities=self.authorities())

    def RetireAuthority(self, request: Any, context: Any) -> operator_pb2.RetireAuthorityResponse:
        self.asked.append(request)
        return operator_pb2.RetireAuthorityResponse(authorities=self.authorities()[:1])

    @staticmethod
    def authorities() -> list[operator_pb2.Authority]:
        return [
            operator_pb2.Authority(generation=2, pin="newest-pin"),
            operator_pb2.Authority(generation=1, pin="older-pin"),
        ]

    def ListClusters(self, request: Any, context: Any) -> operator_pb2.ListClustersResponse:
        return operator_pb2.ListClustersResponse(clusters=[self.cluster()])

    def GetCluster(self, request: Any, context: Any) -> operator_pb2.GetClusterResponse:
        measured = overlay_pb2.PathMeasured(
            peer_id="clu_1-0",
            sent=20,
            received=19,
            rtt_min_us=20_000,
            rtt_median_us=21_400,
            rtt_p90_us=25_000,
            jitter_us=950,
            bandwidth_bits_per_s=34_800_000,
        )
        silent = overlay_pb2.PathMeasured(peer_id="clu_1-9", sent=2)
        bus = overlay_pb2.BusMeasured(
            method="ring", ranks=3, size_bytes=4 << 20, bus_bits_per_s=2_500_000_000
        )
        paths = [operator_pb2.ClusterPath(member_id="clu_1-1", measured=one) for one in (measured, silent)]
        return operator_pb2.GetClusterResponse(cluster=self.cluster(), paths=paths, bus=bus)

    def ListReceipts(self, request: Any, context: Any) -> operator_pb2.ListReceiptsResponse:
        receipt = operator_pb2.Receipt(receipt_id="rct_1", job_id="job_1", billed_ms=61_005, state="posted")
        return operator_pb2.ListReceiptsResponse(receipts=[receipt])

    def GetReceipt(self, request: Any, context: Any) -> operator_pb2.GetReceiptResponse:
        return operator_pb2.GetReceiptResponse(bundle=make_bundle())

    @staticmethod
    def cluster() -> operator_pb2.Cluster:
        member = operator_pb2.ClusterMember(
            member_id="clu_1-1", worker_name="attic", device_ids=["dev_1"], evidence_class="t2"
        )
        return operator_pb2.Cluster(cluster_id="clu_1", phase="ready", members=[member])


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


class FakeJobs(JobsServiceServicer):
    """One job, whose log may break off in the middle."""

    def __init__(self) -> None:
        self.runtimes = [small_runtime("default"), small_runtime("torch", "torch==2.12.0")]
        self.quotes: list[jobs_pb2.GetQuoteRequest] = []
        self.priced = quote()
        self.break_after: int | None = None
        self.hold: Callable[[], None] | None = None
        self.offsets: list[int] = []

    def ListJobs(self, request: Any, context: Any) -> jobs_pb2.ListJobsResponse:
        return jobs_pb2.ListJobsResponse(jobs=[job()])

    def ListRuntimes(self, request: Any, context: Any) -> jobs_pb2.ListRuntimesResponse:
        response = jobs_pb2.ListRuntimesResponse(runtimes=self.runtimes)
        for runtime in response.runtimes:
            runtime.ClearField("lock")
        return response

    def GetRuntime(self, request: jobs_pb2.GetRuntimeRequest, context: Any) -> jobs_pb2.GetRuntimeResponse:
        for runtime in self.runtimes:
            if request.name in (runtime.name, runtime.digest[:12]):
                return jobs_pb2.GetRuntimeResponse(runtime=runtime)
        context.abort(
            grpc.StatusCode.NOT_FOUND, f"no runtime named {request.name!r}: did you mean 'default'?"
        )
        return jobs_pb2.GetRuntimeResponse()

    def GetJob(self, request: jobs_pb2.GetJobRequest, context: Any) -> jobs_pb2.GetJobResponse:
        if request.job not in ("job_1", "raysubmit_1"):
            context.abort(
                grpc.StatusCode.NOT_FOUND, f"no job {request.job!r}; list them to see the right name"
            )
        return jobs_pb2.GetJobResponse(job=job())

    def ExplainJob(self, request: jobs_pb2.ExplainJobRequest, context: Any) -> jobs_pb2.ExplainJobResponse:
        answer = jobs_pb2.ExplainJobResponse(job_id="job_1", status=jobs_pb2.JOB_STATUS_PENDING)
        if request.job == "waiting":
            answer.wait.CopyFrom(wait())
        elif request.job == "job_1":
            answer.placement.CopyFrom(
                scheduling_pb2.JobPlacement(
                    attempt_id="job_1-1",
                    cluster_id="clu_1",
                    phase="running",
                    explanation=["chosen over cellar: nearer"],
                    diameter_us=21_400,
                    devices=2,
                    microcredits_per_hour=750_000,
                )
            )
        else:
            answer.message = "Job was intentionally stopped."
        return answer

    def GetQuote(self, request: jobs_pb2.GetQuoteRequest, context: Any) -> jobs_pb2.GetQuoteResponse:
        self.quotes.append(request)
        if "orch.runtime" in request.metadata:
            context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, "orch.runtime: unknown runtime: did you mean 'default'?"
            )
        return jobs_pb2.GetQuoteResponse(quote=self.priced)

    def ReadJobLog(
        self, request: jobs_pb2.ReadJobLogRequest, context: Any
    ) -> Iterator[jobs_pb2.ReadJobLogResponse]:
        self.offsets.append(request.offset)
        end = len(LOG)
        if self.break_after is not None:
            end, self.break_after = self.break_after, None
        for start in range(request.offset, end, 5):
            yield jobs_pb2.ReadJobLogResponse(offset=start, data=LOG[start : min(start + 5, end)])
        if end < len(LOG):
            context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")
        if self.hold is not None:
            self.hold()

    def StopJob(self, request: Any, context: Any) -> jobs_pb2.StopJobResponse:
        return jobs_pb2.StopJobResponse(stopped=True)


class FakeLedger(LedgerServiceServicer):
    """Two accounts that balance."""

    def ListBalances(self, request: Any, context: Any) -> ledger_pb2.ListBalancesResponse:
        amount = 2**53 + 1
        return ledger_pb2.ListBalancesResponse(
            balances=[
                ledger_pb2.Balance(account_id="supplier:sup_1", asset="gpu_ms:consumer", credits=amount),
                ledger_pb2.Balance(account_id="tenant:abc", asset="gpu_ms:consumer", debits=amount),
            ]
        )

    def PostReceipt(self, request: Any, context: Any) -> ledger_pb2.PostReceiptResponse:
        raise NotImplementedError

    def ListTransfers(self, request: Any, context: Any) -> ledger_pb2.ListTransfersResponse:
        raise NotImplementedError


class Door(grpc.ServerInterceptor):
    """Lets the operator in everywhere, a tenant to the jobs, nobody else anywhere."""

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        given = dict(details.invocation_metadata).get("authorization", "")
        if given == f"Bearer {ADMIN}" or (given == f"Bearer {TENANT}" and "JobsService" in details.method):
            return continuation(details)
        if given == f"Bearer {TENANT}":
            return refusing(grpc.StatusCode.PERMISSION_DENIED, "operator only")
        return refusing(grpc.StatusCode.UNAUTHENTICATED, "unknown token")


def refusing(code: grpc.StatusCode, message: str) -> grpc.RpcMethodHandler[Any, Any]:
    def refuse(request: Any, context: grpc.ServicerContext) -> Any:
        context.abort(code, message)

    return grpc.unary_unary_rpc_method_handler(refuse)


def lines_with(text: str, *words: str) -> Sequence[str]:
    """Lines of a table that hold all the words."""
    return [line for line in text.splitlines() if all(word in line for word in words)]
