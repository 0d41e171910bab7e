"""Connections that come in, none of which is lost."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket


async def accepted(listening: socket.socket) -> socket.socket:
    """The next connection at a listener that does not block; it does not block either. Raises OSError.

    asyncio's own `sock_accept` drops a connection unclosed where whoever waits for it is cancelled in that moment:
    it has been accepted by then, and is not handed over. Here nothing lies between the two.
    """
    loop, descriptor = asyncio.get_running_loop(), listening.fileno()
    if descriptor < 0:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    while True:
        came: asyncio.Future[None] = loop.create_future()
        loop.add_reader(descriptor, _tell, came)
        try:
            await came
        finally:
            loop.remove_reader(descriptor)
        # It may have gone again, or another one who listens there was quicker.
        with contextlib.suppress(BlockingIOError, InterruptedError):
            connection, _ = listening.accept()
            connection.settimeout(0)
            return connection


def _tell(came: asyncio.Future[None]) -> None:
    if not came.done():
        came.set_result(None)
