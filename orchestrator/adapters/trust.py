"""Learning whom to trust at an address: nothing is believed but the hash of an authority's key, the pin.

The server's own certificate is read over a connection that trusts nobody and says nothing. Held to it, the public
list of authorities is asked for; the one whose key has the pin's hash is whom to trust from then on. Whoever stands
in between can show that authority but no certificate of it, and has been shown no secret.
"""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime

import grpc
import grpc.aio
from cryptography import x509

from orchestrator.adapters import peers
from orchestrator.api.v1 import worker_pb2
from orchestrator.api.v1.worker_pb2_grpc import EnrolServiceStub

ANSWER_S = 20.0
"""Two handshakes and a question that needs no commit: longer means that nobody is there."""


class TrustError(Exception):
    """Somebody answers who is not the control plane that was meant; the message says how that shows."""


class UnknownPinError(TrustError):
    """Who answers may well be meant: its CA is not, or not any more, the one that the pin names."""


def is_loopback(address: str) -> bool:
    """Whether no proxy can be meant."""
    host = address.rpartition(":")[0]
    return host in ("localhost", "[::1]") or host.startswith("127.")


async def fetch_trust(address: str, pin: str, wall_ms: int) -> bytes:
    """The certificate (PEM) of the CA that ``pin`` names, or of the newest. Raises ConnectionError, TrustError.

    Nothing secret is sent: the server is taken for whoever it says it is until its CA has the right pin.
    """
    leaf = await read_leaf(address)
    fault = clock_fault(leaf, wall_ms)
    if fault is not None:
        raise TrustError(fault)
    bundle = await _fetch_bundle(address, leaf)
    try:
        pins = peers.bundle_pins(bundle)
        if not pin and pins:
            return next(iter(pins.values()))
        if pin in pins:
            return peers.check_bundle(bundle, pin)
    except ValueError as error:
        raise TrustError(f"what answers at {address} is no control plane: {error}") from None
    raise UnknownPinError(
        f"the control plane at {address} is not the one that this token or pin is for: expected a CA with pin"
        f" {pin}, found {', '.join(pins) or 'none'}; nothing secret was sent: check --control-plane, or ask the"
        " operator for a new join token"
    )


async def read_leaf(address: str) -> bytes:
    """The certificate (PEM) that a server shows, whoever it is. Raises ConnectionError."""
    host, _, port = address.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    # What is read here is compared or explained, never trusted as it is.
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        async with asyncio.timeout(ANSWER_S):
            _, writer = await asyncio.open_connection(
                host.strip("[]"), int(port), ssl=context, server_hostname=peers.SERVER_NAME
            )
    except ssl.SSLError as error:
        raise ConnectionError(f"no TLS is spoken at {address}: {error.reason or error}") from None
    except TimeoutError:
        raise ConnectionError(f"no answer from {address} within {ANSWER_S:g} s") from None
    except OSError as error:
        raise ConnectionError(error.strerror or str(error)) from None
    try:
        leaf: bytes | None = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        if leaf is None:
            raise ConnectionError(f"the server at {address} shows no certificate")
        return peers.certificate_to_pem(x509.load_der_x509_certificate(leaf))
    except ValueError:
        raise ConnectionError(f"the server at {address} shows a certificate that cannot be read") from None
    finally:
        writer.transport.abort()


def clock_fault(leaf_pem: bytes, wall_ms: int) -> str | None:
    """Why a server's certificate cannot be right by this machine's clock, in words for its owner.

    The control plane makes its own certificate anew every few days, so an old one means a wrong clock.
    """
    try:
        before_ms, after_ms = peers.certificate_times(leaf_pem)
    except ValueError:
        return None
    if before_ms <= wall_ms <= after_ms:
        return None
    return (
        f"this machine's clock says {instant(wall_ms)}, and the control plane's certificate is valid from"
        f" {instant(before_ms)} to {instant(after_ms)}: set the clock"
    )


def instant(unix_ms: int) -> str:
    """UTC, to the second, whatever a clock may say."""
    try:
        return f"{datetime.fromtimestamp(unix_ms // 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, OverflowError, OSError):
        return f"{unix_ms} ms after 1970"


async def _fetch_bundle(address: str, leaf_pem: bytes) -> bytes:
    """The public list of authorities, from whoever holds the key of this certificate."""
    options = [("grpc.ssl_target_name_override", peers.SERVER_NAME), ("grpc.enable_http_proxy", 0)]
    credentials = grpc.ssl_channel_credentials(leaf_pem)
    async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
        try:
            answer = await EnrolServiceStub(channel).GetTrust(worker_pb2.GetTrustRequest(), timeout=ANSWER_S)
        except grpc.aio.AioRpcError as error:
            raise ConnectionError(error.details() or error.code().name.lower()) from None
    return bytes(answer.trust_bundle)
