"""Carry connections from the machine's own network into a place of a lab, so that tests can be its clients.

usage: door.py IP:PORT, started inside the place with a listening socket of another network as its standard input
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys

CHUNK_BYTES = 65_536


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One way of one connection, to its end."""
    with contextlib.suppress(OSError):
        while chunk := await reader.read(CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()
        writer.write_eof()


async def serve(ip: str, port: int) -> None:
    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there_reader, there_writer = await asyncio.open_connection(ip, port)
        except OSError:
            writer.close()
            return
        try:
            await asyncio.gather(copy(reader, there_writer), copy(there_reader, writer))
        finally:
            there_writer.close()
            writer.close()

    server = await asyncio.start_server(carry, sock=socket.socket(fileno=sys.stdin.fileno()))
    await server.serve_forever()


if __name__ == "__main__":
    host, _, number = sys.argv[1].rpartition(":")
    asyncio.run(serve(host, int(number)))
