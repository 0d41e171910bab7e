"""What both ends of a mutual-TLS session agree on: names, pins, and what a certificate request may say. No I/O.

TLS keys are P-256, because gRPC refuses Ed25519 certificates. The CA is private and names two kinds of peers
only: the control plane (server, one fixed DNS name; its gateway, the names that tenants reach it by) and workers
(clients, one SPIFFE URI each).
"""

from __future__ import annotations

import base64
import hashlib
import re

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

SERVER_NAME = "control.orchestrator"
"""The DNS name in every certificate of the control plane; clients override the target's name with it.

A control plane is reached by many addresses that come and go, and none of them needs to be proved: the CA is
private and certifies no other server, so whoever holds this name from it *is* the control plane.
"""

REQUEST_BYTES_MAX = 4096
"""A P-256 request without names takes under 300 bytes; this leaves room to tell a clumsy one what is wrong."""

BUNDLE_BYTES_MAX = 64 * 1024
"""Sixteen certificates of 1 KB as PEM, four times over; read before anybody is trusted, so it is bounded."""

CERTIFICATES_MAX = 16
"""Twice the generations that may be trusted at once; each costs a reader one signature check."""

SPIFFE_ID_CHARACTERS_MAX = 255
"""The longest that the pattern below admits is shorter; SPIFFE itself allows 2048 bytes."""

_UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    InvalidSignature,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
)
"""All that the library raises over bytes that a stranger made up."""

_SPIFFE_ID = re.compile(
    r"spiffe://(?P<network>[a-z0-9][a-z0-9_-]{0,63})"
    r"/supplier/(?P<supplier>[A-Za-z0-9][A-Za-z0-9_-]{0,63})"
    r"/worker/(?P<worker>[A-Za-z0-9][A-Za-z0-9_-]{0,63})"
)


JOIN_CONTEXT = b"orchestrator-join-v1"
RECOVER_CONTEXT = b"orchestrator-recover-v1"
SESSION_CONTEXT = b"orchestrator-session-v1"
"""What a statement key signs begins with one of these, so that no signature is good for anything else."""


def new_tls_key() -> ec.EllipticCurvePrivateKey:
    """A fresh P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_to_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Unencrypted PKCS#8: secret, for a file of the owner's only or for gRPC's hands."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def key_from_pem(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """The P-256 key in ``pem``; ValueError, without any of its content, if there is none."""
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except _UNREADABLE:
        raise ValueError("no unencrypted private key in PEM form") from None
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    raise ValueError("the private key is not on the curve P-256")


def key_sha256(key: ec.EllipticCurvePublicKey | bytes) -> str:
    """Hex SHA-256 of a public key's SubjectPublicKeyInfo (DER); ``bytes`` are a certificate in PEM form."""
    return hashlib.sha256(_public_key_info(key)).hexdigest()


def pin_of(certificate_pem: bytes) -> str:
    """What a join token carries of the CA: base64url, unpadded, of the SHA-256 of its SubjectPublicKeyInfo."""
    digest = hashlib.sha256(_public_key_info(certificate_pem)).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def certificate_times(certificate_pem: bytes) -> tuple[int, int]:
    """(not before, not after) in unix milliseconds."""
    certificate = load_certificate(certificate_pem)
    before, after = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return int(before.timestamp()) * 1000, int(after.timestamp()) * 1000


def spiffe_id(network_id: str, supplier_id: str, worker_id: str) -> str:
    """A worker's name: the network is the trust domain. ValueError if a part cannot stand in it."""
    text = f"spiffe://{network_id}/supplier/{supplier_id}/worker/{worker_id}"
    if parse_spiffe_id(text) != (network_id, supplier_id, worker_id):
        raise ValueError("network_id, supplier_id or worker_id holds a character that no id has")
    return text


def parse_spiffe_id(text: str) -> tuple[str, str, str]:
    """(network_id, supplier_id, worker_id) of a worker's name; ValueError on anything else."""
    match = _SPIFFE_ID.fullmatch(text) if len(text) <= SPIFFE_ID_CHARACTERS_MAX else None
    if match is None:
        raise ValueError("not a worker's name: expected spiffe://<network>/supplier/<id>/worker/<id>")
    return match["network"], match["supplier"], match["worker"]


def join_claim(secret: str, csr_der: bytes) -> bytes:
    """What a statement key signs at joining: one sender holds both keys and this token."""
    return JOIN_CONTEXT + hashlib.sha256(secret.encode()).digest() + hashlib.sha256(csr_der).digest()


def recovery_claim(nonce: bytes, worker_id: str, csr_der: bytes) -> bytes:
    """What a statement key signs to get another certificate."""
    return RECOVER_CONTEXT + nonce + worker_id.encode() + hashlib.sha256(csr_der).digest()


def session_claim(nonce: bytes, worker_id: str) -> bytes:
    """What a statement key signs at the beginning of a session."""
    return SESSION_CONTEXT + nonce + worker_id.encode()


def make_csr(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A request (PKCS#10, DER) that shows possession of ``key`` and asks for no name."""
    request = x509.CertificateSigningRequestBuilder(x509.Name([])).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.DER)


def read_csr(der: bytes) -> ec.EllipticCurvePublicKey:
    """The P-256 key whose holder made this request; ValueError says what is wrong with any other."""
    if len(der) > REQUEST_BYTES_MAX:
        raise ValueError(
            f"the certificate request has {len(der)} bytes; at most {REQUEST_BYTES_MAX} are read"
        )
    try:
        request = x509.load_der_x509_csr(der)
        named = bool(request.subject.rdns) or len(list(request.attributes)) > 0
    except _UNREADABLE:
        raise ValueError("the certificate request is not PKCS#10 in DER form") from None
    if named:
        raise ValueError(
            "the certificate request asks for a name or an extension: names are given by the control plane;"
            " send a request with an empty subject and no attributes"
        )
    key = _requested_key(request)
    if key is None:
        raise ValueError("the certificate request's key is not on the curve P-256, which TLS here uses")
    try:
        valid = request.is_signature_valid
    except _UNREADABLE:
        valid = False
    if not valid:
        raise ValueError("the certificate request is not signed by the key that it is for")
    return key


def is_issued_by(certificate_pem: bytes, issuer_pem: bytes) -> bool:
    """Whether the one is signed by the key of the other and names it as its issuer; times are not looked at."""
    certificate, issuer = load_certificate(certificate_pem), load_certificate(issuer_pem)
    try:
        certificate.verify_directly_issued_by(issuer)
    except _UNREADABLE:
        return False
    return True


def load_certificate(pem: bytes) -> x509.Certificate:
    """The first certificate in ``pem``; ValueError if there is none."""
    if len(pem) > BUNDLE_BYTES_MAX:
        raise ValueError(f"{len(pem)} bytes are no certificate; at most {BUNDLE_BYTES_MAX} are read")
    try:
        return x509.load_pem_x509_certificate(pem)
    except _UNREADABLE:
        raise ValueError("no certificate in PEM form") from None


def certificate_to_pem(certificate: x509.Certificate) -> bytes:
    """One certificate as PEM text."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def split_chain(pem: bytes) -> list[bytes]:
    """The certificates of a chain or bundle, each as PEM of its own; ValueError if any is damaged."""
    return [certificate_to_pem(certificate) for certificate in _certificates(pem)]


def bundle_pins(bundle_pem: bytes) -> dict[str, bytes]:
    """The CAs of a trust bundle as pin → certificate (PEM), in its order.

    ValueError unless each is a CA that certifies itself: a pin covers only the key, and the rest of the
    certificate counts only if the key's holder wrote it.
    """
    pins = {}
    for certificate in _certificates(bundle_pem):
        pem = certificate_to_pem(certificate)
        if not _may_certify(certificate) or not is_issued_by(pem, pem):
            raise ValueError("the trust bundle holds a certificate that is not a CA's own")
        pins[pin_of(pem)] = pem
    return pins


def check_bundle(bundle_pem: bytes, pin: str) -> bytes:
    """The CA's certificate (PEM) that ``pin`` names; ValueError if an untrusted bundle does not hold it."""
    found = bundle_pins(bundle_pem).get(pin)
    if found is None:
        raise ValueError(
            "the control plane does not show the CA that was pinned: either this is another control plane,"
            " or its CA was replaced since; check the address, or get a new join token"
        )
    return found


def _public_key_info(key: ec.EllipticCurvePublicKey | bytes) -> bytes:
    try:
        public = load_certificate(key).public_key() if isinstance(key, bytes) else key
    except _UNREADABLE:
        raise ValueError("no certificate in PEM form whose key can be read") from None
    return public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _certificates(pem: bytes) -> list[x509.Certificate]:
    if len(pem) > BUNDLE_BYTES_MAX:
        raise ValueError(f"the certificates have {len(pem)} bytes; at most {BUNDLE_BYTES_MAX} are read")
    try:
        certificates = x509.load_pem_x509_certificates(pem)
    except _UNREADABLE:
        raise ValueError("no certificates in PEM form") from None
    if len(certificates) > CERTIFICATES_MAX:
        raise ValueError(f"{len(certificates)} certificates; at most {CERTIFICATES_MAX} are read")
    return certificates


def _requested_key(request: x509.CertificateSigningRequest) -> ec.EllipticCurvePublicKey | None:
    try:
        key = request.public_key()
    except _UNREADABLE:
        return None
    return key if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1) else None


def _may_certify(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except _UNREADABLE:
        return False
