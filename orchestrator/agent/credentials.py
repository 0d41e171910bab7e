"""The worker's certificate and whom it trusts: on disk, renewed over the session, recovered after a long absence.

Renewal goes by the boot clock: the control plane says when half the certificate's life is over, and what is left
then is as long as what passes until then, so the wait is known without comparing two wall clocks. After a reboot
only the wall clock is left; however wrong that is, the wait is no longer than that half. A session begins with a
renewal unless the certificate is young: nobody knows how soon this machine is off again, or for how long.

What the control plane refuses at the handshake shows as a connection that it closes. Where the certificate has
run out, or that happens again and again, a recovery is asked for; those are counted, so one that has not been
shown to help is not followed by another while its certificate must still be young.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

import structlog

from orchestrator.adapters import peers
from orchestrator.adapters.files import write_whole
from orchestrator.adapters.trust import TrustError, clock_fault, fetch_trust, instant, read_leaf
from orchestrator.agent.connection import Endpoint
from orchestrator.agent.identity import Identity, Keys, Received, save_identity
from orchestrator.agent.joining import UNVERIFIED, JoinRefusedError, recover
from orchestrator.agent.ports import RefusedForeverError
from orchestrator.api.v1 import worker_pb2

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from orchestrator.agent.ports import AgentClock, ControlChannel
    from orchestrator.core.ids import Now

log = structlog.get_logger(__name__)

CERTIFICATE_FILE = "certificate.pem"
TRUST_FILE = "trust.pem"

LOOK_S = 30.0
"""Between two looks at whether renewal is due, and between two requests: half a life is hours at least."""

UNANSWERED_MAX = 3
"""Requests for the next certificate in a row that nothing came of, before the owner is told: one may be lost."""

YOUNG_MS = 3_600_000
"""A certificate that came within the hour is not renewed when a session begins: a bad line opens many."""

REFUSALS_MAX = 3
"""In a row, of a certificate that looks valid here: one may be a control plane that just stops."""

HANDSHAKE_ENDED = ("Socket closed", "Connection reset", "handshake failed")
"""How gRPC's reason names a server that ended the connection before the first answer."""


def keep_certificate(
    data_dir: Path,
    identity: Identity,
    keys: Keys,
    certificate: worker_pb2.Certificate,
    now: Now,
    *,
    proved: bool,
) -> Identity:
    """Make a certificate and its trust bundle durable, then what is known of both. Raises ValueError.

    An empty chain brings only authorities. Each file is replaced as a whole, and any mixture that a crash leaves
    still connects: authorities come and go slower than certificates.
    """
    pins = peers.bundle_pins(certificate.trust_bundle)
    if not pins:
        raise ValueError("the control plane sent no authority to trust")
    updated = replace(identity, ca_pin=next(iter(pins)))
    if certificate.chain:
        _check_leaf(certificate, keys, list(pins.values()))
        half_ms = max(0, certificate.not_after_unix_ms - certificate.renew_after_unix_ms)
        received = Received(
            certificate.renew_after_unix_ms, now.boot_id, now.monotonic_ms + half_ms, proved=proved
        )
        updated = replace(updated, certificate=received)
    write_whole(data_dir / TRUST_FILE, certificate.trust_bundle)
    if certificate.chain:
        write_whole(data_dir / CERTIFICATE_FILE, certificate.chain)
    save_identity(data_dir, updated)
    return updated


def _check_leaf(certificate: worker_pb2.Certificate, keys: Keys, authorities: list[bytes]) -> None:
    leaf = peers.split_chain(certificate.chain)[0]
    if peers.key_sha256(leaf) != peers.key_sha256(keys.tls.public_key()):
        raise ValueError("the control plane sent a certificate for another key than this worker's")
    if not any(peers.is_issued_by(leaf, authority) for authority in authorities):
        raise ValueError("the control plane sent a certificate that none of its authorities issued")


class Credentials:
    """What sessions are opened with: Access of the connection, and an attendant of each session."""

    def __init__(
        self,
        data_dir: Path,
        identity: Identity,
        keys: Keys,
        clock: AgentClock,
        say: Callable[[str], None],
    ) -> None:
        self._data_dir = data_dir
        self._identity = identity
        self._keys = keys
        self._clock = clock
        self._say = say
        self._key_pem = peers.key_to_pem(keys.tls)
        self._trust = _read(data_dir / TRUST_FILE, peers.bundle_pins)
        self._chain = _read(data_dir / CERTIFICATE_FILE, self._check_own)
        self._renew_at_ms = self._renewal_ms()
        """Boot clock."""
        self._asked_at_ms: int | None = None
        self._unanswered = 0
        """Requests for a certificate since the last one came."""
        self._changed = asyncio.Event()
        self._refusals = 0

    @property
    def identity(self) -> Identity:
        """As it is on disk."""
        return self._identity

    @property
    def notice(self) -> str:
        """What the owner should know of a renewal that keeps failing; empty where it does not."""
        if self._unanswered <= UNANSWERED_MAX:
            return ""
        end = instant(peers.certificate_times(self._chain)[1]) if self._chain else "now"
        return (
            f"it was asked for again {self._unanswered} times and none came; the present one is good until {end}."
            " Ask the network's operator, who finds the reason in the log of `orch serve`"
        )

    def _check_own(self, chain: bytes) -> None:
        if peers.key_sha256(chain) != peers.key_sha256(self._keys.tls.public_key()):
            raise ValueError("a certificate for another key")

    def _renewal_ms(self) -> int:
        """When to renew, on this boot's clock."""
        now, received = self._clock.now(), self._identity.certificate
        if received.boot_id == now.boot_id:
            return received.renew_boottime_ms
        if not self._chain:
            return now.monotonic_ms
        wait_ms = max(0, received.renew_after_unix_ms - now.wall_ms)
        return now.monotonic_ms + min(wait_ms, self._half_life_ms())

    def _half_life_ms(self) -> int:
        ends_ms = peers.certificate_times(self._chain)[1] if self._chain else 0
        return max(0, ends_ms - self._identity.certificate.renew_after_unix_ms)

    def _is_young(self) -> bool:
        """Whether the certificate came within the hour, by the boot clock."""
        came_ms = self._renew_at_ms - self._half_life_ms()
        return self._clock.boottime_ms() - came_ms < YOUNG_MS

    # ------------------------------------------------------------ connecting

    async def endpoint(self) -> Endpoint:
        """As Access.endpoint: with another certificate first where the present one will not do."""
        if not self._trust:
            await self._refetch_trust()
        if not self._chain or self._recovery_due():
            await self._recover()
        return Endpoint(self._identity.session_endpoint, self._trust, self._key_pem, self._chain)

    def accepted(self) -> None:
        """As Access.accepted."""
        self._refusals = 0
        received = self._identity.certificate
        if not received.proved:
            self._identity = replace(self._identity, certificate=replace(received, proved=True))
            save_identity(self._data_dir, self._identity)

    async def failed(self, reason: str) -> NoReturn:
        """As Access.failed: tell apart a wrong clock, a wrong server and a refused certificate."""
        address = self._identity.session_endpoint
        if UNVERIFIED in reason:
            raise ConnectionError(await self._distrusted(address))
        if "failed to connect" in reason and any(text in reason for text in HANDSHAKE_ENDED):
            self._refusals += 1
            before_ms, after_ms = peers.certificate_times(self._chain)
            raise ConnectionError(
                f"the control plane at {address} ended the connection at the handshake: it may be stopping, or"
                f" refuse this worker's certificate, valid from {instant(before_ms)} to {instant(after_ms)};"
                f" this machine's clock says {instant(self._clock.now().wall_ms)}"
            )
        raise ConnectionError(reason)

    async def _distrusted(self, address: str) -> str:
        try:
            leaf = await read_leaf(address)
        except ConnectionError as error:
            return str(error)
        fault = clock_fault(leaf, self._clock.now().wall_ms)
        return fault or (
            f"the server at {address} shows no certificate of the network this worker joined (expected a CA with"
            f" pin {self._identity.ca_pin}): another one answers there, or the CA was replaced during a long"
            " absence; check --control-plane, or join as a new worker from another --data-dir"
        )

    async def _refetch_trust(self) -> None:
        """The file is gone or damaged; the pin of its newest CA is still known."""
        identity = self._identity
        try:
            wall_ms = self._clock.now().wall_ms
            self._trust = await fetch_trust(identity.control_plane, identity.ca_pin, wall_ms)
        except TrustError as error:
            raise ConnectionError(str(error)) from None
        write_whole(self._data_dir / TRUST_FILE, self._trust)

    # ------------------------------------------------------------ recovery

    def _recovery_due(self) -> bool:
        """Whether the last attempt was refused and the certificate is at fault, as far as this machine can tell."""
        now, received = self._clock.now(), self._identity.certificate
        expired = now.wall_ms > peers.certificate_times(self._chain)[1]
        if received.boot_id == now.boot_id and now.monotonic_ms < received.renew_boottime_ms:
            # It came less than half its life ago, so only the wall clock is in its last days.
            expired = False
        return self._refusals >= (1 if expired else REFUSALS_MAX)

    async def _recover(self) -> None:
        """Ask for another certificate. Raises ConnectionError, RefusedForeverError."""
        identity, now = self._identity, self._clock.now()
        if not identity.certificate.proved and self._chain and now.monotonic_ms < self._renew_at_ms:
            self._refusals = 0
            raise ConnectionError(
                f"the control plane at {identity.session_endpoint} ends connections even with the certificate it"
                " has just given: its operator should look at its session listener"
            )
        try:
            answer = await recover(
                Endpoint(identity.control_plane, self._trust), identity.worker_id, self._keys
            )
        except ConnectionError as error:
            if UNVERIFIED in str(error):
                raise ConnectionError(await self._distrusted(identity.control_plane)) from None
            raise ConnectionError(f"no recovery at {identity.control_plane}: {error}") from None
        except JoinRefusedError as error:
            if not error.for_good:
                raise ConnectionError(f"no recovery now: {error}") from None
            raise RefusedForeverError(
                f"{error}; another --data-dir and a new join token make this machine a new worker"
            ) from None
        if answer.session_address:
            self._identity = replace(identity, session_address=answer.session_address)
        try:
            self._install(answer.certificate, proved=False)
        except ValueError as error:
            raise ConnectionError(str(error)) from None
        self._refusals = 0
        log.warning("certificate_recovered", recoveries_left=answer.recoveries_left)
        self._say(
            "the certificate had run out and was replaced; that can be done"
            f" {answer.recoveries_left} more time(s) soon, and more often as time passes"
        )

    # ------------------------------------------------------------ renewal

    async def attend(self, channel: ControlChannel) -> None:
        """As Attendant.attend: ask for the next certificate when it is time."""
        self._asked_at_ms = None
        if not self._is_young():
            self._renew_at_ms = min(self._renew_at_ms, self._clock.boottime_ms())
        while True:
            self._changed.clear()
            if self._renewal_due():
                self._asked_at_ms = self._clock.boottime_ms()
                renew = worker_pb2.RenewCertificate(tls_csr=peers.make_csr(self._keys.tls))
                await channel.send(worker_pb2.SessionRequest(renew_certificate=renew))
                self._count_unanswered()
            with contextlib.suppress(TimeoutError):
                # Looked at regularly, because a timer of this process does not count sleep.
                async with asyncio.timeout(LOOK_S):
                    await self._changed.wait()

    def _count_unanswered(self) -> None:
        """Raise the voice once, when it is likelier a refusal than a lost message."""
        self._unanswered += 1
        if self._unanswered == UNANSWERED_MAX + 1:
            log.warning("certificate_not_renewed", asked=self._unanswered)
            self._say(f"the certificate is not renewed: {self.notice}")

    def _renewal_due(self) -> bool:
        now_ms = self._clock.boottime_ms()
        asked_ms = self._asked_at_ms
        waiting = asked_ms is not None and now_ms - asked_ms < LOOK_S * 1000
        return now_ms >= self._renew_at_ms and not waiting

    def take(self, message: worker_pb2.SessionResponse) -> None:
        """As Attendant.take. The connection that is open is left alone: the next one uses what came."""
        if not message.HasField("certificate"):
            return
        try:
            self._install(message.certificate, proved=True)
        except ValueError as error:
            log.warning("certificate_refused", reason=str(error))
            return
        if message.certificate.chain:
            log.info("certificate_renewed", not_after_unix_ms=message.certificate.not_after_unix_ms)
        else:
            # The CA has changed: what the old one signed should not be needed for long.
            self._renew_at_ms = self._clock.boottime_ms()
            log.info("authorities_changed", ca_pin=self._identity.ca_pin)
        self._changed.set()

    def _install(self, certificate: worker_pb2.Certificate, *, proved: bool) -> None:
        now = self._clock.now()
        self._identity = keep_certificate(
            self._data_dir, self._identity, self._keys, certificate, now, proved=proved
        )
        self._trust = certificate.trust_bundle
        if certificate.chain:
            self._unanswered = 0
            self._chain = certificate.chain
            self._renew_at_ms = self._identity.certificate.renew_boottime_ms


def _read(path: Path, check: Callable[[bytes], object]) -> bytes:
    """A file's content, or nothing where it is gone or damaged: both files can be had again."""
    try:
        data = path.read_bytes()
        check(data)
    except (OSError, ValueError) as error:
        log.warning("file_unusable", path=str(path), reason=str(error))
        return b""
    return data
