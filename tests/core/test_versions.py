"""Which agents are worked with."""

from __future__ import annotations

from importlib.metadata import version

import pytest

from orchestrator.core.errors import RefusalCode, RefusedError
from orchestrator.core.supply.versions import (
    NEWEST,
    OLDEST,
    check_version,
    is_outdated,
    release_name,
    release_of,
    upgrade_notice,
)


def test_newest_release_is_the_one_installed() -> None:
    assert release_of(version("ray-gpu-orchestrator")) == NEWEST


def test_window_reaches_from_the_oldest_to_the_newest() -> None:
    oldest, newest = (".".join(map(str, release)) for release in (OLDEST, NEWEST))
    for agent in (f"{oldest}.0", f"{newest}.99", f"{newest}.0.dev1+local"):
        check_version(agent)
        assert not is_outdated(agent)
    assert is_outdated("0.0.9")


@pytest.mark.parametrize("agent", ["9.0.0", f"{NEWEST[0]}.{NEWEST[1] + 1}.0"])
def test_newer_agent_is_asked_to_come_back(agent: str) -> None:
    with pytest.raises(RefusedError, match="newer than this control plane") as caught:
        check_version(agent)
    assert caught.value.code is RefusalCode.UNAVAILABLE


@pytest.mark.parametrize("agent", ["", "latest", "1", "0.1" + "9" * 50, "0.2\n"])
def test_what_is_no_version_is_refused_by_field(agent: str) -> None:
    with pytest.raises(RefusedError) as caught:
        check_version(agent)
    assert caught.value.field == "hello.agent_version"


def test_upgrade_notice_says_what_and_until_when() -> None:
    assert "no new work in 3 days" in upgrade_notice("0.0.9", 3)
    assert "orch worker upgrade" in upgrade_notice("0.0.9", 0)


@pytest.mark.parametrize(
    ("version", "named"),
    [("0.1.0", "0.1"), ("0.2.7.dev9+g1234", "0.2"), ("0.0.9", "outdated"), ("", "")],
)
def test_release_name_is_of_few_values_whatever_is_said(version: str, named: str) -> None:
    assert release_name(version) == named
