"""Every TCP port of some addresses, asked by bare SYN packets: `python scan.py MEASURE ADDRESS…` prints JSON.

A program of its own, for any network namespace in which root may open raw sockets. Bare packets, because a port
that drops them would hold a real connection's socket until it gives up; the kernel ends what answers.

MEASURE is an address of which every port answers, with yes or no. It sets the pace: nothing more goes out before it
has answered for all that did, and what it did not answer for is asked again everywhere. So a packet that a busy
machine lost is not taken for a closed door, nor is a missing route: how many did not go out at all is said too.
"""

from __future__ import annotations

import errno
import json
import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

PORTS = 65535
SOURCE_PORT = 50_999
"""Of all our packets; it lies in the range of ephemeral ports, where no service of the lab listens."""

BATCH_PACKETS = 1024
"""On their way at once: a quarter of what the queues of the lab's links hold."""

ANSWER_S = 2.0
"""For the measure's answers to one batch, on a machine that does much else; then the batch is sent again."""

TRIES = 10
"""Twenty seconds without an answer: nobody is there who could measure."""

QUIET_S = 1.0
"""An answer that has not come by then, on links of some tens of milliseconds, does not come."""

BUFFER_BYTES = 16 * 1024 * 1024
"""Answers of a batch of packets, and of what else arrives, wait here while the next batch is written."""

SYN, SYN_ACK, RST = 0x02, 0x12, 0x04
ANSWER_BYTES = 65_536

SO_RCVBUFFORCE = 33
"""From asm-generic/socket.h: beyond what the machine lets ordinary users have."""

NO_WAY = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EPERM, errno.EACCES, errno.EINVAL}
"""No route, or a filter of our own side; the packet went nowhere."""


@dataclass(slots=True)
class Target:
    """One address and what it answered."""

    address: str
    raw: socket.socket
    source: bytes
    open: set[int] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)
    unsent: set[int] = field(default_factory=set)

    def answered(self, ports: Sequence[int]) -> bool:
        """Whether all of them said yes or no."""
        return all(port in self.open or port in self.refused for port in ports)

    def send(self, port: int) -> None:
        """Ask one port."""
        try:
            self.raw.send(segment(self.source, socket.inet_aton(self.address), port))
        except OSError as error:
            if error.errno not in NO_WAY:
                raise
            self.unsent.add(port)

    def hear(self) -> None:
        """Take what has come."""
        while True:
            try:
                packet = self.raw.recv(ANSWER_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                # What an ICMP message says of an earlier packet.
                if error.errno not in NO_WAY:
                    raise
                continue
            tcp = packet[(packet[0] & 0x0F) * 4 :]
            port, own, _, _, _, flags = struct.unpack("!HHIIBB", tcp[:14])
            if own == SOURCE_PORT and flags & SYN_ACK == SYN_ACK:
                self.open.add(port)
            elif own == SOURCE_PORT and flags & RST:
                self.refused.add(port)


def aim(address: str) -> Target | None:
    """An address to ask; nothing where no route leads."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))
        except OSError:
            return None
        source = probe.getsockname()[0]
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
    raw.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
    raw.setblocking(False)
    raw.bind((source, 0))
    raw.connect((address, 0))
    return Target(address, raw, socket.inet_aton(source))


def segment(source: bytes, destination: bytes, port: int) -> bytes:
    """A TCP segment with nothing but SYN."""
    head = struct.pack("!HHIIBBHHH", SOURCE_PORT, port, port, 0, 5 << 4, SYN, 1024, 0, 0)
    pseudo = source + destination + struct.pack("!BBH", 0, socket.IPPROTO_TCP, len(head))
    total = sum(struct.unpack(f"!{(len(pseudo) + len(head)) // 2}H", pseudo + head))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~(total + (total >> 16)) & 0xFFFF
    return head[:16] + struct.pack("!H", checksum) + head[18:]


def hear_all(targets: Sequence[Target], wait_s: float, enough: Callable[[], bool]) -> None:
    """Take answers until it is enough, or for so long."""
    until_s = time.monotonic() + wait_s
    sockets = {target.raw: target for target in targets}
    while not enough() and (left_s := until_s - time.monotonic()) > 0:
        for ready in select.select(list(sockets), [], [], left_s)[0]:
            sockets[ready].hear()


def ask(measure: Target, targets: Sequence[Target], ports: Sequence[int]) -> None:
    """Ask all targets these ports, until the measure has answered for each. Raises TimeoutError."""
    for _ in range(TRIES):
        for port in ports:
            for target in targets:
                target.send(port)
        hear_all(targets, ANSWER_S, lambda: measure.answered(ports))
        if measure.answered(ports):
            return
    raise TimeoutError(f"{measure.address} does not answer on all of {ports[0]} to {ports[-1]}")


def scan(addresses: Sequence[str]) -> dict[str, dict[str, object]]:
    """What each address answered: open ports, how many were refused, how many never left."""
    found = {address: aim(address) for address in addresses}
    targets = [target for target in found.values() if target is not None]
    measure = found[addresses[0]]
    if measure is None:
        raise OSError(errno.ENETUNREACH, f"no route to {addresses[0]}")
    step = max(1, BATCH_PACKETS // len(targets))
    for first in range(1, PORTS + 1, step):
        ask(measure, targets, range(first, min(first + step, PORTS + 1)))
    hear_all(targets, QUIET_S, lambda: False)
    return {
        address: {"open": [], "refused": 0, "unsent": PORTS}
        if target is None
        else {"open": sorted(target.open), "refused": len(target.refused), "unsent": len(target.unsent)}
        for address, target in found.items()
    }


if __name__ == "__main__":
    json.dump(scan(sys.argv[1:]), sys.stdout)
