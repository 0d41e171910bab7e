"""The overlay with the real nebula, between namespaces of this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.adapters.clock import boottime_ms
from orchestrator.adapters.overlay.config import ALIVE_S, DEAD_S
from orchestrator.adapters.overlay.process import INNER_NAME
from tests.adapters.overlay.underlay import NEEDS, Member, Underlay, inside
from tests.polling import wait_until

pytestmark = pytest.mark.skipif(NEEDS != "", reason=NEEDS)

CAP_NET_ADMIN = 12


def capabilities(pid: int) -> int:
    """What a process may do beyond others, as a mask."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("CapPrm:")[2].split()[0], 16)


def is_alive(pid: int) -> bool:
    """Whether it is there and no zombie."""
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def has_knocked_in_vain(underlay: Underlay, member: Member) -> None:
    """Wait until a member tried to have its tunnel again and gave up."""
    wait_until(
        lambda: "Handshake timed out" in underlay.log_of(member), what="a handshake in vain", deadline_s=60
    )


def test_node_same_group_talks_other_group_hears_nothing(tmp_path: Path) -> None:
    with Underlay(tmp_path, ("a", "b", "c")) as underlay:
        underlay.start_lighthouse()
        server = underlay.add("a", 11, "cluster-one")
        friend = underlay.add("b", 12, "cluster-one")
        stranger = underlay.add("c", 13, "cluster-two")
        links = json.loads(friend.box.run_in("ip", "-json", "address", "show", "dev", INNER_NAME))
        underlay.serve(server)
        allowed, refused = underlay.talk(friend, server), underlay.talk(stranger, server)
        allowed.goes_on()
        # The stranger's attempts have had as long, and his tunnel is up: it is the group that is missing.
        wait_until(
            lambda: server.address in underlay.log_of(stranger), what="the stranger to try", deadline_s=60
        )
        allowed.goes_on()
        assert refused.count == 0
        assert links[0]["mtu"] == 1300
        assert capabilities(friend.node.pid) == 1 << CAP_NET_ADMIN
        assert [one["local"] for one in links[0]["addr_info"] if one["family"] == "inet"] == [friend.address]


def test_blocklist_live_stream_of_the_blocked_ends_others_stay(tmp_path: Path) -> None:
    with Underlay(tmp_path, ("a", "b", "c")) as underlay:
        underlay.start_lighthouse()
        server = underlay.add("a", 11, "cluster-one")
        blocked = underlay.add("b", 12, "cluster-one")
        other = underlay.add("c", 13, "cluster-one")
        underlay.serve(server)
        ending, staying = underlay.talk(blocked, server), underlay.talk(other, server)
        ending.goes_on()
        staying.goes_on()
        underlay.configure(server, [blocked.certificate.fingerprint])
        server.node.reload()
        wait_until(
            lambda: "no longer valid, tearing down" in underlay.log_of(server),
            what="the tunnel to be torn down",
            deadline_s=2 * (ALIVE_S + DEAD_S),
        )
        seen = ending.count
        has_knocked_in_vain(underlay, blocked)
        staying.goes_on()
        assert ending.count <= seen + 1
        assert underlay.log_of(server).count("no longer valid, tearing down") == 1


def test_certificate_renewed_by_reload_outlives_the_old_one_and_unrenewed_ends(tmp_path: Path) -> None:
    with Underlay(tmp_path, ("a", "b", "c")) as underlay:
        underlay.start_lighthouse()
        server = underlay.add("a", 11, "cluster-one")
        underlay.serve(server)
        # Long enough to start two nebulas and two programs on a machine that is busy.
        renewed = underlay.add("b", 12, "cluster-one", life_s=20)
        expiring = underlay.add("c", 13, "cluster-one", life_s=20)
        staying, ending = underlay.talk(renewed, server), underlay.talk(expiring, server)
        staying.goes_on()
        ending.goes_on()
        underlay.renew(renewed)
        wait_until(
            lambda: underlay.log_of(server).count("no longer valid, tearing down") >= 2,
            what="both old certificates to end",
            deadline_s=60,
        )
        seen = ending.count
        has_knocked_in_vain(underlay, expiring)
        staying.goes_on()
        assert ending.count <= seen + 1
        assert staying.process.poll() is None


def test_relay_direct_path_blocked_carries_and_comes_back_after_a_kill(tmp_path: Path) -> None:
    with Underlay(tmp_path, ("a", "b")) as underlay:
        lighthouse = underlay.start_lighthouse()
        underlay.block("a", f"ip saddr {underlay.ip('b')} udp dport 1-65535")
        underlay.block("b", f"ip saddr {underlay.ip('a')} udp dport 1-65535")
        server = underlay.add("a", 11, "cluster-one")
        member = underlay.add("b", 12, "cluster-one")
        underlay.serve(server)
        stream = underlay.talk(member, server)
        stream.goes_on()
        first = lighthouse.pid
        underlay.run_on("hub", "kill", "-KILL", str(first))
        wait_until(lambda: not lighthouse.alive(), what="the relay to be gone", deadline_s=60)

        def is_back() -> bool:
            with inside(underlay.namespace("hub")):
                lighthouse.tend(boottime_ms())
            return lighthouse.alive()

        wait_until(is_back, what="the relay to be started again", deadline_s=60)
        assert lighthouse.pid != first
        stream.goes_on()


def test_node_box_gone_ends_by_itself(tmp_path: Path) -> None:
    with Underlay(tmp_path, ("a",)) as underlay:
        underlay.start_lighthouse()
        member = underlay.add("a", 11, "cluster-one")
        member.box.close()
        wait_until(lambda: not member.node.alive(), what="nebula to end", deadline_s=60)


def test_lighthouse_parent_killed_goes_with_it(tmp_path: Path) -> None:
    script = (
        "import sys, signal, pathlib\n"
        "from orchestrator.adapters.overlay.process import NebulaLighthouse\n"
        "hub = NebulaLighthouse(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))\n"
        "hub.start(0)\n"
        "print(hub.pid, flush=True)\n"
        "signal.pause()\n"
    )
    with Underlay(tmp_path, ()) as underlay:
        underlay.start_lighthouse().stop()
        with inside(underlay.namespace("hub")):
            parent = subprocess.Popen(
                [sys.executable, "-c", script, tmp_path / "hub.json", tmp_path / "second.log"],
                stdout=subprocess.PIPE,
            )
        with parent:
            assert parent.stdout is not None
            pid = int(parent.stdout.readline())
            wait_until(
                lambda: "is active" in (tmp_path / "second.log").read_text(), what="nebula", deadline_s=60
            )
            parent.kill()
        # An orphan that nobody collects has no memory and no files any more.
        wait_until(lambda: not is_alive(pid), what="nebula to follow its parent", deadline_s=60)
