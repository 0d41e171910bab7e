from __future__ import annotations

import base64
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import AttributeOID, NameOID

from orchestrator.adapters.authority import HOUR_MS, Authority
from orchestrator.adapters.peers import (
    BUNDLE_BYTES_MAX,
    CERTIFICATES_MAX,
    REQUEST_BYTES_MAX,
    SERVER_NAME,
    check_bundle,
    key_from_pem,
    key_sha256,
    key_to_pem,
    make_csr,
    new_tls_key,
    parse_spiffe_id,
    pin_of,
    read_csr,
    spiffe_id,
    split_chain,
)

NOW_MS = 1_800_000_000_000
UNSIGNED_BYTES = 1
"""The count of unused bits before the signature, which is 0 or, if its last bit is 0, as well 1."""

NAME = spiffe_id("net_01a2", "sup_1", "wkr_1")


def test_spiffe_id_comes_back_as_its_parts() -> None:
    assert NAME == "spiffe://net_01a2/supplier/sup_1/worker/wkr_1"
    assert parse_spiffe_id(NAME) == ("net_01a2", "sup_1", "wkr_1")


@pytest.mark.parametrize(
    "text",
    [
        "",
        NAME + "\n",
        NAME + "/",
        NAME.upper(),
        "https://net_1/supplier/s/worker/w",
        "spiffe://net_1/supplier//worker/w",
        "spiffe://net_1/supplier/../worker/w",
        "spiffe://net_1/supplier/s/worker/w?x=1",
        "spiffe://net_1/supplier/s%2f/worker/w",
        "spiffe://net_1/supplier/ś/worker/w",
        "spiffe://net_1/supplier/s/worker/" + "w" * 65,
        "spiffe://net_1/supplier/s/worker/" + "w" * 1_000_000,
    ],
)
def test_parse_spiffe_id_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a worker's name"):
        parse_spiffe_id(text)


@pytest.mark.parametrize("parts", [("net_1", "s/worker/x", "w"), ("net_1", "s", ""), ("net 1", "s", "w")])
def test_spiffe_id_of_parts_that_would_change_it_is_refused(parts: tuple[str, str, str]) -> None:
    with pytest.raises(ValueError, match="name"):
        spiffe_id(*parts)


def test_read_csr_gives_the_key_that_signed_it() -> None:
    key = new_tls_key()
    assert key_sha256(read_csr(make_csr(key))) == key_sha256(key.public_key())


def _request(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey,
    build: Callable[[x509.CertificateSigningRequestBuilder], x509.CertificateSigningRequestBuilder],
) -> bytes:
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    builder = build(x509.CertificateSigningRequestBuilder())
    return builder.sign(key, digest).public_bytes(serialization.Encoding.DER)


def _changed(der: bytes) -> Iterator[bytes]:
    """The same with one bit of each byte in turn turned over."""
    for place in range(len(der)):
        yield der[:place] + bytes([der[place] ^ 0x01]) + der[place + 1 :]


def _unnamed(builder: x509.CertificateSigningRequestBuilder) -> x509.CertificateSigningRequestBuilder:
    return builder.subject_name(x509.Name([]))


def test_read_csr_that_asks_for_a_name_is_refused(tmp_path: Path) -> None:
    authority = Authority(tmp_path, now_ms=NOW_MS, founded=False)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, SERVER_NAME)])
    uri = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(NAME)])
    challenge = AttributeOID.CHALLENGE_PASSWORD
    for request in (
        _request(new_tls_key(), lambda builder: builder.subject_name(subject)),
        _request(new_tls_key(), lambda builder: _unnamed(builder).add_extension(uri, critical=False)),
        _request(new_tls_key(), lambda builder: _unnamed(builder).add_attribute(challenge, b"x")),
    ):
        with pytest.raises(ValueError, match="names are given by the control plane"):
            authority.issue_worker(request, NAME, NOW_MS, HOUR_MS)


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        rsa.generate_private_key(65537, 2048),
        ed25519.Ed25519PrivateKey.generate(),
    ],
    ids=["P-384", "RSA", "Ed25519"],
)
def test_read_csr_of_another_kind_of_key_is_refused(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey,
) -> None:
    with pytest.raises(ValueError, match="P-256"):
        read_csr(_request(key, _unnamed))


def test_read_csr_for_somebody_elses_key_is_refused() -> None:
    mine, theirs = new_tls_key(), new_tls_key()
    own, other = (
        key.public_key().public_bytes(
            serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
        )
        for key in (mine, theirs)
    )
    stolen = make_csr(mine).replace(own, other)
    assert stolen != make_csr(mine)
    with pytest.raises(ValueError, match="not signed by the key"):
        read_csr(stolen)


def test_read_csr_with_any_byte_changed_is_refused_or_says_the_same() -> None:
    key = new_tls_key()
    request = make_csr(key)
    kept = 0
    for changed in _changed(request):
        with contextlib.suppress(ValueError):
            assert key_sha256(read_csr(changed)) == key_sha256(key.public_key())
            kept += 1
    assert kept <= UNSIGNED_BYTES


@pytest.mark.parametrize(
    ("der", "complaint"),
    [
        (b"", "not PKCS#10"),
        (b"-----BEGIN CERTIFICATE REQUEST-----", "not PKCS#10"),
        (make_csr(new_tls_key())[:-1], "not PKCS#10"),
        (make_csr(new_tls_key()) + b"\0", "not PKCS#10"),
        (b"\x30" * (REQUEST_BYTES_MAX + 1), f"at most {REQUEST_BYTES_MAX}"),
    ],
)
def test_read_csr_of_other_bytes_is_refused(der: bytes, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        read_csr(der)


def test_key_from_pem_of_another_kind_is_refused() -> None:
    key = new_tls_key()
    assert key_sha256(key_from_pem(key_to_pem(key)).public_key()) == key_sha256(key.public_key())
    other = ec.generate_private_key(ec.SECP384R1())
    with pytest.raises(ValueError, match="P-256"):
        key_from_pem(key_to_pem(other))


def test_check_bundle_finds_the_pinned_ca_old_or_new(tmp_path: Path) -> None:
    authority = Authority(tmp_path, now_ms=NOW_MS, founded=False)
    old_pin = authority.pin
    authority.rotate(NOW_MS)
    newest, oldest = split_chain(authority.trust_bundle())
    assert check_bundle(authority.trust_bundle(), authority.pin) == newest
    assert check_bundle(authority.trust_bundle(), old_pin) == oldest
    assert len(old_pin) == 43
    authority.retire()
    with pytest.raises(ValueError, match="new join token"):
        check_bundle(authority.trust_bundle(), old_pin)


def test_check_bundle_with_the_pinned_key_in_another_certificate_is_refused(tmp_path: Path) -> None:
    authority = Authority(tmp_path, now_ms=NOW_MS, founded=False)
    authority.rotate(NOW_MS)
    leaf, cross = split_chain(authority.server_credentials_pem(NOW_MS)[1])
    for impostor in (leaf, cross):
        with pytest.raises(ValueError, match="not a CA's own"):
            check_bundle(impostor, pin_of(impostor))


def test_check_bundle_with_any_byte_changed_is_refused_or_says_the_same(tmp_path: Path) -> None:
    authority = Authority(tmp_path, now_ms=NOW_MS, founded=False)
    certificate = x509.load_pem_x509_certificate(authority.trust_bundle())
    kept = 0
    for changed in _changed(certificate.public_bytes(serialization.Encoding.DER)):
        body = base64.encodebytes(changed)
        bundle = b"-----BEGIN CERTIFICATE-----\n" + body + b"-----END CERTIFICATE-----\n"
        with contextlib.suppress(ValueError):
            found = x509.load_pem_x509_certificate(check_bundle(bundle, authority.pin))
            assert found.tbs_certificate_bytes == certificate.tbs_certificate_bytes
            kept += 1
    assert kept <= UNSIGNED_BYTES


def test_check_bundle_beyond_its_bounds_is_refused(tmp_path: Path) -> None:
    authority = Authority(tmp_path, now_ms=NOW_MS, founded=False)
    bundle, pin = authority.trust_bundle(), authority.pin
    for wrong in (b"", b"x" * (BUNDLE_BYTES_MAX + 1), bundle * (CERTIFICATES_MAX + 1), bundle[:-60]):
        with pytest.raises(ValueError, match="certificates"):
            check_bundle(wrong, pin)
