"""One network of real processes for the whole run: starting it costs more than any test of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.network import MACHINES, Network, running
from tests.integration.tenants import Tenant

LOG_LINES = 25
"""Of each process, where a test fails: enough to see why."""


@pytest.fixture(scope="session")
def network() -> Iterator[Network]:
    """Control plane, head host, four consumers and a machine of a data centre; nothing may outlive it."""
    with running(Network(), MACHINES) as network:
        yield network


@pytest.fixture(scope="session")
def tenant(network: Network) -> Tenant:
    """Who submits."""
    return Tenant(network, network.create_tenant("acme"))


@pytest.fixture(autouse=True)
def said(request: pytest.FixtureRequest) -> Iterator[None]:
    """The ends of all logs, shown where a test of the network has failed."""
    failed_before = request.session.testsfailed
    yield
    if request.session.testsfailed > failed_before and "network" in request.fixturenames:
        network: Network = request.getfixturevalue("network")
        for path in sorted(network.folder.glob("*.log")):
            lines = path.read_text(errors="replace").splitlines()[-LOG_LINES:]
            sys.stdout.write("\n".join((f"---- {path.name}", *lines, "")))


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    """A working directory for a job."""
    folder = tmp_path / "job"
    folder.mkdir()
    return folder
