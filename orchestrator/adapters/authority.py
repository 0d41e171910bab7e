"""The control plane's certificate authority: who is the control plane, and which worker is which.

In its folder: ``ca/0001.key`` and ``ca/0001.pem`` (one generation of the CA), ``ca/0002.cross.pem`` (generation
2 certified by generation 1), ``ca/retired/`` (certificates that are not trusted any more, whose keys are gone)
and ``ca.pem`` (the trust bundle, for `orch` on this machine).

Rotation drops nobody: workers of every trusted generation are let in, and the server shows the cross
certificates, so that one who knows only the old CA reaches the new one through it. Those outlive a retirement: a
worker that was off meanwhile shows a certificate that is refused, and can still learn whom to trust and recover.
A generation *exists* once its key is on the disk, because whatever else it needs can be made from that; it is
*retired* once its certificate was moved away. What a crash left undone is finished at the next start.
"""

from __future__ import annotations

import ipaddress
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from orchestrator.adapters.files import make_folder, sync_folder, write_whole
from orchestrator.adapters.keys import FILE_BYTES_MAX, OTHERS, KeyFileError
from orchestrator.adapters.peers import (
    SERVER_NAME,
    certificate_times,
    certificate_to_pem,
    is_issued_by,
    key_from_pem,
    key_sha256,
    key_to_pem,
    load_certificate,
    new_tls_key,
    parse_spiffe_id,
    pin_of,
    read_csr,
    split_chain,
)

CA_FOLDER = "ca"
RETIRED_FOLDER = "retired"
BUNDLE_FILE = "ca.pem"

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS

CA_LIFE_MS = 3650 * DAY_MS
"""Ten years: a CA ends because it is rotated, never because somebody forgot it."""

SERVER_LIFE_MS = 7 * DAY_MS
"""Its key lives in memory only; a week covers any agent's clock, and it is made anew at half of it."""

SKEW_MS = DAY_MS
"""How far an agent's clock may be behind when it verifies the control plane."""

WORKER_LIFE_MS_MAX = DAY_MS
"""From not-before to not-after: what a stolen worker's key is good for without renewal."""

WORKER_BACKDATE_MS = HOUR_MS
"""TLS reads this machine's wall clock while control time is steered; the two differ by less, or worse is wrong."""

GENERATIONS_MAX = 8
"""Trusted at once: each adds a certificate to every handshake, and a ninth means nobody retires any."""

CROSSES_MAX = GENERATIONS_MAX
"""Cross certificates in the server's chain: who was away for more rotations than that has to join anew."""

_FILE = re.compile(r"(\d{4,9})\.(?:key|pem)")
_CROSS_FILE = re.compile(r"(\d{4,9})\.cross\.pem")


class AuthorityError(Exception):
    """The CA cannot do what was asked of it in its present state; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A worker's certificate. The chain is the leaf alone: the control plane knows all of its issuers."""

    chain_pem: bytes
    not_after_ms: int
    serial: int


@dataclass(frozen=True, slots=True)
class CaGeneration:
    """One trusted generation, for the operator to look at."""

    number: int
    pin: str
    not_after_ms: int


@dataclass(frozen=True, slots=True)
class _Generation:
    """``cross_pem`` is this generation certified by the one before it, unless there was none in force.

    The oldest trusted one's goes on with those of the retired ones before it.
    """

    number: int
    key: ec.EllipticCurvePrivateKey = field(repr=False)
    pem: bytes
    cross_pem: bytes

    @property
    def not_after_ms(self) -> int:
        return certificate_times(self.pem)[1]


@dataclass(frozen=True, slots=True)
class _ServerIdentity:
    """The control plane's own certificate, and the trusted generations that its chain was made for."""

    trusted: tuple[_Generation, ...]
    made_ms: int
    key_pem: bytes = field(repr=False)
    chain_pem: bytes


class Authority:
    """The CA of one control plane. Reading is safe from any thread; changes wait for each other."""

    def __init__(self, folder: Path, *, now_ms: int, founded: bool) -> None:
        """Load, or make what is missing. Blocking; raises KeyFileError or OSError.

        Once its network is ``founded``, workers trust the CA there is: a missing one is refused, not replaced.
        """
        make_folder(folder)
        self._bundle_path = folder / BUNDLE_FILE
        self._folder = folder / CA_FOLDER
        make_folder(self._folder)
        make_folder(self._folder / RETIRED_FOLDER)
        self._changing = threading.Lock()
        self._servers: dict[tuple[str, ...], _ServerIdentity] = {}
        self._trusted = self._load(now_ms, founded=founded)
        """Newest first; replaced as a whole, so that a reader never sees half a change."""
        self._publish()

    @property
    def generation(self) -> int:
        """The number of the generation that signs."""
        return self._trusted[0].number

    @property
    def pin(self) -> str:
        """What a new join token names the CA by."""
        return pin_of(self._trusted[0].pem)

    @property
    def generations(self) -> tuple[CaGeneration, ...]:
        """All that are trusted now, newest first."""
        return tuple(CaGeneration(one.number, pin_of(one.pem), one.not_after_ms) for one in self._trusted)

    def trust_bundle(self) -> bytes:
        """The certificates (PEM) of all trusted generations, newest first."""
        return b"".join(one.pem for one in self._trusted)

    def server_credentials_pem(
        self, now_ms: int, names: tuple[str, ...] = (SERVER_NAME,)
    ) -> tuple[bytes, bytes]:
        """(private key, chain) that the control plane shows; cheap to ask for at each handshake.

        ``names`` are DNS names and IP addresses. The chain goes on with the cross certificates from newest to
        oldest: whoever trusts any generation, a retired one too, finds a path, and whoever trusts the newest needs
        none of them.
        """
        trusted, server = self._trusted, self._servers.get(names)
        if (
            server is None
            or server.trusted is not trusted
            or not server.made_ms <= now_ms < server.made_ms + SERVER_LIFE_MS // 2
        ):
            server = _server_identity(trusted, names, now_ms)
            self._servers[names] = server
        return server.key_pem, server.chain_pem

    def issue_worker(self, csr_der: bytes, spiffe_id: str, now_ms: int, life_ms: int) -> Issued:
        """A certificate for the key in the request, under the name that *we* say; nothing is recorded.

        It ends at ``now_ms + life_ms``, or a day after its backdated start if that is earlier. ValueError if the
        request, the name or the life will not do; AuthorityError if the CA itself has run out.
        """
        if not 0 < life_ms <= WORKER_LIFE_MS_MAX:
            raise ValueError(
                f"life_ms is {life_ms}; a worker's certificate lives 1 to {WORKER_LIFE_MS_MAX} ms"
            )
        parse_spiffe_id(spiffe_id)
        key = read_csr(csr_der)
        not_before_ms = now_ms - WORKER_BACKDATE_MS
        leaf = _leaf(
            self._trusted[0],
            key,
            [x509.UniformResourceIdentifier(spiffe_id)],
            ExtendedKeyUsageOID.CLIENT_AUTH,
            (not_before_ms, min(now_ms + life_ms, not_before_ms + WORKER_LIFE_MS_MAX)),
        )
        pem = certificate_to_pem(leaf)
        return Issued(pem, certificate_times(pem)[1], leaf.serial_number)

    def rotate(self, now_ms: int) -> None:
        """Sign with a new generation from now on; the others stay trusted. Blocking; may be tried again."""
        with self._changing:
            if len(self._trusted) >= GENERATIONS_MAX:
                raise AuthorityError(
                    f"{GENERATIONS_MAX} generations of the CA are trusted; retire the old ones first"
                )
            newest = self._trusted[0]
            number = newest.number + 1
            if not self._path(number, "key").exists():
                self._make_key(number)
            self._trusted = (self._complete(number, newest, now_ms), *self._trusted)
            self._publish()

    def retire(self) -> None:
        """Trust nothing but the newest generation from now on. Blocking; may be tried again.

        Who has no certificate of the newest generation by then is refused at the next handshake and has to
        recover; who trusts only an older one still finds us, by the cross certificates. Sessions already open are
        not ended.
        """
        with self._changing:
            if len(self._trusted) == 1:
                raise AuthorityError(f"generation {self.generation} of the CA is the only one; rotate first")
            for oldest in reversed(self._trusted[1:]):
                certificate = self._path(oldest.number, "pem")
                certificate.rename(self._retired_path(oldest.number))
                sync_folder(self._folder / RETIRED_FOLDER)
                sync_folder(self._folder)
                *newer, left = self._trusted[:-1]
                gone = self._trusted[-1].cross_pem
                self._trusted = (*newer, replace(left, cross_pem=left.cross_pem + gone))
            self._publish()
            self._sweep()

    def _path(self, number: int, kind: str) -> Path:
        return self._folder / f"{number:04d}.{kind}"

    def _retired_path(self, number: int) -> Path:
        return self._folder / RETIRED_FOLDER / f"{number:04d}.pem"

    def _load(self, now_ms: int, *, founded: bool) -> tuple[_Generation, ...]:
        self._sweep()
        numbers = sorted(_numbers(self._folder))
        if not numbers:
            if founded or _numbers(self._folder / RETIRED_FOLDER):
                raise _missing(self._path(1, "key"))
            self._make_key(1)
            numbers = [1]
        trusted: tuple[_Generation, ...] = ()
        for number in range(numbers[0], numbers[-1] + 1):
            trusted = (self._complete(number, trusted[0] if trusted else None, now_ms), *trusted)
        return trusted

    def _complete(self, number: int, older: _Generation | None, now_ms: int) -> _Generation:
        """The generation whose key is on the disk, with whatever a crash kept from being made."""
        path = self._path(number, "key")
        try:
            key = key_from_pem(_secret(path))
        except ValueError as error:
            raise KeyFileError(f"{path} holds no P-256 key; restore it from a backup") from error
        pem = self._certificate(self._path(number, "pem"), key, lambda: _root(number, key, now_ms))
        if older is None:
            return _Generation(number, key, pem, self._bridges(number, pem))
        if older.not_after_ms <= now_ms:
            return _Generation(number, key, pem, b"")
        issuer, name = older, load_certificate(pem).subject
        cross = self._certificate(
            self._path(number, "cross.pem"),
            key,
            lambda: _cross(name, key.public_key(), issuer, now_ms),
            issuer,
        )
        return _Generation(number, key, pem, cross)

    def _bridges(self, number: int, pem: bytes) -> bytes:
        """The cross certificates that lead from the oldest trusted generation back through retired ones."""
        found = b""
        while (path := self._path(number, "cross.pem")).exists():
            retired = self._retired_path(number - 1)
            try:
                issuer, cross = _bridge(retired, path, pem)
            except (ValueError, FileNotFoundError) as error:
                raise KeyFileError(
                    f"{path} is not generation {number} of the CA certified by {retired}; restore it from a"
                    " backup, or delete it: workers that know only older generations must then join anew"
                ) from error
            found += cross
            number, pem = number - 1, issuer
        return found

    def _certificate(
        self,
        path: Path,
        key: ec.EllipticCurvePrivateKey,
        make: Callable[[], x509.Certificate],
        issuer: _Generation | None = None,
    ) -> bytes:
        """The certificate of ``key`` by ``issuer``, or by itself; made if there is none."""
        if not path.exists():
            write_whole(path, certificate_to_pem(make()))
        pem = _public(path)
        try:
            belongs = key_sha256(pem) == key_sha256(key.public_key())
            belongs = belongs and is_issued_by(pem, issuer.pem if issuer else pem)
        except ValueError:
            belongs = False
        if not belongs:
            raise KeyFileError(
                f"{path} is not the certificate of the key beside it; restore it from a backup, or delete it:"
                " it is made again from the key"
            )
        return certificate_to_pem(load_certificate(pem))

    def _make_key(self, number: int) -> None:
        write_whole(self._path(number, "key"), key_to_pem(new_tls_key()))

    def _sweep(self) -> None:
        """Delete the keys of retired generations, and cross certificates too old to be shown."""
        for number in _numbers(self._folder / RETIRED_FOLDER):
            if not self._path(number, "pem").exists():
                self._path(number, "key").unlink(missing_ok=True)
        newest = max(_numbers(self._folder), default=0)
        for number in _numbers(self._folder, _CROSS_FILE):
            if number <= newest - CROSSES_MAX:
                self._path(number, "cross.pem").unlink(missing_ok=True)
        sync_folder(self._folder)

    def _publish(self) -> None:
        bundle = self.trust_bundle()
        if not self._bundle_path.exists() or self._bundle_path.read_bytes() != bundle:
            write_whole(self._bundle_path, bundle)


def _numbers(folder: Path, pattern: re.Pattern[str] = _FILE) -> set[int]:
    """The generations that have a key or a certificate (or what else ``pattern`` names) in ``folder``."""
    return {int(match[1]) for path in folder.iterdir() if (match := pattern.fullmatch(path.name))}


def _bridge(older: Path, cross: Path, pem: bytes) -> tuple[bytes, bytes]:
    """An older CA's certificate and the cross certificate by it of the key in ``pem``. Raises ValueError, OSError."""
    issuer, certified = (certificate_to_pem(load_certificate(_public(path))) for path in (older, cross))
    if pin_of(certified) != pin_of(pem) or not is_issued_by(certified, issuer):
        raise ValueError("of another key, or by another CA")
    return issuer, certified


def _public(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(FILE_BYTES_MAX)


def _missing(path: Path) -> KeyFileError:
    return KeyFileError(
        f"{path} is missing, and workers trust the CA that it belongs to; restore it from a backup,"
        " or name the --data-dir that has it"
    )


def _secret(path: Path) -> bytes:
    if not path.exists():
        raise _missing(path)
    if path.stat().st_mode & OTHERS:
        raise KeyFileError(f"{path} can be read by others; run `chmod 600 {path}`")
    with path.open("rb") as file:
        return file.read(FILE_BYTES_MAX)


def _moment(unix_ms: int) -> datetime:
    """X.509 knows whole seconds only."""
    return datetime.fromtimestamp(unix_ms // 1000, UTC)


def _sign(
    issuer: tuple[x509.Name, ec.EllipticCurvePrivateKey],
    subject: x509.Name,
    key: ec.EllipticCurvePublicKey,
    valid_ms: tuple[int, int],
    extensions: tuple[tuple[x509.ExtensionType, bool], ...],
) -> x509.Certificate:
    """A certificate with these extensions (each with whether it is critical) and both key identifiers."""
    name, signer = issuer
    builder = (
        x509.CertificateBuilder()
        .issuer_name(name)
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_moment(valid_ms[0]))
        .not_valid_after(_moment(valid_ms[1]))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(signer, hashes.SHA256())


def _usage(*, ca: bool) -> x509.KeyUsage:
    """A CA's key certifies and nothing else; a peer's key takes part in handshakes and nothing else."""
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _ca_extensions() -> tuple[tuple[x509.ExtensionType, bool], ...]:
    """No bound on the path's length: cross certificates make it as long as there are generations."""
    return (
        (x509.BasicConstraints(ca=True, path_length=None), True),
        (_usage(ca=True), True),
    )


def _root(number: int, key: ec.EllipticCurvePrivateKey, now_ms: int) -> x509.Certificate:
    """A CA's own certificate. Its name follows from number and key, so that one made again has the same."""
    public = key.public_key()
    name = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, f"orchestrator CA {number} {key_sha256(public)[:16]}")]
    )
    return _sign((name, key), name, public, (now_ms - SKEW_MS, now_ms + CA_LIFE_MS), _ca_extensions())


def _cross(
    name: x509.Name, key: ec.EllipticCurvePublicKey, older: _Generation, now_ms: int
) -> x509.Certificate:
    """A newer generation's name and key, certified by the older one for as long as that itself lives."""
    issuer = load_certificate(older.pem).subject, older.key
    return _sign(issuer, name, key, (now_ms - SKEW_MS, older.not_after_ms), _ca_extensions())


def _leaf(
    ca: _Generation,
    key: ec.EllipticCurvePublicKey,
    names: list[x509.GeneralName],
    usage: x509.ObjectIdentifier,
    valid_ms: tuple[int, int],
) -> x509.Certificate:
    """A certificate for one peer in one role. The subject is empty, hence the critical alternative name."""
    if valid_ms[1] > ca.not_after_ms:
        raise AuthorityError(f"generation {ca.number} of the CA has run out, or is about to; rotate the CA")
    extensions = (
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_usage(ca=False), True),
        (x509.ExtendedKeyUsage([usage]), False),
        (x509.SubjectAlternativeName(names), True),
    )
    issuer = load_certificate(ca.pem).subject, ca.key
    return _sign(issuer, x509.Name([]), key, valid_ms, extensions)


def _general_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _server_identity(
    trusted: tuple[_Generation, ...], names: tuple[str, ...], now_ms: int
) -> _ServerIdentity:
    key = new_tls_key()
    leaf = _leaf(
        trusted[0],
        key.public_key(),
        [_general_name(name) for name in names],
        ExtendedKeyUsageOID.SERVER_AUTH,
        (now_ms - SKEW_MS, now_ms + SERVER_LIFE_MS),
    )
    crosses = [cross for one in trusted if one.cross_pem for cross in split_chain(one.cross_pem)]
    alive = [cross for cross in crosses[:CROSSES_MAX] if certificate_times(cross)[1] > now_ms]
    return _ServerIdentity(trusted, now_ms, key_to_pem(key), certificate_to_pem(leaf) + b"".join(alive))
