"""Tenants' shares, explanations and quotes, as the services answer over loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import date
from pathlib import Path

import grpc
import pytest

from orchestrator.api.v1 import jobs_pb2, operator_pb2
from orchestrator.core.jobs import JobStatus
from orchestrator.core.market.pricing import CloudMedian, PricePolicy, Source, auto_asks
from orchestrator.core.policies import Policies
from orchestrator.gateway.ports import Submission
from tests.control.agents import Served, bearer, refused, serving
from tests.control.house import Puppet

MEDIANS = {"RTX4090": CloudMedian(500_000, tuple(Source(name, date(2026, 11, 3)) for name in "abc"))}
HOUR_MS = 3_600_000


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    policies = Policies(medians=MEDIANS, market=auto_asks(MEDIANS, PricePolicy()))
    async with serving(tmp_path, policies) as running:
        yield running


# ---------------------------------------------------------------- tenants


async def test_set_tenant_changes_weight_and_quota_and_is_seen_everywhere(served: Served) -> None:
    tenant_id, _ = await served.house.tenant("acme")
    request = operator_pb2.SetTenantRequest(
        tenant="acme", weight=250, gpus=operator_pb2.QuotaLimit(at_most=4)
    )
    made = (await served.operator.SetTenant(request, metadata=served.admin)).tenant
    assert (made.tenant_id, made.weight, made.quota.gpus) == (tenant_id, 250, 4)
    assert not made.quota.HasField("gpu_ms_per_month")
    lifted = operator_pb2.SetTenantRequest(tenant=tenant_id, gpus=operator_pb2.QuotaLimit())
    made = (await served.operator.SetTenant(lifted, metadata=served.admin)).tenant
    assert (made.weight, made.quota.HasField("gpus")) == (250, False)
    listed = await served.operator.ListTenants(operator_pb2.ListTenantsRequest(), metadata=served.admin)
    assert [one.weight for one in listed.tenants] == [250]
    found = served.house.store.load(Policies()).tenants[tenant_id]
    assert found.weight == 250


async def test_set_tenant_bad_values_are_refused_by_field(served: Served) -> None:
    await served.house.tenant("acme")
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "weight"):
        await served.operator.SetTenant(
            operator_pb2.SetTenantRequest(tenant="acme", weight=0), metadata=served.admin
        )
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "quota.gpus"):
        limit = operator_pb2.QuotaLimit(at_most=2**64 - 1)
        await served.operator.SetTenant(
            operator_pb2.SetTenantRequest(tenant="acme", gpus=limit), metadata=served.admin
        )
    with refused(grpc.StatusCode.NOT_FOUND, "did you mean 'acme'"):
        await served.operator.GetTenant(operator_pb2.GetTenantRequest(tenant="acne"), metadata=served.admin)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "tenant"):
        await served.operator.GetTenant(operator_pb2.GetTenantRequest(), metadata=served.admin)


async def test_get_tenant_tells_what_it_holds_of_the_fleet(served: Served) -> None:
    tenant_id, secret = await served.house.tenant("acme")
    puppet = await Puppet.join(served.house, devices=4)
    job = await served.house.plane.jobs.submit(tenant_id, Submission("true"))
    await puppet.until(lambda state: state.jobs[job.job_id].status is JobStatus.RUNNING)
    asked = operator_pb2.GetTenantRequest(tenant="acme")
    found = await served.operator.GetTenant(asked, metadata=served.admin)
    assert (found.gpus_held, found.share_ppm, found.fair_ppm, found.jobs_queued) == (1, 250_000, 10**6, 0)
    assert len(found.month) == len("2026-11")
    with refused(grpc.StatusCode.PERMISSION_DENIED):
        await served.operator.GetTenant(asked, metadata=bearer(secret))


# ---------------------------------------------------------------- explanations


async def test_explain_job_waiting_and_placed_are_its_tenants_and_the_operators(served: Served) -> None:
    tenant_id, secret = await served.house.tenant("acme")
    _, other = await served.house.tenant("other")
    wanted = {"orch.gpus": "2", "orch.gpu_model": "RTX4090", "orch.max_price": "0.5"}
    job = await served.house.plane.jobs.submit(tenant_id, Submission("true", "mine", metadata=wanted))
    request = jobs_pb2.ExplainJobRequest(job="mine")
    found = await served.jobs.ExplainJob(request, metadata=bearer(secret))
    assert (found.job_id, found.HasField("placement")) == (job.job_id, False)
    assert (found.wait.needed, found.wait.fitting, found.wait.jobs_before) == (2, 0, 0)
    assert "2 needed" in found.wait.reason
    assert found.wait.estimate
    assert not found.wait.HasField("estimated_start")
    puppet = await Puppet.join(served.house, devices=2)
    await puppet.until(lambda state: state.jobs[job.job_id].status is JobStatus.RUNNING)
    found = await served.jobs.ExplainJob(request, metadata=served.admin)
    assert (found.HasField("wait"), found.placement.devices) == (False, 2)
    market = auto_asks(MEDIANS, PricePolicy())["RTX4090"].microcredits_per_gpu_hour
    assert found.placement.microcredits_per_hour == 2 * market
    assert found.placement.explanation
    # One machine: nothing to measure, and nothing else that would have done.
    assert (found.placement.predicted_diameter_us, found.placement.pairs) == (0, 0)
    assert not found.placement.HasField("runner_up")
    with refused(grpc.StatusCode.NOT_FOUND):
        await served.jobs.ExplainJob(request, metadata=bearer(other))
    with refused(grpc.StatusCode.UNAUTHENTICATED):
        await served.jobs.ExplainJob(request)


async def test_get_job_tells_its_time_limit_and_when_the_try_that_runs_comes_to_it(served: Served) -> None:
    tenant_id, secret = await served.house.tenant("acme")
    jobs = served.house.plane.jobs
    job = await jobs.submit(tenant_id, Submission("true", metadata={"orch.time_limit": "90m"}))
    request = jobs_pb2.GetJobRequest(job=job.job_id)
    found = (await served.jobs.GetJob(request, metadata=bearer(secret))).job
    assert (found.time_limit_ms, found.HasField("time_limit_at")) == (90 * 60_000, False)
    puppet = await Puppet.join(served.house, devices=1)
    await puppet.until(lambda state: state.jobs[job.job_id].status is JobStatus.RUNNING)
    found = (await served.jobs.GetJob(request, metadata=bearer(secret))).job
    assert found.time_limit_at.ToMilliseconds() == found.started_at.ToMilliseconds() + 90 * 60_000


# ---------------------------------------------------------------- quotes


async def test_get_quote_prices_what_is_free_beside_the_clouds(served: Served) -> None:
    _, secret = await served.house.tenant("acme")
    await Puppet.join(served.house, devices=2)
    request = jobs_pb2.GetQuoteRequest(
        metadata={"orch.gpus": "2", "orch.gpu_model": "rtx 4090"}, duration_ms=HOUR_MS, currency="stablecoin"
    )
    quote = (await served.jobs.GetQuote(request, metadata=bearer(secret))).quote
    assert (quote.available_now, quote.model, quote.gpus, quote.currency) == (
        True,
        "RTX4090",
        2,
        "stablecoin",
    )
    assert quote.HasField("available_at")
    assert quote.HasField("diameter_us")
    assert (quote.cloud_median_microcredits, [one.provider for one in quote.sources]) == (
        500_000,
        list("abc"),
    )
    assert quote.below_median_bp >= 1_000
    fees = quote.payment_fee_microcredits + quote.reservation_fee_microcredits
    assert quote.total_microcredits == quote.price_microcredits + fees


@pytest.mark.parametrize(
    ("metadata", "hours_ms", "currency", "said"),
    [
        ({"orch.gpu_model": "RTX409O"}, HOUR_MS, "", "did you mean 'RTX4090'"),
        ({"orch.gpus": "0", "orch.gpu_model": "RTX4090"}, HOUR_MS, "", "contradicts"),
        ({"orch.gpu": "1"}, HOUR_MS, "", "did you mean 'orch.gpus'"),
        ({"orch.gpu_model": "RTX4090"}, 0, "", "hours"),
        ({"orch.gpu_model": "RTX4090"}, 2**63, "", "hours"),
        ({"orch.gpu_model": "RTX4090"}, HOUR_MS, "stablecon", "did you mean 'stablecoin'"),
    ],
)
async def test_get_quote_bad_input_is_refused_with_the_nearest(
    served: Served, metadata: dict[str, str], hours_ms: int, currency: str, said: str
) -> None:
    request = jobs_pb2.GetQuoteRequest(metadata=metadata, duration_ms=hours_ms, currency=currency)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, said):
        await served.jobs.GetQuote(request, metadata=served.admin)
