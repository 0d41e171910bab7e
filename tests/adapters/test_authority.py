from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from orchestrator.adapters.authority import (
    CROSSES_MAX,
    DAY_MS,
    GENERATIONS_MAX,
    HOUR_MS,
    SERVER_LIFE_MS,
    WORKER_LIFE_MS_MAX,
    Authority,
    AuthorityError,
)
from orchestrator.adapters.clock import SystemClock
from orchestrator.adapters.keys import KeyFileError
from orchestrator.adapters.peers import (
    SERVER_NAME,
    bundle_pins,
    certificate_times,
    check_bundle,
    is_issued_by,
    key_to_pem,
    load_certificate,
    make_csr,
    new_tls_key,
    pin_of,
    spiffe_id,
    split_chain,
)

NOW_MS = SystemClock().now().wall_ms
"""TLS compares certificates with the machine's own clock, so the tests live in its present."""

NAME = spiffe_id("net_01a2", "sup_1", "wkr_1")
CALL_S = 20.0
"""A refusal comes at once; a call that runs into this is a test that fails."""


def made(folder: Path, *, now_ms: int = NOW_MS, founded: bool = False) -> Authority:
    return Authority(folder, now_ms=now_ms, founded=founded)


class Worker:
    """A worker's key, with the certificate that an authority gave it."""

    def __init__(self, authority: Authority, *, now_ms: int = NOW_MS) -> None:
        self.key = new_tls_key()
        self.issued = authority.issue_worker(make_csr(self.key), NAME, now_ms, HOUR_MS)

    @property
    def pair(self) -> tuple[bytes, bytes]:
        return key_to_pem(self.key), self.issued.chain_pem


async def _who(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
    names = context.auth_context()["peer_spiffe_id"]
    return b",".join(names)


@asynccontextmanager
async def serving(
    trust: Callable[[], bytes], identity: Callable[[], tuple[bytes, bytes]]
) -> AsyncIterator[int]:
    """A server that asks anew at each handshake whom to trust and what to show; answers who calls."""

    def fetch() -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([identity()], root_certificates=trust())

    server = grpc.aio.server()
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "Who": grpc.unary_unary_rpc_method_handler(_who)
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Peers", handlers),))
    port = server.add_secure_port(
        "127.0.0.1:0", grpc.dynamic_ssl_server_credentials(fetch(), fetch, require_client_authentication=True)
    )
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


@asynccontextmanager
async def control(authority: Authority) -> AsyncIterator[int]:
    async with serving(authority.trust_bundle, lambda: authority.server_credentials_pem(NOW_MS)) as port:
        yield port


async def called(port: int, roots: bytes, pair: tuple[bytes, bytes] | None) -> str:
    """Who the server takes us for on a fresh connection."""
    key, chain = pair or (None, None)
    options = (("grpc.ssl_target_name_override", SERVER_NAME), ("grpc.use_local_subchannel_pool", 1))
    credentials = grpc.ssl_channel_credentials(roots, key, chain)
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=options) as channel:
        who: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/test.Peers/Who")
        return (await who(b"", timeout=CALL_S)).decode()


async def refused(port: int, roots: bytes, pair: tuple[bytes, bytes] | None) -> bool:
    """Whether the connection, not the call, is what fails."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await called(port, roots, pair)
    return error.value.code() is grpc.StatusCode.UNAVAILABLE


# Sessions over real mutual TLS


async def test_session_with_an_issued_certificate_names_the_worker(tmp_path: Path) -> None:
    authority = made(tmp_path)
    worker = Worker(authority)
    async with control(authority) as port:
        assert await called(port, authority.trust_bundle(), worker.pair) == NAME
        assert await refused(port, authority.trust_bundle(), None)


async def test_session_before_and_after_rotation_drops_nobody(tmp_path: Path) -> None:
    authority = made(tmp_path)
    worker_of_old, old_ca = Worker(authority), authority.trust_bundle()
    async with control(authority) as port:
        authority.rotate(NOW_MS)
        worker_of_new = Worker(authority)
        both, new_ca = authority.trust_bundle(), check_bundle(authority.trust_bundle(), authority.pin)
        for worker in (worker_of_old, worker_of_new):
            for roots in (old_ca, new_ca, both):
                assert await called(port, roots, worker.pair) == NAME


async def test_session_with_trust_two_rotations_old_follows_the_cross_certificates(tmp_path: Path) -> None:
    authority = made(tmp_path)
    worker, roots = Worker(authority), [authority.trust_bundle()]
    for _ in range(2):
        authority.rotate(NOW_MS)
        roots.append(check_bundle(authority.trust_bundle(), authority.pin))
    async with control(made(tmp_path, founded=True)) as port:
        for root in roots:
            assert await called(port, root, worker.pair) == NAME


async def test_session_after_retirement_takes_only_the_renewed(tmp_path: Path) -> None:
    authority = made(tmp_path)
    worker_of_old = Worker(authority)
    async with control(authority) as port:
        authority.rotate(NOW_MS)
        renewed = Worker(authority)
        authority.retire()
        assert await refused(port, authority.trust_bundle(), worker_of_old.pair)
        assert await called(port, authority.trust_bundle(), renewed.pair) == NAME


async def test_server_is_known_to_whoever_trusts_a_retired_generation(tmp_path: Path) -> None:
    """Away for two rotations, each retired at once; also after a restart, and when the next one comes."""
    authority = made(tmp_path)
    roots = [authority.trust_bundle()]
    for _ in range(2):
        authority.rotate(NOW_MS)
        authority.retire()
        roots.append(authority.trust_bundle())
    async with control(authority) as port:
        for root in roots:
            assert await called(port, root, Worker(authority).pair) == NAME
    again = made(tmp_path, founded=True)
    again.rotate(NOW_MS)
    async with control(again) as port:
        for root in roots:
            assert await called(port, root, Worker(again).pair) == NAME


def test_server_chain_is_bounded_however_many_generations_were_retired(tmp_path: Path) -> None:
    authority = made(tmp_path)
    for _ in range(CROSSES_MAX + 3):
        authority.rotate(NOW_MS)
        authority.retire()
    for one in (authority, made(tmp_path, founded=True)):
        assert len(split_chain(one.server_credentials_pem(NOW_MS)[1])) == 1 + CROSSES_MAX
    assert len(list((tmp_path / "ca").glob("*.cross.pem"))) == CROSSES_MAX


def test_bridge_to_a_retired_generation_that_is_damaged_is_refused_with_the_remedy(tmp_path: Path) -> None:
    authority = made(tmp_path)
    authority.rotate(NOW_MS)
    authority.retire()
    bridge = tmp_path / "ca" / "0002.cross.pem"
    bridge.write_bytes(b"zz")
    with pytest.raises(KeyFileError, match=r"0002\.cross\.pem.*delete it"):
        made(tmp_path, founded=True)
    bridge.unlink()
    assert len(split_chain(made(tmp_path, founded=True).server_credentials_pem(NOW_MS)[1])) == 1


async def test_session_with_a_foreign_ca_is_refused_on_either_side(tmp_path: Path) -> None:
    authority, foreign = made(tmp_path / "own"), made(tmp_path / "foreign")
    async with control(authority) as port:
        assert await refused(port, authority.trust_bundle(), Worker(foreign).pair)
        assert await refused(port, foreign.trust_bundle(), Worker(authority).pair)
        assert await called(port, authority.trust_bundle(), Worker(authority).pair) == NAME


async def test_session_with_an_expired_certificate_is_refused(tmp_path: Path) -> None:
    authority = made(tmp_path)
    expired = Worker(authority, now_ms=NOW_MS - 2 * HOUR_MS)
    assert NOW_MS - HOUR_MS - 1000 <= expired.issued.not_after_ms <= NOW_MS - HOUR_MS
    async with control(authority) as port:
        assert await refused(port, authority.trust_bundle(), expired.pair)
        assert await called(port, authority.trust_bundle(), Worker(authority).pair) == NAME


async def test_session_with_a_certificate_in_the_other_role_is_refused(tmp_path: Path) -> None:
    authority = made(tmp_path)
    worker, server = Worker(authority), authority.server_credentials_pem(NOW_MS)
    async with control(authority) as port:
        assert await refused(port, authority.trust_bundle(), server)
    async with serving(authority.trust_bundle, lambda: worker.pair) as port:
        assert await refused(port, authority.trust_bundle(), worker.pair)


def test_worker_certificate_alone_carries_no_name_of_the_server(tmp_path: Path) -> None:
    leaf = load_certificate(Worker(made(tmp_path)).issued.chain_pem)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.UniformResourceIdentifier(NAME)]
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


async def test_session_with_a_certificate_signed_by_a_worker_is_refused(tmp_path: Path) -> None:
    authority = made(tmp_path)
    worker = Worker(authority)
    leaf = load_certificate(worker.issued.chain_pem)
    forged_key = new_tls_key()
    forged = (
        x509.CertificateBuilder()
        .issuer_name(leaf.subject)
        .subject_name(leaf.subject)
        .public_key(forged_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(leaf.not_valid_before_utc)
        .not_valid_after(leaf.not_valid_after_utc)
    )
    for extension in leaf.extensions:
        forged = forged.add_extension(extension.value, critical=extension.critical)
    chain = forged.sign(worker.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    async with control(authority) as port:
        pair = key_to_pem(forged_key), chain + worker.issued.chain_pem
        assert await refused(port, authority.trust_bundle(), pair)
        assert await called(port, authority.trust_bundle(), worker.pair) == NAME


# Certificates


def test_issue_worker_longest_life_spans_a_day_with_its_backdating(tmp_path: Path) -> None:
    authority = made(tmp_path)
    issued = authority.issue_worker(make_csr(new_tls_key()), NAME, NOW_MS, WORKER_LIFE_MS_MAX)
    before_ms, after_ms = certificate_times(issued.chain_pem)
    assert after_ms - before_ms == WORKER_LIFE_MS_MAX
    assert before_ms <= NOW_MS - HOUR_MS
    assert issued.not_after_ms == after_ms
    assert issued.serial == load_certificate(issued.chain_pem).serial_number


@pytest.mark.parametrize("life_ms", [-1, 0, WORKER_LIFE_MS_MAX + 1])
def test_issue_worker_life_out_of_bounds_is_refused(tmp_path: Path, life_ms: int) -> None:
    with pytest.raises(ValueError, match="life_ms"):
        made(tmp_path).issue_worker(make_csr(new_tls_key()), NAME, NOW_MS, life_ms)


def test_issue_worker_under_a_name_of_another_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="spiffe://"):
        made(tmp_path).issue_worker(make_csr(new_tls_key()), "spiffe://net_1/admin", NOW_MS, HOUR_MS)


def test_issue_worker_by_a_ca_that_ran_out_asks_for_rotation_which_helps(tmp_path: Path) -> None:
    authority = made(tmp_path)
    late_ms = authority.generations[0].not_after_ms + DAY_MS
    with pytest.raises(AuthorityError, match="rotate"):
        Worker(authority, now_ms=late_ms)
    authority.rotate(late_ms)
    assert Worker(authority, now_ms=late_ms).issued.not_after_ms > late_ms
    assert len(split_chain(authority.server_credentials_pem(late_ms)[1])) == 1


def test_server_credentials_are_kept_until_half_life_and_made_anew_by_change(tmp_path: Path) -> None:
    authority = made(tmp_path)
    first = authority.server_credentials_pem(NOW_MS)
    assert authority.server_credentials_pem(NOW_MS + SERVER_LIFE_MS // 2 - 1) == first
    second = authority.server_credentials_pem(NOW_MS + SERVER_LIFE_MS // 2)
    assert second[0] != first[0]
    authority.rotate(NOW_MS)
    rotated = authority.server_credentials_pem(NOW_MS + SERVER_LIFE_MS // 2)
    assert [len(split_chain(chain)) for _, chain in (second, rotated)] == [1, 2]


def test_authority_repr_shows_no_key(tmp_path: Path) -> None:
    authority = made(tmp_path)
    key_pem, _ = authority.server_credentials_pem(NOW_MS)
    shown = repr(authority) + repr(authority.generations) + repr(vars(authority))
    assert "PRIVATE" not in shown
    assert key_pem.decode().splitlines()[1] not in shown


# Files


def test_authority_second_load_is_the_same_ca(tmp_path: Path) -> None:
    authority = made(tmp_path)
    authority.rotate(NOW_MS)
    again = made(tmp_path, now_ms=NOW_MS + DAY_MS, founded=True)
    assert again.generations == authority.generations
    assert again.generation == 2
    assert again.pin == pin_of(again.trust_bundle())
    assert list(bundle_pins(again.trust_bundle())) == [one.pin for one in again.generations]
    assert (tmp_path / "ca.pem").read_bytes() == authority.trust_bundle() == again.trust_bundle()


def test_authority_files_are_the_owners_only(tmp_path: Path) -> None:
    authority = made(tmp_path)
    authority.rotate(NOW_MS)
    names = {path.name for path in (tmp_path / "ca").iterdir() if path.is_file()}
    assert names == {"0001.key", "0001.pem", "0002.key", "0002.pem", "0002.cross.pem"}
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "ca").glob("*.key")} == {0o600}


@pytest.mark.parametrize("lost", [["0001.pem"], ["0002.pem", "0002.cross.pem"], ["0002.cross.pem"]])
def test_authority_after_a_crash_finishes_what_was_begun(tmp_path: Path, lost: list[str]) -> None:
    authority = made(tmp_path)
    worker = Worker(authority)
    authority.rotate(NOW_MS)
    for name in lost:
        (tmp_path / "ca" / name).unlink()
    again = made(tmp_path, founded=True)
    assert [one.pin for one in again.generations] == [one.pin for one in authority.generations]
    newest, oldest = split_chain(again.trust_bundle())
    leaf, cross = split_chain(again.server_credentials_pem(NOW_MS)[1])
    assert is_issued_by(leaf, newest)
    assert is_issued_by(cross, oldest)
    assert pin_of(cross) == pin_of(newest)
    assert is_issued_by(worker.issued.chain_pem, oldest)


def test_authority_after_a_crash_before_the_new_key_is_as_before(tmp_path: Path) -> None:
    authority = made(tmp_path)
    pin = authority.pin
    authority.rotate(NOW_MS)
    for path in (tmp_path / "ca").glob("0002.*"):
        path.unlink()
    again = made(tmp_path, founded=True)
    assert (again.generation, again.pin) == (1, pin)
    assert (tmp_path / "ca.pem").read_bytes() == again.trust_bundle()


def test_rotate_after_a_failed_rotation_goes_on_with_its_key(tmp_path: Path) -> None:
    authority = made(tmp_path)
    blocker = tmp_path / "ca" / "0002.pem"
    blocker.mkdir()
    with pytest.raises(OSError, match=r"0002\.pem"):
        authority.rotate(NOW_MS)
    assert authority.generation == 1
    begun = (tmp_path / "ca" / "0002.key").read_bytes()
    blocker.rmdir()
    authority.rotate(NOW_MS)
    assert (tmp_path / "ca" / "0002.key").read_bytes() == begun
    assert made(tmp_path, founded=True).generations == authority.generations


def test_retire_leaves_certificates_and_no_keys(tmp_path: Path) -> None:
    authority = made(tmp_path)
    authority.rotate(NOW_MS)
    authority.rotate(NOW_MS)
    authority.retire()
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    bridges = {"ca/0002.cross.pem", "ca/0003.cross.pem"}
    retired = {"ca/retired/0001.pem", "ca/retired/0002.pem"}
    assert names == {"ca/0003.key", "ca/0003.pem", "ca.pem"} | bridges | retired
    assert (tmp_path / "ca.pem").read_bytes() == authority.trust_bundle()
    again = made(tmp_path, founded=True)
    assert again.generations == authority.generations
    again.rotate(NOW_MS)
    assert again.generation == 4


def test_retire_cut_short_at_each_step_leaves_a_ca_that_loads(tmp_path: Path) -> None:
    authority = made(tmp_path / "whole")
    authority.rotate(NOW_MS)
    authority.rotate(NOW_MS)
    for moved, left in ((["0001.pem"], [3, 2]), (["0001.pem", "0002.pem"], [3])):
        folder = tmp_path / f"cut-{len(moved)}"
        shutil.copytree(tmp_path / "whole", folder)
        for name in moved:
            (folder / "ca" / name).rename(folder / "ca" / "retired" / name)
        again = made(folder, founded=True)
        assert [one.number for one in again.generations] == left
        assert len(split_chain(again.server_credentials_pem(NOW_MS)[1])) == 3
        assert not (folder / "ca" / "0001.key").exists()
        assert (folder / "ca.pem").read_bytes() == again.trust_bundle()


def test_retire_the_only_generation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AuthorityError, match="rotate first"):
        made(tmp_path).retire()


def test_rotate_without_retiring_is_bounded_and_the_bundle_still_reads(tmp_path: Path) -> None:
    authority = made(tmp_path)
    for _ in range(GENERATIONS_MAX - 1):
        authority.rotate(NOW_MS)
    with pytest.raises(AuthorityError, match="retire"):
        authority.rotate(NOW_MS)
    assert len(bundle_pins(authority.trust_bundle())) == GENERATIONS_MAX


def test_authority_missing_beside_its_network_is_refused_and_not_made_anew(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match=r"0001\.key is missing"):
        made(tmp_path, founded=True)
    assert not (tmp_path / "ca" / "0001.key").exists()


@pytest.mark.parametrize("name", ["0001.key", "0002.key"])
def test_authority_certificate_without_its_key_is_refused(tmp_path: Path, name: str) -> None:
    made(tmp_path).rotate(NOW_MS)
    (tmp_path / "ca" / name).unlink()
    with pytest.raises(KeyFileError, match=f"{name} is missing.*backup"):
        made(tmp_path)


@pytest.mark.parametrize("content", [b"", b"zz", key_to_pem(new_tls_key())[:-40]])
def test_authority_damaged_key_is_refused_without_its_content(tmp_path: Path, content: bytes) -> None:
    made(tmp_path)
    (tmp_path / "ca" / "0001.key").write_bytes(content)
    with pytest.raises(KeyFileError, match="holds no P-256 key; restore it from a backup"):
        made(tmp_path)


def test_authority_key_that_others_read_is_refused_with_the_remedy(tmp_path: Path) -> None:
    made(tmp_path)
    (tmp_path / "ca" / "0001.key").chmod(0o640)
    with pytest.raises(KeyFileError, match="chmod 600"):
        made(tmp_path)


@pytest.mark.parametrize("name", ["0001.pem", "0002.pem", "0002.cross.pem"])
def test_authority_certificate_of_another_key_is_refused(tmp_path: Path, name: str) -> None:
    made(tmp_path).rotate(NOW_MS)
    made(tmp_path / "other").rotate(NOW_MS)
    for damage in ((tmp_path / "other" / "ca" / name).read_bytes(), b"zz"):
        (tmp_path / "ca" / name).write_bytes(damage)
        with pytest.raises(KeyFileError, match=f"{name} is not the certificate.*delete it"):
            made(tmp_path)
