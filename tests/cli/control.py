"""A control plane of canned answers behind a real gRPC server, for the command line to talk to."""

# ruff: noqa: N802 -- gRPC calls methods by the names of the protos

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grpc

from orchestrator.api.v1 import (
    authority_pb2,
    delivery_pb2,
    jobs_pb2,
    ledger_pb2,
    operator_pb2,
    overlay_pb2,
    overview_pb2,
    scheduling_pb2,
    telemetry_pb2,
)
from orchestrator.api.v1.ledger_pb2_grpc import LedgerServiceServicer
from orchestrator.api.v1.operator_pb2_grpc import OperatorServiceServicer
from tests.cli.fake_reservations import FakeReservations
from tests.cli.samples import job, quote, small_runtime, tenant, wait, worker
from tests.cli.status_samples import status, top
from tests.receipts.samples import make_bundle

ADMIN = "adm_secret-of-the-operator"
TENANT = "tnt_secret-of-a-tenant"
HOSTILE_NAME = "lab\x1b[31m[bold]\nsecond"
SECRET = "sup_fresh-secret"
LOG = b"epoch 1\n\x00\xff binary\nepoch 2\n"


class FakeOperator(OperatorServiceServicer):
    """Remembers what it was asked."""

    def __init__(self) -> None:
        self.created: list[operator_pb2.CreateTokenRequest] = []
        self.tenants: list[operator_pb2.CreateTenantRequest] = []
        self.asked: list[Any] = []
        """Requests about workers and authorities."""
        self.held: list[int] = []
        """Devices held at the next looks at the worker; one after the last."""
        self.status = status()
        self.tops: list[overview_pb2.GetTopRequest] = []
        self.away = False
        """Whether it refuses to say what is on top, as while it restarts."""
        self.groups = scheduling_pb2.ListGroupsResponse(bound_ms=20)
        self.group_map = scheduling_pb2.GetGroupMapResponse(bound_ms=20)

    def GetStatus(self, request: Any, context: Any) -> operator_pb2.GetStatusResponse:
        return self.status

    def GetTop(self, request: overview_pb2.GetTopRequest, context: Any) -> overview_pb2.GetTopResponse:
        if self.away:
            context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")
        self.tops.append(request)
        return top()

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
            microcredits_committed=2_000_000,
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

    def GetAuthority(self, request: Any, context: Any) -> authority_pb2.GetAuthorityResponse:
        return authority_pb2.GetAuthorityResponse(authorities=self.authorities(), workers_behind=1)

    def RotateAuthority(self, request: Any, context: Any) -> authority_pb2.RotateAuthorityResponse:
        return authority_pb2.RotateAuthorityResponse(authorities=self.authorities())

    def RetireAuthority(self, request: Any, context: Any) -> authority_pb2.RetireAuthorityResponse:
        self.asked.append(request)
        return authority_pb2.RetireAuthorityResponse(authorities=self.authorities()[:1])

    @staticmethod
    def authorities() -> list[authority_pb2.Authority]:
        return [
            authority_pb2.Authority(generation=2, pin="newest-pin"),
            authority_pb2.Authority(generation=1, pin="older-pin"),
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
        gpu = delivery_pb2.DeliveredDevice(uuid="GPU-5f1c", model="RTX4090")
        ranks = [
            delivery_pb2.RankDelivered(
                rank=0,
                worker_name="attic",
                devices=[gpu],
                evidence_class="t2",
                rtt_us=21_400,
                bandwidth_bits_per_s=412_000_000,
                head_rtt_us=3_100,
                head_bandwidth_bits_per_s=34_800_000,
                bus_bits_per_s=2_500_000_000,
            ),
            delivery_pb2.RankDelivered(rank=1, worker_name="shed", evidence_class="t0"),
        ]
        return operator_pb2.GetClusterResponse(
            cluster=self.cluster(), paths=paths, bus=bus, certificate=ranks
        )

    def ListGroups(
        self, request: scheduling_pb2.ListGroupsRequest, context: Any
    ) -> scheduling_pb2.ListGroupsResponse:
        self.asked.append(request)
        return self.groups

    def GetGroupMap(self, request: Any, context: Any) -> scheduling_pb2.GetGroupMapResponse:
        return self.group_map

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


class FakeJobs(FakeReservations):
    """One job, whose log may break off in the middle."""

    def __init__(self) -> None:
        super().__init__()
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
                    predicted_diameter_us=18_000,
                    pairs=3,
                    pairs_measured=2,
                    runner_up=scheduling_pb2.RunnerUp(
                        machines="cellar in place of attic",
                        microcredits_per_hour=870_000,
                        diameter_us=19_000,
                        lost_by="dearer by 0.12 credits an hour",
                    ),
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
