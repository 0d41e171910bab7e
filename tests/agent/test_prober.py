"""The prober on loopback addresses, one for each member: who measures whom, what is reported, when it begins anew."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest

from orchestrator.adapters import clock
from orchestrator.adapters.box.tools import BoxError
from orchestrator.adapters.node_records import NodeStatus
from orchestrator.adapters.probes.records import ReduceMeasured
from orchestrator.adapters.probes.torch_reduce import TorchPlan
from orchestrator.adapters.probes.wire import ProbeFailed, SocketFactory
from orchestrator.agent import prober as module
from orchestrator.agent.prober import BANDWIDTH_PORT, ECHO_PORT, RING_PORT, TORCH_PORT, BoxProber, Torch
from orchestrator.api.v1 import overlay_pb2, worker_pb2
from tests.agent.fakes import desired_member
from tests.polling import wait_until_async

DEADLINE_S = 60.0
"""A knock, twenty questions, one stream and one small ring, on a machine that does other things too."""

NAMESPACE = 4711
"""Any number but 0: the sockets of these tests are this process's own."""

INTERPRETER = "/runtimes/torch/bin/python"

NET = 100 + os.getpid() % 100
"""Other runs of these tests on this machine have other addresses."""


def address(rank: int) -> str:
    return f"127.{NET}.7.{rank + 1}"


pytestmark = pytest.mark.allow_hosts([address(rank) for rank in range(30)])


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The large rounds follow the small one however long that took: this machine may do other things too."""
    monkeypatch.setattr(module, "SMALL_US_MAX", 1 << 60)


def peers(*ranks: int) -> list[overlay_pb2.ProbePeer]:
    return [overlay_pb2.ProbePeer(member_id=f"m-{rank}", address=address(rank), rank=rank) for rank in ranks]


def wanted(
    rank: int, everybody: Sequence[overlay_pb2.ProbePeer], **fields: object
) -> worker_pb2.DesiredMember:
    settings: dict[str, object] = {"cluster_token": "secret-of-the-cluster", "probe_peers": everybody}
    return desired_member(f"m-{rank}", **(settings | fields))


def plain(_namespace_pid: int) -> SocketFactory:
    return socket.socket


async def no_torch(_plan: TorchPlan) -> ReduceMeasured:
    raise ProbeFailed("the runtime has no torch")


class FakeTorch:
    """Every rank's part in the all-reduce by torch: it is over once all ranks take part, or fail to."""

    def __init__(self, *failing: int) -> None:
        self.failing = failing
        self.plans: dict[int, TorchPlan] = {}
        self.full = asyncio.Event()
        self.cancelled: list[int] = []

    async def __call__(self, plan: TorchPlan) -> ReduceMeasured:
        self.plans[plan.rank] = plan
        if len(self.plans) == plan.ranks:
            self.full.set()
        try:
            await self.full.wait()
        except asyncio.CancelledError:
            self.cancelled.append(plan.rank)
            raise
        if self.failing:
            raise ProbeFailed(f"rank {self.failing[0]} did not come")
        return ReduceMeasured(plan.ranks, plan.bytes, 1000, "gloo")


class Rig:
    """One worker's prober and its one member."""

    def __init__(
        self, rank: int, sockets: Callable[[int], SocketFactory] = plain, torch: Torch = no_torch
    ) -> None:
        self.rank = rank
        self.prober = BoxProber(sockets, clock.steady_ns, clock.random_bytes, torch)

    def follow(
        self, everybody: Sequence[overlay_pb2.ProbePeer], pid: int = NAMESPACE, **fields: object
    ) -> None:
        status = NodeStatus("starting", namespace_pid=pid, interpreter=INTERPRETER)
        member = wanted(self.rank, everybody, **fields)
        self.prober.follow({member.member_id: member}, {member.member_id: status})

    @property
    def report(self) -> worker_pb2.MemberObserved:
        report = worker_pb2.MemberObserved(member_id=f"m-{self.rank}")
        self.prober.complete(report)
        return report

    @property
    def answered(self) -> list[str]:
        return [path.peer_id for path in self.report.paths if path.received]


@asynccontextmanager
async def rigs(*ranks: int, torch: Torch = no_torch) -> AsyncIterator[list[Rig]]:
    async with AsyncExitStack() as stack:
        made = [Rig(rank, torch=torch) for rank in ranks]
        for rig in made:
            stack.push_async_callback(rig.prober.close)
        yield made


async def until(holds: Callable[[], bool], what: str) -> None:
    await wait_until_async(holds, what=what, deadline_s=DEADLINE_S)


def is_free(rank: int) -> bool:
    """Whether nobody listens on any port of a member's address."""
    try:
        for kind, port in (
            (socket.SOCK_DGRAM, ECHO_PORT),
            (socket.SOCK_STREAM, BANDWIDTH_PORT),
            (socket.SOCK_STREAM, RING_PORT),
        ):
            with socket.socket(socket.AF_INET, kind) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, kind == socket.SOCK_STREAM)
                sock.bind((address(rank), port))
    except OSError:
        return False
    return True


async def test_prober_each_pair_is_measured_once_and_the_first_of_the_ring_reports_it() -> None:
    everybody = peers(0, 1, 2)
    async with rigs(0, 1, 2) as (head, first, second):
        for rig in (head, first, second):
            rig.follow(everybody)
        await until(lambda: first.report.HasField("bus"), "the all-reduce")
        assert (head.answered, first.answered, second.answered) == ([], ["m-0"], ["m-0", "m-1"])
        (path,) = first.report.paths
        assert path.sent == 20
        # An answer that took a second counts as none, and this machine may do other things, too.
        assert 0 < path.received <= 20
        assert 0 < path.rtt_min_us <= path.rtt_median_us <= path.rtt_p90_us
        assert path.bandwidth_bits_per_s > 0
        to_head, to_first = second.report.paths
        assert to_head.bandwidth_bits_per_s > 0
        assert to_first.bandwidth_bits_per_s == 0
        bus = first.report.bus
        assert (bus.method, bus.ranks, bus.size_bytes) == ("ring", 2, 4 << 20)
        assert bus.bus_bits_per_s > 0
        assert not head.report.HasField("bus")
        assert not second.report.HasField("bus")


async def test_prober_runtime_with_torch_has_its_figure_reported_in_place_of_the_rings() -> None:
    torch = FakeTorch()
    async with rigs(0, 1, 2, torch=torch) as (head, first, second):
        for rig in (head, first, second):
            rig.follow(peers(0, 1, 2))
        await until(lambda: first.report.HasField("bus"), "the all-reduce")
        bus = first.report.bus
        assert (bus.method, bus.ranks, bus.size_bytes) == ("gloo", 2, 4 << 20)
        assert bus.bus_bits_per_s == (4 << 20) * 8 * 1000
        assert not second.report.HasField("bus")
        plan = torch.plans[0]
        assert (plan.namespace_pid, plan.interpreter, plan.interface) == (NAMESPACE, INTERPRETER, "overlay0")
        assert (plan.host, plan.port, plan.rank, plan.ranks) == (address(1), TORCH_PORT, 0, 2)
        assert torch.plans[1] == replace(plan, rank=1)


async def test_prober_torch_that_fails_leaves_the_rings_figure() -> None:
    torch = FakeTorch(1)
    async with rigs(0, 1, 2, torch=torch) as (head, first, second):
        for rig in (head, first, second):
            rig.follow(peers(0, 1, 2))
        await until(lambda: first.report.HasField("bus"), "the all-reduce")
        assert set(torch.plans) == {0, 1}
        assert (first.report.bus.method, first.report.bus.size_bytes) == ("ring", 4 << 20)


async def test_prober_while_torch_measures_no_figure_is_reported_and_closing_ends_it() -> None:
    """The network keeps the first figure that it hears."""
    torch = FakeTorch()
    first, second = Rig(1, torch=torch), Rig(2)
    async with rigs(0) as (head,):
        for rig in (head, first, second):
            rig.follow(peers(0, 1, 2))
        # The second one has no torch: the first waits for it.
        await until(lambda: set(torch.plans) == {0}, "torch to be asked")
        assert not first.report.HasField("bus")
        await first.prober.close()
        await second.prober.close()
        assert torch.cancelled == [0]


async def test_prober_peer_that_is_not_there_is_shown_without_answer_and_measured_once_it_comes() -> None:
    everybody = peers(0, 1)
    async with rigs(0, 1) as (head, member):
        member.follow(everybody)
        await until(lambda: len(member.report.paths) == 1, "a way without an answer")
        (path,) = member.report.paths
        assert (path.received, path.rtt_median_us, path.jitter_us) == (0, 0, 0)
        head.follow(everybody)
        await until(lambda: member.answered == ["m-0"], "an answer")


async def test_prober_peer_with_the_token_of_another_cluster_is_no_peer() -> None:
    everybody = peers(0, 1)
    async with rigs(0, 1) as (head, member):
        head.follow(everybody, cluster_token="secret-of-another-one")
        member.follow(everybody)
        await until(lambda: len(member.report.paths) == 1, "a way without an answer")
        assert member.answered == []


async def test_prober_begins_when_the_network_is_there_and_opens_nothing_before() -> None:
    async with rigs(0) as (head,):
        head.follow(peers(0, 1), pid=0)
        await asyncio.sleep(0)
        assert is_free(0)
        head.follow(peers(0, 1))
        await until(lambda: not is_free(0), "open ports")


@pytest.mark.parametrize("how", ["everything measured", "member gone", "closed"])
async def test_prober_closes_every_port_when_nothing_is_left_to_measure(how: str) -> None:
    async with rigs(0) as (head,):
        head.follow(peers(0, 1))
        await until(lambda: not is_free(0), "open ports")
        if how == "everything measured":
            head.follow([])
        elif how == "member gone":
            head.prober.follow({}, {})
        else:
            await head.prober.close()
        await until(lambda: is_free(0), "closed ports")
        assert not head.report.paths


async def test_prober_keeps_what_is_still_true_when_a_member_is_replaced() -> None:
    async with rigs(0, 1, 2, 3) as (head, first, second, third):
        for rig in (head, first, second):
            rig.follow(peers(0, 1, 2))
        await until(lambda: first.report.HasField("bus"), "the all-reduce")
        await until(lambda: second.answered == ["m-0", "m-1"], "both ways")
        before = {path.peer_id: path.rtt_median_us for path in second.report.paths}
        moved = [
            overlay_pb2.ProbePeer(member_id=f"m-{number}", address=address(number), rank=rank)
            for rank, number in enumerate((0, 2, 3))
        ]
        first.prober.follow({}, {})
        for rig in (head, second, third):
            rig.follow(moved)
        assert not first.report.HasField("bus")
        assert not second.report.HasField("bus")
        await until(lambda: second.report.HasField("bus"), "the all-reduce of the others")
        after = {path.peer_id: path.rtt_median_us for path in second.report.paths}
        assert set(after) == {"m-0"}
        assert third.answered == ["m-0", "m-2"]
        assert before["m-0"] > 0


async def test_prober_same_again_changes_nothing() -> None:
    async with rigs(0, 1) as (head, member):
        for _ in range(3):
            head.follow(peers(0, 1))
            member.follow(peers(0, 1))
        await until(lambda: member.answered == ["m-0"], "an answer")
        report = member.report
        member.follow(peers(0, 1))
        assert member.answered == ["m-0"]
        assert report.paths[0].sent == member.report.paths[0].sent


async def test_prober_measures_the_head_and_its_nearest_predecessors_only() -> None:
    everybody = peers(*range(30))
    async with rigs(0, 13, 14, 29) as (head, far, near, last):
        for rig in (head, far, near, last):
            rig.follow(everybody)
        await until(lambda: last.answered == ["m-0", "m-14"], "two answers")
        await until(lambda: len(last.report.paths) == 16, "all the ways that it measures")
        measured = [path.peer_id for path in last.report.paths]
        assert measured == ["m-0", *(f"m-{rank}" for rank in range(14, 29))]


async def test_prober_box_that_is_gone_ends_its_survey_alone() -> None:
    def gone(_namespace_pid: int) -> SocketFactory:
        raise BoxError("no network namespace of process 4711")

    rig = Rig(1, gone)
    rig.follow(peers(0, 1))
    await asyncio.sleep(0)
    assert not rig.report.paths
    await rig.prober.close()


# ------------------------------------------------------------ where the job asked for more


def needs(bits_per_s: int = 0) -> overlay_pb2.ProbeNeeds:
    return overlay_pb2.ProbeNeeds(every_pair=True, bandwidth_bits_per_s=bits_per_s)


async def test_prober_bound_asked_for_has_each_measure_the_ways_to_all_others() -> None:
    async with rigs(0, 1, 2) as (head, first, second):
        for rig in (head, first, second):
            rig.follow(peers(0, 1, 2), probe_needs=needs())
        await until(lambda: first.report.HasField("bus"), "the all-reduce")
        assert (head.answered, first.answered, second.answered) == ([], ["m-0", "m-2"], ["m-0", "m-1"])
        rates = {path.peer_id: path.bandwidth_bits_per_s > 0 for path in first.report.paths}
        assert rates == {"m-0": True, "m-2": False}


async def test_prober_bandwidth_asked_for_is_measured_by_both_ends_of_every_pair_before_the_all_reduce() -> (
    None
):
    async with rigs(0, 1, 2, 3) as everybody:
        for rig in everybody:
            rig.follow(peers(0, 1, 2, 3), probe_needs=needs(8_000_000))
        first = everybody[1]
        await until(lambda: first.report.HasField("bus"), "the all-reduce")
        for rig in everybody[1:]:
            rates = {path.peer_id: path.bandwidth_bits_per_s for path in rig.report.paths}
            assert set(rates) == {f"m-{rank}" for rank in range(4) if rank != rig.rank}
            assert all(rates.values())
