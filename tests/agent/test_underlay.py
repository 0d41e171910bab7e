"""A worker's own place in the overlay, with real nebula: what it measures, and what of it can be reached."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orchestrator.adapters.overlay.config import Files, Landmark, node_config
from orchestrator.adapters.process_tree import descendants
from orchestrator.agent.underlay import ECHO_PORT, Underlay
from orchestrator.api.v1 import overlay_pb2, worker_pb2
from tests.adapters.overlay.underlay import LIGHTHOUSE_ADDRESS, LIGHTHOUSE_PORT, NEEDS, inside, wall_s
from tests.adapters.overlay.underlay import Underlay as Hosts
from tests.polling import wait_for_answer, wait_until_async

pytestmark = [
    pytest.mark.skipif(NEEDS != "", reason=NEEDS),
    pytest.mark.allow_hosts(["198.18.1.1", "198.18.1.2", "198.18.1.99"]),
]

KEY = b"k" * 32
GROUP = "workers"


class Channel:
    """A session as an attendant sees it."""

    def __init__(self) -> None:
        self.reports: list[overlay_pb2.ProbeReport] = []

    async def send(self, message: worker_pb2.SessionRequest) -> None:
        assert message.WhichOneof("message") == "probe_report"
        self.reports.append(message.probe_report)

    async def receive(self) -> worker_pb2.SessionResponse | None:
        raise AssertionError("an attendant only sends")

    async def close(self) -> None:
        raise AssertionError("an attendant does not close")


def address_of(number: int) -> str:
    return f"198.18.1.{number}"


def order_of(
    hosts: Hosts, underlay: Underlay, own: int, number: int, *targets: int
) -> worker_pb2.SessionResponse:
    """As the control plane writes one: peers are named by their numbers."""
    now_s = wall_s()
    issued = hosts.authority.issue(
        f"wk_{own}", f"{address_of(own)}/15", [GROUP], underlay.public_key, now_s - 60, now_s + 1800
    )
    order = overlay_pb2.ProbeOrder(
        number=number,
        key=KEY,
        overlay=overlay_pb2.OverlayMembership(
            address=f"{address_of(own)}/15",
            certificate=issued.pem.encode(),
            authorities=hosts.authority.certificate_pem.encode(),
            group=GROUP,
            beacons=[overlay_pb2.OverlayBeacon(address=LIGHTHOUSE_ADDRESS, endpoint=f":{LIGHTHOUSE_PORT}")],
        ),
        targets=[overlay_pb2.ProbeTarget(worker_id=f"wk_{one}", address=address_of(one)) for one in targets],
    )
    return worker_pb2.SessionResponse(probe_order=order)


@contextlib.asynccontextmanager
async def a_worker(
    folder: Path, hosts: Hosts, host: str, own: int
) -> AsyncIterator[tuple[Underlay, Channel]]:
    """A worker on this host with a session open, after its first order."""
    underlay, channel = Underlay(folder, hosts.ip("hub")), Channel()
    tasks = [asyncio.create_task(one) for one in (underlay.run(), underlay.attend(channel))]
    try:
        # The one thread that starts nebula is made now, and is on that host from then on.
        with inside(hosts.namespace(host)):
            underlay.take(order_of(hosts, underlay, own, 1, own))
            await wait_until_async(lambda: bool(channel.reports), what="the first report", deadline_s=60)
        yield underlay, channel
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_underlay_measures_who_is_there_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with Hosts(tmp_path / "lab", ("a", "b")) as hosts:
        hosts.start_lighthouse()
        before = descendants({os.getpid()})
        async with (
            a_worker(tmp_path / "one", hosts, "a", 1),
            a_worker(tmp_path / "two", hosts, "b", 2) as (two, said),
        ):
            two.take(order_of(hosts, two, 2, 7, 1, 99))
            await wait_until_async(lambda: len(said.reports) == 2, what="a report", deadline_s=60)
            report = said.reports[1]
            assert report.number == 7
            found, missing = report.paths
            assert (found.peer_id, found.sent) == ("wk_1", 20)
            # An answer that took a second counts as none, and this machine may do other things, too.
            assert 0 < found.received <= 20
            assert 0 < found.rtt_min_us <= found.rtt_median_us <= found.rtt_p90_us
            # Whoever is not there is reported, too: with nothing.
            assert (missing.peer_id, missing.received, missing.rtt_median_us) == ("wk_99", 0, 0)
            assert len(descendants({os.getpid()}) - before) == 4
        assert descendants({os.getpid()}) <= before
        for host in ("a", "b"):
            links = json.loads(hosts.run_on(host, "ip", "-j", "link"))
            assert {link["ifname"] for link in links} <= {"lo", "eth0"}


def end(pids: set[int], part: str) -> None:
    """Kill those whose command line has this in it."""
    for pid in pids:
        # A command that was looked at may have ended since.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if part.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)


async def test_underlay_nebula_killed_is_back_and_its_namespace_killed_is_made_anew(tmp_path: Path) -> None:
    with Hosts(tmp_path / "lab", ("a", "b")) as hosts:
        hosts.start_lighthouse()
        before = descendants({os.getpid()})
        async with (
            a_worker(tmp_path / "one", hosts, "a", 1) as (one, said_one),
            a_worker(tmp_path / "two", hosts, "b", 2) as (two, said),
        ):
            for number, part in ((2, str(tmp_path / "one")), (3, "infinity")):
                end(descendants({os.getpid()}) - before, part)

                async def is_reached(number: int = number) -> bool:
                    # Orders as they come every few minutes: the first of them makes what is missing.
                    one.take(order_of(hosts, one, 1, number))
                    seen = len(said.reports)
                    two.take(order_of(hosts, two, 2, number, 1))
                    await wait_until_async(lambda: len(said.reports) > seen, what="a report", deadline_s=60)
                    return bool(said.reports[-1].paths and said.reports[-1].paths[0].received)

                await wait_for_answer(is_reached, what="the way to be measured again", deadline_s=60)
        assert said_one.reports


def test_underlay_opens_one_port_to_workers_and_nothing_else(tmp_path: Path) -> None:
    underlay = Underlay(tmp_path, "control.example")
    config = json.loads(
        node_config(
            Files(tmp_path, tmp_path, tmp_path),
            interface="onb1",
            group=GROUP,
            landmarks=[Landmark(LIGHTHOUSE_ADDRESS, ("control.example:4242",))],
            open_port=ECHO_PORT,
        )
    )
    assert config["firewall"]["inbound"] == [
        {"port": "7445", "proto": "udp", "group": GROUP},
        {"port": "any", "proto": "icmp", "group": GROUP},
    ]
    # The same key after a restart: the certificate is this worker's.
    assert Underlay(tmp_path, "control.example").public_key == underlay.public_key
