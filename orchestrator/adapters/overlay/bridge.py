"""The overlay over TCP, for sites whose firewall lets no UDP out: `python -m … .bridge CONFIG.json`.

The agent's side takes datagrams at a loopback port, which its nebula believes to be the lighthouse, and carries
them in one TLS connection to the control plane's side (TCP 443, as a rule), which hands them to the lighthouse
from a UDP socket of that connection's own. Through it nebula reaches the lighthouse, and everybody else by relay.

    client → server   TOKEN, line end                          once; "ok" comes back, or the connection ends
    both ways         length (2 bytes, big-endian), datagram   as long as it holds

The server shows a certificate, the client a token. What is inside is encrypted and authenticated by nebula, end to
end, and may be lost as any datagram may: where the connection cannot keep up, datagrams are dropped, not kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from orchestrator.adapters.clock import jitter

LOOPBACK = "127.0.0.1"

FRAME_BYTES_MAX = 9100
"""Nebula's largest packet with its headers; ours have 1400 bytes."""

LENGTH_BYTES = 2

TOKEN_BYTES_MAX = 512
"""Several times what a token takes; with its line's end it is all that a stranger may send."""

WELCOME = b"ok\n"

BUFFER_BYTES_MAX = 256 * 1024
"""Waiting to be sent: half a second at 4 Mb/s. Older datagrams help nobody, newer ones are dropped."""

READ_BYTES_MAX = 64 * 1024
"""Received and not yet taken, per connection; TCP holds back what is beyond."""

CONNECTIONS_MAX = 512
"""Two descriptors and some 100 kB each; a region with more blocked sites needs a second bridge."""

CONNECTIONS_OF_ONE_MAX = 16
"""A rig has a bridge per member; one supplier's fault must not take everybody's places."""

GREETING_S = 10.0
"""For the TLS handshake, and again for the token: several round trips on the worst line."""

IDLE_S = 60.0
"""Nebula says something every few seconds; a connection without is dead, or of no use."""

RECONNECT_S_MIN = 0.5
RECONNECT_S_MAX = 10.0
"""Pauses between tries: an overlay may be away 20 s at most, so the last pause is half of that."""

SETTLED_S = 30.0
"""A connection that held for this long is no reason to wait before the next."""

RECHECK_S = 15.0
"""A token that counts no more carries nothing beyond this time; asking is a look-up in memory."""

OTHERS = 0o077
"""Permission bits by which anyone but the owner could read the token."""


class BridgeError(Exception):
    """The bridge cannot work as it is configured; the text says what to do."""


@dataclass(frozen=True, slots=True)
class BridgeConfig:
    """The client's: where nebula sends to, and whom that goes to."""

    listen_port: int
    server_host: str
    server_port: int
    server_name: str
    authorities_path: str
    token_path: str


def write_config(config: BridgeConfig) -> str:
    """As text for `read_config`; nothing in it is secret."""
    return json.dumps({name: getattr(config, name) for name in BridgeConfig.__slots__}, indent=1)


def read_config(text: str) -> BridgeConfig:
    """Raises BridgeError, which names the field."""
    try:
        found = json.loads(text)
    except ValueError:
        raise BridgeError("the bridge's configuration is no JSON; write it with write_config") from None
    if not isinstance(found, dict) or set(found) != set(BridgeConfig.__slots__):
        raise BridgeError(f"the bridge's configuration has to have {', '.join(BridgeConfig.__slots__)}")
    for name in ("listen_port", "server_port"):
        if type(found[name]) is not int or not 0 < found[name] < 1 << 16:
            raise BridgeError(f"{name} is {found[name]!r}; use a port of 1 to 65535")
    for name in ("server_host", "server_name", "authorities_path", "token_path"):
        if not isinstance(found[name], str) or not found[name]:
            raise BridgeError(f"{name} is {found[name]!r}; it is a text that is not empty")
    return BridgeConfig(**found)


class _Datagrams(asyncio.DatagramProtocol):
    """Hands each datagram and its sender to a callable; a peer that is not there (yet) is no error."""

    def __init__(self, receive: Callable[[bytes, tuple[str, int]], None]) -> None:
        self._receive = receive

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._receive(data, addr)

    def error_received(self, exc: Exception) -> None:
        pass


class BridgeServer:
    """The control plane's side."""

    def __init__(
        self,
        tls: ssl.SSLContext,
        verify: Callable[[str], Awaitable[str | None]],
        target: tuple[str, int],
        recheck_s: float = RECHECK_S,
    ) -> None:
        """``verify`` says whose a token is, or None, and is asked again for as long as it is used.

        ``target`` is the lighthouse's UDP address.
        """
        self._recheck_s = recheck_s
        self._tls = tls
        self._verify = verify
        self._target = target
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()
        self._per_owner: Counter[str] = Counter()
        self.bytes_in = 0
        """Carried from machines to the lighthouse, since the start."""
        self.bytes_out = 0
        self.dropped_datagrams = 0

    @property
    def connections_max(self) -> int:
        """How many it takes."""
        return CONNECTIONS_MAX

    @property
    def connections(self) -> int:
        """How many are open, strangers included."""
        return len(self._open)

    async def start(self, host: str, port: int) -> int:
        """Listen; return the port. Raises OSError."""
        self._server = await asyncio.start_server(
            self._accept, host, port, ssl=self._tls, ssl_handshake_timeout=GREETING_S, limit=READ_BYTES_MAX
        )
        return cast("int", self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """End all connections and return when they are gone."""
        if self._server is not None:
            self._server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= CONNECTIONS_MAX:
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            token = await self._greet(reader)
            owner = await self._verify(token)
            if owner is None or self._per_owner[owner] >= CONNECTIONS_OF_ONE_MAX:
                return
            self._per_owner[owner] += 1
            watching = asyncio.create_task(self._watch(token, owner, writer))
            try:
                writer.write(WELCOME)
                await self._carry(reader, writer)
            finally:
                watching.cancel()
                self._per_owner[owner] -= 1
                if not self._per_owner[owner]:
                    del self._per_owner[owner]
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError):
            pass  # The other side went, was silent, or speaks something else; it comes back if it wants to.
        finally:
            writer.transport.abort()

    async def _greet(self, reader: asyncio.StreamReader) -> str:
        """The token that is shown. Raises ValueError for what cannot be one, TimeoutError, EOFError."""
        async with asyncio.timeout(GREETING_S):
            line = await reader.readuntil(b"\n")
        if len(line) > TOKEN_BYTES_MAX:
            raise ValueError(f"a token of {len(line)} bytes; at most {TOKEN_BYTES_MAX} are allowed")
        return line.decode("ascii").strip()

    async def _watch(self, token: str, owner: str, writer: asyncio.StreamWriter) -> None:
        """End the connection once its token counts no more."""
        counts = True
        while counts:
            await asyncio.sleep(self._recheck_s)
            counts = await self._verify(token) == owner
        writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: _Datagrams(lambda data, _: self._send(writer, data)), remote_addr=self._target
        )
        try:
            while True:
                data = await read_frame(reader)
                self.bytes_in += len(data)
                transport.sendto(data)
        finally:
            transport.abort()

    def _send(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        if send_frame(writer, data):
            self.bytes_out += len(data)
        else:
            self.dropped_datagrams += 1


class BridgeClient:
    """The agent's side, beside one nebula."""

    def __init__(self, tls: ssl.SSLContext, server: tuple[str, int], server_name: str, token: str) -> None:
        """``tls`` trusts the server's authority; ``server_name`` is what its certificate has to say."""
        self._tls = tls
        self._server = server
        self._server_name = server_name
        self._token = token
        self._nebula: tuple[str, int] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._udp: asyncio.DatagramTransport | None = None

    async def listen(self, port: int) -> int:
        """Take nebula's datagrams at this loopback port; return it. Raises OSError."""
        self._udp, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: _Datagrams(self._from_nebula), local_addr=(LOOPBACK, port)
        )
        return cast("int", self._udp.get_extra_info("sockname")[1])

    async def run(self) -> None:
        """Keep a connection to the server, for as long as nobody cancels this."""
        loop = asyncio.get_running_loop()
        pause_s = RECONNECT_S_MIN
        while True:
            began_s = loop.time()
            with contextlib.suppress(OSError, EOFError, ValueError):
                await self._connect()
            pause_s = (
                RECONNECT_S_MIN if loop.time() - began_s >= SETTLED_S else min(2 * pause_s, RECONNECT_S_MAX)
            )
            await asyncio.sleep(jitter(pause_s) / 1.5)

    def close(self) -> None:
        """Free the port."""
        if self._udp is not None:
            self._udp.abort()

    def _from_nebula(self, data: bytes, sender: tuple[str, int]) -> None:
        self._nebula = sender
        if self._writer is not None:
            send_frame(self._writer, data)

    async def _connect(self) -> None:
        """One connection, from beginning to end."""
        async with asyncio.timeout(2 * GREETING_S):
            reader, writer = await asyncio.open_connection(
                *self._server, ssl=self._tls, server_hostname=self._server_name, limit=READ_BYTES_MAX
            )
        try:
            writer.write(self._token.encode("ascii") + b"\n")
            async with asyncio.timeout(GREETING_S):
                if await reader.readexactly(len(WELCOME)) != WELCOME:
                    return
            self._writer = writer
            while True:
                data = await read_frame(reader)
                if self._nebula is not None and self._udp is not None:
                    self._udp.sendto(data, self._nebula)
        finally:
            self._writer = None
            writer.transport.abort()


def send_frame(writer: asyncio.StreamWriter, data: bytes) -> bool:
    """Queue a datagram, or drop it where too many wait already; whether it was queued."""
    fits = len(data) <= FRAME_BYTES_MAX and writer.transport.get_write_buffer_size() <= BUFFER_BYTES_MAX
    if fits:
        writer.write(len(data).to_bytes(LENGTH_BYTES) + data)
    return fits


async def read_frame(reader: asyncio.StreamReader) -> bytes:
    """The next datagram. Raises ValueError for one that is too long, TimeoutError, EOFError."""
    async with asyncio.timeout(IDLE_S):
        length = int.from_bytes(await reader.readexactly(LENGTH_BYTES))
        if length > FRAME_BYTES_MAX:
            raise ValueError(f"a frame of {length} bytes; at most {FRAME_BYTES_MAX} are allowed")
        return await reader.readexactly(length)


def read_token(path: Path) -> str:
    """From a file of the owner's only. Raises BridgeError, which never repeats it."""
    try:
        if path.stat().st_mode & OTHERS:
            raise BridgeError(f"{path} can be read by others; run `chmod 600 {path}`")
        with path.open("rb") as file:
            token = file.read(TOKEN_BYTES_MAX).decode("ascii").strip()
    except OSError as error:
        raise BridgeError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        token = ""
    if not token or not token.isprintable() or len(token) >= TOKEN_BYTES_MAX:
        raise BridgeError(f"{path} holds no token; it is one line of printable ASCII")
    return token


async def serve_nebula(config: BridgeConfig) -> None:
    """Be the client that this describes. Raises BridgeError or OSError."""
    try:
        tls = ssl.create_default_context(cafile=config.authorities_path)
    except (OSError, ssl.SSLError) as error:
        raise BridgeError(f"authorities_path {config.authorities_path} cannot be used: {error}") from None
    client = BridgeClient(
        tls, (config.server_host, config.server_port), config.server_name, read_token(Path(config.token_path))
    )
    await client.listen(config.listen_port)
    try:
        await client.run()
    finally:
        client.close()


def main(arguments: list[str]) -> int:
    """The small process beside a member's nebula; its parent ends it."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m orchestrator.adapters.overlay.bridge CONFIG.json\n")
        return 2
    try:
        asyncio.run(serve_nebula(read_config(Path(arguments[0]).read_text())))
    except KeyboardInterrupt:
        return 0
    except (BridgeError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
