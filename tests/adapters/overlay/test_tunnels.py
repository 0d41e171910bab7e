"""What nebula's log says of tunnels, as lines of nebula 1.6.1 and from a real one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.adapters.overlay.tunnels import NONE, READ_BYTES_MAX, TUNNELS_MAX, TunnelLog, Tunnels
from tests.adapters.overlay.underlay import LIGHTHOUSE_ADDRESS, NEEDS, Member, Underlay
from tests.polling import wait_until

PEER, OTHER = "198.18.0.11", "198.18.0.12"
ADDRESS = {"ip": "10.77.0.2", "port": 51512}
HANDSHAKE = {
    "level": "info",
    "msg": "Handshake message received",
    "handshake": {"stage": 2, "style": "ix_psk0"},
}


def handshake(peer: str, *, relayed: bool) -> dict[str, object]:
    return {**HANDSHAKE, "udpAddr": None if relayed else ADDRESS, "vpnIp": peer}


def roamed(peer: str) -> dict[str, object]:
    return {"msg": "Host roamed to new udp ip/port.", "newAddr": ADDRESS, "udpAddr": None, "vpnIp": peer}


def dead(peer: str) -> dict[str, object]:
    return {"msg": "Tunnel status", "tunnelCheck": {"method": "active", "state": "dead"}, "vpnIp": peer}


CLOSED = {"msg": "Close tunnel received, tearing down.", "vpnIp": PEER}
DIRECT, RELAYED = Tunnels(direct=1), Tunnels(relayed=1)


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ([], NONE),
        ([handshake(PEER, relayed=False)], DIRECT),
        ([handshake(PEER, relayed=True)], RELAYED),
        ([handshake(PEER, relayed=True), roamed(PEER)], DIRECT),
        ([handshake(PEER, relayed=False), dead(PEER), handshake(PEER, relayed=True)], RELAYED),
        ([handshake(PEER, relayed=False), dead(PEER)], NONE),
        ([handshake(PEER, relayed=True), CLOSED], NONE),
        ([handshake(PEER, relayed=True), handshake(OTHER, relayed=False)], Tunnels(1, 1)),
        ([handshake(LIGHTHOUSE_ADDRESS, relayed=False)], NONE),
        ([roamed(PEER), dead(OTHER)], NONE),
        (
            [
                {"msg": 7, "vpnIp": PEER},
                {"vpnIp": [PEER]},
                ["vpnIp"],
                {"msg": "Tunnel status", "vpnIp": PEER},
            ],
            NONE,
        ),
    ],
)
def test_log_says_how_many_tunnels_are_direct_and_relayed(
    tmp_path: Path, lines: list[object], found: Tunnels
) -> None:
    path = tmp_path / "nebula.log"
    followed = TunnelLog(path, [LIGHTHOUSE_ADDRESS])
    assert followed.look() == NONE, "before there is a log"
    path.write_text('not json "vpnIp"\n' + "".join(f"{json.dumps(line)}\n" for line in lines))
    assert followed.look() == found
    assert followed.look() == found


def test_log_trimmed_or_cut_within_a_line_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "nebula.log"
    followed = TunnelLog(path, [])
    line = f"{json.dumps(handshake(PEER, relayed=True))}\n"
    path.write_text(line + line[:40])
    assert followed.look() == RELAYED
    with path.open("a") as file:
        file.write(line[40:].replace(PEER, OTHER))
    assert followed.look() == Tunnels(relayed=2)
    path.write_text(f"{json.dumps(roamed(OTHER))}\n")
    assert followed.look() == Tunnels(1, 1)
    followed.leave_out([PEER])
    assert followed.look() == DIRECT


def test_log_of_many_peers_is_read_in_bounds(tmp_path: Path) -> None:
    path = tmp_path / "nebula.log"
    peers = [f"198.19.{number // 256}.{number % 256}" for number in range(4 * TUNNELS_MAX)]
    path.write_text("".join(f"{json.dumps(handshake(peer, relayed=True))}\n" for peer in peers))
    assert path.stat().st_size > READ_BYTES_MAX
    followed = TunnelLog(path, [])
    seen = [followed.look() for _ in range(3)]
    assert seen[-1] == Tunnels(relayed=TUNNELS_MAX)


@pytest.mark.skipif(NEEDS != "", reason=NEEDS)
def test_tunnels_of_a_real_nebula_are_direct_until_only_the_relay_is_left(tmp_path: Path) -> None:
    with Underlay(tmp_path, ("a", "b", "c")) as underlay:
        underlay.start_lighthouse()
        for here, there in ("ab", "ba"):
            underlay.block(here, f"ip saddr {underlay.ip(there)}")
        server = underlay.add("a", 11, "cluster-one")
        strict, open_ = underlay.add("b", 12, "cluster-one"), underlay.add("c", 13, "cluster-one")
        logs = {
            member.name: TunnelLog(underlay.folder / f"{member.name}.log", [LIGHTHOUSE_ADDRESS])
            for member in (server, strict, open_)
        }

        def shows(member: Member, found: Tunnels, deadline_s: float = 60.0) -> None:
            followed = logs[member.name]
            wait_until(
                lambda: followed.look() == found, what=f"{found} at {member.name}", deadline_s=deadline_s
            )

        underlay.serve(server)
        underlay.talk(strict, server).goes_on()
        stream = underlay.talk(open_, server)
        stream.goes_on()
        shows(server, Tunnels(1, 1))
        shows(strict, RELAYED)
        shows(open_, DIRECT)
        # It is found dead after some seconds, and the next handshake goes over the relay.
        underlay.block("c", f"ip saddr {underlay.ip('a')}")
        shows(open_, RELAYED, deadline_s=60)
        shows(server, Tunnels(relayed=2), deadline_s=60)
        open_.node.stop()
        shows(server, RELAYED)
