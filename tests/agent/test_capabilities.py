"""What an owner asks of isolation and overlay, against what his machine can do."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from orchestrator.adapters.box import tiers
from orchestrator.adapters.box.tiers import Found
from orchestrator.adapters.container import tiers as containers
from orchestrator.agent.capabilities import found_capabilities, runtimes_fault
from orchestrator.agent.identity import StartError
from orchestrator.agent.inventory import Capabilities, Offer
from orchestrator.core.supply.fleet import REMARK_CHARACTERS_MAX

MISSING = "programs for boxes are missing; run: apt-get install bubblewrap"
NO_UV = "uv, which installs runtimes, was not found; install it: pip install uv"
NO_TUN = "the overlay cannot use /dev/net/tun; run `modprobe tun`"


def look(tier: str, fault: str = "", lacking: str = "", **asked: str | int) -> Capabilities:
    """On a machine that can do ``tier``, an overlay unless there is a ``fault``, runtimes unless some is ``lacking``."""
    reason = MISSING if tier == "none" else "a trial box was made"
    offer = Offer(**asked)  # type: ignore[arg-type]
    return found_capabilities(offer, lambda: Found(tier, reason), lambda: fault, lambda: lacking)


def never() -> Found:
    raise AssertionError("nobody has to look")


@pytest.mark.parametrize("tier", ["box", "container"])
@pytest.mark.parametrize("head_slots", [0, 2])
def test_capabilities_by_default_are_the_strongest_there_are(tier: str, head_slots: int) -> None:
    assert look(tier, head_slots=head_slots) == Capabilities(tier, "nebula")


def test_capabilities_machine_that_can_do_nothing_says_why_and_how_to_consent() -> None:
    found = look("none")
    assert (found.isolation, found.overlay) == ("none", "none")
    (remark,) = found.remarks
    assert MISSING in remark
    assert "or consent with --isolation none" in remark


def test_capabilities_owner_who_wants_no_isolation_gets_none_without_a_look() -> None:
    assert found_capabilities(Offer(isolation="none"), never, lambda: "x") == Capabilities("none", "none")


@pytest.mark.parametrize("tier", ["box", "container"])
def test_capabilities_machine_that_can_build_no_runtime_has_no_isolation_and_says_why(tier: str) -> None:
    found = look(tier, lacking=NO_UV)
    assert (found.isolation, found.overlay) == ("none", "none")
    assert found.remarks == (
        f"no isolation, so no job comes here: {NO_UV}; or consent with --isolation none",
    )


def test_capabilities_box_asked_for_where_no_runtime_can_be_built_ends_the_start() -> None:
    with pytest.raises(StartError, match="--isolation box: this machine can do none at most: uv, "):
        look("box", lacking=NO_UV, isolation="box")


def test_capabilities_machine_that_lacks_more_than_runtimes_says_so_first() -> None:
    (remark,) = look("none", lacking=NO_UV).remarks
    assert MISSING in remark


def test_runtimes_fault_without_uv_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "uv, which installs runtimes, was not found; install it" in runtimes_fault()
    (tmp_path / "uv").touch(mode=0o755)
    assert runtimes_fault() == ""


@pytest.mark.parametrize("asked", ["auto", "box", "none"])
def test_capabilities_containers_are_looked_for_only_where_they_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    monkeypatch.setattr(containers, "detect", never)
    monkeypatch.setattr(tiers, "detect", lambda: Found("box", "a trial box was made"))
    found = found_capabilities(Offer(isolation=asked), None, lambda: "", lambda: "")
    assert found.isolation == ("none" if asked == "none" else "box")


def test_capabilities_container_asked_for_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiers, "detect", never)
    monkeypatch.setattr(containers, "detect", lambda: Found("box", "no containers: podman is not installed"))
    with pytest.raises(StartError, match="this machine can do box at most: no containers: podman is not"):
        found_capabilities(Offer(isolation="container"), None, lambda: "", lambda: "")


@pytest.mark.parametrize(("asked", "tier"), [("box", "none"), ("container", "none"), ("container", "box")])
def test_capabilities_isolation_asked_for_by_name_and_impossible_ends_the_start(
    asked: str, tier: str
) -> None:
    with pytest.raises(StartError, match=f"--isolation {asked}: this machine can do {tier} at most: "):
        look(tier, isolation=asked)


def test_capabilities_weaker_isolation_than_possible_is_given_as_asked() -> None:
    assert look("container", isolation="box").isolation == "box"


def test_capabilities_without_overlay_say_what_is_left() -> None:
    found = look("box", NO_TUN)
    assert found == Capabilities("box", "none", (f"serves one-machine clusters only: {NO_TUN}",))


def test_capabilities_overlay_that_the_owner_does_not_want_is_not_looked_for() -> None:
    found = look("box", overlay="none")
    assert (found.isolation, found.overlay) == ("box", "none")
    assert "--overlay none was asked for" in found.remarks[0]


@pytest.mark.parametrize(
    ("tier", "isolation", "fault", "said"),
    [
        ("box", "auto", NO_TUN, "modprobe tun"),
        ("none", "auto", "", "apt-get install bubblewrap"),
        ("box", "none", "", "leave one of the two flags out"),
    ],
)
def test_capabilities_overlay_asked_for_by_name_and_impossible_ends_the_start(
    tier: str, isolation: str, fault: str, said: str
) -> None:
    with pytest.raises(StartError, match=f"--overlay nebula: .*{said}"):
        look(tier, fault, isolation=isolation, overlay="nebula")


def test_capabilities_remark_of_a_talkative_tool_is_one_that_the_network_takes() -> None:
    (remark,) = look("box", "a\nb\x1b[2J" + "x" * 1000).remarks
    assert remark.isprintable()
    assert len(remark) == REMARK_CHARACTERS_MAX
