"""Learning whom to trust at an address: nothing is believed but the hash of an authority's key, the pin.

The server's own certificate is read over a connection that trusts nobody and says nothing. Pinned to it, the public
list of authorities is asked for; the one whose key has the pin's hash is whom to trust from then on. Whoever stands
in between cannot present it and a certificate of it at once, and has been shown no secret.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl

import grpc
import grpc.aio

from orchestrator.adapters.peers import SERVER_NAME, bundle_pins, check_bundle
from orchestrator.api.v1 import worker_pb2
from orchestrator.api.v1.worker_pb2_grpc import EnrolServiceStub

ANSWER_S = 10.0
"""Two round trips and two handshakes; longer means that nobody is there."""


async def fetch_authority(address: str, pin: str) -> bytes:
    """PEM of the authority with this pin. Raises ConnectionError; ValueError where the address is not its network's."""
    bundle = await _fetch_bundle(address)
    return check_bundle(bundle, pin)


async def fetch_pin(address: str) -> str:
    """The pin of the newest authority at an address, whoever it is: for trust on first use."""
    return next(iter(bundle_pins(await _fetch_bundle(address))))


async def _fetch_bundle(address: str) -> bytes:
    leaf = await _read_leaf(address)
    credentials = grpc.ssl_channel_credentials(leaf.encode())
    options = [
        ("grpc.ssl_target_name_override", SERVER_NAME),
        ("grpc.enable_http_proxy", 0),
    ]
    async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
        try:
            answer = await EnrolServiceStub(channel).GetTrust(worker_pb2.GetTrustRequest(), timeout=ANSWER_S)
        except grpc.aio.AioRpcError as error:
            raise ConnectionError(error.details() or error.code().name.lower()) from None
    return bytes(answer.trust_bundle)


async def _read_leaf(address: str) -> str:
    """PEM of the certificate that the server shows; not believed yet."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(ANSWER_S):
            _, writer = await asyncio.open_connection(
                host.strip("[]"), int(port), ssl=context, server_hostname=SERVER_NAME
            )
    except (OSError, TimeoutError) as error:
        raise ConnectionError(str(error) or "no answer") from None
    try:
        der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    if der is None:
        raise ConnectionError("the server shows no certificate")
    return ssl.DER_cert_to_PEM_cert(der)
