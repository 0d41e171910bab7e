"""Containers are tried once for all tests that need one."""

from __future__ import annotations

import pytest

from orchestrator.adapters.box.tiers import Found
from orchestrator.adapters.container.tiers import detect


@pytest.fixture(scope="session")
def container_tier() -> Found:
    """What this machine can do, with a container as the best."""
    return detect()
