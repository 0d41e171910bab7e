"""Ways between workers: who is asked to measure which, how often, and what is kept of the answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from typing import TypeVar, cast

import pytest

from orchestrator.adapters.overlay.certificates import Authority, new_key
from orchestrator.api.v1 import overlay_pb2, worker_pb2
from orchestrator.control import paths as module
from orchestrator.control.connected import Session
from orchestrator.control.loop import Loop
from orchestrator.control.overlay import RESERVED_HOSTS, WORKERS_GROUP, Beacon, Overlay
from orchestrator.control.paths import ORDER_INTERVAL_MS, PEERS_PER_ORDER, Paths
from orchestrator.core import messages as m
from orchestrator.core.errors import RefusedError
from orchestrator.core.ids import Now, WorkerId
from orchestrator.core.state import State
from orchestrator.core.supply.fleet import NEBULA, Isolation
from tests.core.worlds import World
from tests.nebula_certificates import read_certificate
from tests.polling import wait_until_async

T = TypeVar("T")

NETWORK = IPv4Network("198.18.0.0/15")
BEACON = Beacon("198.18.0.1", "192.0.2.1:4242", "192.0.2.1:443")
AUTHORITY = Authority.create(bytes(32), "orchestrator-overlay", 1, 2**32)
OVERLAY = Overlay(AUTHORITY, NETWORK, (BEACON,), lambda member_id: f"{member_id}.opens", b"k" * 32)
KEY = new_key(b"w" * 32).public_bytes


class WorldLoop:
    """As much of a loop as reads a world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.reads = 0

    async def read(self, query: Callable[[State], T]) -> T:
        self.reads += 1
        return query(self._world.state)

    def now(self) -> Now:
        return self._world.now()

    def measured(self, worker_id: WorkerId, found: Iterable[tuple[WorkerId, int]]) -> None:
        for peer_id, rtt_us in found:
            self._world.state.latency.observe(worker_id, peer_id, rtt_us, self._world.at_ms)


@dataclass
class Worker:
    """One with a session, and the orders it got."""

    worker_id: WorkerId
    session: Session
    orders: list[overlay_pb2.ProbeOrder] = field(default_factory=list)

    async def send(self, message: worker_pb2.SessionResponse) -> None:
        assert message.WhichOneof("message") == "probe_order"
        self.orders.append(message.probe_order)

    @property
    def targets(self) -> list[str]:
        return [target.worker_id for order in self.orders for target in order.targets]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks follow each other at once; what is due is said by the world's clock."""
    monkeypatch.setattr(module, "LOOK_S", 0.005)


@dataclass
class Network:
    """Workers of one world, whose sessions are open until the test ends."""

    world: World
    loop: WorldLoop
    paths: Paths
    group: asyncio.TaskGroup
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def join(self, overlay: str = NEBULA) -> Worker:
        worker_id = self.world.worker(isolation=Isolation.BOX, overlay=overlay)
        self.world.do(m.ConnectWorker(worker_id, None, 1, "0.3.0"))
        worker = Worker(worker_id, Session(worker_id, "", "", 0, 0, overlay_key=KEY))
        self.open(worker)
        if overlay == NEBULA:
            await wait_until_async(lambda: bool(worker.orders), what="the first order", deadline_s=60)
        return worker

    def open(self, worker: Worker) -> None:
        self.tasks.append(self.group.create_task(self.paths.attend(worker.session, worker.send)))

    async def looked(self) -> None:
        """Wait until every session has looked a few times more."""
        seen = self.loop.reads
        wanted = seen + 5 * len(self.tasks)
        await wait_until_async(lambda: self.loop.reads >= wanted, what="looks", deadline_s=60)

    def end(self) -> None:
        for task in self.tasks:
            task.cancel()


def a_network(group: asyncio.TaskGroup) -> Network:
    world = World()
    loop = WorldLoop(world)
    return Network(world, loop, Paths(OVERLAY, cast("Loop", loop), bytes), group)


def report_of(number: int, *peers: str, rtt_us: int = 20_000) -> overlay_pb2.ProbeReport:
    return overlay_pb2.ProbeReport(
        number=number,
        paths=[
            overlay_pb2.PathMeasured(
                peer_id=peer,
                sent=20,
                received=19,
                rtt_min_us=rtt_us,
                rtt_median_us=rtt_us,
                rtt_p90_us=rtt_us,
                jitter_us=100,
            )
            for peer in peers
        ],
    )


async def test_order_brings_a_certificate_of_the_workers_group_and_no_clusters() -> None:
    async with asyncio.TaskGroup() as group:
        network = a_network(group)
        worker = await network.join()
        told = worker.orders[0].overlay
        certificate = read_certificate(told.certificate.decode())
        host = network.world.state.workers[worker.worker_id].overlay_host
        assert told.address == f"{NETWORK.network_address + RESERVED_HOSTS + host}/15"
        assert (certificate.name, certificate.groups) == (worker.worker_id, (WORKERS_GROUP,))
        assert (certificate.addresses, certificate.public_key) == ((told.address,), KEY)
        day_s = 24 * 3600
        assert 0 < certificate.not_after_s - network.world.wall_ms // 1000 <= day_s
        # A cluster's members alone may use the bridge.
        assert told.bridge_token == ""
        assert worker.orders[0].key == OVERLAY.probe_key
        assert not worker.targets
        network.end()


async def test_order_names_few_live_peers_and_not_again_before_its_time() -> None:
    async with asyncio.TaskGroup() as group:
        network = a_network(group)
        others = [await network.join() for _ in range(PEERS_PER_ORDER + 2)]
        await network.join("none")
        last = await network.join()
        assert len(set(last.targets)) == PEERS_PER_ORDER
        assert set(last.targets) <= {one.worker_id for one in others}
        addresses = {target.address for order in last.orders for target in order.targets}
        assert len(addresses) == PEERS_PER_ORDER
        await network.looked()
        told = sum(len(one.targets) for one in (*others, last))
        assert network.paths.probes_ordered == told > 0
        # Not before ten minutes, not even to a session of its own.
        network.open(last)
        await network.looked()
        assert len(last.targets) == PEERS_PER_ORDER
        network.world.live_on(ORDER_INTERVAL_MS)
        await wait_until_async(
            lambda: len(last.targets) > PEERS_PER_ORDER, what="the next order", deadline_s=60
        )
        network.end()


async def test_order_for_what_a_job_waits_for_comes_at_once_and_once_to_one_end() -> None:
    async with asyncio.TaskGroup() as group:
        network = a_network(group)
        one, two, three = [await network.join() for _ in range(3)]
        await wait_until_async(
            lambda: all(worker.targets for worker in (one, two, three)),
            what="the first orders",
            deadline_s=60,
        )
        for worker in (one, two, three):
            network.paths.take(worker.worker_id, report_of(worker.orders[-1].number, *worker.targets))
        before = len(one.orders), len(two.orders)
        for _ in range(2):
            network.paths.wish([(one.worker_id, two.worker_id), (two.worker_id, one.worker_id)])
        await wait_until_async(
            lambda: (len(one.orders), len(two.orders)) != before, what="the order", deadline_s=60
        )
        await network.looked()
        asked = [w for w, count in zip((one, two), before, strict=True) if len(w.orders) > count]
        (asker,) = asked
        assert len(asker.orders[-1].targets) == 1
        other = two if asker is one else one
        assert asker.orders[-1].targets[0].worker_id == other.worker_id
        network.paths.take(
            asker.worker_id, report_of(asker.orders[-1].number, other.worker_id, rtt_us=32_000)
        )
        both = frozenset({one.worker_id, two.worker_id})
        assert network.paths.loss_ratio(both) == pytest.approx(1 / 20)
        assert network.paths.loss_ratio(frozenset({one.worker_id})) is None
        known = network.world.state.latency
        assert known.measured_us(one.worker_id, two.worker_id, network.world.at_ms, 60_000) == 32_000
        network.end()


async def test_order_without_a_report_is_given_up_and_wished_again() -> None:
    async with asyncio.TaskGroup() as group:
        network = a_network(group)
        one, two = await network.join(), await network.join()
        await wait_until_async(lambda: bool(one.targets and two.targets), what="orders", deadline_s=60)
        count = len(one.orders) + len(two.orders)
        network.paths.wish([(one.worker_id, two.worker_id)])
        await network.looked()
        assert len(one.orders) + len(two.orders) == count
        network.world.live_on(module.ANSWER_MS_MAX)
        network.paths.wish([(one.worker_id, two.worker_id)])
        await wait_until_async(
            lambda: len(one.orders) + len(two.orders) > count, what="another order", deadline_s=60
        )
        network.end()


async def test_order_renews_the_certificate_while_there_is_nobody_to_measure() -> None:
    async with asyncio.TaskGroup() as group:
        network = a_network(group)
        worker = await network.join()
        await network.looked()
        assert len(worker.orders) == 1
        network.world.forward(13 * 3_600_000)
        await wait_until_async(lambda: len(worker.orders) == 2, what="a renewal", deadline_s=60)
        first, second = (read_certificate(one.overlay.certificate.decode()) for one in worker.orders)
        assert second.not_after_s > first.not_after_s
        network.end()


async def test_report_is_kept_with_its_age_and_only_for_what_was_asked() -> None:
    async with asyncio.TaskGroup() as group:
        network = a_network(group)
        one, two = await network.join(), await network.join()
        await wait_until_async(lambda: bool(one.targets and two.targets), what="orders", deadline_s=60)
        number = two.orders[-1].number
        network.paths.take(two.worker_id, report_of(number + 1, one.worker_id))
        assert network.paths.of(two.worker_id) == []
        network.paths.take(two.worker_id, report_of(number, one.worker_id, "wkr_else"))
        (known,) = network.paths.of(two.worker_id)
        assert (known.measured.peer_id, known.measured.rtt_median_us) == (one.worker_id, 20_000)
        assert known.at_ms == network.world.monotonic_ms
        # An order is answered once.
        network.paths.take(two.worker_id, report_of(number, one.worker_id, rtt_us=1))
        assert network.paths.of(two.worker_id) == [known]
        network.world.forward(module.PATH_LIFE_MS)
        assert network.paths.of(two.worker_id) == []
        network.end()


async def test_report_of_what_no_network_shows_is_refused() -> None:
    async with asyncio.TaskGroup() as group:
        network = a_network(group)
        one, two = await network.join(), await network.join()
        await wait_until_async(lambda: bool(one.targets and two.targets), what="orders", deadline_s=60)
        with pytest.raises(RefusedError, match="rtt_min_us is 0"):
            network.paths.take(two.worker_id, report_of(two.orders[-1].number, one.worker_id, rtt_us=0))
        assert network.paths.of(two.worker_id) == []
        network.end()
