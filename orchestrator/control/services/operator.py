"""What an operator does: tenants, tokens, and looking at the network. The door has checked the token."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.api.v1 import operator_pb2
from orchestrator.control.secrets import digest_of, pinned
from orchestrator.control.services import views
from orchestrator.control.services.operator_groups import GroupViews
from orchestrator.control.services.operator_overview import OverviewViews
from orchestrator.control.services.operator_workers import WorkerActions
from orchestrator.control.services.surroundings import Surroundings
from orchestrator.control.services.workers import Sample
from orchestrator.control.wire import bus_to
from orchestrator.control.words import word
from orchestrator.core import messages as m
from orchestrator.core.clusters import ClusterPhase
from orchestrator.core.decisions.clusters import delivered
from orchestrator.core.decisions.operators import find_tenant
from orchestrator.core.errors import RefusalCode, RefusedError, invalid, not_found
from orchestrator.core.ids import ClusterId, JobId, SupplierId, TenantId, TokenId, WorkerId
from orchestrator.core.queries.certificate import certificate
from orchestrator.core.queries.tenant_standing import tenant_standing
from orchestrator.core.supply.fleet import TokenRole

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import grpc.aio

    from orchestrator.control.authority import Authority
    from orchestrator.control.loop import Loop
    from orchestrator.control.sessions import Sessions
    from orchestrator.core.state import State

    Context = grpc.aio.ServicerContext[Any, Any]

HOUR_S = 3600

DEFAULT_TTL_S = {
    TokenRole.OPERATOR: 30 * 24 * HOUR_S,
    TokenRole.TENANT: 90 * 24 * HOUR_S,
    # A join token is used within minutes of being handed over.
    TokenRole.SUPPLIER: HOUR_S,
}

TTL_S_MAX = 366 * 24 * HOUR_S
"""What the core takes at most; checked here so that the multiplication below stays small."""

SECRET_PREFIX = {role: f"orch_{role.value}" for role in TokenRole}


class OperatorServicer(OverviewViews, GroupViews, WorkerActions):
    """Reads whole tables in one go: an operator's questions are few."""

    def __init__(
        self,
        loop: Loop,
        sessions: Sessions,
        samples: Mapping[WorkerId, Sample],
        surroundings: Surroundings,
        new_id: Callable[[str], str],
        new_secret: Callable[[str, str], str],
        authority: Authority,
        authority_changed: Callable[[], None],
    ) -> None:
        """``new_secret(prefix, request_id)`` gives the same secret for the same non-empty request id."""
        super().__init__(loop, sessions, samples, authority, authority_changed)
        self._surroundings = surroundings
        self._new_id = new_id
        self._new_secret = new_secret

    # ------------------------------------------------------------ tenants and tokens

    async def CreateTenant(  # noqa: N802 -- the proto's name
        self, request: operator_pb2.CreateTenantRequest, _context: Context
    ) -> operator_pb2.CreateTenantResponse:
        """A repeated request_id gets the same tenant."""
        request_id = word("request_id", request.request_id, empty=True)
        command = m.CreateTenant(TenantId(self._new_id("ten")), request.name, request_id)
        tenant_id = TenantId(str((await self._loop.submit(command)).result))
        tenant = await self._loop.read(lambda state: state.tenants[tenant_id])
        return operator_pb2.CreateTenantResponse(tenant=views.tenant_message(tenant))

    async def ListTenants(  # noqa: N802 -- the proto's name
        self, _request: operator_pb2.ListTenantsRequest, _context: Context
    ) -> operator_pb2.ListTenantsResponse:
        """All of them."""
        tenants = await self._loop.read(lambda state: list(state.tenants.values()))
        return operator_pb2.ListTenantsResponse(tenants=[views.tenant_message(one) for one in tenants])

    async def GetTenant(  # noqa: N802 -- the proto's name
        self, request: operator_pb2.GetTenantRequest, _context: Context
    ) -> operator_pb2.GetTenantResponse:
        """One of them, with what it holds and used."""
        name = word("tenant", request.tenant)

        def find(state: State) -> operator_pb2.GetTenantResponse:
            tenant = find_tenant(state, name)
            found = tenant_standing(state, tenant, state.time_ms(self._loop.now()))
            return views.tenant_standing_message(tenant, found)

        return await self._loop.read(find)

    async def SetTenant(  # noqa: N802 -- the proto's name
        self, request: operator_pb2.SetTenantRequest, _context: Context
    ) -> operator_pb2.SetTenantResponse:
        """Weight and quota; repeating it changes nothing."""
        command = m.SetTenant(
            word("tenant", request.tenant),
            weight=request.weight if request.HasField("weight") else None,
            gpus=_limit(request, "gpus"),
            gpu_ms_per_month=_limit(request, "gpu_ms_per_month"),
            microcredits_per_month=_limit(request, "microcredits_per_month"),
        )
        tenant_id = TenantId(str((await self._loop.submit(command)).result))
        tenant = await self._loop.read(lambda state: state.tenants[tenant_id])
        return operator_pb2.SetTenantResponse(tenant=views.tenant_message(tenant))

    async def CreateToken(  # noqa: N802 -- the proto's name
        self, request: operator_pb2.CreateTokenRequest, _context: Context
    ) -> operator_pb2.CreateTokenResponse:
        """A repeated request_id gets the same token and the same secret, which is derived and not stored."""
        role = views.ROLES.get(request.role)
        if role is None:
            raise invalid("role", "role must be operator, tenant or supplier")
        ttl_s = request.ttl_seconds or DEFAULT_TTL_S[role]
        if ttl_s > TTL_S_MAX:
            raise invalid("ttl_seconds", f"ttl_seconds must be at most {TTL_S_MAX}")
        request_id = word("request_id", request.request_id, empty=True)
        secret = self._new_secret(SECRET_PREFIX[role], request_id)
        digest = digest_of(secret)
        await self._loop.read(lambda state: _check_fresh(state, digest, request_id))
        command = m.CreateToken(
            token_id=TokenId(self._new_id("tok")),
            role=role,
            subject=request.subject,
            secret_sha256=digest,
            ttl_ms=ttl_s * 1000,
            supplier_id=SupplierId(self._new_id("sup")),
            request_id=request_id,
            head_host=request.head_host,
        )
        token_id = str((await self._loop.submit(command)).result)
        token = await self._loop.read(lambda state: self._token(state, token_id))
        return operator_pb2.CreateTokenResponse(token=token, secret=pinned(secret, self._authority.pin))

    async def ListTokens(  # noqa: N802 -- the proto's name
        self, _request: operator_pb2.ListTokensRequest, _context: Context
    ) -> operator_pb2.ListTokensResponse:
        """All of them, without secrets."""
        tokens = await self._loop.read(lambda state: [self._token(state, key) for key in state.tokens])
        return operator_pb2.ListTokensResponse(tokens=tokens)

    async def RevokeToken(  # noqa: N802 -- the proto's name
        self, request: operator_pb2.RevokeTokenRequest, _context: Context
    ) -> operator_pb2.RevokeTokenResponse:
        """Ends a token at once."""
        token_id = TokenId(word("token_id", request.token_id))
        await self._loop.submit(m.RevokeToken(token_id))
        token = await self._loop.read(lambda state: self._token(state, token_id))
        return operator_pb2.RevokeTokenResponse(token=token)

    def _token(self, state: State, token_id: str) -> operator_pb2.Token:
        return views.token_message(state.tokens[token_id], state.time_ms(self._loop.now()))

    # ------------------------------------------------------------ clusters and receipts

    async def ListClusters(  # noqa: N802 -- the proto's name
        self, request: operator_pb2.ListClustersRequest, _context: Context
    ) -> operator_pb2.ListClustersResponse:
        """Open ones, or all."""
        everything = request.all
        clusters = await self._loop.read(lambda state: _clusters(state, everything=everything))
        return operator_pb2.ListClustersResponse(clusters=clusters)

    async def GetCluster(  # noqa: N802 -- the proto's name
        self, request: operator_pb2.GetClusterRequest, _context: Context
    ) -> operator_pb2.GetClusterResponse:
        """One of them."""
        cluster_id = ClusterId(word("cluster_id", request.cluster_id))

        def find(state: State) -> operator_pb2.GetClusterResponse:
            cluster = state.clusters.get(cluster_id)
            if cluster is None:
                raise not_found("cluster", cluster_id)
            shown = views.cluster_message(state, cluster, _jobs_by_cluster(state).get(cluster_id, []))
            paths, bus = delivered(state, cluster)
            return operator_pb2.GetClusterResponse(
                cluster=shown,
                paths=[views.path_message(path) for path in paths],
                bus=bus_to(bus),
                certificate=[views.rank_message(one) for one in certificate(state, cluster)],
            )

        return await self._loop.read(find)

    async def ListReceipts(  # noqa: N802 -- the proto's name
        self, request: operator_pb2.ListReceiptsRequest, _context: Context
    ) -> operator_pb2.ListReceiptsResponse:
        """All, or those of one job, by job id or submission id."""
        name = word("job_id", request.job_id, empty=True)
        return operator_pb2.ListReceiptsResponse(
            receipts=await self._loop.read(lambda state: _receipts(state, name))
        )

    async def GetReceipt(  # noqa: N802 -- the proto's name
        self, request: operator_pb2.GetReceiptRequest, _context: Context
    ) -> operator_pb2.GetReceiptResponse:
        """The bundle that proves it."""
        receipt_id = word("receipt_id", request.receipt_id)

        def find(state: State) -> Callable[[], bytes]:
            receipt = state.receipts.get(receipt_id)
            if receipt is None:
                raise not_found("receipt", receipt_id)
            if not receipt.envelope:
                raise RefusedError(RefusalCode.UNAVAILABLE, "this receipt is not signed yet; ask again")
            return views.bundle_parts(state, receipt, self._surroundings.addresses.receipt_public_key)

        build = await self._loop.read(find)
        return operator_pb2.GetReceiptResponse(bundle=await asyncio.to_thread(build))


def _limit(
    request: operator_pb2.SetTenantRequest,
    field: Literal["gpus", "gpu_ms_per_month", "microcredits_per_month"],
) -> m.QuotaLimit | None:
    """None where the request leaves it as it is."""
    if not request.HasField(field):
        return None
    limit: operator_pb2.QuotaLimit = getattr(request, field)
    return m.QuotaLimit(limit.at_most if limit.HasField("at_most") else None)


def _check_fresh(state: State, secret_sha256: str, request_id: str) -> None:
    """A request id that was forgotten must not bring an old secret to life again."""
    if secret_sha256 in state.token_by_hash and f"CreateToken/{request_id}" not in state.requests:
        raise RefusedError(
            RefusalCode.CONFLICT, "this request_id was used before; take a new one", "request_id"
        )


def _jobs_by_cluster(state: State) -> dict[ClusterId, list[str]]:
    jobs: dict[ClusterId, list[str]] = {}
    for attempt in state.attempts.values():
        jobs.setdefault(attempt.cluster_id, []).append(attempt.job_id)
    return jobs


def _clusters(state: State, *, everything: bool) -> list[operator_pb2.Cluster]:
    jobs = _jobs_by_cluster(state)
    return [
        views.cluster_message(state, cluster, jobs.get(cluster.cluster_id, []))
        for cluster in state.clusters.values()
        if everything or cluster.phase is not ClusterPhase.CLOSED
    ]


def _receipts(state: State, name: str) -> list[operator_pb2.Receipt]:
    wanted: set[JobId] | None = None
    if name:
        wanted = {JobId(name)}
        wanted |= {job.job_id for job in state.jobs.values() if job.submission_id == name}
    receipts = [
        receipt
        for receipt in state.receipts.values()
        if wanted is None or state.leases[receipt.lease_id].job_id in wanted
    ]
    receipts.sort(key=lambda receipt: (receipt.start_ms, receipt.lease_id, receipt.sequence))
    return [views.receipt_message(state, receipt) for receipt in receipts]
