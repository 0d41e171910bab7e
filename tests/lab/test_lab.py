"""The lab does what its table says, shown with real sockets; and it leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.lab.conftest import LabFactory
from tests.lab.lab import Lab, claim_prefix, namespaces_of, remove_leftovers
from tests.lab.processes import look_at
from tests.lab.topology import METADATA_IP, LabHost
from tests.polling import wait_until

ROOT = Path(__file__).resolve().parents[2]
TALK = (sys.executable, "-I", "-S", str(Path(__file__).with_name("talk.py")))
PORT = 7000
LOCAL_PORT = 6000
ANSWER_S = 10.0
"""An answer takes milliseconds; so long is waited only where something is broken."""
MEASURED_S = 60.0
"""What a link can do shows once the cores have a moment for it, which on a busy machine may take several tries."""
SILENCE_S = 0.3
"""Where no answer is expected: many times the longest round trip of these links without delay."""
GONE_S = 10.0

HOSTS = (
    LabHost("srv"),
    LabHost("srv2"),
    LabHost("slow", delay_ms=40),
    LabHost("var"),
    LabHost("cone", "cone"),
    LabHost("sym", "symmetric"),
    LabHost("tcponly", "udp-blocked"),
)


@pytest.fixture(scope="module")
def lab(lab_factory: LabFactory) -> Lab:
    return lab_factory(HOSTS)


@contextmanager
def serving(lab: Lab, place: str, verb: str, *arguments: str) -> Iterator[None]:
    """A server of talk.py that listens already."""
    server = lab.popen(place, (*TALK, verb, *arguments), stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        yield
    finally:
        server.kill()
        server.wait()


@contextmanager
def changed(lab: Lab, **quality: float) -> Iterator[None]:
    """The link of the host `var`, of another quality for a while."""
    lab.change_link("var", **quality)
    try:
        yield
    finally:
        lab.change_link("var", delay_ms=0, loss_percent=0, rate_mbit=0)


def talk(lab: Lab, place: str, *arguments: str | float) -> Any:
    """What a caller of talk.py answers."""
    answer = lab.run(place, (*TALK, *map(str, arguments))).stdout
    return answer.strip() if arguments[0] == "tcp-ask" else json.loads(answer)


def shortest_rtt_ms(lab: Lab, host: str, target: str, *, below_ms: float) -> float:
    """The shortest of round trips, of which more are made until one is below: that is the link's own."""
    rtts_ms: list[float] = []

    def is_below() -> bool:
        (answer,) = talk(lab, host, "udp-ask", 0, 6, ANSWER_S, f"{lab.public_ip(target)}:{PORT}")
        rtts_ms.extend(answer["rtts_ms"])
        return min(rtts_ms) < below_ms

    wait_until(is_below, what=f"a round trip below {below_ms:g} ms", deadline_s=MEASURED_S)
    return min(rtts_ms)


def highest_mbit(lab: Lab, size_bytes: int, *, above: float) -> float:
    """The best rate of transfers from `var` to `srv`, of which more are made until one is above."""
    rates: list[float] = []

    def is_above() -> bool:
        wanted_s = talk(lab, "var", "tcp-send", size_bytes, f"{lab.public_ip('srv')}:{PORT}")
        rates.append(size_bytes * 8 / 1e6 / wanted_s)
        return max(rates) >= above

    wait_until(is_above, what=f"{above:g} Mbit/s", deadline_s=MEASURED_S)
    return max(rates)


def hears(lab: Lab, host: str, target: str, wait_s: float) -> bool:
    (answer,) = talk(lab, host, "udp-ask", 0, 3, wait_s, f"{lab.public_ip(target)}:{PORT}")
    return bool(answer["seen"])


def mapped_ports(lab: Lab, host: str) -> list[str]:
    """The outer address of one socket as two destinations see it."""
    targets = [f"{lab.public_ip(server)}:{PORT}" for server in ("srv", "srv2")]
    with serving(lab, "srv", "udp-serve", "", str(PORT)), serving(lab, "srv2", "udp-serve", "", str(PORT)):
        answers = talk(lab, host, "udp-ask", LOCAL_PORT, 1, ANSWER_S, *targets)
    return [answer["seen"][0] for answer in answers]


def test_link_forty_ms_adds_forty_to_a_round_trip(lab: Lab) -> None:
    with serving(lab, "srv", "udp-serve", "", str(PORT)):
        assert shortest_rtt_ms(lab, "slow", "srv", below_ms=60) >= 40
        shortest_rtt_ms(lab, "srv2", "srv", below_ms=20)


def test_change_link_delay_holds_at_once_and_is_taken_back(lab: Lab) -> None:
    with serving(lab, "srv", "udp-serve", "", str(PORT)):
        with changed(lab, delay_ms=80):
            assert shortest_rtt_ms(lab, "var", "srv", below_ms=100) >= 80
        shortest_rtt_ms(lab, "var", "srv", below_ms=20)


def test_change_link_loss_drops_its_share_each_way(lab: Lab) -> None:
    with changed(lab, loss_percent=20), serving(lab, "srv", "udp-serve", "", str(PORT)):
        came = talk(lab, "var", "udp-burst", 500, 100, f"{lab.public_ip('srv')}:{PORT}")
    # 0.8 × 0.8 of 500 come back; five standard deviations are 54.
    assert 320 - 54 <= came <= 320 + 54


def test_change_link_rate_is_what_a_transfer_gets(lab: Lab) -> None:
    with changed(lab, rate_mbit=20), serving(lab, "srv", "tcp-serve", "", str(PORT)):
        assert highest_mbit(lab, 2_000_000, above=10) <= 20.5


def test_link_with_delay_carries_two_hundred_mbit(lab: Lab) -> None:
    with changed(lab, delay_ms=10), serving(lab, "srv", "tcp-serve", "", str(PORT)):
        highest_mbit(lab, 60_000_000, above=200)


def test_partition_cuts_one_host_until_it_is_healed(lab: Lab) -> None:
    with serving(lab, "srv", "udp-serve", "", str(PORT)):
        assert hears(lab, "cone", "srv", ANSWER_S)
        lab.partition("cone")
        assert not hears(lab, "cone", "srv", SILENCE_S)
        assert hears(lab, "sym", "srv", ANSWER_S)
        lab.heal("cone")
        assert hears(lab, "cone", "srv", ANSWER_S)


def test_partition_change_of_the_link_does_not_heal_it(lab: Lab) -> None:
    with serving(lab, "srv", "udp-serve", "", str(PORT)):
        lab.partition("var")
        with changed(lab, delay_ms=1):
            assert not hears(lab, "var", "srv", SILENCE_S)
        lab.heal("var")
        assert hears(lab, "var", "srv", ANSWER_S)


def test_nat_cone_shows_one_port_to_all(lab: Lab) -> None:
    first, second = mapped_ports(lab, "cone")
    assert first == second == f"{lab.public_ip('cone')}:{LOCAL_PORT}"


def test_nat_symmetric_shows_each_destination_another_port(lab: Lab) -> None:
    first, second = mapped_ports(lab, "sym")
    assert first != second
    assert {first.partition(":")[0], second.partition(":")[0]} == {lab.public_ip("sym")}


def test_nat_udp_blocked_lets_tcp_pass_alone(lab: Lab) -> None:
    with serving(lab, "srv", "udp-serve", "", str(PORT)), serving(lab, "srv", "tcp-serve", "", str(PORT)):
        assert not hears(lab, "tcponly", "srv", SILENCE_S)
        seen = talk(lab, "tcponly", "tcp-ask", ANSWER_S, f"{lab.public_ip('srv')}:{PORT}")
    assert seen.startswith(f"{lab.public_ip('tcponly')}:")


def test_nat_cone_opens_to_whom_it_knocked_and_to_nobody_else(lab: Lab) -> None:
    knock = (lab.public_ip("srv"), str(LOCAL_PORT))
    target = f"{lab.public_ip('cone')}:{PORT}"
    with serving(lab, "cone", "udp-serve", "", str(PORT), *knock):
        (known,) = talk(lab, "srv", "udp-ask", LOCAL_PORT, 2, ANSWER_S, target)
        (stranger,) = talk(lab, "srv2", "udp-ask", LOCAL_PORT, 2, SILENCE_S, target)
        (other_port,) = talk(lab, "srv", "udp-ask", LOCAL_PORT + 1, 2, SILENCE_S, target)
    assert known["seen"]
    assert not stranger["seen"]
    assert not other_port["seen"]


@pytest.mark.parametrize("host", ["cone", "sym", "tcponly"])
def test_nat_unasked_from_outside_reaches_neither_router_nor_host(lab: Lab, host: str) -> None:
    # The worst neighbour: one who knows the private address and sends straight to the router that leads there.
    route = (f"{lab.address(host)}/32", "via", lab.public_ip(host))
    lab.run("srv", ("ip", "route", "add", *route))
    targets = [f"{address}:{PORT}" for address in (lab.public_ip(host), lab.lan_ip(host), lab.address(host))]
    with (
        serving(lab, host, "tcp-serve", "", str(PORT)),
        serving(lab, lab.router(host), "tcp-serve", "", str(PORT)),
    ):
        answers = [talk(lab, "srv", "tcp-ask", SILENCE_S, target) for target in targets]
        from_inside = talk(lab, lab.router(host), "tcp-ask", ANSWER_S, targets[-1])
    lab.run("srv", ("ip", "route", "del", *route))
    assert answers == ["nothing"] * 3
    assert from_inside.startswith(f"{lab.lan_ip(host)}:")


def test_lan_router_device_and_metadata_answer_their_host(lab: Lab) -> None:
    targets = (lab.lan_ip("cone"), lab.lan_device_ip("cone"), METADATA_IP)
    with serving(lab, lab.router("cone"), "tcp-serve", "", str(PORT)):
        answers = [talk(lab, "cone", "tcp-ask", ANSWER_S, f"{target}:{PORT}") for target in targets]
    assert all(answer.startswith(f"{lab.address('cone')}:") for answer in answers)


def test_metadata_answers_a_public_host_too(lab: Lab) -> None:
    with serving(lab, lab.router("srv"), "tcp-serve", METADATA_IP, str(PORT)):
        answer = talk(lab, "srv", "tcp-ask", ANSWER_S, f"{METADATA_IP}:{PORT}")
    assert answer.startswith(f"{lab.address('srv')}:")


def test_counters_traffic_shows_on_the_links_that_carried_it(lab: Lab) -> None:
    hosts = ("cone", "srv", "srv2")
    before = {host: lab.counters(host) for host in hosts}
    with serving(lab, "srv", "udp-serve", "", str(PORT)):
        talk(lab, "cone", "udp-burst", 100, 1000, f"{lab.public_ip('srv')}:{PORT}")
    after = {host: lab.counters(host) for host in hosts}
    sent = {host: after[host].sent_bytes - before[host].sent_bytes for host in hosts}
    received = {host: after[host].received_bytes - before[host].received_bytes for host in hosts}
    assert sent["cone"] >= 100_000
    assert received["srv"] >= 100_000
    # A broadcast or two: who has which address.
    assert sent["srv2"] + received["srv2"] < 2_000


def test_host_any_starts_like_a_machine_at_home(lab: Lab) -> None:
    shown = lab.run("cone", ("cat", "/proc/sys/net/ipv4/ip_forward")).stdout
    addresses = json.loads(lab.run("cone", ("ip", "-j", "address")).stdout)
    assert shown == "0\n"
    assert {link["ifname"]: [each["local"] for each in link["addr_info"]] for link in addresses} == {
        "lo": ["127.0.0.1"],
        "eth0": [lab.address("cone")],
    }


# Orphans, each in a session of its own: one without its environment, one in another network namespace, and one
# with neither whose parent alone is still known.
HIDING = """
setsid env -i sleep 1000 &
setsid unshare --net sleep 1000 &
setsid env -i sh -c 'unshare --net sleep 1000; :' &
"""


def command_of(pid: int) -> str:
    return Path("/proc", str(pid), "comm").read_text().strip()


def test_kill_host_ends_its_processes_wherever_they_hid_and_no_others(lab: Lab) -> None:
    neighbour = lab.popen("srv2", ("sleep", "1000"))
    assert lab.popen("srv", ("sh", "-c", HIDING)).wait(ANSWER_S) == 0
    wait_until(
        lambda: sorted(map(command_of, lab.pids("srv"))) == ["sh", "sleep", "sleep", "sleep"],
        what="what hides to be in place",
        deadline_s=ANSWER_S,
    )
    victims = lab.pids("srv")
    lab.kill_host("srv")
    assert lab.pids("srv") == set()
    assert [pid for pid in victims if look_at(pid)] == []
    assert neighbour.poll() is None
    lab.kill_host("srv2")
    assert neighbour.wait(ANSWER_S) == -signal.SIGKILL


def test_run_failing_command_says_where_and_what(lab: Lab) -> None:
    with pytest.raises(RuntimeError, match=r"srv: .*ended with 3: out"):
        lab.run("srv", ("sh", "-c", "echo out; exit 3"))
    with pytest.raises(ValueError, match="no place 'nowhere'"):
        lab.run("nowhere", ("true",))
    with pytest.raises(ValueError, match="no host 'nowhere'"):
        lab.partition("nowhere")


OWNER = """
import signal
from tests.lab.lab import Lab
from tests.lab.topology import LabHost
with Lab([LabHost("a"), LabHost("b", "cone")]) as lab:
    sleeper = lab.popen("b", ("sleep", "1000"))
    print(lab.prefix, sleeper.pid, flush=True)
    signal.pause()
"""


@pytest.fixture
def bystander() -> Iterator[Path]:
    """A namespace that looks almost like a lab's."""
    name = f"olz{os.getpid():x}-b"
    subprocess.run(("ip", "netns", "add", name), check=True)
    yield Path("/run/netns", name)
    subprocess.run(("ip", "netns", "del", name), check=True)


def test_remove_leftovers_killed_owner_leaves_nothing_and_others_stay(lab: Lab, bystander: Path) -> None:
    owner = subprocess.Popen((sys.executable, "-c", OWNER), stdout=subprocess.PIPE, cwd=ROOT, text=True)
    assert owner.stdout is not None
    prefix, sleeper = owner.stdout.readline().split()
    owner.kill()
    owner.wait()
    owner.stdout.close()
    assert len(namespaces_of(prefix)) == 4
    assert look_at(int(sleeper))
    remove_leftovers()
    assert namespaces_of(prefix) == ()
    wait_until(lambda: look_at(int(sleeper)) is None, what="the sleeper's end", deadline_s=GONE_S)
    assert bystander.exists()
    assert len(namespaces_of(lab.prefix)) == len(lab.places)
    assert lab.run("srv", ("true",)).returncode == 0


def test_lab_second_of_one_owner_stands_beside_the_first_and_goes_alone(lab: Lab) -> None:
    with Lab([LabHost("a")]) as second:
        sleeper = second.popen("a", ("sleep", "1000"))
        prefix = second.prefix
        assert prefix != lab.prefix
        assert prefix[2:-1] == f"{os.getpid():x}"
        assert len(namespaces_of(prefix)) == 2
    assert sleeper.returncode == -signal.SIGKILL
    assert namespaces_of(prefix) == ()
    assert len(namespaces_of(lab.prefix)) == len(lab.places)


def test_lab_that_fails_to_build_removes_what_it_had_made(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "nft"
    broken.write_text("#!/bin/sh\necho no tables today >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(RuntimeError, match="no tables today"), Lab([LabHost("a", "cone")]):
        pass
    ours = Path("/run/netns").glob(f"{lab.prefix[:-1]}*")
    assert tuple(sorted(ours)) == namespaces_of(lab.prefix)


def test_claim_prefix_each_call_gives_another(lab: Lab) -> None:
    prefix = claim_prefix()
    try:
        assert prefix != lab.prefix
    finally:
        Path("/run/orch-lab", prefix).unlink()
