"""The links of a lab: one process that carries every frame between pairs of TAPs, late, thinned or not at all.

It stands in for the kernel's netem, which many kernels lack. Run as a script with the standard library alone.
It obeys one JSON object a line on standard input, each answered by one line, and ends when that input closes:
  {"verb": "open", "link": NAME, "ends": [[NETNS_PATH, INTERFACE], [NETNS_PATH, INTERFACE]], QUALITY…}
  {"verb": "change", "link": NAME, QUALITY…}
where QUALITY… is "delay_s" (one way), "loss" (0 to 1), "rate_byte_s" (0: no limit) and "cut" (nothing passes).
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import json
import os
import random
import select
import struct
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

TUNSETIFF = 0x400454CA
TUNSETOFFLOAD = 0x400454D0
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
CLONE_NEWNET = 0x40000000

OFFLOADS = 0x01 | 0x02 | 0x04
"""Checksums and TCP segmentation are left undone: 64 KiB cross in one read, which is what makes Python quick
enough. Not where frames are lost or counted, as there a frame must be what a wire carries."""

FRAME_BYTES_MAX = 65_536 + 64
"""The largest unsegmented frame, with its Ethernet and virtio headers."""

BATCH_FRAMES = 64
"""Read from one link before looking at the others: enough to spare calls of epoll, few enough to be fair."""

QUEUE_BYTES_MAX = 32 * 1024 * 1024
"""Held per direction: more than 1 Gbit/s needs for 100 ms; beyond it frames are lost, as in any router."""

RATE_QUEUE_S = 0.1
"""How long a frame may wait for a slow link's turn before it is dropped: a home router's buffer."""


def open_tap(netns: str, interface: str) -> int:
    """Create a TAP inside a namespace; it lives as long as the descriptor."""
    libc = ctypes.CDLL(None, use_errno=True)
    namespace = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(namespace, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), netns)
    finally:
        os.close(namespace)
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(
        tap, TUNSETIFF, struct.pack("16sH22x", interface.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)
    )
    return tap


@dataclass(slots=True)
class Direction:
    """One way of a link: what was read from one end and waits to be written to the other."""

    reader: int
    writer: int
    waiting: deque[tuple[float, bytes]] = field(default_factory=deque)
    waiting_bytes: int = 0
    free_at_s: float = 0
    """When the frames before the next one have left a link of limited rate."""


@dataclass(slots=True)
class Link:
    """Both ways, of one quality."""

    there: Direction
    back: Direction
    delay_s: float = 0
    loss: float = 0
    rate_byte_s: float = 0
    cut: bool = False

    def change(self, quality: dict[str, Any]) -> None:
        """Take on what is given; a link that is cut loses what was under way, too."""
        self.delay_s = float(quality.get("delay_s", self.delay_s))
        self.loss = float(quality.get("loss", self.loss))
        self.rate_byte_s = float(quality.get("rate_byte_s", self.rate_byte_s))
        self.cut = bool(quality.get("cut", self.cut))
        offloads = 0 if self.loss or self.rate_byte_s else OFFLOADS
        for direction in (self.there, self.back):
            fcntl.ioctl(direction.reader, TUNSETOFFLOAD, offloads)
            direction.free_at_s = 0
            if self.cut:
                direction.waiting.clear()
                direction.waiting_bytes = 0


def deliver(tap: int, frame: bytes) -> None:
    """Hand a frame to the kernel; an interface that is down, or full, loses it like a real one."""
    try:
        os.write(tap, frame)
    except OSError:
        return


def take_in(link: Link, direction: Direction, chance: random.Random) -> None:
    """Read what has come, and pass it on or put it in line."""
    for _ in range(BATCH_FRAMES):
        try:
            frame = os.read(direction.reader, FRAME_BYTES_MAX)
        except OSError:  # nothing more, or the interface is down
            return
        # Of each: on a busy machine a frame may come long after the first of its batch, and would be early.
        now_s = time.monotonic()
        if link.cut or (link.loss and chance.random() < link.loss):
            continue
        if not (link.delay_s or link.rate_byte_s or direction.waiting):
            deliver(direction.writer, frame)
            continue
        start_s = now_s
        if link.rate_byte_s:
            start_s = max(now_s, direction.free_at_s)
            if start_s - now_s > RATE_QUEUE_S:
                continue
            start_s += len(frame) / link.rate_byte_s
            direction.free_at_s = start_s
        if direction.waiting_bytes + len(frame) <= QUEUE_BYTES_MAX:
            direction.waiting.append((start_s + link.delay_s, frame))
            direction.waiting_bytes += len(frame)


def send_due(direction: Direction, now_s: float) -> None:
    """Deliver every frame whose time has come, in order."""
    waiting = direction.waiting
    while waiting and waiting[0][0] <= now_s:
        frame = waiting.popleft()[1]
        direction.waiting_bytes -= len(frame)
        deliver(direction.writer, frame)


@dataclass(slots=True)
class Carrier:
    """All links, and the loop that serves them."""

    poller: select.epoll = field(default_factory=select.epoll)
    links: dict[str, Link] = field(default_factory=dict)
    readers: dict[int, tuple[Link, Direction]] = field(default_factory=dict)
    # The same losses in each run: the seed is fixed.
    chance: random.Random = field(default_factory=lambda: random.Random(1))
    unread: bytes = b""

    def obey(self, order: dict[str, Any]) -> None:
        """Carry out one line of standard input."""
        match order["verb"]:
            case "open":
                left, right = (open_tap(netns, interface) for netns, interface in order["ends"])
                link = Link(there=Direction(left, right), back=Direction(right, left))
                link.change(order)
                self.links[order["link"]] = link
                for direction in (link.there, link.back):
                    self.readers[direction.reader] = (link, direction)
                    self.poller.register(direction.reader, select.EPOLLIN)
            case "change":
                self.links[order["link"]].change(order)
            case verb:
                raise ValueError(f"unknown verb {verb!r}")

    def listen(self) -> bool:
        """Read orders and answer them; false when there will be no more."""
        piece = os.read(sys.stdin.fileno(), 65_536)
        *lines, self.unread = (self.unread + piece).split(b"\n")
        for line in lines:
            try:
                self.obey(json.loads(line))
                answer: dict[str, str] = {}
            except (OSError, ValueError, KeyError) as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
        return bool(piece)

    def wait_s(self) -> float:
        """Until the next frame is due; negative: for as long as nothing comes."""
        due = [direction.waiting[0][0] for _, direction in self.readers.values() if direction.waiting]
        return max(0.0, min(due) - time.monotonic()) if due else -1

    def serve(self) -> None:
        """Until standard input closes, which it does even when the owner is killed."""
        orders = sys.stdin.fileno()
        self.poller.register(orders, select.EPOLLIN)
        while True:
            for descriptor, _ in self.poller.poll(self.wait_s()):
                if descriptor == orders:
                    if not self.listen():
                        return
                else:
                    take_in(*self.readers[descriptor], self.chance)
            now_s = time.monotonic()
            for _, direction in self.readers.values():
                send_due(direction, now_s)


if __name__ == "__main__":
    # Nothing here forms cycles, and a pause to look for them would be seen as jitter.
    gc.disable()
    Carrier().serve()
