"""What one Ray node shows to Prometheus, read by the agent on its machine.

A tenant's code stands beside the node and may answer in its place: what comes back is bounded and has to call itself a
text exposition, and no answer leads the reader anywhere else.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from http import HTTPStatus

import aiohttp

from orchestrator.adapters.box.tools import BoxError
from orchestrator.adapters.metrics.exposition import TEXT_BYTES_MAX

PATH = "/metrics"

ACCEPT = {"Accept": "text/plain;version=0.0.4", "Accept-Encoding": "identity"}

CONTENT_TYPE = "text/plain"


class RayMetricsError(Exception):
    """The node showed nothing that can be passed on; the text says why."""


async def read_node_metrics(
    node_ip: str, port: int, sockets: Callable[[int, int], socket.socket] | None, timeout_s: float
) -> bytes:
    """The node's text exposition. Raises RayMetricsError.

    ``sockets`` makes one of a family and kind where the node can be reached; without it that is right here.
    """
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    try:
        async with (
            aiohttp.ClientSession(
                connector=_connector(sockets), timeout=timeout, auto_decompress=False, headers=ACCEPT
            ) as session,
            session.get(f"http://{node_ip}:{port}{PATH}", allow_redirects=False) as response,
        ):
            return await _text_of(response)
    except TimeoutError:
        raise RayMetricsError(f"the Ray node did not answer within {timeout_s:g} s") from None
    except (aiohttp.ClientError, BoxError, OSError, ValueError) as error:
        raise RayMetricsError(f"the Ray node did not answer: {type(error).__name__} {error}") from error


async def _text_of(response: aiohttp.ClientResponse) -> bytes:
    if response.status != HTTPStatus.OK:
        raise RayMetricsError(f"the Ray node answered with {response.status}")
    # The plain header: what reads its parameters falls over some of them, and a tenant may write any.
    said = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if said != CONTENT_TYPE or response.headers.get("Content-Encoding", "identity") != "identity":
        raise RayMetricsError(f"the Ray node answered with something else than {CONTENT_TYPE}")
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > TEXT_BYTES_MAX:
            raise RayMetricsError(f"the Ray node answered with more than {TEXT_BYTES_MAX} bytes")
    return bytes(body)


def _connector(sockets: Callable[[int, int], socket.socket] | None) -> aiohttp.TCPConnector:
    if sockets is None:
        return aiohttp.TCPConnector()

    def made(address: aiohttp.AddrInfoType) -> socket.socket:
        return sockets(address[0], address[1])

    return aiohttp.TCPConnector(socket_factory=made)
