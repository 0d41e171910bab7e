"""A gateway on loopback over the fake, and a client with a token."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import aiohttp
import pytest

from orchestrator.gateway.app import Gateway, start_gateway
from orchestrator.gateway.config import GatewayConfig
from tests.gateway.fake_jobs import SECRET, FakeJobs


@dataclass
class Observed:
    """What the observer was told."""

    calls: list[tuple[str, str, int]] = field(default_factory=list)

    def __call__(self, method: str, route: str, status: int, seconds: float) -> None:
        assert seconds >= 0
        self.calls.append((method, route, status))


@pytest.fixture
def jobs() -> FakeJobs:
    return FakeJobs()


@pytest.fixture
def observed() -> Observed:
    return Observed()


@pytest.fixture
def config(observed: Observed) -> GatewayConfig:
    return GatewayConfig(observer=observed, body_idle_timeout_s=0.5, tails_per_tenant_max=2)


@pytest.fixture
async def gateway(jobs: FakeJobs, config: GatewayConfig) -> AsyncIterator[Gateway]:
    started = await start_gateway(jobs, config, host="127.0.0.1", port=0)
    yield started
    await started.close()


@pytest.fixture
async def bare(gateway: Gateway) -> AsyncIterator[aiohttp.ClientSession]:
    """A client without a token."""
    jar = aiohttp.DummyCookieJar()
    base_url = f"http://{gateway.host}:{gateway.port}"
    async with aiohttp.ClientSession(base_url, cookie_jar=jar) as session:
        yield session


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[aiohttp.ClientSession]:
    """A client with the tenant's token."""
    headers = {"Authorization": f"Bearer {SECRET}"}
    base_url = f"http://{gateway.host}:{gateway.port}"
    async with aiohttp.ClientSession(base_url, headers=headers) as session:
        yield session
