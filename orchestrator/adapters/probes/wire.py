"""What all probes share: who a peer is, how it proves the cluster's key, and a stream that leaves the loop its turn.

A probe key is the cluster's and is handed in; each kind of probe uses a key of its own derived from it, so what
proves one thing proves no other. TCP peers greet each other so, before a byte of payload flows:

    caller:  magic, nonce                     callee:  nonce
    caller:  request, proof over both nonces  callee:  verdict, proof over all of it
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from orchestrator.adapters.accepting import accepted

KEY_BYTES_MIN: Final = 16
"""128 bits: what no member of another cluster can guess."""

NONCE_BYTES: Final = 16
"""128 random bits never come twice."""

TAG_BYTES: Final = 16
"""HMAC-SHA256 cut to 128 bits: forging one takes 2^128 tries, and small datagrams stay small."""

GREETING_MS_MAX: Final = 3000
"""Two round trips of the slowest link that a cluster is formed over, ten times over."""

GREETINGS_MAX: Final = 16
"""Strangers that may be greeted at once; each costs a descriptor for at most the time above."""

BACKLOG: Final = 64
"""As many as the ranks of the largest ring."""

ACCEPT_PAUSE_S: Final = 0.1
"""After a refused accept (no descriptors left): long enough not to spin, too short to be noticed."""

MAGIC: Final = b"OPB1"

SocketFactory = Callable[[socket.AddressFamily, socket.SocketKind], socket.socket]
"""Makes a socket, perhaps in another network namespace than the caller's."""


class ProbeFailed(Exception):
    """Nothing was measured; the message says who or what was in the way."""


@dataclass(frozen=True, slots=True)
class Instruments:
    """What a probe needs of the outside: a fine steady clock, random bytes, and sockets."""

    clock_ns: Callable[[], int]
    random_bytes: Callable[[int], bytes]
    new_socket: SocketFactory = socket.socket


@dataclass(frozen=True, slots=True)
class Target:
    """A peer by its name, for the record, and where it listens. ``host`` is an address: names are not resolved."""

    peer: str
    host: str
    port: int

    def __post_init__(self) -> None:
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            raise ValueError(f"host is {self.host!r:.80}; give the peer's IP address, not a name") from None
        if not 0 < self.port < 1 << 16:
            raise ValueError(f"port is {self.port}; give one from 1 to 65535")

    @property
    def family(self) -> socket.AddressFamily:
        """Of the sockets that can reach it."""
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET

    def __str__(self) -> str:
        return f"{self.peer} ({self.host} port {self.port})"


def purpose_key(key: bytes, purpose: bytes) -> bytes:
    """The key for one kind of probe; ValueError if the cluster's is too short to be one."""
    if len(key) < KEY_BYTES_MIN:
        raise ValueError(f"key has {len(key)} bytes; a probe key has at least {KEY_BYTES_MIN} random ones")
    return hmac.digest(key, b"orchestrator-probe-v1-" + purpose, hashlib.sha256)


def tag(key: bytes, message: bytes | memoryview) -> bytes:
    """Proof that the holder of ``key`` wrote ``message``."""
    return hmac.digest(key, message, hashlib.sha256)[:TAG_BYTES]


def is_tagged(key: bytes, message: bytes | memoryview, proof: bytes | memoryview) -> bool:
    """Whether the holder of ``key`` wrote ``message``; takes the same time whatever is wrong."""
    return hmac.compare_digest(tag(key, message), proof)


def listen(new_socket: SocketFactory, host: str, port: int) -> socket.socket:
    """A TCP socket that listens on one address; the caller closes it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = new_socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
        sock.settimeout(0)
    except OSError:
        sock.close()
        raise
    return sock


class Stream:
    """One TCP connection. Every call gives the loop a turn, so a fast peer never keeps a deadline from coming."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(0)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        self._loop = asyncio.get_running_loop()

    async def read_some(self, into: memoryview) -> int:
        """Bytes that came, at most as many as fit; 0 at the end of the stream."""
        await asyncio.sleep(0)
        return await self._loop.sock_recv_into(self._sock, into)

    async def read_into(self, into: memoryview) -> None:
        """Fill ``into``; ConnectionError if the stream ends before."""
        filled = 0
        while filled < len(into):
            count = await self.read_some(into[filled:])
            if count == 0:
                raise ConnectionResetError("the peer closed the connection")
            filled += count

    async def read(self, count: int) -> bytes:
        """Exactly ``count`` bytes."""
        room = bytearray(count)
        await self.read_into(memoryview(room))
        return bytes(room)

    async def write(self, data: bytes | memoryview) -> None:
        """All of ``data``, into the kernel's hands."""
        await asyncio.sleep(0)
        await self._loop.sock_sendall(self._sock, data)

    def finish(self) -> None:
        """Say that nothing more will be written."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Give up the connection at once, with whatever is still under way on it."""
        with contextlib.suppress(OSError):
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._sock.close()


async def connect(new_socket: SocketFactory, target: Target) -> Stream:
    """A connection; ProbeFailed says why there is none to be had."""
    sock: socket.socket | None = None
    try:
        sock = new_socket(target.family, socket.SOCK_STREAM)
        sock.settimeout(0)
        await asyncio.get_running_loop().sock_connect(sock, (target.host, target.port))
        return Stream(sock)
    except BaseException as error:
        if sock is not None:
            sock.close()
        if isinstance(error, OSError) and error.errno is not None:
            raise ProbeFailed(f"it cannot be reached: {os.strerror(error.errno)}") from None
        raise


async def greet(stream: Stream, key: bytes, request: bytes, random_bytes: Callable[[int], bytes]) -> int:
    """The caller's half: the callee's verdict on ``request``. ProbeFailed if it does not hold the key."""
    own = random_bytes(NONCE_BYTES)
    await stream.write(MAGIC + own)
    said = own + await stream.read(NONCE_BYTES) + request
    await stream.write(request + tag(key, b"ask" + said))
    try:
        verdict = await stream.read(1)
    except ConnectionError:
        raise ProbeFailed("it gave no answer: it may hold the probe key of another cluster") from None
    if not is_tagged(key, b"say" + said + verdict, await stream.read(TAG_BYTES)):
        raise ProbeFailed("it does not hold this cluster's probe key")
    return verdict[0]


async def answer_greeting(
    stream: Stream,
    key: bytes,
    request_bytes: int,
    judge: Callable[[bytes], int],
    random_bytes: Callable[[int], bytes],
) -> tuple[bytes, int]:
    """The callee's half: the request, and what ``judge`` said of it. ProbeFailed, and no word, to a stranger."""
    opening = await stream.read(len(MAGIC) + NONCE_BYTES)
    if not opening.startswith(MAGIC):
        raise ProbeFailed("it does not speak this protocol")
    own = random_bytes(NONCE_BYTES)
    await stream.write(own)
    request = await stream.read(request_bytes)
    said = opening[len(MAGIC) :] + own + request
    if not is_tagged(key, b"ask" + said, await stream.read(TAG_BYTES)):
        raise ProbeFailed("it does not hold this cluster's probe key")
    verdict = bytes((judge(request),))
    await stream.write(verdict + tag(key, b"say" + said + verdict))
    return request, verdict[0]


async def accept_all(listener: socket.socket, serve: Callable[[Stream], Awaitable[None]]) -> None:
    """Hand each connection to ``serve``, a bounded number at once, until cancelled; only then close the listener.

    ``serve`` owns its stream and closes it; what the network does to one connection is no concern of the rest.
    """
    served: set[asyncio.Task[None]] = set()

    async def guarded(stream: Stream) -> None:
        with contextlib.suppress(OSError, TimeoutError, ProbeFailed):
            await serve(stream)

    try:
        while True:
            try:
                sock = await accepted(listener)
            except OSError:
                await asyncio.sleep(ACCEPT_PAUSE_S)
                continue
            if len(served) >= GREETINGS_MAX:
                sock.close()
                await asyncio.sleep(0)
                continue
            task = asyncio.create_task(guarded(Stream(sock)))
            served.add(task)
            task.add_done_callback(served.discard)
    finally:
        # One that has not begun would never close its stream: each begins with the loop's next turn.
        await asyncio.sleep(0)
        for task in served:
            task.cancel()
        await asyncio.gather(*served, return_exceptions=True)
