"""Round trips over UDP: a responder that answers only its own cluster, and the probe that asks it.

One datagram: magic, question or answer, a nonce of its own, its number, padding, proof. A nonce cannot be guessed,
so nobody can answer before the question; an answer is exactly as long as its question, so nobody is amplified.

Times are taken in the event loop beside whatever else it does, so a busy agent shows in the p90 and in jitter; the
minimum and the median are the figures to group by.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import struct
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from orchestrator.adapters.probes.records import DATAGRAMS_MAX, PathMeasured
from orchestrator.adapters.probes.wire import (
    NONCE_BYTES,
    TAG_BYTES,
    Instruments,
    Target,
    is_tagged,
    purpose_key,
    tag,
)

HEADER: Final = struct.Struct(f">4sB{NONCE_BYTES}sI")
MAGIC: Final = b"OPE1"
QUESTION: Final = 0
ANSWER: Final = 1

SIZE_BYTES_MIN: Final = HEADER.size + TAG_BYTES
SIZE_BYTES_MAX: Final = 1200
"""With IPv6's and UDP's headers still below the overlay's 1300."""

INTERVAL_MS_MIN: Final = 5
TIMEOUT_MS_MAX: Final = 10_000
"""Two hundred datagrams a second burden no link; an answer after ten seconds helps no training job."""

RATE_PER_S: Final = 500
BURST: Final = 250
"""Two members behind one address at the fastest interval, and a little more, in either form."""

SOURCES_MAX: Final = 1024
"""Addresses remembered; all hold the cluster's key, so honest ones are never that many."""

TURN_DATAGRAMS: Final = 32
"""Datagrams taken in a row before the loop's other work gets its turn: under a millisecond of it."""

ERROR_PAUSE_S: Final = 0.1
"""An unconnected socket fails only where the network goes down; long enough not to spin until it is up again."""

ERRORS_MAX: Final = 2 * DATAGRAMS_MAX
"""ICMP errors come at most once for each datagram; more say that the socket itself is broken."""

NS_PER_S: Final = 1_000_000_000
NS_PER_MS: Final = 1_000_000
NS_PER_US: Final = 1000


class EchoResponder:
    """Answers questions of its cluster, on one socket, which it leaves to its owner to close.

    Only datagrams with a valid proof count against a source's rate: a stranger who forges a member's address
    spends none of the member's.
    """

    def __init__(self, sock: socket.socket, key: bytes, clock_ns: Callable[[], int]) -> None:
        sock.settimeout(0)
        self._sock = sock
        self._key = purpose_key(key, b"echo")
        self._clock_ns = clock_ns
        self._allowances: OrderedDict[str, tuple[int, int]] = OrderedDict()

    async def run(self) -> None:
        """Answer until cancelled; the owner closes the socket only after that."""
        loop = asyncio.get_running_loop()
        taken = 0
        while True:
            taken += 1
            if taken % TURN_DATAGRAMS == 0:
                await asyncio.sleep(0)
            try:
                data, address = await loop.sock_recvfrom(self._sock, SIZE_BYTES_MAX + 1)
            except OSError:
                await asyncio.sleep(ERROR_PAUSE_S)
                continue
            answer = self.answer(data, str(address[0]))
            if answer is not None:
                # A full buffer or a lost route is a loss like any other.
                with contextlib.suppress(OSError):
                    self._sock.sendto(answer, address)

    def answer(self, data: bytes, source: str) -> bytes | None:
        """What is due to ``source`` for ``data``; nothing to a stranger or to one who asks too fast."""
        body = _open(self._key, data, QUESTION)
        if body is None or not self._allow(source):
            return None
        return _seal(self._key, ANSWER, *body, len(data))

    def _allow(self, source: str) -> bool:
        """Take one from the source's allowance, which grows with time up to ``BURST``."""
        now_ns = self._clock_ns()
        cost_ns = NS_PER_S // RATE_PER_S
        saved_ns, since_ns = self._allowances.pop(source, (BURST * cost_ns, now_ns))
        saved_ns = min(BURST * cost_ns, saved_ns + max(0, now_ns - since_ns))
        allowed = saved_ns >= cost_ns
        self._allowances[source] = (saved_ns - cost_ns if allowed else saved_ns, now_ns)
        if len(self._allowances) > SOURCES_MAX:
            self._allowances.popitem(last=False)
        return allowed


@dataclass(frozen=True, slots=True)
class PathPlan:
    """How a path is asked: how often, how far apart, how long an answer may take, how large a datagram."""

    count: int = 20
    interval_ms: int = 50
    timeout_ms: int = 1000
    size_bytes: int = 64

    def __post_init__(self) -> None:
        for field, value, low, high in (
            ("count", self.count, 1, DATAGRAMS_MAX),
            ("interval_ms", self.interval_ms, INTERVAL_MS_MIN, TIMEOUT_MS_MAX),
            ("timeout_ms", self.timeout_ms, 1, TIMEOUT_MS_MAX),
            ("size_bytes", self.size_bytes, SIZE_BYTES_MIN, SIZE_BYTES_MAX),
        ):
            if not low <= value <= high:
                raise ValueError(f"{field} is {value}; a path is measured with {low} to {high}")


class Path:
    """The state of one measurement, without a socket: what was asked, and which answers count.

    An answer counts once, for the question whose nonce it carries, and only within its timeout; order does
    not matter. Whatever is forged, doubled or late is as if it had not come.
    """

    def __init__(self, plan: PathPlan, key: bytes, random_bytes: Callable[[int], bytes]) -> None:
        self._plan = plan
        self._key = purpose_key(key, b"echo")
        self._random_bytes = random_bytes
        self._asked_ns: dict[bytes, tuple[int, int]] = {}
        self._rtts_ns: dict[int, int] = {}
        self._sent = 0

    @property
    def is_answered(self) -> bool:
        """Whether nothing more is to be waited for."""
        return len(self._rtts_ns) == self._plan.count

    def question(self) -> tuple[bytes, bytes]:
        """(nonce, datagram) of the next question; ``asked`` starts its time."""
        nonce = self._random_bytes(NONCE_BYTES)
        return nonce, _seal(self._key, QUESTION, nonce, self._sent, self._plan.size_bytes)

    def asked(self, nonce: bytes, now_ns: int) -> None:
        """The question with this nonce goes out now."""
        self._asked_ns[nonce] = (self._sent, now_ns)
        self._sent += 1

    def heard(self, data: bytes, now_ns: int) -> None:
        """Something came from the peer's address."""
        body = _open(self._key, data, ANSWER)
        if body is None or body[0] not in self._asked_ns:
            return
        number, asked_ns = self._asked_ns.pop(body[0])
        if body[1] == number and 0 <= now_ns - asked_ns <= self._plan.timeout_ms * NS_PER_MS:
            self._rtts_ns[number] = now_ns - asked_ns

    def measured(self, peer: str) -> PathMeasured:
        """What was found until now; percentiles are by nearest rank, jitter over answers in order of asking."""
        in_order_us = [self._rtts_ns[number] // NS_PER_US for number in sorted(self._rtts_ns)]
        count = len(in_order_us)
        if count == 0:
            return PathMeasured(peer, self._sent, 0, None, None, None, None)
        steps_us = [abs(later - earlier) for earlier, later in itertools.pairwise(in_order_us)]
        ranked_us = sorted(in_order_us)
        return PathMeasured(
            peer,
            self._sent,
            count,
            ranked_us[0],
            ranked_us[(count - 1) // 2],
            ranked_us[-(-count * 9 // 10) - 1],
            sum(steps_us) // len(steps_us) if steps_us else None,
        )


async def measure_path(
    target: Target, key: bytes, instruments: Instruments, plan: PathPlan | None = None
) -> PathMeasured:
    """Ask ``target`` as planned. A peer that is silent, closed or not routed is a path that loses everything."""
    plan = plan or PathPlan()
    path = Path(plan, key, instruments.random_bytes)
    with instruments.new_socket(target.family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0)
        # Connected, so that the kernel drops what comes from anywhere else. Without a route all is lost.
        with contextlib.suppress(OSError):
            sock.connect((target.host, target.port))
        listener = asyncio.create_task(_listen(sock, path, instruments.clock_ns))
        try:
            for remaining in range(plan.count - 1, -1, -1):
                nonce, question = path.question()
                path.asked(nonce, instruments.clock_ns())
                with contextlib.suppress(OSError):
                    sock.send(question)
                if remaining:
                    await asyncio.sleep(plan.interval_ms / 1000)
            await asyncio.wait((listener,), timeout=plan.timeout_ms / 1000)
        finally:
            listener.cancel()
            await asyncio.gather(listener, return_exceptions=True)
    return path.measured(target.peer)


async def _listen(sock: socket.socket, path: Path, clock_ns: Callable[[], int]) -> None:
    """Hand everything that comes to ``path``, until it has all its answers."""
    loop = asyncio.get_running_loop()
    taken = errors = 0
    while not path.is_answered and errors < ERRORS_MAX:
        try:
            data = await loop.sock_recv(sock, SIZE_BYTES_MAX + 1)
        except OSError:
            # An ICMP error, reported once: the question that caused it stays unanswered.
            errors += 1
            await asyncio.sleep(0)
            continue
        path.heard(data, clock_ns())
        taken += 1
        if taken % TURN_DATAGRAMS == 0:
            await asyncio.sleep(0)


def _seal(key: bytes, kind: int, nonce: bytes, number: int, size_bytes: int) -> bytes:
    message = HEADER.pack(MAGIC, kind, nonce, number).ljust(size_bytes - TAG_BYTES, b"\0")
    return message + tag(key, message)


def _open(key: bytes, data: bytes, kind: int) -> tuple[bytes, int] | None:
    """(nonce, number) of a datagram of this kind that a holder of ``key`` wrote."""
    if not SIZE_BYTES_MIN <= len(data) <= SIZE_BYTES_MAX:
        return None
    magic, found, nonce, number = HEADER.unpack_from(data)
    if magic != MAGIC or found != kind or not is_tagged(key, data[:-TAG_BYTES], data[-TAG_BYTES:]):
        return None
    return nonce, number
