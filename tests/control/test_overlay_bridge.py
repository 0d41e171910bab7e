"""Who may use the overlay's bridge: who shows a token that we derived, for as long as its member is wanted."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.adapters.keys import Keys
from orchestrator.cli.errors import CliError
from orchestrator.cli.overlay import overlay_authority, plan_overlay
from orchestrator.cli.serve_settings import listen_address, read_settings
from orchestrator.control.overlay import Beacon, Overlay, bridge_owner
from orchestrator.core.ids import MemberId
from orchestrator.core.jobs import JobStatus, Outcome
from orchestrator.core.policies import Policies
from orchestrator.core.state import State
from orchestrator.gateway.ports import Submission
from tests.control.house import Puppet, house

NETWORK = ipaddress.IPv4Network("198.18.0.0/15")
BEACON = Beacon("198.18.0.1", "203.0.113.1:4242", "")


def an_overlay(keys: Keys, beacons: Sequence[Beacon] = (BEACON,)) -> Overlay:
    return Overlay(overlay_authority(keys), NETWORK, tuple(beacons), keys.bridge_token, keys.probe_key)


async def test_bridge_token_counts_as_long_as_its_member_is_wanted(tmp_path: Path) -> None:
    policies = Policies()
    policies = replace(policies, clusters=replace(policies.clusters, idle_teardown_ms=100))
    async with house(tmp_path, policies) as home:
        tenant, _ = await home.tenant("acme")
        puppet = await Puppet.join(home)
        job = await home.plane.jobs.submit(tenant, Submission("true", "mine"))
        await puppet.until(lambda state: state.jobs[job.job_id].status is JobStatus.RUNNING)
        overlay, loop = an_overlay(home.keys), home.plane.loop

        def member_of(state: State) -> MemberId:
            return next(iter(state.members))

        member_id = await loop.read(member_of)
        token = overlay.bridge_token(member_id)
        assert await bridge_owner(overlay, loop, token) == puppet.worker_id
        attempt = await loop.read(lambda state: state.jobs[job.job_id].attempt_id)
        assert attempt is not None
        puppet.ended[attempt] = (Outcome.SUCCEEDED, 0)
        await home.plane.logs.ship(puppet.worker_id, attempt, 0, b"", final=True)
        await puppet.until(lambda state: not state.wanted_on(puppet.worker_id))
        assert await bridge_owner(overlay, loop, token) is None


@pytest.mark.parametrize(
    "forge", [str.upper, lambda text: text[:-1], lambda text: "mbr_2" + text[5:], lambda _: ""]
)
def test_bridge_token_that_was_not_derived_here_is_nobodys(tmp_path: Path, forge: object) -> None:
    overlay = an_overlay(Keys(tmp_path, founded=False))
    token = overlay.bridge_token("mbr_1")
    assert overlay.bearer(token) == "mbr_1"
    assert callable(forge)
    assert overlay.bearer(forge(token)) == ""


def test_bridge_token_of_another_network_is_nobodys(tmp_path: Path) -> None:
    ours, theirs = (an_overlay(Keys(tmp_path / name, founded=False)) for name in ("ours", "theirs"))
    assert ours.bearer(theirs.bridge_token("mbr_1")) == ""


def planned(**flags: str | tuple[str, ...]) -> tuple[Beacon, ...]:
    """The beacons that members are told of."""
    plan = plan_overlay(read_settings(flags, None), listen_address("session-listen", "203.0.113.1:7444"))
    assert plan is not None
    return plan.beacons


def test_bridge_address_is_told_as_bound_or_as_the_operator_says() -> None:
    mine, other = "198.18.0.2=203.0.113.2:4242", "198.18.0.3=203.0.113.3:4242,203.0.113.3:443"
    one, two = planned(overlay_beacons=(mine, other), overlay_bridge_listen="203.0.113.1:443")
    # Ours carries to the first; the second has one of its own.
    assert (one.bridge, two.bridge) == ("203.0.113.1:443", "203.0.113.3:443")
    # Without a host it is the one by which the control plane was joined.
    assert planned(overlay_beacons=(mine,), overlay_bridge_listen="0.0.0.0:443")[0].bridge == ":443"
    told = planned(
        overlay_beacons=(mine,),
        overlay_bridge_listen="0.0.0.0:8443",
        overlay_bridge_address="overlay.example:443",
    )
    assert told[0].bridge == "overlay.example:443"
    assert planned(overlay_beacons=(mine,))[0].bridge == ""


def test_bridge_address_without_a_bridge_is_refused() -> None:
    with pytest.raises(CliError, match="--overlay-bridge-listen"):
        planned(
            overlay_beacons=("198.18.0.2=203.0.113.2:4242",), overlay_bridge_address="overlay.example:443"
        )
