"""The certificate that an HTTPS listener shows, exchanged while it listens: nobody who is connected notices.

A handshake shows what was read last, through the hook for server names, which OpenSSL calls for clients that send
none as well. Each pair gets a context of its own: loaded into one in use, half a pair would break it, and a
certificate with a key of another kind would stand beside the old one instead of replacing it.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import structlog
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from orchestrator.adapters.peers import certificate_times

log = structlog.get_logger(__name__)

LOOK_EVERY_S = 5.0
"""Two small files are nothing to read, and nobody who renewed a certificate waits longer before asking why."""

FILE_BYTES_MAX = 1024 * 1024
"""Hundreds of times a certificate with its chain: what is larger was named by mistake."""


class CertificateError(Exception):
    """The pair cannot be shown; the text names the file and says what to do."""


@dataclass(frozen=True, slots=True)
class _Shown:
    """One pair in use. ``digest`` is of the files that it came from."""

    digest: bytes
    context: ssl.SSLContext
    not_after_ms: int


class HttpsIdentity:
    """A certificate with its chain, and its key, from two PEM files that others renew; they may be one file."""

    def __init__(self, certificate: Path, key: Path, renew: Callable[[], None] | None = None) -> None:
        """Read both. ``renew`` is called before each look, and writes them where that is our own task.

        Blocking; raises CertificateError, and what ``renew`` raises.
        """
        self._certificate = certificate
        self._key = key
        self._renew = renew
        self._shown: _Shown | None = None
        self.refresh()
        self.context = _empty_context()
        """For the listener, for as long as it listens."""
        self.context.sni_callback = self._show

    @property
    def not_after_ms(self) -> int:
        """When what is shown now runs out, by wall clock."""
        return 0 if self._shown is None else self._shown.not_after_ms

    def refresh(self) -> None:
        """Show what the files hold now. Blocking; after a CertificateError the pair before is shown on."""
        if self._renew is not None:
            self._renew()
        pems = _read(self._certificate), _read(self._key)
        digest = hashlib.sha256(b"".join(hashlib.sha256(pem).digest() for pem in pems)).digest()
        if self._shown is None or digest != self._shown.digest:
            not_after_ms = self._check(*pems)
            self._shown = _Shown(digest, self._load(), not_after_ms)

    async def keep_fresh(self, wall_ms: Callable[[], int], every_s: float = LOOK_EVERY_S) -> NoReturn:
        """Look again and again until cancelled. What is wrong is logged once, and once more when it changes."""
        announced: _Shown | None = None
        said = ""
        while True:
            trouble = await asyncio.to_thread(self._trouble, wall_ms)
            if trouble and trouble != said:
                log.error("certificate_trouble", reason=trouble)
            said = trouble
            if self._shown is not None and self._shown is not announced:
                announced = self._shown
                log.info("certificate_shown", until=_iso(announced.not_after_ms))
            await asyncio.sleep(every_s)

    def _trouble(self, wall_ms: Callable[[], int]) -> str:
        try:
            self.refresh()
        except CertificateError as error:
            return f"{error}; the certificate read before is shown on"
        if self._shown is not None and self._shown.not_after_ms <= wall_ms():
            ended = _iso(self._shown.not_after_ms)
            return f"the certificate in {self._certificate} ended at {ended}; renew it"
        return ""

    def _show(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        if self._shown is not None:
            connection.context = self._shown.context

    def _check(self, chain_pem: bytes, key_pem: bytes) -> int:
        """When the pair ends, in unix milliseconds; says more of what is wrong with it than OpenSSL does."""
        try:
            leaf = x509.load_pem_x509_certificates(chain_pem)[0]
            certified = leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        except (ValueError, UnsupportedAlgorithm):
            raise CertificateError(
                f"{self._certificate} holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)"
            ) from None
        try:
            public = load_pem_private_key(key_pem, password=None).public_key()
        except TypeError:
            raise CertificateError(
                f"{self._key} is encrypted; keep the key without a passphrase, for its owner only"
            ) from None
        except (ValueError, UnsupportedAlgorithm):
            raise CertificateError(
                f"{self._key} holds no private key in PEM form (-----BEGIN PRIVATE KEY-----)"
            ) from None
        if public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != certified:
            raise CertificateError(
                f"{self._key} is not the key of the first certificate in {self._certificate}; name the pair that"
                " was made together, the server's certificate before those of its issuers"
            )
        return certificate_times(leaf.public_bytes(Encoding.PEM))[1]

    def _load(self) -> ssl.SSLContext:
        context = _empty_context()
        try:
            # Never asked for: a passphrase was ruled out, and OpenSSL would wait for one at the terminal.
            context.load_cert_chain(self._certificate, self._key, password="")
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or "not a usable pair"
            raise CertificateError(
                f"OpenSSL does not take {self._certificate} with {self._key}: {reason}"
            ) from None
        return context


def _empty_context() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(FILE_BYTES_MAX)
    except OSError as error:
        raise CertificateError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from None


def _iso(unix_ms: int) -> str:
    return datetime.fromtimestamp(unix_ms // 1000, UTC).isoformat()
