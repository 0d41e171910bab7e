"""What tests of real boxes need of the machine, and where they are made."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from orchestrator.adapters.box.tiers import Found, detect
from tests.adapters.box.harness import Place, inside, pretended_host, sh


@pytest.fixture(scope="session")
def tier() -> Found:
    return detect()


@pytest.fixture(scope="module")
def _place(tier: Found) -> Iterator[Place]:
    if tier.tier == "none":
        pytest.skip(f"needs a machine that can make boxes: {tier.reason}")
    with pretended_host() as place:
        yield place


@pytest.fixture
def place(_place: Place) -> Iterator[Place]:
    """The pretended host, on which this test's thread is."""
    with inside(_place.host):
        yield _place
    assert "orch" not in sh(f"ip netns exec {_place.host} nft list tables")
