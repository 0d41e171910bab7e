"""A tenant's own look at its neighbours: every TCP port of some addresses, by plain connections from a Ray task.

usage: knock.py ADDRESS…; it prints "settled", then {address: [open ports]} with the task's own node as "own", and
stays until it is stopped.
"""

from __future__ import annotations

import contextlib
import errno
import json
import select
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence

import ray

PORTS = 65535
OPEN_MAX = 6000
"""Connections that wait at once, within the file descriptors that a process may have."""

PATIENCE_S = 0.8
"""Several round trips within a lab whose links add some milliseconds."""


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def opened(addresses: Sequence[str]) -> dict[str, list[int]]:
    """Which ports took a connection."""
    found: dict[str, list[int]] = {address: [] for address in addresses}
    waiting: deque[tuple[float, socket.socket, str, int]] = deque()
    poll = select.epoll()
    by_descriptor: dict[int, tuple[socket.socket, str, int]] = {}

    def settle(timeout_s: float) -> None:
        for descriptor, _ in poll.poll(timeout_s, OPEN_MAX):
            knocker, address, port = by_descriptor.pop(descriptor)
            if knocker.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                found[address].append(port)
            knocker.close()

    def give_up(before_s: float, room: int) -> None:
        while waiting and (waiting[0][0] <= before_s or len(waiting) > room):
            due_s, knocker, _, _ = waiting[0]
            if knocker.fileno() >= 0:
                if due_s > time.monotonic():
                    settle(0.05)
                    continue
                by_descriptor.pop(knocker.fileno(), None)
                knocker.close()
            waiting.popleft()

    for address, port in doors(addresses):
        knocker = socket.socket()
        knocker.setblocking(False)
        code = knocker.connect_ex((address, port))
        if code == errno.EINPROGRESS:
            by_descriptor[knocker.fileno()] = (knocker, address, port)
            poll.register(knocker, select.EPOLLOUT | select.EPOLLERR | select.EPOLLHUP)
            waiting.append((time.monotonic() + PATIENCE_S, knocker, address, port))
        else:
            if code == 0:
                found[address].append(port)
            knocker.close()
        if port % 64 == 0:
            settle(0)
            give_up(time.monotonic(), OPEN_MAX)
    end_s = time.monotonic() + PATIENCE_S
    while by_descriptor and time.monotonic() < end_s:
        settle(0.05)
    for knocker, _, _ in by_descriptor.values():
        with contextlib.suppress(OSError):
            knocker.close()
    return found


def doors(addresses: Sequence[str]) -> Iterator[tuple[str, int]]:
    for port in range(1, PORTS + 1):
        for address in addresses:
            yield address, port


class Neighbour:
    def ready(self) -> str:
        return str(ray.util.get_node_ip_address())

    def knock(self, addresses: list[str]) -> dict[str, list[int]]:
        own = self.ready()
        seen = opened([*addresses, own])
        return {("own" if address == own else address): sorted(ports) for address, ports in seen.items()}


if __name__ == "__main__":
    ray.init(log_to_driver=False)
    neighbour = ray.remote(Neighbour).options(num_gpus=1, scheduling_strategy="SPREAD")
    neighbours = [neighbour.remote() for _ in range(2)]
    say("settled on", *sorted(ray.get([one.ready.remote() for one in neighbours])))
    say("found", json.dumps(ray.get(neighbours[0].knock.remote(sys.argv[1:]))))
    threading.Event().wait()
