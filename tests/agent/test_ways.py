"""How a member's overlay leaves the machine: what the agent writes, and what becomes of it beside a real nebula."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, cast

import pytest

from orchestrator.adapters.node_records import OverlayBeacon, OverlayEntry
from orchestrator.adapters.overlay.bridge import LOOPBACK, read_config, read_token
from orchestrator.adapters.overlay.process import interface_name
from orchestrator.adapters.overlay.tunnels import NONE, Tunnels
from orchestrator.adapters.process_tree import descendants
from orchestrator.agent.housing import Housing, Room, box_name
from orchestrator.agent.runtimes import Runtimes
from orchestrator.agent.ways import CREDENTIAL_FILE, OverlayWay, bridge_file
from tests.adapters.overlay.test_bridge import BRIDGE_PORT, TOKEN, bridge_on_hub, server_tls
from tests.adapters.overlay.underlay import (
    ECHO_PORT,
    LIGHTHOUSE_ADDRESS,
    LIGHTHOUSE_PORT,
    NEEDS,
    STREAM,
    Box,
    Talk,
    Underlay,
    inside,
    open_box,
    wall_s,
)
from tests.polling import wait_until

FIRST_PORT = 23_000
DIRECT = OverlayBeacon("198.18.0.1", "203.0.113.1:4242", "")
BRIDGED = OverlayBeacon("198.18.0.2", ":4242", ":443")
NAMED = OverlayBeacon("198.18.0.3", "203.0.113.3:4242", "overlay.example:8443")


def a_housing(tmp_path: Path, transport: str) -> Housing:
    """It builds no runtime here."""
    return Housing(
        Room(1 << 30, 1),
        cast("Runtimes", None),
        beacon_host="control.example",
        transport=cast("Literal['auto', 'udp', 'tls']", transport),
        trust_file=tmp_path / "trust.pem",
    )


def an_entry(*beacons: OverlayBeacon, certificate: str = "certificate") -> OverlayEntry:
    return OverlayEntry(
        "198.18.1.1/15", certificate, "authorities", "cluster-one", beacons, (), bridge_token=TOKEN
    )


def entered(tmp_path: Path, transport: str, *beacons: OverlayBeacon) -> Path:
    """The overlay folder of a member that was let in."""
    member_dir = tmp_path / "mbr_1"
    (member_dir / "overlay").mkdir(parents=True, exist_ok=True)
    a_housing(tmp_path, transport).enter(member_dir, an_entry(*beacons), FIRST_PORT)
    return member_dir / "overlay"


def hosts_of(config: Path) -> dict[str, list[str]]:
    """Which beacon is looked for where."""
    hosts: dict[str, list[str]] = json.loads(config.read_text())["static_host_map"]
    return hosts


@pytest.mark.parametrize(
    ("transport", "beacons", "configs"),
    [
        ("auto", (DIRECT, BRIDGED), {"config.json", "bridged.json"}),
        ("auto", (DIRECT,), {"config.json"}),
        ("udp", (DIRECT, BRIDGED), {"config.json"}),
        ("tls", (DIRECT, BRIDGED), {"bridged.json"}),
    ],
)
def test_enter_writes_the_ways_that_are_asked_for_and_there(
    tmp_path: Path, transport: str, beacons: tuple[OverlayBeacon, ...], configs: set[str]
) -> None:
    folder = entered(tmp_path, transport, *beacons)
    assert {name for name in ("config.json", "bridged.json") if (folder / name).exists()} == configs


def test_enter_tls_without_any_bridge_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--overlay-bridge-listen"):
        entered(tmp_path, "tls", DIRECT)


def test_enter_bridges_lead_to_their_beacons_and_keep_the_token_to_themselves(tmp_path: Path) -> None:
    folder = entered(tmp_path, "auto", DIRECT, BRIDGED, NAMED)
    assert hosts_of(folder / "config.json") == {
        "198.18.0.1": ["203.0.113.1:4242"],
        "198.18.0.2": ["control.example:4242"],
        "198.18.0.3": ["203.0.113.3:4242"],
    }
    # Over the bridges no beacon is there but those that have one.
    assert hosts_of(folder / "bridged.json") == {
        "198.18.0.2": [f"{LOOPBACK}:{FIRST_PORT}"],
        "198.18.0.3": [f"{LOOPBACK}:{FIRST_PORT + 1}"],
    }
    first, second = (read_config((folder / bridge_file(number)).read_text()) for number in (0, 1))
    assert (first.server_host, first.server_port) == ("control.example", 443)
    assert (second.server_host, second.server_port) == ("overlay.example", 8443)
    assert first.authorities_path == str(tmp_path / "trust.pem")
    assert read_token(Path(first.token_path)) == TOKEN
    assert not [path for path in folder.glob("*.json") if TOKEN in path.read_text()]
    assert (folder / CREDENTIAL_FILE).stat().st_mode & 0o077 == 0


def test_enter_again_touches_the_configuration_for_what_is_new_only(tmp_path: Path) -> None:
    folder = entered(tmp_path, "auto", BRIDGED)
    watched = ("config.json", "bridged.json", bridge_file(0))
    before = [(folder / name).stat().st_mtime_ns for name in watched]
    entered(tmp_path, "auto", BRIDGED)
    assert [(folder / name).stat().st_mtime_ns for name in watched] == before
    renewed = an_entry(BRIDGED, certificate="renewed")
    a_housing(tmp_path, "auto").enter(folder.parent, renewed, FIRST_PORT)
    after = [(folder / name).stat().st_mtime_ns for name in watched]
    # The keeper reloads nebula; the bridge, which has nothing to do with it, is left alone.
    assert [now != then for now, then in zip(after, before, strict=True)] == [True, True, False]


def test_enter_with_another_setting_renews_the_way_that_is_in_use(tmp_path: Path) -> None:
    folder = entered(tmp_path, "udp", BRIDGED)
    before = (folder / "config.json").stat().st_mtime_ns
    a_housing(tmp_path, "tls").enter(folder.parent, an_entry(BRIDGED, certificate="renewed"), FIRST_PORT)
    assert (folder / "config.json").stat().st_mtime_ns != before


@contextlib.contextmanager
def a_way(tmp_path: Path, underlay: Underlay, host: str) -> Iterator[tuple[OverlayWay, Box]]:
    """That of a member on this host, as the agent prepares it."""
    member_dir = tmp_path / "mbr_21"
    member_dir.mkdir()
    housing = a_housing(tmp_path / "tls", "auto")
    housing.trust_file = tmp_path / "ca.pem"
    now_s = wall_s()
    issued = underlay.authority.issue(
        "mbr_21",
        "198.18.0.21/15",
        ["cluster-one"],
        housing.overlay_key(member_dir),
        now_s - 60,
        now_s + 1800,
    )
    hub = underlay.ip("hub")
    beacon = OverlayBeacon(LIGHTHOUSE_ADDRESS, f"{hub}:{LIGHTHOUSE_PORT}", f"{hub}:{BRIDGE_PORT}")
    entry = OverlayEntry(
        "198.18.0.21/15",
        issued.pem,
        underlay.authority.certificate_pem,
        "cluster-one",
        (beacon,),
        (),
        bridge_token=TOKEN,
    )
    housing.enter(member_dir, entry, FIRST_PORT)
    way = OverlayWay(
        member_dir / "overlay", interface=interface_name(box_name(member_dir)), address=entry.address
    )
    box = open_box()
    try:
        with inside(underlay.namespace(host)):
            way.start(box.holder.pid)
        yield way, box
    finally:
        way.stop()
        box.close()


def talk(box: Box, address: str, output: Path) -> Talk:
    """A stream from this box to an echo on the overlay."""
    with output.open("wb") as file:
        child = subprocess.Popen(
            ["nsenter", f"--net={box.namespace}", sys.executable, STREAM, "talk", address, str(ECHO_PORT)],
            stdout=file,
            stderr=subprocess.DEVNULL,
        )
    box.children.append(child)
    return Talk(child, output)


def nebulas(config: str) -> list[int]:
    """Running processes of ours that were started with this configuration."""
    found = []
    for pid in descendants({os.getpid()}):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[-2:-1] == [config.encode()]:
                found.append(pid)
    return found


@pytest.mark.skipif(NEEDS != "", reason=NEEDS)
def test_way_without_udp_becomes_the_bridge_and_comes_back_after_a_death(tmp_path: Path) -> None:
    tls = server_tls(tmp_path)
    with Underlay(tmp_path / "lab", ("a", "b")) as underlay, bridge_on_hub(underlay, tls):
        underlay.start_lighthouse()
        server = underlay.add("a", 11, "cluster-one")
        underlay.serve(server)
        underlay.block("b", 'iifname "eth0" meta l4proto udp')
        underlay.block("b", 'oifname "eth0" meta l4proto udp', "output")
        with a_way(tmp_path, underlay, "b") as (way, box):

            def tended() -> OverlayWay:
                with inside(underlay.namespace("b")):
                    way.tend(box.holder.pid)
                return way

            assert way.transport == "udp"
            wait_until(lambda: tended().transport == "tls", what="the bridge", deadline_s=60)
            assert way.tunnels == NONE, "a tunnel to the lighthouse is no member's"
            stream = talk(box, server.address, tmp_path / "talk")
            stream.goes_on()
            wait_until(lambda: tended().tunnels == Tunnels(relayed=1), what="the tunnel", deadline_s=60)
            (nebula,) = nebulas(str(tmp_path / "mbr_21" / "overlay" / "bridged.json"))
            os.kill(nebula, signal.SIGKILL)
            config = str(tmp_path / "mbr_21" / "overlay" / "bridged.json")
            wait_until(
                lambda: tended() is way and nebulas(config) not in ([], [nebula]),
                what="another nebula",
                deadline_s=60,
            )
            stream.goes_on(40)


@pytest.mark.skipif(NEEDS != "", reason=NEEDS)
def test_way_that_reaches_a_beacon_over_udp_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.agent.ways.PATIENCE_MS", 0)
    server_tls(tmp_path)
    with Underlay(tmp_path / "lab", ("a",)) as underlay:
        underlay.start_lighthouse()
        with a_way(tmp_path, underlay, "a") as (way, box):
            log = tmp_path / "mbr_21" / "overlay" / "nebula.log"
            wait_until(
                lambda: "Handshake message received" in log.read_text(), what="an answer", deadline_s=60
            )
            with inside(underlay.namespace("a")):
                way.tend(box.holder.pid)
                way.tend(box.holder.pid)
            assert way.transport == "udp"
