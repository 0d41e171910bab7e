"""Measuring the overlay between the members of one cluster, from outside their boxes and before their nodes are up.

Each member of this worker answers its peers on ports of its own, inside its box's network, and measures the way to
peers of lower rank, so each pair once; where the cluster's job asked for more, to all, and what comes from them. When
all of those answer, the members that bring devices run one all-reduce of ours, and where the runtime has torch, the
same by torch inside the boxes, whose figure is reported in its place. Whatever does not succeed is tried again, save
torch's, which rests on ours; what was found is part of the member's report from then on. What torch says is said by a
process of the tenant's user: a tenant could lie about its own cluster.

It is light on purpose, because Ray starts at the same time: a few datagrams a pair, one short stream, one small vector.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import structlog

from orchestrator.adapters import clock
from orchestrator.adapters.box.namespaces import SocketFactory as BoxSockets
from orchestrator.adapters.box.tools import BoxError
from orchestrator.adapters.node_records import NodeStatus
from orchestrator.adapters.overlay.process import INNER_NAME
from orchestrator.adapters.probes.bandwidth import BandwidthServer, Line, measure_bandwidth
from orchestrator.adapters.probes.echo import EchoResponder, PathPlan, measure_path
from orchestrator.adapters.probes.records import RANKS_MAX, RANKS_MIN, Direction, PathMeasured, ReduceMeasured
from orchestrator.adapters.probes.ring import RingPlan, measure_ring
from orchestrator.adapters.probes.torch_reduce import TorchPlan, measure_torch
from orchestrator.adapters.probes.wire import Instruments, ProbeFailed, SocketFactory, Target, listen
from orchestrator.agent.widths import LIGHT, OTHERS_MAX, Needs, Receiver
from orchestrator.api.v1 import overlay_pb2, worker_pb2

log = structlog.get_logger(__name__)

ECHO_PORT: Final = 7446
BANDWIDTH_PORT: Final = 7447
RING_PORT: Final = 7448
TORCH_PORT: Final = 7449
"""Below the blocks that Ray's nodes take, and nobody else's: the network is the box's own."""

KEY_PURPOSE: Final = b"orchestrator-probes-v1"

PEERS_MAX: Final = 16
"""That one member measures: the head and the nearest before it. All pairs of a large cluster are too many to be light,
and are measured only where the job asked for something of them."""

HEAD_RANK: Final = 0

KNOCK: Final = PathPlan(count=2, interval_ms=50, timeout_ms=500)
"""Is anybody there? It also has the overlay find its way, whose first packets wait for that."""

PATH: Final = PathPlan(count=20, interval_ms=25, timeout_ms=1000)
"""Half a second of questions: loss shows from one in twenty, and the median is of twenty."""

BANDWIDTH_TRIES: Final = 20
"""The head measures with one member at a time; all others of a large cluster may come first."""

RING_DEADLINE_MS: Final = 10_000

SMALL_BYTES: Final = 512 << 10
LARGE_BYTES: Final = 4 << 20
LARGE_ROUNDS: Final = 3
"""Over home lines the small vector is all that may be sent beside a starting Ray; it says little of fast networks."""

SMALL_US_MAX: Final = 100_000
"""A small round that took longer is the figure. Below it the large ones take 3 s at most, and mostly far less."""

RING_TRIES: Final = 6
"""Half a minute of waiting for peers whose boxes are late."""

TORCH_DEADLINE_S: Final = 60
"""Importing torch takes a second or two, from a slow disk beside a starting Ray ten; then it is as quick as ours."""

PAUSE_S: Final = 0.5
"""Before whatever did not succeed is tried again; unnoticed in a formation of seconds."""

LIFE_S: Final = 300.0
"""For all of it: longer than a cluster may form. Beyond that a tenant's code may be beside the open ports."""

Torch = Callable[[TorchPlan], Awaitable[ReduceMeasured]]
"""As measure_torch."""


@dataclass(frozen=True, slots=True)
class Party:
    """One member of this worker, where its network is, and who is in its cluster, by rank."""

    member_id: str
    cluster_id: str
    namespace_pid: int
    interpreter: str
    """The Python of its runtime, as a path in its box."""
    key: bytes = field(repr=False)
    peers: tuple[Peer, ...]
    needs: Needs = Needs()

    @property
    def own(self) -> Peer:
        """This member as its peers know it."""
        return next(peer for peer in self.peers if peer.member_id == self.member_id)

    @property
    def targets(self) -> list[Peer]:
        """Whom it measures: the head, then its nearest predecessors, or all others where the job needs to know."""
        if self.needs.every_pair and self.own.rank != HEAD_RANK:
            return [peer for peer in self.peers if peer != self.own][:OTHERS_MAX]
        lower = [peer for peer in self.peers if peer.rank < self.own.rank]
        return lower[:1] + lower[1:][-(PEERS_MAX - 1) :]

    @property
    def ring(self) -> list[Peer]:
        """Who takes part in the all-reduce: all but the head, which brings no device."""
        return [peer for peer in self.peers if peer.rank != HEAD_RANK]


@dataclass(frozen=True, slots=True)
class Peer:
    """A member of the cluster in the overlay."""

    member_id: str
    address: str
    rank: int


@dataclass(slots=True)
class Findings:
    """What one member has measured so far."""

    paths: dict[Peer, PathMeasured] = field(default_factory=dict)
    bits_per_s: dict[Peer, int] = field(default_factory=dict)
    bus: overlay_pb2.BusMeasured | None = None

    def still_true(self, party: Party) -> Findings:
        """What still counts after the cluster's members have changed."""
        return Findings(
            {peer: path for peer, path in self.paths.items() if peer in party.peers and path.received},
            {peer: rate for peer, rate in self.bits_per_s.items() if peer in party.peers},
        )


class BoxProber:
    """As Prober, for members in boxes. ``sockets`` makes them in the network of a process, ``torch`` runs in its box."""

    def __init__(
        self,
        sockets: Callable[[int], SocketFactory],
        clock_ns: Callable[[], int],
        random_bytes: Callable[[int], bytes],
        torch: Torch,
    ) -> None:
        self._sockets = sockets
        self._torch = torch
        self._instruments = Instruments(clock_ns, random_bytes)
        self._surveys: dict[str, tuple[Party, Findings, asyncio.Task[None]]] = {}
        self._ended: set[asyncio.Task[None]] = set()

    def follow(
        self, desired: Mapping[str, worker_pb2.DesiredMember], statuses: Mapping[str, NodeStatus]
    ) -> None:
        """As Prober.follow."""
        parties = {
            member_id: party
            for member_id, wanted in desired.items()
            if (party := _party_of(wanted, statuses.get(member_id))) is not None
        }
        for member_id in self._surveys.keys() - parties.keys():
            self._drop(member_id)
        for member_id, party in parties.items():
            known = self._surveys.get(member_id)
            if known is not None and known[0] == party:
                continue
            findings = Findings()
            if known is not None:
                self._drop(member_id)
                if known[0].namespace_pid == party.namespace_pid:
                    findings = known[1].still_true(party)
            task = asyncio.create_task(self._run(party, findings))
            task.add_done_callback(_mourn)
            self._surveys[member_id] = (party, findings, task)

    def complete(self, report: worker_pb2.MemberObserved) -> None:
        """As Prober.complete."""
        known = self._surveys.get(report.member_id)
        if known is None:
            return
        _, findings, _ = known
        for peer in sorted(findings.paths, key=lambda peer: peer.rank):
            report.paths.append(path_to(findings.paths[peer], findings.bits_per_s.get(peer, 0)))
        if findings.bus is not None:
            report.bus.CopyFrom(findings.bus)

    async def close(self) -> None:
        """End everything."""
        for member_id in list(self._surveys):
            self._drop(member_id)
        await asyncio.gather(*self._ended, return_exceptions=True)

    def _drop(self, member_id: str) -> None:
        task = self._surveys.pop(member_id)[2]
        task.cancel()
        self._ended.add(task)
        task.add_done_callback(self._ended.discard)

    async def _run(self, party: Party, findings: Findings) -> None:
        """A survey until it is cancelled, its box is gone, or its time is up."""
        try:
            instruments = replace(self._instruments, new_socket=self._sockets(party.namespace_pid))
            async with asyncio.timeout(LIFE_S):
                await _Survey(party, findings, instruments, self._torch).run()
        except BoxError as error:
            # The keeper says what became of the box.
            log.info("probes_ended", member_id=party.member_id, reason=str(error))
        except TimeoutError:
            log.info("probes_ended", member_id=party.member_id, reason=f"measured for {LIFE_S:g} s")


class _Survey:
    """One member's part in measuring its cluster."""

    def __init__(self, party: Party, findings: Findings, instruments: Instruments, torch: Torch) -> None:
        self._party = party
        self._findings = findings
        self._instruments = instruments
        self._torch = torch
        self._line = Line()
        self._plan = party.needs.plan(len(party.ring) - 1)

    async def run(self) -> None:
        """Answer until cancelled, and measure meanwhile. Raises BoxError, TimeoutError."""
        with contextlib.ExitStack() as stack:
            echo = stack.enter_context(await self._opened(_bind_echo, ECHO_PORT))
            door = stack.enter_context(await self._opened(listen, BANDWIDTH_PORT))
            responder = EchoResponder(echo, self._party.key, self._instruments.clock_ns)
            server = BandwidthServer(door, self._party.key, self._instruments, self._plan, self._line)
            tasks = [asyncio.create_task(one) for one in (responder.run(), server.run(), self._measure())]
            try:
                # Of these only the measuring ends by itself, and then what it found is there.
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                # Before the sockets are closed, which they use.
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _opened(
        self, make: Callable[[SocketFactory, str, int], socket.socket], port: int
    ) -> socket.socket:
        """A socket on this member's own address, which may have to come first, or to be let go by a predecessor."""
        while True:
            try:
                return make(self._instruments.new_socket, self._party.own.address, port)
            except OSError:
                await asyncio.sleep(PAUSE_S)

    async def _measure(self) -> None:
        await asyncio.gather(*(self._measure_path(peer) for peer in self._party.targets))
        head = next((peer for peer in self._party.targets if peer.rank == HEAD_RANK), None)
        if head is not None and head not in self._findings.bits_per_s:
            await self._measure_bandwidth(head)
        await self._receive_from_all()
        # Who takes part in it has a predecessor that answered: at least its own ring is about to be whole.
        if RANKS_MIN <= len(self._party.ring) <= RANKS_MAX and self._party.own in self._party.ring:
            await self._measure_all_reduce()

    async def _measure_path(self, peer: Peer) -> None:
        """Ask until there is an answer, then ask properly."""
        target = Target(peer.member_id, peer.address, ECHO_PORT)
        known = self._findings.paths.get(peer)
        while known is None or not known.received:
            knocked = await self._asked(target, KNOCK)
            if knocked is not None and knocked.received:
                known = await self._asked(target, PATH)
            else:
                # Said once: that it is still so is no news.
                known = self._findings.paths.get(peer) or knocked
                await asyncio.sleep(PAUSE_S)
            if known is not None:
                self._findings.paths[peer] = known

    async def _asked(self, target: Target, plan: PathPlan) -> PathMeasured | None:
        try:
            return await measure_path(target, self._party.key, self._instruments, plan)
        except OSError as error:
            log.info("path_not_measured", member_id=self._party.member_id, reason=str(error))
            return None

    async def _measure_bandwidth(self, peer: Peer) -> None:
        """To one peer. Without a figure in the end: nothing waits for it."""
        target = Target(peer.member_id, peer.address, BANDWIDTH_PORT)
        reason = ""
        for _ in range(BANDWIDTH_TRIES):
            try:
                measured = await measure_bandwidth(
                    target, self._party.key, Direction.TO_PEER, self._instruments, LIGHT
                )
            except (OSError, ProbeFailed) as error:
                reason = str(error)
                await asyncio.sleep(PAUSE_S)
            else:
                self._findings.bits_per_s[peer] = measured.bits_per_s
                return
        log.info("bandwidth_not_measured", member_id=self._party.member_id, reason=reason)

    async def _receive_from_all(self) -> None:
        """Where the job asked for bandwidth; each begins with another one, so that few are asked twice at once."""
        party, rates = self._party, self._findings.bits_per_s
        if not party.needs.bits_per_s or party.own not in party.ring:
            return
        others = {peer.member_id: peer for peer in party.ring if peer != party.own and peer not in rates}
        count = len(party.ring)
        turn = sorted(others.values(), key=lambda peer: (peer.rank + party.own.rank) % count)
        targets = [Target(peer.member_id, peer.address, BANDWIDTH_PORT) for peer in turn]

        def received(target: Target, bits_per_s: int) -> None:
            rates[others[target.peer]] = bits_per_s

        await Receiver(party.key, self._instruments, self._line, self._plan).measure_all(targets, received)

    async def _measure_all_reduce(self) -> None:
        """Take part in it, then in torch's; the first of the ring reports for all, and once: the first report stays."""
        ring = self._party.ring
        plan = RingPlan(
            run=self._party.cluster_id,
            ranks=tuple(Target(peer.member_id, peer.address, RING_PORT) for peer in ring),
            rank=ring.index(self._party.own),
            bytes=SMALL_BYTES,
            rounds=1,
            deadline_ms=RING_DEADLINE_MS,
        )
        measured = await self._measure_ring(plan)
        if measured is None:
            return
        measured = await self._measure_by_torch(plan, measured) or measured
        if plan.rank == 0:
            self._findings.bus = overlay_pb2.BusMeasured(
                method=measured.method,
                ranks=measured.ranks,
                size_bytes=measured.bytes,
                bus_bits_per_s=measured.bus_bits_per_s,
            )

    async def _measure_ring(self, small: RingPlan) -> ReduceMeasured | None:
        """A small round, and where that is quick, larger ones; None where even the small one was in vain."""
        with await self._opened(listen, RING_PORT) as listener:
            measured = await self._reduced(small, listener, RING_TRIES)
            # All ranks have the same figure, so all of them go on or none does.
            if measured is not None and measured.duration_us <= SMALL_US_MAX:
                large = replace(small, bytes=LARGE_BYTES, rounds=LARGE_ROUNDS)
                measured = await self._reduced(large, listener, 1) or measured
        return measured

    async def _measure_by_torch(self, plan: RingPlan, ring: ReduceMeasured) -> ReduceMeasured | None:
        """As much as the ring carried, between the same members; None where torch is missing or fails."""
        party = self._party
        try:
            return await self._torch(
                TorchPlan(
                    namespace_pid=party.namespace_pid,
                    interpreter=party.interpreter,
                    rank=plan.rank,
                    ranks=len(plan.ranks),
                    host=plan.ranks[0].host,
                    port=TORCH_PORT,
                    interface=INNER_NAME,
                    bytes=ring.bytes,
                    rounds=1 if ring.bytes == plan.bytes else LARGE_ROUNDS,
                    deadline_s=TORCH_DEADLINE_S,
                )
            )
        except ProbeFailed as error:
            log.info("all_reduce_by_torch_not_measured", member_id=party.member_id, reason=str(error))
            return None

    async def _reduced(self, plan: RingPlan, listener: socket.socket, tries: int) -> ReduceMeasured | None:
        """One all-reduce; None where all tries were in vain."""
        for left in range(tries - 1, -1, -1):
            try:
                return await measure_ring(plan, listener, self._party.key, self._instruments)
            except (OSError, ProbeFailed) as error:
                if not left:
                    log.info("all_reduce_not_measured", member_id=self._party.member_id, reason=str(error))
                else:
                    await asyncio.sleep(PAUSE_S)
        return None


def box_prober() -> BoxProber:
    """For real boxes, by this machine's clock."""
    return BoxProber(
        lambda namespace_pid: BoxSockets(namespace_pid).create,
        clock.steady_ns,
        clock.random_bytes,
        measure_torch,
    )


def _mourn(task: asyncio.Task[None]) -> None:
    """Nobody waits for a survey, so what ended it against all expectation would never be known."""
    error = None if task.cancelled() else task.exception()
    if error is not None:
        log.error("probes_failed", exc_info=error)


def _party_of(wanted: worker_pb2.DesiredMember, status: NodeStatus | None) -> Party | None:
    """None where there is nothing to measure, or not yet."""
    if status is None or not status.namespace_pid:
        return None
    peers = sorted(
        (Peer(peer.member_id, peer.address, peer.rank) for peer in wanted.probe_peers),
        key=lambda peer: peer.rank,
    )
    if not any(peer.member_id == wanted.member_id for peer in peers):
        return None
    key = hmac.digest(wanted.cluster_token.encode(), KEY_PURPOSE, hashlib.sha256)
    return Party(
        wanted.member_id,
        wanted.cluster_id,
        status.namespace_pid,
        status.interpreter,
        key,
        tuple(peers),
        Needs.of(wanted),
    )


def path_to(path: PathMeasured, bits_per_s: int = 0) -> overlay_pb2.PathMeasured:
    """A measured way as it is reported."""
    return overlay_pb2.PathMeasured(
        peer_id=path.peer,
        sent=path.sent,
        received=path.received,
        rtt_min_us=path.rtt_min_us or 0,
        rtt_median_us=path.rtt_median_us or 0,
        rtt_p90_us=path.rtt_p90_us or 0,
        jitter_us=path.jitter_us or 0,
        bandwidth_bits_per_s=bits_per_s,
    )


def _bind_echo(new_socket: SocketFactory, address: str, port: int) -> socket.socket:
    sock = new_socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.bind((address, port))
    except OSError:
        sock.close()
        raise
    return sock
